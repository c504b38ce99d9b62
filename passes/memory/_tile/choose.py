"""The tilings worth looking at: regions around the peak, bounded where little is alive."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from memoptc.ir.core import Op
from memoptc.ir.iteration import Axis
from memoptc.passes.memory._tile.estimate import KnownTilings, TilingEstimate, bound, estimates
from memoptc.passes.memory._tile.grid import NotTileableError
from memoptc.passes.memory._tile.growth import Growth
from memoptc.passes.memory._tile.iteration_spaces import IterationSpaces
from memoptc.passes.memory._tile.memory_profile import MemoryProfile
from memoptc.passes.memory._tile.reachability import Reachability
from memoptc.passes.memory._tile.region import Region

COUNTS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
MORE_COUNTS = (384, 512, 768, 1024)
STILL_LARGE = 64 << 20
"""Bytes alive inside a region, cut into as many tiles as any other, above which it is cut into more."""
REGIONS = 24
"""Regions that are looked at in detail."""
MAX_DISTANCE = 2000
"""Steps from the peak beyond which no region reaches."""
BOUNDS = 7
"""Places of each kind on each side of the peak at which a region may end."""
CLEARER = 0.97
"""Share of a smaller region's bound that a larger one must be below to be worth a look."""
WORKSPACE = 0.1
"""Share of the peak that the workspace of one op must be to cut that op alone."""
CLEARLY = 0.9
"""Share of the bytes alive at the last place that the next one must be below."""


def offers(profile: MemoryProfile, spaces: IterationSpaces) -> list[Offer]:
    """Give regions around the peak.

    Args:
        profile: The graph.
        spaces: Iteration spaces of its ops.
    """
    return [
        Offer(kind, bound(region, profile)[2], i, region) for i, (kind, region) in enumerate(regions(profile, spaces))
    ]


def tilings(
    every: Sequence[Offer], profile: MemoryProfile, target: int, known: KnownTilings
) -> Iterator[TilingEstimate]:
    """Give tilings of regions around the peak, those first that could need least.

    Args:
        every: The regions.
        profile: The graph.
        target: Bytes that suffice: regions that could do with less are all looked at.
        known: Costs of tilings that were looked at before, in this graph or one of which it is a copy.
    """
    known.effort += sum(len(offer.region.ops) for offer in every)
    for region in _skyline(every, target):
        last = 1
        inside = 0
        for count in (*COUNTS, *MORE_COUNTS):
            if count > COUNTS[-1] and inside <= max(STILL_LARGE, target):
                break
            try:
                found = list(estimates(region, count, profile, known))
            except NotTileableError:
                break
            inside = found[-1].inside
            if found[0].count > last:
                last = found[0].count
                yield from found


@dataclass(frozen=True)
class Offer:
    """A region grown from an axis of an op (`kind`), and the bytes that every tiling of it needs at least."""

    kind: tuple[Op, Axis]
    floor: int
    index: int
    region: Region


def _skyline(every: Sequence[Offer], target: int) -> list[Region]:
    """Regions that could need less than every smaller one grown along the same axis; of them the smallest bounds.

    Larger ones count, too, where a smaller one suffices for the target: what ends outside of two convolutions may well
    cost less than what ends between them.
    """
    found: list[Offer] = []
    best: dict[tuple[Op, Axis], int] = {}
    for offer in sorted(every, key=lambda o: (len(o.region.ops), o.floor, o.index)):
        if offer.kind not in best or offer.floor < best[offer.kind] * CLEARER:
            best[offer.kind] = offer.floor
            found.append(offer)
    found.sort(key=lambda o: (max(o.floor, target), o.index))
    return [offer.region for offer in found[:REGIONS]]


def regions(profile: MemoryProfile, spaces: IterationSpaces) -> Iterator[tuple[tuple[Op, Axis], Region]]:
    """Give regions that hold the op at the peak, or what makes its operands; each with what it was grown from."""
    peak = max(range(len(profile.curve)), key=profile.curve.__getitem__, default=None)
    if peak is None:
        return
    starts = _bounds(profile.curve, range(peak, max(-1, peak - MAX_DISTANCE), -1))
    ends = _bounds(profile.curve, range(peak, min(peak + MAX_DISTANCE, len(profile.curve))))
    reach = Reachability(profile.ops[starts[0] : ends[-1] + 1])
    seen: set[frozenset[tuple[Op, Axis]]] = set()
    looked_at: dict[int, Region] = {}
    for seed, axis in _seeds(profile, peak, spaces):
        place = profile.position[seed]
        if not _divides(seed, axis, profile):
            continue
        growth = Growth(seed, axis, spaces, reach)
        for start in starts:
            if start > place:
                break
            growth.within(start - starts[0], ends[-1] - starts[0])  # the widest first: many others follow from it
            for end in ends:
                if place <= end:
                    region = growth.within(start - starts[0], end - starts[0])
                    if region is None or id(region) in looked_at:
                        continue
                    looked_at[id(region)] = region  # growing gives the same object for many stretches
                    if (key := frozenset(region.axes.items())) in seen:
                        continue
                    if len(region.ops) < 2 and profile.costs.scratch(region.ops[0]) < WORKSPACE * profile.peak:
                        continue
                    seen.add(key)
                    yield (seed, axis), region


def _divides(op: Op, axis: Axis, profile: MemoryProfile) -> bool:
    """True if there is more than one tile to make."""
    try:
        if axis.join is not None:
            return all(
                a is None or profile.costs.extent(v, a.axis) > 1
                for v, a in zip(op.operands, axis.operands, strict=True)
            )
        return all(p is None or profile.costs.extent(r, p) > 1 for r, p in zip(op.results, axis.results, strict=True))
    except NotTileableError:
        return False


def _seeds(profile: MemoryProfile, peak: int, spaces: IterationSpaces) -> Iterator[tuple[Op, Axis]]:
    """The axes of the op at the peak, and of the first that has any of those before and behind it."""
    near: list[Op] = [profile.ops[peak]]
    near += [v.op for v in profile.ops[peak].operands if v.op is not None and v.op in profile.position]
    near += [user for r in profile.ops[peak].results for user in r.users if user in profile.position]
    used: set[tuple[Op, object]] = set()
    found = 0
    for op in dict.fromkeys(near):
        for axis in spaces.every(op):
            if (op, axis.cuts) not in used:
                used.add((op, axis.cuts))
                found += 1
                yield op, axis
        if found and op is not profile.ops[peak]:
            return


def _bounds(curve: Sequence[int], steps: Iterable[int]) -> list[int]:
    """Steps, away from the peak, at which clearly less is alive than before on the way; and the nearest ones."""
    steps = list(steps)
    found = steps[:2]
    least = None
    for step in steps:
        if least is None or curve[step] < least * CLEARLY:
            least = curve[step]
            found.append(step)
    # Valleys further out count, too, nearest first: a region may hold several peaks.
    valleys = [
        step
        for before, step, after in zip(steps, steps[1:], steps[2:], strict=False)
        if curve[step] <= curve[before] and curve[step] < curve[after]
    ]
    return sorted({*found[: BOUNDS + 2], *valleys[:BOUNDS], *steps[-1:]})
