"""Inputs, outputs, weights and notes of a model: what a file may say in more than one way."""

from __future__ import annotations

from collections.abc import Callable

from onnx import TensorProto, helper, numpy_helper

from odd_models.making import Made, rng, text


def outputs_as_they_come() -> Made:
    """Outputs that are inputs, a weight, one value under one name, and an input that nothing uses."""
    model = text(
        """g (float[N] x, float[M] unused) => (float[N] x2, float[3] w2, float[N] y, float[N] z) {
            x2 = Identity (x)
            w2 = Identity (w)
            y = Relu (x)
            z = Identity (y)
        }""",
        w=rng(3),
    )
    return model, [{"x": rng(2), "unused": rng(1)}]


def input_is_output() -> Made:
    """An input that is an output by the same name, and a weight that is one."""
    x = helper.make_tensor_value_info("x", 1, ["N"])
    w = helper.make_tensor_value_info("w", 1, [3])
    y = helper.make_tensor_value_info("y", 1, ["N"])
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    graph = helper.make_graph(nodes, "g", [x], [x, w, y], [numpy_helper.from_array(rng(3), "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), [{"x": rng(4)}]


def notes_and_training() -> Made:
    """Metadata, doc strings, denotations, overridden defaults and a training graph."""
    model = text("g (float[N] x) => (float[N] y) { t = Add (x, w)  y = Relu (t) }", ir=9, w=rng(1))
    model.metadata_props.add(key="author", value="somebody é")
    model.doc_string, model.graph.doc_string, model.producer_name = "doc", "graph doc", "p"
    model.graph.input[0].doc_string = "an input"
    model.graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    model.graph.node[0].doc_string = "node doc"
    model.training_info.add().algorithm.name = "train"
    return model, [{"x": rng(3)}]


def replaceable_weights() -> Made:
    """A weight that is an input too, which no caller hands in."""
    model = text("g (float[N,3] x, float[3,2] w) => (float[N,2] y) { t = MatMul (x, w)  y = Relu (t) }", w=rng(3, 2))
    return model, [{"x": rng(2, 3)}]


def sparse_and_constants() -> Made:
    """Constants of every spelling: value, floats, ints, a string, a sparse tensor, ConstantOfShape of two dtypes."""
    values = helper.make_tensor("", TensorProto.FLOAT, [2], [3.0, -1.0])
    indices = helper.make_tensor("", TensorProto.INT64, [2], [1, 4])
    nodes = [
        helper.make_node("Constant", [], ["a"], value_floats=[1.0, 2.0, 3.0]),
        helper.make_node("Constant", [], ["b"], value_ints=[3]),
        helper.make_node("Constant", [], ["c"], sparse_value=helper.make_sparse_tensor(values, indices, [6])),
        helper.make_node("Constant", [], ["one"], value_int=1),
        helper.make_node("ConstantOfShape", ["b"], ["d"]),
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("ConstantOfShape", ["s"], ["e"], value=helper.make_tensor("", TensorProto.INT64, [1], [7])),
        helper.make_node("Cast", ["e"], ["f"], to=1),
        helper.make_node("Add", ["a", "d"], ["h"]),
        helper.make_node("Concat", ["h", "c", "x"], ["k"], axis=0),
        helper.make_node("Add", ["x", "f"], ["z"]),
    ]
    outputs = [helper.make_tensor_value_info(o, 1, [None]) for o in ("k", "z")]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", 1, ["N"])], outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), [{"x": rng(4)}]


def duplicated() -> Made:
    """The same weight and the same op several times, with other attributes spelled as their defaults."""
    w = rng(4, 4)
    model = text(
        """g (float[N,4] x) => (float[N,4] y, float[N,4] z) {
            a = MatMul (x, w1)  b = MatMul (x, w2)
            c = Softmax (a)     d = Softmax <axis = -1> (b)
            y = Add (c, d)
            e = Gemm (x, w1)    f = Gemm <alpha = 1.0, transB = 0> (x, w2)
            z = Sub (e, f)
        }""",
        w1=w, w2=w.copy(),
    )  # fmt: skip
    return model, [{"x": rng(3, 4)}]


MODELS: list[Callable[[], Made]] = [
    outputs_as_they_come, input_is_output, notes_and_training, replaceable_weights, sparse_and_constants,
    duplicated,
]  # fmt: skip
