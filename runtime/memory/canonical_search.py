"""Canonical search: do these buffers fit into a capacity? Depth first, exact, with a budget.

**What is searched.** Let every buffer of a placement sink until it rests on another one, on a fixed one or on the
bottom; then name the buffers in order of offset, ties by a rank. Such a *canonical* placement exists wherever any
placement does, and is written down by its order alone: each buffer lies at its `rest`, the lowest offset that the
neighbours named before it leave (Moffitt, "MiniMalloc: A Lightweight Memory Allocator for Hardware-Accelerated
Machine Learning", ASPLOS 2023). So a node of the search is a set of buffers not yet placed, their rests, and the last
placement, the *threshold*: the next buffer is one whose (rest, rank) lies beyond it.

**What is left out.** Consider the first of all solutions in lexicographic order of their (offset, rank) sequences,
the order in which the search meets them. None of these rules ever cuts it off:

* *Dominance* (ibid.): nobody is placed at or above the end that some unplaced buffer would have at its rest: that
  buffer could lie there as well, which gives an earlier solution. The same if all that lives with a buffer is placed:
  then it comes now or never.
* *Bounds*: at every section of time, the lowest rest and all bytes not yet placed must fit below the capacity.
* *Twins*: of equal buffers the one of lower rank comes first.
* *Memory of dead ends*: two nodes that leave the same buffers, each able to lie no lower in the later node than in the
  earlier (rests below the threshold count as the threshold), share their fate: a completion of the later would
  complete the earlier, and that gives an earlier solution.

**Parts.** Where no unplaced buffer crosses a cut in time, both sides are searched apart, each from an empty sequence
of its own and with ranks of its own. A side that fails has no solution at all. A side that is solved is not searched
again, but dead ends inside it were dead only because an earlier solution exists; should the other side then fail,
they would mislead, so they are forgotten when a part is solved.

Dead ends are known by 62 bits of a hash, multilinear with random factors over a prime field (two sums of 31 bits):
two different nodes collide with a probability of 2^-62 (Carter and Wegman, "Universal Classes of Hash Functions",
1979). A collision could hide a solution; it cannot make a wrong one.

This code is plain Python over anything that can be indexed: lists for the interpreter, arrays of int64 when numba
compiles it (`memoptc.runtime.memory.exact`). Both take the same steps.
"""

from __future__ import annotations

from memoptc.runtime.memory.canonical_tables import FRAME, Tables, Work

SOLVED, IMPOSSIBLE, UNDECIDED, CROWDED = 1, 0, -1, -2
"""What `search` answers: placed; cannot be placed; out of budget; the trail is too short, to be called with more."""

PRIME = (1 << 31) - 1
"""The field of the hash; offsets must be smaller."""

_NEVER = 1 << 62

# What `search` does next.
_ENTER, _NEXT, _PART, _UNDO, _FAIL, _SUCCEED = range(6)

# Columns of a frame.
_BEGIN, _END, _LOW, _HIGH, _OFFSET, _RANK, _CEILING, _CHOSEN = range(8)
_MARK, _ALONE, _AT, _TIME, _SPLIT, _KEY, _PART_ID, _OPENED = range(8, 16)


def search(t: Tables, w: Work, capacity: int, padding: int, by_load: int, budget: int) -> int:
    """Decide whether all buffers fit below the capacity.

    Args:
        t: The problem.
        w: Memory to work in. Dead ends in it must be of the same problem and of no smaller capacity.
        capacity: In units, and less than `PRIME`.
        padding: The most that a `size` exceeds its `slack`.
        by_load: 1: in every part the buffers of its busiest sections come first; 0: `still` alone ranks them.
        budget: Looks at buffers that may be spent.

    Returns:
        SOLVED, and `solution` holds the offsets; IMPOSSIBLE; UNDECIDED, the budget is spent; or CROWDED.
    """
    _reset(t, w)
    n, frames, counter = len(t.size), w.frames, w.counter
    room = len(w.trail) - 4 * (2 * n + len(w.total))
    frames[_BEGIN], frames[_END], frames[_LOW], frames[_HIGH], frames[_OPENED] = 0, n, 0, len(w.total), 1
    top = _open(t, w, 0, 0, by_load)
    depth = 0
    move = _ENTER
    while True:
        frame = depth * FRAME
        if move == _ENTER:
            if counter[0] > budget or counter[1] + 1 >= len(w.solved) or top > room:
                # Dead ends of what is under way were judged in an order that may not come again.
                for d in range(depth + 1):
                    w.solved[frames[d * FRAME + _PART_ID]] = 1
                return CROWDED if top > room else UNDECIDED
            move = _enter(t, w, frame, capacity, padding)
        elif move == _NEXT:
            frames[frame + _MARK] = top
            top = _place(t, w, frame, top, capacity, padding)
            move = _PART
            if top < 0:
                top = -top - 1
                move = _UNDO
        elif move == _PART:
            if _part(t, w, frame):
                depth += 1
                if frames[frame + _SPLIT] == 1:
                    top = _open(t, w, frame + FRAME, top, by_load)
                move = _ENTER
            else:
                w.solution[frames[frame + _CHOSEN]] = w.state[frames[frame + _CHOSEN]]
                move = _SUCCEED
        elif move == _UNDO:
            top = _undo(t, w, frame, top)
            move = _FAIL if frames[frame + _ALONE] == 1 else _pick(t, w, frame)
            if move == _FAIL:
                _remember(w, frame)
        elif move == _FAIL:
            if depth == 0:
                return IMPOSSIBLE
            depth -= 1
            move = _UNDO
        else:
            # The offset is noted; lift the buffer, so that the parts beside this one find the state they left.
            top = _undo(t, w, frame, top)
            if frames[frame + _OPENED] == 1:
                w.solved[frames[frame + _PART_ID]] = 1
            if depth == 0:
                return SOLVED
            depth -= 1
            move = _PART


