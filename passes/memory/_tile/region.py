"""Regions: connected ops that are tiled together along one axis each, with their inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import gcd, lcm

from memoptc.ir.core import Op, Value
from memoptc.ir.iteration import Axis
from memoptc.runtime.memory.loading import further_copy_bytes


@dataclass
class Region:
    """Ops that are computed tile by tile.

    Args:
        ops: In the order in which they run.
        axes: Per op the axis along which it is cut.
        cut: Values made inside -> the axis along which they are cut.
        outputs: Values made inside that are used outside, in order: those that are cut, and those of ops that
            accumulate along their axis, which nothing inside depends on.
    """

    ops: list[Op]
    axes: dict[Op, Axis]
    cut: dict[Value, int]
    outputs: list[Value]

    @cached_property
    def rates(self) -> dict[Op, int] | None:
        """Per op, how far one step of the region moves along its axis, in whole numbers; `None` when ops cannot move
        together."""
        return _rates(self.ops, self.axes)

    @cached_property
    def identity(self) -> object:
        """Key of the region among others of the same model, also when another graph holds copies of its ops.

        Names of its ops, their axes, and how the ops around use what crosses its border.
        """
        outside = [v.op for op in self.ops for v in op.operands if v not in self.cut]
        return (
            tuple((op.results[0].name, self.axes[op].cuts) for op in self.ops),
            tuple(None if op is None else op.op_type for op in outside),
            tuple((v.name, tuple((u.op_type, u in self.axes) for u, _ in v.uses)) for v in self.outputs),
        )

    @cached_property
    def is_symbolic(self) -> bool:
        """True if an extent that is cut is known at run time only: the tiles then stand in a branch of an If."""
        return any(
            along is not None and shape is not None and not isinstance(shape[along.axis], int)
            for op in self.ops
            for operand, along in zip(op.operands, self.axes[op].operands, strict=True)
            for shape in [getattr(operand.type, "shape", None)]
        )

    @cached_property
    def copied_bytes(self) -> int:
        """Bytes of weights that a session packs once more for each further tile."""
        return sum(
            further_copy_bytes(op, [i for i, along in enumerate(self.axes[op].operands) if along is not None])
            for op in self.ops
        )

    def rate(self, op: Op) -> int:
        """Elements of an op's axis per element of the region's."""
        assert self.rates is not None
        return self.rates[op]

    def partitioned_operand(self, output: Value) -> tuple[Value, int]:
        """The value that is partitioned where an output's op is, and its axis: an operand, if the op accumulates."""
        if output in self.cut:
            return output, self.cut[output]
        op = output.op
        assert op is not None
        return next((v, a.axis) for v, a in zip(op.operands, self.axes[op].operands, strict=True) if a is not None)


def _rates(ops: Sequence[Op], axes: Mapping[Op, Axis]) -> dict[Op, int] | None:
    """Rates at which the ops' axes move, relative to each other; `None` when they cannot move together."""
    found: dict[Op, Fraction] = {}
    inside = set(ops)
    for start in ops:
        if start in found:
            continue
        if found:
            return None  # two parts that share nothing
        found[start] = Fraction(1)
        todo = [start]
        while todo:
            op = todo.pop()
            for other, rate in _neighbours(op, found[op], axes, inside):
                if other not in found:
                    found[other] = rate
                    todo.append(other)
                elif found[other] is not rate and found[other] != rate:
                    return None
    scale = lcm(*(r.denominator for r in found.values()))
    for op, rate in found.items():
        whole = rate.numerator * scale // rate.denominator
        wanted = axes[op].grain
        for along in axes[op].operands:
            if along is not None and (whole * along.stride) % along.per:
                wanted = lcm(wanted, along.per)
        if whole % wanted:
            scale *= wanted // gcd(whole, wanted)
    return {op: rate.numerator * scale // rate.denominator for op, rate in found.items()}


def _neighbours(op: Op, rate: Fraction, axes: Mapping[Op, Axis], inside: set[Op]) -> list[tuple[Op, Fraction]]:
    found = []
    for operand, along in zip(op.operands, axes[op].operands, strict=True):
        if along is not None and operand.op in inside and operand.op is not None:
            found.append((operand.op, _times(rate, along.stride, along.per)))
    for result in op.results:
        for user, index in result.uses:
            if user in inside:
                along = axes[user].operands[index]
                if along is not None:
                    found.append((user, _times(rate, along.per, along.stride)))
    return found


def _times(rate: Fraction, up: int, down: int) -> Fraction:
    return rate if up == down else rate * Fraction(up, down)  # most axes move alike, and fractions are slow
