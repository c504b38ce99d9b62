"""The smallest case of what once crashed a compile, or wrote what onnxruntime does not load."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import FunctionProto, GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

import memoptc
from memoptc.runtime.evaluate import Evaluator, RunOptions

RNG = np.random.default_rng(0)


def tensor(name: str, shape: Sequence[int | str] | None, dtype: int = TensorProto.FLOAT) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def model(
    nodes: Sequence[NodeProto],
    inputs: Sequence[ValueInfoProto],
    outputs: Sequence[ValueInfoProto],
    weights: dict[str, np.ndarray] | None = None,
    *,
    opset: int = 18,
    functions: Iterable[FunctionProto] = (),
) -> onnx.ModelProto:
    initializers = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    imports = [helper.make_opsetid("", opset)] + [helper.make_opsetid("local", 1)] * bool(functions)
    return helper.make_model(graph, opset_imports=imports, ir_version=8, functions=list(functions))


def compiled(source: onnx.ModelProto, **options: Any) -> tuple[onnx.ModelProto, dict[str, Any]]:
    result = memoptc.compile(source, measure=False, **options)
    report: dict[str, Any] = result.report.to_json()
    assert report["verification"]["passed"]
    return result.model, report


def operators(of: onnx.ModelProto) -> list[str]:
    return [n.op_type for n in of.graph.node]


@pytest.mark.parametrize("level", range(4))
@pytest.mark.parametrize("container", ["sequence", "optional", "sequence in optional"])
def test_a_container_of_what_a_local_function_gives(container: str, level: int) -> None:
    """Inference does not know the type inside."""
    body = [helper.make_node("Relu", ["a"], ["b"])]
    function = helper.make_function("local", "F", ["a"], ["b"], body, [helper.make_opsetid("", 18)])
    pack = {
        "sequence": [
            helper.make_node("SequenceConstruct", ["t", "t"], ["s"]),
            helper.make_node("ConcatFromSequence", ["s"], ["y"], axis=0),
        ],
        "optional": [
            helper.make_node("Optional", ["t"], ["s"]),
            helper.make_node("OptionalGetElement", ["s"], ["y"]),
        ],
        "sequence in optional": [
            helper.make_node("SequenceConstruct", ["t", "t"], ["s"]),
            helper.make_node("Optional", ["s"], ["o"]),
            helper.make_node("OptionalGetElement", ["o"], ["r"]),
            helper.make_node("ConcatFromSequence", ["r"], ["y"], axis=0),
        ],
    }
    nodes = [helper.make_node("F", ["x"], ["t"], domain="local"), *pack[container]]
    source = model(nodes, [tensor("x", ["n", 4])], [tensor("y", None)], functions=[function])
    compiled(source, level=level)


def trips(states: int) -> GraphProto:
    """A body that counts on, carries `states` values that it does not need, and collects one."""
    nodes = [
        helper.make_node("Identity", ["c"], ["co"]),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["f", "x"], ["item"]),
        *(helper.make_node("Add", [f"s{k}", f"s{k}"], [f"t{k}"]) for k in range(states)),
    ]
    inputs = [tensor("i", [], TensorProto.INT64), tensor("c", [], TensorProto.BOOL)]
    outputs = [tensor("co", [], TensorProto.BOOL), *(tensor(f"t{k}", [4]) for k in range(states)), tensor("item", [4])]
    return helper.make_graph(nodes, "body", [*inputs, *(tensor(f"s{k}", [4]) for k in range(states))], outputs)


@pytest.mark.parametrize("opset", [8, 9, 10, 11, 13])
@pytest.mark.parametrize("states", [1, 2])
def test_a_loop_keeps_a_state_where_it_needs_one(opset: int, states: int) -> None:
    """Before opset 11 a Loop carries at least one value."""
    results = [f"last{k}" for k in range(states)]
    nodes = [
        helper.make_node("Loop", ["m", "t", *["x"] * states], [*results, "all"], body=trips(states)),
        helper.make_node("Neg", ["all"], ["y"]),
    ]
    weights = {"m": np.array(3, np.int64), "t": np.array(True)}
    found, _ = compiled(model(nodes, [tensor("x", [4])], [tensor("y", [3, 4])], weights, opset=opset), level=1)
    loops = [n for n in found.graph.node if n.op_type == "Loop"]
    assert [len(n.input) for n in loops] == [3 if opset < 11 else 2]


def untyped_body(kind: str) -> tuple[GraphProto, list[str]]:
    """A body that turns its state and collects the negative; which of its types are stated is the kind."""
    state, out, all_ = (ValueInfoProto(name=name) for name in ("s", "s1", "o"))
    if kind == "dtype":
        for info in (state, out, all_):
            info.type.tensor_type.elem_type = TensorProto.FLOAT
    nodes = [helper.make_node("Transpose", ["s"], ["s1"]), helper.make_node("Neg", ["s"], ["o"])]
    head = [tensor("i", [], TensorProto.INT64), tensor("c", [], TensorProto.BOOL)]
    return helper.make_graph(nodes, "body", [*head, state], [tensor("c", [], TensorProto.BOOL), out, all_]), ["y", "z"]


@pytest.mark.parametrize("level", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", ["nothing", "dtype"])
@pytest.mark.parametrize("extents", [[2, 3], ["p", "q"]])
def test_types_of_a_body_stay_as_open_as_they_are(extents: list[int | str], kind: str, level: int) -> None:
    """Of what a Loop of no trips collects, the extents are those that onnxruntime infers from what the file states."""
    body, results = untyped_body(kind)
    loop = helper.make_node("Loop", ["m", "", "x"], results, body=body)
    nodes = [helper.make_node("Abs", ["v"], ["x"]), loop]
    made = model(nodes, [tensor("m", [], TensorProto.INT64), tensor("v", extents)], [tensor(r, None) for r in results])
    made.graph.value_info.append(tensor("x", extents))
    result = memoptc.compile(made, level=level, measure=False, verify="off").model
    for trips_ in (0, 1, 2):
        feed = {"m": np.array(trips_, np.int64), "v": np.ones((2, 3), np.float32)}
        expected, found = (Evaluator(m, RunOptions(optimize=False)).run(feed) for m in (made, result))
        assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in expected.items()}


def convolution(opset: int) -> onnx.ModelProto:
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Relu", ["c"], ["y"])]
    weights = {"w": RNG.standard_normal((8, 3, 3, 3)).astype(np.float32)}
    return model(nodes, [tensor("x", ["n", 3, 8, 8])], [tensor("y", ["n", 8, 6, 6])], weights, opset=opset)


@pytest.mark.parametrize("opset", [7, 9, 10])
@pytest.mark.parametrize("options", ['form="static"', 'weights="uint8"'])
def test_static_codes_need_opset_10(opset: int, options: str) -> None:
    data = [{"x": RNG.standard_normal((1, 3, 8, 8)).astype(np.float32)} for _ in range(8)]
    source = convolution(opset)
    passes = f"quantize{{{options}}},lower"
    found, report = compiled(source, passes=passes, target="int8", calibration=data)
    assert ("QLinearConv" in operators(found) or "QuantizeLinear" in operators(found)) == (opset >= 10)
    assert any("Pass raise-opset, run before" in w for w in report["warnings"]) == (opset < 10)


@pytest.mark.parametrize("target", ["int8", "uint8", "mixed", "int4", "float16"])
@pytest.mark.parametrize("with_data", [True, False])
def test_a_product_over_nothing_stays(target: str, with_data: bool) -> None:
    """Its operands have no numbers that a scale could come from."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("MatMul", ["z", "v"], ["q"]),
        helper.make_node("Add", ["p", "q"], ["y"]),
    ]
    weights = {"w": np.zeros((0, 4), np.float32), "v": RNG.standard_normal((8, 4)).astype(np.float32)}
    source = model(nodes, [tensor("x", ["n", 0]), tensor("z", ["n", 8])], [tensor("y", ["n", 4])], weights)
    data = [{"x": np.zeros((1, 0), np.float32), "z": RNG.standard_normal((1, 8)).astype(np.float32)} for _ in range(16)]
    compiled(source, target=target, calibration=data if with_data else None)


