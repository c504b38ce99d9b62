"""drop-dead: take out what nothing uses: ops, weights, outputs of subgraphs, local functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

from memoptc.ir import ops
from memoptc.ir.core import Graph, Op, Value
from memoptc.pass_base import Context, Pass

STATELESS = 11
"""The first opset whose Loops may carry nothing from one trip to the next."""


class DropDead(Pass):
    """Take out ops whose results nothing uses, in subgraphs too, and local functions that nothing calls.

    Operators that memoptc does not know are left alone, since they may do more than compute.

    Each graph is swept once, inside out; what goes after that, because nothing uses an output of its subgraph any
    more, is reached from that output alone. Both end: ops, results and inputs only ever become fewer.
    """

    runs_late: ClassVar[bool] = True

    def run(self, graph: Graph, context: Context) -> None:
        """Walk backwards, so that a whole dead chain goes in one sweep."""
        _sweep(graph, context.stats)
        _drop_functions(graph, context.stats)


def _sweep(graph: Graph, stats: Counter[str]) -> None:
    op = graph.last
    while op is not None:
        before = op.prev
        if _is_dead(op):
            _erase(op, stats)
        else:
            for region in op.regions.values():
                _sweep(region, stats)
            _trim(op, stats)
        op = before
    stats += Counter()


def _is_dead(op: Op) -> bool:
    return not any(r.has_uses for r in op.results) and ops.is_removable(op)


def _erase(op: Op, stats: Counter[str]) -> None:
    stats["weights" if op.is_const else "ops"] += op.op_type != "absent"
    op.erase()


def _trim(op: Op, stats: Counter[str]) -> None:
    """Drop results of an op that nothing uses, and inside its swept subgraphs all that only they needed."""
    regions = list(op.regions.values())
    todo: list[Op] = [op]
    inputs: list[Value] = []
    while todo:
        op = todo.pop()
        if op.graph is None:
            continue
        _omit_unused(op, stats)
        unused = _without_unused_outputs(op, inputs, stats)
        while unused:
            maker = unused.pop().op
            if maker is None or maker.graph is None or not any(r.encloses(maker.graph) for r in regions):
                continue  # what lies around is swept later
            if _is_dead(maker):
                unused += _used_by(maker)
                _erase(maker, stats)
            elif maker.regions or ops.facts(maker).optional_results:
                todo.append(maker)
    for value in inputs:
        value.graph.erase_input(value)


def _omit_unused(op: Op, stats: Counter[str]) -> None:
    """Tell the runtime that trailing optional results (Dropout's mask, say) are not wanted."""
    if not ops.facts(op).optional_results:
        return
    for result in reversed(op.results[1:]):
        if result.has_uses:
            return
        if not result.omitted:
            result.omitted = True
            result.graph._touch()
            stats["results omitted"] += 1


def _without_unused_outputs(op: Op, inputs: list[Value], stats: Counter[str]) -> list[Value]:
    """Drop outputs of a subgraph that nothing uses.

    Args:
        op: The owner; another op stands there afterwards where anything is dropped.
        inputs: Gets the inputs of bodies that nothing feeds any more; what uses them is dead.
        stats: Counts outputs.

    Returns:
        What the subgraphs gave before and now do not.
    """
    if op.domain or not op.regions or not any(r.has_uses for r in op.results):
        return []
    match op.op_type:
        case "If":
            kept = [i for i, r in enumerate(op.results) if r.has_uses]
            if len(kept) < len(op.results):
                unused = [v for region in op.regions.values() for v in _keep_outputs(region, kept)]
                _rebuild(op, kept, op.operands, {}, stats)
                return unused
        case "Loop":
            return _narrow_loop(op, inputs, stats)
        case "Scan" if op.graph is not None and (ops.opset_of(op.graph) or 0) >= 9:
            return _narrow_scan(op, inputs, stats)
    return []


def _narrow_loop(op: Op, inputs: list[Value], stats: Counter[str]) -> list[Value]:
    """Drop state that only feeds itself, and collected values that nothing uses."""
    body = op.regions["body"]
    states = len(op.operands) - 2
    # Result i stands for the body's output i + 1; state i for its input i + 2.
    kept = _needed(op, body, states, first_input=2, first_output=1)
    if states and kept[0] >= states and op.graph is not None and (ops.opset_of(op.graph) or 0) < STATELESS:
        kept = _needed(op, body, states, first_input=2, first_output=1, anyway=0)
    if len(kept) == len(op.results):
        return []
    unused = _keep_outputs(body, [0, *(i + 1 for i in kept)])
    needed = set(kept)
    inputs += [body.inputs[2 + i] for i in range(states) if i not in needed]
    operands = [*op.operands[:2], *(op.operands[2 + i] for i in range(states) if i in needed)]
    _rebuild(op, kept, operands, {}, stats)
    return unused


def _narrow_scan(op: Op, inputs: list[Value], stats: Counter[str]) -> list[Value]:
    """The same for Scan, whose attributes say more of each collected value."""
    body = op.regions["body"]
    states = len(op.operands) - int(op.attrs["num_scan_inputs"])
    kept = _needed(op, body, states, first_input=0, first_output=0)
    if len(kept) == len(op.results):
        return []
    unused = _keep_outputs(body, kept)
    needed = set(kept)
    inputs += [body.inputs[i] for i in range(states) if i not in needed]
    operands = [v for i, v in enumerate(op.operands) if i >= states or i in needed]
    attrs = {
        name: tuple(op.attrs[name][i - states] for i in kept if i >= states) or None
        for name in ("scan_output_axes", "scan_output_directions")
        if name in op.attrs
    }
    _rebuild(op, kept, operands, attrs, stats)
    return unused


def _needed(
    op: Op, body: Graph, states: int, *, first_input: int, first_output: int, anyway: int | None = None
) -> list[int]:
    """Give the results to keep: those used, one `anyway`, and the state that the body needs to compute what is kept."""
    kept = {i for i, r in enumerate(op.results) if r.has_uses or i == anyway}
    state_of = {body.inputs[first_input + i]: i for i in range(states)}
    todo = [v for o in body.ops if not ops.is_removable(o) for v in _used_by(o)]
    todo += [*(body.outputs[first_output + i] for i in kept), *body.outputs[:first_output]]
    reached: set[Value] = set()
    walked: set[Op] = set()
    while todo:
        value = todo.pop()
        if value in reached:
            continue
        reached.add(value)
        state = state_of.get(value)
        if state is not None and state not in kept:
            kept.add(state)
            todo.append(body.outputs[first_output + state])
        if value.op is not None and value.op not in walked:
            walked.add(value.op)
            todo.extend(_used_by(value.op))
    return sorted(kept)


def _used_by(op: Op) -> list[Value]:
    """Values that an op uses, inside its subgraphs, too."""
    return [*op.operands, *(v for region in op.regions.values() for v in region.captures())]


def _keep_outputs(region: Graph, kept: list[int]) -> list[Value]:
    """Keep some outputs; gives the others."""
    values, infos = region.outputs, region.outputs_info
    region.set_outputs([values[i] for i in kept], [infos[i] for i in kept])
    left = set(kept)
    return [v for i, v in enumerate(values) if i not in left]


def _rebuild(op: Op, kept: list[int], operands: Sequence[Value], attrs: dict[str, Any], stats: Counter[str]) -> None:
    regions = {name: op.take_region(name) for name in tuple(op.regions)}
    new = Op(
        op.op_type,
        operands,
        [op.results[i].type for i in kept],
        {k: v for k, v in {**op.attrs, **attrs}.items() if v is not None},
        regions,
        result_names=[op.results[i].name for i in kept],
        name=op.name,
        loc=op.loc,
    )
    new.doc, new.metadata = op.doc, dict(op.metadata)
    assert op.graph is not None
    op.graph.insert_before(op, new)
    for place, index in enumerate(kept):
        op.results[index].replace_by(new.results[place])
        new.results[place].omitted = op.results[index].omitted
    stats["subgraph outputs"] += len(op.results) - len(kept)
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
