"""quantize-cache: keys and values in codes, near the original's; branches agree, and a decoder runs over them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from decoder_forms import genai, seq2seq
from decoder_runs import feed
from decoders import Style, decoder

import memoptc
from memoptc.coded_interface import read_coded_interface, with_interface_of
from memoptc.ir.core import Graph
from memoptc.ir.decoder import recognise
from memoptc.ir.onnx_io import read_onnx, to_proto
from memoptc.ir.parser import parse as parse_graph
from memoptc.manager import run_pipeline
from memoptc.pass_base import Context
from memoptc.passes.precision.quantize_cache import kept
from memoptc.pipeline import parse
from memoptc.runtime import Decoder
from memoptc.runtime.evaluate import Evaluator

OLDEST = pytest.mark.skipif(
    tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 32), reason="older kernels take no cache in codes"
)
PASSES = "(fold-constants,simplify,share-common)*,fuse-rotary,fuse-cached-attention,quantize-cache,drop-dead"
STYLE = Style(tied=False)
IDS = list(range(3, 93, 5))


def data() -> list[dict[str, Any]]:
    return [{"input_ids": np.roll([IDS], i, axis=1)} for i in range(4)]


def coded(model: onnx.ModelProto, folder: Path) -> tuple[Graph, Graph, Context]:
    """The original, what the pass made of it, and what was said."""
    graph = read_onnx(model)
    original = graph.clone()
    context = Context(calibration=data(), scratch=folder)
    run_pipeline(parse(PASSES), graph, context, [], lambda g: 0)
    return original, graph, context


@OLDEST
@pytest.mark.parametrize("form", ["spelled out", "genai"])
def test_codes_are_those_of_the_original_and_decode_one_by_one(form: str, tmp_path: Path) -> None:
    model = decoder(STYLE) if form == "spelled out" else genai(STYLE)
    original, graph, _ = coded(model, tmp_path)
    caches = [c for c in recognise(graph).own if c.dtype == "int8"]
    assert len(caches) == 4
    floating = Evaluator(to_proto(with_interface_of(original, graph)))
    fed = {n: v for n, v in feed(STYLE, 1, len(IDS), 0).items() if n in {i.name for i in model.graph.input}}
    fed["input_ids"] = np.asarray([IDS])
    wanted, got = Evaluator(model).run(fed), floating.run(fed)
    for part in ("key", "value"):  # of the first layer, which no code has touched before
        scales = read_coded_interface(graph).outputs[f"present.0.{part}"].scales()
        difference = np.abs(wanted[f"present.0.{part}"] - got[f"present.0.{part}"])
        assert (difference <= 0.501 * scales).all()
        assert difference.max() > 0
    noise = np.square(wanted["logits"] - got["logits"]).mean() / np.square(wanted["logits"]).mean()
    assert noise < 1e-3
    onnx.save(to_proto(graph), tmp_path / "coded.onnx")
    with Decoder(tmp_path / "coded.onnx", max_length=24) as run:
        whole = run.prefill(IDS)
        run.prefill(IDS[:9])
        steps = [run.step(token) for token in IDS[9:]]
        assert np.abs(whole - steps[-1]).max() <= 1e-2 * np.abs(whole).max()
        assert any("in place" in note for note in run.notes) == (form == "genai")


@OLDEST
def test_the_branch_for_batches_gives_the_same_codes(tmp_path: Path) -> None:
    _, graph, _ = coded(decoder(STYLE), tmp_path)
    run = Evaluator(to_proto(graph))
    fed = feed(STYLE, 3, 4, 5)
    rng = np.random.default_rng(0)
    for name, value in fed.items():
        if "past" in name:
            fed[name] = rng.integers(-99, 99, value.shape).astype(np.int8)
    together = run.run(fed)
    for i in range(3):
        alone = run.run({n: v[i : i + 1] for n, v in fed.items()})
        for name, value in alone.items():
            if name == "present.0.key":  # the same inputs: at most the last bit before rounding differs
                assert np.abs(value.astype(int) - together[name][i : i + 1]).max() <= 1
            if name != "logits":
                assert value.dtype == np.int8
                assert np.array_equal(value[:, :, :5], fed[name.replace("present", "past_key_values")][i : i + 1])


def test_what_no_kernel_reads_in_codes_stays(tmp_path: Path) -> None:
    model = genai(STYLE)
    twice = onnx.helper.make_node("Relu", ["present.0.key"], ["seen"])
    model.graph.node.append(twice)
    model.graph.output.append(onnx.helper.make_tensor_value_info("seen", onnx.TensorProto.FLOAT, [None] * 4))
    if tuple(map(int, onnxruntime.__version__.split(".")[:2])) >= (1, 32):
        _, graph, _ = coded(model, tmp_path)
        kept = {v.name: v.dtype for v in graph.inputs if "past" in v.name}
        assert [d.name for d in kept.values() if d is not None] == ["FLOAT", "FLOAT", "INT8", "INT8"]
        _, other, context = coded(seq2seq(Style(kv=4, width=20)), tmp_path)
        assert not read_coded_interface(other).inputs
        assert any("No cache is kept in codes" in w for w in context.warnings)
    for options, why in (({}, "come from data"), ({"calibration": data()}, "float noise")):
        with pytest.raises(memoptc.InputError, match=why):
            memoptc.compile(model, cache="int8", **options)


def test_of_two_attentions_over_one_past_in_the_branches_of_an_if_one_is_coded() -> None:
    branch = """_branch() -> (f32[1,2,8], f32[1,1,T,8], f32[1,1,T,8]) {
      %o, %p, %r = com.microsoft::GroupQueryAttention(%q, %q, %q, %pk, %pv, %s, %t) {kv_num_heads=1, num_heads=1}
        : f32[1,2,8], f32[1,1,T,8], f32[1,1,T,8]
      return %o, %p, %r
    }
    """
    graph = parse_graph(
        "graph @g(%c: bool[], %q: f32[1,2,8], %pk: f32[1,1,P,8], %pv: f32[1,1,P,8], %s: i32[1,1], %t: i32[]) "
        "-> (f32[1,2,8], f32[1,1,T,8], f32[1,1,T,8]) {\n"
        f"  %y, %k, %v = If(%c)\n region then{branch} region else{branch}\n  return %y, %k, %v\n}}\n"
    )
    (site,) = kept(graph)
    assert site.other is not None
    assert {op.key for op in site.other.ops} >= {"com.microsoft::GroupQueryAttention"}
