"""fuse-cached-attention: the same numbers in prefill, decode, chunks, batches and under padding; near-misses stay."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from decoder_choices import CHOICES
from decoder_runs import SHAPES, close, feed
from decoders import LOWEST, Array, Style, decoder
from hypothesis import given, settings
from hypothesis import strategies as st
from runtime_models import parse

from memoptc.ir.core import Graph, Output
from memoptc.ir.infer import infer_shapes
from memoptc.ir.onnx_io import read_onnx, to_proto
from memoptc.ir.verifier import verify
from memoptc.passes.fuse.fuse_cached_attention import FuseCachedAttention
from memoptc.passes.simplify.fold_constants import FoldConstants
from memoptc.runtime.evaluate import Evaluator
from memoptc.testing import run_pass


def fused(model: onnx.ModelProto) -> tuple[Graph, int]:
    graph = read_onnx(model)
    infer_shapes(graph)
    stats = run_pass(FuseCachedAttention(), graph)
    verify(graph)
    return graph, stats["fused"]


STYLES = [
    Style(),
    Style(computed=True),
    Style(norm="layer", rotary="none", positions="learned", kv=4, mask="triangle", gated=False, symbols="unnamed"),
    Style(rotary="interleaved", mask="infinite", symbols="apart", names="odd"),
    Style(rotary="table", cache="stacked", symbols="apart"),
    Style(rotary="partial", cache="flat", mask="causal", positions="computed", symbols="unnamed"),
    Style(mask="positions", names="legacy", symbols="unnamed"),
    Style(norm="layer_parts", names="past", kv=1, scale_keys=True, qk_norm=True, symbols="apart"),
]


@pytest.mark.parametrize("style", STYLES, ids=lambda s: f"{s.cache}-{s.rotary}-{s.mask}-{s.symbols}-{s.computed}")
def test_prefill_decode_chunks_batches_and_padding(style: Style) -> None:
    model = decoder(style)
    graph, count = fused(model)
    assert count == style.layers
    original, candidate = Evaluator(model), Evaluator(to_proto(graph))
    for batch, steps, past in SHAPES:
        for hidden in ("", "left", "right", "all"):
            fed = feed(style, batch, steps, past, hidden)
            close(original.run(fed), candidate.run(fed))


@pytest.mark.parametrize("style", STYLES[:2], ids=["constant", "computed"])
def test_nothing_but_the_branches_appends_to_the_cache(style: Style) -> None:
    """Extents of repeated heads and of masks are read off the parts: else the cache would be copied in every step."""
    graph, _ = fused(decoder(style))
    for value in graph.inputs:
        if "past" in value.name:
            assert {user.op_type for user in value.users if user.graph is graph} <= {"Shape"}


def test_what_is_cached_serves_the_next_step() -> None:
    style = Style(symbols="unnamed")
    model = decoder(style)
    candidate = Evaluator(to_proto(fused(model)[0]))
    whole = feed(style, 1, 12, 0)
    expected = Evaluator(model).run(whole)
    outputs = candidate.run(feed(style, 1, 8, 0) | {"input_ids": whole["input_ids"][:, :8]})
    for step in range(8, 12):
        fed = feed(style, 1, 1, step) | {"input_ids": whole["input_ids"][:, step : step + 1]}
        fed |= {n.replace("present", "past_key_values"): v for n, v in outputs.items() if n != "logits"}
        outputs = candidate.run(fed)
        assert np.allclose(outputs["logits"][0, 0], expected["logits"][0, step], atol=1e-4)


def test_the_operator_runs_wherever_it_can() -> None:
    style = Style()
    graph, _ = fused(decoder(style))
    runs = {shape: _branch(graph, feed(style, *shape)) for shape in SHAPES}
    assert runs == {shape: not (shape[0] > 1 and shape[1] > 1 and shape[2] > 0) for shape in SHAPES}


def _branch(graph: Graph, fed: dict[str, Array]) -> bool:
    """Whether the condition of the first If holds."""
    copy = graph.clone()
    condition = next(iter(copy.walk("If"))).operand
    copy.set_outputs([condition], [Output("taken", condition.type)])
    (value,) = Evaluator(to_proto(copy)).run(fed).values()
    return bool(value)


@settings(max_examples=settings().max_examples // 4)
@given(
    st.builds(
        Style,
        layers=st.just(1),
        mask=st.sampled_from(["lowest", "infinite", "triangle", "causal", "positions"]),
        **CHOICES,
    ),
    st.sampled_from(SHAPES),
    st.sampled_from(["", "left", "right", "all"]),
)
def test_random_decoders(style: Style, shape: tuple[int, int, int], hidden: str) -> None:
    model = decoder(style)
    graph, count = fused(model)
    assert count == (style.width % 8 == 0)
    fed = feed(style, *shape, hidden)
    close(Evaluator(model).run(fed), Evaluator(to_proto(graph)).run(fed))


def test_a_mask_that_shows_later_steps_keeps_the_original_numbers() -> None:
    text = """g (float[1, 2, S, 8] q, float[1, 2, S, 8] k, float[1, 2, P, 8] p, float[1, 1, S, T] m)
        => (float[a, b, c, d] y, float[e, f, g, h] all) {
        all = Concat <axis = 2> (p, k)
        t = Transpose <perm = [0, 1, 3, 2]> (all)
        s = MatMul(q, t)
        x = Add(s, m)
        w = Softmax <axis = -1> (x)
        y = MatMul(w, all)
    }"""
    model = parse(text)
    graph, count = fused(model)
    assert count == 1
    original, candidate = Evaluator(model), Evaluator(to_proto(graph))
    rng = np.random.default_rng(0)
    causal = np.where(np.arange(9) <= np.arange(5)[:, None] + 4, 0, LOWEST).astype(np.float32)[None, None]
    shown, half, blind = causal.copy(), causal.copy(), causal.copy()
    shown[0, 0, 2, 7] = 0
    half[0, 0, 1, 8] = -5000
    blind[0, 0, 3] = LOWEST
    for mask in (
        causal,
        np.zeros_like(causal),
        shown,
        half,
        blind,
        causal + 1,
        causal[..., :1],
        causal * np.float32(1e-33),
    ):
        fed = {n: rng.standard_normal((1, 2, s, 8)).astype(np.float32) for n, s in (("q", 5), ("k", 5), ("p", 4))}
        close(original.run(fed | {"m": mask}), candidate.run(fed | {"m": mask}))


GUARDED = """g (float[1, 2, S, 8] q, float[1, 2, S, 8] k, float[1, 2, P, 8] p, float[1, 1, S, T] m)
    => (float[a, b, c, d] y, float[e, f, g, h] all) {{
    all = Concat <axis = 2> (p, k)
    t = Transpose <perm = [0, 1, 3, 2]> (all)
    s = MatMul(q, t)
    x = Add(s, m)
    w = Softmax <axis = -1> (x)
    n = IsNaN(w)
    z = Constant <value_float = {instead}> ()
    o = Where(n, z, w)
    y = MatMul(o, all)
}}"""


@pytest.mark.parametrize(("instead", "wanted"), [(0.0, 1), (1.0, 0)])
def test_zeros_in_place_of_nan_belong_to_it(instead: float, wanted: int) -> None:
    """PyTorch's exporters put 0 where all keys are hidden by infinities; another number is no such guard."""
    model = parse(GUARDED.format(instead=instead))
    graph = read_onnx(model)
    infer_shapes(graph)
    run_pass(FoldConstants(), graph)
    stats = run_pass(FuseCachedAttention(), graph)
    assert stats["fused"] == wanted
    original, candidate = Evaluator(model), Evaluator(to_proto(graph))
    rng = np.random.default_rng(0)
    causal = np.where(np.arange(9) <= np.arange(5)[:, None] + 4, 0, -np.inf).astype(np.float32)[None, None]
    blind = causal.copy()
    blind[0, 0, 3] = -np.inf
    for mask in (causal, blind):
        fed = {n: rng.standard_normal((1, 2, s, 8)).astype(np.float32) for n, s in (("q", 5), ("k", 5), ("p", 4))}
        close(original.run(fed | {"m": mask}), candidate.run(fed | {"m": mask}))


