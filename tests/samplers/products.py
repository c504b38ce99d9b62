"""Samplers of products, recurrent operators, attention, signals and text."""

from __future__ import annotations

import numpy as np

from samplers.sample import (
    Operand,
    Rng,
    Sample,
    Sampler,
    extent,
    extents,
    floats,
    maybe,
    one,
    pick,
    weight,
    whole,
)


def _factors(r: Rng) -> tuple[tuple[int, ...], tuple[int, ...]]:
    m, k, n = extent(r), 1 + extent(r), extent(r)
    batch = extents(r, int(r.integers(0, 3)))
    a_batch = tuple(1 if r.random() < 0.3 else e for e in batch)
    b_batch = tuple(1 if r.random() < 0.3 else e for e in batch)[int(r.integers(0, len(batch) + 1)) :]
    a = (k,) if r.random() < 0.15 else (*a_batch, m, k)
    b = (k,) if r.random() < 0.15 else (*b_batch, k, n)
    return a, b


def matmul(r: Rng) -> Sample:
    a, b = _factors(r)
    if r.random() < 0.2:
        bytes_ = [whole(r, 0, 9, *s, dtype=np.uint8) for s in (a, b)]
        return one("MatMulInteger", bytes_, opset=10)
    other = floats(r, *b)
    return one("MatMul", [floats(r, *a), weight(other) if r.random() < 0.5 else other], opset=pick(r, 9, 13))


def gemm(r: Rng) -> Sample:
    m, k, n = extent(r), 1 + extent(r), extent(r)
    flags = [int(r.random() < 0.5) for _ in range(2)]
    a, b = (k, m) if flags[0] else (m, k), (n, k) if flags[1] else (k, n)
    c = maybe(r, floats(r, *pick(r, (n,), (1, n), (m, 1), (m, n), (1,), ())))
    return one("Gemm", [floats(r, *a), floats(r, *b), c], transA=flags[0], transB=flags[1], opset=pick(r, 11, 13))


def einsum(r: Rng) -> Sample:
    e = {letter: 1 + extent(r) for letter in "abijk"}
    equation = pick(
        r,
        "ij,jk->ik",
        "ij,jk",
        "bij,bjk->bik",
        "ij->ji",
        "ij->",
        "ii->i",
        "i,j->ij",
        "...ij,...jk->...ik",
        "ji",
        "ij,ij->i",
        "bij,bjk->bk",
    )
    shapes = [
        [e["b"]] * part.count("...") + [e[c] for c in part.replace("...", "")]
        for part in equation.split("->")[0].split(",")
    ]
    return one("Einsum", [floats(r, *s) for s in shapes], equation=equation, empty=False)


def quantized_matmul(r: Rng) -> Sample:
    m, k, n = 1 + extent(r), 1 + extent(r), 1 + extent(r)
    one_, zero = np.asarray(0.1, np.float32), np.asarray(3, np.uint8)
    a, b = whole(r, 0, 9, m, k, dtype=np.uint8), whole(r, 0, 9, k, n, dtype=np.uint8)
    tail = [weight(one_), weight(zero)]
    return one("QLinearMatMul", [a, *tail, weight(b), *tail, *tail], opset=10)


def quantized_conv(r: Rng) -> Sample:
    one_, zero = weight(np.asarray(0.1, np.float32)), weight(np.asarray(3, np.uint8))
    x, w = (
        whole(r, 0, 9, 1, 2, 4 + extent(r), 4 + extent(r), dtype=np.uint8),
        whole(r, 0, 9, 3, 2, 3, 2, dtype=np.uint8),
    )
    return one(
        "QLinearConv",
        [x, one_, zero, weight(w), one_, zero, one_, zero],
        opset=10,
        strides=maybe(r, [2, 1]),
        auto_pad=maybe(r, pick(r, "SAME_UPPER", "VALID")),
        dilations=maybe(r, [1, 2]),
        empty=False,
    )


def det(r: Rng) -> Sample:
    side = 1 + extent(r) % 4
    return one("Det", [floats(r, *extents(r, int(r.integers(0, 3))), side, side)])


def recurrent(r: Rng) -> Sample:
    name = pick(r, "LSTM", "GRU", "RNN")
    gates, hidden, width = {"LSTM": 4, "GRU": 3, "RNN": 1}[name], 1 + extent(r), 1 + extent(r)
    length, batch, direction = 1 + extent(r), 1 + extent(r), pick(r, "forward", "reverse", "bidirectional")
    ways = 2 if direction == "bidirectional" else 1
    layout = 0
    x = floats(r, length, batch, width)
    w, u = floats(r, ways, gates * hidden, width), floats(r, ways, gates * hidden, hidden)
    bias = maybe(r, weight(floats(r, ways, 2 * gates * hidden)))
    lengths = maybe(r, whole(r, 1, length + 1, batch, dtype=np.int32), 0.3)
    return one(
        name,
        [x, weight(w), weight(u), bias, lengths],
        opset=pick(r, 7, 14),
        outputs=3 if name == "LSTM" else 2,
        hidden_size=hidden,
        direction=direction,
        layout=layout or None,
        empty=False,
    )


