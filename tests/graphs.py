"""Random graphs of `memoptc.testing` as a hypothesis strategy that shrinks towards fewer ops."""

from __future__ import annotations

from hypothesis import strategies as st

from memoptc.ir.core import Graph
from memoptc.testing.graphs import BINDINGS, feeds, random_graph


def graphs(max_size: int = 20, *, control: bool = True, symbolic: bool = True) -> st.SearchStrategy[Graph]:
    """Random graphs; the arguments are those of `random_graph`."""

    def build(seed: int, size: int) -> Graph:
        return random_graph(seed, size, control=control, symbolic=symbolic)

    return st.builds(build, st.integers(0, 2**32 - 1), st.integers(0, max_size))


__all__ = ["BINDINGS", "feeds", "graphs", "random_graph"]
