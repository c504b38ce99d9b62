"""A bound on what one pass may do, so that a compile ends even where a pass would not."""

from __future__ import annotations


class PassOverrun(BaseException):
    """A pass went beyond its bound. No `Exception`, so that no pass takes it for a failure of its own and goes on."""


class Meter:
    """Counts the steps of a pass: changes of the graph that carries it, and what the pass counts itself.

    Args:
        most: Steps beyond which the pass is ended.
    """

    __slots__ = ("most", "steps")

    def __init__(self, most: int) -> None:
        self.most = most
        self.steps = 0

    def step(self, count: int = 1) -> None:
        """Count steps.

        Raises:
            PassOverrun: they are more than there may be.
        """
        self.steps += count
        if self.steps > self.most:
            raise PassOverrun
