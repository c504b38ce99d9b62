"""What callers rely on (names, types, documentation of inputs and outputs) is the same bytes in the output."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import memoptc
from memoptc.instruments import KeepsInterface
from memoptc.ir.core import Graph
from memoptc.ir.interface import interface_of
from memoptc.ir.onnx_io import read_onnx
from memoptc.manager import PassFailed, run_pipeline
from memoptc.pass_base import Context, Pass
from memoptc.pipeline import Pipeline


def model(opset: int = 18) -> onnx.ModelProto:
    """Outputs declared in every way: no shape, unknown extents, symbols, placeholders, an expression."""
    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.standard_normal((4, 3, 3, 3)).astype(np.float32), "w")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, "?", None], "an image")
    outputs = [
        helper.make_tensor_value_info("a", TensorProto.FLOAT, None, "without a shape"),
        helper.make_tensor_value_info("b", TensorProto.FLOAT, [None, 4, None, None]),
        helper.make_tensor_value_info("c", TensorProto.FLOAT, ["other", 4, "?", "2*k"]),
        helper.make_tensor_value_info("d", TensorProto.FLOAT, ["batch", 4, "h", "w"]),
    ]
    if hasattr(x, "metadata_props"):
        for info in (x, *outputs):
            info.metadata_props.add(key="unit", value=info.name)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["k"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["k"], ["a"], doc_string="a note"),
        helper.make_node("Sigmoid", ["a"], ["b"]),
        helper.make_node("Mul", ["a", "b"], ["c"]),
        helper.make_node("Identity", ["c"], ["d"]),
    ]
    graph = helper.make_graph(nodes, "g", [x], outputs, [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=max(4, opset // 2))


OPTIONS = {
    **{f"O{level}": {"level": level} for level in range(4)},
    "frozen runtime": {"freeze_runtime": True},
    "int8": {"target": "int8"},
    "float16": {"target": "float16"},
    "notes": {"passes": "drop-notes,lower"},
    "opset": {"passes": "raise-opset{to=17,below=17},lower"},
}


@pytest.mark.parametrize("opset", [9, 18])
@pytest.mark.parametrize("name", OPTIONS)
def test_interface_stays(name: str, opset: int) -> None:
    before = model(opset)
    after = memoptc.compile(before, measure=False, **OPTIONS[name]).model
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)


class Renames(Pass):
    """Change one thing that callers rely on."""

    what: str = ""

    def run(self, graph: Graph, context: Context) -> None:
        """Change it."""
        value, output = graph.inputs[0], graph.outputs_info[-1]
        match self.what:
            case "name":
                output.name = "z"
            case "type":
                output.type = graph.outputs_info[0].type
            case "doc":
                value.doc = ""
            case "metadata":
                output.metadata["unit"] = "other"
            case "count":
                graph.set_outputs(graph.outputs[:1])


class RenamesOnPurpose(Renames):
    """The same, said so."""

    changes_interface = True


@pytest.mark.parametrize("what", ["name", "type", "doc", "metadata", "count"])
def test_a_pass_that_changes_it_is_named(what: str) -> None:
    graph = read_onnx(model())
    with pytest.raises(PassFailed, match=r"Pass renames failed: it changed the model's interface"):
        run_pipeline(Pipeline((Renames(what),)), graph, instruments=[KeepsInterface()])
    graph = read_onnx(model())
    run_pipeline(Pipeline((RenamesOnPurpose(what), Renames())), graph, instruments=[KeepsInterface()])


def test_differences_are_spelled() -> None:
    one, two = read_onnx(model()), read_onnx(model())
    assert interface_of(one).difference(interface_of(two)) == ""
    two.outputs_info[3].type = two.outputs_info[1].type
    assert interface_of(one).difference(interface_of(two)) == (
        "output 'd' is float[?, 4, ?, ?] instead of float[batch, 4, h, w]"
    )
