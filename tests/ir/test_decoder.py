"""Decoders are recognised by structure: whatever the names, the layout of the cache, and the operators that keep it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from decoder_forms import LONGEST, genai, latent, merged, opset24, seq2seq
from decoders import Style, decoder
from onnx import TensorProto, helper
from runtime_models import parse

import memoptc
from memoptc.ir.decoder import KEY, DecoderFacts, recognise
from memoptc.ir.onnx_io import read_onnx
from memoptc.runtime import Decoder
from memoptc.steps.describe import describe_run

STYLES = {
    "usual": Style(),
    "odd names, no symbols": Style(names="odd", mask="positions", symbols="unnamed"),
    "learned positions": Style(norm="layer", rotary="none", positions="learned", kv=4, gated=False),
    "keys and values stacked": Style(cache="stacked"),
    "one cache for all": Style(cache="flat", layers=3),
    "looked-up angles": Style(rotary="table", mask="triangle"),
    "nothing but ids": Style(rotary="interleaved", positions="computed", mask="causal"),
    "norms of queries and keys": Style(scale_keys=True, qk_norm=True, symbols="apart"),
}


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_spelled_out(style: Style) -> None:
    model = decoder(style)
    found = recognise(read_onnx(model))
    inputs = [i.name for i in model.graph.input]
    assert (found.layers, found.heads, found.vocabulary) == (style.layers, style.heads, style.vocabulary)
    assert {(c.heads, c.width, c.form) for c in found.caches} == {(style.kv, style.width, "grown")}
    assert found.bytes_per_token == 2 * style.layers * style.kv * style.width * 4
    assert found.rotary == (style.rotary != "none")
    assert (found.ids, found.logits, found.context) == ("input_ids", "logits", ())
    assert found.positions == ("position_ids" if "position_ids" in inputs else "")
    assert found.mask == ("attention_mask" if "attention_mask" in inputs else "")
    assert [c.past for c in found.caches] == [n for n in inputs if n not in (found.ids, found.positions, found.mask)]
    assert len({c.present for c in found.caches}) == len(found.caches)
    assert DecoderFacts.from_json(found.to_json()) == found
    assert not found.shared


def test_attention_operators() -> None:
    style = Style()
    for model, shared in ((genai(style), True), (opset24(style), False)):
        found = recognise(read_onnx(model))
        assert (found.layers, found.heads, found.own[0].heads, found.own[0].width) == (2, 4, 2, 16)
        assert found.mask == "attention_mask"
        assert {c.part for c in found.caches} == {"key", "value"}
        assert found.shared == shared


def test_a_cache_of_constant_length() -> None:
    found = recognise(read_onnx(opset24(Style(), written=True)))
    assert {(c.form, c.shape[c.axis]) for c in found.caches} == {("fixed", LONGEST)}
    assert (found.positions, found.positions_rank, found.mask) == ("cache_position", 1, "")


def test_what_keys_and_values_are_computed_from() -> None:
    found = recognise(read_onnx(latent(Style())))
    assert [(c.part, c.heads, c.width) for c in found.caches] == [("latent", 1, 12), ("key", 1, 16)] * 2
    assert (found.layers, found.heads, found.mask) == (2, 4, "attention_mask")


def test_an_encoders_keys_and_values_are_only_read() -> None:
    found = recognise(read_onnx(seq2seq(Style(kv=4))))
    assert [c.form for c in found.caches] == ["grown", "grown", "read", "read"] * 2
    assert (found.layers, found.heads, found.mask, found.encoder_mask) == (2, 4, "", "encoder_attention_mask")
    assert "cross attention" in str(found)


def test_both_branches_of_a_merged_file() -> None:
    plain = recognise(read_onnx(decoder(Style())))
    found = recognise(read_onnx(merged(decoder(Style()))))
    assert found.switch == "use_cache_branch"
    assert dataclasses.replace(found, switch="", dtypes={}) == dataclasses.replace(plain, dtypes={})


def test_the_same_whatever_names_say() -> None:
    """Every input and output renamed: the record is the same but for the names."""
    model = decoder(Style())
    names = {v.name: f"v{i}" for i, v in enumerate((*model.graph.input, *model.graph.output))}
    plain = recognise(read_onnx(model))
    for value in (*model.graph.input, *model.graph.output):
        value.name = names[value.name]
    for node in model.graph.node:
        node.input[:] = [names.get(n, n) for n in node.input]
        node.output[:] = [names.get(n, n) for n in node.output]
    found = recognise(read_onnx(model))
    assert [found.ids, found.mask, found.positions, found.logits] == [
        names[n] for n in (plain.ids, plain.mask, plain.positions, plain.logits)
    ]
    caches = tuple(
        dataclasses.replace(c, past=names[c.past], present=names[c.present], reuses=names.get(c.reuses, ""))
        for c in plain.caches
    )
    assert found.caches == caches


REFUSED = {
    "nothing is appended": (
        "g (int64[B, S] ids) => (float[B, S, 4] y) { x = Gather(t, ids) y = MatMul(x, w) }",
        "cache",
    ),
    "a cache, but no tokens": (
        """g (float[B, 2, S, 4] x, float[B, 2, P, 4] past) => (float[B, 2, S, 4] y, float[B, 2, T, 4] present) {
             present = Concat<axis = 2>(past, x) k = Transpose<perm = [0, 1, 3, 2]>(present)
             s = MatMul(x, k) p = Softmax(s) y = MatMul(p, present) }""",
        "",
    ),
    "a stream that is only padded with its past": (
        """g (float[B, 3, S] x, float[B, 3, P] past) => (float[B, 3, T] y, float[B, 3, T] present) {
             r = Relu(x) present = Concat<axis = 2>(past, r) y = Relu(present) }""",
        "cache",
    ),
}


@pytest.mark.parametrize(("text", "missing"), REFUSED.values(), ids=REFUSED)
def test_refused_with_what_is_missing(text: str, missing: str) -> None:
    weights = {"t": np.eye(5, 3, dtype=np.float32), "w": np.ones((3, 4), np.float32)} if "Gather" in text else {}
    with pytest.raises(memoptc.InputError, match=f"no decoder that memoptc recognises.*{missing}"):
        recognise(read_onnx(parse(text, **weights)))


def test_a_compile_says_so() -> None:
    result = memoptc.compile(decoder(Style()), level=1, measure=False, verify="off")
    assert result.report.decoder == (
        "2 layers, 4 heads over 2 key/value heads of 16, rotary, vocabulary 97, cache 512 bytes a token"
    )
    carried = {p.key: p.value for p in result.model.metadata_props}["memoptc.decoder"]
    assert DecoderFacts.from_json(carried).caches == recognise(read_onnx(decoder(Style()))).caches


def test_a_last_step_that_only_the_output_states() -> None:
    model = decoder(Style())
    assert not recognise(read_onnx(model)).last_only
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    for extent in (-1, 1, 97):
        dim = model.graph.output[0].type.tensor_type.shape.dim.add()
        if extent > 0:
            dim.dim_value = extent
    assert recognise(read_onnx(model)).last_only


def test_the_axis_of_sequences_of_a_state_is_the_open_one() -> None:
    text = """
    g (int64[batch, 1] ids, float[1, batch, 8] cell) => (float[batch, 1, 32] scores, float[1, batch, 8] next) {
        shared = Gather (table, ids)
        steps = Transpose <perm = [1, 0, 2]> (shared)
        sum = Add (steps, cell)
        next = Tanh (sum)
        last = Transpose <perm = [1, 0, 2]> (next)
        scores = MatMul (last, head)
    }
    """
    found = recognise(
        read_onnx(parse(text, table=np.eye(32, 8, dtype=np.float32), head=np.eye(8, 32, dtype=np.float32)))
    )
    (state,) = found.states
    assert (state.past, state.present, state.batch, state.shape) == ("cell", "next", 1, (1, -1, 8))


def test_positions_with_an_offset_and_inputs_that_nothing_reads() -> None:
    """OPT keeps the first rows of its table for padding; BLOOM has no positions, but its export an input for them."""
    model = decoder(Style(rotary="none", positions="learned", mask="causal"))
    at = next(i for i, n in enumerate(model.graph.node) if "position_ids" in n.input)
    node = model.graph.node[at]
    node.input[list(node.input).index("position_ids")] = "behind_padding"
    two = helper.make_node("Constant", [], ["two"], value=helper.make_tensor("two", TensorProto.INT64, [], [2]))
    model.graph.node.insert(at, helper.make_node("Add", ["position_ids", "two"], ["behind_padding"]))
    model.graph.node.insert(at, two)
    mask = helper.make_tensor_value_info("unread", TensorProto.INT64, ["batch", "past + sequence"])
    states = helper.make_tensor_value_info("states", TensorProto.FLOAT, ["batch", "source", 64])
    model.graph.input.extend([states, mask])  # T5's decoder takes an encoder's states beside the keys made of them
    found = recognise(read_onnx(model))
    assert found.context == ("states",)
    assert (found.positions, found.max_length, found.mask) == ("position_ids", LONGEST - 2, "unread")


def test_what_an_encoders_keys_come_from_outlives_passes() -> None:
    """Attention that was fused may no longer show which output gives keys that are read; the original's facts do."""
    style = Style()
    plain, whole = (read_onnx(m) for m in (seq2seq(style), merged(seq2seq(style), style)))
    assert {c.present for c in recognise(plain).encoder} == {""}
    kept = DecoderFacts.from_json(describe_run(plain, recognise(whole))[KEY])
    assert [(c.past, c.present) for c in kept.encoder] == [(c.past, c.present) for c in recognise(whole).encoder]
    assert all(c.present for c in kept.encoder)


