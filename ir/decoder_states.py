"""States of a decoder: inputs of constant size that each run computes anew and gives back.

Recurrent layers keep such states in place of keys and values: the sums of a selective scan (Mamba, 2023), of linear
attention (RWKV, 2023), the last inputs of a short convolution (LFM2), the cells of an LSTM.
"""

from __future__ import annotations

from collections.abc import Collection

from memoptc.ir.core import Graph, Value
from memoptc.ir.decoder_facts import Cache
from memoptc.ir.decoder_paths import HAND_ON, NEARBY, constant_of, dtype_name, shape_of
from memoptc.ir.dims import Dim, same

_FLOATS = ("float32", "float16", "bfloat16", "float64")
_LOWEST, _LOWEST_HALF = -1e30, -6e4
"""What a running maximum begins with: below any exponent, and far enough from the least number to subtract from."""
_BEHIND = 8
"""Steps that are looked at behind the nearest input: what else lies as near."""


def state_inputs(graph: Graph, taken: Collection[str], sequences: Dim) -> list[Cache]:
    """Give every input of constant size that an output of the same size is computed from.

    Names play no part. Outputs and inputs are paired by how few ops lie between them, then by their order: the states
    of a layer depend on those of all layers before it, and are fewest ops away from their own.

    Args:
        graph: A model with inferred types.
        taken: Names of inputs and outputs with another purpose.
        sequences: How many sequences there are, which is the only extent that may be open.
    """
    inputs = [v for v in graph.inputs if v not in graph.defaults and v.name not in taken]
    candidates = [v for v in inputs if _is_candidate(v, sequences)]
    outputs = [
        (number, info.name, value, info.shape)
        for number, (info, value) in enumerate(zip(graph.outputs_info, graph.outputs, strict=True))
        if info.name not in taken
    ]
    pairs = []
    for number, name, value, stated in outputs:
        alike = {v for v in candidates if _same_form(v, value, stated)}
        for source, distance in _distances(value, alike).items():
            at = candidates.index(source)
            pairs.append((distance, abs(at - number), at, number, name))
    found: dict[int, str] = {}
    given: set[int] = set()
    for distance, _, at, number, name in sorted(pairs):
        if distance and at not in found and number not in given:
            found[at] = name
            given.add(number)
    return [_state(candidates[at], name) for at, name in sorted(found.items())]


def _is_candidate(value: Value, sequences: Dim) -> bool:
    shape = shape_of(value)
    if shape is None or len(shape) < 2 or dtype_name(value) not in _FLOATS:
        return False
    open_ = [(axis, d) for axis, d in enumerate(shape) if not isinstance(d, int)]
    return not open_ or (len(open_) == 1 and (same(open_[0][1], sequences) or (open_[0] == (0, None))))


def _same_form(value: Value, output: Value, stated: tuple[Dim, ...] | None) -> bool:
    """True if an output has an input's type and extents, as inference finds or, where that finds none, as stated."""
    before, after = shape_of(value), shape_of(output)
    if before is None or after is None or len(before) != len(after) or dtype_name(value) != dtype_name(output):
        return False
    stated = stated if stated is not None and len(stated) == len(after) else after
    return all(
        same(a, b) or (not isinstance(b, int) and (same(a, s) or (a is None and s is None)))
        for a, b, s in zip(before, after, stated, strict=True)
    )


def _distances(output: Value, sources: set[Value]) -> dict[Value, int]:
    """How many ops lie between an output and the nearest of its sources, and those that are hardly further away."""
    found: dict[Value, int] = {}
    level, seen, distance, last = [output], {output}, 0, None
    while level and sources and (last is None or distance <= last):
        before: list[Value] = []
        for value in level:
            if value in sources:
                found[value] = distance
                last = distance + _BEHIND if last is None else last
            before += [v for v in _operands(value) if v not in seen]
            seen.update(before)
        level, distance = before, distance + 1
    return found


def _operands(value: Value) -> list[Value]:
    """Values that a value is computed from, in branches and loops, too."""
    op = value.op
    if op is None:
        return []
    if op.op_type == "If":
        regions = op.regions.values()
        return [*op.operands, *(r.outputs[value.index] for r in regions if value.index < len(r.outputs))]
    return [*op.operands, *(v for region in op.regions.values() for v in region.outputs)]


def _state(value: Value, present: str) -> Cache:
    shape: tuple[Dim, ...] = shape_of(value) or ()
    batch = next((i for i, d in enumerate(shape) if not isinstance(d, int)), 0)
    extents = tuple(d if isinstance(d, int) else -1 for d in shape)
    start = (_LOWEST_HALF if dtype_name(value) == "float16" else _LOWEST) if _is_running_maximum(value) else 0.0
    return Cache(value.name, present, "state", "state", dtype_name(value), extents, batch, batch, 0, 0, start=start)


def _is_running_maximum(state: Value) -> bool:
    """True if a state is the greatest exponent of a sum so far: Max(state, new), and Exp(state - that) as a weight.

    Such sums of exponentials (RWKV, 2023; xLSTM, 2024) are kept relative to it. It begins below any exponent: from zero
    the weights of a first token with a far smaller one would vanish.
    """
    todo: list[tuple[Value, bool]] = [(state, False)]
    held, largest = {state}, []
    while todo and len(held) < NEARBY:
        value, shifted = todo.pop()
        for op, index in value.uses:
            if op.domain:
                continue
            if op.op_type == "Max" and len(op.operands) == 2 and constant_of(op.operands[1 - index]) is None:
                largest.append(op.result)
            moved = not shifted and (op.op_type == "Add" or (op.op_type == "Sub" and index == 0))
            if (moved or (op.op_type in HAND_ON and index == 0)) and op.results[0] not in held:
                held.add(op.results[0])
                todo.append((op.results[0], shifted or moved))
    return any(
        op.op_type == "Sub"
        and index == 1
        and op.operands[0] in held
        and any(u.op_type == "Exp" for u in op.result.users)
        for value in largest
        for op, index in value.uses
    )
