"""Operators that move, repeat or select elements and compute nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from memoptc.ir.core import Op, Value
from memoptc.ir.dims import Dim, KnownDim, Sym, same
from memoptc.ir.ops.axis import Along, Axis, Form, axis_of_result, everywhere, extents, shape
from memoptc.ir.ops.definition import IntegerKernel, Operator, also, define
from memoptc.ir.ops.double import OpBuilder
from memoptc.ir.ops.parameters import Below, Index, IndexRows, Length, Setting
from memoptc.ir.ops.sample import Rng, Sample, axis_of, floats
from memoptc.ir.ops.sample import extents as drawn_extents
from memoptc.ir.ops.schema import MICROSOFT
from memoptc.ir.tensors import ints


def _transpose(op: Op) -> list[Axis]:
    rank = len(extents(op, 0))
    perm = op.attrs.get("perm") or tuple(reversed(range(rank)))
    return [axis_of_result(op, i, (0, Along(int(p)))) for i, p in enumerate(perm)]


def _reshape(op: Op) -> list[Axis]:
    """Axes that stay, that are split, or that are merged with those after them."""
    before, after = shape(op.operands[0]), shape(op.results[0])
    if before is None or after is None or None in before or None in after:
        return []
    form = Form.SHAPE if op.op_type in ("Reshape",) else Form.SAME
    found = []
    for old, new in matching(before, after):
        # Only the outermost axis of a group is contiguous in the other shape.
        inner_old, inner_new = _product(before, old[1:]), _product(after, new[1:])
        if same(before[old[0]], after[new[0]]):
            found.append(axis_of_result(op, new[0], (0, Along(old[0])), form=form))
        elif isinstance(inner_old, int) and isinstance(inner_new, int) and inner_old and inner_new:
            if inner_new % inner_old == 0:
                scale = inner_new // inner_old
                found.append(axis_of_result(op, new[0], (0, Along(old[0], scale, 1, 0, scale - 1)), form=form))
            elif inner_old % inner_new == 0:
                scale = inner_old // inner_new
                found.append(axis_of_result(op, new[0], (0, Along(old[0], 1, scale)), form=form, grain=scale))
    return found


def matching(before: Sequence[Dim], after: Sequence[Dim]) -> Iterator[tuple[list[int], list[int]]]:
    """Smallest groups of neighbouring axes whose products agree, extents of 1 left out where that is possible."""
    olds = [i for i, d in enumerate(before) if d != 1]
    news = [i for i, d in enumerate(after) if d != 1]
    i = j = 0
    while i < len(olds) and j < len(news):
        old, new = [olds[i]], [news[j]]
        i, j = i + 1, j + 1
        while True:
            a, b = _product(before, old), _product(after, new)
            if a == b:
                yield old, new
                break
            # Take from the side whose product divides the other's; where symbols hide that, from the shorter rest.
            if j < len(news) and (i >= len(olds) or _divides(b, a)):
                new.append(news[j])
                j += 1
            elif i < len(olds):
                old.append(olds[i])
                i += 1
            else:
                return


def _product(dims: Sequence[Dim], axes: Sequence[int]) -> KnownDim:
    total: KnownDim = 1
    for axis in axes:
        total = total * dims[axis]  # type: ignore[operator]
    return total


def _divides(a: KnownDim, b: KnownDim) -> bool:
    """True if `a` is a proper divisor of `b`, as far as one can see."""
    if isinstance(a, int) and isinstance(b, int):
        return a < b
    if isinstance(a, int):
        return True
    if isinstance(b, int):
        return False
    return _size(a) < _size(b)


def _size(dim: Sym) -> tuple[int, int]:
    """Symbols that are multiplied, then their factors: of two dimensions the smaller one can be the other's divisor."""
    return sum(len(m) for m, _ in dim.terms), sum(abs(factor) for _, factor in dim.terms)


def _concat(op: Op) -> list[Axis]:
    whole = shape(op.results[0]) or ()
    axis = int(op.attrs.get("axis", 0)) % len(whole) if whole else 0
    return [
        axis_of_result(op, i, *[(k, Along(i)) for k in range(len(op.operands))]) for i in range(len(whole)) if i != axis
    ]


