"""Products, normalizations, reductions, recurrences, attention: what adds up along some axes and not along others."""

from __future__ import annotations

import re

from memoptc.ir.core import Op
from memoptc.ir.dims import Dim, same
from memoptc.ir.iteration.axis import Along, Axis, Form, Space, everywhere, extents, given, shape, spread
from memoptc.ir.iteration.elementwise import ROUND_BY_PLACE
from memoptc.ir.ops import default_of, opset_of
from memoptc.ir.tensors import ints


def _matmul(op: Op) -> list[Axis]:
    return _product(op, 0, 1, False, False)


def _fused_matmul(op: Op) -> list[Axis]:
    if op.attrs.get("transBatchA") or op.attrs.get("transBatchB"):
        return []
    return _product(op, 0, 1, bool(op.attrs.get("transA")), bool(op.attrs.get("transB")))


def _matmul_integer(op: Op) -> list[Axis]:
    scalar = all(not extents(op, i) or extents(op, i) == (1,) for i in (2, 3))
    return _product(op, 0, 1, False, False) if scalar else []


def _qlinear_matmul(op: Op) -> list[Axis]:
    scalar = all(not extents(op, i) or extents(op, i) == (1,) for i in (1, 2, 4, 5, 6, 7))
    return _product(op, 0, 3, False, False) if scalar else []


def _product(op: Op, left: int, right: int, flip_a: bool, flip_b: bool) -> list[Axis]:
    """A matrix product: rows of the left operand, columns of the right one, batches of both."""
    a, b, y = extents(op, left), extents(op, right), shape(op.results[0])
    if len(a) < 2 or len(b) < 2 or y is None or len(y) < 2:
        return []
    rank = len(y)
    found = []
    for place in range(rank - 2):
        parts = [spread(op, i, place, rank, y[place]) for i in (left, right)]
        if all(p is not False for p in parts) and any(parts):
            cut = [(i, p) for i, p in zip((left, right), parts, strict=True) if isinstance(p, Along)]
            # Batches of one operand only may be computed as rows of one product.
            found.append(given(op, place, *cut, reorders=len(cut) < 2))
    found.append(given(op, rank - 2, (left, Along(len(a) - (1 if flip_a else 2))), reorders=True))
    found.append(given(op, rank - 1, (right, Along(len(b) - (2 if flip_b else 1))), reorders=True))
    return found


def _gemm(op: Op) -> list[Axis]:
    flip_a, flip_b = bool(op.attrs.get("transA")), bool(op.attrs.get("transB"))
    y = shape(op.results[0])
    if y is None or len(y) != 2:
        return []
    found = []
    for place, operand, axis in ((0, 0, int(flip_a)), (1, 1, 1 - int(flip_b))):
        bias = spread(op, 2, place, 2, y[place])
        if bias is False:
            continue
        cut = [(operand, Along(axis))] + ([(2, bias)] if isinstance(bias, Along) else [])
        found.append(given(op, place, *cut, reorders=True))
    return found


def _rows(op: Op) -> list[Axis]:
    """Every axis but the last: a product with weights that are packed."""
    return [Axis((i,), everywhere(op, i).operands, reorders=True) for i in range(len(extents(op, 0)) - 1)]


def einsum_terms(op: Op) -> tuple[list[str], str] | None:
    """The letters of each operand and of the result, `None` where one has a letter twice or they are not all said."""
    equation = op.attrs.get("equation", "")
    text = (equation.decode() if isinstance(equation, bytes) else equation).replace(" ", "")
    if "." in text or "->" not in text or not re.fullmatch(r"[A-Za-z,]*->[A-Za-z]*", text):
        return None
    left, _, result = text.partition("->")
    terms = left.split(",")
    if len(terms) != len(op.operands) or any(len(set(t)) != len(t) for t in [*terms, result]):
        return None
    if any(len(extents(op, i)) != len(t) for i, t in enumerate(terms)):
        return None
    return terms, result


def _einsum(op: Op) -> list[Axis]:
    letters, y = einsum_terms(op), shape(op.results[0])
    if letters is None or y is None:
        return []
    terms, result = letters
    found = []
    for place, letter in enumerate(result):
        places = [t.find(letter) for t in terms]
        if all(p < 0 or same(extents(op, i)[p], y[place]) for i, p in enumerate(places)):
            found.append(given(op, place, *[(i, Along(p)) for i, p in enumerate(places) if p >= 0], reorders=True))
    return found


