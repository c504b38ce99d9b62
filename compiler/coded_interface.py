"""Inputs and outputs in codes: what the model's metadata says of them, and how float data goes in and comes out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from memoptc.ir import ops
from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Value
from memoptc.ir.types import DType, TensorType

KEY = "memoptc.io"
"""Entry of the model's metadata: JSON, `{"inputs": {NAME: {"dtype", "scale", "zero_point"}}, "outputs": ...}`; several
scales are a list, with `shape`."""


@dataclass(frozen=True)
class Coded:
    """Coding of a quantized input or output: element type, scale, zero point.

    Args:
        dtype: Element type that callers see.
        scale: `real = scale * (code - zero_point)`; `None` for a float type, where real is the number itself. Several
            are those of channels.
        zero_point: The code of 0; with several scales it is 0.
        shape: How several scales broadcast.
    """

    dtype: DType
    scale: float | tuple[float, ...] | None = None
    zero_point: int = 0
    shape: tuple[int, ...] = ()

    def scales(self) -> Any:
        """The scale, or scales, as float32."""
        return np.asarray(self.scale, np.float32).reshape(self.shape)

    def encode(self, array: Any) -> Any:
        """Give the codes of real numbers, rounded and saturated as QuantizeLinear does."""
        if self.scale is None:
            with np.errstate(over="ignore"):
                return np.asarray(array).astype(self.dtype.numpy())
        ends = np.iinfo(self.dtype.numpy())
        codes = np.round(np.asarray(array, np.float32) / self.scales()) + self.zero_point
        return np.clip(codes, ends.min, ends.max).astype(self.dtype.numpy())

    def __str__(self) -> str:
        """For people: what a caller needs to know."""
        name = self.dtype.name.lower()
        if isinstance(self.scale, tuple):
            return f"{name}, {len(self.scale)} scales"
        return name if self.scale is None else f"{name}, scale {self.scale:.9g}, zero point {self.zero_point}"

    def convert(self, builder: Builder, value: Value, to: DType) -> Value:
        """Code a value, or decode it, in a graph."""
        type_ = TensorType(to, value.shape)
        if self.scale is None:
            return builder.op("Cast", [value], {"to": int(to)}, type=type_).result
        if isinstance(self.scale, tuple):
            return self._convert_channels(builder, value, type_)
        # Codes of 8 bits are standard from opset 10 on, those of 16 from 21.
        wanted = 10 if self.dtype.bitwidth == 8 else 21
        domain = "" if (ops.opset_of(builder.graph) or 0) >= wanted else ops.MICROSOFT
        scale = builder.const(np.asarray(self.scale, np.float32))
        zero = builder.const(np.asarray(self.zero_point, self.dtype.numpy()))
        kind = "DequantizeLinear" if to == DType.FLOAT else "QuantizeLinear"
        return builder.op(kind, [value, scale, zero], domain=domain, type=type_).result

    def _convert_channels(self, builder: Builder, value: Value, type_: TensorType) -> Value:
        """Spelled out: the operators for it know one axis of scales."""
        if type_.dtype == DType.FLOAT:
            real = builder.Cast(value, to=int(DType.FLOAT))
            return builder.op("Mul", [real, builder.const(self.scales())], type=type_).result
        ends = np.iinfo(self.dtype.numpy())
        steps = builder.Round(builder.Div(value, builder.const(self.scales())))
        held = builder.Clip(steps, np.asarray(ends.min, np.float32), np.asarray(ends.max, np.float32))
        return builder.op("Cast", [held], {"to": int(self.dtype)}, type=type_).result


@dataclass
class CodedInterface:
    """The quantized inputs and outputs of a model, by name."""

    inputs: dict[str, Coded] = field(default_factory=dict)
    outputs: dict[str, Coded] = field(default_factory=dict)

    def encode(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """Give a feed as the model takes it."""
        return {k: self.inputs[k].encode(v) if k in self.inputs else v for k, v in feed.items()}


def read_coded_interface(graph: Graph) -> CodedInterface:
    """Give what a model says of its inputs and outputs; nothing for most."""
    found = json.loads(graph.info.metadata.get(KEY, "{}"))
    inputs, outputs = ({n: _read(c) for n, c in found.get(side, {}).items()} for side in ("inputs", "outputs"))
    return CodedInterface(inputs, outputs)


def write_coded_interface(graph: Graph, interface: CodedInterface) -> None:
    """Write it into the model's metadata."""
    sides = {"inputs": interface.inputs, "outputs": interface.outputs}
    plain = {k: {n: _plain(c) for n, c in side.items()} for k, side in sides.items() if side}
    if plain:
        graph.info.metadata[KEY] = json.dumps(plain, sort_keys=True)


def _read(plain: Mapping[str, Any]) -> Coded:
    scale = plain.get("scale")
    scales = tuple(scale) if isinstance(scale, list) else scale
    dtype = DType.__members__[plain["dtype"].upper()]
    return Coded(dtype, scales, plain.get("zero_point", 0), tuple(plain.get("shape", ())))


def _plain(coded: Coded) -> dict[str, Any]:
    plain: dict[str, Any] = {"dtype": coded.dtype.name.lower()}
    if coded.scale is not None:
        plain |= {"scale": coded.scale, "zero_point": coded.zero_point}
    return plain | {"shape": coded.shape} if coded.shape else plain


def interface_since(graph: Graph, original: Graph) -> CodedInterface:
    """Give what a model codes that its original did not."""
    interface, before = read_coded_interface(graph), read_coded_interface(original)
    return CodedInterface(
        {n: c for n, c in interface.inputs.items() if n not in before.inputs},
        {n: c for n, c in interface.outputs.items() if n not in before.outputs},
    )


def with_interface_of(original: Graph, graph: Graph) -> Graph:
    """Give a model with the inputs and outputs its original has: itself, or a copy that codes and decodes them."""
    interface = interface_since(graph, original)
    if not interface.inputs and not interface.outputs:
        return graph
    copy = graph.clone()
    del copy.info.metadata[KEY]
    first = next((op for op in copy.ops if not op.is_const and op.op_type != "absent"), None)
    for value in copy.inputs:
        if value.name in interface.inputs and value.tensor_type is not None:
            coded, uses = interface.inputs[value.name], value.uses
            value.type = TensorType(DType.FLOAT, value.shape)
            code = coded.convert(Builder(copy, before=first), value, coded.dtype)
            for user, index in uses:
                user.set_operand(index, code)
    outputs = list(copy.outputs)
    for index, info in enumerate(copy.outputs_info):
        if info.name in interface.outputs:
            outputs[index] = interface.outputs[info.name].convert(Builder(copy), outputs[index], DType.FLOAT)
            if info.tensor_type is not None:
                info.type = TensorType(DType.FLOAT, info.shape)
    copy.set_outputs(outputs, copy.outputs_info)
    return copy
