"""widen-half: a float16 or bfloat16 model computed in float32, so that its weights can become codes."""

from __future__ import annotations

from typing import Any

import numpy as np

from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.facts import Output, Tensor
from memoptc.ir.tensors import from_array, nbytes
from memoptc.ir.types import DType, TensorType
from memoptc.pass_base import Context, Pass


class WidenHalf(Pass):
    """Let all float16 and bfloat16 tensors be float32, with a Cast behind each such input and before each such output.

    onnxruntime's CPU kernels compute float16 in float32 anyway, those for bfloat16 are few, and what codes weights
    knows float32 only. Only models with large weights of 16 bits change, and none with operators outside the standard
    on them, whose kernels may ask for that, or with a BitCast, which takes bits for numbers. A model whose weights then
    do not become codes is twice as large, so this stands before what codes them.

    Args:
        smallest: Bytes of weights of 16 bits below which the model stays as it is.
        interface: Whether inputs and outputs become float32, too, without a Cast.
    """

    smallest: int = 8192
    interface: bool = False

    def run(self, graph: Graph, context: Context) -> None:
        """Widen the graph and all subgraphs."""
        narrow = [op for op in graph.walk() if any(_is_half(v) for v in (*op.operands, *op.results))]
        if sum(nbytes(v.tensor) for op in narrow for v in op.results if v.tensor is not None) < max(self.smallest, 1):
            return
        held = [op for op in graph.walk() if any(_holds_half(v) for v in (*op.operands, *op.results))]
        other = [op.key for op in [*narrow, *held] if op.domain or op in held or op.is_a("BitCast")]
        if other:
            context.stats[f"left: {other[0]} works on halves"] += 1
            return
        pairs = zip(graph.outputs, graph.outputs_info, strict=True)
        given = [_half(value) or _half(info) for value, info in pairs]
        for op in list(graph.walk()):
            self._widen(op, context)
        for inner in (graph, *(region for op in graph.walk() for region in op.regions.values())):
            if inner is not graph or self.interface:
                for value in inner.inputs:
                    if _is_half(value):
                        value.type = TensorType(DType.FLOAT, value.shape)
                for info in inner.outputs_info:
                    if _is_half(info):
                        info.type = TensorType(DType.FLOAT, info.shape)
        if not self.interface:
            self._border(graph, given)

    def _widen(self, op: Op, context: Context) -> None:
        """Widen an op's attributes and results."""
        for name, value in list(op.attrs.items()):
            if (wide := _wide(op, name, value)) is not value:
                op.set_attr(name, wide)
        for result in op.results:
            if _is_half(result):
                result.type = TensorType(DType.FLOAT, result.shape)
                context.stats["widened"] += 1

    def _border(self, graph: Graph, given: list[DType | None]) -> None:
        """Let callers hand in and get what they did before; outputs, too, whose type is only inferred."""
        first = next((op for op in graph.ops if not op.is_const and not op.is_a("absent")), None)
        for value in graph.inputs:
            uses = list(value.uses)
            if _is_half(value) and uses:
                builder = Builder(graph, before=first)
                wide = builder.op(
                    "Cast", [value], {"to": int(DType.FLOAT)}, domain="", type=TensorType(DType.FLOAT, value.shape)
                ).result
                for user, index in uses:
                    user.set_operand(index, wide)
        outputs, builder = list(graph.outputs), Builder(graph)
        for index, value in enumerate(outputs):
            half = given[index]
            if half is not None and not _is_half(value):
                type_ = TensorType(half, value.shape)
                narrow = builder.op("Cast", [value], {"to": int(half)}, domain="", type=type_).result
                narrow.name, value.name = value.name, narrow.name
                outputs[index] = narrow
        graph.set_outputs(outputs, graph.outputs_info)


_HALVES = (DType.FLOAT16, DType.BFLOAT16)


def _half(of: Value | Output) -> DType | None:
    """The element type where it has 16 bits."""
    return of.tensor_type.dtype if of.tensor_type is not None and of.tensor_type.dtype in _HALVES else None


def _is_half(of: Value | Output) -> bool:
    return _half(of) is not None


def _holds_half(value: Value) -> bool:
    """True if a value is a sequence, map or optional of such elements."""
    return value.type is not None and value.tensor_type is None and "FLOAT16" in repr(value.type)


_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "output_datatype", "stash_type")
"""Attributes that name an element type."""


def _wide(op: Op, name: str, value: Any) -> Any:
    """An attribute, wide where it is a half: a type that is asked for, or a tensor."""
    if isinstance(value, Tensor):
        if DType(value.dtype) not in _HALVES:
            return value
        return from_array(np.asarray(value.numpy()).astype(np.float32), name=value.name or "")
    asks = name in _TYPE_ATTRIBUTES and isinstance(value, int) and not op.regions
    return int(DType.FLOAT) if asks and value in _HALVES else value
