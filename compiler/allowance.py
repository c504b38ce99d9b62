"""Time that a compile may spend on finding out what to take back: one allowance for all of its gates."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

SECONDS, SECONDS_PER_NODE = 60.0, 0.05
"""Seconds for any model, and for each node of it."""
MEASURINGS = 5.0
"""How often measuring one attempt may take its time besides, which is some fifty runs of the model."""
BUILDS = 8.0
"""How often making one attempt may, from the passes to the file."""

CUT = "The search for less to take back was ended after a while; what is written holds."


@dataclass
class Allowance:
    """What is left of it; a gate that finds it spent takes back all that it may at once, which is cheap and safe.

    Gates that go by predictions are held to seconds of this thread's own work, so that a busy machine writes what an
    idle one does; those that measure, to seconds by the clock.

    Args:
        seconds: For any attempts; what making and measuring one takes adds to it.
    """

    seconds: float
    _spent: float = 0.0
    _measuring: float = 0.0
    _building: tuple[float, float] = (0.0, 0.0)
    """By the clock, and of the thread's own work."""

    @staticmethod
    def of(nodes: int) -> Allowance:
        """Give what a model of so many nodes is worth."""
        return Allowance(SECONDS + SECONDS_PER_NODE * nodes)

    def grant(self, measuring: float) -> None:
        """Note the seconds that measuring an attempt took: the longest counts."""
        self._measuring = max(self._measuring, measuring)

    @contextmanager
    def building(self) -> Iterator[None]:
        """Note what making an attempt takes, inside: the longest counts."""
        clock, own = time.monotonic(), time.thread_time()
        yield
        taken = time.monotonic() - clock, time.thread_time() - own
        self._building = max(self._building[0], taken[0]), max(self._building[1], taken[1])

    @contextmanager
    def search(self, *, measured: bool) -> Iterator[Callable[[], bool]]:
        """Spend it on what runs inside, which gets a function that says if there is no time for another attempt.

        Args:
            measured: Whether attempts are measured, or judged by predictions.
        """
        clock, before = time.monotonic if measured else time.thread_time, self._spent
        begun = clock()

        def is_spent() -> bool:
            self._spent = before + clock() - begun
            building = self._building[0 if measured else 1]
            return self._spent > self.seconds + MEASURINGS * self._measuring + BUILDS * building

        yield is_spent
        is_spent()
