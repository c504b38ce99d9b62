"""Every file in tests/cases: a pipeline, a graph, `// ---- expect`, the graph that must come out.

A second line `// dims: S=64` names the extents to plan with; numbers are compared for them, too. Each gives six
tests: numbers are compared with weights inside the model and in a data file beside it. `pytest tests/test_cases.py
--update` writes what comes out as the expectation.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from numbers_of import (
    CODED,
    EXACT,
    NOT_EMPTY,
    RESCALING,
    compare,
    compare_coded,
    feed_of,
    hard_feeds,
    tame_feeds,
    with_external_weights,
)

from memoptc.instruments import KeepsInterface, VerifyEach
from memoptc.ir.core import Graph
from memoptc.ir.equality import same_structure
from memoptc.ir.infer import infer_shapes
from memoptc.ir.parser import parse
from memoptc.ir.printer import print_graph
from memoptc.manager import run_pipeline
from memoptc.pass_base import Context
from memoptc.pipeline import Pipeline
from memoptc.pipeline import parse as parse_pipeline

CASES = Path(__file__).parent / "cases"
PIPELINE, DIMS, EXPECT = "// pipeline: ", "// dims: ", "// ---- expect\n"
FILES = sorted(CASES.glob("*/*.mir"))
each_case = pytest.mark.parametrize("file", FILES, ids=[str(f.relative_to(CASES))[:-4] for f in FILES])


def read(file: Path) -> tuple[Pipeline, str, str]:
    """The pipeline, the graph before, and the graph after."""
    text = file.read_text("utf-8")
    head, _, rest = text.partition("\n")
    assert head.startswith(PIPELINE), f"{file.name} must begin with {PIPELINE!r}"
    before, mark, after = rest.partition(EXPECT)
    assert mark, f"{file.name} has no {EXPECT.strip()!r}"
    return parse_pipeline(head.removeprefix(PIPELINE).strip()), before, after


def dims_of(text: str) -> dict[str, int]:
    """Extents to plan with."""
    head = text.partition("\n")[0]
    pairs = head.removeprefix(DIMS).split() if head.startswith(DIMS) else []
    return {name: int(extent) for name, _, extent in (pair.partition("=") for pair in pairs)}


def typed(text: str, file: Path) -> Graph:
    graph = parse(text, file=file.name)
    infer_shapes(graph)
    return graph


def ran(pipeline: Pipeline, text: str, file: Path) -> Graph:
    """The graph after the pipeline, verified after each pass."""
    graph = typed(text, file)
    run_pipeline(pipeline, graph, Context(dims=dims_of(text)), [VerifyEach(), KeepsInterface()])
    return graph


def without_locations(graph: Graph) -> str:
    for op in graph.walk():
        op.loc = type(op.loc)()
    return print_graph(graph)


@each_case
def test_text_round_trip(file: Path) -> None:
    _, before, after = read(file)
    for text in (before, after):
        graph = parse(text)
        assert same_structure(graph, parse(print_graph(graph)), names=True) is None


@each_case
def test_expected_graph(file: Path, request: pytest.FixtureRequest) -> None:
    pipeline, before, after = read(file)
    graph = ran(pipeline, before, file)
    if request.config.getoption("--update"):
        head = file.read_text("utf-8").partition("\n")[0]
        file.write_text(f"{head}\n{before}{EXPECT}\n{without_locations(graph)}", "utf-8")
        return
    expected = parse(after, file=file.name)
    found = parse(without_locations(graph))
    difference = same_structure(expected, found)
    assert difference is None, f"{difference}\n{print_graph(found)}"


@each_case
def test_again_changes_nothing(file: Path) -> None:
    pipeline, before, _ = read(file)
    graph = ran(pipeline, before, file)
    once = print_graph(graph)
    run_pipeline(pipeline, graph, Context(dims=dims_of(before)))
    assert print_graph(graph) == once


@each_case
@pytest.mark.parametrize("weights", ["inline", "external"])
def test_numbers(file: Path, weights: str, tmp_path: Path) -> None:
    pipeline, before, _ = read(file)
    folder = tmp_path if weights == "external" else None
    graph, dims = typed(before, file), dims_of(before)
    after = typed(before, file)
    if folder is not None:
        with_external_weights(after, folder)
    run_pipeline(pipeline, after, Context(dims=dims), [VerifyEach(), KeepsInterface()])
    if any(p.name in CODED for p in pipeline.passes()):
        assert compare_coded(graph, after, tame_feeds(graph), folder) > 0
        return
    exact = all(p.name in EXACT | RESCALING and getattr(p, "exact", True) for p in pipeline.passes())
    feeds = tame_feeds(graph) if any(p.name in RESCALING for p in pipeline.passes()) else None
    if dims:
        empty = not any(op.op_type in NOT_EMPTY for op in graph.walk())
        feeds = [*hard_feeds(graph, empty=empty), feed_of(graph, dims)]
    assert compare(graph, after, exact=exact, feeds=feeds, folder=folder) > 0
