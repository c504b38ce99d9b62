"""Rules as data: the same engine from text, and faults that point at their place."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memoptc import registry
from memoptc.cli.main import main
from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, ModelInfo, Output, Value
from memoptc.ir.diagnostics import InputError, SourceError
from memoptc.ir.dims import Sym
from memoptc.ir.types import DType, TensorType
from memoptc.ir.verifier import verify
from memoptc.rewrite import RulePass, apply_rules, predicate
from memoptc.rewrite.language import load_rules, parse_rules
from memoptc.rewrite.predicates import PREDICATES, compare
from memoptc.testing import check_example, run_pass

IMAGE = TensorType(DType.FLOAT, (1, 2, 4, 4))
CONV_RELU = """
// What the documents show.
rule conv-relu {
  match   %c = Conv(%x, %w, ...) ; %y = Relu(%c)
  where   single_use(%c), attr(%c, group) == 1
  replace %y = com.microsoft::FusedConv(%x, %w, ...) {activation = "Relu", ...%c}
}
"""


def graph_of(build: Any, type_: TensorType = IMAGE) -> Graph:
    graph = Graph("g", ModelInfo())
    x = graph.add_input("x", type_)
    outputs = build(Builder(graph), x)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    graph.set_outputs(outputs, [Output(f"out{i}", v.type) for i, v in enumerate(outputs)])
    return graph


def run(graph: Graph, text: str) -> tuple[Counter[str], Counter[str]]:
    stats: Counter[str] = Counter()
    declined: Counter[str] = Counter()
    apply_rules(graph, parse_rules(text), stats, declined)
    verify(graph)
    return stats, declined


def kinds(graph: Graph) -> list[str]:
    return [o.key for o in graph.ops if not o.is_const]


def convolution(b: Builder, x: Value, *, bias: bool, group: int) -> Value:
    weights = [np.ones((2, 2 // group, 3, 3), np.float32), np.ones(2, np.float32)]
    result: Value = b.Relu(b.Conv(x, *weights[: 1 + bias], group=group, pads=[1, 1, 1, 1]))
    return result


@pytest.mark.parametrize("bias", [False, True])
def test_the_rule_of_the_documents(bias: bool) -> None:
    graph = graph_of(lambda b, x: convolution(b, x, bias=bias, group=1))
    assert run(graph, CONV_RELU)[0] == {"conv-relu": 1}
    (fused,) = [o for o in graph.ops if not o.is_const]
    assert fused.key == "com.microsoft::FusedConv"
    assert dict(fused.attrs) == {"activation": "Relu", "group": 1, "pads": (1, 1, 1, 1)}
    assert len(fused.operands) == 2 + bias
    assert fused.loc.rules == ("conv-relu",)


def test_the_documents_show_a_rule_that_works() -> None:
    document = Path(__file__).parents[2].joinpath("docs/extend.md").read_text("utf-8")
    (text,) = re.findall(r"^```text title=\S+\n(rule .*?)^```", document, re.M | re.S)
    graph = graph_of(lambda b, x: convolution(b, x, bias=False, group=1))
    assert run(graph, text)[0] == {"conv-relu": 1}
    assert kinds(graph) == ["com.microsoft::FusedConv"]


def test_a_condition_that_does_not_hold_is_the_reason() -> None:
    graph = graph_of(lambda b, x: convolution(b, x, bias=False, group=2))
    assert run(graph, CONV_RELU) == ({}, {"conv-relu: not: attr(%c, group) == 1": 1})


def test_several_results_constants_alternatives_and_kept_operators() -> None:
    text = """
    rule all-of-it {
      match   keep %e = Exp(%x); %a = Mul|Div(%e, 2.0); %b = Pad(%e, const %pads, %fill?)
      where   not rank(%x) > 4, dtype(%x) in [f32, f64], elements(%pads) == [0,0,0,0,0,0,0,0], not given(%fill)
      replace %t = Sin(%x); %a = Mul(%t, 0.5) ; %b = Transpose(%t) {perm = [0, 1, 2, 3]}
    }
    """

    def build(b: Builder, x: Value) -> Any:
        e = b.Exp(x)
        return b.Div(e, np.float32(2)), b.Pad(e, np.zeros(8, np.int64)), e

    graph = graph_of(build)
    assert run(graph, text)[0] == {"all-of-it": 1}
    assert sorted(kinds(graph)) == ["Exp", "Mul", "Sin", "Transpose"]


def test_lists_are_int64_and_results_beyond_the_first_count() -> None:
    text = """
    rule second-half {
      match %_first, %second = Split(%x) {axis = 1}; %y = Neg(%second)
      replace %cut = Slice(%x, [1], [2], [1]); %y = Neg(%cut)
    }
    """
    graph = graph_of(lambda b, x: b.Neg(b.Split(x, axis=1, num_outputs=2, _outputs=2)[1]))
    assert run(graph, text)[0] == {"second-half": 1}
    assert kinds(graph) == ["Slice", "Neg"]


def test_floats_compare_as_onnx_keeps_them() -> None:
    text = "rule r { match %y = LeakyRelu(%x) {alpha = 0.1} where attr(%y, alpha) == 0.1 replace %y = Relu(%x) }"
    graph = graph_of(lambda b, x: b.LeakyRelu(x, alpha=float(np.float32(0.1))))
    assert run(graph, text)[0] == {"r": 1}


def test_symbolic_extents_are_no_numbers_and_no_attributes() -> None:
    open_ = TensorType(DType.FLOAT, (Sym("N"), 4))
    for rule in (
        "match %y = Neg(%x) where sqrt(dim(%x, 0)) > 2 replace %y = Abs(%x)",
        "match %y = Neg(%x) where dim(%x, value(%x)) == 1 replace %y = Abs(%x)",
        "match %y = Neg(%x) replace %y = Softmax(%x) {axis = dim(%x, 0)}",
        "match %y = Neg(%x) replace %y = Softmax(%x) {axis = value(%x)}",
    ):
        graph = graph_of(lambda b, x: b.Neg(x), open_)
        assert run(graph, f"rule r {{ {rule} }}")[0] == {}
        assert kinds(graph) == ["Neg"]


def test_what_is_not_known_holds_neither_way() -> None:
    unknown = TensorType(DType.FLOAT, None)
    for condition in ("rank(%x) == 2", "not rank(%x) == 2", "rank(%x) != 2", "not rank(%x) < 2"):
        graph = graph_of(lambda b, x: b.Neg(x), unknown)
        text = f"rule r {{ match %y = Neg(%x) where {condition} replace %y = Abs(%x) }}"
        assert run(graph, text)[1] == {f"r: not: {condition}": 1}
    assert compare((1, None), "==", (2, None)) is False
    assert compare((1, None), "==", (1, None)) is None
    assert compare(None, "in", (1,)) is None


@pytest.mark.parametrize("name", ["b", "self", "captures", "match"])
def test_values_may_be_called_as_the_engine_calls_its_own(name: str) -> None:
    graph = graph_of(lambda b, x: b.Neg(x))
    assert run(graph, f"rule r {{ match %y = Neg(%{name}) replace %y = Abs(%{name}) }}")[0] == {"r": 1}


def test_predicates_of_ones_own() -> None:
    def is_named(value: Value, name: str) -> bool:
        return value.name == name

    predicate(is_named)
    try:
        graph = graph_of(lambda b, x: b.Neg(x))
        assert run(graph, 'rule r { match %y = Neg(%x) where is_named(%x, "x") replace %y = Abs(%x) }')[0] == {"r": 1}
        with pytest.raises(TypeError, match="there is a predicate 'is_named' already"):
            predicate(is_named)
    finally:
        del PREDICATES["is_named"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "rule r { match %y = Relu(%x) replace %z = Neg(%x) }",
            "1:38: nothing that is matched gets replaced\n.*\n.*\nWhat takes the place of %y is called %y here, too.",
        ),
        ("rule r { match %y = Reluu(%x) replace %y = %x }", "1:21: there is no operator 'Reluu'; did you mean Relu?"),
        ("rule r { match %y = Relu(%x) replace %y = Reluu(%x) }", "1:43: there is no operator 'Reluu'"),
        ("rule r { match %y = Relu(%x) replace %y = %z }", "1:43: %z is not defined here"),
        ("rule r { match %y = Relu(%x) replace %y = Neg(%y) }", "1:47: %y is what gets replaced"),
        ("rule r { match %x = Relu(%x) replace %x = %x }", "1:16: %x is defined or used before"),
        (
            "rule r { match %y = Relu(%x); %z = Neg(%x) replace %y = %x }",
            "1:31: %z is not part of what gets replaced",
        ),
        (
            "rule r { match %y = Relu(%x) where singleuse(%y) replace %y = %x }",
            "1:36: there is no predicate singleuse\n.*\n.*\nDid you mean single_use?",
        ),
        (
            "rule r { match %y = Relu(%x) where attr(%x, axis) replace %y = %x }",
            "1:41: %x is not the result of an operator",
        ),
        ("rule r { match %y = Relu(%x) where rank(%x, %x) replace %y = %x }", "1:36: rank takes 1 arguments"),
        ("rule r { match %y = Concat(..., %x) replace %y = %x }", "1:28: only the last operand can be"),
        (
            "rule r { match %a = Sum(%x, ...) ; %y = Concat(%a, ...) replace %y = Concat(%x, ...) }",
            "1:81: ... stands for operands of several operators here\n.*\n.*\nName them, such as ...%more.",
        ),
        ("rule r { match %y = Relu(%x) }", "1:30: '}' cannot stand here"),
        ("rule r { match %y = Relu(%x)", "1:29: the text ends too early"),
        ("rule r { match %y = Neg(%x) replace %y = %x }\nrule r { match %y = Abs(%x) replace %y = %x }", "2:6: "),
        (
            "rule r { match %y = Neg(%x); %z = Abs(%w) replace %y = %x; %z = %w }",
            "1:6: rule r: its pattern Abs shares nothing",
        ),
    ],
)
def test_faults_point_at_the_place(text: str, message: str) -> None:
    with pytest.raises(SourceError) as caught:
        parse_rules(text, "my.rules")
    place, _, rest = message.partition(" ")
    head, *tail = rest.split("\n.*\n.*\n")
    assert str(caught.value).startswith(f"my.rules:{place} {head}".rstrip())
    assert all(t in str(caught.value) for t in tail)


def test_a_file_of_rules_is_a_plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_plugins", {})
    path = tmp_path / "conv_relu.rules"
    path.write_text(CONV_RELU.lstrip())
    registry.load_plugin(str(path))
    found = registry.find("conv-relu")
    assert issubclass(found, RulePass)
    assert registry.help_of(found) == "What the documents show."
    assert str(found()) == "conv-relu"
    graph = graph_of(lambda b, x: convolution(b, x, bias=True, group=1))
    stats = run_pass(found(), graph)
    assert stats == {"conv-relu": 1}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.rules", None, "cannot be read: No such file"),
        ("empty.rules", "// nothing", "holds no rule"),
        ("1.rules", CONV_RELU, "1.rules names no pass"),
        ("binary.rules", b"\xff\xfe", "it is no text"),
    ],
)
def test_files_that_are_no_rules(tmp_path: Path, name: str, content: str | bytes | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        load_rules(path)


COMPUTED = """
rule flat {
  match   %y = Flatten(%x) {axis = 1}
  where   rank(%x) == 3, not dim(%x, 1) * 2 < 4, sqrt(4) + 1 == -(-3), item(shape(%x), -1) == 6 / 2
  replace %y = Reshape(%x, [0, dim(%x, 1) * dim(%x, 2)])
}