def _softmax(op: Op) -> list[Axis]:
    whole = shape(op.results[0]) or ()
    rank = len(whole)
    axis = int(default_of(op, "axis") or 0)
    axis = axis % rank if rank else 0
    recent = op.domain or op.graph is None or (opset_of(op.graph) or 13) >= 13
    return [everywhere(op, i) for i in range(rank) if (i != axis if recent else i < axis)]


def _layer_norm(op: Op) -> list[Axis]:
    rank = len(extents(op, 0))
    axis = int(op.attrs.get("axis", -1)) % rank if rank else 0
    # Scale and bias may have leading axes of their own in principle; those that do are left alone.
    if any(len(extents(op, i)) > rank - axis for i in range(1, len(op.operands))):
        return []
    return [everywhere(op, i) for i in range(axis)]


def _skip_layer_norm(op: Op) -> list[Axis]:
    x = extents(op, 0)
    skip = extents(op, 1)
    if len(x) < 2 or len(skip) != len(x) or any(not same(a, b) for a, b in zip(x, skip, strict=True)):
        return []
    if any(r.has_uses for r in op.results[1:3]):
        return []
    found = []
    for axis in range(len(x) - 1):
        cut = tuple(Along(axis) if i < 2 else None for i in range(len(op.operands)))
        found.append(Axis(tuple(axis if i in (0, 3) else None for i in range(len(op.results))), cut))
    return found


def _instance_norm(op: Op) -> list[Axis]:
    batches = given(op, 0, (0, Along(0)), reorders=True)
    return [batches, given(op, 1, (0, Along(1)), (1, Along(0)), (2, Along(0)), reorders=True)]


def _batch_norm(op: Op) -> list[Axis]:
    if op.attrs.get("training_mode") or any(r.has_uses for r in op.results[1:]) or op.attrs.get("spatial") == 0:
        return []
    channels = [(i, Along(0)) for i in range(1, len(op.operands))]
    return [given(op, axis, (0, Along(axis)), *(channels if axis == 1 else ())) for axis in range(len(extents(op, 0)))]


def _batch_only(op: Op) -> list[Axis]:
    return [given(op, 0, (0, Along(0)), reorders=True)] if len(op.results) == 1 and extents(op, 0) else []


def _all_but_channels(op: Op) -> list[Axis]:
    return [given(op, i, (0, Along(i)), reorders=True) for i in range(len(extents(op, 0))) if i != 1]


def _all_but_axis(op: Op) -> list[Axis]:
    rank = len(extents(op, 0))
    axis = int(default_of(op, "axis") if default_of(op, "axis") is not None else -1) % rank if rank else 0
    return [everywhere(op, i) for i in range(rank) if i != axis]


def _cum_sum(op: Op) -> list[Axis]:
    axis, rank = op.input(1), len(extents(op, 0))
    known = ints(axis.tensor) if axis is not None and axis.tensor is not None else None
    return [everywhere(op, i) for i in range(rank) if i != known[0] % rank] if known and rank else []


def reduced_axes(op: Op) -> set[int] | None:
    """The axes that a reduction reduces, `None` where they are not known, or it does nothing."""
    rank = len(extents(op, 0))
    if not rank:
        return None
    axes: tuple[int, ...] | None = op.attrs.get("axes")
    if axes is None:
        operand = op.input(1)
        if operand is not None:
            axes = ints(operand.tensor) if operand.tensor is not None else None
            if axes is None:
                return None
    if not axes and op.attrs.get("noop_with_empty_axes"):
        return None
    if op.op_type in ("ArgMax", "ArgMin"):
        axes = (int(op.attrs.get("axis", 0)),)
    return {a % rank for a in axes} if axes else set(range(rank))


def _reduce(op: Op) -> list[Axis]:
    gone = reduced_axes(op)
    if gone is None:
        return []
    keep = bool(op.attrs.get("keepdims", 1))
    kept = [i for i in range(len(extents(op, 0))) if i not in gone]
    return [given(op, i if keep else kept.index(i), (0, Along(i)), reorders=True) for i in kept]


def _recurrent(op: Op) -> list[Axis]:
    """A batch of sequences; the directions and hidden states of one depend on nothing outside it."""
    if op.attrs.get("layout", 0):
        return []
    places = {0: 1, 4: 0, 5: 1, 6: 1}
    cut = tuple(Along(places[i]) if i in places and op.input(i) else None for i in range(len(op.operands)))
    results = (2, 1, 1)[: len(op.results)]
    return [Axis(results, cut, reorders=True)]


