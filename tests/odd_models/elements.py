"""Element types and numbers: narrow floats, codes, NaN, overflow, rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
from onnx import TensorProto, helper, numpy_helper

from odd_models.making import Made, rng, text


def strings() -> Made:
    """Strings compared, taken, joined, mapped."""
    model = text(
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
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), [{"x": rng(2, 5)}]


def contrib_codes() -> Made:
    """Quantized operators of onnxruntime's own domain."""
    model = text(
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
    return model, [{"x": rng(n, 4)} for n in (1, 5)]


def half_constants() -> Made:
    """Constants computed in float16, which onnxruntime does not round before the operator that reads them."""
    model = text(
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
    model = text(
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
    return model, [{"x": hard}, {"x": hard[::-1].copy()}, {"x": rng(8)}]


def integer_edges() -> Made:
    """Sums and products of integers that overflow, quotients and remainders of negatives, all of constants."""
    model = text(
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


def half_model() -> Made:
    """float16 throughout, sums that overflow, and a bfloat16 detour."""
    model = text(
        """g (float16[N,16] x) => (float16[N,8] y, float16[N] s, float16[N,16] o) {
            p = MatMul (x, w)
            y = Softmax <axis = -1> (p)
            b = Mul (x, big)
            s = ReduceSum <keepdims = 0> (b, one)
            bf = Cast <to = 16> (x)
            o = Cast <to = 10> (bf)
        }""",
        w=rng(16, 8, dtype=np.float16), big=np.float16(3e4), one=np.asarray([1]),
    )  # fmt: skip
    return model, [{"x": rng(3, 16, dtype=np.float16)}]


def doubles() -> Made:
    """float64 through products, normalization and a reduction."""
    model = text(
        """g (double[N,4] x) => (double[N,3] y, double[1] t) {
            p = MatMul (x, w)
            c = Mul (p, k)
            y = Add (c, b)
            t = ReduceSum (y, zero)
        }""",
        13, w=rng(4, 3, dtype=np.float64), k=np.float64(1 / 3), b=rng(3, dtype=np.float64), zero=np.asarray([0, 1]),
    )  # fmt: skip
    model.graph.output[1].type.tensor_type.ClearField("shape")
    return model, [{"x": rng(2, 4, dtype=np.float64)}]


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
    return model, [{"x": rng(1, 1, h, w)} for h, w in ((10, 30), (7, 5))]


def float8_codes() -> Made:
    """QuantizeLinear and DequantizeLinear over float8."""
    codes = np.asarray([0.5, -2.0, 448.0, 0.0], ml_dtypes.float8_e4m3fn)
    model = text(
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


MODELS: list[Callable[[], Made]] = [
    strings, narrow_floats, four_bits, contrib_codes, half_constants, hard_constants, integer_edges, half_model,
    doubles, resize_roundings, float8_codes,
]  # fmt: skip
