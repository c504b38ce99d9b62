"""Properties that every rule and every pass has, held against onnxruntime on random graphs.

class TestRules(RuleTests):
    passes = ("fuse-conv-relu",)          # each of their rules

class TestPasses(PassTests):
    pipelines = ("drop-double-relu",)
"""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import ClassVar

import pytest

from memoptc import registry
from memoptc.instruments import KeepsInterface, VerifyEach
from memoptc.ir.core import Graph
from memoptc.ir.diagnostics import MemoptcError
from memoptc.ir.infer import infer_shapes
from memoptc.ir.printer import print_graph
from memoptc.ir.type_checks import verify_types
from memoptc.ir.verifier import verify
from memoptc.manager import run_pipeline
from memoptc.pipeline import parse as parse_pipeline
from memoptc.rewrite import Rule, RulePass, apply_rules
from memoptc.testing.cases import compare_numbers
from memoptc.testing.graphs import random_graph
from memoptc.testing.instances import Instance, instances
from memoptc.testing.numbers import compare, feed_of, run

DRAWS = 100
"""Draws for each instance that is wanted: most patterns lead somewhere at once."""


def check_rule(rule: Rule, count: int = 200, *, exact: bool = False, seed: int = 0) -> int:
    """Apply a rule to random instances of its pattern and compare what onnxruntime gives before and after.

    Args:
        rule: The rule.
        count: How many instances it must have been applied to.
        exact: Compare bits; else outputs must be close.
        seed: Of the graphs.

    Raises:
        AssertionError: numbers differ (the message shows the graph), or too few instances were found; it then counts
            why the rule declined.

    Returns:
        How many instances it was applied to.
    """
    applied, drawn = 0, 0
    why: Counter[str] = Counter()
    for instance in islice(instances(rule, seed), DRAWS * count):
        if instance is None:
            why["no operands fit its pattern"] += 1
            continue
        drawn += 1
        applied += _holds(rule, instance, exact, why, seed + drawn)
        if applied == count:
            return applied
    reasons = "; ".join(f"{n} x {reason}" for reason, n in why.most_common(5))
    raise AssertionError(
        f"rule {rule.name} was applied to {applied} of {count} random graphs ({DRAWS * count} were tried): {reasons}.\n"
        "Draw fewer with `count`, or write cases for it."
    )


def _holds(rule: Rule, instance: Instance, exact: bool, why: Counter[str], seed: int) -> bool:
    """Whether the rule was applied; raises `AssertionError` when that was wrong."""
    graph = instance.graph
    infer_shapes(graph)
    before = graph.clone()
    stats: Counter[str] = Counter()
    declined: Counter[str] = Counter()
    fault: Exception | None = None
    try:
        apply_rules(graph, [rule], stats, declined)
    except Exception as e:
        fault = e  # no fault of the rule where onnxruntime refuses what was drawn
    if not stats and fault is None:
        why.update(declined or {"its pattern does not fit": 1})
        return False
    feeds = [feed_of(before, instance.extents, seed)]
    if run(before, feeds[0]) is None:
        why["onnxruntime does not run what was drawn"] += 1
        return False
    try:
        if fault is not None:
            raise fault
        verify(graph, tolerated=())
        verify_types(graph)
        compare(before, graph, exact=exact, feeds=feeds)
    except Exception as e:
        raise AssertionError(f"rule {rule.name} is wrong for this graph:\n{print_graph(before)}\n{e}") from e
    return True


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
    changed = 0
    for number in range(count):
        graph = random_graph(seed * 1000 + number, size)
        infer_shapes(graph)
        changed += _kept(pipeline, graph, numbers)
    return changed


def _kept(pipeline: str, graph: Graph, numbers: str) -> bool:
    before, text, version = graph.clone(), print_graph(graph), graph.version
    try:
        run_pipeline(parse_pipeline(pipeline), graph, instruments=[VerifyEach(types=True), KeepsInterface()])
        done = graph.version != version
        once = print_graph(graph)
        run_pipeline(parse_pipeline(pipeline), graph)
        assert print_graph(graph) == once, f"a second run goes on changing the graph:\n{print_graph(graph)}"
        compare_numbers(before, graph, numbers)
    except (AssertionError, MemoptcError) as e:
        raise AssertionError(f"{pipeline} is wrong for this graph:\n{text}\n{e}") from e
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


__all__ = ["PassTests", "RuleTests", "check_pass", "check_rule"]
