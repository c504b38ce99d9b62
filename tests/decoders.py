"""Small decoders with key/value caches, spelled as several exporters spell them; of numpy and onnx only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]
LOWEST = float(np.finfo(np.float32).min)


@dataclass(frozen=True)
class Style:
    """How a decoder is built and spelled.

    Args:
        layers: How many.
        heads: Query heads.
        kv: Key and value heads.
        width: Width of a head.
        vocabulary: Tokens.
        norm: `rms`, `rms_reciprocal` (1 / sqrt), `layer` (LayerNormalization), `layer_parts` (spelled out).
        rotary: `halves`, `interleaved`, `partial` (half of the width), `table` (cos and sin looked up), `none`.
        positions: `input` (an input), `computed` (from past and step), `learned` (a table of 64, added; an input);
            such a table for computed ones (`learned computed`) or for the mask's ones before a step (`learned masked`).
        mask: `lowest` or `infinite` (filled in where causal and padding hide), `triangle` (sliced from a constant, with
            padding added), `causal` (no padding), `positions` (keys up to `position_ids`), `none`.
        cache: `concat`; `stacked` (one input per layer, keys and values on axis 0); `flat` (one input for all).
        names: `hf`, `past` (past.N.key), `legacy` (past_key_N), `odd` (in3, out5).
        symbols: `full` (batch, sequence, past, past + sequence), `apart` (each its own), `unnamed`.
        gated: SiLU and gate; else Gelu by Erf.
        qk_norm: Norm each head's queries and keys.
        tied: The head is the transposed embedding.
        computed: Targets of reshapes are put together from extents, with -1 for the heads.
        packed: Queries, keys and values come out of one product with a bias, and are split.
        scale_keys: Square root of the scale on queries and on keys, as SDPA does.
        window: Keys that a step sees at most, itself included; 0 for all.
        softcap: Bound of the scores by tanh, 0 for none.
        bias: What is added to the scores of each head: `none`, `alibi` (slopes times key numbers), `t5` (a table of
            relative positions).
        guarded: 0 in place of weights that are not a number, as PyTorch's exporters write it.
        flat_keys: Keys are transposed with batch and heads merged, as its newer one does.
        miss: What is wrong, so that no operator computes it (`MISSES`).
        seed: Of weights.
    """

    layers: int = 2
    heads: int = 4
    kv: int = 2
    width: int = 16
    vocabulary: int = 97
    norm: str = "rms"
    rotary: str = "halves"
    positions: str = "input"
    mask: str = "lowest"
    cache: str = "concat"
    names: str = "hf"
    symbols: str = "full"
    gated: bool = True
    qk_norm: bool = False
    tied: bool = True
    scale_keys: bool = False
    window: int = 0
    softcap: float = 0.0
    bias: str = "none"
    guarded: bool = False
    flat_keys: bool = False
    miss: str = ""
    computed: bool = False
    packed: bool = False
    seed: int = 0

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return self.heads * self.width


class Writer:
    """Adds nodes; every method gives the name of its result."""

    def __init__(self, style: Style, opset: int = 18) -> None:
        self.style, self.opset = style, opset
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(style.seed)
        self.count = 0

    def __getattr__(self, kind: str) -> Any:
        if not kind[:1].isupper():
            raise AttributeError(kind)

        def make(*inputs: Any, out: str | list[str] | None = None, **attrs: Any) -> str:
            names = [i if isinstance(i, str) else self.const(i) for i in inputs]
            self.count += 1
            results = [out] if isinstance(out, str) else out or [f"{kind.lower()}_{self.count}"]
            self.nodes.append(helper.make_node(kind, names, results, name=f"n{self.count}_{kind}", **attrs))
            return results[0]

        return make

    def const(self, value: Any) -> str:
        """Add a constant; plain numbers are int64, or float32 where they are floats."""
        array = np.asarray(value)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        self.count += 1
        self.weights.append(numpy_helper.from_array(array.copy(order="C"), f"c{self.count}"))
        return f"c{self.count}"

    def weight(self, *shape: int) -> Array:
        """Give random weights."""
        return (self.rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)

    def norm(self, x: str, width: int) -> str:
        """Normalize the last axis."""
        gain = (1 + 0.1 * self.rng.standard_normal(width)).astype(np.float32)
        style = self.style.norm
        if style == "layer":
            return str(self.LayerNormalization(x, gain, self.weight(width) * 0.1, axis=-1, epsilon=1e-5))
        if style == "layer_parts":
            x = self.Sub(x, self.ReduceMean(x, [-1]))
        square = self.Pow(x, 2.0) if style != "layer_parts" else self.Mul(x, x)
        if self.style.miss == "norm of cubes":
            square = self.Abs(self.Pow(x, 3.0))
        root = self.Sqrt(self.Add(self.ReduceMean(square, [-1]), 1e-5))
        if self.style.miss == "epsilon outside":
            root = self.Add(self.Sqrt(self.ReduceMean(square, [-1])), 1e-2)
        if style == "rms_reciprocal":
            return str(self.Mul(gain, self.Mul(x, self.Reciprocal(root))))
        if style == "layer_parts":
            return str(self.Add(self.Mul(self.Div(x, root), gain), self.weight(width) * 0.1))
        return str(self.Mul(self.Div(x, root), gain))

    def turn(self, x: str, cos: str, sin: str) -> str:
        """Rotary embedding of [batch, heads, steps, width]."""
        style, width = self.style, self.style.width
        rest = None
        if style.rotary == "partial":
            width //= 2
            rest = self.Slice(x, [width], [np.iinfo(np.int64).max], [3], [1])
            x = self.Slice(x, [0], [width], [3], [1])
        if style.rotary == "interleaved":
            even = self.Slice(x, [0], [width], [3], [2])
            odd = self.Slice(x, [1], [width], [3], [2])
            pairs = self.Concat(self.Unsqueeze(self.Neg(odd), [-1]), self.Unsqueeze(even, [-1]), axis=-1)
            other = self.Reshape(pairs, [0, 0, -1, width])
        else:
            first = self.Slice(x, [0], [width // 2], [3], [1])
            second = self.Slice(x, [width // 2], [np.iinfo(np.int64).max], [3], [1])
            wrong = self.style.miss == "rotary sign"
            other = self.Concat(*((second, self.Neg(first)) if wrong else (self.Neg(second), first)), axis=-1)
        turned = self.Add(self.Mul(x, cos), self.Mul(other, sin))
        return str(self.Concat(turned, rest, axis=-1) if rest else turned)

    def angles(self, positions: str) -> tuple[str, str]:
        """Cosines and sines as [batch, 1, steps, width]."""
        width = self.style.width // (2 if self.style.rotary == "partial" else 1)
        inverse = (10000.0 ** -(np.arange(0, width, 2) / width)).astype(np.float32)
        twice = (
            (lambda a: np.repeat(a, 2, -1))
            if self.style.rotary == "interleaved"
            else lambda a: np.concatenate([a, a], -1)
        )
        if self.style.rotary == "table":
            table = twice(np.arange(64)[:, None] * inverse).astype(np.float32)
            cos, sin = (self.Gather(f(table), positions) for f in (np.cos, np.sin))
        else:
            column = self.Cast(self.Unsqueeze(positions, [2]), to=TensorProto.FLOAT)
            if self.style.rotary == "interleaved":
                angle = self.Mul(column, twice(inverse))
            else:
                half = self.Mul(column, inverse)
                other = self.Mul(half, 0.5) if self.style.miss == "rotary halves differ" else half
                angle = self.Concat(half, other, axis=-1)
            cos, sin = self.Cos(angle), self.Sin(angle)
        return self.Unsqueeze(cos, [1]), self.Unsqueeze(sin, [1])

    def grids(self, steps: str, past: str, total: str) -> tuple[str, str]:
        """Numbers of the keys as [1, 1, 1, total], of the steps as [1, 1, steps, 1]."""
        keys = self.Unsqueeze(self.Range(0, total, 1), [0, 1, 2])
        rows = self.Unsqueeze(self.Add(self.Range(0, steps, 1), past), [0, 1, 3])
        return keys, rows

    def mask(self, steps: str, past: str, total: str) -> str | None:
        """What is added to the scores."""
        style = self.style
        if style.mask == "none":
            return None
        if style.mask == "triangle":
            hidden = np.where(np.tri(64), 0, LOWEST / 4).astype(np.float32)[None, None]
            rows = self.Slice(hidden, self.Unsqueeze(past, [0]), self.Unsqueeze(total, [0]), [2], [1])
            causal = self.Slice(rows, [0], self.Unsqueeze(total, [0]), [3], [1])
            padding = self.Cast(self.Unsqueeze("attention_mask", [1, 2]), to=TensorProto.FLOAT)
            return str(self.Add(causal, self.Mul(self.Sub(1.0, padding), LOWEST / 4)))
        keys, rows = self.grids(steps, past, total)
        if style.mask == "positions":
            rows = self.Unsqueeze("position_ids", [1, 3])
        shown = self.LessOrEqual(keys, rows)
        if style.window:
            shown = self.And(shown, self.Greater(keys, self.Sub(rows, style.window)))
        if style.mask in ("lowest", "infinite"):
            padding = self.Cast(self.Unsqueeze("attention_mask", [1, 2]), to=TensorProto.BOOL)
            shown = self.And(shown, padding)
        return str(self.Where(shown, 0.0, -np.inf if style.mask == "infinite" else LOWEST))

    def bias(self, steps: str, past: str, total: str) -> str | None:
        """What is added to each head's scores, [1, heads, steps or 1, total]."""
        heads = self.style.heads
        if self.style.bias == "none":
            return None
        keys, rows = self.grids(steps, past, total)
        if self.style.bias == "alibi":
            slopes = (2.0 ** -np.arange(1, heads + 1)).astype(np.float32).reshape(1, heads, 1, 1)
            return str(self.Mul(self.Cast(keys, to=TensorProto.FLOAT), slopes))
        distance = self.Min(self.Max(self.Sub(rows, keys), 0), 15)
        table = self.Gather(self.weight(16, heads), self.Squeeze(distance, [0, 1]))
        return str(self.Unsqueeze(self.Transpose(table, perm=[2, 0, 1]), [0]))