def _reset(t: Tables, w: Work) -> None:
    n, sections = len(t.size), len(w.total)
    for at in range(sections):
        w.total[at] = w.crossing[at] = w.dirty[at] = 0
        w.state[2 * n + at] = _NEVER
    for i in range(n):
        w.state[i], w.state[n + i] = t.least[i], t.still[i]
        w.placed[i] = 0
        w.members[i] = w.position[i] = i
        for at in range(t.first[i], t.stop[i]):
            w.total[at] += t.size[i]
            w.state[2 * n + at] = min(w.state[2 * n + at], t.least[i])
        for at in range(t.first[i], t.stop[i] - 1):
            w.crossing[at] += 1


def _open(t: Tables, w: Work, frame: int, top: int, by_load: int) -> int:
    """Begin a part: an empty sequence, and ranks by the loads that are left. Gives the trail's new top."""
    n, frames = len(t.size), w.frames
    w.counter[1] += 1
    frames[frame + _OFFSET], frames[frame + _RANK] = 0, -1
    frames[frame + _PART_ID] = w.counter[1]
    w.solved[w.counter[1]] = 0
    if by_load == 0:
        return top
    for k in range(frames[frame + _BEGIN], frames[frame + _END]):
        i = w.members[k]
        load = 0
        for at in range(t.first[i], t.stop[i]):
            load = max(load, w.total[at])
        w.trail[top], w.trail[top + 1] = n + i, w.state[n + i]
        top += 2
        w.state[n + i] = (PRIME - load) * n + t.still[i]
    return top


def _enter(t: Tables, w: Work, frame: int, capacity: int, padding: int) -> int:
    """Look at all members of a node: is it known or dead, how high may the next buffer lie, which one is first?"""
    frames, state, n = w.frames, w.state, len(t.size)
    begin, end = frames[frame + _BEGIN], frames[frame + _END]
    offset, rank = frames[frame + _OFFSET], frames[frame + _RANK]
    w.counter[0] += end - begin
    w.counter[2] += 1
    highest = 0
    for at in range(frames[frame + _LOW], frames[frame + _HIGH]):
        highest = max(highest, w.total[at])
    ceiling = capacity + padding - highest + 1
    if offset >= ceiling:
        return _FAIL
    low = high = 0
    first = first_rest = first_rank = _NEVER
    for k in range(begin, end):
        i = w.members[k]
        rest = state[i]
        ceiling = min(ceiling, rest + t.size[i])
        if rest > offset or (rest == offset and state[n + i] > rank):
            if rest < first_rest or (rest == first_rest and state[n + i] < first_rank):
                twin = t.twin[i]
                if twin < 0 or w.placed[twin] == 1:
                    first, first_rest, first_rank = i, rest, state[n + i]
        elif rest < offset:
            rest = offset
            if t.fixed[i] == 1 or rest > capacity - t.slack[i]:
                return _FAIL
        low = (low + (rest + 1) * t.mix[i]) % PRIME
        high = (high + (rest + 1) * t.stir[i]) % PRIME
    key = low * (PRIME + 1) + high
    frames[frame + _KEY], frames[frame + _CEILING], frames[frame + _CHOSEN] = key, ceiling, first
    slot = key % len(w.known)
    if w.known[slot] == key and w.solved[w.source[slot]] == 0:
        return _FAIL
    if first_rest >= ceiling:
        _remember(w, frame)
        return _FAIL
    return _NEXT


def _pick(t: Tables, w: Work, frame: int) -> int:
    """Find the member to try after the one tried last."""
    frames, state, n = w.frames, w.state, len(t.size)
    begin, end = frames[frame + _BEGIN], frames[frame + _END]
    last = frames[frame + _CHOSEN]
    offset, rank = state[last], state[n + last]
    w.counter[0] += end - begin
    first = first_rank = _NEVER
    first_rest = frames[frame + _CEILING] - 1
    for k in range(begin, end):
        i = w.members[k]
        rest = state[i]
        if rest > first_rest or rest < offset:
            continue
        if (rest > offset or state[n + i] > rank) and (rest < first_rest or state[n + i] < first_rank):
            twin = t.twin[i]
            if twin < 0 or w.placed[twin] == 1:
                first, first_rest, first_rank = i, rest, state[n + i]
    if first == _NEVER:
        return _FAIL
    frames[frame + _CHOSEN] = first
    return _NEXT


