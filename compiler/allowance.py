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

CUT = "The search for less to take back was ended after a while; what is written holds."


@dataclass
class Allowance:
    """What is left of it; a gate that finds it spent takes back all that it may at once, which is cheap and safe.

    Gates that go by predictions are held to seconds of this process's own work, so that a busy machine writes what an
    idle one does; those that measure, to seconds by the clock.

    Args:
        seconds: For what is predicted; measuring adds to it.
    """

    seconds: float
    _spent: float = 0.0
    _measuring: float = 0.0

    @staticmethod
    def of(nodes: int) -> Allowance:
        """Give what a model of so many nodes is worth."""
        return Allowance(SECONDS + SECONDS_PER_NODE * nodes)

    def grant(self, measuring: float) -> None:
        """Note the seconds that measuring an attempt took: the longest counts."""
        self._measuring = max(self._measuring, measuring)

    @contextmanager
    def search(self, *, measured: bool) -> Iterator[Callable[[], bool]]:
        """Spend it on what runs inside, which gets a function that says if there is no time for another attempt.

        Args:
            measured: Whether attempts are measured, or judged by predictions.
        """
        clock, before = time.monotonic if measured else time.process_time, self._spent
        begun = clock()

        def is_spent() -> bool:
            self._spent = before + clock() - begun
            return self._spent > self.seconds + MEASURINGS * self._measuring

        yield is_spent
        is_spent()
