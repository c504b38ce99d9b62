"""Extents and axes: none, of 0, huge, counted from the end, decided by numbers, contradictory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from odd_models.making import Made, rng, text


def empties() -> Made:
    """Extents of 0: a weight, a Slice, sums and a product over nothing, a Concat with nothing."""
    model = text(
        """g (float[N,0] x, float[M,3] v) => (float[N,3] y, float[3] s, float[M,3] c, float m, float[A,3] t) {
            y = MatMul (x, w)
            t = Slice (v, two, one)
            s = ReduceSum <keepdims = 0> (t, zero)
            c = Concat <axis = 0> (t, v)
            m = ReduceSum <keepdims = 0> (t)
        }""",
        w=np.zeros((0, 3), np.float32), one=np.asarray([1]), two=np.asarray([2]), zero=np.asarray([0]),
    )  # fmt: skip
    return model, [{"x": np.zeros((n, 0), np.float32), "v": rng(m, 3)} for n, m in ((2, 4), (0, 1), (1, 0))]


def scalars() -> Made:
    """Values without axes: reduced, expanded, reshaped, in a product."""
    model = text(
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
    return model, [{"x": np.asarray(1.5, np.float32), "v": rng(n)} for n in (1, 4)]


def large_extents() -> Made:
    """Products of extents beyond 2^63 in shapes that are never made, and Range and Shape arithmetic beside it."""
    model = text(
        """g (float[a,b,c,d] x) => (int64[1] n, float[A,B] y) {
            s = Shape (x)
            big = Mul (s, f)
            n = ReduceProd <keepdims = 1> (big)
            y = Reshape (x, t)
        }""",
        f=np.asarray([2**31, 2**31, 3, 1]), t=np.asarray([0, -1]),
    )  # fmt: skip
    return model, [{"x": rng(2, 3, 1, 2)}]


def negative_axes() -> Made:
    """Axes counted from the end in everything that has them."""
    model = text(
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
    return model, [{"x": rng(2, 3, 4)}]


def contradicting_symbols() -> Made:
    """One symbol for extents that differ in truth: onnxruntime runs it and warns."""
    model = text(
        """g (float[N,4] x, float[N] v) => (float[N,4] y, float[N] u) {
            y = Relu (x)
            w = Concat <axis = 0> (v, v)
            u = Neg (w)
        }"""
    )
    return model, [{"x": rng(2, 4), "v": rng(2)}, {"x": rng(3, 4), "v": rng(3)}]


def data_dependent() -> Made:
    """Extents that numbers decide: NonZero, Compress, Unique, a Reshape and a Range of them."""
    model = text(
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
    return model, [{"x": rng(n, seed=n)} for n in (8, 1)] + [{"x": -np.ones(3, np.float32)}]


MODELS: list[Callable[[], Made]] = [
    empties, scalars, large_extents, negative_axes, contradicting_symbols, data_dependent,
]  # fmt: skip