def test_a_table_of_embeddings_that_a_product_reads_too() -> None:
    """`share-transposed` lays the table out for the head: [1, words, width], looked up along axis 1."""
    model = decoder(Style(tied=False))
    lookup = next(n for n in model.graph.node if n.op_type == "Gather" and n.input[1] == "input_ids")
    table = next(i for i in model.graph.initializer if i.name == lookup.input[0])
    wanted = recognise(read_onnx(model))
    table.dims.insert(0, 1)
    del lookup.attribute[:]
    lookup.attribute.append(helper.make_attribute("axis", 1))
    model.graph.initializer.append(helper.make_tensor("front", TensorProto.INT64, [1], [0]))
    squeeze = helper.make_node("Squeeze", [lookup.output[0], "front"], ["embedded"])
    for node in model.graph.node:
        node.input[:] = ["embedded" if n == lookup.output[0] else n for n in node.input]
    model.graph.node.insert(list(model.graph.node).index(lookup) + 1, squeeze)
    found = recognise(read_onnx(model))
    assert (found.ids, found.vocabulary, found.caches) == (wanted.ids, wanted.vocabulary, wanted.caches)


@pytest.mark.parametrize("longest", [None, 20])
def test_genai_leaves_the_width_of_its_caches_open(longest: int | None, tmp_path: Path) -> None:
    """`kv_cache_dim`, as 0.18 of its builder names it: the operator and its queries say how wide a head is."""
    model = genai(Style())
    plain = recognise(read_onnx(model))
    for value in (*model.graph.input, *model.graph.output):
        if len(dims := value.type.tensor_type.shape.dim) == 4:
            dims[3].Clear()
            dims[3].dim_param = "kv_cache_dim"
    assert recognise(read_onnx(model)) == plain
    onnx.save(model, tmp_path / "m.onnx")
    memoptc.compile(model, measure=False).save(tmp_path / "o.onnx")  # finds inputs that suit it
    ran = [Decoder(tmp_path / name, max_length=longest) for name in ("m.onnx", "o.onnx")]
    assert len({tuple(run.generate([5, 17, 3], max_new_tokens=6)) for run in ran}) == 1