def _split(op: Op) -> list[Axis]:
    rank = len(extents(op, 0))
    axis = int(op.attrs.get("axis", 0)) % rank if rank else 0
    whole = (Along(0), *(None,) * (len(op.operands) - 1))
    return [Axis((i,) * len(op.results), (Along(i), *whole[1:])) for i in range(rank) if i != axis]


def _slice(op: Op) -> list[Axis]:
    """Axes that are not sliced."""
    rank = len(extents(op, 0))
    if "starts" in op.attrs:
        axes: Sequence[int] | None = op.attrs.get("axes", tuple(range(len(op.attrs["starts"]))))
    else:
        operand = op.input(3)
        starts = op.input(1)
        count = (extents(op, 1) or (None,))[0] if starts is not None else None
        if operand is None:
            axes = tuple(range(count)) if isinstance(count, int) else None
        else:
            axes = ints(operand.tensor) if operand.tensor is not None else None
    if axes is None:
        return []
    sliced = {a % rank for a in axes} if rank else set()
    return [axis_of_result(op, i, (0, Along(i))) for i in range(rank) if i not in sliced]


def _expand(op: Op) -> list[Axis]:
    """Axes that the operand has in full; those it is repeated along need it whole, and a number to be repeated."""
    x, y = shape(op.operands[0]), shape(op.results[0])
    if x is None or y is None:
        return []
    found = []
    for place, extent in enumerate(y):
        axis = place - (len(y) - len(x))
        if axis >= 0 and same(x[axis], extent) and extent != 1:
            found.append(axis_of_result(op, place, (0, Along(axis)), form=Form.SHAPE))
        elif isinstance(extent, int) and (axis < 0 or x[axis] == 1):
            found.append(axis_of_result(op, place, form=Form.SHAPE))
    return found


def _filled(op: Op) -> list[Axis]:
    """ConstantOfShape: any part of it is like any other."""
    whole = shape(op.results[0]) or ()
    return [axis_of_result(op, i, form=Form.SHAPE) for i, extent in enumerate(whole) if isinstance(extent, int)]


def _lookup(op: Op) -> list[Axis]:
    """Gather: the axes of the indices, and those of the data that stay."""
    data, where = shape(op.operands[0]), shape(op.operands[1])
    if data is None or where is None or not data:
        return []
    axis = int(op.attrs.get("axis", 0)) % len(data)
    found = [axis_of_result(op, axis + i, (1, Along(i))) for i in range(len(where))]
    for i in range(len(data)):
        if i != axis:
            found.append(axis_of_result(op, i if i < axis else i - 1 + len(where), (0, Along(i))))
    return found


def _one_hot(op: Op) -> list[Axis]:
    rank = len(extents(op, 0)) + 1
    axis = int(op.attrs.get("axis", -1)) % rank
    return [axis_of_result(op, i if i < axis else i + 1, (0, Along(i))) for i in range(rank - 1)]


def _trilu(op: Op) -> list[Axis]:
    return [everywhere(op, i) for i in range(len(extents(op, 0)) - 2)]


def _trilu_double(b: OpBuilder, op: Op) -> Sequence[Value]:
    return [b.Trilu(*op.operands, upper=int(op.attrs.get("upper", 1)))]


def _trilu_sample(r: Rng) -> Sample:
    """Either triangle of some matrices, with a diagonal inside, outside or not given."""
    matrices, upper = floats(r, *drawn_extents(r, 2, 4)), {"upper": int(r.integers(2))}
    diagonal = np.asarray(r.integers(-4, 5), np.int64)
    return Sample((matrices, diagonal), upper, frozenset({1})) if r.random() < 0.7 else Sample((matrices,), upper)


def _transpose_sample(r: Rng) -> Sample:
    shape = drawn_extents(r, 1, 4)
    return Sample((floats(r, *shape),), {"perm": [int(a) for a in r.permutation(len(shape))]})


def _flatten_sample(r: Rng) -> Sample:
    shape = drawn_extents(r, 1, 4)
    return Sample((floats(r, *shape),), {"axis": axis_of(r, len(shape))})


