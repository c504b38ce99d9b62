"""Warnings about weights that a target left in float, with the reasons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from memoptc.attempts import Attempt
from memoptc.compilation import Compilation
from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.diagnostics import GateError
from memoptc.ir.not_finite import behind_infinite_weights, has_infinite_weight
from memoptc.ir.ops import Family, names_where
from memoptc.ir.tensors import nbytes
from memoptc.ir.types import DType

_CODES = frozenset({DType.INT8, DType.UINT8, DType.INT4, DType.UINT4, DType.INT16, DType.UINT16})
_HALF = frozenset(
    {DType.FLOAT16, DType.BFLOAT16, DType.FLOAT8E4M3FN, DType.FLOAT8E4M3FNUZ, DType.FLOAT8E5M2, DType.FLOAT8E5M2FNUZ}
)
_INTEGERS = ("int8", "uint8", "int4", "mixed")
_CODERS = names_where(lambda o: o.family is Family.CODING)
_RECURRENT = names_where(lambda o: o.family is Family.RECURRENT)
_PRODUCTS = names_where(lambda o: o.layout is not None and o.family is Family.MATMUL)
_HEAVY = names_where(lambda o: o.layout is not None) | {"Einsum"} | _RECURRENT
_MOST = 5
"""Reasons that a warning lists."""
_PART, _WORTH = 0.1, 1 << 16
"""Part of a model's weights, and bytes, from which it is worth a warning that they stay in float."""
_SMALL = 8192
"""Bytes of a weight below which codes save nothing."""


def check_target(attempt: Attempt, compilation: Compilation) -> None:
    """Say so where a target left every number as it was, or many weights in float, and why.

    Args:
        attempt: The compiled model; gets the warning.
        compilation: With the model as it was handed in.

    Raises:
        GateError: with `--no-fallback`, since then nothing was to stay as it is.
    """
    graph, original, options = attempt.graph, compilation.source.graph, compilation.options
    if options.target == "float32" or options.passes is not None:
        return
    narrow = _CODES if options.target in _INTEGERS else _HALF
    if _is_narrow(graph, narrow) or _is_narrow(original, narrow):
        if options.target in _INTEGERS:
            attempt.warnings += _floats_left(graph, original, options.target)
        return
    late = any(p.name in compilation.allowance.left_out for p in attempt.pipeline.passes())
    reasons = ["the compile's time was over"] if late else _reasons(graph, options.target)
    message = f"--target {options.target} changed nothing: {'; '.join(reasons)}."
    if options.fallback or options.force:
        attempt.warnings.append(message)
        return
    raise GateError(message, hint="Nothing was written; leave --no-fallback out to get the model in float.")


def _is_narrow(graph: Graph, dtypes: frozenset[DType]) -> bool:
    """True if a model codes, or holds weights in such element types."""
    if any(op.op_type in _CODERS for op in graph.walk()):
        return True
    held = (op.attrs["value"] for op in graph.walk("const"))
    return any(DType(t.dtype) in dtypes and nbytes(t) for t in held)


def _floats_left(graph: Graph, original: Graph, target: str) -> list[str]:
    """Warn of weights that stay in float, where these are a large part of what the model had."""
    left: dict[Op, list[Value]] = {}
    for op in graph.walk():
        floats = [v for v in op.operands if v.tensor is not None and v.dtype == DType.FLOAT]
        weights = [v for v in floats if v.tensor is not None and nbytes(v.tensor) >= _SMALL]
        if op.key in _HEAVY and weights:
            left[op] = weights
    stays = sum(nbytes(v.tensor) for v in {v for found in left.values() for v in found} if v.tensor is not None)
    whole = sum(nbytes(op.attrs["value"]) for op in original.walk("const"))
    if stays < max(_PART * whole, _WORTH):
        return []
    why = "; ".join(_grouped((op.op_type, _reason(op, graph, target)) for op in left))
    return [f"--target {target} left {stays / 1e6:.1f} of {whole / 1e6:.1f} MB of weights in float: {why}."]


def _reasons(graph: Graph, target: str) -> list[str]:
    """Reasons why nodes with weights stayed."""
    found = [(op.op_type, _reason(op, graph, target)) for op in graph.walk() if op.key in _HEAVY]
    return _grouped(found) if found else ["it has no product, convolution or recurrent layer"]


def _grouped(reasons: Iterable[tuple[str, str]]) -> list[str]:
    """Group reasons by operator; those with most nodes first."""
    found = Counter(reasons)
    grouped = [f"{count} {kind}: {why}" for (kind, why), count in found.most_common(_MOST)]
    rest = sum(found.values()) - sum(n for _, n in found.most_common(_MOST))
    return [*grouped, *([f"{rest} more"] if rest else [])]


def _reason(op: Op, graph: Graph, target: str) -> str:
    weights = [(i, v) for i, v in enumerate(op.operands[:2]) if v.tensor is not None]
    if not weights and op.op_type not in _RECURRENT:
        return "all its operands are computed"
    for _, value in weights:
        if (dtype := _dtype(value)) != DType.FLOAT and dtype is not None:
            return f"its weights are {dtype.name.lower()}"
        if (other := next((u for u in value.users if u.key not in _HEAVY), None)) is not None:
            return f"{other.op_type} reads its weight, too"
    if has_infinite_weight(op):
        return "its weights hold NaN or Inf, which no code stands for"
    if op.operands[0] in graph.analysis(behind_infinite_weights):
        return "it reads what weights that hold NaN or Inf made"
    if op.graph is not graph:
        return "it lies inside a subgraph"
    if op.op_type in _RECURRENT:
        return "recurrent, errors would add up"
    if target in _INTEGERS and op.op_type in ("ConvTranspose", "Einsum"):
        return "onnxruntime has no integer kernel for it, and decoded while loading its weights cost too much"
    if op.key in _PRODUCTS:
        if [i for i, _ in weights] == [0]:
            return "the weight is its left operand"
        rank = len(op.operands[1].tensor.shape) if op.operands[1].tensor is not None else 2
        if rank != 2:
            return f"its weights have {rank} axes"
    return "what it would gain is less than what it would cost in accuracy, bytes or time"


def _dtype(value: Value) -> DType | None:
    return value.dtype
