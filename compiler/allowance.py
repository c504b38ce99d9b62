"""Time of one compile: when work that it could do without is no longer begun, and what was left out for that."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

SECONDS, SECONDS_PER_NODE, SECONDS_PER_MB = 300.0, 0.1, 0.5
"""Time limit where nobody gives one: seconds for any model, for each node of it, and for each megabyte of weights."""
WITH_DATA = 4.0
"""Times as much where passes run the model on samples."""

SEARCHES, PASSES, GATES = 0.4, 0.5, 0.75
"""Parts of the time limit after which searches inside of passes settle for the best that they have; passes are ended
and left out; and the same for passes that write the numbers that were asked for, and for attempts of gates. What is
left is for writing, proof and measurement, which nothing goes without."""

GATE_SECONDS, GATE_SECONDS_PER_NODE = 60.0, 0.05
"""Seconds of all gates' attempts for any model, and for each node of it."""
MEASURINGS = 5.0
"""How often measuring one attempt, some fifty runs of the model, may take its time besides: in gates and in all."""
BUILDS = 8.0
"""The same of making one attempt, from the passes to the file."""
AGAIN = 1.5
"""Times as long as the longest one so far that making another attempt may take before its searches end."""

CUT = "The search for less to take back was ended after a while; what is written holds."
_UNITS = {"": 1.0, "s": 1.0, "min": 60.0, "h": 3600.0}
_SHOWN = 6
"""Names of work left out that are listed."""


def parse_seconds(text: str | float) -> float:
    """Read a time such as `90`, `90s`, `5min` or `1.5h`, in seconds.

    Raises:
        ValueError: it is none, or not above zero.
    """
    found = re.fullmatch(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*(s|min|h|)\s*", str(text))
    try:
        seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise ValueError(f"{text!r} is no time; write one such as 90s, 5min or 1h")
    return seconds


@dataclass
class Allowance:
    """The time that a compile takes for what it could do without; asked before each piece of such work is begun.

    It counts from when it is made: a limit that the user gives by the clock. Where nobody gives one it is some minutes
    of work of processors, this process's and its children's, so that a busy machine writes what an idle one does, and
    no more than the clock shows, since that of many processors adds up; it grows with what making and measuring an
    attempt turn out to take, so that a compile that comes near to it is stuck.

    Besides, gates share an allowance of their own, far below: those that go by predictions are held to seconds of this
    thread's own work, so that a busy machine writes what an idle one does; those that measure, to seconds by the clock.

    Args:
        limit: Seconds for the whole compile, as the user gave them, or `None`.
        nodes: Of the original.
        weights: Bytes of its weights.
        data: Whether passes run it on samples.
    """

    limit: float | None = None
    nodes: int = 0
    weights: int = 0
    data: bool = False
    left_out: dict[str, None] = field(default_factory=dict)
    """What was not done, in the order in which it would have been."""
    _begun: tuple[float, float] = field(default_factory=lambda: _clocks())
    _spent: float = 0.0
    _measuring: float = 0.0
    _building: tuple[float, float] = (0.0, 0.0)
    """By the clock, and of the thread's own work."""
    _longest: float = 0.0
    """Seconds that making an attempt took at most, as `spent` counts them."""
    _again: float | None = None
    """When the attempt that is being made was begun, where it is not the first."""

    @property
    def seconds(self) -> float:
        """The time limit of the compile."""
        if self.limit is not None:
            return self.limit
        known = SECONDS + SECONDS_PER_NODE * self.nodes + SECONDS_PER_MB * self.weights / 1e6
        return known * (WITH_DATA if self.data else 1.0) + MEASURINGS * self._measuring + BUILDS * self._longest

    @property
    def spent(self) -> float:
        """Seconds since the compile began."""
        clock, work = (now - then for now, then in zip(_clocks(), self._begun, strict=True))
        return min(clock, work) if self.limit is None else clock

    def left(self, part: float) -> float:
        """Seconds until a part of the limit is over, less than zero after that.

        While an attempt is made that is not the first one, what the longest one took is there for its passes.
        """
        until = part * self.seconds
        if self._again is not None:
            until = max(until, self._again + (part / SEARCHES) * AGAIN * self._longest)
        return until - self.spent

    def by_clock(self, part: float) -> float:
        """Seconds by the clock until a part of the limit is over; a limit that nobody gave does not go by it."""
        return math.inf if self.limit is None else self.left(part)

    def is_late(self, what: str, part: float = GATES, needs: float = 0.0) -> bool:
        """True if work that a compile can do without shall not be begun; it is noted as left out then.

        Args:
            what: The work, as the user shall read it.
            part: Part of the limit that must not be over.
            needs: Seconds that it will take at least.
        """
        if self.left(part) >= needs:
            return False
        self.left_out.setdefault(what)
        return True

    def leaves_out(self, pass_: str, part: float) -> bool:
        """True if a pass shall not run: its part of the limit is over, or an earlier attempt was made without it."""
        return pass_ in self.left_out or self.is_late(pass_, part)

    @property
    def warning(self) -> str:
        """Name what was left out and how to allow it, in one line; `""` when nothing was."""
        if not self.left_out:
            return ""
        names = list(self.left_out)
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        told, longer = ", ".join(names[:_SHOWN]) + more, math.ceil(3 * self.seconds / 60)
        return f"The time limit of {self.seconds:.0f} s left out: {told}. --time-limit {longer}min allows more."

    def grant(self, measuring: float) -> None:
        """Note the seconds that measuring an attempt took: the longest counts."""
        self._measuring = max(self._measuring, measuring)

    @property
    def attempt(self) -> float:
        """Seconds that making and measuring another attempt will take, as far as earlier ones tell."""
        return self._longest + self._measuring

    @contextmanager
    def building(self) -> Iterator[None]:
        """Note what making an attempt takes, inside: the longest counts."""
        clock, own, spent = time.monotonic(), time.thread_time(), self.spent
        self._again = spent if self._longest else None
        try:
            yield
        finally:
            self._again = None
        taken = time.monotonic() - clock, time.thread_time() - own
        self._building = max(self._building[0], taken[0]), max(self._building[1], taken[1])
        self._longest = max(self._longest, self.spent - spent)

    @contextmanager
    def search(self, *, measured: bool) -> Iterator[Callable[[], bool]]:
        """Spend it on what runs inside, which gets a function that says if there is no time for another attempt.

        Args:
            measured: Whether attempts are measured, or judged by predictions.
        """
        clock, before = time.monotonic if measured else time.thread_time, self._spent
        begun = clock()

        def spend() -> None:
            self._spent = before + clock() - begun

        def is_spent() -> bool:
            spend()
            building = self._building[0 if measured else 1]
            own = GATE_SECONDS + GATE_SECONDS_PER_NODE * self.nodes
            late = self._spent > own + MEASURINGS * self._measuring + BUILDS * building
            return late or self.is_late("the search for less to take back", needs=self.attempt)

        yield is_spent
        spend()


def _clocks() -> tuple[float, float]:
    """The clock, and the work of this process and of the children that it has waited for, in seconds."""
    return time.monotonic(), sum(os.times()[:4])
