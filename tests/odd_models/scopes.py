"""Control flow, functions, sequences and names: what belongs to which scope."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx.parser
from onnx import helper, numpy_helper

from odd_models.making import Made, rng, text


def if_captures() -> Made:
    """Branches of other shapes, one a captured weight, one an outer value, names as outside."""
    model = text(
        """g (float[N,4] x, bool c) => (float[A,B] y, float[N,4] h) {
            h = Relu (x)
            y = If (c) <
              then_branch = t () => (float[A,B] t) { r = Add (h, w)  t = Relu (r) },
              else_branch = e () => (float[A,B] r) { u = Transpose (h)  r = Concat <axis=1> (u, u) }>
        }""",
        w=rng(4),
    )
    return model, [{"x": rng(n, 4), "c": np.asarray(c)} for n in (1, 3) for c in (True, False)]


def if_returns_weight() -> Made:
    """A branch that gives a weight of outside as it is, through an Identity, and an input."""
    model = text(
        """g (float[4] x, bool c) => (float[4] y) {
            y = If (c) <
              then_branch = t () => (float[4] t) { t = Identity (w) },
              else_branch = e () => (float[4] e) { e = Identity (x) }>
        }""",
        w=rng(4),
    )
    return model, [{"x": rng(4, seed=1), "c": np.asarray(c)} for c in (True, False)]


def nested_scopes() -> Made:
    """Names that sibling branches, a nested branch and a later op of the main graph all use."""
    model = text(
        """g (float[N] x, bool c, bool d) => (float[N] y, float[N] r2) {
            a = If (c) <
              then_branch = t () => (float[N] q) {
                 r = Relu (x)
                 q = If (d) <then_branch = tt () => (float[N] z) { r3 = Add (r, x) z = Neg (r3) },
                             else_branch = te () => (float[N] z) { z = Abs (r) }> },
              else_branch = e () => (float[N] q) { r = Sin (x) q = Cos (r) }>
            b = If (d) <
              then_branch = t2 () => (float[N] q) { r = Exp (a) q = Neg (r) },
              else_branch = e2 () => (float[N] q) { r = Tanh (a) q = Neg (r) }>
            r = Add (a, b)
            y = Mul (r, r)
            r2 = Neg (r)
        }""",
    )
    both = (False, True)
    return model, [{"x": rng(3), "c": np.asarray(c), "d": np.asarray(d)} for c in both for d in both]


def functions_of_one_name() -> Made:
    """Functions with one name in two domains, one calling the other, local names as in the main graph."""
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 18, "a" : 1, "b" : 1]>
        g (float[N] x) => (float[N] y) { t = a.F <k = 2.0> (x)  u = b.F (t)  v = a.F (u)  y = Add (v, t) }
        <domain: "a", opset_import: ["" : 18]> F <k: float = 3.0> (x) => (y) {
            t = Constant <value_float : float = @k> ()  y = Mul (x, t) }
        <domain: "b", opset_import: ["" : 18, "a" : 1]> F (t) => (y) { x = a.F (t)  u = Relu (x)  y = Sub (u, t) }"""
    )
    return model, [{"x": rng(5)}]


