"""memoptc.testing finds what is wrong: rules that change numbers, and expectations that do not hold or say nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from memoptc import registry
from memoptc.ir.builder import Builder
from memoptc.ir.core import Op, Value
from memoptc.ir.diagnostics import InputError, SourceError
from memoptc.ir.parser import parse
from memoptc.rewrite import op, opt, rewrite
from memoptc.testing import RuleTests, check_pass, check_rule, compare_numbers, read_case
from memoptc.testing.checks import read_checks, run_checks

GRAPH = """\
graph @g(%x: f32[2]) -> (f32[2]) {
  %a = Relu(%x) : f32[2]
  %b = Add(%a, %x) : f32[2]
  %c = Relu(%b) : f32[2]
  return %c
}
"""
NOT_DRAWN = ("transpose-of-merged-axes",)
"""Rules of ours whose conditions random instances seldom meet: cases and the fuzzer hold them."""


@rewrite(op.Relu(op.Conv("x", "w", opt("bias"), bind="conv")))
def conv_relu(b: Builder, x: Value, w: Value, bias: Value | None, conv: Op) -> Value:
    return b.FusedConv(x, w, bias, activation="Relu", **conv.attrs)


@rewrite(op.Relu(op.Neg("x")))
def wrong_sign(b: Builder, x: Value) -> Value:
    return b.Relu(x)


@rewrite(op.Transpose(op.Transpose("x", bind="inner"), bind="outer"))
def wrong_order(b: Builder, x: Value, inner: Op, outer: Op) -> Value:
    first, second = inner.attrs.get("perm"), outer.attrs.get("perm")
    return b.Transpose(x, perm=None if first is None or second is None else [second[i] for i in first])


@rewrite(op.Sub("x", "y"))
def wrong_exchange(b: Builder, x: Value, y: Value) -> Value:
    return b.Sub(y, x)


@rewrite(op.Sigmoid("x"))
def wrong_to_nothing(b: Builder, x: Value) -> Value:
    return b.Div(b.Sub(x, x), b.Sub(x, x))


@rewrite(op.Softmax("x", attrs={"axis": 77}))
def never(b: Builder, x: Value) -> Value:
    return x


def test_a_right_rule_passes() -> None:
    assert check_rule(conv_relu, 40) == 40


@pytest.mark.parametrize("rule", [wrong_sign, wrong_order, wrong_exchange, wrong_to_nothing], ids=lambda r: r.name)
def test_a_planted_wrong_rule_is_caught(rule: object) -> None:
    with pytest.raises(AssertionError, match=rf"rule {rule.name} is wrong for this graph:\n(.*\n)+"):  # type: ignore[attr-defined]
        check_rule(rule, 40)  # type: ignore[arg-type]


def test_a_rule_that_is_never_applied_is_no_success() -> None:
    with pytest.raises(AssertionError, match=r"never was applied to 0 of 2 random graphs \(800 were tried\): 800 x "):
        check_rule(never, 2)


class TestOurRules(RuleTests):
    rules = tuple(
        rule
        for name in ("simplify", "fuse-conv-bn")
        for rule in registry.find(name).rules  # type: ignore[attr-defined]
        if rule.name not in NOT_DRAWN
    )
    count = 1


@pytest.mark.nightly
class TestOurRulesAtLength(TestOurRules):
    count = 200


def test_a_pass_that_is_wrong_on_some_graph_is_caught(tmp_path: Path) -> None:
    plugin = tmp_path / "drop_relu.py"
    plugin.write_text(
        "from memoptc import Pass\n\n\nclass DropRelu(Pass):\n    def run(self, graph, context):\n"
        "        for op in graph.walk('Relu'):\n            op.result.replace_by(op.operand)\n            op.erase()\n"
    )
    registry.load_plugin(str(plugin))
    with pytest.raises(AssertionError, match="drop-relu is wrong for this graph"):
        check_pass("drop-relu", 20)
    assert check_pass("simplify", 5) > 0


@pytest.mark.parametrize(
    "lines",
    [
        "CHECK: Relu(%x)\nCHECK: Add\nCHECK-NEXT: Relu",
        "CHECK-COUNT-2: Relu\nCHECK-NOT: Relu",
        "CHECK-TOTAL-1: Add(\nCHECK-TOTAL-0: Conv",
        r"CHECK: %[[a:\w+]] = Relu" + "\nCHECK: Add(%[[a]], %x)\nCHECK: Relu({{%.}})",
        "CHECK-NOT: Conv\nCHECK: return",
    ],
)
def test_checks_that_hold(lines: str) -> None:
    run_checks(read_checks("\n".join(f"// {line}" for line in lines.split("\n"))), GRAPH)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("CHECK: Conv", "line 1: CHECK: Conv\nno line has it"),
        ("CHECK: Add\nCHECK-NEXT: Add", "line 2: CHECK-NEXT: Add\nthe next line has it not"),
        ("CHECK-COUNT-3: Relu", "line 1: CHECK-COUNT-3: Relu\nno line has it, 2 of 3 found"),
        ("CHECK: Relu(%x)\nCHECK-NOT: Add\nCHECK: Relu", "line 2: CHECK-NOT: Add\nthis line has it: %b = Add"),
        ("CHECK-TOTAL-1: Relu", "line 1: CHECK-TOTAL-1: Relu\n2 lines have it"),
        (r"CHECK: %[[a:\w+]] = Add" + "\nCHECK: Relu(%[[b]])", "line 2: no check before it keeps [[b]]"),
    ],
)
def test_checks_that_do_not_hold(lines: str, message: str) -> None:
    with pytest.raises(AssertionError) as caught:
        run_checks(read_checks("\n".join(f"// {line}" for line in lines.split("\n"))), GRAPH)
    assert message in str(caught.value)


def test_a_line_that_looks_like_a_check_is_one_or_an_error() -> None:
    with pytest.raises(SourceError, match=r"case\.mir:2:1: this is no check"):
        read_checks("// CHECK: a\n// CHECK-NXT: b", "case.mir")


def test_a_count_of_none_is_no_check() -> None:
    with pytest.raises(SourceError, match=r"case\.mir:1:1: this holds for every graph"):
        read_checks("// CHECK-COUNT-0: a", "case.mir")


def test_another_shape_of_the_same_numbers_is_not_close() -> None:
    flat, rows = (parse(f"graph @g(%x: f32[6]) -> (f32[*]) {{\n{body}}}\n") for body in (
        "  %y = Relu(%x)\n  return %y\n",
        "  %s = const() {value=[2,3]} : i64[2]\n  %a = Relu(%x)\n  %y = Reshape(%a, %s)\n  return %y\n",
    ))  # fmt: skip
    for numbers in ("close", "sqnr 20"):
        with pytest.raises(AssertionError):
            compare_numbers(flat, rows, numbers)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("graph", "names no pipeline"),
        ("// pipeline: simplify\n" + GRAPH, "expects nothing"),
        ("// pipeline: simplify\n// number: exact\n" + GRAPH, "Did you mean numbers?"),
        ("// pipeline: simplify\n// numbers: nearly\n" + GRAPH, "no way to compare numbers"),
        ("// pipelin: simplify\n" + GRAPH, "Did you mean pipeline?"),
        ("// pipeline: simplify\n// dims: N 64\n" + GRAPH, "'N 64' names no extents"),
        ("// pipeline: simplify\n// dims: N=2\n// dims: M=3\n" + GRAPH, "says dims twice"),
    ],
)
def test_a_case_that_says_too_little(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "case.mir"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        read_case(file)
    assert message in str(caught.value)
