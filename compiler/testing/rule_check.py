"""Check a rule against onnxruntime: on random instances of its pattern, and on the examples in its file.

Needs no pytest: `memoptc rules test` runs it.
"""

from __future__ import annotations

from collections import Counter
from itertools import islice

from memoptc.ir.diagnostics import MemoptcError
from memoptc.ir.equality import same_structure
from memoptc.ir.infer import infer_shapes
from memoptc.ir.parser import parse
from memoptc.ir.printer import print_graph
from memoptc.ir.type_checks import verify_types
from memoptc.ir.verifier import verify
from memoptc.rewrite import Rule, apply_rules
from memoptc.rewrite.language import RuleExample
from memoptc.testing.instances import Instance, instances
from memoptc.testing.numbers import compare, feed_of, run, tame_feeds

DRAWS, FEWEST = 400, 800
"""Draws for each instance that is wanted, most patterns lead somewhere at once; and for all together at least."""


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
    __tracebackhide__ = True
    applied, drawn = 0, 0
    why: Counter[str] = Counter()
    most = max(FEWEST, DRAWS * count)
    for instance in islice(instances(rule, seed), most):
        if instance is None:
            why["no operands fit its pattern"] += 1
            continue
        drawn += 1
        applied += _holds(rule, instance, exact, why, seed + drawn)
        if applied == count:
            return applied
    reasons = "; ".join(f"{n} x {reason}" for reason, n in why.most_common(5))
    raise AssertionError(
        f"rule {rule.name} was applied to {applied} of {count} random graphs ({most} were tried): {reasons}.\n"
        "Draw fewer with `count`, or write cases for it."
    )


def _holds(rule: Rule, instance: Instance, exact: bool, why: Counter[str], seed: int) -> bool:
    """True if the rule was applied; raises `AssertionError` when its result is wrong."""
    __tracebackhide__ = True
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
    except (AssertionError, MemoptcError) as e:  # whose message says all, the place in the author's code as well
        raise AssertionError(f"rule {rule.name} is wrong for this graph:\n{print_graph(before)}\n{e}") from None
    except Exception as e:
        raise AssertionError(f"rule {rule.name} is wrong for this graph:\n{print_graph(before)}\n{e}") from e
    return True


def check_example(example: RuleExample, *, exact: bool = False) -> None:
    """Apply a rule to an example of its file.

    Raises:
        AssertionError: it is applied where it must not be, or not where it must; the graph that comes out is not the
            expected one; or numbers differ.
    """
    __tracebackhide__ = True
    graph = parse(example.before)
    infer_shapes(graph)
    before = graph.clone()
    stats: Counter[str] = Counter()
    declined: Counter[str] = Counter()
    apply_rules(graph, [example.rule], stats, declined)
    text = print_graph(before)
    if bool(stats) == example.declines:
        why = "" if example.declines else f" ({'; '.join(declined) or 'its pattern does not fit'})"
        done = "is applied" if example.declines else "is not applied"
        raise AssertionError(f"rule {example.rule.name} {done} to the example in line {example.line}{why}:\n{text}")
    if example.declines:
        return
    for op in [op for op in graph.walk("const") if not op.result.uses]:
        op.erase()  # what a rule no longer needs is gone with the next `drop-dead`
    try:
        verify(graph, tolerated=())
        verify_types(graph)
        if example.after.strip():
            difference = same_structure(parse(example.after), graph)
            assert difference is None, f"{difference}\n{print_graph(graph)}"
        counted = compare(before, graph, exact=exact, feeds=tame_feeds(before, 3))
        assert counted, "onnxruntime does not run the example with extents of 4 for all symbols"
    except (AssertionError, MemoptcError) as e:
        raise AssertionError(
            f"rule {example.rule.name} is wrong for the example in line {example.line}:\n{text}\n{e}"
        ) from None
