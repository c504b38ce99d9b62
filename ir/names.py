"""Names that are taken: in one graph, and in a whole model. Collected when they are first asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable


def unique(hint: str, taken: set[str]) -> str:
    """Give `hint`, with a number behind it when that is taken, and take it."""
    name, n = hint, 1
    while name in taken:
        name, n = f"{hint}_{n}", n + 1
    taken.add(name)
    return name


class ModelNames:
    """Every name that a value or output of a model has or had, so that a fresh one never returns an old one."""

    __slots__ = ("_next_suffix", "_taken")

    def __init__(self) -> None:
        self._taken: set[str] | None = None
        self._next_suffix: dict[str, int] = {}

    def copy(self) -> ModelNames:
        """Give the names of a copy of the model."""
        found = ModelNames()
        found._taken, found._next_suffix = None if self._taken is None else set(self._taken), dict(self._next_suffix)
        return found

    def add(self, names: Iterable[str]) -> None:
        """Count more names as taken; `names` is not walked as long as nobody asked for a fresh one."""
        if self._taken is not None:
            self._taken.update(names)

    def fresh(self, hint: str, present: Callable[[], Iterable[str]]) -> str:
        """Give `hint`, with a number behind it when that is taken, and take it.

        Args:
            hint: The name that is wanted.
            present: The names of the model, asked the first time.
        """
        if self._taken is None:
            self._taken = set(present())
        name, n = hint, self._next_suffix.get(hint, 1)
        while name in self._taken:
            name, n = f"{hint}_{n}", n + 1
        self._next_suffix[hint] = n
        self._taken.add(name)
        return name


class ValueNames:
    """Count of each name among the values of one graph, those in regions not included."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: Counter[str] | None = None

    def count(self, name: str, change: int) -> None:
        """Count a value that gets (1) or loses (-1) a name."""
        if self._counts is not None:
            self._counts[name] += change

    def has(self, name: str, present: Callable[[], Iterable[str]]) -> bool:
        """True if a value has a name; `present` gives those of all values, asked the first time."""
        if self._counts is None:
            self._counts = Counter(present())
        return bool(name) and self._counts[name] > 0
