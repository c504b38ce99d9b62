"""Small valid models of which compilers get something wrong: `MODELS[name]()` gives a model and feeds for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
from onnx import TensorProto, helper, numpy_helper

Made = tuple[onnx.ModelProto, list[dict[str, Any]]]


def _rng(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def _text(body: str, opset: int = 18, ir: int = 9, extra: str = "", **weights: Any) -> onnx.ModelProto:
    imports = f'["" : {opset}{extra}]'
    model = onnx.parser.parse_model(f"<ir_version: {ir}, opset_import: {imports}> {body}")
    for name, array in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return model


def if_captures() -> Made:
    """Branches of other shapes, one a captured weight, one an outer value, names as outside."""
    model = _text(
        """g (float[N,4] x, bool c) => (float[A,B] y, float[N,4] h) {
            h = Relu (x)
            y = If (c) <
              then_branch = t () => (float[A,B] t) { r = Add (h, w)  t = Relu (r) },
              else_branch = e () => (float[A,B] r) { u = Transpose (h)  r = Concat <axis=1> (u, u) }>
        }""",
        w=_rng(4),
    )
    return model, [{"x": _rng(n, 4), "c": np.asarray(c)} for n in (1, 3) for c in (True, False)]


def if_returns_weight() -> Made:
    """A branch that gives a weight of outside as it is, through an Identity, and an input."""
    model = _text(
        """g (float[4] x, bool c) => (float[4] y) {
            y = If (c) <
              then_branch = t () => (float[4] t) { t = Identity (w) },
              else_branch = e () => (float[4] e) { e = Identity (x) }>
        }""",
        w=_rng(4),
    )
    return model, [{"x": _rng(4, seed=1), "c": np.asarray(c)} for c in (True, False)]


def nested_scopes() -> Made:
    """Names that sibling branches, a nested branch and a later op of the main graph all use."""
    model = _text(
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
    return model, [{"x": _rng(3), "c": np.asarray(c), "d": np.asarray(d)} for c in both for d in both]


def functions_of_one_name() -> Made:
    """Functions with one name in two domains, one calling the other, local names as in the main graph."""
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 18, "a" : 1, "b" : 1]>
        g (float[N] x) => (float[N] y) { t = a.F <k = 2.0> (x)  u = b.F (t)  v = a.F (u)  y = Add (v, t) }
        <domain: "a", opset_import: ["" : 18]> F <k: float = 3.0> (x) => (y) {
            t = Constant <value_float : float = @k> ()  y = Mul (x, t) }
        <domain: "b", opset_import: ["" : 18, "a" : 1]> F (t) => (y) { x = a.F (t)  u = Relu (x)  y = Sub (u, t) }"""
    )
    return model, [{"x": _rng(5)}]


