"""Extents of all dimensions from those of the inputs: what planning for one size needs.

Symbolic shapes promise only what holds for every size. Two symbols that broadcast give a third one, since either
may be 1; so may what a Slice or a Resize leaves. Once the inputs' extents are numbers, these are numbers, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from memoptc.ir.core import Graph, Value
from memoptc.ir.dims import Sym, free_symbols
from memoptc.ir.infer import infer_shapes


class Extents(dict[str, int]):
    """Extents of symbols, and the symbols whose extents inference could not tell: it need not be asked again.

    Args:
        known: Extents by symbol.
        unknown: The symbols that stayed open.
    """

    def __init__(self, known: Mapping[str, int], unknown: frozenset[str] = frozenset()) -> None:
        super().__init__(known)
        self.unknown = unknown

    def copy(self) -> Extents:
        """Give another one that may be changed."""
        return Extents(self, self.unknown)


def extents(graph: Graph, dims: Mapping[str, int]) -> Extents:
    """Complete extents: those given, and every symbol's whose extent follows from them.

    Where the given ones leave a symbol open, shapes are inferred once more, on a copy of the graph with the given
    extents put in; the answer is kept until the graph changes. Extents that were completed before are taken as they
    are, also for a copy of the graph, as long as it has no new symbols.

    Args:
        graph: A top graph. A region's symbols are among its top graph's, so for a region nothing is added.
        dims: Extents of symbolic dimensions.
    """
    unknown = dims.unknown if isinstance(dims, Extents) else frozenset()
    if graph.parent is not None or graph.model is None or covers(graph, dims):
        return Extents(dims, unknown)
    key = frozenset(dims.items())
    lasting = _LASTING.get(graph)
    if lasting is not None:
        seen = lasting.get(key)
        if seen is None or not open_symbols(graph) <= seen[0]:
            seen = lasting[key] = open_symbols(graph), _complete(graph, dims)
        return seen[1].copy()
    known = graph.analysis(_Completions)
    if key not in known:
        known[key] = _complete(graph, dims)
    return known[key].copy()


def likely_extents(graph: Graph, dims: Mapping[str, int]) -> Extents:
    """As `extents`, for estimates at many sizes: where inference found nothing at one, it is not asked at the others.

    What runs decide stays open at any size; that two branches of an If agree at some is left out.
    """
    idle = graph.analysis(_Idle)
    names = frozenset(dims)
    if names in idle:
        return Extents(dims, idle[names])
    found = extents(graph, dims)
    if found.keys() == names:
        idle[names] = found.unknown
    return found


def covers(graph: Graph, dims: Mapping[str, int]) -> bool:
    """True if inference has nothing to add to extents: each symbol of a graph has one, or was found to have none."""
    missing = open_symbols(graph) - dims.keys()
    return not missing or (isinstance(dims, Extents) and missing <= dims.unknown)


def open_symbols(graph: Graph) -> frozenset[str]:
    """Every symbol in the type of a value, regions included."""
    return graph.analysis(_symbols)


def keep_extents(changed: Graph, graph: Graph | None = None) -> None:
    """Keep completed extents of a graph although it changes, until it has new symbols.

    For changes that give no symbol another meaning, as those of a pass that runs no inference in between; without it
    every change costs an inference of the whole graph.

    Args:
        changed: The graph, which nobody else works on.
        graph: The graph of which it is a copy that was not changed yet: what is known of that is known of the copy.
    """
    _LASTING[changed] = {} if graph is None else dict(_LASTING.get(graph, {}))


_LASTING: WeakKeyDictionary[Graph, dict[frozenset[tuple[str, int]], tuple[frozenset[str], Extents]]] = (
    WeakKeyDictionary()
)
"""Per graph of `keep_extents` and given extents: the symbols that were there, and what follows."""


def bind_shapes(graph: Graph, feed: Mapping[str, Any]) -> dict[str, int]:
    """Read the extents of symbolic dimensions off the inputs.

    Args:
        graph: A top graph.
        feed: Input name -> value; what has no shape is left out.
    """
    dims: dict[str, int] = {}
    for value in graph.inputs:
        shape = getattr(feed.get(value.name), "shape", None)
        if shape is not None and value.shape is not None:
            for dim, extent in zip(value.shape, shape, strict=False):
                if isinstance(dim, Sym) and dim.name is not None:
                    dims.setdefault(dim.name, int(extent))
    return dims


class _Completions(dict[frozenset[tuple[str, int]], Extents]):
    """Answers for one version of a graph."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()


class _Idle(dict[frozenset[str], frozenset[str]]):
    """Symbols whose extents do not follow from those of some others, by these, for one version of a graph."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()


def _symbols(graph: Graph) -> frozenset[str]:
    shapes = {value.shape for op in graph.walk() for value in op.results}
    return frozenset(name for shape in shapes for dim in shape or () for name in free_symbols(dim))


def _complete(graph: Graph, dims: Mapping[str, int]) -> Extents:
    twins: dict[Value, Value] = {}
    copy = graph.clone(twins)
    for value in twins.values():
        if value.tensor_type is not None:
            value.type = value.tensor_type.bind(dims)
    infer_shapes(copy, elements=False)
    found = dict(dims)
    for value, twin in twins.items():
        for dim, extent in zip(value.shape or (), twin.shape or (), strict=False):
            if isinstance(dim, Sym) and dim.name is not None and isinstance(extent, int):
                found.setdefault(dim.name, extent)
    return Extents(found, open_symbols(graph) - found.keys())
