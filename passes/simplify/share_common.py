"""share-common: compute once what is computed twice (common subexpressions)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from typing import Any

import numpy as np

from memoptc.ir import ops
from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.tensors import content_digest
from memoptc.ir.types import DType
from memoptc.pass_base import Context, Pass

SMALL = 4096
"""Constants up to this many bytes are compared here; larger ones are share-weights' business."""


class ShareCommon(Pass):
    """Send users of an op to an earlier op with the same operator, operands and attributes.

    Only functions of their operands are merged. An op inside a subgraph may use what was computed outside,
    never the other way round. Ops that own subgraphs stay.
    """

    def run(self, graph: Graph, context: Context) -> None:
        """One walk in order, with a table of what is available at each place."""
        _share(graph, [], context.stats)


def _share(graph: Graph, outer: list[dict[Hashable, Op]], stats: Counter[str]) -> None:
    table: dict[Hashable, Op] = {}
    tables = [table, *outer]
    for op in graph.ops:
        for region in op.regions.values():
            _share(region, tables, stats)
        key = _key(op)
        if key is None:
            continue
        twin = next((t[key] for t in tables if key in t), None)
        if twin is None or (op.is_const and not ops.packs_alike_in(op, _graph(twin))):
            table[key] = op
            continue
        for result, other in zip(op.results, twin.results, strict=True):
            if other.type is None:
                other.type = result.type
            result.replace_by(other)
        twin.loc = twin.loc.union(op.loc, rule="share-common") if not twin.is_const else twin.loc
        op.erase()
        stats["merged"] += 1


def _graph(op: Op) -> Graph:
    assert op.graph is not None
    return op.graph


def _key(op: Op) -> Hashable | None:
    """Key that equal ops share; `None` for one that must not be merged."""
    if op.regions or op.op_type == "sparse_const" or not ops.is_pure(op):
        return None
    if op.is_const:
        tensor = op.attrs["value"]
        return ("const", content_digest(tensor)) if tensor.nbytes <= SMALL else None
    operands: tuple[Value | None, ...] = tuple(None if v.is_absent else v for v in op.operands)
    if len(operands) >= 2 and _commutes(op):
        first = sorted(operands[:2], key=id)
        operands = (*first, *operands[2:])
    attrs = tuple(sorted((name, _attr_key(value)) for name, value in op.attrs.items()))
    omitted = tuple(r.omitted for r in op.results)
    return (op.key, op.overload, operands, attrs, omitted)


def _commutes(op: Op) -> bool:
    """True if operands may change places to the last bit: Max(0.0, -0.0) and NaN + NaN are not so for floats."""
    exact = op.operand.is_integer or op.operand.dtype == DType.BOOL
    return ops.facts(op).commutative and (exact or op.op_type == "Equal")


def _attr_key(value: Any) -> Hashable:
    """Attributes by content; floats by their bits, so that 0.0 and -0.0 differ."""
    if isinstance(value, tuple):
        return ("tuple", *(_attr_key(v) for v in value))
    if isinstance(value, float):
        return ("float", np.float64(value).tobytes())
    if hasattr(value, "tobytes") and not isinstance(value, bytes):
        return ("tensor", content_digest(value))
    if hasattr(value, "SerializeToString"):
        return ("proto", value.SerializeToString(deterministic=True))
    return (type(value).__name__, repr(value))
