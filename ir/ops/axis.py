"""Axes of iteration spaces: how results depend on operands along each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from memoptc.ir.core import Op, Value
from memoptc.ir.dims import Dim, same
from memoptc.ir.types import DType


class Form(Enum):
    """Difference between the operator of a tile and that of the whole."""

    SAME = "the same attributes"
    PADS = "attribute pads keeps what lies at the border"
    SHAPE = "the target shape has the piece's extent"
    RESIZE = "scaled by a factor, cropped where neighbours were missing"
    TRANSPOSED = "a transposed convolution, cropped by its pads"
    PADDED = "Pad, with what lies at the border"
    INTERPOLATED = "interpolated between what lies around each element, by places in the piece's operand"
    EXPONENTIALS = "exponentials beside the piece's own largest, which the sum that they enter makes up for"
    HEADS = "as many heads as the piece has"


class Join(Enum):
    """Way in which partial results, each of a part of an accumulating axis, become the whole's."""

    SUM = "added up"
    REAPPLY = "concatenated, and the operator applied to them once more"
    MEAN = "added up, each times its share of the axis"
    PRODUCT = "multiplied"
    LEAST = "the smallest"
    LARGEST = "the largest"
    PLACE = "the place of the largest or smallest: of pieces before it where they are equal, or behind it"
    TOP = "the first of what was first in the pieces"


@dataclass(frozen=True, slots=True)
class Along:
    """Maps an interval [lo, hi) of an iteration axis into an operand.

    The operand's elements [(lo * stride + low) // per, ((hi - 1) * stride + high) // per + 1) are needed, of which
    those outside the operand are padding.

    Args:
        axis: The operand's axis.
        stride: Steps in the operand per step of the axis.
        per: Divides those steps: as many elements of the result share one of the operand.
        low: Offset of the window's first element, before the division.
        high: Offset of the window's last element, before the division.
        exact: (stride, per, low, high) that windows follow in place of these, where steps only come close: an axis that
            is interpolated from 512 to 1,024 elements whose corners stay where they are moves by 511 / 1,023.
    """

    axis: int
    stride: int = 1
    per: int = 1
    low: int = 0
    high: int = 0
    exact: tuple[int, int, int, int] | None = None

    @property
    def is_identity(self) -> bool:
        """True if an element needs exactly the element at the same place."""
        return self.stride == self.per == 1 and not self.low and not self.high and self.exact is None

    def first(self, lo: int) -> int:
        """First element that an interval from `lo` on needs; negative in the padding."""
        stride, per, low, _ = self.exact or (self.stride, self.per, self.low, self.high)
        return (lo * stride + low) // per

    def end(self, hi: int) -> int:
        """One past the last element that an interval up to `hi` needs."""
        stride, per, _, high = self.exact or (self.stride, self.per, self.low, self.high)
        return ((hi - 1) * stride + high) // per + 1


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis along which an operator can be computed piece by piece.

    Args:
        results: Per result its axis, or `None` where the result does not have it (it then cannot be cut).
        operands: Per operand the part it needs; `None` when it is needed whole.
        form: How the operator of a piece differs.
        grain: Pieces begin and end at multiples of this (or at the end of the axis).
        reorders: Whether a piece's sums may be added up in another order than the whole's, or its elements be
            rounded otherwise, because kernels choose by the shape: equal within float noise instead of bit for bit.
        join: For an axis that no result has, because the operator accumulates along it: how what pieces give becomes
            the whole. Its operands are then cut at the same places as the axis itself.
    """

    results: tuple[int | None, ...]
    operands: tuple[Along | None, ...]
    form: Form = Form.SAME
    grain: int = 1
    reorders: bool = False
    join: Join | None = None

    @property
    def cuts(self) -> tuple[tuple[int | None, ...], tuple[tuple[int, int], ...]]:
        """Key that tells an op's axes apart: where they lie in the results, or else in the operands."""
        if self.join is None:
            return self.results, ()
        return self.results, tuple((i, a.axis) for i, a in enumerate(self.operands) if a is not None)


Space = Callable[[Op], list[Axis]]


def shape(value: Value) -> tuple[Dim, ...] | None:
    """A value's shape, `None` when its rank is not known."""
    return value.shape


def extents(op: Op, index: int) -> tuple[Dim, ...]:
    """Shape of operand `index`; () when it is absent or not known."""
    value = op.input(index)
    return (shape(value) if value is not None else None) or ()


def axis_of_result(op: Op, results: int | None, *operands: tuple[int, Along], **how: object) -> Axis:
    """Make the axis along which result 0 is tiled; operands that are not named are needed whole.

    Args:
        op: The operator.
        results: Axis of result 0; no other result has it.
        operands: Index of an operand, and the part of it that a tile needs.
        how: Further fields of `Axis`.
    """
    cut = dict(operands)
    others = (None,) * (len(op.results) - 1)
    return Axis((results, *others), tuple(cut.get(i) for i in range(len(op.operands))), **how)  # type: ignore[arg-type]


def everywhere(op: Op, axis: int) -> Axis:
    """An axis that every result and operand 0 have at the same place; other operands are needed whole."""
    operands = (Along(axis), *(None,) * (len(op.operands) - 1))
    return Axis((axis,) * len(op.results), operands)


def broadcast_axis(op: Op, index: int, result_axis: int, rank: int, extent: Dim) -> Along | bool | None:
    """Map an axis of a broadcast result of rank `rank` and that extent to operand `index`.

    Returns:
        The operand's axis; `None` when the operand is repeated along it; `False` when that is not known.
    """
    value = op.input(index)
    if value is None:
        return None
    own = shape(value)
    if own is None:
        return False
    axis = result_axis - (rank - len(own))
    if axis < 0 or own[axis] == 1:
        return None
    return Along(axis) if same(own[axis], extent) else False


WHOLE = (DType.INT32, DType.INT64)

SUMMED = (DType.FLOAT, DType.DOUBLE)

_EXACT = (Join.PLACE, Join.TOP)
"""Of 0.0 and -0.0, either may be the largest: which one a kernel gives depends on what comes before it."""


def accumulated(op: Op, join: Join, *operands: tuple[int, int]) -> Axis:
    """An axis that no result has; where it lies in the operands that have it."""
    cut = {i: Along(axis) for i, axis in operands}
    integers = dtype_of(op, 0) in WHOLE
    return Axis(
        (None,) * len(op.results),
        tuple(cut.get(i) for i in range(len(op.operands))),
        reorders=join not in _EXACT and not integers,
        join=join,
    )


def dtype_of(op: Op, index: int) -> DType | None:
    """Element type of operand `index`; `None` when it is absent, no tensor, or not known."""
    value = op.input(index)
    return None if value is None else value.dtype