def functions_with_branches() -> Made:
    """A function whose branches capture its operand, called twice, one operand left out."""
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 18, "a" : 1]>
        g (float[N] x, bool c) => (float[N] y) { t = a.F (x, c)  y = a.F (t, c) }
        <domain: "a", opset_import: ["" : 18]> F (x, c) => (y) {
            r = Relu (x)
            y = If (c) <then_branch = t () => (q) { q = Add (r, x) }, else_branch = e () => (q) { q = Neg (r) }> }"""
    )
    return model, [{"x": _rng(5), "c": np.asarray(c)} for c in (True, False)]


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
    return model, [{"x": _rng(2, 4), "c": np.asarray(c)} for c in (True, False)]


def sequences() -> Made:
    """Split into a sequence, taken apart by index, joined, its length."""
    model = _text(
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
    return model, [{"x": _rng(3, 6), "i": np.asarray(k)} for k in (0, -1)]


def sequence_input_output() -> Made:
    """A sequence that comes in and one that goes out."""
    model = _text(
        """g (seq(float[N]) s, float[M] x) => (seq(float[K]) t, float[L] y) {
            t = SequenceInsert (s, x)
            y = ConcatFromSequence <axis = 0> (t)
        }"""
    )
    return model, [{"s": [_rng(2), _rng(3)], "x": _rng(4)}]


def optional_in_branches() -> Made:
    """An optional made in the main graph and asked in a branch."""
    model = _text(
        """g (float[N] x) => (float[N] y) {
            o = Optional (x)
            h = OptionalHasElement (o)
            y = If (h) <then_branch = t () => (float[N] q) { e = OptionalGetElement (o) q = Neg (e) },
                        else_branch = e () => (float[N] q) { q = Abs (x) }>
        }"""
    )
    return model, [{"x": _rng(3)}]


def old_opset(opset: int) -> Callable[[], Made]:
    """Attributes that are operands today: Slice, Squeeze, Pad, Clip, Dropout, BatchNormalization, Upsample."""

    def make() -> Made:
        slice_ = "s = Slice <starts = [0,1], ends = [9,3], axes = [1,2]> (b)"
        if opset >= 10:
            slice_ = "s = Slice (b, st, en, ax)"
        scale = 'u = Upsample <mode = "nearest", scales = [1.0,1.0,2.0,2.0]> (p)'
        if opset >= 9:
            scale = 'u = Upsample <mode = "nearest"> (p, sc)'
        if opset >= 10:
            scale = 'u = Resize <mode = "nearest"> (p, sc)'
        model = _text(
            f"""g (float[N,3,5,5] x) => (float[a,b,c,d] y, float[e] z) {{
                b = BatchNormalization (x, g, h, g2, v)
                {slice_}
                p = Pad <pads = [0,0,1,0,0,0,0,1], value = 0.5> (s)
                {scale}
                d, m = Dropout <ratio = 0.5> (u)
                y = Clip <min = -1.0, max = 0.75> (d)
                r = ReduceMean <axes = [1,2,3], keepdims = 1> (y)
                z = Squeeze <axes = [1,2,3]> (r)
            }}""",
            opset,
            3 if opset < 9 else 4,
            g=np.abs(_rng(3)), h=_rng(3), g2=_rng(3), v=np.abs(_rng(3)) + 1, **({
                "st": np.asarray([0, 1]), "en": np.asarray([9, 3]), "ax": np.asarray([1, 2])} if opset >= 10 else {}),
            **({"sc": np.asarray([1, 1, 2, 2], np.float32)} if opset >= 9 else {}),
        )  # fmt: skip
        used = {i for n in model.graph.node for i in n.input}
        keep = [t for t in model.graph.initializer if t.name in used]
        del model.graph.initializer[:]
        model.graph.initializer.extend(keep)
        if opset < 9:  # IR 3: weights are inputs as well
            for t in keep:
                model.graph.input.append(helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)))
        return model, [{"x": _rng(n, 3, 5, 5)} for n in (1, 2)]

    return make


def strings() -> Made:
    """Strings compared, taken, joined, mapped."""
    model = _text(
        """g (string[N] s, int64[M] i) => (string[M] y, bool[N] e, int64[N] k, string[A] j) {
            y = Gather <axis = 0> (s, i)
            e = Equal (s, a)
            k = ai.onnx.ml.LabelEncoder <keys_strings = ["a", "b"], values_int64s = [1, 2], default_int64 = -1> (s)
            j = Concat <axis = 0> (s, y)
        }""",
        19, 9, ', "ai.onnx.ml" : 3',
    )  # fmt: skip
    model.graph.initializer.append(helper.make_tensor("a", TensorProto.STRING, [1], [b"a"]))
    return model, [{"s": np.asarray(["a", "Straße", ""], object), "i": np.asarray([2, 0])}]


def narrow_floats() -> Made:
    """Casts between float16, bfloat16, float8 and back, saturating and not, over NaN and infinities."""
    types = {"16": 10, "b": 16, "e4": 17, "e5": 19}
    nodes, outputs = [], []
    for key, to in types.items():
        for saturate in (0, 1) if to > 16 else (None,):
            name = f"{key}{saturate}"
            attrs = {} if saturate is None else {"saturate": saturate}
            nodes += [
                helper.make_node("Cast", ["x"], [f"c{name}"], to=to, **attrs),
                helper.make_node("Cast", [f"c{name}"], [f"y{name}"], to=1),
                helper.make_node("Cast", ["w"], [f"d{name}"], to=to, **attrs),
                helper.make_node("Cast", [f"d{name}"], [f"z{name}"], to=1),
            ]
            outputs += [f"y{name}", f"z{name}"]
    hard = np.asarray([0.1, -0.0, 1e-40, 500.0, 1e30, np.inf, -np.inf, np.nan, 65519, 65520, 448, 464.5], np.float32)
    x = helper.make_tensor_value_info("x", 1, ["N"])
    graph = helper.make_graph(nodes, "g", [x], [helper.make_tensor_value_info(o, 1, None) for o in outputs],
                              [numpy_helper.from_array(hard, "w")])  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), [{"x": hard}]


def four_bits() -> Made:
    """Weights of int4 and uint4, with an odd number of elements, decoded."""

    def four(name: str, kind: int, values: Any) -> onnx.TensorProto:
        return helper.make_tensor(name, kind, values.shape, values.reshape(-1).tolist())

    codes = np.arange(-7, 8).reshape(5, 3)
    inits = [four("a", TensorProto.INT4, codes), four("b", TensorProto.UINT4, codes + 7),
             numpy_helper.from_array(np.asarray([0.5, 0.25, 2.0], np.float32), "s"),
             four("z", TensorProto.UINT4, np.asarray([3, 0, 15]))]  # fmt: skip
    nodes = [
        helper.make_node("DequantizeLinear", ["a", "s"], ["da"], axis=1),
        helper.make_node("DequantizeLinear", ["b", "s", "z"], ["db"], axis=1),
        helper.make_node("MatMul", ["x", "da"], ["p"]),
        helper.make_node("MatMul", ["x", "db"], ["q"]),
        helper.make_node("Sub", ["p", "q"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", 1, ["N", 5])],
                              [helper.make_tensor_value_info("y", 1, ["N", 3])], inits)  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), [{"x": _rng(2, 5)}]


def empties() -> Made:
    """Extents of 0: a weight, a Slice, sums and a product over nothing, a Concat with nothing."""
    model = _text(
        """g (float[N,0] x, float[M,3] v) => (float[N,3] y, float[3] s, float[M,3] c, float m, float[A,3] t) {
            y = MatMul (x, w)
            t = Slice (v, two, one)
            s = ReduceSum <keepdims = 0> (t, zero)
            c = Concat <axis = 0> (t, v)
            m = ReduceSum <keepdims = 0> (t)
        }""",
        w=np.zeros((0, 3), np.float32), one=np.asarray([1]), two=np.asarray([2]), zero=np.asarray([0]),
    )  # fmt: skip
    return model, [{"x": np.zeros((n, 0), np.float32), "v": _rng(m, 3)} for n, m in ((2, 4), (0, 1), (1, 0))]


def scalars() -> Made:
    """Values without axes: reduced, expanded, reshaped, in a product."""
    model = _text(
        """g (float x, float[N] v) => (float y, float[1] z, float[A,B] e, float d) {
            r = ReduceMax <keepdims = 0> (v)
            a = Mul (x, r)
            y = Squeeze (a)
            z = Reshape (a, one)
            e = Expand (a, sh)
            d = MatMul (v, v)
        }""",
        one=np.asarray([-1]), sh=np.asarray([2, 3]),
    )  # fmt: skip
    return model, [{"x": np.asarray(1.5, np.float32), "v": _rng(n)} for n in (1, 4)]


def large_extents() -> Made:
    """Products of extents beyond 2^63 in shapes that are never made, and Range and Shape arithmetic beside it."""
    model = _text(
        """g (float[a,b,c,d] x) => (int64[1] n, float[A,B] y) {
            s = Shape (x)
            big = Mul (s, f)
            n = ReduceProd <keepdims = 1> (big)
            y = Reshape (x, t)
        }""",
        f=np.asarray([2**31, 2**31, 3, 1]), t=np.asarray([0, -1]),
    )  # fmt: skip
    return model, [{"x": _rng(2, 3, 1, 2)}]


def negative_axes() -> Made:
    """Axes counted from the end in everything that has them."""
    model = _text(
        """g (float[N,3,4] x) => (float[a,b,c] y, float[d,e] z, int64[f,g] i, float[h,k,l] t) {
            c = Concat <axis = -1> (x, x)
            p, q = Split <axis = -1, num_outputs = 2> (c)
            s = Softmax <axis = -2> (p)
            u = Unsqueeze (s, m1)
            v = Squeeze (u, m1)
            y = Gather <axis = -3> (v, zero)
            z = ReduceSum <keepdims = 0> (q, m2)
            i = ArgMax <axis = -1, keepdims = 0> (x)
            t = CumSum (x, ax)
        }""",
        m1=np.asarray([-1]), m2=np.asarray([-2]), zero=np.asarray([0, -1]), ax=np.asarray(-1),
    )  # fmt: skip
    return model, [{"x": _rng(2, 3, 4)}]


def outputs_as_they_come() -> Made:
    """Outputs that are inputs, a weight, one value under one name, and an input that nothing uses."""
    model = _text(
        """g (float[N] x, float[M] unused) => (float[N] x2, float[3] w2, float[N] y, float[N] z) {
            x2 = Identity (x)
            w2 = Identity (w)
            y = Relu (x)
            z = Identity (y)
        }""",
        w=_rng(3),
    )
    return model, [{"x": _rng(2), "unused": _rng(1)}]


def input_is_output() -> Made:
    """An input that is an output by the same name, and a weight that is one."""
    x = helper.make_tensor_value_info("x", 1, ["N"])
    w = helper.make_tensor_value_info("w", 1, [3])
    y = helper.make_tensor_value_info("y", 1, ["N"])
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    graph = helper.make_graph(nodes, "g", [x], [x, w, y], [numpy_helper.from_array(_rng(3), "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), [{"x": _rng(4)}]


def taken_names() -> Made:
    """Names that passes would like to make themselves, empty node names, one with odd characters."""
    model = _text(
        """g (float[N,8] x) => (float[N,8] y) {
            slice = Relu (x)
            axis = Neg (slice)
            const_1 = Add (axis, w)
            y_1 = MatMul (const_1, const)
            v0 = Identity (y_1)
            y_2 = Mul (v0, shape)
            y = Sigmoid (y_2)
        }""",
        w=_rng(8), const=_rng(8, 8), shape=np.float32(0.5),
    )  # fmt: skip
    odd = {"y_2": "y/2:0 %é\n", "v0": "v 0;#"}
    for node in model.graph.node:
        for field in (node.input, node.output):
            field[:] = [odd.get(n, n) for n in field]
        node.name = "n"[: len(node.name) % 2]
    return model, [{"x": _rng(2, 8)}]


def contrib_codes() -> Made:
    """Quantized operators of onnxruntime's own domain."""
    model = _text(
        """g (float[N,4] x) => (float[N,4] y, float[N,3] z) {
            q = QuantizeLinear (x, s, zp)
            a = com.microsoft.QLinearAdd (q, s, zp, q, s, zp, s2, zp)
            l = com.microsoft.QLinearSigmoid (a, s2, zp, s, zp)
            y = DequantizeLinear (l, s, zp)
            z = com.microsoft.DynamicQuantizeMatMul (x, w, ws, wz)
        }""",
        18, 9, ', "com.microsoft" : 1',
        s=np.float32(0.02), s2=np.float32(0.04), zp=np.asarray(120, np.uint8),
        w=np.arange(12, dtype=np.uint8).reshape(4, 3), ws=np.float32(0.1), wz=np.asarray(5, np.uint8),
    )  # fmt: skip
    return model, [{"x": _rng(n, 4)} for n in (1, 5)]


