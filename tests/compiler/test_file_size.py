"""What a written file may hold besides the model: names of the nodes it came from, no more than the model had."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import memoptc

LENGTH = 40


def chain(*, taken: bool) -> onnx.ModelProto:
    """A chain of nodes with long names, of which a row is taken at the end, or beside which equal nodes are merged."""
    names = [f"/encoder/layers.{i}/activation/Tanh" for i in range(LENGTH)]
    nodes = [helper.make_node("Tanh", [f"t{i}"], [f"t{i + 1}"], name=name) for i, name in enumerate(names)]
    last = f"t{LENGTH}"
    if taken:
        nodes.append(helper.make_node("Gather", [last, "first"], ["y"], name="/pooler/Gather", axis=1))
    else:
        shapes = [helper.make_node("Shape", ["t0"], [f"s{i}"], name=f"/shapes.{i}/Shape") for i in range(LENGTH)]
        sums = [helper.make_node("Add", [f"u{i}" if i else "s0", f"s{i}"], [f"u{i + 1}"]) for i in range(LENGTH)]
        nodes += [*shapes, *sums, helper.make_node("Reshape", [last, "s0"], ["y"])]
        nodes.append(helper.make_node("Cast", [f"u{LENGTH}"], ["z"], to=TensorProto.FLOAT))
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    if not taken:
        outputs.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("t0", TensorProto.FLOAT, ["N", "S", 8])],
        outputs,
        [numpy_helper.from_array(np.array(0), "first")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def origins(model: onnx.ModelProto) -> dict[str, str]:
    return {
        node.output[0]: entry.value
        for node in model.graph.node
        for entry in node.metadata_props
        if entry.key == "memoptc.nodes"
    }


def test_what_is_moved_past_a_chain_names_no_node_of_it() -> None:
    model = chain(taken=True)
    made = memoptc.compile(model, level=2, verify="off", measure=False).model
    assert made.graph.node[0].op_type == "Gather"
    told = origins(made)
    assert told[made.graph.node[0].output[0]] == "/pooler/Gather"
    assert sorted(set(told.values())) == sorted(node.name for node in model.graph.node)


def test_one_node_names_a_bounded_number_of_those_it_stands_for() -> None:
    made = memoptc.compile(chain(taken=False), level=1, verify="off", measure=False).model
    (shape,) = [node for node in made.graph.node if node.op_type == "Shape"]
    told = {entry.key: entry.value for entry in shape.metadata_props}
    named = told["memoptc.nodes"].split(",")
    assert len(named) < LENGTH
    assert len(named) + int(told["memoptc.further_nodes"]) == LENGTH


def test_a_model_made_for_little_memory_carries_no_notes_of_its_exporter() -> None:
    model = chain(taken=True)
    for node in model.graph.node:
        node.metadata_props.add(key="pkg.torch.onnx.stack_trace", value="File model.py, line 1")
    kept = [
        [e.key for n in memoptc.compile(model, level=level, measure=False).model.graph.node for e in n.metadata_props]
        for level in (1, 2)
    ]
    assert "pkg.torch.onnx.stack_trace" in kept[0]
    assert {key.split(".")[0] for key in kept[1]} == {"memoptc"}
