"""fuse-rotary, fuse-skip-norm: the same numbers whatever the spelling, alone and before attention is fused."""

from __future__ import annotations

from collections import Counter

import pytest
from decoder_runs import SHAPES, close, feed
from decoders import Style, decoder
from hypothesis import given, settings
from hypothesis import strategies as st

from memoptc.ir.infer import infer_shapes
from memoptc.ir.onnx_io import read_onnx, to_proto
from memoptc.ir.verifier import verify
from memoptc.pass_base import Pass
from memoptc.passes.fuse.fuse_cached_attention import FuseCachedAttention
from memoptc.passes.fuse.fuse_rotary import FuseRotary
from memoptc.passes.fuse.fuse_skip_norm import FuseSkipNorm
from memoptc.runtime.evaluate import Evaluator
from memoptc.testing import run_pass

STYLES = [
    Style(),
    Style(computed=True),
    Style(rotary="table", cache="stacked", norm="rms_reciprocal"),
    Style(rotary="interleaved", mask="infinite", names="odd"),
    Style(rotary="partial", cache="flat", mask="causal", positions="computed"),
    Style(qk_norm=True, kv=1, scale_keys=True),
]


@pytest.mark.parametrize("passes", [(FuseRotary,), (FuseSkipNorm,), (FuseRotary, FuseSkipNorm, FuseCachedAttention)])
@pytest.mark.parametrize("style", STYLES, ids=lambda s: f"{s.rotary}-{s.norm}-{s.cache}-{s.computed}")
def test_every_spelling_is_fused_and_computes_the_same(style: Style, passes: tuple[type[Pass], ...]) -> None:
    model = decoder(style)
    graph = read_onnx(model)
    infer_shapes(graph)
    stats: Counter[str] = Counter()
    for one in passes:
        stats += run_pass(one(), graph)
        verify(graph)
    expected = {FuseRotary: 2 * style.layers, FuseSkipNorm: 2 * style.layers, FuseCachedAttention: style.layers}
    assert stats["fused"] == sum(expected[one] for one in passes)
    original, candidate = Evaluator(model), Evaluator(to_proto(graph))
    for shape in (*SHAPES, (1, 0, 3)):
        close(original.run(feed(style, *shape)), candidate.run(feed(style, *shape)))


@settings(max_examples=settings().max_examples // 4)
@given(
    st.builds(
        Style,
        layers=st.just(1),
        heads=st.sampled_from([2, 4]),
        kv=st.sampled_from([1, 2]),
        width=st.sampled_from([8, 12, 16]),
        norm=st.sampled_from(["rms", "rms_reciprocal", "layer", "layer_parts"]),
        rotary=st.sampled_from(["halves", "interleaved", "partial", "table"]),
        positions=st.sampled_from(["input", "computed", "learned"]),
        mask=st.sampled_from(["lowest", "causal", "none"]),
        cache=st.sampled_from(["concat", "stacked", "flat"]),
        symbols=st.sampled_from(["full", "apart", "unnamed"]),
        qk_norm=st.booleans(),
        tied=st.booleans(),
        computed=st.booleans(),
        seed=st.integers(0, 9),
    ),
    st.sampled_from(SHAPES),
)
def test_random_decoders(style: Style, shape: tuple[int, int, int]) -> None:
    model = decoder(style)
    graph = read_onnx(model)
    infer_shapes(graph)
    for one in (FuseRotary, FuseSkipNorm, FuseCachedAttention):
        run_pass(one(), graph)
        verify(graph)
    fed = feed(style, *shape)
    close(Evaluator(model).run(fed), Evaluator(to_proto(graph)).run(fed))
