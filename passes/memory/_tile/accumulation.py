"""Accumulation of the tiles' partial results, for ops that reduce along the axis that is tiled.

Each tile gives a partial result, which is joined to what the tiles before it gave at once: two of them are alive, not
all. Sums are added up in another order then, as any kernel that shares its work among threads does. What is largest or
smallest stays exact, the first of equal ones included.

onnxruntime's `ArgMax` and `ArgMin` see a NaN only where it comes first of all. A tile but the first gets the worst
number there is before its first element, so that none of its own is taken for the first. (Whether `ReduceMax` gives
a NaN depends on which lane of its kernel's registers it falls into; joining the tiles keeps those that it gives.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from memoptc.ir import ops
from memoptc.ir.core import Op, Value
from memoptc.ir.iteration import Axis, Form, Join
from memoptc.passes.memory._tile.building import TileBuilder
from memoptc.passes.memory._tile.grid import Interval, NotTileableError

PARTIAL = {"ReduceL2": "ReduceSumSquare", "ReduceLogSum": "ReduceSum"}
"""What gives parts of a sum of which the operator gives a function,"""
FINISH = {"ReduceL2": "Sqrt", "ReduceLogSum": "Log"}
"""and that function."""
JOINED = {
    Join.SUM: "Add",
    Join.MEAN: "Add",
    Join.PRODUCT: "Mul",
    Join.LARGEST: "Max",
    Join.LEAST: "Min",
}


@dataclass
class Accumulated:
    """One accumulating op of a region, tile after tile.

    Args:
        op: The op of the whole.
        axis: Its accumulating axis.
        emitter: Makes ops.
    """

    op: Op
    axis: Axis
    emitter: TileBuilder
    total: Value | None = field(default=None, init=False)
    """What the tiles so far give together."""

    def add(self, operands: Sequence[Value], interval: Interval, index: int) -> None:
        """Join what another tile gives.

        Args:
            operands: The parts it gets.
            interval: The interval of the axis that it covers.
            index: Its number.
        """
        raise NotImplementedError

    def finish(self) -> list[Value]:
        """Results of the whole op, by result index."""
        raise NotImplementedError

    @property
    def latest(self) -> Value | None:
        """Accumulated value after the tiles so far."""
        return self.total

    @property
    def summed_axis(self) -> int:
        """Axis of the first operand that is accumulated along."""
        along = self.axis.operands[0]
        assert along is not None
        return along.axis

    @property
    def floats(self) -> bool:
        """True if there are infinities and what is not a number."""
        return self.op.operand.is_floating_point

    def bounded(self, value: Value, bound: float) -> Value:
        """Put a number before the first elements along the axis."""
        type_ = value.tensor_type
        assert type_ is not None
        rank = len(type_.shape or ())
        pads = [int(i == self.summed_axis) for i in range(2 * rank)]
        if (ops.opset_of(self.emitter.graph) or 13) < 11:
            return self.emitter.made("Pad", [value], {"pads": pads, "value": bound})
        number = self.emitter.scalar(bound, type_.dtype)
        return self.emitter.made("Pad", [value, self.emitter.ints(pads), number])


@dataclass
class Sums(Accumulated):
    """Sums, means, products, and the largest or smallest."""

    even: bool = field(default=False, init=False)
    """Whether all tiles are as long: a mean is then divided once."""

    def add(self, operands: Sequence[Value], interval: Interval, index: int) -> None:
        """Join what another tile gives."""
        operands, attrs = list(operands), dict(self.op.attrs)
        if self.total is not None:
            if self.op.op_type == "Gemm":
                # What is added to the product is added once.
                if (ops.opset_of(self.emitter.graph) or 13) < 11:
                    attrs["beta"] = 0.0
                else:
                    operands = operands[:2]
                    attrs.pop("beta", None)
            elif ops.in_family(self.op, ops.Family.CONVOLUTION):
                operands = operands[:2]  # its bias, too
        kind = PARTIAL.get(self.op.op_type, self.op.op_type)
        if kind == "ReduceSum" and "axes" in attrs and (ops.opset_of(self.emitter.graph) or 13) >= 13:
            operands.append(self.emitter.ints([int(a) for a in attrs.pop("axes")]))
        (part,) = self.emitter.copied(self.op, operands, attrs, index, kind, [r.type for r in self.op.results])
        if self.axis.join is Join.MEAN:
            part = self._weighed(part, interval)
        if self.total is None:
            self.total = part
        else:
            self.total = self.emitter.made(JOINED[self.join], [self.total, part], type=self.op.result.type)

    @property
    def join(self) -> Join:
        """Kind of join."""
        assert self.axis.join is not None
        return self.axis.join

    def _weighed(self, part: Value, interval: Interval) -> Value:
        assert isinstance(interval.lo, int)
        assert isinstance(interval.hi, int)
        whole, length = self.emitter.extent(self.op.operands[0], self.summed_axis), interval.hi - interval.lo
        if self.total is None:
            self.even = length * self.emitter.grid.count == whole
        return part if self.even else self._times(part, length / whole)

    def _times(self, value: Value, factor: float) -> Value:
        assert value.dtype is not None
        return self.emitter.made("Mul", [value, self.emitter.scalar(factor, value.dtype)], type=value.type)

    def finish(self) -> list[Value]:
        """Result of the whole op, from the accumulated values."""
        if self.total is None:
            raise NotTileableError("nothing to add up")
        total = self.total
        if self.even:
            total = self._times(total, 1 / self.emitter.grid.count)
        last = FINISH.get(self.op.op_type)
        return [self.emitter.made(last, [total], type=self.op.result.type) if last else total]


@dataclass
class Place(Accumulated):
    """The place of the largest or smallest: `ArgMax` and `ArgMin`."""

    value: Value | None = field(default=None, init=False)
    """The value at the place so far, if `newer` does not hold a better one:"""
    newer: tuple[Value, Value] | None = field(default=None, init=False)
    """whether it does, and that one."""

    def add(self, operands: Sequence[Value], interval: Interval, index: int) -> None:
        """Join what another tile gives."""
        assert isinstance(interval.lo, int)
        x, made = operands[0], self.emitter.made
        largest, first = self.op.op_type == "ArgMax", self.total is None
        last_of = bool(self.op.attrs.get("select_last_index"))
        bounded = self.floats and not first
        if bounded:
            x = self.bounded(x, -np.inf if largest else np.inf)
        attrs = {**self.op.attrs, "keepdims": 1}
        (found,) = self.emitter.copied(self.op, [x], attrs, index)
        value = made("GatherElements", [x, found], {"axis": self.summed_axis})
        offset = interval.lo - bounded
        there = made("Add", [found, self.emitter.ints([offset])]) if offset else found
        if self.total is None:
            self.total, self.value = there, value
            return
        best = self._best()
        test = ("GreaterOrEqual" if largest else "LessOrEqual") if last_of else "Greater" if largest else "Less"
        better = made(test, [value, best])
        if last_of and bounded:
            better = made("And", [better, made("Greater", [found, self.emitter.ints([0])])])
        self.total = made("Where", [better, there, self.total])
        self.newer = better, value

    def _best(self) -> Value:
        """The value at the place so far."""
        assert self.value is not None
        if self.newer is not None:
            self.value = self.emitter.made("Where", [*self.newer, self.value])
        return self.value

    def finish(self) -> list[Value]:
        """Result of the whole op, from the accumulated values."""
        if self.total is None:
            raise NotTileableError("nothing to look for")
        if self.op.attrs.get("keepdims", 1):
            return [self.total]
        return [self.emitter.made("Squeeze", [self.total, self.emitter.ints([self.summed_axis])])]


@dataclass
class Top(Accumulated):
    """`TopK` over what is first in the tiles: those of a tile come before equal ones of later tiles.

    Of rows that hold a NaN nothing is promised, as onnxruntime's own answer depends on where it lies.
    """

    parts: list[tuple[Value, ...]] = field(default_factory=list, init=False)
    """Per tile its first values, and their places."""

    @property
    def latest(self) -> Value | None:
        """First values of the latest tile; `None` before the first tile."""
        return self.parts[-1][0] if self.parts else None

    @property
    def count(self) -> int:
        """Number of elements asked for (`k`)."""
        tensor = self.op.operands[1].tensor
        assert tensor is not None
        return int(tensor.numpy().reshape(-1)[0])

    def add(self, operands: Sequence[Value], interval: Interval, index: int) -> None:
        """Join what another tile gives."""
        assert isinstance(interval.lo, int)
        assert isinstance(interval.hi, int)
        length = interval.hi - interval.lo
        few = self.emitter.ints([min(self.count, length)])
        values, found = self.emitter.copied(self.op, [operands[0], few], self.op.attrs, index)
        if interval.lo:
            found = self.emitter.made("Add", [found, self.emitter.ints([interval.lo])])
        self.parts.append((values, found))

    def finish(self) -> list[Value]:
        """Result of the whole op, from the accumulated values."""
        if not self.parts:
            raise NotTileableError("nothing to look for")
        if len(self.parts) == 1:
            return list(self.parts[0])
        values, places = (
            self.emitter.made("Concat", list(p), {"axis": self.summed_axis}) for p in zip(*self.parts, strict=True)
        )
        first, found = self.emitter.copied(
            self.op,
            [values, self.op.operands[1]],
            self.op.attrs,
            len(self.parts),
            None,
            [r.type for r in self.op.results],
        )
        return [first, self.emitter.made("GatherElements", [places, found], {"axis": self.summed_axis})]


@dataclass
class Reapplied(Accumulated):
    """Joins that apply to their own results: the logarithm of a sum of exponentials."""

    parts: list[Value] = field(default_factory=list, init=False)

    @property
    def latest(self) -> Value | None:
        """Accumulated value after the tiles so far."""
        return self.parts[-1] if self.parts else None

    def add(self, operands: Sequence[Value], interval: Interval, index: int) -> None:
        """Join what another tile gives."""
        self.parts += self.emitter.copied(self.op, operands, {**self.op.attrs, "keepdims": 1}, index)

    def finish(self) -> list[Value]:
        """Result of the whole op, from the accumulated values."""
        if not self.parts:
            raise NotTileableError("nothing to add up")
        every = self.emitter.made("Concat", self.parts, {"axis": self.summed_axis})
        operands = [every, *self.op.operands[1:]]
        return list(self.emitter.copied(self.op, operands, self.op.attrs, len(self.parts), types=[self.op.result.type]))


@dataclass
class Weighted(Accumulated):
    """A product with the weights that a softmax gives, before they are divided by their sum.

    With the largest element m of the tiles so far and those of the next one, n, both sums are scaled to the larger of
    m and n. Where all elements are -inf, m is the least finite number: the weights are 0 then, their sum as well, and
    the quotient is not a number, as it is for the softmax as a whole.
    """

    largest: Value | None = field(default=None, init=False)
    """The largest element so far,"""
    sum: Value | None = field(default=None, init=False)
    """and the sum of the exponentials of the differences from it."""

    def add(self, operands: Sequence[Value], interval: Interval, index: int) -> None:
        """Join what another tile gives."""
        softmax = self.op.operands[0].op
        assert softmax is not None
        largest, sum_ = self.emitter.weights[softmax]
        (part,) = self.emitter.copied(self.op, operands, self.op.attrs, index, types=[self.op.result.type])
        if self.total is None or self.largest is None or self.sum is None:
            self.total, self.largest, self.sum = part, largest, sum_
            return
        made = self.emitter.made
        both = made("Max", [self.largest, largest])
        before, now = (made("Exp", [made("Sub", [m, both])]) for m in (self.largest, largest))
        self.total = made("Add", [made("Mul", [self.total, before]), made("Mul", [part, now])])
        self.sum = made("Add", [made("Mul", [self.sum, before]), made("Mul", [sum_, now])])
        self.largest = both

    def finish(self) -> list[Value]:
        """Result of the whole op, from the accumulated values."""
        if self.total is None or self.sum is None:
            raise NotTileableError("nothing to add up")
        return [self.emitter.made("Div", [self.total, self.sum], type=self.op.result.type)]


def exponentials(op: Op, x: Value, index: int, emitter: TileBuilder) -> Value:
    """The exponentials of a tile of a softmax's own axis; what `Weighted` needs besides goes to `emitter.weights`."""
    type_ = x.tensor_type
    assert type_ is not None
    axis, opset = len(type_.shape or ()) - 1, ops.opset_of(emitter.graph) or 13
    least = float(np.finfo(type_.dtype.numpy()).min)

    def reduced(kind: str, value: Value, since: int) -> Value:
        if opset < since:
            return emitter.made(kind, [value], {"axes": [axis]})
        return emitter.made(kind, [value, emitter.ints([axis])])

    largest = emitter.made("Max", [reduced("ReduceMax", x, 18), emitter.scalar(least, type_.dtype)])
    (found,) = emitter.copied(op, [emitter.made("Sub", [x, largest])], {}, index, "Exp", [type_])
    emitter.weights[op] = largest, reduced("ReduceSum", found, 13)
    return found


def is_weighted(op: Op, axes: Mapping[Op, Axis]) -> bool:
    """True if a product's first operand are a softmax's exponentials."""
    maker = op.operands[0].op
    return maker is not None and maker in axes and axes[maker].form is Form.EXPONENTIALS


_KINDS: dict[Join, Callable[[Op, Axis, TileBuilder], Accumulated]] = {
    **dict.fromkeys((Join.SUM, Join.MEAN, Join.PRODUCT, Join.LARGEST, Join.LEAST), Sums),
    Join.PLACE: Place,
    Join.TOP: Top,
    Join.REAPPLY: Reapplied,
}


def accumulated(op: Op, axis: Axis, emitter: TileBuilder) -> Accumulated:
    """Begin to accumulate an op's result."""
    assert axis.join is not None
    kind = Weighted if is_weighted(op, emitter.region.axes) else _KINDS[axis.join]
    return kind(op, axis, emitter)