def contradicting_symbols() -> Made:
    """One symbol for extents that differ in truth: onnxruntime runs it and warns."""
    model = _text(
        """g (float[N,4] x, float[N] v) => (float[N,4] y, float[N] u) {
            y = Relu (x)
            w = Concat <axis = 0> (v, v)
            u = Neg (w)
        }"""
    )
    return model, [{"x": _rng(2, 4), "v": _rng(2)}, {"x": _rng(3, 4), "v": _rng(3)}]


def loop_in_scan() -> Made:
    """A Loop inside a Scan inside a Loop, all of them with captures and collected values."""
    model = _text(
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
        two=np.asarray(2), z=np.zeros(4, np.float32), w=_rng(4), zero=np.asarray([0]),
    )  # fmt: skip
    return model, [{"x": _rng(3, 4), "n": np.asarray(k)} for k in (1, 3)]


def half_constants() -> Made:
    """Constants computed in float16, which onnxruntime does not round before the operator that reads them."""
    model = _text(
        """g (float[N] x) => (float16[A] y, float16[B] z) {
            h = Cast <to=10> (x)
            k = Cast <to=10> (third)
            s = Mul (k, k)
            y = Mul (h, s)
            b = Cast <to=10> (large)
            i = Mul (b, b)
            z = Add (h, i)
        }""",
        third=np.float32(1 / 3),
        large=np.float32(300),
    )
    return model, [{"x": np.asarray([*np.linspace(0, 3, 40), -np.inf, np.inf, 7e4], np.float32)}]


