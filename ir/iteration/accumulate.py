"""Axes that an operator accumulates along: sums and extremes that can be computed part by part, and then joined.

Only where parts can be joined without losing what the whole has: sums of a type in which kernels add up as well, and no
narrower one (onnxruntime keeps the sums of half floats in float32; joined parts would be rounded once each).
"""

from __future__ import annotations

from memoptc.ir.core import Op
from memoptc.ir.dims import Dim, same
from memoptc.ir.iteration.axis import Along, Axis, Form, Join, Space, extents, shape
from memoptc.ir.iteration.products import einsum_terms, reduced_axes
from memoptc.ir.ops import default_of, opset_of
from memoptc.ir.types import DType, TensorType

WHOLE = (DType.INT32, DType.INT64)
SUMMED = (DType.FLOAT, DType.DOUBLE)

_JOINS = {
    **dict.fromkeys("ReduceL1 ReduceL2 ReduceLogSum ReduceSum ReduceSumSquare".split(), Join.SUM),
    "ReduceMean": Join.MEAN,
    "ReduceLogSumExp": Join.AGAIN,
    "ReduceProd": Join.PRODUCT,
    "ReduceMax": Join.LARGEST,
    "ReduceMin": Join.LEAST,
    "GlobalAveragePool": Join.MEAN,
    "GlobalMaxPool": Join.LARGEST,
}
_EXACT = (Join.PLACE, Join.TOP)
"""Of 0.0 and -0.0, either may be the largest: which one a kernel gives depends on what comes before it."""


def _along(op: Op, join: Join, *operands: tuple[int, int]) -> Axis:
    """An axis that no result has; where it lies in the operands that have it."""
    cut = {i: Along(axis) for i, axis in operands}
    integers = _dtype(op, 0) in WHOLE
    return Axis(
        (None,) * len(op.results),
        tuple(cut.get(i) for i in range(len(op.operands))),
        reorders=join not in _EXACT and not integers,
        join=join,
    )


def _dtype(op: Op, index: int) -> DType | None:
    value = op.input(index)
    return value.type.dtype if value is not None and isinstance(value.type, TensorType) else None


def _may_be_empty(op: Op) -> bool:
    """Whether there may be nothing to reduce: parts of what onnxruntime gives then do not fit together."""
    return any(not isinstance(d, int) or not d for d in extents(op, 0))


def _reduce(op: Op) -> list[Axis]:
    gone, join = reduced_axes(op), _JOINS[op.op_type]
    fractions = join is Join.MEAN or op.op_type in ("ReduceL2", "ReduceLogSum", "ReduceLogSumExp")
    if gone is None or _may_be_empty(op) or _dtype(op, 0) not in (SUMMED if fractions else (*SUMMED, *WHOLE)):
        return []
    if join in (Join.LARGEST, Join.LEAST) and _dtype(op, 0) in WHOLE and not _since(op, 12):
        return []  # Max and Min took no integers
    return [_along(op, join, (0, axis)) for axis in sorted(gone)]


def _since(op: Op, version: int) -> bool:
    """Whether a graph's opset is at least this one."""
    return op.graph is None or (opset_of(op.graph) or 13) >= version


def _global_pool(op: Op) -> list[Axis]:
    if _dtype(op, 0) not in SUMMED:
        return []
    return [_along(op, _JOINS[op.op_type], (0, axis)) for axis in range(2, len(extents(op, 0)))]


def _place(op: Op) -> list[Axis]:
    gone = reduced_axes(op)
    recent = op.graph is not None and (opset_of(op.graph) or 13) >= 13
    if gone is None or _may_be_empty(op) or not recent or _dtype(op, 0) not in (*SUMMED, *WHOLE):
        return []
    return [_along(op, Join.PLACE, (0, axis)) for axis in gone]


