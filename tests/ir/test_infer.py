"""Shape inference: what the engine finds, what it must not assume, and that names are stable."""

from __future__ import annotations

import onnx
import onnxruntime
import pytest

from memoptc.ir.core import Graph, Value
from memoptc.ir.infer import infer_shapes
from memoptc.ir.onnx_io import read_onnx, to_proto
from memoptc.ir.parser import parse
from memoptc.ir.spelling import type_text


def named(graph: Graph, name: str) -> Value:
    return next(r for op in graph.walk() for r in op.results if r.name == name)


def types(text: str, *names: str) -> list[str]:
    graph = parse(text)
    infer_shapes(graph)
    return [type_text(named(graph, n).type) for n in names]


def test_symbols_reach_every_value_with_arithmetic() -> None:
    text = """graph @g(%x: f32[N,4], %y: f32[M,4]) -> (f32[*]) {
      %c = Concat(%x, %y) {axis=0}
      %t = Transpose(%c) {perm=[1,0]}
      return %t
    }"""
    assert types(text, "c", "t") == ["f32[M+N,4]", "f32[4,M+N]"]


def test_a_wrong_statement_gives_way() -> None:
    text = """graph @g(%x: f32[2,3]) -> (f32[*]) {
      %y = Relu(%x) : f32[9,9]
      %z = Relu(%y) : f32[2,3]
      return %z
    }"""
    graph = parse(text)
    found = infer_shapes(graph)
    assert type_text(named(graph, "y").type) == "f32[2,3]"
    assert len(found.conflicts) == 1
    assert found.conflicts[0].startswith("y: stated")


def test_an_if_has_what_both_branches_agree_on() -> None:
    text = """graph @g(%c: bool[], %x: f32[2,3], %z: f32[2,5], %u: f32[*]) -> (f32[*], f32[*]) {
      %r, %s = If(%c)
        region then_branch() -> (?, ?) {
          %a = Relu(%x)
          %b = Relu(%x)
          return %a, %b
        }
        region else_branch() -> (?, ?) {
          %d = Relu(%z)
          %e = Relu(%u)
          return %d, %e
        }
      return %r, %s
    }"""
    assert types(text, "r", "s") == ["f32[2,r_d1]", "f32[*]"]


GROWING = """graph @g(%n: i64[], %c: bool[], %x: f32[0], %a: f32[3,N]) -> (f32[*], f32[*], f32[*]) {
  %r, %s, %all = Loop(%n, %c, %x, %a)
    region body(%i: i64[], %k: bool[], %state, %same) -> (bool[], ?, ?, ?) {
      %one = Constant() {value_floats=[1.0]}
      %grown = Concat(%state, %one) {axis=0}
      %kept = Relu(%same)
      return %k, %grown, %kept, %kept
    }
  return %r, %s, %all
}"""


def test_the_state_of_a_loop_may_grow() -> None:
    graph = parse(GROWING)
    infer_shapes(graph)
    grown, kept = named(graph, "grown"), named(graph, "kept")
    assert type_text(kept.type) == "f32[3,N]"
    assert type_text(named(graph, "s").type) == "f32[3,N]"
    assert type_text(grown.type) not in ("f32[0]", "f32[1]")
    assert type_text(named(graph, "r").type) not in ("f32[0]", "f32[1]")


def test_a_loop_that_may_stop_early_has_no_known_number_of_rounds() -> None:
    known = "%n = const() {value=3} : i64[]\n  %c = const() {value=1} : bool[]\n  %r, %s"
    text = GROWING.replace("%n: i64[], %c: bool[], ", "").replace("%r, %s", known, 1)
    graph = parse(text.replace("return %k", "%less = Less(%i, %n)\n      return %less"))
    infer_shapes(graph)
    assert type_text(named(graph, "all").type) == "f32[all_d0,3,N]"


def test_what_a_loop_collects_has_no_known_rank_where_it_may_run_no_round() -> None:
    graph = parse(GROWING)
    infer_shapes(graph)
    assert type_text(named(graph, "all").type) == "f32[*]"


def test_names_of_unknown_extents_are_those_of_their_values_in_every_run() -> None:
    graph = parse("""graph @g(%x: f32[N]) -> (f32[*]) {
      %i = NonZero(%x)
      %y = Cast(%i) {to=1}
      return %y
    }""")
    infer_shapes(graph)
    first = type_text(named(graph, "y").type)
    infer_shapes(graph)
    assert type_text(named(graph, "y").type) == first == "f32[1,i_d1]"


