"""Numbers that each layer computes and is stored in: the accuracy asked for at least bytes and work."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from memoptc.passes.precision._quantize.layer_precision import Assignment, LayerPrecision
from memoptc.runtime.quality import decibels

COSTS = {
    LayerPrecision.INT8: (0.25, 0.0),
    LayerPrecision.INT2_WEIGHTS: (0.09, 1.0),
    LayerPrecision.INT4_WEIGHTS: (0.16, 1.0),
    LayerPrecision.INT8_WEIGHTS: (0.25, 1.0),
    LayerPrecision.FLOAT: (1.0, 1.0),
}
"""Bytes of each state, as a part of those in float, and whether it computes in float."""

GIVE_BACK = 12
"""Moves that are tried to take back at the end."""

CHOICES = 8
"""Choices of layers that are measured in any case."""

_LAST_LOOKS = 4
"""Looks before the last in which a search that has found nothing yet takes larger steps."""

_FREE = 1e-6
"""Cost that every move has, as a part of the whole model's."""


@dataclass(frozen=True)
class Layer:
    """A product, convolution or table, with the noise of each state that it can be in.

    Args:
        name: Of the node.
        op_type: Its operator.
        nbytes: Of its weights in float.
        work: Multiplications of one run, where extents are known.
        noise: State -> output -> noise to signal there with this layer alone in the state; none for `FLOAT`.
        measured: Whether that was measured, or estimated from the layer's own error.
    """

    name: str
    op_type: str
    nbytes: int
    work: float
    noise: Mapping[LayerPrecision, Mapping[str, float]]
    measured: bool

    def alone(self, state: LayerPrecision) -> float:
        """Noise to signal at the output that suffers most, with this layer alone in a state."""
        return max(self.noise.get(state, {}).values(), default=0.0)

    @property
    def worst(self) -> float:
        """Noise at the output that suffers most, in the state that suffers most."""
        return max((self.alone(state) for state in self.noise), default=0.0)


@dataclass(frozen=True)
class StateChange:
    """Move of a layer to a more accurate state.

    Args:
        layer: Its name.
        state: The new state.
        gain: Noise that goes, outputs weighted alike.
        cost: Bytes and work that come, each as a part of the whole model's.
        between: Cheaper states that it skips, the cheapest first; one of them may be enough.
    """

    layer: str
    state: LayerPrecision
    gain: float
    cost: float
    between: tuple[LayerPrecision, ...] = ()


@dataclass(frozen=True)
class Ladder:
    """Starting setting of all layers, and the moves from there.

    Args:
        start: Layer -> its cheapest state.
        moves: By gain per cost, best first; after all of them every layer is in float, if it may be.
    """

    start: Assignment
    moves: Sequence[StateChange]

    def states(self, chosen: Iterable[StateChange] = ()) -> dict[str, LayerPrecision]:
        """The state of each layer after some moves, in their order."""
        return {**self.start, **{move.layer: move.state for move in chosen}}


def greedy_moves(layers: Sequence[Layer], *, floats: bool = True) -> Ladder:
    """Order all moves by gain per cost, best first: the greedy solution of the multiple-choice knapsack.

    Noise of layers adds up at the output as long as it is small, so a set's gain is the sum of its members'. Within a
    layer, a dearer state with the better ratio takes the place of the cheaper one (upper hull: Sinha and Zoltners,
    "The Multiple-Choice Knapsack Problem", 1979). Only `shortest` decides what is good enough, by measuring.

    Args:
        layers: What there is to choose for.
        floats: Whether layers may end in float.
    """
    work, nbytes = sum(la.work for la in layers) or 1.0, sum(la.nbytes for la in layers) or 1
    prices = {
        layer.name: {
            state: COSTS[state][0] * layer.nbytes / nbytes + COSTS[state][1] * layer.work / work
            for state in (*layer.noise, *([LayerPrecision.FLOAT] if floats or not layer.noise else []))
        }
        for layer in layers
    }
    start = {
        layer.name: min(layer.noise, key=prices[layer.name].__getitem__, default=LayerPrecision.FLOAT)
        for layer in layers
    }
    keys = {key for layer in layers for noise in layer.noise.values() for key in noise}
    total = {k: sum(la.noise.get(start[la.name], {}).get(k, 0.0) for la in layers) or 1.0 for k in keys}
    found: list[StateChange] = []
    for layer in layers:
        price, at = prices[layer.name], start[layer.name]
        noise = {s: sum(_share(n, total[k]) for k, n in layer.noise.get(s, {}).items()) for s in price}
        while at != LayerPrecision.FLOAT:
            dearer = [s for s in price if s == LayerPrecision.FLOAT or (price[s] > price[at] and noise[s] < noise[at])]
            if not dearer:
                break
            step = [(max(noise[at] - noise[s], 0.0), max(price[s] - price[at], 0.0) + _FREE, s) for s in dearer]
            gain, cost, to = max(step, key=lambda found: (found[0] / found[1], found[1]))
            between = tuple(sorted((s for s in dearer if price[s] < price[to]), key=price.__getitem__))
            found.append(StateChange(layer.name, to, gain, cost, between))
            at = to
    return Ladder(start, sorted(found, key=lambda m: -m.gain / m.cost))


