"""Search for extents that meet equations no symbol can be solved for, such as `((h+1)//2) * ((w+1)//2) == 96`.

Exporters that trace a model with one input write the extents of that input into its reshapes. What the operators then
require are equations of floors and products. An equation in one symbol is solved by bisection, since extents of
results grow with those of inputs; one in more symbols by trying extents for all but one of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from memoptc.ir.dims import KnownDim, Sym

_LARGEST = 1 << 20
"""Extents above which no solution is looked for."""
_TRIED = 512
"""Extents that are tried for one symbol of an equation in two."""
_BRANCHES = 4
"""Solutions of one equation that are followed up."""


@dataclass(frozen=True)
class Equation:
    """Two extents that have to be equal.

    Args:
        rest: Their difference, without the factors that both have.
        op: The operator that requires it, as messages name it.
    """

    rest: Sym
    op: str

    @staticmethod
    def of(left: KnownDim, right: KnownDim, op: str) -> Equation | None:
        """The equation of two extents; `None` where no extents meet it, or all do."""
        rest = left - right
        if isinstance(rest, int):
            return None
        for name in sorted(rest.free):  # extents are positive: a product is 0 where another factor is
            while isinstance(rest, Sym) and all(name in atoms for atoms, _ in rest.terms):
                rest = rest // Sym(name)
        if isinstance(rest, int):
            return None
        return Equation(rest, op)

    def holds(self, binding: Mapping[str, int]) -> bool:
        """True if extents meet it; where one of its symbols has no extent, nothing contradicts it."""
        return not self.rest.free <= binding.keys() or self.rest.evaluate(binding) == 0


def solutions(
    equations: Iterable[Equation], wanted: Mapping[str, int], decided: Iterable[str]
) -> Iterator[dict[str, int]]:
    """Give extents that meet all equations, near to those that are wanted first.

    Args:
        equations: The equations, over the keys of `wanted`.
        wanted: Extents of all symbols.
        decided: Symbols that keep their extents.
    """
    every = list(equations)
    unmet = next((e for e in every if not e.holds(wanted)), None)
    if unmet is None:
        yield dict(wanted)
        return
    fixed = set(decided)
    for chosen in itertools.islice(_near(unmet.rest, wanted, sorted(unmet.rest.free - fixed)), _BRANCHES):
        yield from solutions(every, {**wanted, **chosen}, fixed | unmet.rest.free)


def _near(rest: Sym, wanted: Mapping[str, int], names: list[str]) -> Iterator[dict[str, int]]:
    for name in names:
        found = _root(rest, wanted, name)
        if found is not None:
            yield {name: found}
    pairs = []
    for first, second in itertools.combinations(names, 2):
        for extent in range(1, _TRIED + 1):
            found = _root(rest, {**wanted, first: extent}, second)
            if found is not None:
                pairs.append({first: extent, second: found})
    yield from sorted(pairs, key=lambda pair: sum(abs(math.log(e / max(1, wanted[n]))) for n, e in pair.items()))


def _root(rest: Sym, binding: Mapping[str, int], name: str) -> int | None:
    """The extent of a symbol nearest to its own at which an expression that grows or falls with it is 0."""

    def at(extent: int) -> int:
        return rest.evaluate({**binding, name: extent})

    low, high = at(1), at(_LARGEST)
    sign = 1 if high >= low else -1
    first = _first(lambda extent: sign * at(extent) >= 0)
    if first is None or at(first):
        return None
    beyond = _first(lambda extent: sign * at(extent) > 0)
    last = _LARGEST if beyond is None else beyond - 1
    return min(max(binding[name], first), last)


def _first(holds: Callable[[int], bool]) -> int | None:
    """The least extent at which a predicate holds that holds at all larger ones; `None` where there is none."""
    if not holds(_LARGEST):
        return None
    low, high = 0, _LARGEST  # it is not known to hold at `low`, and it does at `high`
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