def _top(op: Op) -> list[Axis]:
    rank = len(extents(op, 0))
    count = op.input(1)
    recent = op.graph is not None and (opset_of(op.graph) or 13) >= 11
    known = count is not None and count.tensor is not None
    if not rank or _may_be_empty(op) or not recent or not known or not op.attrs.get("sorted", 1):
        return []
    if _dtype(op, 0) not in (*SUMMED, *WHOLE):
        return []
    axis = int(default_of(op, "axis") if default_of(op, "axis") is not None else -1) % rank
    return [_along(op, Join.TOP, (0, axis))]


def _product(op: Op, flip_a: bool, flip_b: bool) -> list[Axis]:
    """The terms of a matrix product's sums."""
    a, b = extents(op, 0), extents(op, 1)
    if len(a) < 2 or len(b) < 2 or shape(op.results[0]) is None:
        return []
    left, right = len(a) - (2 if flip_a else 1), len(b) - (1 if flip_b else 2)
    return [_along(op, Join.SUM, (0, left), (1, right))] if same(a[left], b[right]) else []


def _matmul(op: Op) -> list[Axis]:
    return _product(op, False, False) if _dtype(op, 0) in (*SUMMED, *WHOLE) else []


def _fused_matmul(op: Op) -> list[Axis]:
    if op.attrs.get("transBatchA") or op.attrs.get("transBatchB") or _dtype(op, 0) not in SUMMED:
        return []
    return _product(op, bool(op.attrs.get("transA")), bool(op.attrs.get("transB")))


def _gemm(op: Op) -> list[Axis]:
    if _dtype(op, 0) not in SUMMED:
        return []
    return _product(op, bool(op.attrs.get("transA")), bool(op.attrs.get("transB")))


def _matmul_integer(op: Op) -> list[Axis]:
    """Sums of integers; zero points are per row or column, never along the terms."""
    return [Axis(a.results, a.operands, join=a.join) for a in _product(op, False, False)]


def _einsum(op: Op) -> list[Axis]:
    letters = einsum_terms(op)
    if letters is None or _dtype(op, 0) not in SUMMED:
        return []
    terms, result = letters
    found = []
    for letter in dict.fromkeys("".join(terms)):
        if letter not in result:
            places = [(i, t.find(letter)) for i, t in enumerate(terms) if letter in t]
            sizes: list[Dim] = [extents(op, i)[axis] for i, axis in places]
            if all(same(size, sizes[0]) for size in sizes):
                found.append(_along(op, Join.SUM, *places))
    return found


def weights_axis(op: Op) -> Axis | None:
    """The axis along which a softmax sums to one, where all it gives are the weights of one product's sums over it.

    The product can then be computed piece by piece along that axis, the softmax with it: each piece's exponentials are
    taken beside its own largest element, and the sums scaled when they are added up ("Online normalizer calculation
    for softmax", Milakov and Gimelshein 2018; "Self-attention does not need O(n^2) memory", Rabe and Staats 2021).
    """
    if op.key != "Softmax" or not op.result.single_use or _dtype(op, 0) not in SUMMED or not _since(op, 8):
        return None  # before opset 8, Max does not broadcast
    rank = len(extents(op, 0))
    ((user, index),) = op.result.uses
    recent = op.graph is not None and (opset_of(op.graph) or 13) >= 13
    if rank < 2 or int(op.attrs.get("axis", -1 if recent else 1)) % rank != rank - 1:
        return None
    if user.key != "MatMul" or index or not _matmul(user):
        return None
    return Axis((rank - 1,), (Along(rank - 1),), Form.EXPONENTIALS, reorders=True)


ACCUMULATING: dict[str, Space] = {
    **{name: _global_pool if name.startswith("Global") else _reduce for name in _JOINS},
    "ArgMax": _place,
    "ArgMin": _place,
    "TopK": _top,
    "MatMul": _matmul,
    "com.microsoft::FusedMatMul": _fused_matmul,
    "MatMulInteger": _matmul_integer,
    "Gemm": _gemm,
    "Einsum": _einsum,
}
