"""Design points: the extents that a model with open axes is planned, verified and measured at when nobody says.

A plan made for a toy size does nothing at the sizes that matter, and code made for large sizes must leave small ones
as fast, and as small, as they were. So the plan is made for the largest extents that the model is likely to meet: as
far as its tables, masks and dependent extents allow (`memoptc.runtime.solve`), by the kind of input (tokens, image,
audio), and no further than its activations fit a limit. Verifying and measuring take a smaller point, at which a run is
affordable; at a third one, the smallest that is credible, the need is predicted only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from memoptc.ir.core import Graph, Value
from memoptc.ir.ops import Family, definition
from memoptc.runtime.inputs import InputMaker
from memoptc.runtime.memory.extents import likely_extents
from memoptc.runtime.memory.footprint import evaluate
from memoptc.runtime.memory.liveness import peak

LARGEST = {"batch": 1, "space": 1024, "sequence": 4096, "past": 0, "samples": 160_000}
"""Extents to begin with, by kind of axis: a megapixel, 4,096 tokens or frames, ten seconds of sound at 16 kHz."""
SMALLEST = {"batch": 1, "space": 64, "sequence": 16, "past": 0, "samples": 4_000}
"""Extents below which no point is looked for."""
FEWEST = SMALLEST | {"space": 256}
"""The smallest extents that a user is credited with: where what is made for large ones must not cost much. Of images,
a quarter of the sides that are planned for: nodes of tiles that save most of a megapixel take a megabyte or two, more
than there is to save in a thumbnail."""

PLANNED = 1 << 30
"""Bytes of activations that the original may plan at the point to plan for."""
AFFORDABLE = 128 << 20
"""Bytes of activations that the original may plan at the point to verify and measure at."""
AFFORDABLE_WORK = 25e9
"""Multiplications that a run may take there: about half a second on two cores, and a compile makes some fifty runs."""

_WAVEFORM_STEPS = 64
"""Ops that are followed from an input to the convolution that says it is sound."""
_WAVEFORM_KERNEL = 5
"""Taps of that convolution, at least."""


@dataclass(frozen=True)
class DesignPoints:
    """Extents for planning, for verifying and measuring, and for looking after small inputs.

    Args:
        plan: The largest extents to expect: what the plan is made for.
        check: Extents at which both models are run.
        chosen: Symbols whose extents nobody gave, with the kind of their axis.
        small: The smallest extents to expect; `None` where they are those of `check`, or not known.
    """

    plan: Mapping[str, int]
    check: Mapping[str, int]
    chosen: Mapping[str, str] = field(default_factory=dict)
    small: Mapping[str, int] | None = None

    def __str__(self) -> str:
        """Say what was chosen, as `batch=1, sequence=4096`."""
        return ", ".join(f"{name}={self.plan[name]}" for name in self.chosen)


def design_points(graph: Graph, asked: Mapping[str, int]) -> DesignPoints | None:
    """Choose design points for the open axes of a model's inputs.

    Args:
        graph: The model.
        asked: Extents that are decided.

    Returns:
        The points; `None` when no axis is open, or no extents are known to belong together.

    Raises:
        InputError: `asked` names something the model's inputs do not have.
    """
    maker = InputMaker(graph, asked)
    if not maker.is_dynamic:
        return None
    waveforms = set(_waveform_symbols(graph))
    kinds = {
        name: "samples" if name in waveforms and kind == "sequence" else kind
        for name, (kind, _) in maker.classes.items()
    }
    plan = _largest(maker, kinds, LARGEST, PLANNED, math.inf)
    if plan is None:
        return None
    check = _largest(maker, kinds, plan, AFFORDABLE, AFFORDABLE_WORK) or plan
    chosen = {name: kind for name, kind in kinds.items() if name not in asked}
    small = maker.consistent(check | {name: min(check.get(name, 1), FEWEST[kind]) for name, kind in chosen.items()})
    return DesignPoints(plan, check, chosen, None if small == check else small)


def smaller_points(graph: Graph, asked: Mapping[str, int], points: DesignPoints) -> Iterator[DesignPoints]:
    """Give points at half the chosen extents each time, for a model that does not run at those.

    What operators require is not all that bounds a size: positions that are counted from the tokens index a table too.
    """
    maker = InputMaker(graph, asked)
    wanted = dict(points.check)
    while True:
        least = {name: SMALLEST[kind] for name, kind in points.chosen.items()}
        found = maker.consistent({n: max(e // 2, min(e, least[n])) if n in least else e for n, e in wanted.items()})
        if found is None or found == wanted:
            return
        yield DesignPoints(found, found, points.chosen)
        wanted = found


def _largest(
    maker: InputMaker, kinds: Mapping[str, str], start: Mapping[str, int], limit: int, work: float
) -> dict[str, int] | None:
    """Halve the open extents, all at once, until planned activations and multiplications fit their limits."""
    wanted = {name: start.get(name, start.get(kind, 1)) for name, kind in kinds.items()} | maker.dims
    while True:
        found = maker.consistent(wanted)
        if found is None:
            return None
        smaller = {
            name: max(extent // 2, SMALLEST[kinds[name]]) if extent > SMALLEST[kinds[name]] else extent
            for name, extent in wanted.items()
            if name not in maker.dims
        } | maker.dims
        # Where shapes are not known, what is planned says nothing of what goes in.
        if smaller == wanted or (
            maker.nbytes(found) <= limit
            and multiplications(maker.typed, found) <= work
            and peak(maker.typed, likely_extents(maker.typed, found)).peak_bytes <= limit
        ):
            return found
        wanted = smaller


def effort(maker: InputMaker, dims: Mapping[str, int]) -> float:
    """Give what a run takes, in bytes planned or multiplications, as a share of what is affordable; the larger one."""
    work = multiplications(maker.typed, dims) / AFFORDABLE_WORK
    return max(peak(maker.typed, likely_extents(maker.typed, dims)).peak_bytes / AFFORDABLE, work)


def multiplications(graph: Graph, dims: Mapping[str, int]) -> float:
    """Count the multiplications of one run; extents that stay unknown count as 1, the body of a loop runs once."""
    known = likely_extents(graph, dims)

    def shape(value: Value) -> tuple[int, ...]:
        return tuple(1 if (extent := evaluate(d, known)) is None else extent for d in value.shape or ())

    counts = ((definition(op).multiplications, op) for op in graph.walk())
    return sum(count(op, shape) for count, op in counts if count is not None)


def _waveform_symbols(graph: Graph) -> Iterator[str]:
    """Symbols of inputs that are sound: what is convolved along its last axis as a single channel."""
    for value in graph.inputs:
        if value.rank in (2, 3) and value.is_floating_point and _meets_single_channel(value):
            last = value.shape[-1] if value.shape else None
            yield from () if last is None or isinstance(last, int) else sorted(last.free)


def _meets_single_channel(start: Value) -> bool:
    todo, seen = [start], {start}
    for _ in range(_WAVEFORM_STEPS):
        if not todo:
            return False
        for user in todo.pop().users:
            if user.is_a("STFT"):
                return True
            known = definition(user)
            if known.family is Family.CONVOLUTION:
                shape = user.operands[1].static_shape
                if shape is not None and len(shape) == 3 and shape[1] == 1 and shape[2] >= _WAVEFORM_KERNEL:
                    return True
            elif known.moves or known.elementwise or known.family is Family.NORMALIZATION:
                fresh = [r for r in user.results if r not in seen]
                seen.update(fresh)
                todo.extend(fresh)
    return False