@pytest.mark.parametrize("target", ["int8", "float16"])
def test_an_output_that_is_an_input_keeps_its_numbers(target: str) -> None:
    weights = {"w": RNG.standard_normal((8, 4)).astype(np.float32)}
    x = tensor("x", ["n", 8])
    source = model([helper.make_node("MatMul", ["x", "w"], ["y"])], [x], [tensor("y", ["n", 4]), x], weights)
    data = [{"x": RNG.standard_normal((1, 8)).astype(np.float32)} for _ in range(16)]
    found, _ = compiled(source, target=target, calibration=data, quantize_io=True)
    assert found.graph.input[0] == source.graph.input[0]
    assert found.graph.output[1] == source.graph.output[1]


@pytest.mark.parametrize("form", ["split", "insert", "construct", "optional"])
def test_half_floats_and_containers(form: str) -> None:
    """What leaves a container has the type of what went in."""
    pack = {
        "split": [helper.make_node("SplitToSequence", ["m"], ["s"], axis=0)],
        "construct": [helper.make_node("SequenceConstruct", ["m", "m"], ["s"])],
        "insert": [
            helper.make_node("SequenceEmpty", [], ["e"]),
            helper.make_node("SequenceInsert", ["e", "m"], ["s"]),
        ],
        "optional": [
            helper.make_node("SequenceConstruct", ["m"], ["e"]),
            helper.make_node("Optional", ["e"], ["o"]),
            helper.make_node("OptionalGetElement", ["o"], ["s"]),
        ],
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        *pack[form],
        helper.make_node("ConcatFromSequence", ["s"], ["y"], axis=0),
    ]
    weights = {"w": RNG.standard_normal((8, 4)).astype(np.float32)}
    source = model(nodes, [tensor("x", [4, 8])], [tensor("y", None)], weights)
    found, _ = compiled(source, passes="to-half{whole=true},lower", target="float16")
    assert "Cast" in operators(found)


def test_half_floats_are_rounded_elsewhere() -> None:
    """onnxruntime rounds between its kernels and where it unpacks constants: level 1 asks for noise, not for bits."""
    half = TensorProto.FLOAT16
    weights = {"w": RNG.standard_normal((32, 32)), "g": RNG.standard_normal(32)}
    source = model(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"]),
            helper.make_node("Identity", ["a"], ["b"]),
            helper.make_node("Softmax", ["b"], ["c"], axis=-1),
            helper.make_node("Identity", ["g"], ["h"]),
            helper.make_node("LayerNormalization", ["c", "h", "h"], ["d"]),
            helper.make_node("MatMul", ["d", "w"], ["y"]),
        ],
        [tensor("x", ["n", 32], half)],
        [tensor("y", ["n", 32], half)],
        {name: array.astype(np.float16) for name, array in weights.items()},
    )
    made, report = compiled(source, level=1)
    assert [n.op_type for n in made.graph.node if n.op_type == "Identity"] == []
    assert report["verification"]["passed"]
