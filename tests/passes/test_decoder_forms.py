"""Decoders of many shapes: recognised, rewritten, and then the same tokens, from a prompt and one by one behind it."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from decoder_forms import genai, merged, opset24, seq2seq
from decoder_runs import SHAPES, close
from decoders import Style, decoder

import memoptc
from memoptc.ir.core import Graph
from memoptc.ir.decoder import recognise
from memoptc.ir.onnx_io import read_onnx, to_proto
from memoptc.manager import run_pipeline
from memoptc.pass_base import Context
from memoptc.pipeline import parse
from memoptc.runtime import Decoder
from memoptc.runtime.evaluate import Evaluator

PROMPT = [5, 17, 3, 80, 41, 9, 66]
PASSES = "(fold-constants,simplify,share-common)*,fuse-rotary,fuse-skip-norm,fuse-cached-attention,simplify"
GPT2 = Style(kv=4, norm="layer", rotary="none", positions="learned", gated=False, packed=True, tied=False)

Form = tuple[Callable[[], onnx.ModelProto], tuple[int, int]]
FORMS: dict[str, Form] = {
    "Llama": (lambda: decoder(Style(tied=False)), (2, 4)),
    "GPT-2": (lambda: decoder(GPT2), (2, 0)),
    "Qwen3": (lambda: decoder(Style(qk_norm=True, tied=False)), (2, 4)),
    "merged": (lambda: merged(decoder(Style(tied=False))), (4, 6)),
    "Whisper": (lambda: seq2seq(Style(kv=4)), (2, 8)),
    "Whisper, merged": (lambda: merged(seq2seq(Style(kv=4)), Style(kv=4)), (4, 12)),
    "Whisper, merged by optimum": (lambda: merged(seq2seq(Style(kv=4)), Style(kv=4), handed_back=False), (4, 12)),
    "genai": (lambda: genai(Style()), (0, 4)),
    "opset 24": (lambda: opset24(Style()), (0, 4)),
}
"""What is built, and how often attention and norms are fused: attention that is one operator already stays."""


def rewritten(model: onnx.ModelProto) -> tuple[Graph, Counter[str]]:
    graph = read_onnx(model)
    records = run_pipeline(parse(PASSES), graph, Context(), [], lambda g: 0)
    return graph, Counter({r.name: r.stats.get("fused", 0) for r in records})


@pytest.mark.parametrize("form", FORMS)
def test_recognised_rewritten_and_the_same_tokens(form: str, tmp_path: Path) -> None:
    build, (attention, norms) = FORMS[form]
    model = build()
    facts = recognise(read_onnx(model))
    assert (facts.layers, facts.heads) == (2, 4)
    graph, fused = rewritten(model)
    assert (fused["fuse-cached-attention"], fused["fuse-skip-norm"]) == (attention, norms)
    again = recognise(graph)
    assert (again.caches, again.layers, again.heads) == (facts.caches, facts.layers, facts.heads)
    rng = np.random.default_rng(0)
    context = {name: rng.standard_normal((1, 6, 64)).astype(np.float32) for name in facts.context}
    read = [c.past for c in facts.caches if c.form == "read" and not facts.switch]
    context |= {name: rng.standard_normal((1, 4, 6, 16)).astype(np.float32) for name in read}
    tokens, scores = [], []
    for name, proto in (("before", model), ("after", to_proto(graph))):
        onnx.save(proto, tmp_path / name)
        with Decoder(tmp_path / name) as run:
            tokens.append(list(run.generate(PROMPT, max_new_tokens=8, context=context)))
            whole = run.prefill(PROMPT, context=context)
            run.prefill(PROMPT[:3], context=context)
            steps = [run.step(token) for token in PROMPT[3:]]
            scale = float(np.abs(whole).max())
            assert np.abs(whole - steps[-1]).max() <= 1e-5 * scale
            scores.append(whole / scale)
    assert tokens[0] == tokens[1]
    assert np.abs(scores[0] - scores[1]).max() <= 1e-5


TORCH = Path(__file__).parent.parent / "fixtures"
"""What benchmarks/exporters/fixtures.py wrote: by torch 2.14 and transformers 5.24."""
EXPORTED = {"llama.dynamo": (2, 4, 4), "llama.script": (2, 4, 4), "gpt2.dynamo": (2, 0, 0), "gpt2.script": (2, 0, 0)}
"""How often attention, rotary positions and norms are fused."""


@pytest.mark.parametrize("name", EXPORTED)
def test_as_torch_exports_it(name: str, tmp_path: Path) -> None:
    model = onnx.load_from_string(gzip.decompress((TORCH / f"{name}.onnx.gz").read_bytes()))
    facts = recognise(read_onnx(model))
    assert (facts.layers, facts.heads, facts.rotary) == (2, 2, name.startswith("llama"))
    assert (facts.ids, facts.mask, facts.positions) == ("input_ids", "attention_mask", "position_ids")
    graph, fused = rewritten(model)
    wanted = dict(zip(("fuse-cached-attention", "fuse-rotary", "fuse-skip-norm"), EXPORTED[name], strict=True))
    assert {n: fused[n] for n in wanted} == wanted
    candidate = to_proto(graph)
    both = Evaluator(model), Evaluator(candidate)
    rng = np.random.default_rng(0)
    for batch, steps, past in SHAPES:
        mask = np.ones((batch, past + steps), np.int64)
        mask[1:, : (past + steps) // 2] = 0
        fed = {"input_ids": rng.integers(0, 101, (batch, steps)), "attention_mask": mask,
               "position_ids": np.tile(np.arange(past, past + steps), (batch, 1))}  # fmt: skip
        for cache in facts.caches:
            fed[cache.past] = rng.standard_normal((batch, cache.heads, past, cache.width)).astype(np.float32)
        close(both[0].run(fed), both[1].run(fed))
    tokens = []
    for number, proto in enumerate((model, candidate)):
        onnx.save(proto, tmp_path / f"{number}.onnx")
        with Decoder(tmp_path / f"{number}.onnx") as run:
            tokens.append(list(run.generate(PROMPT, max_new_tokens=8)))
    assert tokens[0] == tokens[1]


def turned(model: onnx.ModelProto) -> onnx.ModelProto:
    """New steps before the past: what comes out is no cache that grows at its end."""
    for node in model.graph.node:
        if node.op_type == "Concat" and any("past" in n for n in node.input):
            node.input[:] = list(reversed(node.input))
    return model


def kept(model: onnx.ModelProto) -> onnx.ModelProto:
    """The grown caches are not given back."""
    del model.graph.output[1:]
    return model


@pytest.mark.parametrize("change", [turned, kept])
def test_near_misses_are_no_decoders(change: Callable[[onnx.ModelProto], onnx.ModelProto]) -> None:
    model = change(decoder(Style(tied=False)))
    with pytest.raises(memoptc.InputError, match="no decoder that memoptc recognises"):
        recognise(read_onnx(model))


@pytest.mark.nightly
@pytest.mark.parametrize("form", FORMS)
def test_compiled_whole(form: str, tmp_path: Path) -> None:
    """The whole compile, without data: inputs are made up, and decoding is part of the proof."""
    result = memoptc.compile(FORMS[form][0](), measure=False)
    assert result.report.decoder is not None
    assert result.report.verification["passed"]
    assert any("one by one" in o["name"] for o in result.report.verification["outputs"])
