"""Every file in tests/cases: a pipeline, a graph, `// ---- expect`, the graph that must come out.

Each gives five tests. `pytest tests/test_cases.py --update` writes what comes out as the expectation.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from numbers_of import CODED, EXACT, RESCALING, compare, compare_coded, tame_feeds

from memoptc.instruments import VerifyEach
from memoptc.ir.core import Graph
from memoptc.ir.equality import same_structure
from memoptc.ir.infer import infer_shapes
from memoptc.ir.parser import parse
from memoptc.ir.printer import print_graph
from memoptc.manager import run_pipeline
from memoptc.pipeline import Pipeline
from memoptc.pipeline import parse as parse_pipeline

CASES = Path(__file__).parent / "cases"
PIPELINE, EXPECT = "// pipeline: ", "// ---- expect\n"
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


def typed(text: str, file: Path) -> Graph:
    graph = parse(text, file=file.name)
    infer_shapes(graph)
    return graph


def ran(pipeline: Pipeline, text: str, file: Path) -> Graph:
    """The graph after the pipeline, verified after each pass."""
    graph = typed(text, file)
    run_pipeline(pipeline, graph, instruments=[VerifyEach()])
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
    run_pipeline(pipeline, graph)
    assert print_graph(graph) == once


@each_case
def test_numbers(file: Path) -> None:
    pipeline, before, _ = read(file)
    if any(p.name in CODED for p in pipeline.passes()):
        graph = typed(before, file)
        assert compare_coded(graph, ran(pipeline, before, file), tame_feeds(graph)) > 0
        return
    exact = all(p.name in EXACT | RESCALING and getattr(p, "exact", True) for p in pipeline.passes())
    graph = typed(before, file)
    feeds = tame_feeds(graph) if any(p.name in RESCALING for p in pipeline.passes()) else None
    assert compare(graph, ran(pipeline, before, file), exact=exact, feeds=feeds) > 0