def test_elements_of_shape_vectors_are_known() -> None:
    graph = parse("""graph @g(%x: f32[N,3,8]) -> (i64[*]) {
      %s = Shape(%x)
      return %s
    }""")
    found = infer_shapes(graph)
    assert [str(e) for e in found.elements[named(graph, "s")]] == ["N", "3", "8"]


@pytest.mark.parametrize(("spelling", "reported"), [("", None), ("?", "?"), ("batch", "batch")])
def test_an_axis_without_a_name_lends_none_to_outputs(spelling: str, reported: str | None) -> None:
    """What is said of inner values shows in the outputs that onnxruntime reports."""
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
    g (float[N,4] x) => (float[M,K] y) <float[A,B] r> { r = Relu(x)  y = Neg(r) }""")
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()
    for value in (proto.graph.input[0], proto.graph.value_info[0]):
        first, second = value.type.tensor_type.shape.dim
        first.dim_param, second.dim_value = spelling, 4
    if not spelling:
        proto.graph.input[0].type.tensor_type.shape.dim[0].Clear()
    graph = read_onnx(proto)
    infer_shapes(graph)
    written = to_proto(graph)
    session = onnxruntime.InferenceSession(written.SerializeToString(), providers=["CPUExecutionProvider"])
    assert session.get_outputs()[0].shape == [reported, 4]
    assert written.graph.value_info[0].type.tensor_type.shape.dim[0].dim_param == spelling.strip("?")


@pytest.mark.parametrize("op", ["made.up::Thing(%x)", "Relu(%x, %x, %x)", "Reshape(%x)"])
def test_nothing_stops_inference(op: str) -> None:
    domain = ',"made.up"=1' if "made" in op else ""
    graph = parse(f"""model {{ir_version=10, opset={{""=21{domain}}}}}
    graph @g(%x: f32[2]) -> (f32[*]) {{
      %y = {op}
      %z = Relu(%x)
      return %z
    }}""")
    infer_shapes(graph)
    assert type_text(named(graph, "z").type) == "f32[2]"


def test_broadcasting_promises_nothing_where_either_extent_may_be_one() -> None:
    text = """graph @g(%x: f32[N,4], %y: f32[M,1], %z: f32[N,1], %u: f32[3,M]) -> (f32[*], f32[*], f32[*]) {
      %a = Add(%x, %y)
      %b = Mul(%x, %z)
      %c = Sub(%y, %u)
      return %a, %b, %c
    }"""
    a, b, c = types(text, "a", "b", "c")
    assert b == "f32[N,4]"
    assert c == "f32[3,M]"
    assert a not in ("f32[N,4]", "f32[M,4]")


@pytest.mark.parametrize(("rows", "expected"), [(6, "f32[N,4]"), (1, None)])
def test_rows_of_a_table_for_each_position_broadcast_to_the_positions(rows: int, expected: str | None) -> None:
    # min(N, 6) is N, or does not broadcast with it; min(N, 1) is 1 or 0.
    table = ",".join(["0.5"] * (4 * rows))
    text = f"""graph @g(%x: f32[N,4]) -> (f32[*]) {{
      %table = const() {{value=[{table}]}} : f32[{rows},4]
      %zero = const() {{value=[0]}} : i64[1]
      %n = Shape(%x) {{start=0, end=1}}
      %part = Slice(%table, %zero, %n, %zero)
      %y = Add(%x, %part)
      return %y
    }}"""
    (found,) = types(text, "y")
    assert found == expected if expected else found != "f32[N,4]"


def test_a_constant_of_a_computed_shape_has_its_symbols() -> None:
    text = """graph @g(%x: f32[N,4]) -> (f32[*]) {
      %s = Shape(%x)
      %z = ConstantOfShape(%s)
      return %z
    }"""
    assert types(text, "z") == ["f32[N,4]"]


def test_a_cut_of_a_symbol_may_be_shorter_than_asked() -> None:
    text = """graph @g(%x: f32[N,9], %i: i64[1]) -> (f32[*], f32[*], f32[*], f32[*]) {
      %s = const() {value=[2]} : i64[1]
      %z = const() {value=[0]} : i64[1]
      %e = const() {value=[6]} : i64[1]
      %far = const() {value=[9223372036854775807]} : i64[1]
      %a = Slice(%x, %z, %e, %z)
      %b = Slice(%x, %s, %e, %z)
      %c = Slice(%x, %z, %far, %z)
      %d = Slice(%x, %z, %e, %i)
      return %a, %b, %c, %d
    }"""
    a, b, c, d = types(text, "a", "b", "c", "d")
    assert a == "f32[min(6,N),9]"
    assert b == "f32[max(0,min(6,N)-2),9]"
    assert c == "f32[N,9]"
    assert "N" not in d
    assert "9" not in d.removeprefix("f32")


def test_squeeze_without_axes_may_take_symbols_away() -> None:
    text = """graph @g(%x: f32[N,1,3], %y: f32[1,3]) -> (f32[*], f32[*]) {
      %a = Squeeze(%x)
      %b = Squeeze(%y)
      return %a, %b
    }"""
    assert types(text, "a", "b") == ["f32[*]", "f32[3]"]


def test_remainders_of_constants_are_elements() -> None:
    """torch's unflatten counts its axis from the end by `-1 mod 3`, and cuts the shape there."""
    shape = onnx.helper.make_tensor
    make = onnx.helper.make_node
    nodes = [
        make("Mod", ["minus", "three"], ["axis"]), make("Shape", ["x"], ["s"]),
        make("Slice", ["s", "zero", "axis"], ["a"]),
        make("Concat", ["a", "parts"], ["target"], axis=0), make("Reshape", ["x", "target"], ["y"]),
    ]  # fmt: skip
    known = {"minus": [-1], "three": [3], "zero": [0], "parts": [3, 4]}
    graph = onnx.helper.make_graph(
        nodes, "g", [onnx.helper.make_tensor_value_info("x", 1, ["n", 5, 12])],
        [onnx.helper.make_tensor_value_info("y", 1, None)],
        [shape(n, onnx.TensorProto.INT64, [len(v)], v) for n, v in known.items()],
    )  # fmt: skip
    read = read_onnx(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9))
    infer_shapes(read)
    assert [str(d) for d in read.outputs[0].type.shape] == ["n", "5", "3", "4"]