def decoder(style: Style = Style(), opset: int = 18) -> onnx.ModelProto:
    """Build a decoder: ids (mask, positions, past) in, logits (present) out."""
    s, w = style, Writer(style, opset)
    shape = w.Shape("input_ids")
    steps = w.Gather(shape, 1)
    first = {"concat": cache_name(s, 0, "key"), "stacked": cache_name(s, 0, ""), "flat": "past"}[s.cache]
    past = w.Gather(w.Shape(first), {"concat": 2, "stacked": 3, "flat": 4}[s.cache])
    total = w.Add(past, steps)
    table = w.const(w.weight(s.vocabulary, s.hidden) * np.float32(5))
    x = w.Gather(table, "input_ids")
    positions = "position_ids"
    if s.positions in ("computed", "learned computed"):
        positions = w.Unsqueeze(w.Add(w.Range(0, steps, 1), past), [0])
    elif s.positions == "learned masked":
        before = w.Sub(w.CumSum("attention_mask", 1), 1)
        positions = w.Slice(w.Max(before, 0), w.Unsqueeze(past, [0]), [np.iinfo(np.int64).max], [1])
    if s.positions.startswith("learned"):
        x = w.Add(x, w.Gather(w.weight(64, s.hidden), positions))
    cos, sin = w.angles(positions) if s.rotary != "none" else ("", "")
    mask, bias = w.mask(steps, past, total), w.bias(steps, past, total)
    if bias:
        mask = w.Add(bias, mask) if mask else bias
    outputs = ["logits"]
    for layer in range(s.layers):
        x = _layer(w, x, layer, mask, cos, sin, outputs)
    x = w.norm(x, s.hidden)
    w.MatMul(x, w.Transpose(table, perm=[1, 0]) if s.tied else w.weight(s.hidden, s.vocabulary), out="logits")
    if s.cache == "flat":
        w.Concat(*[w.Unsqueeze(n, [0]) for n in outputs[1:]], axis=0, out="present")
        outputs = ["logits", "present"]
    return _model(w, outputs)


