"""What promises to change no output bit keeps that promise on random graphs, for extents of 0 and 1, NaN and -0.0."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from clutter import clutter
from graphs import graphs
from hypothesis import given
from hypothesis import strategies as st
from numbers_of import compare, with_external_weights

from memoptc.instruments import KeepsInterface, VerifyEach
from memoptc.ir.core import Graph, Value
from memoptc.ir.infer import infer_shapes
from memoptc.ir.printer import print_graph
from memoptc.ir.types import TensorType
from memoptc.levels import pipeline_text
from memoptc.manager import run_pipeline
from memoptc.pipeline import parse

EXACT = ["simplify", "fold-constants", "share-weights{reshape_from=8}", "share-common", "drop-dead"]


def ports(graph: Graph) -> list[object]:
    """Names and element types of inputs and outputs."""

    def kind(value: Value) -> object:
        return value.type.dtype if isinstance(value.type, TensorType) else value.type

    names = [v.name for v in graph.inputs] + [o.name for o in graph.outputs_info]
    return [names, [kind(v) for v in (*graph.inputs, *graph.outputs)]]


def check(text: str, graph: Graph, *, exact: bool, external: bool = False) -> None:
    """Run a pipeline: well-formed after each pass, same ports, same numbers, nothing to do the second time."""
    infer_shapes(graph)
    before = graph.clone()
    pipeline = parse(text)
    with TemporaryDirectory() as folder:
        if external:
            with_external_weights(graph, Path(folder))
        run_pipeline(pipeline, graph, instruments=[VerifyEach(), KeepsInterface()])
        assert ports(graph) == ports(before)
        once = print_graph(graph)
        run_pipeline(pipeline, graph)
        assert print_graph(graph) == once
        compare(before, graph, exact=exact, folder=Path(folder) if external else None)


@pytest.mark.parametrize("name", EXACT)
@given(graph=graphs(16))
def test_no_bit_changes(name: str, graph: Graph) -> None:
    check(f"({name})*", graph, exact=True)


@given(graph=graphs(24), external=st.booleans())
def test_no_bit_changes_with_all_of_them(graph: Graph, external: bool) -> None:
    check(pipeline_text(1).removesuffix(",order,plan-memory,lower"), graph, exact=True, external=external)


@given(graph=graphs(8), seed=st.integers(0, 2**32 - 1), detours=st.integers(1, 8))
def test_detours_go_and_no_bit_changes(graph: Graph, seed: int, detours: int) -> None:
    infer_shapes(graph)
    check(pipeline_text(1).removesuffix(",order,plan-memory,lower"), clutter(graph, seed, detours), exact=True)


@given(graph=graphs(16))
def test_fusion_stays_close(graph: Graph) -> None:
    infer_shapes(graph)
    before = graph.clone()
    run_pipeline(parse("fuse-conv-bn"), graph, instruments=[VerifyEach(), KeepsInterface()])
    assert ports(graph) == ports(before)
