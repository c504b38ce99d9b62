"""Extents of all dimensions from those of the inputs: what planning for one size needs.

Symbolic shapes promise only what holds for every size. Two symbols that broadcast give a third one, since either
may be 1; so may what a Slice or a Resize leaves. Once the inputs' extents are numbers, these are numbers, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from memoptc.ir.core import Graph, Value
from memoptc.ir.dims import Sym, free_symbols
from memoptc.ir.infer import infer_shapes


def extents(graph: Graph, dims: Mapping[str, int]) -> dict[str, int]:
    """Complete extents: those given, and every symbol's whose extent follows from them.

    Where the given ones leave a symbol open, shapes are inferred once more, on a copy of the graph with the given
    extents put in; the answer is kept until the graph changes.

    Args:
        graph: A top graph. A region's symbols are among its top graph's, so for a region nothing is added.
        dims: Extents of symbolic dimensions.
    """
    if graph.parent is not None or graph.model is None or open_symbols(graph) <= dims.keys():
        return dict(dims)
    key = frozenset(dims.items())
    lasting = _LASTING.get(graph)
    if lasting is not None:
        seen = lasting.get(key)
        if seen is None or not open_symbols(graph) <= seen[0]:
            seen = lasting[key] = open_symbols(graph), _complete(graph, dims)
        return dict(seen[1])
    known = graph.analysis(_Completions)
    if key not in known:
        known[key] = _complete(graph, dims)
    return dict(known[key])


def open_symbols(graph: Graph) -> frozenset[str]:
    """Every symbol in the type of a value, regions included."""
    return graph.analysis(_symbols)


@contextmanager
def lasting_symbols(graph: Graph) -> Iterator[None]:
    """Keep completed extents although the graph changes, until it has new symbols.

    For changes that give no symbol another meaning, as those of a pass that runs no inference in between; without it
    every change costs an inference of the whole graph.
    """
    _LASTING[graph] = {}
    try:
        yield
    finally:
        _LASTING.pop(graph, None)


_LASTING: WeakKeyDictionary[Graph, dict[frozenset[tuple[str, int]], tuple[frozenset[str], dict[str, int]]]] = (
    WeakKeyDictionary()
)
"""Per graph under `lasting_symbols` and given extents: the symbols that were there, and what follows."""


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


class _Completions(dict[frozenset[tuple[str, int]], dict[str, int]]):
    """Answers for one version of a graph."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()


def _symbols(graph: Graph) -> frozenset[str]:
    shapes = {value.shape for op in graph.walk() for value in op.results}
    return frozenset(name for shape in shapes for dim in shape or () for name in free_symbols(dim))


def _complete(graph: Graph, dims: Mapping[str, int]) -> dict[str, int]:
    twins: dict[Value, Value] = {}
    copy = graph.clone(twins)
    for value in twins.values():
        if value.tensor_type is not None:
            value.type = value.tensor_type.bind(dims)
    infer_shapes(copy)
    found = dict(dims)
    for value, twin in twins.items():
        for dim, extent in zip(value.shape or (), twin.shape or (), strict=False):
            if isinstance(dim, Sym) and dim.name is not None and isinstance(extent, int):
                found.setdefault(dim.name, extent)
    return found
