"""The largest sizes of a model's open axes at which it runs under a memory limit, each tried under that limit.

A prediction of need says where to begin; what is reported was run. Axes of a kind (the height and the width of an
image) grow together, and the others stay where they are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from memoptc.runtime.container import Trial
from memoptc.runtime.inputs import InputMaker

STEP: Mapping[str, int] = {"batch": 1, "space": 32, "sequence": 8, "past": 8, "samples": 160}
"""Extents are multiples of these, by kind of axis: what most models of that kind accept."""

CLOSE = 1.05
"""Ratio of the smallest extent that does not fit to the largest that does, at which the search ends."""

TRIALS = 14
"""Most extents that are tried for one kind of axis."""

_LARGEST = 1 << 22
_FAR = 1.25
"""Ratio to the largest extent that fits at which an outer bound is looked for where the time is over."""

Extents = Mapping[str, int]


@dataclass(frozen=True)
class AxisLimit:
    """Largest extent of one kind of axis under a limit.

    Args:
        kind: `batch`, `space`, `sequence`, `past` or `samples`.
        axes: Symbols that grow together.
        largest: The largest extent that ran within the limit; `None` when not even the smallest did.
        extents: All extents of that run.
        latency_ms: Its median latency.
        beyond: The smallest extent that did not fit; `None` when the model itself allows no more.
        why: Why that did not fit.
    """

    kind: str
    axes: tuple[str, ...]
    largest: int | None
    extents: Extents
    latency_ms: float | None
    beyond: int | None
    why: str


def largest_extents(
    maker: InputMaker,
    kinds: Mapping[str, str],
    point: Extents,
    attempt: Callable[[Extents], Trial],
    predicted: Callable[[Extents], int],
    limit: int,
    say: Callable[[str], None] = lambda text: None,
    seconds: float = math.inf,
) -> list[AxisLimit]:
    """Find how far each kind of axis can grow.

    Args:
        maker: What knows which extents belong together.
        kinds: Symbols that are open -> kind of their axis.
        point: Extents of the axes that do not grow.
        attempt: Runs the model at extents within the limit.
        predicted: Bytes that a process is predicted to take at extents.
        limit: The limit in bytes, to begin the search where the prediction reaches it.
        say: Told of each trial.
        seconds: About how long the search may take, for each kind its share; then what is known is given. One more
            extent is tried where only one side is known: a larger one, or the smallest where nothing has fitted.
    """
    begun = time.monotonic()
    groups: dict[str, list[str]] = {}
    for name, kind in kinds.items():
        groups.setdefault(kind, []).append(name)
    found = []
    for number, (kind, names) in enumerate(groups.items(), 1):
        end = begun + seconds * number / len(groups)
        found.append(_Search(maker, kind, tuple(names), dict(point), attempt, predicted, limit, say, end).run())
    return found


@dataclass
class _Search:
    maker: InputMaker
    kind: str
    axes: tuple[str, ...]
    point: Extents
    attempt: Callable[[Extents], Trial]
    predicted: Callable[[Extents], int]
    limit: int
    say: Callable[[str], None]
    end: float

    def run(self) -> AxisLimit:
        """Search outwards from the predicted edge, then halve what lies between."""
        fits: tuple[int, Trial] | None = None
        fails: tuple[int, str] | None = None
        most = self._allowed(_LARGEST)
        extent, stride = self._grid(min(self._edge(most), most)), 1.1
        late = ""
        for _ in range(TRIALS):
            trial = self._try(extent)
            if trial.fits:
                fits = (extent, trial)
            else:
                fails = (extent, trial.why)
            if time.monotonic() >= self.end:
                if late or (fits and (fails or fits[0] >= most)) or (not fits and extent <= self._step):
                    break
                late = "no time to try more"
                extent = min(most, self._grid(int(extent * _FAR) + self._step)) if fits else self._step
                continue
            if fits and fails:
                if fails[0] <= max(fits[0] + self._step, fits[0] * CLOSE):
                    break
                extent = self._grid((fits[0] + fails[0]) // 2)
                if extent == fits[0]:
                    break  # what failed is the model's own bound, between two steps
            elif fits:
                if fits[0] >= most:
                    break
                extent, stride = min(most, self._grid(max(int(extent * stride), extent + self._step))), stride * stride
            else:
                if extent <= self._step:
                    break
                extent, stride = self._grid(min(int(extent / stride), extent - self._step)), stride * stride
        open_end = late if fits is None or fits[0] < most else ""
        beyond, why = fails or (None, open_end or "the model allows no more")
        if fits is None:
            return AxisLimit(self.kind, self.axes, None, {}, None, beyond, why)
        return AxisLimit(self.kind, self.axes, fits[0], self._at(fits[0]) or {}, fits[1].latency_ms, beyond, why)

    @property
    def _step(self) -> int:
        return STEP.get(self.kind, 1)

    def _grid(self, extent: int) -> int:
        return max(self._step, extent // self._step * self._step)

    def _at(self, extent: int) -> dict[str, int] | None:
        return self.maker.consistent({**self.point, **dict.fromkeys(self.axes, extent)})

    def _allowed(self, extent: int) -> int:
        """The largest extent that the model's own bounds allow."""
        found = self._at(extent)
        return extent if found is None else max(found.get(name, extent) for name in self.axes)

    def _try(self, extent: int) -> Trial:
        self.say(f"{', '.join(self.axes)} = {extent}")
        found = self._at(extent)
        if found is None or all(found.get(name) != extent for name in self.axes):
            return Trial(False, "the model does not accept it", None, 0)
        return self.attempt(found)

    def _edge(self, most: int) -> int:
        """The largest extent whose predicted bytes fit."""
        low, high = 0, self._step
        while high < most and self._predicted(high) <= self.limit:
            low, high = high, 2 * high
        while high - low > max(self._step, low // 50):
            middle = self._grid((low + high) // 2)
            if middle in (low, high):
                break
            if self._predicted(middle) <= self.limit:
                low = middle
            else:
                high = middle
        return max(low, self._step)

    def _predicted(self, extent: int) -> int:
        found = self._at(extent)
        return self.limit + 1 if found is None else self.predicted(found)