def _layer(w: Writer, x: str, layer: int, mask: str | None, cos: str, sin: str, outputs: list[str]) -> str:
    s = w.style
    n = w.norm(x, s.hidden)

    def heads(count: int, given: str = "") -> str:
        given = given or w.MatMul(n, w.weight(s.hidden, count * s.width))
        return str(w.Transpose(w.Reshape(given, [0, 0, count, s.width]), perm=[0, 2, 1, 3]))

    if s.packed:
        sizes = [s.heads * s.width, s.kv * s.width, s.kv * s.width]
        three = w.Add(w.MatMul(n, w.weight(s.hidden, sum(sizes))), w.weight(sum(sizes)) * 0.1)
        names = [f"{part}_{layer}" for part in "qkv"]
        w.Split(three, sizes, out=names, axis=-1)
        q, k, v = (heads(count, name) for count, name in zip((s.heads, s.kv, s.kv), names, strict=True))
    else:
        q, k, v = heads(s.heads), heads(s.kv), heads(s.kv)
    if s.qk_norm:
        q, k = w.norm(q, s.width), w.norm(k, s.width)
    if s.rotary != "none":
        q, k = w.turn(q, cos, sin), w.turn(k, cos, sin)
    k, v = _append(w, layer, k, v, outputs)
    if s.kv != s.heads:
        k, v = (_repeated(w, t) for t in (k, v))
    weights = _weights(w, q, k, mask)
    v = k if s.miss == "keys as values" else v
    merged = w.Reshape(w.Transpose(w.MatMul(weights, v), perm=[0, 2, 1, 3]), [0, 0, s.hidden])
    x = w.Add(x, w.MatMul(merged, w.weight(s.hidden, s.hidden)))
    n = w.norm(x, s.hidden)
    up = w.MatMul(n, w.weight(s.hidden, 2 * s.hidden))
    if s.gated:
        gate = w.MatMul(n, w.weight(s.hidden, 2 * s.hidden))
        up = w.Mul(w.Mul(gate, w.Sigmoid(gate)), up)
    else:
        up = w.Mul(w.Mul(up, w.Add(w.Erf(w.Div(up, 2**0.5)), 1.0)), 0.5)
    return str(w.Add(x, w.MatMul(up, w.weight(2 * s.hidden, s.hidden))))


