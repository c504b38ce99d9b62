"""The verifier finds every way to break a graph, and says where."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
from graphs import random_graph

from memoptc.ir.core import EmptyList, Function, Graph, ModelInfo, Op, Output
from memoptc.ir.equality import same_structure
from memoptc.ir.parser import parse
from memoptc.ir.tensors import from_array
from memoptc.ir.types import DType, TensorType
from memoptc.ir.verifier import VerifyError, verify

F32 = TensorType(DType.FLOAT, (2,))

GOOD = """
model {ir_version=10, opset={""=21}}
graph @good(%x: f32[2], %c: bool[]) -> (f32[2]) {
  %w = const() {value=[1.0,2.0]} : f32[2]
  %a = Relu(%x) : f32[2]
  %b = Add(%a, %w) : f32[2]
  %y = If(%c) : f32[2]
    region then_branch() {
      %t = Mul(%b, %a) : f32[2]
      return %t
    }
    region else_branch() {
      return %b
    }
  return %y
}
"""


def good() -> tuple[Graph, dict[str, Op]]:
    graph = parse(GOOD)
    return graph, {r.name: op for op in graph.walk() for r in op.results}


def faults(graph: Graph) -> list[str]:
    with pytest.raises(VerifyError) as caught:
        verify(graph)
    return [f.what for f in caught.value.faults]


def test_a_good_graph_has_no_faults() -> None:
    assert verify(good()[0]) == []


def use_later(g: Graph, ops: dict[str, Op]) -> str:
    ops["a"].move_after(ops["b"])
    return "operand 0 of Add of %b, %a, is defined only later"


def use_inner(g: Graph, ops: dict[str, Op]) -> str:
    g.terminator.set_operand(0, ops["t"].result)
    return "operand 0 of return, %t, belongs to graph '', which does not enclose this use"


def use_other_graph(g: Graph, ops: dict[str, Op]) -> str:
    ops["b"].set_operand(1, Graph("other", ModelInfo()).add_input("z", F32))
    return "operand 1 of Add of %b, %z, belongs to graph 'other', which does not enclose this use"


def use_of_erased(g: Graph, ops: dict[str, Op]) -> str:
    op = Op("Relu", [ops["a"].result], [F32], result_names=["gone"])
    ops["b"].set_operand(0, op.result)
    return "operand 0 of Add of %b, %gone, is a result of Relu, which is in no graph"


def use_by_loose_op(g: Graph, ops: dict[str, Op]) -> str:
    Op("Relu", [ops["a"].result], [F32], result_names=["loose"])
    return "%a is used by Relu of %loose, which is in no graph of this model"


def forget_use(g: Graph, ops: dict[str, Op]) -> str:
    ops["a"].result._uses.pop((ops["b"], 0))
    return "%a does not know that Add of %b uses it as operand 0"


def invent_use(g: Graph, ops: dict[str, Op]) -> str:
    ops["a"].result._uses[ops["b"], 1] = None
    return "%a claims to be operand 1 of Add of %b, which is not so"


def break_link(g: Graph, ops: dict[str, Op]) -> str:
    link = ops["b"]._link
    assert link is not None
    link.prev = link
    return "the op list of graph 'good' is broken"


def wrong_owner(g: Graph, ops: dict[str, Op]) -> str:
    ops["a"].graph = Graph("elsewhere")
    return "Relu of %a does not know its place in graph 'good'"


def wrong_count(g: Graph, ops: dict[str, Op]) -> str:
    g._ops._count += 1
    return "graph 'good' counts 5 ops but links 4"


def wrong_parent(g: Graph, ops: dict[str, Op]) -> str:
    ops["y"].regions["then_branch"].parent = ops["a"]
    return "region then_branch of If of %y does not belong to it"


def wrong_index(g: Graph, ops: dict[str, Op]) -> str:
    ops["a"].result.index = 1
    return "result 0 of Relu of %a does not know its place"


def wrong_input(g: Graph, ops: dict[str, Op]) -> str:
    g.inputs[1].index = 0
    return "input 1 (%c) of graph 'good' does not know its place"


def outputs_undescribed(g: Graph, ops: dict[str, Op]) -> str:
    g.outputs_info.append(Output("more"))
    return "graph 'good' returns 1 values but describes 2"


def const_type(g: Graph, ops: dict[str, Op]) -> str:
    ops["w"].set_attr("value", from_array(np.zeros(3, np.float32)))
    return "const %w holds f32[3] but its type is f32[2]"


def const_without_value(g: Graph, ops: dict[str, Op]) -> str:
    ops["w"].set_attr("value", None)
    return "const %w holds no tensor"


def omitted_but_used(g: Graph, ops: dict[str, Op]) -> str:
    ops["a"].result.omitted = True
    return "result 0 of Relu of %a is omitted but used"


def returned_absent(g: Graph, ops: dict[str, Op]) -> str:
    g.set_outputs([g.absent()])
    return "graph 'good' returns an absent value"


def inner_return(g: Graph, ops: dict[str, Op]) -> str:
    g.append(Op("return", [], []))
    return "graph 'good' holds a return among its ops"


def attribute_list(g: Graph, ops: dict[str, Op]) -> str:
    dict.__setitem__(ops["a"]._attrs, "axes", [1, 2])
    return "attribute axes of Relu of %a is a list, which no attribute can be"


def attribute_empty(g: Graph, ops: dict[str, Op]) -> str:
    ops["a"].set_attr("axes", ())
    return "attribute axes of Relu of %a is an empty tuple (it must say of what: EmptyList), which no attribute can be"


def foreign_default(g: Graph, ops: dict[str, Op]) -> str:
    g.defaults[ops["a"].result] = from_array(np.zeros(2, np.float32))
    return "graph 'good' has a default for %a, which is not an input of it"


def negative_extent(g: Graph, ops: dict[str, Op]) -> str:
    ops["a"].result.type = TensorType(DType.FLOAT, (-1,))
    return "%a has a negative extent: f32[-1]"


BREAKS: list[Callable[[Graph, dict[str, Op]], str]] = [
    use_later, use_inner, use_other_graph, use_of_erased, use_by_loose_op, forget_use, invent_use, break_link,
    wrong_owner, wrong_count, wrong_parent, wrong_index, wrong_input, outputs_undescribed, const_type,
    const_without_value, omitted_but_used, returned_absent, inner_return, attribute_list, attribute_empty,
    foreign_default, negative_extent,
]  # fmt: skip


@pytest.mark.parametrize("break_it", BREAKS, ids=lambda f: f.__name__)
def test_every_break_is_found(break_it: Callable[[Graph, dict[str, Op]], str]) -> None:
    graph, ops = good()
    expected = break_it(graph, ops)
    assert expected in faults(graph)


def test_all_faults_are_told_at_once_with_ops_around() -> None:
    graph, ops = good()
    use_later(graph, ops)
    const_type(graph, ops)
    with pytest.raises(VerifyError) as caught:
        verify(graph)
    assert len(caught.value.faults) == 2
    text = str(caught.value)
    assert text.startswith("The graph is not well-formed: 2 faults.\n- ")
    assert "    > %b = Add(%a, %w) : f32[2]\n      %a = Relu(%x) : f32[2]\n" in text


def test_functions_are_checked_on_their_own() -> None:
    graph, ops = good()
    body = Graph("F")
    op = body.append(Op("Relu", [body.add_input("p")], [None], result_names=["q"]))
    body.set_outputs([op.result])
    graph.info.functions["my.ops", "F", ""] = Function("my.ops", "F", "", body, opset_imports={"": 21})
    assert verify(graph) == []
    op.set_operand(0, ops["a"].result)
    assert faults(graph) == ["operand 0 of Relu of %q, %a, belongs to graph 'good', which does not enclose this use"]


# -- ONNX's own rules ---------------------------------------------------------------------------------


def test_a_model_may_come_with_breaches_but_a_pass_may_add_none() -> None:
    graph, ops = good()
    ops["a"].set_attr("slope", 1)
    found = verify(graph)
    assert [w.what for w in found] == ["Relu of %a: attribute slope is not known"]
    rules = {w.rule for w in found}
    assert verify(graph, tolerated=rules) == found
    ops["b"].set_attr("slope", 1)
    with pytest.raises(VerifyError, match="Add of %b: attribute slope is not known"):
        verify(graph, tolerated=rules)


def test_values_of_one_name_are_worth_a_warning() -> None:
    graph, ops = good()
    ops["b"].result.name = "a"
    assert [w.rule for w in verify(graph)] == ["Add: two values of one graph have the same name"]


def test_defaults_of_another_type_are_worth_a_warning() -> None:
    graph, _ = good()
    graph.defaults[graph.inputs[0]] = from_array(np.zeros(3, np.float32))
    assert [w.rule for w in verify(graph)] == ["an input's default has another type than the input"]


def test_operators_without_a_schema_are_left_alone() -> None:
    graph, ops = good()
    graph.info.opset_imports["my.ops"] = 1
    absent = graph.absent()
    op = Op("Thing", [absent, ops["a"].result, absent], [None] * 3, {"x": EmptyList("INTS")}, domain="my.ops")
    graph.append(op)
    assert verify(graph) == []


def test_optional_operands_may_be_absent() -> None:
    graph, ops = good()
    clip = graph.append(Op("Clip", [ops["a"].result, graph.absent(), graph.absent()], [F32], result_names=["k"]))
    assert verify(graph) == []
    clip.set_operands([graph.absent()])
    assert [w.what for w in verify(graph)] == ["Clip of %k: operand 0 may not be absent"]


def test_random_graphs_are_good_and_their_clones_equal() -> None:
    for seed in range(40):
        graph = random_graph(seed, 15)
        copy = graph.clone()
        assert verify(copy) == []
        assert same_structure(graph, copy, names=True, locations=True, notes=True) is None


def test_fifty_thousand_ops_take_less_than_two_seconds() -> None:
    graph = Graph("g", ModelInfo())
    value = graph.add_input("x", F32)
    for index in range(25_000):
        weight = graph.append(Op("const", (), [F32], {"value": from_array(np.zeros(2, np.float32))}))
        value = graph.append(Op("Add", [value, weight.result], [F32], result_names=[f"v{index}"])).result
    graph.set_outputs([value])
    begin = time.process_time()
    assert verify(graph) == []
    assert time.process_time() - begin < 2


# -- structural equality ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        ("Relu(%x)", "Abs(%x)", "op 1 (Relu %a): operator"),
        ("Add(%a, %w)", "Add(%w, %a)", "op 2 (Add %b): operand 0"),
        ("[1.0,2.0]", "[1.0,2.5]", "op 0 (const %w): attribute value"),
        ("%b = Add(%a, %w) : f32[2]", "%b = Add(%a, %w) : f32[N]", "op 2 (Add %b): result 0: type"),
        ("Relu(%x)", "Relu(%x) {a=1}", "op 1 (Relu %a): attributes"),
        ("Mul(%b, %a)", "Mul(%b, %b)", "op 3 (If %y): region then_branch: op 0 (Mul %t): operand 1"),
        ("return %t", "return %b", "op 3 (If %y): region then_branch: output 0"),
        ("  return %y", "  %z = Relu(%y)\n  return %y", "op 4"),
        ("%x", "%x2", "input 0 (%x): name"),
        ("-> (f32[2])", "-> (out: f32[2])", "output 0 (y): name"),
        ("=21", "=20", "model: opset imports"),
    ],
)
def test_the_first_difference_is_told(old: str, new: str, where: str) -> None:
    found = same_structure(parse(GOOD), parse(GOOD.replace(old, new)))
    assert found is not None
    assert found.where == where


def test_names_locations_and_notes_count_only_on_request() -> None:
    other = GOOD.replace("%a", "%q").replace("%q = Relu(%x) : f32[2]", '%q = Relu(%x) : f32[2] loc("n") doc("d")')
    a, b = parse(GOOD), parse(other)
    assert same_structure(a, b) is None
    assert str(same_structure(a, b, names=True)) == "op 1 (Relu %a): result 0: name: 'a' against 'q'"
    assert str(same_structure(a, b, locations=True)) == "op 1 (Relu %a): source nodes: () against ('n',)"
    assert str(same_structure(a, b, notes=True)) == "op 1 (Relu %a): documentation: '' against 'd'"


def test_floats_are_compared_as_onnx_holds_them() -> None:
    def graph(alpha: float) -> Graph:
        made, ops = good()
        ops["a"].set_attr("alpha", alpha)
        return made

    assert same_structure(graph(0.1), graph(float(np.float32(0.1)))) is None
    assert same_structure(graph(0.0), graph(-0.0)) is not None
    assert same_structure(graph(float("nan")), graph(float("nan"))) is None