def functions_with_branches() -> Made:
    """A function whose branches capture its operand, called twice, one operand left out."""
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 18, "a" : 1]>
        g (float[N] x, bool c) => (float[N] y) { t = a.F (x, c)  y = a.F (t, c) }
        <domain: "a", opset_import: ["" : 18]> F (x, c) => (y) {
            r = Relu (x)
            y = If (c) <then_branch = t () => (q) { q = Add (r, x) }, else_branch = e () => (q) { q = Neg (r) }> }"""
    )
    return model, [{"x": rng(5), "c": np.asarray(c)} for c in (True, False)]


def functions_with_defaults() -> Made:
    """Defaults of a function's attributes, read by branches inside of it and handed on to another function."""
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 18, "a" : 1]>
        g (float[N,4] x, bool c) => (float[N,4] y) { t = a.F <axis = 0> (x, c)  y = a.F (t, c) }
        <domain: "a", opset_import: ["" : 18, "a" : 1]> F <axis: int = 1, alpha: float = 0.5> (x, c) => (y) {
            y = If (c) <then_branch = t () => (q) { q = a.G <k: int = @axis, alpha: float = @alpha> (x) },
                        else_branch = e () => (r) { r = LeakyRelu <alpha: float = @alpha> (x) }> }
        <domain: "a", opset_import: ["" : 18]> G <k: int, alpha: float> (x) => (y) {
            s = LogSoftmax <axis: int = @k> (x)  y = Elu <alpha: float = @alpha> (s) }"""
    )
    return model, [{"x": rng(2, 4), "c": np.asarray(c)} for c in (True, False)]


def sequences() -> Made:
    """Split into a sequence, taken apart by index, joined, its length."""
    model = text(
        """g (float[N,6] x, int64 i) => (float[N,M] y, int64 n, float[N,2] p) {
            s = SplitToSequence <axis = 1> (x, two)
            p = SequenceAt (s, i)
            q = Neg (p)
            s2 = SequenceInsert (s, q)
            n = SequenceLength (s2)
            y = ConcatFromSequence <axis = 1> (s2)
        }""",
        two=np.asarray(2, np.int64),
    )
    return model, [{"x": rng(3, 6), "i": np.asarray(k)} for k in (0, -1)]


def sequence_input_output() -> Made:
    """A sequence that comes in and one that goes out."""
    model = text(
        """g (seq(float[N]) s, float[M] x) => (seq(float[K]) t, float[L] y) {
            t = SequenceInsert (s, x)
            y = ConcatFromSequence <axis = 0> (t)
        }"""
    )
    return model, [{"s": [rng(2), rng(3)], "x": rng(4)}]


def optional_in_branches() -> Made:
    """An optional made in the main graph and asked in a branch."""
    model = text(
        """g (float[N] x) => (float[N] y) {
            o = Optional (x)
            h = OptionalHasElement (o)
            y = If (h) <then_branch = t () => (float[N] q) { e = OptionalGetElement (o) q = Neg (e) },
                        else_branch = e () => (float[N] q) { q = Abs (x) }>
        }"""
    )
    return model, [{"x": rng(3)}]


def taken_names() -> Made:
    """Names that passes would like to make themselves, empty node names, one with odd characters."""
    model = text(
        """g (float[N,8] x) => (float[N,8] y) {
            slice = Relu (x)
            axis = Neg (slice)
            const_1 = Add (axis, w)
            y_1 = MatMul (const_1, const)
            v0 = Identity (y_1)
            y_2 = Mul (v0, shape)
            y = Sigmoid (y_2)
        }""",
        w=rng(8), const=rng(8, 8), shape=np.float32(0.5),
    )  # fmt: skip
    odd = {"y_2": "y/2:0 %é\n", "v0": "v 0;#"}
    for node in model.graph.node:
        for field in (node.input, node.output):
            field[:] = [odd.get(n, n) for n in field]
        node.name = "n"[: len(node.name) % 2]
    return model, [{"x": rng(2, 8)}]


def loop_in_scan() -> Made:
    """A Loop inside a Scan inside a Loop, all of them with captures and collected values."""
    model = text(
        """g (float[N,4] x, int64 n) => (float[4] s, float[A,N,4] c) {
            s, c = Loop (n, , z) <body = b (int64 i, bool go, float[4] st) => (bool on, float[4] so, float[N,4] col) {
                on = Identity (go)
                so, col = Scan <num_scan_inputs = 1, body = sc (float[4] p, float[4] e) => (float[4] po, float[4] o) {
                    q, k = Loop (two, , p) <body = b2 (int64 j, bool g2, float[4] u)
                                                       => (bool g3, float[4] uo, float[4] kk) {
                        g3 = Identity (g2)
                        f = Cast <to = 1> (i)
                        m = Mul (e, w)
                        uu = Add (u, m)
                        uo = Add (uu, f)
                        kk = Neg (uo) }>
                    po = Tanh (q)
                    o = ReduceSum <keepdims = 0> (k, zero)
                }> (st, x)
            }>
        }""",
        two=np.asarray(2), z=np.zeros(4, np.float32), w=rng(4), zero=np.asarray([0]),
    )  # fmt: skip
    return model, [{"x": rng(3, 4), "n": np.asarray(k)} for k in (1, 3)]


def late_weights() -> Made:
    """Weights inside branches that hide names of outside, one of them large."""
    sub = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["t"])], "t", [], [helper.make_tensor_value_info("t", 1, ["N", 64])],
        [numpy_helper.from_array(rng(64, 64, seed=3), "w")],
    )  # fmt: skip
    other = helper.make_graph(
        [helper.make_node("MatMul", ["x", "v"], ["e"])], "e", [], [helper.make_tensor_value_info("e", 1, ["N", 64])],
    )  # fmt: skip
    nodes = [
        helper.make_node("If", ["c"], ["p"], then_branch=sub, else_branch=other),
        helper.make_node("MatMul", ["p", "v"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", 1, ["N", 64]), helper.make_tensor_value_info("c", 9, [])]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", 1, ["N", 64])],
                              [numpy_helper.from_array(rng(64, 64) / 8, "v")])  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return model, [{"x": rng(2, 64), "c": np.asarray(c)} for c in (True, False)]


MODELS: list[Callable[[], Made]] = [
    if_captures, if_returns_weight, nested_scopes, functions_of_one_name, functions_with_branches,
    functions_with_defaults, sequences, sequence_input_output, optional_in_branches, taken_names, loop_in_scan,
    late_weights,
]  # fmt: skip