rule powers {
  match   %a = Mul(%x, const %s); %l = LeakyRelu(%a)
  replace %l = LeakyRelu(%x) {alpha = attr(%l, alpha) * (value(%s) + 1)}
}

rule ends {
  match   %a = Add(%x, const %c)
  where   length(elements(%c)) == 2
  replace %a = Add(%x, const(item(elements(%c), 1) - item(elements(%c), 0), f32))
}
"""


def test_attributes_lists_and_constants_are_computed() -> None:
    graph = graph_of(lambda b, x: b.Flatten(x), TensorType(DType.FLOAT, (Sym("N"), 2, 3)))
    assert run(graph, COMPUTED)[0] == {"flat": 1}
    assert [op.result.tensor.numpy().tolist() for op in graph.walk("const") if op.result.uses] == [[0, 6]]  # type: ignore[union-attr]
    graph = graph_of(lambda b, x: b.LeakyRelu(b.Mul(x, b.const(2.0, dtype=DType.FLOAT)), alpha=0.5))
    assert run(graph, COMPUTED)[0] == {"powers": 1}
    assert next(graph.walk("LeakyRelu")).attrs["alpha"] == 1.5
    graph = graph_of(lambda b, x: b.Add(x, b.const(np.asarray([1.0, 4.0], np.float32))), TensorType(DType.FLOAT, (2,)))
    run(graph, COMPUTED)
    assert 3.0 in [op.result.tensor.numpy().tolist() for op in graph.walk("const")]  # type: ignore[union-attr]
    unknown = graph_of(lambda b, x: b.Flatten(x), TensorType(DType.FLOAT, (Sym("N"), Sym("M"), 3)))
    assert run(unknown, "rule flat { match %y = Flatten(%x) replace %y = Reshape(%x, [0, dim(%x, 1)]) }")[1]


WRONG = """rule wrong {
  match   %a = Sub(%x, %c); %y = Sub(%a, %d)
  replace %s = Sub(%c, %d); %y = Sub(%x, %s)
}

