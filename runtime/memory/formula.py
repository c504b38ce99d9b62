"""Bytes of a run as a formula over the symbolic extents of the inputs: the largest of a few expressions.

Each expression is what is alive at one step: the sizes of its tensors, which are exact in the extents, and its kernels'
scratch, a line fitted from above through what the memory model says at the points looked at. Steps that are the peak
at none of the points are left out: between and beyond the points the formula may be a little low, and a limit that is
enforced has the last word.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from memoptc.ir.core import Graph
from memoptc.ir.dims import KnownDim, Sym, floordiv, free_symbols, substitute
from memoptc.runtime.admission import RunBytes
from memoptc.runtime.memory.extents import extents
from memoptc.runtime.memory.liveness import Liveness, liveness
from memoptc.runtime.memory.problem import ALIGNMENT
from memoptc.runtime.memory.workspace import kernel_workspace

_SCALES = (1, 2, 4)
"""Points looked at: the extents given, and these times larger, one axis by one and all together; and a quarter."""
_SHARE = 1 << 10
"""Denominator of slopes."""


def input_axes(graph: Graph) -> dict[str, tuple[str, int]]:
    """Input and axis at which the extent of each symbol can be read off."""
    found: dict[str, tuple[str, int]] = {}
    for value in graph.inputs:
        for axis, dim in enumerate(value.shape or ()):
            if isinstance(dim, Sym) and dim.name is not None:
                found.setdefault(dim.name, (value.name, axis))
    return found


def run_formula(graph: Graph, dims: Mapping[str, int], threads: int = 1) -> RunBytes | None:
    """Bytes of activations, outputs and scratch of a run, by the shapes of the inputs.

    Args:
        graph: The model, shapes inferred.
        dims: Extents of its inputs' symbols, about the largest to expect.
        threads: Intra-op threads.

    Returns:
        The formula; `None` where sizes depend on more than the inputs' shapes.
    """
    symbols = input_axes(graph)
    if not symbols.keys() <= dims.keys():
        return None
    looks = [_Look.at(graph, point, threads) for point in _points({s: dims[s] for s in symbols})]
    if any(look.found.unknown for look in looks):
        return None
    found = [_at_step(looks, step) for step in dict.fromkeys(look.peak for look in looks)]
    derived = sorted(frozenset().union(*map(free_symbols, found)) - symbols.keys())
    if any(d not in look.dims for d in derived for look in looks):
        return None
    axes: list[KnownDim] = [Sym(name) for name in symbols]
    bounds = {d: _line(axes, looks, [look.dims[d] for look in looks]) for d in derived}
    expressions = [substitute(one, bounds) for one in dict.fromkeys(found)]
    slack = max(max(map(look.value, expressions)) / max(look.peak_bytes, 1) for look in looks)
    return RunBytes(tuple(map(str, expressions)), symbols, slack)


def _points(dims: Mapping[str, int]) -> Iterator[dict[str, int]]:
    seen = []
    for scale in _SCALES:
        seen.append({s: n * scale for s, n in dims.items()})
        seen += [dict(dims) | {s: n * scale} for s, n in dims.items()]
    seen.append({s: max(1, n // 4) for s, n in dims.items()})
    seen += [dict(dims) | {s: max(1, n // 4)} for s, n in dims.items()]
    yield from {tuple(p.items()): p for p in seen}.values()


@dataclass(frozen=True)
class _Look:
    """The memory model's answer at one point."""

    dims: Mapping[str, int]
    found: Liveness
    peak: int
    peak_bytes: int

    @staticmethod
    def at(graph: Graph, point: Mapping[str, int], threads: int) -> _Look:
        full = extents(graph, point)
        found = liveness(graph, full, workspace=kernel_workspace(full, threads))
        curve = found.curve
        return _Look(full, found, max(range(len(curve)), key=curve.__getitem__, default=0), max(curve, default=0))

    def value(self, expression: KnownDim) -> int:
        """An expression's value at this point."""
        return expression if isinstance(expression, int) else expression.evaluate(self.dims)


def _at_step(looks: list[_Look], step: int) -> KnownDim:
    """Bytes alive at a step, as an expression."""
    tensors: KnownDim = 0
    sizes: dict[KnownDim, None] = {}
    scratch = []
    for look in looks:
        alive = [s for s in look.found.storages if s.first <= step <= s.last]
        scratch.append(sum(s.size for s in alive if s.extent is None))
        known = [s.extent for s in alive if s.extent is not None]
        tensors = sum(known, len(known) * ALIGNMENT)
        sizes |= dict.fromkeys(known)
    return tensors + _line([tensors, *sizes], looks, scratch) if any(scratch) else tensors


def _line(of: Sequence[KnownDim], looks: Sequence[_Look], seen: Sequence[int]) -> KnownDim:
    """A line over one of some expressions that is at no point below what was seen, and as little above as can be."""
    best: tuple[float, KnownDim] | None = None
    for one in of:
        values = [look.value(one) for look in looks]
        (low, least), (high, most) = min(zip(values, seen, strict=True)), max(zip(values, seen, strict=True))
        through_ends = -(-max(most - least, 0) * _SHARE // max(high - low, 1))
        through_zero = max(-(-count * _SHARE // max(value, 1)) for value, count in zip(values, seen, strict=True))
        for slope in (0, through_ends, through_zero):
            base = max(max(count - slope * value // _SHARE for value, count in zip(values, seen, strict=True)), 0)
            excess = max((base + slope * v // _SHARE) / max(count, 1) for v, count in zip(values, seen, strict=True))
            if best is None or excess < best[0]:
                best = excess, base + floordiv(one * slope, _SHARE)
    assert best is not None
    return best[1]