@pytest.mark.parametrize(
    "text",
    [
        "graph @g(%x: i64[9000000]) -> (i64[*]) { %y = Concat(%x, %x) {axis=-1} return %y }",
        "graph @g(%x: i64[9000000]) -> (f32[*]) { %y = ConstantOfShape(%x) return %y }",
        "graph @g(%a: f32[N], %x: i64[9000000]) -> (f32[*]) { %y = Reshape(%a, %x) return %y }",
        "graph @g(%a: f32[N], %x: i64[9000000]) -> (f32[*]) { %y = Expand(%a, %x) return %y }",
    ],
)
def test_elements_of_long_vectors_are_not_followed(text: str) -> None:
    graph = parse(text)
    found = infer_shapes(graph)
    assert not found.elements
    y = named(graph, "y")
    assert type_text(y.type) == ("i64[18000000]" if y.op.is_a("Concat") else "f32[*]")


@pytest.mark.parametrize(
    ("own", "attributes", "last", "expected"),
    [
        ("N,4", "", -1, "f32[y_d0,y_d1]"),  # M may be 0, which stands for N
        ("N,4", "", 4, "f32[y_d0,4]"),
        ("N,4", "", 0, "f32[y_d0,4]"),
        ("N,4", "{allowzero=1}", -1, "f32[M,(4*N)//M]"),
        ("N,4", "{allowzero=1}", 0, "f32[M,0]"),
        ("M,N,4", "", -1, "f32[M,4*N]"),
        ("M,N,4", "", 0, "f32[M,N]"),
        ("N,M", "", -1, "f32[M,N]"),  # where M is 0, the operand is empty as well
        ("N,M", "", 4, "f32[M,4]"),
        ("2,?", "", 4, "f32[M,4]"),
        ("*", "", 4, "f32[M,4]"),
    ],
)
def test_a_computed_target_extent_may_be_0_and_stand_for_the_operands(
    own: str, attributes: str, last: int, expected: str
) -> None:
    text = f"""graph @g(%x: f32[{own}], %z: f32[M]) -> (f32[*]) {{
      %n = Shape(%z)
      %k = const() {{value=[{last}]}} : i64[1]
      %t = Concat(%n, %k) {{axis=0}}
      %y = Reshape(%x, %t) {attributes}
      return %y
    }}"""
    assert types(text, "y") == [expected]