def _weights(w: Writer, q: str, k: str, mask: str | None) -> str:
    """What each step takes of each key's values, [batch, heads, steps, total]."""
    s = w.style
    scale: Any = s.width**-0.5
    if s.miss == "scale by head":
        scale = (scale * np.arange(1, s.heads + 1)).astype(np.float32).reshape(1, s.heads, 1, 1)
    if s.flat_keys:
        shape = w.Shape(k)
        ends = w.Slice(shape, [2], [3]), w.Slice(shape, [3], [4])
        turned = w.Transpose(w.Reshape(k, w.Concat([-1], *ends, axis=0)), perm=[0, 2, 1])
        turned = w.Reshape(turned, w.Concat(w.Slice(shape, [0], [2]), *reversed(ends), axis=0))
    else:
        turned = w.Transpose(k, perm=[0, 1, 3, 2])
    if s.scale_keys and isinstance(scale, float):
        scores = w.MatMul(w.Mul(q, scale**0.5), w.Mul(turned, scale**0.5))
    elif s.miss == "mask before scale" and mask:
        return str(w.Softmax(w.Mul(w.Add(w.MatMul(q, turned), mask), scale), axis=-1))
    else:
        scores = w.Mul(w.MatMul(q, turned), scale)
    if s.softcap:
        again = s.softcap * (-1.0 if s.miss == "softcap turned" else 1.0)
        scores = w.Mul(w.Tanh(w.Div(scores, s.softcap)), again)
    weights = w.Softmax(w.Add(scores, mask) if mask else scores, axis=2 if s.miss == "softmax over rows" else -1)
    return str(w.Where(w.IsNaN(weights), 0.0, weights) if s.guarded else weights)


