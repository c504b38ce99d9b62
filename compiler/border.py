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
"""Entry of the model's metadata: JSON, `{"inputs": {NAME: {"dtype", "scale", "zero_point"}}, "outputs": ...}`."""


@dataclass(frozen=True)
class Coded:
    """How an input or output is coded.

    Args:
        dtype: Element type that callers see.
        scale: `real = scale * (code - zero_point)`; `None` for a float type, where real is the number itself.
        zero_point: The code of 0.
    """

    dtype: DType
    scale: float | None = None
    zero_point: int = 0

    def encode(self, array: Any) -> Any:
        """Give the codes of real numbers, rounded and saturated as QuantizeLinear does."""
        if self.scale is None:
            with np.errstate(over="ignore"):
                return np.asarray(array).astype(self.dtype.numpy())
        ends = np.iinfo(self.dtype.numpy())
        codes = np.round(np.asarray(array, np.float32) / np.float32(self.scale)) + self.zero_point
        return np.clip(codes, ends.min, ends.max).astype(self.dtype.numpy())

    def __str__(self) -> str:
        """For people: what a caller needs to know."""
        name = self.dtype.name.lower()
        return name if self.scale is None else f"{name}, scale {self.scale:.9g}, zero point {self.zero_point}"


@dataclass
class Border:
    """Which inputs and outputs of a model are coded, by name."""

    inputs: dict[str, Coded] = field(default_factory=dict)
    outputs: dict[str, Coded] = field(default_factory=dict)

    def encode(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """Give a feed as the model takes it."""
        return {k: self.inputs[k].encode(v) if k in self.inputs else v for k, v in feed.items()}


def read_border(graph: Graph) -> Border:
    """Give what a model says of its inputs and outputs; nothing for most."""
    found = json.loads(graph.info.metadata.get(KEY, "{}"))
    inputs, outputs = ({n: _read(c) for n, c in found.get(side, {}).items()} for side in ("inputs", "outputs"))
    return Border(inputs, outputs)


def write_border(graph: Graph, border: Border) -> None:
    """Write it into the model's metadata."""
    sides = {"inputs": border.inputs, "outputs": border.outputs}
    plain = {k: {n: _plain(c) for n, c in side.items()} for k, side in sides.items() if side}
    if plain:
        graph.info.metadata[KEY] = json.dumps(plain, sort_keys=True)


def _read(plain: Mapping[str, Any]) -> Coded:
    dtype = DType.__members__[plain["dtype"].upper()]
    return Coded(dtype, plain.get("scale"), plain.get("zero_point", 0))


def _plain(coded: Coded) -> dict[str, Any]:
    plain: dict[str, Any] = {"dtype": coded.dtype.name.lower()}
    return plain if coded.scale is None else plain | {"scale": coded.scale, "zero_point": coded.zero_point}


def border_since(graph: Graph, original: Graph) -> Border:
    """Give what a model codes that its original did not."""
    border, before = read_border(graph), read_border(original)
    return Border(
        {n: c for n, c in border.inputs.items() if n not in before.inputs},
        {n: c for n, c in border.outputs.items() if n not in before.outputs},
    )


def with_border_of(original: Graph, graph: Graph) -> Graph:
    """Give a model with the inputs and outputs its original has: itself, or a copy that codes and decodes them."""
    border = border_since(graph, original)
    if not border.inputs and not border.outputs:
        return graph
    copy = graph.clone()
    del copy.info.metadata[KEY]
    first = next((op for op in copy.ops if not op.is_const and op.op_type != "absent"), None)
    for value in copy.inputs:
        if value.name in border.inputs and value.tensor_type is not None:
            coded, uses = border.inputs[value.name], value.uses
            value.type = TensorType(DType.FLOAT, value.shape)
            code = _convert(Builder(copy, before=first), value, coded, coded.dtype)
            for user, index in uses:
                user.set_operand(index, code)
    outputs = list(copy.outputs)
    for index, info in enumerate(copy.outputs_info):
        if info.name in border.outputs:
            outputs[index] = _convert(Builder(copy), outputs[index], border.outputs[info.name], DType.FLOAT)
            if info.tensor_type is not None:
                info.type = TensorType(DType.FLOAT, info.shape)
    copy.set_outputs(outputs, copy.outputs_info)
    return copy


def _convert(builder: Builder, value: Value, coded: Coded, to: DType) -> Value:
    type_ = TensorType(to, value.shape)
    if coded.scale is None:
        return builder.op("Cast", [value], {"to": int(to)}, type=type_).result
    # Codes of 8 bits are standard from opset 10 on, those of 16 from 21.
    wanted = 10 if coded.dtype.bitwidth == 8 else 21
    domain = "" if (ops.opset_of(builder.graph) or 0) >= wanted else ops.MICROSOFT
    scale = builder.const(np.asarray(coded.scale, np.float32))
    zero = builder.const(np.asarray(coded.zero_point, coded.dtype.numpy()))
    kind = "DequantizeLinear" if to == DType.FLOAT else "QuantizeLinear"
    return builder.op(kind, [value, scale, zero], domain=domain, type=type_).result