def attention(r: Rng) -> Sample:
    heads, size, batch = 1 + extent(r) % 4, 1 + extent(r) % 5, 1 + extent(r)
    queries, keys = 1 + extent(r), 1 + extent(r)
    if r.random() < 0.5:
        q, k, v = (floats(r, batch, heads, n, size) for n in (queries, keys, keys))
        return one("Attention", [q, k, v], opset=pick(r, 23, 24), empty=False)
    q, k, v = (floats(r, batch, n, heads * size) for n in (queries, keys, keys))
    mask = maybe(r, floats(r, queries, keys))
    past = [floats(r, batch, heads, 3, size) for _ in range(2)] if r.random() < 0.4 and mask is None else []
    return one(
        "Attention",
        [q, k, v, mask, *past],
        opset=23,
        outputs=3 if past else 1,
        q_num_heads=heads,
        kv_num_heads=heads,
        empty=False,
    )


def signal(r: Rng) -> Sample:
    kind = int(r.integers(4))
    if kind == 0:
        name = pick(r, "HannWindow", "HammingWindow", "BlackmanWindow")
        size = Operand(np.asarray(int(r.integers(1, 9)), np.int64), param=True)
        return one(name, [size], opset=17, periodic=maybe(r, 0), output_datatype=maybe(r, pick(r, 1, 11)))
    if kind == 1:
        batch, length = 1 + extent(r), 2 + extent(r)
        x = floats(r, batch, length, pick(r, 1, 2))
        size = maybe(r, Operand(np.asarray(int(r.integers(1, 9)), np.int64), param=True))
        if r.random() < 0.4:
            return one("DFT", [x, size], opset=17, axis=1, onesided=maybe(r, int(x.shape[2] == 1)), empty=False)
        # Without an axis, onnxruntime 1.31 ends the process.
        axis = Operand(np.asarray(pick(r, 1, -2), np.int64), weight=True)
        return one("DFT", [x, size, axis], opset=20, onesided=maybe(r, int(x.shape[2] == 1)), empty=False)
    if kind == 2:
        frame = int(r.integers(2, 6))
        x = floats(r, 1 + extent(r), 8 + extent(r), 1)
        step, size = (Operand(np.asarray(v, np.int64), param=True) for v in (int(r.integers(1, 4)), frame))
        window = weight(np.abs(floats(r, frame)))
        return one("STFT", [x, step, window, size], opset=17, onesided=maybe(r, int(r.integers(2))))
    values = (int(r.integers(3, 6)), int(r.integers(8, 16)), 8000)
    sizes = [Operand(np.asarray(v, np.int64), param=True) for v in values]
    edges = [weight(np.asarray(v, np.float32)) for v in (0.0, 3000.0)]
    return one("MelWeightMatrix", [*sizes, *edges], opset=17, output_datatype=maybe(r, 11))


def text(r: Rng) -> Sample:
    words = np.asarray(r.choice(["a", "b c", "the", "Straße"], extents(r, int(r.integers(1, 3)))), object)
    kind = int(r.integers(4))
    if kind == 0:
        flat = np.asarray(r.choice(["a", "b", "the"], 1 + extent(r)), object)
        shape = pick(r, flat.shape, (1, *flat.shape))
        return one(
            "StringNormalizer",
            [flat.reshape(shape)],
            opset=10,
            stopwords=maybe(r, ["a"]),
            case_change_action="UPPER",
            locale="C",
            is_case_sensitive=1,
        )
    if kind == 1:
        return one("StringConcat", [words, np.asarray(r.choice(["x", "y"], words.shape), object)], opset=20)
    if kind == 2:
        return one("StringSplit", [words], opset=20, outputs=2, delimiter=maybe(r, " "))
    return one("RegexFullMatch", [words], opset=20, pattern="[a-z]*")


def tfidf(r: Rng) -> Sample:
    shape = pick(r, (5,), (2, 5))
    return one(
        "TfIdfVectorizer",
        [whole(r, 0, 5, *shape)],
        opset=9,
        mode="TF",
        min_gram_length=1,
        max_gram_length=2,
        max_skip_count=0,
        ngram_counts=[0, 3],
        ngram_indexes=[0, 1, 2, 4],
        pool_int64s=[1, 2, 3, 1, 2],
    )


def classical(r: Rng) -> Sample:
    kind, n = int(r.integers(3)), 1 + extent(r)
    domain = "ai.onnx.ml"
    if kind == 0:
        chosen = whole(r, 0, 4, *pick(r, (), (1,), (n,)), extent(r) + 1)
        return one(
            "ArrayFeatureExtractor",
            [floats(r, *pick(r, (), (n,), (2, n)), 4), pick(r, chosen, weight(chosen))],
            domain=domain,
        )
    if kind == 1:
        return one("Binarizer", [floats(r, *extents(r, 2))], domain=domain, threshold=0.1)
    return one(
        "LabelEncoder",
        [whole(r, 0, 4, *extents(r, 2))],
        domain=domain,
        keys_int64s=[0, 1, 2],
        values_floats=[0.5, 1.5, 2.5],
    )


SAMPLERS: tuple[Sampler, ...] = (
    matmul,
    matmul,
    gemm,
    einsum,
    quantized_matmul,
    quantized_conv,
    det,
    recurrent,
    recurrent,
    attention,
    signal,
    signal,
    text,
    tfidf,
    classical,
)