def hard_constants() -> Made:
    """NaN, infinities, -0.0 and denormals in weights: folded, multiplied by 0 and 1, added to."""
    hard = np.asarray([np.nan, np.inf, -np.inf, -0.0, 0.0, 1e-40, 3.4e38, 1.0], np.float32)
    model = _text(
        """g (float[8] x) => (float[8] a, float[8] b, float[8] c, float[8] d, float[8] e, float[8] f, float[8] h) {
            m0 = Mul (x, zero)
            a = Add (m0, w)
            p = Add (w, w)
            b = Mul (p, x)
            n = Neg (w)
            c = Div (x, n)
            d = Sub (x, x)
            e = Add (x, nzero)
            r = Reciprocal (w)
            f = Max (x, r)
            k = Mul (x, one)
            h = Add (k, zero)
        }""",
        w=hard, zero=np.float32(0), one=np.float32(1), nzero=np.float32(-0.0),
    )  # fmt: skip
    return model, [{"x": hard}, {"x": hard[::-1].copy()}, {"x": _rng(8)}]


def integer_edges() -> Made:
    """Sums and products of integers that overflow, quotients and remainders of negatives, all of constants."""
    model = _text(
        """g (int32[N] x, int64[N] l, int8[N] t) => (int32[N] a, int64[N] b, int32[N] c, int32[N] d, int8[N] e,
                                                   float[4] f, int64[4] h, uint8[4] k) {
            p = Add (i, i)  a = Add (x, p)
            q = Mul (j, j)  b = Add (l, q)
            c = Div (x, seven)
            d = Mod (x, seven)
            e = Mod <fmod = 1> (t, s8)
            f = Mod <fmod = 1> (fw, fv)
            h = Cast <to = 7> (big)
            k = Cast <to = 2> (neg)
        }""",
        i=np.asarray([2**31 - 1], np.int32), j=np.asarray([2**62 + 3], np.int64), seven=np.asarray([-7], np.int32),
        s8=np.asarray([3], np.int8), fw=np.asarray([5.5, -5.5, np.inf, 1], np.float32),
        fv=np.asarray([2, 2, 2, np.nan], np.float32), big=np.asarray([1e10, -1e10, 2.9, -2.9], np.float32),
        neg=np.asarray([-1.0, 255.5, 254.9, 0.5], np.float32),
    )  # fmt: skip
    return model, [{"x": np.asarray([5, -5, 2**31 - 1], np.int32), "l": np.asarray([1, -1, 2**62]),
                    "t": np.asarray([7, -7, 127], np.int8)}]  # fmt: skip


