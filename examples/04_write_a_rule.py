"""fuse-conv-relu: a Conv and the Relu after it become one kernel of onnxruntime.

A rule is the pattern that decorates the function which replaces it. On the command line:

    memoptc MODEL.onnx --plugin examples/04_write_a_rule.py --passes fuse-conv-relu,lower
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import memoptc
from memoptc.ir.builder import Builder
from memoptc.ir.core import Op, Value
from memoptc.rewrite import NoMatch, RulePass, op, rewrite


@rewrite(op.Relu(op.Conv("x", "w", bind="conv")))
def conv_relu(b: Builder, x: Value, w: Value, conv: Op) -> Value:
    if conv.attrs.get("group", 1) != 1:
        raise NoMatch("grouped Conv")
    return b.FusedConv(x, w, activation="Relu", **conv.attrs)


class FuseConvRelu(RulePass):
    rules = (conv_relu,)


def model() -> onnx.ModelProto:
    """Two convolutions, each with a Relu; the second is grouped."""
    rng = np.random.default_rng(0)
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 4, 8, 8])
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", 4, 4, 4])
    weights = [
        numpy_helper.from_array(rng.standard_normal((4, 4, 3, 3), np.float32), "w"),
        numpy_helper.from_array(rng.standard_normal((4, 1, 3, 3), np.float32), "v"),
    ]
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "v"], ["c"], group=4),
        helper.make_node("Relu", ["c"], ["features"]),
    ]
    graph = helper.make_graph(nodes, "small", [image], [features], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def main() -> None:
    result = memoptc.compile(model(), passes="fuse-conv-relu,lower", plugins=(__file__,), dims={"N": 2})
    for record in result.report.passes:
        print(f"{record.name}: {record.nodes_before} -> {record.nodes_after} nodes, {dict(record.stats)}")
    assert [n.op_type for n in result.model.graph.node] == ["FusedConv", "Conv", "Relu"]
    print(f"proof passed: {result.report.verification['passed']}")


if __name__ == "__main__":
    main()