def _attention(op: Op) -> list[Axis]:
    """`MultiHeadAttention`: batches, rows of the query, and heads, as long as nothing else has rows."""
    if len(op.results) > 1 or any(op.input(i) is not None for i in range(4, len(op.operands))):
        return []
    q, k, v = (extents(op, i) for i in range(3))
    if len(q) != 3 or not k or not v or op.attrs.get("unidirectional"):
        return []
    found = [given(op, 0, *[(i, Along(0)) for i in range(3)]), given(op, 1, (0, Along(1)), reorders=True)]
    heads, y = int(op.attrs.get("num_heads", 0)), shape(op.results[0])
    wide, out = q[2], y[2] if y is not None and len(y) == 3 else None
    if len(k) == len(v) == 3 and heads > 1 and isinstance(wide, int) and isinstance(out, int) and op.input(3) is None:
        each, grain = wide // heads, out // heads
        wider = Along(2) if each == grain else Along(2, each, grain, 0, each - grain)
        cut = [(0, wider), (1, wider), (2, Along(2))]
        found.append(given(op, 2, *cut, form=Form.HEADS, grain=grain, reorders=True))
    return found


def _lookup(op: Op) -> list[Axis]:
    """Gather: the axes of the indices, and those of the data that stay."""
    data, where = shape(op.operands[0]), shape(op.operands[1])
    if data is None or where is None or not data:
        return []
    axis = int(op.attrs.get("axis", 0)) % len(data)
    found = [given(op, axis + i, (1, Along(i))) for i in range(len(where))]
    for i in range(len(data)):
        if i != axis:
            found.append(given(op, i if i < axis else i - 1 + len(where), (0, Along(i))))
    return found


def _one_hot(op: Op) -> list[Axis]:
    rank = len(extents(op, 0)) + 1
    axis = int(op.attrs.get("axis", -1)) % rank
    return [given(op, i if i < axis else i + 1, (0, Along(i))) for i in range(rank - 1)]


def _dequantize(op: Op) -> list[Axis]:
    """Scales and zero points per tensor, or per slice of one axis."""
    x = extents(op, 0)
    if op.attrs.get("block_size"):
        return []
    per_axis = len(extents(op, 1)) == 1 and extents(op, 1) != (1,)
    channel = int(op.attrs.get("axis", 1)) % len(x) if x else 0
    found = []
    for axis in range(len(x)):
        scales = per_axis and axis == channel
        cut = [(0, Along(axis)), *((i, Along(0)) for i in (1, 2) if scales and op.input(i) is not None)]
        found.append(given(op, axis, *cut))
    return found


def _trilu(op: Op) -> list[Axis]:
    return [everywhere(op, i) for i in range(len(extents(op, 0)) - 2)]


def _bias_gelu(op: Op) -> list[Axis]:
    rounds = op.op_type in ROUND_BY_PLACE
    return [given(op, i, (0, Along(i)), reorders=rounds) for i in range(len(extents(op, 0)) - 1)]


def _elementwise_first(op: Op) -> list[Axis]:
    """Operand 0 element by element; the others are scalars."""
    if any(d != 1 for i in range(1, len(op.operands)) for d in extents(op, i)):
        return []
    results: list[Dim] = list(extents(op, 0))
    return [everywhere(op, i) for i in range(len(results))]


_REDUCTIONS = (
    "ArgMax ArgMin ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum "
    "ReduceSumSquare"
).split()

PRODUCTS: dict[str, Space] = {
    **dict.fromkeys(_REDUCTIONS, _reduce),
    "MatMul": _matmul,
    "com.microsoft::FusedMatMul": _fused_matmul,
    "MatMulInteger": _matmul_integer,
    "QLinearMatMul": _qlinear_matmul,
    "com.microsoft::MatMulNBits": _rows,
    "Gemm": _gemm,
    "com.microsoft::FusedGemm": _gemm,
    "Einsum": _einsum,
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "Hardmax": _softmax,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _layer_norm,
    "SimplifiedLayerNormalization": _layer_norm,
    "com.microsoft::SkipLayerNormalization": _skip_layer_norm,
    "com.microsoft::SkipSimplifiedLayerNormalization": _skip_layer_norm,
    "InstanceNormalization": _instance_norm,
    "BatchNormalization": _batch_norm,
    "GroupNormalization": _batch_only,
    "LRN": _all_but_channels,
    "LpNormalization": _all_but_axis,
    "TopK": _all_but_axis,
    "CumSum": _cum_sum,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
    "com.microsoft::MultiHeadAttention": _attention,
    "Gather": _lookup,
    "OneHot": _one_hot,
    "QuantizeLinear": _dequantize,
    "DequantizeLinear": _dequantize,
    "Trilu": _trilu,
    "com.microsoft::BiasGelu": _bias_gelu,
    "com.microsoft::FastGelu": _bias_gelu,
    "Clip": _elementwise_first,
    "Dropout": _elementwise_first,
}