def dropout_training() -> Made:
    """Dropout in training mode at ratio 0 and without, its mask an output."""
    model = _text(
        """g (float[N] x) => (float[N] y, bool[N] m, float[N] z) {
            y, m = Dropout (x, zero, yes)
            z = Dropout (x, half, no)
        }""",
        zero=np.float32(0), half=np.float32(0.5), yes=np.asarray(True), no=np.asarray(False),
    )  # fmt: skip
    return model, [{"x": _rng(6)}]


def batch_norm_training() -> Made:
    """BatchNormalization in training mode behind a convolution: running statistics are outputs."""
    model = _text(
        """g (float[N,3,4,4] x) => (float[N,2,4,4] y, float[2] m, float[2] v) {
            c = Conv (x, w)
            y, m, v = BatchNormalization <training_mode = 1, momentum = 0.8> (c, g, h, mean, var)
        }""",
        15, w=_rng(2, 3, 1, 1), g=_rng(2), h=_rng(2), mean=_rng(2), var=np.abs(_rng(2)) + 1,
    )  # fmt: skip
    return model, [{"x": _rng(n, 3, 4, 4)} for n in (1, 3)]


def notes_and_training() -> Made:
    """Metadata, doc strings, denotations, overridden defaults and a training graph."""
    model = _text("g (float[N] x) => (float[N] y) { t = Add (x, w)  y = Relu (t) }", ir=9, w=_rng(1))
    model.metadata_props.add(key="author", value="somebody é")
    model.doc_string, model.graph.doc_string, model.producer_name = "doc", "graph doc", "p"
    model.graph.input[0].doc_string = "an input"
    model.graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    model.graph.node[0].doc_string = "node doc"
    model.training_info.add().algorithm.name = "train"
    return model, [{"x": _rng(3)}]


