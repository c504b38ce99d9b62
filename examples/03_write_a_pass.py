"""drop-identity: send every user of an Identity straight to the Identity's operand.

A pass is one file like this one; there is nothing to register. On the command line:

    memoptc MODEL.onnx --plugin examples/03_write_a_pass.py --passes drop-identity,lower
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

import memoptc
from memoptc import Context, Pass
from memoptc.ir.core import Graph


class DropIdentity(Pass):
    def run(self, graph: Graph, context: Context) -> None:
        for op in graph.walk("Identity"):
            op.result.replace_by(op.operand)
            op.erase()
            context.stats["dropped"] += 1


def model() -> onnx.ModelProto:
    """x -> Identity -> Relu -> Identity -> y"""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "xy")
    nodes = [
        helper.make_node("Identity", ["x"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Identity", ["b"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "small", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def main() -> None:
    samples = [{"x": np.float32([[-1, 0, 1, 2]])}]
    result = memoptc.compile(model(), passes="drop-identity,lower", plugins=(__file__,), validation=samples)
    for record in result.report.passes:
        print(f"{record.name}: {record.nodes_before} -> {record.nodes_after} nodes, {dict(record.stats)}")
    assert [n.op_type for n in result.model.graph.node] == ["Relu"]
    assert [o.name for o in result.model.graph.output] == ["y"]


if __name__ == "__main__":
    main()
