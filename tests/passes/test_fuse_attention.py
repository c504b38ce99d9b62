"""Attention in many spellings: fused, its numbers are those of the original, and its scores are never there at once."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native_models import usable
from numbers_of import UNOPTIMIZED

from memoptc.instruments import VerifyEach
from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, ModelInfo, Value
from memoptc.ir.dims import Sym
from memoptc.ir.infer import infer_shapes
from memoptc.ir.onnx_io import to_proto
from memoptc.ir.types import DType, TensorType
from memoptc.manager import run_pipeline
from memoptc.pass_base import Context
from memoptc.pipeline import parse
from memoptc.runtime.compare import difference
from memoptc.runtime.evaluate import Evaluator
from memoptc.runtime.judge import TOLERANCES

Feed = dict[str, npt.NDArray[Any]]
MASKS = ("none", "added", "number", "hidden", "kept", "clipped")


class Spelling:
    """One attention, written in one of many ways.

    Args:
        seed: Decides on everything.
        mask: One of MASKS.
        extents: Batch, rows and keys; drawn when not given. With packed products keys are rows.
    """

    def __init__(self, seed: int, mask: str, extents: tuple[int, int, int] | None = None) -> None:
        r = self.r = random.Random(seed)
        self.rng = np.random.default_rng(seed)
        self.heads, self.width, self.out = r.choice((1, 2, 3, 5)), r.choice((4, 6, 8)), r.choice((4, 8))
        self.batch, self.rows, self.keys = extents or (r.randint(1, 3), r.randint(30, 80), r.randint(30, 80))
        self.packed = r.random() < 0.4
        self.cross = not self.packed and r.random() < 0.5
        if self.packed:
            self.out = self.width
        if not self.cross:
            self.keys = self.rows
        self.opset = r.choice((11, 12, 13, 17, 21))
        self.dims = {"B": self.batch, "S": self.rows, "T": self.keys if self.cross else self.rows}
        symbols = r.random() < 0.6
        self.b_dim, self.s_dim = (Sym("B"), Sym("S")) if symbols else (self.batch, self.rows)
        self.t_dim = (Sym("T") if symbols else self.keys) if self.cross else self.s_dim
        self.graph = Graph("g", ModelInfo(opset_imports={"": self.opset}, ir_version=6))
        self.b = Builder(self.graph)
        self.feed: Feed = {}
        self._build(mask)
        infer_shapes(self.graph)

    def input(self, name: str, array: npt.NDArray[Any], *dims: Any) -> Value:
        """An input with its numbers."""
        self.feed[name] = array
        return self.graph.add_input(name, TensorType(DType.from_numpy(array.dtype), dims))

    def numbers(self, *shape: int) -> npt.NDArray[Any]:
        """Made-up floats."""
        return self.rng.standard_normal(shape).astype(np.float32)

    def _build(self, mask: str) -> None:
        b, r = self.b, self.r
        x = self.input("x", self.numbers(self.batch, self.rows, 7), self.b_dim, self.s_dim, 7)
        m = self.input("m", self.numbers(self.batch, self.keys, 7), self.b_dim, self.t_dim, 7) if self.cross else x
        q, k, v = self._packed(x) if self.packed else self._separate(x, m)
        factor = np.float32(r.choice((0.5, 0.3, 1.7)))
        where = r.choice(("scores", "divided", "queries", "keys", "none"))
        q = b.Mul(q, factor) if where == "queries" else q
        k = b.Mul(factor, k) if where == "keys" else k
        s = b.MatMul(q, k)
        s = b.Mul(s, factor) if where == "scores" else b.Div(s, factor) if where == "divided" else s
        s = self._masked(s, mask)
        y = b.MatMul(b.Softmax(s, axis=r.choice((3, -1))), v)
        if r.random() < 0.7:
            y = b.Reshape(b.Transpose(y, perm=[0, 2, 1, 3]), np.asarray([0, 0, self.heads * self.out], np.int64))
        self.graph.set_outputs([y])

    def _product(self, x: Value, columns: int) -> Value:
        made = self.b.MatMul(x, self.numbers(7, columns))
        return self.b.Add(made, self.numbers(columns)) if self.r.random() < 0.7 else made

    def _separate(self, x: Value, m: Value) -> tuple[Value, Value, Value]:
        b, h = self.b, self.heads
        split = [np.asarray([0, 0, h, w], np.int64) for w in (self.width, self.width, self.out)]
        parts = [self._product(of, h * int(n[3])) for of, n in zip((x, m, m), split, strict=True)]
        q, k, v = (b.Reshape(part, n) for part, n in zip(parts, split, strict=True))
        kt = b.Transpose(k, perm=[0, 2, 3, 1])
        if self.r.random() < 0.5:
            kt = b.Transpose(b.Transpose(k, perm=[0, 2, 1, 3]), perm=[0, 1, 3, 2])
        return b.Transpose(q, perm=[0, 2, 1, 3]), kt, b.Transpose(v, perm=[0, 2, 1, 3])

    def _packed(self, x: Value) -> tuple[Value, Value, Value]:
        b, h, w, r = self.b, self.heads, self.width, self.r
        inner = r.choice(((3, h, w), (h, 3, w)))
        apart = b.Reshape(self._product(x, 3 * h * w), np.asarray([0, 0, *inner], np.int64))
        perm = [2, 0, 3, 1, 4] if inner[0] == 3 else [3, 0, 2, 1, 4]
        turned = b.Transpose(apart, perm=perm)
        q, k, v = self._taken(turned)
        return q, b.Transpose(k, perm=[0, 1, 3, 2]), v

    def _taken(self, turned: Value) -> list[Value]:
        b, way = self.b, self.r.choice(("gather", "slice", "split"))
        if way == "gather":
            return [b.Gather(turned, np.asarray(i, np.int64), axis=0) for i in (0, 1, -1)]
        if way == "slice":
            ends = [(0, 1), (1, 2), (2, 3)]
            parts = [b.Slice(turned, *(np.asarray([n], np.int64) for n in (*pair, 0))) for pair in ends]
        else:
            sizes = np.asarray([1, 1, 1], np.int64)
            parts = list(b.Split(turned, sizes, axis=0, _outputs=3) if self.opset >= 13
                         else b.Split(turned, axis=0, split=[1, 1, 1], _outputs=3))  # fmt: skip
        if self.opset >= 13:
            return [b.Squeeze(p, np.asarray([0], np.int64)) for p in parts]
        return [b.Squeeze(p, axes=[0]) for p in parts]

    def _masked(self, s: Value, mask: str) -> Value:
        b, shape = self.b, (self.batch, 1, 1, self.keys)
        dims: tuple[Any, ...] = (self.b_dim, 1, 1, self.t_dim)
        if self.r.random() < 0.3:
            shape, dims = (1, *shape[1:]), (1, *dims[1:])
        keep = self.rng.integers(0, 2, shape)
        keep[..., 0] = 1
        if mask == "none":
            return s
        if mask in ("hidden", "kept"):
            far = np.float32(self.r.choice((-1e9, -3.4028234663852886e38)))
            choice = self.input("mask", keep == (mask == "kept"), *dims)
            return b.Where(choice, far, s) if mask == "hidden" else b.Where(choice, s, far)  # type: ignore[no-any-return]
        if mask == "number":
            return b.Add(s, self.numbers(self.keys)) if isinstance(self.t_dim, int) else b.Add(s, np.float32(2))  # type: ignore[no-any-return]
        far = np.float32(-1e4 if mask == "added" else np.finfo(np.float32).min)
        kept = b.Cast(self.input("mask", keep.astype(np.int64), *dims), to=1)
        return b.Add(b.Mul(b.Sub(np.float32(1), kept), far), s)  # type: ignore[no-any-return]


def fused(s: Spelling, pipeline: str = "fuse-attention,drop-dead") -> tuple[Graph, Context]:
    """The graph after a pipeline, verified after each pass."""
    graph, context = s.graph.clone(), Context(dims=s.dims)
    run_pipeline(parse(pipeline), graph, context, [VerifyEach()])
    return graph, context


def assert_same(a: Graph, b: Graph, feed: Feed, note: str) -> None:
    """Within float noise: largest difference over the largest number, as everywhere in these tests."""
    old = Evaluator(to_proto(a), UNOPTIMIZED).run(feed)
    new = Evaluator(to_proto(b), UNOPTIMIZED).run(feed)
    for one, other in zip(old.values(), new.values(), strict=True):
        gap = difference(np.asarray(one), np.asarray(other))
        assert not gap.fault, f"{note}: {gap.fault}"
        assert gap.max_abs <= TOLERANCES["float32"] * max(gap.scale, 1.0), f"{note}: {gap}"


@given(st.integers(0, 2**32 - 1), st.sampled_from(MASKS))
def test_fused_equals_unfused(seed: int, mask: str) -> None:
    s = Spelling(seed, mask)
    graph, _ = fused(s)
    kinds = Counter(op.op_type for op in graph.ops)
    assert kinds["MultiHeadAttention"] == 1 or "Softmax" in kinds
    assert_same(s.graph, graph, s.feed, f"seed {seed}, {mask}")


def test_all_of_these_are_recognised() -> None:
    """Where it pays, every spelling is fused, but for numbers added that need not be finite."""
    for mask in MASKS:
        for seed in range(12):
            s = Spelling(seed, mask, (2, 90, 90))
            graph, _ = fused(s)
            scalar = mask == "number" and not isinstance(s.t_dim, int)
            assert ("MultiHeadAttention" in {op.op_type for op in graph.ops}) != scalar, (mask, seed)


@settings(max_examples=settings().max_examples // 2)
@given(st.integers(0, 2**32 - 1), st.sampled_from(MASKS))
def test_cut_by_batch_heads_and_rows(seed: int, mask: str) -> None:
    """What fit makes of it, however far it goes, gives the same."""
    s = Spelling(seed, mask, (2, 90, 90))
    graph, _ = fused(s, "fuse-attention,share-common,drop-dead,order,fit{budget=1,slowdown=1000.0,ignore=1}")
    assert_same(s.graph, graph, s.feed, f"seed {seed}, {mask}")


@pytest.mark.parametrize("mask", ["added", "clipped", "hidden"])
def test_whole_tiles_of_hidden_keys(mask: str) -> None:
    """All keys of the kernel's first tiles hidden, and all keys of a row: nothing becomes infinite on the way."""
    for batch in (1, 2):
        s = Spelling(3, mask, (batch, 1500, 1500))
        for hidden in (1499, 700):
            keep = np.ones_like(s.feed["mask"])
            keep[..., :hidden] = 0
            s.feed["mask"] = keep if mask != "hidden" else keep == 0
            graph, _ = fused(s)
            assert any(op.op_type == "MultiHeadAttention" for op in graph.ops)
            assert_same(s.graph, graph, s.feed, f"{hidden} hidden")