def _place(t: Tables, w: Work, frame: int, top: int, capacity: int, padding: int) -> int:
    """Put the chosen member at its rest and raise its neighbours.

    Returns:
        The trail's new top, or -1 - top where some neighbour or section no longer fits.
    """
    frames, state, n = w.frames, w.state, len(t.size)
    chosen = frames[frame + _CHOSEN]
    offset = state[chosen]
    end = offset + t.size[chosen]
    left, right = t.first[chosen], t.stop[chosen]
    w.placed[chosen] = 1
    # To the front of the range: the rest of it is the part that remains.
    begin, was = frames[frame + _BEGIN], w.position[chosen]
    other = w.members[begin]
    w.members[begin], w.members[was] = chosen, other
    w.position[chosen], w.position[other] = begin, was
    frames[frame + _AT], frames[frame + _TIME] = begin + 1, frames[frame + _LOW]
    frames[frame + _SPLIT] = 0
    for at in range(left, right):
        w.total[at] -= t.size[chosen]
        w.dirty[at] = 1
    for at in range(left, right - 1):
        w.crossing[at] -= 1
        if w.crossing[at] == 0:
            frames[frame + _SPLIT] = 1
    fits = True
    alone = 1
    w.counter[0] += t.near_begin[chosen + 1] - t.near_begin[chosen]
    for k in range(t.near_begin[chosen], t.near_begin[chosen + 1]):
        i = t.near[k]
        if w.placed[i] == 1:
            continue
        alone = 0
        rest = state[i]
        if rest >= end:
            continue
        raised = -(-end // t.unit[i]) * t.unit[i]
        if t.fixed[i] == 1 or raised > capacity - t.slack[i]:
            fits = False
            break
        w.trail[top], w.trail[top + 1] = i, rest
        top += 2
        state[i] = raised
        left, right = min(left, t.first[i]), max(right, t.stop[i])
        for at in range(t.first[i], t.stop[i]):
            if state[2 * n + at] == rest:
                w.dirty[at] = 1
    frames[frame + _ALONE] = alone
    for at in range(left, right):
        if w.dirty[at] == 0:
            continue
        w.dirty[at] = 0
        if not fits:
            continue
        was = state[2 * n + at]
        lowest = _NEVER
        for k in range(t.alive_begin[at], t.alive_begin[at + 1]):
            i = t.alive[k]
            if w.placed[i] == 0 and state[i] < lowest:
                lowest = state[i]
                if lowest == was:
                    break
        if lowest != was:
            w.trail[top], w.trail[top + 1] = 2 * n + at, was
            top += 2
            state[2 * n + at] = lowest
            fits = lowest == _NEVER or lowest + w.total[at] <= capacity + padding
    return top if fits else -1 - top


def _undo(t: Tables, w: Work, frame: int, top: int) -> int:
    """Lift the chosen member. Gives the trail's new top."""
    frames = w.frames
    chosen, mark = frames[frame + _CHOSEN], frames[frame + _MARK]
    while top > mark:
        top -= 2
        w.state[w.trail[top]] = w.trail[top + 1]
    w.placed[chosen] = 0
    for at in range(t.first[chosen], t.stop[chosen]):
        w.total[at] += t.size[chosen]
    for at in range(t.first[chosen], t.stop[chosen] - 1):
        w.crossing[at] += 1
    return top


def _part(t: Tables, w: Work, frame: int) -> bool:
    """Lay out the frame of the next part that the chosen member leaves, if there is one."""
    frames, child = w.frames, frame + FRAME
    begin, end = frames[frame + _AT], frames[frame + _END]
    if begin == end:
        return False
    chosen = frames[frame + _CHOSEN]
    low, until = frames[frame + _TIME], frames[frame + _HIGH]
    stop = end
    if frames[frame + _SPLIT] == 1:
        stop = begin
        while stop == begin:
            at = low
            while at < until - 1 and w.crossing[at] > 0:
                at += 1
            # Members of this part to the front.
            for k in range(begin, end):
                i = w.members[k]
                if t.first[i] <= at:
                    other = w.members[stop]
                    w.members[stop], w.members[k] = i, other
                    w.position[i], w.position[other] = stop, k
                    stop += 1
            if stop == begin:
                low = at + 1
        until = at + 1
    frames[frame + _AT], frames[frame + _TIME] = stop, until
    frames[child + _BEGIN], frames[child + _END] = begin, stop
    frames[child + _LOW], frames[child + _HIGH] = low, until
    frames[child + _OPENED] = frames[frame + _SPLIT]
    frames[child + _PART_ID] = frames[frame + _PART_ID]
    frames[child + _OFFSET] = w.state[chosen]
    frames[child + _RANK] = w.state[len(t.size) + chosen]
    return True


def _remember(w: Work, frame: int) -> None:
    key = w.frames[frame + _KEY]
    slot = key % len(w.known)
    w.known[slot], w.source[slot] = key, w.frames[frame + _PART_ID]
