"""Progress of a long step, with the time that is left."""

from __future__ import annotations

import time


class Pace:
    """Progress over steps that take about alike, with the time that is left: for the user, no decision goes by it.

    Args:
        total: How many steps there are.
    """

    def __init__(self, total: int) -> None:
        self._total, self._skipped, self._start = total, 0, time.monotonic()

    def skip(self, count: int) -> None:
        """Note steps that took no time."""
        self._skipped += count

    def at(self, done: int) -> str:
        """Progress when so many steps are done and the next begins, and the time left."""
        told = f"{done + 1} of {self._total}"
        if done <= self._skipped:
            return told
        left = (time.monotonic() - self._start) / (done - self._skipped) * (self._total - done)
        return f"{told}, about {left:.0f} s left" if left < 100 else f"{told}, about {left / 60:.0f} min left"