@pytest.mark.parametrize("mask", ["float[72] mask, int64[R] shape", "float[4, 2, 3, 3] mask"], ids=["rank", "heads"])
def test_heads_stay_with_the_batch_where_a_mask_may_be_split_otherwise(mask: str) -> None:
    """A mask of unknown rank, and one of as many rows that come from 4 sequences of 2 heads, not 2 of 4."""
    unknown = "shape" in mask
    shape = {"mask": np.zeros(72, np.float32), "shape": np.array([8, 3, 3])} if unknown else {}
    text = (
        f"g (float[2, 4, 3, 8] q, float[2, 4, 3, 8] k, {mask}) => (float[2, 4, 3, 3] y) "
        "<float[8, 3, 3] s, float[8, 3, 3] w> { q3 = Reshape(q, m) k3 = Reshape(k, m) "
        "t = Transpose <perm=[0, 2, 1]> (k3) "
        f"p = MatMul(q3, t) added = Reshape(mask, {'shape' if unknown else 'rows'}) s = Add(p, added) "
        "w = Softmax <axis=-1> (s) y = Reshape(w, apart) }"
    )
    rows = {} if unknown else {"rows": np.array([8, 3, 3])}
    model = parse(text, m=np.array([8, 3, 8]), apart=np.array([2, 4, 3, 3]), **rows)
    graph, _ = fused(model)
    rng = np.random.default_rng(1)
    fed = {n: rng.normal(size=(2, 4, 3, 8)).astype(np.float32) for n in "qk"}
    fed |= shape or {"mask": rng.normal(size=(4, 2, 3, 3)).astype(np.float32)}
    close(Evaluator(model).run(fed), Evaluator(to_proto(graph)).run(fed))