def _concat_sample(r: Rng) -> Sample:
    shape = list(drawn_extents(r, 1, 4))
    axis = axis_of(r, len(shape))
    parts = []
    for extent in r.integers(1, 6, int(r.integers(1, 4))):
        shape[axis] = int(extent)
        parts.append(floats(r, *shape))
    return Sample(tuple(parts), {"axis": axis})


def _gather_sample(r: Rng) -> Sample:
    shape = drawn_extents(r, 1, 4)
    axis = axis_of(r, len(shape))
    indices = np.asarray(r.integers(-shape[axis], shape[axis], drawn_extents(r, 0, 2)), np.int64)
    return Sample((floats(r, *shape), indices), {"axis": axis})


def _reshape_sample(r: Rng) -> Sample:
    """Axes in another order of extents, all of them in one, or one extent left open."""
    shape = drawn_extents(r, 1, 4)
    target = [[-1], [int(d) for d in r.permutation(shape)], [*shape[:-1], -1], [1, *shape]][int(r.integers(4))]
    return Sample((floats(r, *shape), np.asarray(target, np.int64)), weights=frozenset({1}))


def _squeeze_sample(r: Rng) -> Sample:
    shape = list(drawn_extents(r, 1, 3))
    at = int(r.integers(len(shape) + 1))
    return Sample((floats(r, *shape[:at], 1, *shape[at:]), np.asarray([at], np.int64)), weights=frozenset({1}))


def _unsqueeze_sample(r: Rng) -> Sample:
    shape = drawn_extents(r, 0, 3)
    axes = r.choice(len(shape) + 2, 2, replace=False)
    return Sample((floats(r, *shape), np.asarray(axes, np.int64)), weights=frozenset({1}))


def _split_sample(r: Rng) -> Sample:
    shape = list(drawn_extents(r, 1, 4))
    axis = axis_of(r, len(shape))
    sizes = r.integers(1, 4, int(r.integers(1, 4)))
    shape[axis] = int(sizes.sum())
    return Sample((floats(r, *shape), sizes.astype(np.int64)), {"axis": axis}, frozenset({1}), len(sizes))


def _slice_sample(r: Rng) -> Sample:
    """A part of one axis, forwards or backwards, ends counted from either side."""
    shape = drawn_extents(r, 1, 4)
    axis = axis_of(r, len(shape))
    start, end = sorted(int(i) for i in r.integers(0, shape[axis] + 1, 2))
    step = int(r.integers(1, 3))
    if r.random() < 0.3:
        start, end, step = end - 1, start - 1 - shape[axis], -step
    given_parts = (np.asarray([number], np.int64) for number in (start, end, axis, step))
    return Sample((floats(r, *shape), *given_parts), weights=frozenset({1, 2, 3, 4}))


def _expand_sample(r: Rng) -> Sample:
    shape = drawn_extents(r, 1, 4)
    kept = tuple(1 if r.random() < 0.5 else d for d in shape)[int(r.integers(len(shape))) :]
    return Sample((floats(r, *kept), np.asarray(shape, np.int64)), weights=frozenset({1}))


def _tile_sample(r: Rng) -> Sample:
    shape = drawn_extents(r, 1, 4)
    return Sample((floats(r, *shape), r.integers(1, 4, len(shape)).astype(np.int64)), weights=frozenset({1}))


def _elements_sample(r: Rng) -> Sample:
    shape = drawn_extents(r, 1, 4)
    axis = axis_of(r, len(shape))
    places = list(shape)
    places[axis] = int(r.integers(1, 6))
    return Sample((floats(r, *shape), np.asarray(r.integers(0, shape[axis], places), np.int64)), {"axis": axis})


_CODES = IntegerKernel.FIRST_OPERAND

