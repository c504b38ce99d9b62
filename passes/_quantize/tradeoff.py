"""Which layers leave the integers, and how far, for the accuracy asked for at least bytes and work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from memoptc.passes._migrate.sites import WEIGHTED
from memoptc.passes._quantize.sensitivity import Layer

INTEGER, WEIGHTS, FLOAT = "integer", "integer weights", "float"
"""What a layer can be: computed on integers; in float with weights stored as integers; in float."""

GIVE_BACK = 12
"""Moves that are tried to take back at the end."""

_FREE = 1e-6
"""Cost that every move has, as a part of the whole model's."""


@dataclass(frozen=True)
class Move:
    """One layer to a more accurate state.

    Args:
        layer: Its name.
        state: The new state.
        gain: Noise that goes, outputs weighted alike.
        cost: Bytes and work that come, each as a part of the whole model's.
        half: Whether it skips a state, which may be enough.
    """

    layer: str
    state: str
    gain: float
    cost: float
    half: bool = False


def moves(layers: Sequence[Layer]) -> list[Move]:
    """Order all moves by gain per cost, best first: the greedy solution of the multiple-choice knapsack.

    Noise of layers adds up at the output as long as it is small, so a set's gain is the sum of its members'. Within a
    layer, a dearer state with the better ratio takes the place of the cheaper one (upper hull: Sinha and Zoltners,
    "The Multiple-Choice Knapsack Problem", 1979). Only `shortest` decides what is good enough, by measuring.
    """
    keys = {key for layer in layers for key in layer.noise}
    total = {k: sum(layer.noise.get(k, 0.0) for layer in layers) or 1.0 for k in keys}
    work, nbytes = sum(la.work for la in layers) or 1.0, sum(la.nbytes for la in layers) or 1
    found: list[Move] = []

    def weigh(noise: dict[str, float]) -> float:
        return sum(_share(noise.get(k, 0.0), total[k]) for k in keys)

    for layer in layers:
        whole, left = weigh(layer.noise), weigh(layer.weights)
        slower, larger = layer.work / work + _FREE, 0.75 * layer.nbytes / nbytes + _FREE
        first = Move(layer.name, WEIGHTS, max(whole - left, 0.0), slower)
        second = Move(layer.name, FLOAT, max(left, 0.0), larger)
        if second.gain / second.cost >= first.gain / first.cost or layer.op_type not in WEIGHTED:
            found.append(Move(layer.name, FLOAT, whole, slower + larger, layer.op_type in WEIGHTED))
        else:
            found += [first, second]
    return sorted(found, key=lambda m: -m.gain / m.cost)


def _share(noise: float, total: float) -> float:
    if noise == float("inf"):
        return 1.0
    return noise / total if total != float("inf") else 0.0


def states(chosen: Sequence[Move]) -> dict[str, str]:
    """The state of each layer that left the integers."""
    return {move.layer: move.state for move in chosen}


def shortest(ordered: Sequence[Move], good: Callable[[Sequence[Move]], bool]) -> list[Move] | None:
    """Give the shortest beginning of the order that is good enough, then without what it can do without.

    Args:
        ordered: Moves, best first.
        good: Measures whether a set is good enough; called about 2 log2(n) + 2 `GIVE_BACK` times.

    Returns:
        The moves, or `None` when not even all of them are good enough.
    """
    low, high = 0, 1
    while not good(ordered[: min(high, len(ordered))]):
        if high >= len(ordered):
            return None
        low, high = high, 2 * high
    high = min(high, len(ordered))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if good(ordered[:middle]) else (middle, high)
    chosen = list(ordered[:high])
    for move in sorted(chosen[:-1], key=lambda m: -m.cost)[:GIVE_BACK]:
        if any(m.layer == move.layer and m.state == FLOAT and m is not move for m in chosen):
            continue
        rest = [m for m in chosen if m is not move]
        if good(rest):
            chosen = rest
        elif move.half and not any(m.layer == move.layer for m in rest) and good([*rest, replace(move, state=WEIGHTS)]):
            chosen = [*rest, replace(move, state=WEIGHTS)]
    return chosen