def replaceable_weights() -> Made:
    """A weight that is an input too, which no caller hands in."""
    model = _text("g (float[N,3] x, float[3,2] w) => (float[N,2] y) { t = MatMul (x, w)  y = Relu (t) }", w=_rng(3, 2))
    return model, [{"x": _rng(2, 3)}]


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
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), [{"x": _rng(4)}]


def half_model() -> Made:
    """float16 throughout, sums that overflow, and a bfloat16 detour."""
    model = _text(
        """g (float16[N,16] x) => (float16[N,8] y, float16[N] s, float16[N,16] o) {
            p = MatMul (x, w)
            y = Softmax <axis = -1> (p)
            b = Mul (x, big)
            s = ReduceSum <keepdims = 0> (b, one)
            bf = Cast <to = 16> (x)
            o = Cast <to = 10> (bf)
        }""",
        w=_rng(16, 8, dtype=np.float16), big=np.float16(3e4), one=np.asarray([1]),
    )  # fmt: skip
    return model, [{"x": _rng(3, 16, dtype=np.float16)}]


def doubles() -> Made:
    """float64 through products, normalization and a reduction."""
    model = _text(
        """g (double[N,4] x) => (double[N,3] y, double[1] t) {
            p = MatMul (x, w)
            c = Mul (p, k)
            y = Add (c, b)
            t = ReduceSum (y, zero)
        }""",
        13, w=_rng(4, 3, dtype=np.float64), k=np.float64(1 / 3), b=_rng(3, dtype=np.float64), zero=np.asarray([0, 1]),
    )  # fmt: skip
    model.graph.output[1].type.tensor_type.ClearField("shape")
    return model, [{"x": _rng(2, 4, dtype=np.float64)}]


def data_dependent() -> Made:
    """Extents that numbers decide: NonZero, Compress, Unique, a Reshape and a Range of them."""
    model = _text(
        """g (float[N] x) => (float[A] y, int64[B] u, int64[C] r, float[D,E] m) {
            b = Greater (x, zero)
            y = Compress <axis = 0> (x, b)
            i = NonZero (b)
            f = Squeeze (i, a0)
            u, k, v, w = Unique <axis = 0, sorted = 1> (f)
            n = Size (y)
            r = Range (o, n, one)
            e = Unsqueeze (n, a0)
            sh = Concat <axis = 0> (e, a1)
            m = Reshape (y, sh)
        }""",
        zero=np.float32(0), a0=np.asarray([0]), a1=np.asarray([1]), o=np.asarray(0), one=np.asarray(1),
    )  # fmt: skip
    return model, [{"x": _rng(n, seed=n)} for n in (8, 1)] + [{"x": -np.ones(3, np.float32)}]


def recurrent_with_lengths() -> Made:
    """An LSTM in both directions with lengths, its last states outputs, and a GRU before reset."""
    model = _text(
        """g (float[T,B,3] x, int32[B] n) => (float[T,2,B,4] y, float[2,B,4] h, float[2,B,4] c, float[T,1,B,4] z) {
            y, h, c = LSTM <hidden_size = 4, direction = "bidirectional"> (x, w, r, b, n)
            z = GRU <hidden_size = 4, linear_before_reset = 1> (x, gw, gr, gb)
        }""",
        14, w=_rng(2, 16, 3), r=_rng(2, 16, 4), b=_rng(2, 32), gw=_rng(1, 12, 3), gr=_rng(1, 12, 4), gb=_rng(1, 24),
    )  # fmt: skip
    return model, [{"x": _rng(5, 2, 3), "n": np.asarray([5, 2], np.int32)}]


def attention_masks() -> Made:
    """Attention whose mask hides whole rows with minus infinity."""
    model = _text(
        """g (float[N,2,S,4] q, float[N,2,T,4] k, float[N,2,T,4] v, float[N,1,S,T] m) => (float[N,2,S,4] y) {
            kt = Transpose <perm = [0,1,3,2]> (k)
            s = MatMul (q, kt)
            d = Div (s, two)
            a = Add (d, m)
            p = Softmax <axis = -1> (a)
            y = MatMul (p, v)
        }""",
        two=np.float32(2),
    )
    mask = np.zeros((1, 1, 3, 5), np.float32)
    mask[..., 3:] = -np.inf
    dead = mask.copy()
    dead[:, :, 1] = -np.inf
    q, k, v = _rng(1, 2, 3, 4), _rng(1, 2, 5, 4, seed=1), _rng(1, 2, 5, 4, seed=2)
    return model, [{"q": q, "k": k, "v": v, "m": m} for m in (mask, dead)]


