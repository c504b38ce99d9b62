"""drop-dead: take out what nothing uses: ops, weights, outputs of subgraphs, local functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from memoptc.ir import ops
from memoptc.ir.core import Graph, Op, Value
from memoptc.pass_base import Pass

OMITTABLE = frozenset({"Dropout", "GRU", "LSTM", "LayerNormalization", "RNN", "Unique"})
"""Computes its first result the same way whether or not the others are wanted. MaxPool does not (it takes NaN
otherwise), nor does BatchNormalization (its other results mean training before opset 14)."""


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
            _omit_unused(op, stats)
            for region in op.regions.values():
                _sweep(region, stats)
            for region in _without_unused_outputs(op, stats).regions.values():
                _sweep(region, stats)
        op = before
    stats += Counter()


def _omit_unused(op: Op, stats: Counter[str]) -> None:
    """Tell the runtime that trailing optional results (Dropout's mask, say) are not wanted."""
    if op.key not in OMITTABLE:
        return
    for result in reversed(op.results[1:]):
        if result.has_uses:
            return
        if not result.omitted:
            result.omitted = True
            result.graph._touch()
            stats["results omitted"] += 1


def _without_unused_outputs(op: Op, stats: Counter[str]) -> Op:
    """What a subgraph gives that nothing uses it need not compute. Gives the op that then stands there."""
    if op.domain or not op.regions or not any(r.has_uses for r in op.results):
        return op
    match op.op_type:
        case "If":
            kept = [i for i, r in enumerate(op.results) if r.has_uses]
            if len(kept) < len(op.results):
                for region in op.regions.values():
                    _keep_outputs(region, kept)
                return _rebuild(op, kept, op.operands, {}, stats)
        case "Loop":
            return _narrow_loop(op, stats)
        case "Scan" if op.graph is not None and (ops.opset_of(op.graph) or 0) >= 9:
            return _narrow_scan(op, stats)
    return op


def _narrow_loop(op: Op, stats: Counter[str]) -> Op:
    """Drop state that only feeds itself, and collected values that nothing uses."""
    body = op.regions["body"]
    states = len(op.operands) - 2
    # Result i stands for the body's output i + 1; state i for its input i + 2.
    kept = _needed(op, body, states, first_input=2, first_output=1)
    if len(kept) == len(op.results):
        return op
    _keep_outputs(body, [0, *(i + 1 for i in kept)])
    _drop_inputs(body, [2 + i for i in range(states) if i not in kept])
    operands = [*op.operands[:2], *(op.operands[2 + i] for i in range(states) if i in kept)]
    return _rebuild(op, kept, operands, {}, stats)


def _narrow_scan(op: Op, stats: Counter[str]) -> Op:
    """The same for Scan, whose attributes say more of each collected value."""
    body = op.regions["body"]
    states = len(op.operands) - int(op.attrs["num_scan_inputs"])
    kept = _needed(op, body, states, first_input=0, first_output=0)
    if len(kept) == len(op.results):
        return op
    _keep_outputs(body, kept)
    _drop_inputs(body, [i for i in range(states) if i not in kept])
    operands = [v for i, v in enumerate(op.operands) if i >= states or i in kept]
    attrs = {
        name: tuple(op.attrs[name][i - states] for i in kept if i >= states) or None
        for name in ("scan_output_axes", "scan_output_directions")
        if name in op.attrs
    }
    return _rebuild(op, kept, operands, attrs, stats)


def _needed(op: Op, body: Graph, states: int, *, first_input: int, first_output: int) -> list[int]:
    """Give the results to keep: those used, and the state that the body needs to compute what is kept."""
    kept = {i for i, r in enumerate(op.results) if r.has_uses}
    always = [v for o in body.ops if not ops.is_removable(o) for v in _used_by(o)]
    while True:
        outputs = [body.outputs[first_output + i] for i in kept] + list(body.outputs[:first_output])
        reached = _sources([*outputs, *always])
        more = {i for i in range(states) if body.inputs[first_input + i] in reached} | kept
        if more == kept:
            return sorted(kept)
        kept = more


def _sources(values: list[Value]) -> set[Value]:
    """Everything that values depend on, themselves included; inside subgraphs, too."""
    reached: set[Value] = set()
    todo = list(values)
    while todo:
        value = todo.pop()
        if value in reached:
            continue
        reached.add(value)
        if value.op is not None:
            todo.extend(_used_by(value.op))
    return reached


def _used_by(op: Op) -> Iterator[Value]:
    """What an op uses, inside its subgraphs, too."""
    for inner in op.walk():
        yield from inner.operands
        for region in inner.regions.values():
            yield from region.outputs


def _keep_outputs(region: Graph, kept: list[int]) -> None:
    values, infos = region.outputs, region.outputs_info
    region.set_outputs([values[i] for i in kept], [infos[i] for i in kept])


def _drop_inputs(region: Graph, indices: list[int]) -> None:
    """Erase inputs that only what is now dead used."""
    _sweep(region, Counter())
    for index in reversed(indices):
        region.erase_input(region.inputs[index])


def _rebuild(op: Op, kept: list[int], operands: Sequence[Value], attrs: dict[str, Any], stats: Counter[str]) -> Op:
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
    return new


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
