"""`MOVES`: how each operator with an iteration space is applied to a value; the other files here enter theirs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tileable import Maker, Move

from memoptc.ir.core import Value
from memoptc.ir.dims import Dim

Make = Callable[[Maker, Value], "Value | None"]
MOVES: dict[str, Move] = {}
ANY = (1, 2, 3, 4, 5)
IMAGE = (3, 4)


def move(*names: str, ranks: tuple[int, ...] = ANY, jumps: bool = False, opset: int = 21) -> Callable[[Any], Any]:
    """Enter a function under operator names; one with several is given the name."""

    def enter(make: Any) -> Any:
        for name in names:
            bound: Make = make if len(names) == 1 else (lambda m, x, name=name: make(m, x, name))
            MOVES[name] = Move(name, ranks, bound, jumps, opset)
        return make

    return enter


def short(name: str) -> str:
    return name.rpartition("::")[2]


def whole(*extents: Dim) -> bool:
    return all(isinstance(d, int) for d in extents)


def number(dim: Dim) -> int:
    """A static extent, or one that nothing is larger than."""
    return dim if isinstance(dim, int) else 10**9