def duplicated() -> Made:
    """The same weight and the same op several times, with other attributes spelled as their defaults."""
    w = _rng(4, 4)
    model = _text(
        """g (float[N,4] x) => (float[N,4] y, float[N,4] z) {
            a = MatMul (x, w1)  b = MatMul (x, w2)
            c = Softmax (a)     d = Softmax <axis = -1> (b)
            y = Add (c, d)
            e = Gemm (x, w1)    f = Gemm <alpha = 1.0, transB = 0> (x, w2)
            z = Sub (e, f)
        }""",
        w1=w, w2=w.copy(),
    )  # fmt: skip
    return model, [{"x": _rng(3, 4)}]


def resize_roundings() -> Made:
    """Resize by scales that float32 rounds, in four ways of coordinates, over odd extents."""
    modes = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
    nodes = [
        helper.make_node(
            "Resize", ["x", "", "s"], [f"y{i}"], mode=("linear", "nearest")[i % 2], coordinate_transformation_mode=mode
        )
        for i, mode in enumerate(modes)
    ]
    outputs = [helper.make_tensor_value_info(f"y{i}", 1, None) for i in range(4)]
    scales = numpy_helper.from_array(np.asarray([1, 1, 0.7, 1.3], np.float32), "s")
    x = helper.make_tensor_value_info("x", 1, ["N", 1, "H", "W"])
    graph = helper.make_graph(nodes, "g", [x], outputs, [scales])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return model, [{"x": _rng(1, 1, h, w)} for h, w in ((10, 30), (7, 5))]


def float8_codes() -> Made:
    """QuantizeLinear and DequantizeLinear over float8."""
    codes = np.asarray([0.5, -2.0, 448.0, 0.0], ml_dtypes.float8_e4m3fn)
    model = _text(
        """g (float[N] x) => (float[N] y, float[4] z) {
            q = QuantizeLinear (x, s, zp)
            y = DequantizeLinear (q, s, zp)
            z = DequantizeLinear (w, s)
        }""",
        19, s=np.float32(0.1),
    )  # fmt: skip
    for name, array in (("w", codes), ("zp", np.zeros((), ml_dtypes.float8_e4m3fn))):
        model.graph.initializer.append(
            helper.make_tensor(name, TensorProto.FLOAT8E4M3FN, array.shape, array.tobytes(), raw=True)
        )
    return model, [{"x": np.asarray([0.1, -50.0, 1e3, np.inf, np.nan], np.float32)}]


def late_weights() -> Made:
    """Weights inside branches that hide names of outside, one of them large."""
    sub = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["t"])], "t", [], [helper.make_tensor_value_info("t", 1, ["N", 64])],
        [numpy_helper.from_array(_rng(64, 64, seed=3), "w")],
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
                              [numpy_helper.from_array(_rng(64, 64) / 8, "v")])  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return model, [{"x": _rng(2, 64), "c": np.asarray(c)} for c in (True, False)]


MODELS: dict[str, Callable[[], Made]] = {
    f.__name__: f
    for f in (
        if_captures, if_returns_weight, nested_scopes, functions_of_one_name, functions_with_branches,
        functions_with_defaults, sequences,
        sequence_input_output, optional_in_branches, strings, narrow_floats, four_bits, empties, scalars,
        large_extents, negative_axes, outputs_as_they_come, input_is_output, taken_names, contrib_codes,
        contradicting_symbols, loop_in_scan, half_constants, hard_constants, integer_edges,
        dropout_training, batch_norm_training, notes_and_training, replaceable_weights, sparse_and_constants,
        half_model, doubles, data_dependent, recurrent_with_lengths, attention_masks, duplicated, resize_roundings,
        float8_codes, late_weights,
    )
}  # fmt: skip
MODELS |= {f"opset_{n}": old_opset(n) for n in (7, 8, 9, 10)}
