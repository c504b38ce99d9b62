"""drop-dead: take out what nothing uses: ops, weights, outputs of subgraphs, local functions."""

from __future__ import annotations

from collections import Counter

import onnx.defs

from memoptc.ir import ops
from memoptc.ir.core import Graph, Op
from memoptc.pass_base import Pass


class DropDead(Pass):
    """Take out ops whose results nothing uses, in subgraphs too, and local functions that nothing calls.

    Operators that memoptc does not know are left alone, since they may do more than compute.
    """

    def run(self, graph: Graph, stats: Counter[str]) -> None:
        """Walk backwards, so that a whole dead chain goes in one sweep."""
        _sweep(graph, stats)
        _drop_functions(graph, stats)


def _sweep(graph: Graph, stats: Counter[str]) -> None:
    op = graph.last
    while op is not None:
        before = op.prev
        if not any(r.has_uses for r in op.results) and ops.is_removable(op):
            stats["weights" if op.is_const else "ops"] += op.op_type != "absent"
            op.erase()
        else:
            _drop_branch_outputs(op, stats)
            for region in op.regions.values():
                _sweep(region, stats)
            _omit_unused(op, stats)
        op = before
    stats += Counter()


def _omit_unused(op: Op, stats: Counter[str]) -> None:
    """Tell the runtime that trailing optional results (Dropout's mask, say) are not wanted."""
    if op.domain or op.regions or len(op.results) < 2:
        return
    found = ops.schema_of(op)
    if found is None or len(op.results) > len(found.outputs):
        return
    for index in range(len(op.results) - 1, 0, -1):
        result = op.results[index]
        if result.omitted:
            continue
        if result.has_uses or found.outputs[index].option != onnx.defs.OpSchema.FormalParameterOption.Optional:
            return
        result.omitted = True
        stats["results omitted"] += 1


def _drop_branch_outputs(op: Op, stats: Counter[str]) -> None:
    """An If whose result nothing uses need not compute it in either branch."""
    if op.key != "If" or all(r.has_uses for r in op.results) or not any(r.has_uses for r in op.results):
        return
    kept = [i for i, r in enumerate(op.results) if r.has_uses]
    for region in op.regions.values():
        values, infos = region.outputs, region.outputs_info
        region.set_outputs([values[i] for i in kept], [infos[i] for i in kept])
    regions = {name: op.take_region(name) for name in tuple(op.regions)}
    new = Op(
        op.op_type,
        op.operands,
        [op.results[i].type for i in kept],
        op.attrs,
        regions,
        result_names=[op.results[i].name for i in kept],
        name=op.name,
        loc=op.loc,
    )
    assert op.graph is not None
    op.graph.insert_before(op, new)
    for place, index in enumerate(kept):
        op.results[index].replace_by(new.results[place])
    stats["branch outputs"] += len(op.results) - len(kept)
    op.erase()


def _drop_functions(graph: Graph, stats: Counter[str]) -> None:
    info = graph.model
    if info is None or not info.functions:
        return
    called: set[tuple[str, str, str]] = set()
    todo = [graph]
    while todo:
        for op in todo.pop().walk():
            key = (op.domain, op.op_type, op.overload)
            if key in info.functions and key not in called:
                called.add(key)
                todo.append(info.functions[key].body)
    for key in [k for k in info.functions if k not in called]:
        del info.functions[key]
        graph._touch()
        stats["functions"] += 1