def _append(w: Writer, layer: int, k: str, v: str, outputs: list[str]) -> tuple[str, str]:
    s = w.style
    names = [cache_name(s, layer, part, "out") for part in ("key", "value")]
    if s.cache == "concat":
        turn = -1 if s.miss == "past behind" else 1
        made = [w.Concat(*(cache_name(s, layer, part), new)[::turn], axis=2, out=name)
                for part, new, name in zip(("key", "value"), (k, v), names, strict=True)]  # fmt: skip
        outputs += made
        return made[0], made[1]
    whole = cache_name(s, layer, "") if s.cache == "stacked" else w.Gather("past", layer, axis=0)
    k, v = (w.Concat(w.Gather(whole, at, axis=0), new, axis=2) for at, new in ((0, k), (1, v)))
    both = w.Concat(w.Unsqueeze(k, [0]), w.Unsqueeze(v, [0]), axis=0,
                    out=cache_name(s, layer, "", "out") if s.cache == "stacked" else f"both_{layer}")  # fmt: skip
    outputs.append(both)
    return k, v


def _repeated(w: Writer, x: str) -> str:
    """Each key/value head as often as there are query heads to it: Unsqueeze, Expand, Reshape."""
    s = w.style
    if s.miss == "heads by turns":
        return str(w.Tile(x, [1, s.heads // s.kv, 1, 1]))
    wide = w.Unsqueeze(x, [2])
    shape = w.Shape(wide)
    parts = [w.Slice(shape, [0], [2]), w.const([s.heads // s.kv]), w.Slice(shape, [3], [5])]
    return str(w.Reshape(w.Expand(wide, w.Concat(*parts, axis=0)), [0, s.heads, -1, s.width]))


def cache_name(s: Style, layer: int, part: str, way: str = "in") -> str:
    """Name a cache input or output."""
    past = way == "in"
    if s.names == "hf":
        return f"{'past_key_values' if past else 'present'}.{layer}{'.' if part else ''}{part}"
    if s.names == "past":
        return f"{'past' if past else 'present'}.{layer}{'.' if part else ''}{part}"
    if s.names == "legacy":
        return f"{'past' if past else 'present'}_{part or 'both'}_{layer}"
    return f"{'in' if past else 'out'}{layer * 2 + (part == 'value') + 7}"


def _model(w: Writer, outputs: list[str]) -> onnx.ModelProto:
    s = w.style

    def dims(*wanted: str | int) -> list[Any]:
        if s.symbols == "full":
            return list(wanted)
        return [
            d if isinstance(d, int) else None if s.symbols == "unnamed" else f"d{len(shapes)}_{i}"
            for i, d in enumerate(wanted)
        ]

    shapes: list[Any] = []

    def info(name: str, dtype: int, *wanted: str | int) -> None:
        shapes.append(helper.make_tensor_value_info(name, dtype, dims(*wanted)))

    info("input_ids", TensorProto.INT64, "batch", "sequence")
    if s.mask in ("lowest", "infinite", "triangle"):
        info("attention_mask", TensorProto.INT64, "batch", "past + sequence")
    if s.mask == "positions" or s.positions == "learned" or (s.positions == "input" and s.rotary != "none"):
        info("position_ids", TensorProto.INT64, "batch", "sequence")
    inner: tuple[str | int, ...] = ("batch", s.kv, "past", s.width)
    if s.cache == "flat":
        info("past", TensorProto.FLOAT, s.layers, 2, *inner)
    for layer in range(s.layers if s.cache != "flat" else 0):
        for part in ("key", "value") if s.cache == "concat" else ("",):
            info(cache_name(s, layer, part), TensorProto.FLOAT, *(() if part else (2,)), *inner)
    ranks = {"logits": 3, "present": 6}
    results = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [None] * ranks.get(n, 4 if s.cache == "concat" else 5))
        for n in outputs
    ]
    graph = helper.make_graph(w.nodes, "decoder", shapes, results, w.weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", w.opset)], ir_version=9)
    onnx.checker.check_model(model)
    return model
