"""Second moments for rounding weights by data, in bounded memory and within a bounded number of multiplications."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from memoptc.ir.core import Graph, Op
from memoptc.pass_base import Context
from memoptc.passes.precision._quantize.operand_moments import columns_of, in_groups, moments_of, why_not
from memoptc.runtime.moments import Moments

WORK = 3e11
"""Multiplications that rounding weights by data may take, half a minute or so."""


def moments_within_budget(graph: Graph, ops: Iterable[Op], context: Context) -> Iterator[tuple[Op, Moments]]:
    """Ops whose weights nobody else reads, with the moments of what they read; in all of bounded work, cheap first."""
    kept, _ = _affordable(op for op in ops if op.operands[1].single_use and not why_not(op, graph))
    for group in in_groups([[op] for op in kept], single=True):
        members = [kept[i] for i in group]
        seen = moments_of(graph, members, context, single=True)
        yield from ((op, seen[op]) for op in members if op in seen)
        del seen  # before the next are added up


def rounding_work(heavy: Iterable[Op]) -> tuple[int, float]:
    """Passes over the data, and multiplications, that rounding the weights of these layers takes."""
    chosen, work = _affordable(op for op in heavy if op.operands[1].single_use)
    return sum(1 for _ in in_groups([[op] for op in chosen], single=True)), work


def _affordable(ops: Iterable[Op]) -> tuple[list[Op], float]:
    """Cheapest ops that `WORK` suffices for, in the order given, and the multiplications that they take."""
    ops, chosen, work = list(ops), set[Op](), 0.0
    for op in sorted(ops, key=_effort):
        if work + _effort(op) > WORK:
            break
        work += _effort(op)
        chosen.add(op)
    return [op for op in ops if op in chosen], work


def _effort(op: Op) -> float:
    tensor = op.operands[1].tensor
    assert tensor is not None
    return 3.0 * columns_of(op) * (float(tensor.size) + columns_of(op) ** 2)
