"""Nodes that onnxruntime really runs on integers, and why others that have codes do not: read off its own graph."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.files import TemporaryFolder
from memoptc.ir.onnx_io import read_onnx
from memoptc.ir.ops import Family, definition, in_family
from memoptc.runtime.optimized_model import write_optimized


@dataclass(frozen=True)
class Fallback:
    """A product or convolution that has codes and runs in float all the same.

    Args:
        op: Operator.
        name: Node name, or that of its result.
        why: The reason, one clause.
    """

    op: str
    name: str
    why: str


@dataclass
class IntegerRun:
    """Counts of a model's nodes by the kernels they run on.

    Args:
        integer: Operators with integer kernels -> nodes.
        heavy_float: Products and convolutions in float -> nodes.
        weights_only: How many of these decode a weight and compute in float, as weights alone being codes means.
        borders: Nodes that turn floats into codes or back.
        fallbacks: Those in float although their input comes from codes.
    """

    integer: Counter[str] = field(default_factory=Counter)
    heavy_float: Counter[str] = field(default_factory=Counter)
    weights_only: int = 0
    borders: int = 0
    fallbacks: list[Fallback] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Give plain values for the report."""
        return {
            "integer": dict(sorted(self.integer.items())),
            "heavy_float": dict(sorted(self.heavy_float.items())),
            "weights_only": self.weights_only,
            "borders": self.borders,
            "fallbacks": [vars(f) for f in self.fallbacks],
        }


def has_codes(graph: Graph) -> bool:
    """True if a model has quantized tensors or integer products at all."""
    return any(in_family(op, Family.CODING) or _is_integer(op) for op in graph.walk())


def integer_run(path: str | Path) -> IntegerRun | None:
    """Let onnxruntime optimize a model for this machine, and look at what it made; `None` when it refuses."""
    with TemporaryFolder() as folder:
        written = Path(folder) / "optimized.onnx"
        return look(read_onnx(written)) if write_optimized(Path(path), written) else None


def look(graph: Graph) -> IntegerRun:
    """Count the nodes of a graph that onnxruntime optimized, its bodies included."""
    found = IntegerRun()
    for op in graph.walk():
        if in_family(op, Family.CODING):
            found.borders += 1
        elif _is_integer(op):
            found.integer[op.op_type] += 1
        elif definition(op).layout is not None:
            found.heavy_float[op.op_type] += 1
            data, weight = op.operands[:2]
            if _codes(data) is None and _codes(weight) is not None:
                found.weights_only += 1
            elif _codes(data) is not None:
                found.fallbacks.append(Fallback(op.op_type, op.name or op.result.name, _why(op)))
    return found


def _is_integer(op: Op) -> bool:
    """True if an operator computes on codes; one that only moves or compares them counts, too."""
    if definition(op).on_codes:
        return True
    if not in_family(op, Family.POOL) or not op.results or not op.operands:
        return False
    dtype = op.operands[0].dtype
    return dtype is not None and dtype.is_integer() and dtype.bitwidth == 8


def _codes(value: Value) -> Value | None:
    """The codes that a value is decoded from."""
    op = value.op
    return op.operand if op is not None and op.op_type == "DequantizeLinear" else None


def _why(op: Op) -> str:
    data, weight = op.operands[0], op.operands[1]
    for value in (data, weight):
        codes = _codes(value)
        if codes is not None and codes.dtype is not None and codes.dtype.bitwidth != 8:
            return f"there are no kernels for codes of {codes.dtype.bitwidth} bits"
    if _codes(weight) is None:
        return "its weight is no code"
    bias = op.input(2)
    if bias is not None and _codes(bias) is None:
        return "its bias is no code"
    if in_family(op, Family.CONVOLUTION):
        if op.attrs.get("activation"):
            return f"its {op.attrs['activation']} ends elsewhere than the code's range, so it is not absorbed"
        if op.op_type == "ConvTranspose":
            return "there is no integer kernel of ConvTranspose"
        user = next((u for u in op.result.users if u.op_type != "QuantizeLinear"), None)
        if user is not None:
            return "its result goes on in float" + ("" if op.result.is_output else f", into {user.op_type}")
    return "onnxruntime did not fuse its codes"