def within(
    layers: Sequence[Layer], nbytes: int, bytes_of: Callable[[str, LayerPrecision], float]
) -> dict[str, LayerPrecision]:
    """Choose the states of least error that take so many bytes at most; the cheapest ones where not even these fit.

    Args:
        layers: What there is to choose for.
        nbytes: Of all layers together.
        bytes_of: From the name of a layer and a state to its bytes.
    """
    steps = greedy_moves(layers)
    states = dict(steps.start)
    left = nbytes - sum(bytes_of(name, state) for name, state in states.items())
    for move in steps.moves:
        more = bytes_of(move.layer, move.state) - bytes_of(move.layer, states[move.layer])
        if 0 <= more <= left:
            left -= more
            states[move.layer] = move.state
    return states


def layer_row(layer: Layer, decision: str) -> dict[str, Any]:
    """One layer as reports list it."""
    first = (
        LayerPrecision.INT8
        if LayerPrecision.INT8 in layer.noise
        else LayerPrecision.INT4_WEIGHTS
        if LayerPrecision.INT4_WEIGHTS in layer.noise
        else LayerPrecision.INT8_WEIGHTS
    )
    second = LayerPrecision.INT8_WEIGHTS if LayerPrecision.INT8_WEIGHTS in layer.noise else first
    row = {
        "layer": layer.name,
        "op": layer.op_type,
        "bytes": layer.nbytes,
        "alone_db": decibels(layer.alone(first)),
        "weights_alone_db": decibels(layer.alone(second)),
        "measured": layer.measured,
        "decision": decision,
    }
    return row | (
        {"blocks_alone_db": decibels(layer.alone(LayerPrecision.INT4_WEIGHTS))}
        if LayerPrecision.INT4_WEIGHTS in layer.noise
        else {}
    )


def _share(noise: float, total: float) -> float:
    if noise == math.inf:
        return 1.0
    return noise / total if total != math.inf else 0.0


def needed(layers: Sequence[Layer], steps: Ladder, limit: float) -> int:
    """Number of moves until the noise of every output, added up over layers, stays below a limit."""
    by_name = {layer.name: layer for layer in layers}
    state = dict(steps.start)
    sums: dict[str, float] = {}
    for layer in layers:
        for key, noise in layer.noise.get(state[layer.name], {}).items():
            sums[key] = sums.get(key, 0.0) + _finite(noise)
    for count, move in enumerate(steps.moves):
        if max(sums.values(), default=0.0) <= limit:
            return count
        layer = by_name[move.layer]
        before, after = layer.noise.get(state[move.layer], {}), layer.noise.get(move.state, {})
        for key in {*before, *after}:
            sums[key] = sums.get(key, 0.0) + _finite(after.get(key, 0.0)) - _finite(before.get(key, 0.0))
        state[move.layer] = move.state
    return len(steps.moves)


def _finite(noise: float) -> float:
    return min(noise, 1e12)


def shortest(
    ordered: Sequence[StateChange],
    good: Callable[[Sequence[StateChange]], bool],
    guess: int = 1,
    give_back: int = GIVE_BACK,
    looks: int | None = None,
) -> list[StateChange] | None:
    """Give the shortest beginning of the order that is good enough, then without what it can do without.

    Args:
        ordered: Moves, best first.
        good: Measures whether a set is good enough; called about 2 log2(n) + 2 `give_back` times, fewer the better
            the guess is.
        guess: How many moves are probably needed.
        give_back: Moves that are tried to take back at the end, the dearest first.
        looks: How often to measure; after that the search ends with what is known to be good enough, and jumps to all
            moves where nothing is. Any number when not given.

    Returns:
        The moves, or `None` when not even all of them are good enough.
    """
    low, high, step, left = 0, min(max(guess, 1), len(ordered)), 1, math.inf if looks is None else looks

    def measured(chosen: Sequence[StateChange]) -> bool:
        nonlocal left
        left -= 1
        return good(chosen)

    if measured(ordered[:high]):
        while high - low > 1 and left > 0:
            at = max(high - step, low + 1)
            if not measured(ordered[:at]):
                low = at
                break
            high, step = at, 2 * step
    else:
        while True:
            if high >= len(ordered):
                return None
            if left <= _LAST_LOOKS:  # half of what is left, then all of it
                step = max(step, -(-(len(ordered) - high) // 2)) if left > 1 else len(ordered)
            low, high, step = high, min(high + step, len(ordered)), 2 * step
            if measured(ordered[:high]):
                break
    while high - low > 1 and left > 0:
        middle = (low + high) // 2
        low, high = (low, middle) if measured(ordered[:middle]) else (middle, high)
    chosen = list(ordered[:high])
    tried, passed_over = sorted(chosen[:-1], key=lambda m: -m.cost)[:give_back], list[StateChange]()
    for move in tried:
        if left <= 0:
            break
        last = [m for m in chosen if m.layer == move.layer][-1]
        if last is not move:
            passed_over.append(move)
            continue
        at = chosen.index(move)
        for other in (None, *move.between):
            rest = [*chosen[:at], *([] if other is None else [replace(move, state=other)]), *chosen[at + 1 :]]
            if measured(rest):
                chosen = rest
                # What it built upon is the last move of its layer now.
                tried += [m for m in passed_over if m.layer == move.layer]
                passed_over = [m for m in passed_over if m.layer != move.layer]
                break
    return chosen
