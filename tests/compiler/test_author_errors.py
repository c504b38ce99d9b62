"""What an author of passes and rules is told: why a rule does not fit, and which line of theirs raised."""

from __future__ import annotations

import textwrap
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner

from memoptc import registry
from memoptc.cli.main import cli
from memoptc.instruments import VerifyEach
from memoptc.ir.builder import Builder
from memoptc.ir.core import Op, Value
from memoptc.ir.parser import parse
from memoptc.manager import PassFailed, run_pipeline
from memoptc.pass_base import Pass
from memoptc.pipeline import parse as parse_pipeline
from memoptc.rewrite import NoMatch, const, op, opt, rewrite
from memoptc.rewrite.driver import RuleFailed, apply_rules
from memoptc.rewrite.rule import Rule
from memoptc.rewrite.trace import Trace

GRAPH = """
model {ir_version=10, opset={""=18}}
graph @g(%x: f32[1,2,4,4], %v: f32[2]) -> (f32[1,2,4,4], f32[1,2,4,4], f32[1,2,4,4]) {
  %w = const() {value=[1.0,2.0]} : f32[2]
  %k = const() {value=[1.0,1.0,1.0,1.0]} : f32[2,2,1,1]
  %c = Conv(%x, %k, %v) {group=1} : f32[1,2,4,4]
  %r = Relu(%c) : f32[1,2,4,4]
  %s = Sigmoid(%x) : f32[1,2,4,4]
  %t = Relu(%s) : f32[1,2,4,4]
  %u = Relu(%x) : f32[1,2,4,4]
  return %r, %t, %u
}
"""


@rewrite(op.Relu(op.Conv("x", "w")))
def no_bias(b: Builder, x: Value, w: Value) -> Value:
    return b.Relu(x)


@rewrite(op.Relu(op.Conv("x", "w", const("v"))))
def constant_bias(b: Builder, x: Value, w: Value, v: Value) -> Value:
    return b.Relu(x)


@rewrite(op.Relu(op.Conv("x", "w", opt("v"), attrs={"group": 2})))
def grouped(b: Builder, x: Value, w: Value, v: Value | None) -> Value:
    return b.Relu(x)


@rewrite(op.Relu(op.Conv("x", "w", opt("v"))))
def unwilling(b: Builder, x: Value, w: Value, v: Value | None) -> Value:
    raise NoMatch("not today")


@rewrite(op.Relu(op.Conv("x", "w", opt("v"), bind="conv")))
def broken(b: Builder, x: Value, w: Value, v: Value | None, conv: Op) -> Value:
    return b.Relu(x, axis=conv.attrs["axis"])


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        (no_bias, "Conv %c has 1 more operands than the pattern; write `rest(...)` for them"),
        (constant_bias, "operand 2 of Conv %c, %v, is no constant"),
        (grouped, "attribute group of Conv %c is 1, not 2"),
        (unwilling, "declined: not today"),
    ],
    ids=lambda r: r.name if isinstance(r, Rule) else "",
)
def test_each_candidate_says_why_the_rule_does_not_fit(rule: Rule, why: str) -> None:
    trace = Trace()
    apply_rules(parse(GRAPH), [rule], Counter(), trace=trace)
    assert [str(m) for m in trace.mismatches()] == [
        f"{rule.name} at Relu %r: {why}",
        f"{rule.name} at Relu %t: operand 0 of Relu %t comes from Sigmoid %s, not from Conv",
        f"{rule.name} at Relu %u: operand 0 of Relu %u is the input %x, not Conv",
    ]


def test_exceptions_of_a_rule_name_it_the_node_and_the_line() -> None:
    with pytest.raises(RuleFailed) as caught:
        apply_rules(parse(GRAPH), [broken], Counter())
    first, second, third = str(caught.value).split("\n")
    assert first == "rule broken at Relu %r failed: KeyError: 'axis'"
    assert second.strip() == f"{__file__}:{broken.replace.__code__.co_firstlineno + 2}, in broken"
    assert third.strip() == 'return b.Relu(x, axis=conv.attrs["axis"])'


PLUGIN = '''
"""break-it: as its option says."""
from memoptc import Pass
from memoptc.ir.builder import Builder
from memoptc.ir.types import DType, TensorType


def helper(op):
    return op.attrs["missing"]


class BreakIt(Pass):
    how: str = ""

    def run(self, graph, context):
        op = next(iter(graph.walk("Sigmoid")))
        b = Builder(graph, before=op)
        if self.how == "key":
            helper(op)
        elif self.how == "assign":
            op.attrs["alpha"] = 1
        elif self.how == "name":
            op.result.replace_by(b.Sigmod(op.operand))
        elif self.how == "unknown":
            op.result.replace_by(b.op("Sigmod", [op.operand]).result)
        elif self.how == "arity":
            op.result.replace_by(b.Sigmoid(op.operand, op.operand))
        elif self.how == "attribute":
            op.set_attr("slope", 1.0)
        elif self.how == "shape":
            op.result.type = TensorType(DType.FLOAT, (7,))
        elif self.how == "dtype":
            text = b.Cast(op.operand, to=int(DType.BOOL))
            op.set_operand(0, text)
'''


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("key", "break_it.py:8, in helper\n    return op.attrs[\"missing\"]"),
        ("assign", "op.attrs cannot be changed: use op.set_attr(name, value)"),
        ("name", "AttributeError: there is no operator 'Sigmod'; did you mean Sigmoid?"),
        ("unknown", "there is no operator 'Sigmod'; did you mean Sigmoid?"),
        ("arity", "2 operands where 1 are allowed"),
        ("attribute", "attribute slope is not known"),
        ("shape", "Sigmoid of %s: %s is f32[7], but f32[1,2,4,4] comes out"),
        ("dtype", "Sigmoid of %s: operand 0 may not be bool"),
    ],
)  # fmt: skip
def test_a_pass_that_breaks_something_hears_what(how: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "break_it.py").write_text(textwrap.dedent(PLUGIN).lstrip())
    registry.load_plugin(str(tmp_path / "break_it.py"))
    with pytest.raises(PassFailed) as caught:
        run_pipeline(parse_pipeline(f'break-it{{how="{how}"}}'), parse(GRAPH), instruments=[VerifyEach(types=True)])
    assert message in str(caught.value)


def test_trace_of_a_rule_that_does_not_run_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "g.mir").write_text(GRAPH)
    runner = CliRunner()
    done = runner.invoke(cli, ["opt", str(tmp_path / "g.mir"), "--passes", "simplify", "--trace", "batch-norm"])
    assert "No rule 'batch-norm' ran." in str(done.exception)
    done = runner.invoke(cli, ["opt", str(tmp_path / "g.mir"), "--passes", "simplify", "--trace", "idempotent"])
    assert "idempotent at Relu %t: declined: not the same twice" in done.stderr


def test_a_pass_with_another_signature_is_refused_where_it_is_defined() -> None:
    with pytest.raises(TypeError, match=r"Old\.run takes .*stats.*; a pass defines run\(self, graph, context\)"):

        class Old(Pass):
            def run(self, graph, stats):  # type: ignore[no-untyped-def, override]
                stats["done"] += 1
