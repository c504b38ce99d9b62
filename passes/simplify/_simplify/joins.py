"""Rules for joins that are only taken apart again, and for parts that nothing uses."""

from __future__ import annotations

from collections import Counter

import numpy as np

from memoptc.ir import ops
from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Op, Value
from memoptc.passes.simplify._simplify.slice_ranges import Part, parts_of

SLICES = 10
"""Opset from which on Slice takes its bounds as operands."""


def simplify_joins(graph: Graph, stats: Counter[str]) -> None:
    """Take parts of a Concat from its operands when all that uses it takes parts; slice what a Split gives too much."""
    for op in graph.walk("Concat", "Split"):
        if (ops.opset_of(graph) or 0) < SLICES or op.graph is None:
            continue
        if op.op_type == "Concat":
            found = parts_of(op.result)
            sources = None if found is None else [_source(op, found[0], part) for part in found[1]]
            if found is None or sources is None or not all(s is not None and _exposes_no_constant(s) for s in sources):
                continue
            for part, source in zip(found[1], sources, strict=True):
                assert source is not None
                _take(part, source, found[0])
            for user in op.result.users:
                user.erase()
            op.erase()
            stats["joined and taken apart"] += 1
        elif not all(r.has_uses for r in op.results) and any(r.has_uses for r in op.results):
            found = parts_of(op.operands[0]) if op.operands[0].single_use else None
            if found is not None:
                for part in found[1]:
                    _take(part, ([op.operands[0]], part.lo, part.hi), found[0])
                op.erase()
                stats["splits of which parts are used"] += 1


def _exposes_no_constant(source: tuple[list[Value], int, int]) -> bool:
    """True if no constant becomes visible to a kernel that would round otherwise then."""
    return all(v.tensor is None for v in source[0])


def _source(join: Op, axis: int, part: Part) -> tuple[list[Value], int, int] | None:
    """The operands of a Concat that make up a part, and the place of the part in the only one, if it is one."""
    if int(join.attrs.get("axis", 1)) % len(join.result.shape or (0,)) != axis:
        return None
    lo, found = 0, []
    for operand in join.operands:
        extent = (operand.shape or ())[axis : axis + 1]
        if not extent or not isinstance(extent[0], int):
            return None
        hi = lo + extent[0]
        if lo <= part.lo and part.hi <= hi:
            return [operand], part.lo - lo, part.hi - lo
        if part.lo <= lo and hi <= part.hi:
            found.append(operand)
        elif lo < part.hi and part.lo < hi:
            return None
        lo = hi
    return (found, 0, part.hi - part.lo) if found else None


def _take(part: Part, source: tuple[list[Value], int, int], axis: int) -> None:
    """Put what is taken from the source in place of a part."""
    user = part.value.op
    assert user is not None
    assert user.graph is not None
    values, lo, hi = source
    b = Builder(user.graph, before=user, loc=user.loc.union(rule="simplify-joins"))
    if len(values) > 1:
        taken = b.op("Concat", values, {"axis": axis}).result
    else:
        taken = values[0]
        if (taken.shape or ())[axis] != hi - lo:
            taken = b.Slice(taken, *(np.array([i], np.int64) for i in (lo, hi, axis)))
    if part.drops:
        old = (ops.opset_of(user.graph) or 0) < 13
        taken = b.op("Squeeze", [taken] if old else [taken, np.array([axis])], {"axes": [axis]} if old else {}).result
    name = part.value.name
    part.value.replace_by(taken)
    if taken.op is not None and taken.op in b.made:
        part.value.name = f"{name}_whole"
        taken.name = name