def test_rows_without_any_key() -> None:
    """Where all keys are hidden, all weigh the same, with a Where as with what absorbs every score."""
    s = Spelling(5, "hidden", (2, 90, 90))
    s.feed["mask"][:] = True
    graph, _ = fused(s)
    assert_same(s.graph, graph, s.feed, "all hidden")


@pytest.mark.skipif(not usable(), reason="onnxruntime's C interface cannot be used here")
def test_scores_are_never_there_at_once() -> None:
    from memoptc.runtime.native.session import NativeSession
    from memoptc.runtime.profile import AS_PLANNED

    for mask in ("none", "added"):
        s = Spelling(1, mask, (1, 1000, 1000))
        graph, _ = fused(s)
        session = NativeSession(to_proto(graph).SerializeToString(), AS_PLANNED)
        session.run(s.feed)
        assert session.record(s.feed)[1].peak_bytes < 4 * s.heads * 1000 * 1000


def test_weights_with_other_users_stay() -> None:
    """What else uses a product keeps it; queries then are widened by a column of ones."""
    s = Spelling(7, "added", (2, 90, 90))
    products = [op.result for op in s.graph.ops if op.op_type == "MatMul" and op.operands[1].tensor is not None]
    outputs = list(s.graph.ops)[-1].operands
    s.graph.set_outputs([*outputs, *products])
    graph, _ = fused(s)
    assert_same(s.graph, graph, s.feed, "products are outputs")
