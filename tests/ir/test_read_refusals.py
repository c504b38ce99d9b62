"""What the reader refuses: each fault by the smallest model that has it, named in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from memoptc.ir.diagnostics import InputError
from memoptc.ir.onnx_io import read_onnx, to_proto

Model = onnx.ModelProto


def model() -> Model:
    """y = x w, with a local function that nothing calls."""
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 2]) for n in "xy")
    weight = numpy_helper.from_array(np.ones((2, 2), np.float32), "w")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"], name="n")], "g", [x], [y], [weight])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
    body = [helper.make_node("Relu", ["a"], ["b"])]
    function = helper.make_function("local", "F", ["a"], ["b"], body, [helper.make_opsetid("", 18)])
    return helper.make_model(graph, opset_imports=opsets, ir_version=9, functions=[function])


def add(*node: object, **attributes: object) -> Callable[[Model], None]:
    """Put a node first."""

    def change(m: Model) -> None:
        m.graph.node.insert(0, helper.make_node(*node, **attributes))

    return change


def sparse(m: Model) -> None:
    """A sparse weight of the dense one's name."""
    values = numpy_helper.from_array(np.ones(1, np.float32), "w")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "i")
    m.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))


def branches(m: Model) -> None:
    """An If one of whose branches gives nothing."""
    flag = numpy_helper.from_array(np.array(True), "flag")
    m.graph.initializer.append(flag)
    value = helper.make_tensor_value_info("v", TensorProto.FLOAT, [2, 2])
    then = helper.make_graph([helper.make_node("Relu", ["w"], ["v"])], "then", [], [value])
    empty = helper.make_graph([], "else", [], [])
    m.graph.node.append(helper.make_node("If", ["flag"], ["z"], then_branch=then, else_branch=empty))


def typeless(m: Model) -> None:
    """A list attribute of a type that no ONNX has."""
    m.graph.node[0].attribute.append(AttributeProto(name="k", type=AttributeProto.UNDEFINED))
    m.graph.node[0].domain = "local"


FAULTS: dict[str, tuple[Callable[[Model], object], str]] = {
    "no graph": (lambda m: m.ClearField("graph"), "is no ONNX model"),
    "opset too new": (lambda m: setattr(m.opset_import[0], "version", 999), "uses opset 999"),
    "IR version too new": (lambda m: setattr(m, "ir_version", 999), "has IR version 999"),
    "two inputs": (lambda m: m.graph.input.append(m.graph.input[0]), "two inputs are called 'x'"),
    "two weights": (lambda m: m.graph.initializer.append(m.graph.initializer[0]), "two weights are called 'w'"),
    "sparse weight": (sparse, "two weights are called 'w'"),
    "no such output": (lambda m: setattr(m.graph.output[0], "name", "q"), "output 'q' of graph 'g' is never computed"),
    "nameless operator": (lambda m: m.graph.node[0].ClearField("op_type"), "names no operator"),
    "unknown domain": (add("Op", [], ["z"], domain="else"), "is of domain 'else'"),
    "attribute twice": (
        lambda m: m.graph.node[0].attribute.extend([helper.make_attribute("k", 1)] * 2),
        "has two attributes of one name",
    ),
    "operands": (add("Relu", ["x", "w"], ["z"]), "has 2 operands; Relu takes 1"),
    "results": (add("Relu", ["x"], ["z", "z2"]), "has 2 results; Relu gives 1"),
    "attribute missing": (add("Cast", ["x"], ["z"]), "lacks attribute to"),
    "nothing defines": (lambda m: m.graph.node[0].input.__setitem__(0, "q"), "uses 'q', which nothing defines"),
    "region": (branches, "gives 0 values where 1 go out"),
    "function's output": (lambda m: m.functions[0].output.__setitem__(0, "q"), "output 'q' of function 'F' is never"),
    "too many for a function": (add("F", ["x", "w"], ["z"], domain="local"), "more values to function 'F' than"),
    "element type": (
        lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 999),
        "'x' has element type 999",
    ),
    "attribute's type": (typeless, "Attribute 'k' has no type that ONNX knows"),
}
"""What is done to the model, and what is said of it."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(fault: str, tmp_path: Path) -> None:
    change, said = FAULTS[fault]
    broken = model()
    change(broken)
    (tmp_path / "m.onnx").write_bytes(broken.SerializeToString())
    with pytest.raises(InputError) as refused:
        read_onnx(tmp_path / "m.onnx")
    assert said in refused.value.message


def test_the_model_without_a_fault_is_read(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(model().SerializeToString())
    assert [op.op_type for op in read_onnx(tmp_path / "m.onnx").ops if not op.is_const] == ["MatMul"]


def test_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").touch()
    (tmp_path / "text.onnx").write_text("no protobuf")
    for name, said in (("absent", "no such file"), (".", "is a folder"), ("empty", "is empty"), ("text", "no ONNX")):
        with pytest.raises(InputError, match=said):
            read_onnx(tmp_path if name == "." else tmp_path / f"{name}.onnx")


@pytest.mark.parametrize("text", [b"n", b"doc"])
def test_what_is_not_utf8(text: bytes, tmp_path: Path) -> None:
    """Protobuf hands such texts over as bytes, or refuses the file as a whole."""
    written = model().SerializeToString().replace(b"\x1a\x01n", b"\x1a\x01\xff")
    if text == b"doc":
        named = model()
        named.metadata_props.add(key="key", value="vvvv")
        written = named.SerializeToString().replace(b"vvvv", b"\xff\xfe\xfd\xfc")
    (tmp_path / "m.onnx").write_bytes(written)
    with pytest.raises(InputError, match=r"UTF-8|no ONNX model"):
        read_onnx(tmp_path / "m.onnx")


def test_an_empty_list_of_graphs_and_functions_of_one_name() -> None:
    node = onnx.helper.make_node("Custom", ["x"], ["y"], domain="custom")
    node.attribute.add(name="bodies", type=onnx.AttributeProto.GRAPHS)
    ports = [onnx.helper.make_tensor_value_info(n, 1, [2]) for n in "xy"]
    graph = onnx.helper.make_graph([node], "g", ports[:1], ports[1:])
    imports = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("custom", 1)]
    model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=9)
    assert to_proto(read_onnx(model)).graph.node[0].attribute[0].type == onnx.AttributeProto.GRAPHS
    inner = onnx.helper.make_node("Relu", ["a"], ["b"])
    twice = onnx.helper.make_function("custom", "Twice", ["a"], ["b"], [inner], imports[:1])
    model.functions.extend([twice, twice])
    with pytest.raises(InputError, match="is defined twice"):
        read_onnx(model)