OPERATORS: tuple[Operator, ...] = (
    *define("Transpose", sample=_transpose_sample, space=_transpose, moves=True, integer=_CODES),
    *define("Flatten Reshape Squeeze Unsqueeze", space=_reshape, view=0, moves=True, integer=_CODES),
    *define("Concat", sample=_concat_sample, space=_concat, moves=True, integer=IntegerKernel.ALL_OPERANDS),
    *define("Split", space=_split, moves=True),
    *define("Slice", space=_slice, moves=True),
    *define("Expand", space=_expand, moves=True),
    *define("Gather", sample=_gather_sample, space=_lookup, moves=True, captured=0),
    *define("Compress GatherElements GatherND Tile", moves=True),
    *define("ReverseSequence", moves=True, unchecked_ranks=True),
    *define("ConstantOfShape", space=_filled),
    *define("OneHot", space=_one_hot),
    *define("Trilu", space=_trilu, sample=_trilu_sample, in_place=(0,)),
    *define(
        "Trilu",
        MICROSOFT,
        types_like=("Trilu", 14),
        space=_trilu,
        sample=_trilu_sample,
        double=_trilu_double,
        in_place=(0,),
    ),
    *define("ScatterElements TensorScatter", in_place=(0,)),
    *define("Constant EyeLike NonZero Range Scatter ScatterND"),
    *define("Shape Size", reads_extents=True),
    *define("Unique", optional_results=True),
    *define("NonMaxSuppression", stays_float32=True),
    *define("GatherND", MICROSOFT, types_like=("GatherND", 13)),
    *define("ExpandDims MurmurHash3 NGramRepeatBlock RemovePadding RestorePadding", MICROSOFT),
)
OPERATORS = also(OPERATORS, "ConstantOfShape Expand NonZero Range Reshape Slice Tile", ort_forgets_symbols=True)
OPERATORS = also(OPERATORS, "Flatten", sample=_flatten_sample)
OPERATORS = also(OPERATORS, "Reshape", sample=_reshape_sample)
OPERATORS = also(OPERATORS, "Squeeze", sample=_squeeze_sample)
OPERATORS = also(OPERATORS, "Unsqueeze", sample=_unsqueeze_sample)
OPERATORS = also(OPERATORS, "Split", sample=_split_sample)
OPERATORS = also(OPERATORS, "Slice", sample=_slice_sample)
OPERATORS = also(OPERATORS, "Expand", sample=_expand_sample)
OPERATORS = also(OPERATORS, "Tile", sample=_tile_sample)
OPERATORS = also(OPERATORS, "GatherElements", sample=_elements_sample)
OPERATORS = also(OPERATORS, "Gather GatherElements Scatter ScatterElements", parameters={1: Index()})
OPERATORS = also(OPERATORS, "GatherND ScatterND", parameters={1: IndexRows()})
OPERATORS = also(OPERATORS, "GatherND", MICROSOFT, parameters={1: IndexRows()})
OPERATORS = also(OPERATORS, "ReverseSequence", parameters={1: Length(lambda op: int(op.attrs.get("time_axis", 0)))})
OPERATORS = also(OPERATORS, "OneHot", parameters={0: Below(1), 1: Setting((4,))})
OPERATORS = also(OPERATORS, "Reshape", parameters={1: Setting((-1, *[1] * 7), as_result=True)})
OPERATORS = also(OPERATORS, "Expand", parameters={1: Setting((1,), as_result=True)})
OPERATORS = also(OPERATORS, "ConstantOfShape", parameters={0: Setting((2,), as_result=True)})
OPERATORS = also(OPERATORS, "Squeeze Unsqueeze", parameters={1: Setting((0, 1, 2, 3, 4, 5))})
OPERATORS = also(
    OPERATORS,
    "Slice",
    parameters={1: Setting((0,)), 2: Setting((1 << 30,)), 3: Setting((0, 1, 2, 3, 4, 5)), 4: Setting((1,))},
)
OPERATORS = also(OPERATORS, "Range", parameters={0: Setting((0,)), 1: Setting((5,)), 2: Setting((1,))})
OPERATORS = also(OPERATORS, "Split Tile", parameters={1: Setting((1,))})
OPERATORS = also(OPERATORS, "Trilu", parameters={1: Setting((0,))})
OPERATORS = also(OPERATORS, "Trilu", MICROSOFT, parameters={1: Setting((0,))})
OPERATORS = also(OPERATORS, "NonMaxSuppression", parameters={2: Setting((3,))})
OPERATORS = also(OPERATORS, "NonMaxSuppression", equal_extents=(((0, 0), (1, 0)), ((0, 1), (1, 2))))
OPERATORS = also(OPERATORS, "Reshape Slice Squeeze Transpose Unsqueeze", ort_passes_codes=True)
