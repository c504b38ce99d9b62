"""Tables and search state of the canonical search for placements."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

Ints: TypeAlias = list[int]
"""Lists of integers; arrays of int64 in compiled code."""

FRAME = 16
"""Numbers per depth in `Work.frames`."""


class Tables(NamedTuple):
    """A problem for the search, in units of the greatest common divisor of all its numbers; read only.

    Per buffer: `first` and `stop`, its sections [first, stop); `size`; `unit`, what its offset is a multiple of;
    `least`, its first rest; `slack`, how far below the capacity it must begin; `fixed`, 1 where `least` is its only
    offset; `twin`, an equal buffer of lower rank, or -1; `still`, its rank before loads count; `mix` and `stir`,
    factors of the hash. Neighbours of buffer i are `near[near_begin[i]:near_begin[i + 1]]`, buffers alive in
    section t `alive[alive_begin[t]:alive_begin[t + 1]]`.
    """

    first: Ints
    stop: Ints
    size: Ints
    unit: Ints
    least: Ints
    slack: Ints
    fixed: Ints
    twin: Ints
    still: Ints
    mix: Ints
    stir: Ints
    near_begin: Ints
    near: Ints
    alive_begin: Ints
    alive: Ints


class Work(NamedTuple):
    """State of the search.

    `state` holds the rests of n buffers, their ranks, and per section the lowest rest of those not placed; `trail`
    old values of it, as pairs of place and value. `members` is a permutation of the buffers in which every part of
    the search owns a range, `position` its inverse. `frames` has FRAME numbers per depth. `known` and `source` are
    the table of dead ends: hashes, and the part that found them; `solved` says which parts have been solved.
    `counter` holds the looks spent, the parts opened, and the nodes entered.
    """

    state: Ints
    trail: Ints
    placed: Ints
    members: Ints
    position: Ints
    total: Ints
    crossing: Ints
    dirty: Ints
    frames: Ints
    known: Ints
    source: Ints
    solved: Ints
    solution: Ints
    counter: Ints
