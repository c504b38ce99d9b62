"""Properties that every rule and every pass has, held against onnxruntime on random graphs.

class TestRules(RuleTests):
    passes = ("fuse-conv-relu",)          # each of their rules

class TestPasses(PassTests):
    pipelines = ("drop-double-relu",)
"""

from __future__ import annotations

from typing import ClassVar

import pytest

from memoptc import registry
from memoptc.instruments import KeepsInterface, VerifyEach
from memoptc.ir.core import Graph
from memoptc.ir.diagnostics import MemoptcError
from memoptc.ir.infer import infer_shapes
from memoptc.ir.printer import print_graph
from memoptc.manager import run_pipeline
from memoptc.pipeline import parse as parse_pipeline
from memoptc.rewrite import Rule, RulePass
from memoptc.testing.cases import compare_numbers
from memoptc.testing.graphs import random_graph
from memoptc.testing.rule_check import check_rule


def check_pass(pipeline: str, count: int = 25, *, numbers: str = "close", size: int = 12, seed: int = 0) -> int:
    """Run a pipeline on random graphs: it verifies, keeps names and types, has nothing left to do, keeps numbers.

    Args:
        pipeline: Text of the pipeline, such as the name of one pass.
        count: How many graphs.
        numbers: How they must compare: `exact`, `close`, `powers of two` or `sqnr DB`.
        size: Operators of a graph.
        seed: Of the graphs.

    Raises:
        AssertionError: something does not hold; the message shows the graph.

    Returns:
        How many graphs the pipeline changed.
    """
    __tracebackhide__ = True
    changed = 0
    for number in range(count):
        graph = random_graph(seed * 1000 + number, size)
        infer_shapes(graph)
        changed += _kept(pipeline, graph, numbers)
    return changed


def _kept(pipeline: str, graph: Graph, numbers: str) -> bool:
    __tracebackhide__ = True
    before, text, version = graph.clone(), print_graph(graph), graph.version
    try:
        run_pipeline(parse_pipeline(pipeline), graph, instruments=[VerifyEach(types=True), KeepsInterface()])
        done = graph.version != version
        once = print_graph(graph)
        run_pipeline(parse_pipeline(pipeline), graph)
        assert print_graph(graph) == once, f"a second run goes on changing the graph:\n{print_graph(graph)}"
        assert compare_numbers(before, graph, numbers) > 0, "the graph before runs with no inputs"
    except (AssertionError, MemoptcError) as e:
        raise AssertionError(f"{pipeline} is wrong for this graph:\n{text}\n{e}") from None
    return done


class RuleTests:
    """Tests of rules by instances of their patterns; name a subclass `Test...` and set `passes` or `rules`."""

    passes: ClassVar[tuple[str, ...]] = ()
    """Passes whose rules are tested."""
    rules: ClassVar[tuple[Rule, ...]] = ()
    """More rules."""
    count: ClassVar[int] = 200
    """Instances of each rule."""
    exact: ClassVar[bool] = False
    """Compare bits."""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run the test for each rule."""
        if "rule" not in metafunc.fixturenames:
            return
        found = list(self.rules)
        for name in self.passes:
            cls = registry.find(name)
            if not issubclass(cls, RulePass):
                raise TypeError(f"pass {name} is not made of rules")
            found += cls.rules
        if not found:
            raise ValueError(f"{type(self).__name__} names no rule: set `passes` or `rules`")
        metafunc.parametrize("rule", found, ids=[rule.name for rule in found])

    def test_instances_keep_their_numbers(self, rule: Rule) -> None:
        """The rule is applied to random instances of its pattern, whose numbers stay."""
        assert check_rule(rule, self.count, exact=self.exact) == self.count


class PassTests:
    """Tests of pipelines on random graphs; name a subclass `Test...` and set `pipelines`."""

    pipelines: ClassVar[tuple[str, ...]] = ()
    """Texts of pipelines, such as the names of passes."""
    count: ClassVar[int] = 25
    """Graphs for each."""
    numbers: ClassVar[str] = "close"
    """How numbers must compare: `exact`, `close`, `powers of two` or `sqnr DB`."""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run the test for each pipeline."""
        if "pipeline" in metafunc.fixturenames:
            if not self.pipelines:
                raise ValueError(f"{type(self).__name__} names no pipeline: set `pipelines`")
            metafunc.parametrize("pipeline", self.pipelines)

    def test_random_graphs_keep_their_numbers(self, pipeline: str) -> None:
        """Random graphs stay well-formed and keep their interface and numbers; a second run changes nothing."""
        check_pass(pipeline, self.count, numbers=self.numbers)


__all__ = ["PassTests", "RuleTests", "check_pass"]