example wrong {
  graph @g(%x: f32[4], %c: f32[4], %d: f32[4]) -> (f32[4]) {
    %a = Sub(%x, %c) : f32[4]
    %y = Sub(%a, %d) : f32[4]
    return %y
  }
}

example wrong declines {
  graph @g(%x: f32[4], %c: f32[4]) -> (f32[4]) {
    %a = Sub(%x, %c) : f32[4]
    return %a
  }
}
"""


def test_examples_and_instances_catch_a_wrong_rule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "planted.rules"
    file.write_text(WRONG)
    wrong, declined = load_rules(file).examples
    assert (wrong.line, declined.line) == (6, 14)
    check_example(declined)
    with pytest.raises(AssertionError, match="wrong for the example in line 6"):
        check_example(wrong)
    assert main(["rules", "test", str(file)]) == 3
    assert "rule wrong is wrong for the example in line 6" in capsys.readouterr().out
    file.write_text(WRONG.split("example")[0])  # without examples, random graphs show it
    assert main(["rules", "test", str(file), "--instances", "20"]) == 3
    assert "is wrong for this graph" in capsys.readouterr().out
    file.write_text(WRONG.replace("wrong declines", "wrong").replace("%s = Sub(%c", "%s = Add(%c"))
    assert main(["rules", "test", str(file), "--instances", "20"]) == 3
    assert "is not applied to the example in line 14" in capsys.readouterr().out
    file.write_text(WRONG.replace("%s = Sub(%c", "%s = Add(%c"))
    assert main(["rules", "test", str(file), "--instances", "20"]) == 0
    assert "2 examples, 20 random graphs, same numbers" in capsys.readouterr().out
    file.write_text("// A rule.\n" + WRONG.replace("example wrong {", "example right {"))
    with pytest.raises(SourceError, match=r"planted\.rules:7:9: there is no rule right in this file"):
        load_rules(file)


def test_remaining_operands_of_two_operators_need_not_be_the_same() -> None:
    rules = parse_rules("rule r { match %a = Conv(%x, ...) ; %y = Clip(%a, ...) replace %y = Relu(%x) }", "my.rules")

    def build(b: Builder, x: Value) -> Value:
        w = b.const(np.ones((2, 2, 1, 1), np.float32))
        return b.Clip(b.Conv(x, w), b.const(0.0, dtype=DType.FLOAT))

    stats: Counter[str] = Counter()
    apply_rules(graph_of(build), rules, stats)
    assert stats == {"r": 1}
