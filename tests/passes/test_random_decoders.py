"""Random decoders, and near-misses of them, as -O2 rewrites them: the same numbers whatever is recognised.

Blocks differ in heads, groups, rotary forms, norms, masks, windows, caps and biases of the scores, layouts of the cache
and how shapes are stated; feeds in sequences, steps, past and padding. How many are fused of those that an operator
computes is counted, too: a rewrite that quietly declines a form is a fault.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from decoder_choices import CHOICES
from decoder_runs import MISSES, SHAPES, close, feed
from decoders import Style, decoder
from hypothesis import given, settings
from hypothesis import strategies as st

from memoptc.ir.core import Graph
from memoptc.ir.onnx_io import read_onnx, to_proto
from memoptc.levels import pipeline_text
from memoptc.manager import run_pipeline
from memoptc.pass_base import Context
from memoptc.pipeline import parse
from memoptc.runtime.evaluate import Evaluator

REWRITES = pipeline_text(2).partition(",order,")[0]
"""All of -O2 that comes before tiling."""

EXAMPLES = settings().max_examples if settings().max_examples > 100 else 8
"""Few in each run; thousands in the nightly profile."""

BLOCKS = st.builds(
    Style,
    layers=st.sampled_from([1, 1, 2]),
    mask=st.sampled_from(["lowest", "infinite", "triangle", "causal", "positions", "none"]),
    names=st.sampled_from(["hf", "past", "legacy", "odd"]),
    window=st.sampled_from([0, 0, 3, 6]),
    softcap=st.sampled_from([0.0, 0.0, 3.0]),
    bias=st.sampled_from(["none", "none", "alibi", "t5"]),
    guarded=st.booleans(),
    flat_keys=st.booleans(),
    packed=st.booleans(),
    **CHOICES,
)


def rewritten(style: Style) -> tuple[Any, Graph, Counter[str]]:
    model = decoder(style)
    graph = read_onnx(model)
    records = run_pipeline(parse(REWRITES), graph, Context(), [], lambda g: 0)
    fused: Counter[str] = Counter()
    for record in records:
        fused[record.name] += record.stats.get("fused", 0)
    return model, graph, fused


def same_numbers(style: Style, shapes: list[tuple[int, int, int]], hidden: str) -> Counter[str]:
    model, graph, fused = rewritten(style)
    original, candidate = Evaluator(model), Evaluator(to_proto(graph))
    for shape in shapes:
        fed = feed(style, *shape, hidden)
        close(original.run(fed), candidate.run(fed))
    return fused


PADDING = st.sampled_from(["", "left", "right", "all"])


@settings(max_examples=EXAMPLES)
@given(BLOCKS, st.permutations(SHAPES), PADDING)
def test_blocks_compute_the_same_and_are_fused(style: Style, shapes: list[tuple[int, int, int]], hidden: str) -> None:
    fused = same_numbers(style, shapes[:3], hidden)
    expected = style.layers * (style.width % 8 == 0 and (style.mask != "none" or style.bias != "none"))
    assert fused["fuse-cached-attention"] == expected
    if style.symbols == "full" and style.mask != "triangle":  # elsewhere positions may broadcast, as far as shapes say
        assert fused["fuse-rotary"] == 2 * style.layers * (style.rotary != "none")


@settings(max_examples=EXAMPLES // 2)
@given(BLOCKS, st.sampled_from(MISSES), st.permutations(SHAPES), PADDING)
def test_near_misses_compute_the_same(style: Style, miss: str, shapes: list[tuple[int, int, int]], hidden: str) -> None:
    same_numbers(replace(style, miss=miss), shapes[:2], hidden)


def test_new_steps_before_the_past_run_where_extents_differ() -> None:
    """The operator is never taken, and what decides that must not fail: scores are as long as the keys are."""
    same_numbers(Style(layers=1, miss="past behind", mask="positions", symbols="unnamed"), [(3, 4, 5), (1, 6, 5)], "")


DECLINING = {
    "rotary sign": "fuse-rotary",
    "rotary halves differ": "fuse-rotary",
    "norm of cubes": "fuse-skip-norm",
    "epsilon outside": "fuse-skip-norm",
}
"""Which pass must leave a near-miss alone, where it is not that of attention."""


@pytest.mark.parametrize("miss", [m for m in MISSES if m not in ("keys as values", "past behind")])
def test_near_misses_are_left_alone(miss: str) -> None:
    style = Style(layers=1, softcap=3.0 if miss == "softcap turned" else 0.0, miss=miss)
    graph = read_onnx(decoder(style))
    name = DECLINING.get(miss, "fuse-cached-attention")
    (record,) = run_pipeline(parse(name), graph, Context(), [], lambda g: 0)
    assert record.stats.get("fused", 0) == 0
    (record,) = run_pipeline(parse(name), read_onnx(decoder(replace(style, miss=""))), Context(), [], lambda g: 0)
    assert record.stats["fused"] > 0
