"""Operators with forms that are seldom seen: of old opsets, in training, with lengths and masks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import helper

from odd_models.making import Made, rng, text


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
        model = text(
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
            g=np.abs(rng(3)), h=rng(3), g2=rng(3), v=np.abs(rng(3)) + 1, **({
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
        return model, [{"x": rng(n, 3, 5, 5)} for n in (1, 2)]

    return make


def dropout_training() -> Made:
    """Dropout in training mode at ratio 0 and without, its mask an output."""
    model = text(
        """g (float[N] x) => (float[N] y, bool[N] m, float[N] z) {
            y, m = Dropout (x, zero, yes)
            z = Dropout (x, half, no)
        }""",
        zero=np.float32(0), half=np.float32(0.5), yes=np.asarray(True), no=np.asarray(False),
    )  # fmt: skip
    return model, [{"x": rng(6)}]


def batch_norm_training() -> Made:
    """BatchNormalization in training mode behind a convolution: running statistics are outputs."""
    model = text(
        """g (float[N,3,4,4] x) => (float[N,2,4,4] y, float[2] m, float[2] v) {
            c = Conv (x, w)
            y, m, v = BatchNormalization <training_mode = 1, momentum = 0.8> (c, g, h, mean, var)
        }""",
        15, w=rng(2, 3, 1, 1), g=rng(2), h=rng(2), mean=rng(2), var=np.abs(rng(2)) + 1,
    )  # fmt: skip
    return model, [{"x": rng(n, 3, 4, 4)} for n in (1, 3)]


def recurrent_with_lengths() -> Made:
    """An LSTM in both directions with lengths, its last states outputs, and a GRU before reset."""
    model = text(
        """g (float[T,B,3] x, int32[B] n) => (float[T,2,B,4] y, float[2,B,4] h, float[2,B,4] c, float[T,1,B,4] z) {
            y, h, c = LSTM <hidden_size = 4, direction = "bidirectional"> (x, w, r, b, n)
            z = GRU <hidden_size = 4, linear_before_reset = 1> (x, gw, gr, gb)
        }""",
        14, w=rng(2, 16, 3), r=rng(2, 16, 4), b=rng(2, 32), gw=rng(1, 12, 3), gr=rng(1, 12, 4), gb=rng(1, 24),
    )  # fmt: skip
    return model, [{"x": rng(5, 2, 3), "n": np.asarray([5, 2], np.int32)}]


def attention_masks() -> Made:
    """Attention whose mask hides whole rows with minus infinity."""
    model = text(
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
    q, k, v = rng(1, 2, 3, 4), rng(1, 2, 5, 4, seed=1), rng(1, 2, 5, 4, seed=2)
    return model, [{"q": q, "k": k, "v": v, "m": m} for m in (mask, dead)]


MODELS: list[Callable[[], Made]] = [
    dropout_training, batch_norm_training, recurrent_with_lengths, attention_masks,
]  # fmt: skip
