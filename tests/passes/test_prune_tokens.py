"""prune-tokens: the tokens that matter least go no further, everything else goes on as it was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import onnx.parser
import pytest
from encoders import WIDTH, Readout, encoder
from hypothesis import given
from hypothesis import strategies as st
from onnx.helper import make_node
from pruning import Floats, outputs, pruned

from memoptc.ir.core import Graph
from memoptc.ir.onnx_io import read_onnx, to_proto
from memoptc.ir.verifier import verify
from memoptc.pass_base import Context
from memoptc.passes.shrink import prune_tokens
from memoptc.passes.shrink._tokens.drop import TokenDrop, drop_tokens
from memoptc.passes.shrink._tokens.merge import TokenCounts
from memoptc.passes.shrink._tokens.region import TokenRegion
from memoptc.passes.shrink.prune_tokens import PruneTokens, TokenReduction
from memoptc.runtime.data import Data
from memoptc.runtime.evaluate import ModelSource
from memoptc.runtime.quality import Examiner, Quality


def feed_for(model: onnx.ModelProto, batch: int, tokens: int, seed: int = 0) -> dict[str, Floats]:
    rng = np.random.default_rng(seed)
    feed = {"x": rng.standard_normal((batch, tokens, WIDTH)).astype(np.float32)}
    if len(model.graph.input) > 1:
        lengths = rng.integers(1, tokens + 1, batch)
        feed["mask"] = (np.arange(tokens) < lengths[:, None]).astype(np.float32)
    return feed


def tensor(model: onnx.ModelProto, name: str, feed: dict[str, Floats]) -> Floats:
    """A value inside the model."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.add().name = name
    return outputs(copy, feed)


shapes = st.fixed_dictionaries(
    {
        "tokens": st.sampled_from([9, "tokens"]),
        "readout": st.sampled_from(["tokens", "first", "mean"]),
        "masked": st.booleans(),
        "pre_norm": st.booleans(),
        "flat_heads": st.booleans(),
        "batch": st.sampled_from([1, 2, "batch"]),
    }
)


forms = st.sampled_from(["drop", "merge"])

FEW = [
    {"tokens": 9, "readout": "first", "masked": False, "pre_norm": True, "flat_heads": False},
    {"tokens": "tokens", "readout": "tokens", "masked": True, "pre_norm": False, "flat_heads": False},
    {"tokens": "tokens", "readout": "mean", "masked": False, "pre_norm": True, "flat_heads": True},
    # Heads of which each has a hidden state `[batch * heads, tokens, width]`, too: the residual is of another batch.
    {"tokens": 9, "readout": "first", "masked": False, "pre_norm": True, "flat_heads": True},
    # One batch: the residual looks as if it were one for all heads. The scores are reshaped, both axes of tokens.
    {"tokens": 9, "readout": "first", "masked": True, "pre_norm": False, "flat_heads": True, "batch": 1},
    {"tokens": "tokens", "readout": "mean", "masked": True, "pre_norm": True, "flat_heads": True},
]


@pytest.mark.parametrize("form", ["drop", "merge"])
@pytest.mark.parametrize("shape", FEW)
def test_forms_of_encoders(shape: dict[str, object], form: str) -> None:
    the_original_bit_for_bit(shape, form, 2, 0)
    as_many_tokens(shape, form, 0.6, 0)


@pytest.mark.nightly
@given(shapes, forms, st.integers(1, 3), st.integers(0, 99))
def test_all_tokens_kept_is_the_original_bit_for_bit(
    shape: dict[str, object], form: str, batch: int, seed: int
) -> None:
    the_original_bit_for_bit(shape, form, batch, seed)


def given_batch(shape: dict[str, object], usual: int) -> int:
    found = shape.get("batch", usual)
    return found if isinstance(found, int) else usual


def the_original_bit_for_bit(shape: dict[str, object], form: str, batch: int, seed: int) -> None:
    model = encoder(2, **shape, seed=seed)  # type: ignore[arg-type]
    whole, stats = pruned(model, PruneTokens(keep=1.0, form=form))
    assert stats["layers that drop tokens"] == 2
    feed = feed_for(model, given_batch(shape, batch), 9, seed)
    np.testing.assert_array_equal(outputs(whole, feed), outputs(model, feed))


@pytest.mark.nightly
@given(shapes, forms, st.sampled_from([0.25, 0.5, 0.9]), st.integers(0, 99))
def test_what_is_left_is_as_many_tokens_and_the_interface(
    shape: dict[str, object], form: str, keep: float, seed: int
) -> None:
    as_many_tokens(shape, form, keep, seed)


def as_many_tokens(shape: dict[str, object], form: str, keep: float, seed: int) -> None:
    model = encoder(2, **shape, seed=seed)  # type: ignore[arg-type]
    less, _ = pruned(model, PruneTokens(keep=keep, form=form))
    feed = feed_for(model, given_batch(shape, 2), 9, seed)
    assert outputs(less, feed).shape == outputs(model, feed).shape
    parts = round((1 - keep) * 16)
    gone = 9 * (parts if form == "drop" else min(parts, 7)) // 16
    # The second layer's queries are those of the tokens that the first one left, less what itself lets go.
    widths = [tensor(less, node.output[0], feed).shape[-1] for node in less.graph.node if node.op_type == "Softmax"]
    assert widths == [9, 9 - gone]


@pytest.mark.parametrize("readout", ["tokens", "first", "mean"])
def test_merging_equal_tokens_changes_nothing(readout: Readout) -> None:
    """An average of equal tokens is that token, and attention counts it as often as it was there."""
    model = encoder(3, "tokens", readout=readout, masked=True)
    less, stats = pruned(model, PruneTokens(keep=0.6, form="merge"))
    assert stats["layers that drop tokens"] == 3
    feed = feed_for(model, 2, 24)
    feed["x"] = np.repeat(feed["x"][:, ::8], 8, axis=1)
    feed["mask"] = np.repeat(feed["mask"][:, ::8], 8, axis=1)
    np.testing.assert_allclose(outputs(less, feed), outputs(model, feed), rtol=1e-4, atol=1e-5)


def test_sizes_are_carried_through_layers_that_drop() -> None:
    """Merged, thinned by none, merged again: attention counts the tokens of both layers."""
    model = encoder(3, "tokens", readout="mean")
    graph, options = read_onnx(model), PruneTokens()
    Context().shapes(graph)
    ways = (TokenReduction("merge", 6), TokenReduction("drop", 0), TokenReduction("merge", 4))
    assert options.drop(graph, dict(zip(options.sites(graph, Counter()), ways, strict=True))) == 3
    verify(graph)
    feed = feed_for(model, 2, 32)
    feed["x"] = np.repeat(feed["x"][:, ::8], 8, axis=1)
    np.testing.assert_allclose(outputs(to_proto(graph), feed), outputs(model, feed), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tokens", [1, 2, 5, 64])
def test_a_symbolic_length_keeps_its_share(tokens: int) -> None:
    less, _ = pruned(encoder(2, readout="first"), PruneTokens(keep=0.5, layers=(0,)))
    taken = next(node for node in less.graph.node if node.op_type == "GatherND")
    found = tensor(less, taken.output[0], feed_for(less, 3, tokens))
    assert found.shape == (3, tokens - tokens // 2, WIDTH)


def test_those_stay_that_attention_goes_to_and_in_their_order() -> None:
    model = encoder(1, 9, readout="mean")
    less, _ = pruned(model, PruneTokens(keep=0.5))
    feed = feed_for(model, 2, 9)
    softmax = next(node for node in model.graph.node if node.op_type == "Softmax")
    received = tensor(model, softmax.output[0], feed).mean((1, 2))
    best = np.sort(np.argsort(-received, axis=1, kind="stable")[:, :5], axis=1)
    taken = next(node for node in less.graph.node if node.op_type == "GatherND")
    hidden = tensor(less, taken.input[0], feed)
    np.testing.assert_array_equal(tensor(less, taken.output[0], feed), np.take_along_axis(hidden, best[..., None], 1))


def test_the_class_token_stays_whatever_its_score() -> None:
    less, _ = pruned(encoder(2, 16, readout="first"), PruneTokens(keep=0.1))
    feed = feed_for(less, 4, 16)
    for node in less.graph.node:
        if node.op_type == "GatherND":
            hidden, kept = tensor(less, node.input[0], feed), tensor(less, node.output[0], feed)
            np.testing.assert_array_equal(kept[:, 0], hidden[:, 0])


def with_readers(model: onnx.ModelProto, *nodes: onnx.NodeProto, **arrays: object) -> onnx.ModelProto:
    """The model with further outputs, one for each of some nodes that read its last one, `y`."""
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in arrays.items())
    model.graph.node.extend(nodes)
    del model.graph.output[:]
    for node in nodes:
        model.graph.output.add().name = node.output[0]
    return onnx.shape_inference.infer_shapes(model)


TWO_READERS = [
    [make_node("Gather", ["y", "zero"], ["a"], axis=1), make_node("Gather", ["y", "one"], ["b"], axis=1)],
    [make_node("Slice", ["y", "starts", "ends", "axes"], ["b"])],
    [make_node("Gather", ["y", "both"], ["b"], axis=1)],
]


@pytest.mark.parametrize("form", ["drop", "merge"])
@pytest.mark.parametrize("readers", TWO_READERS, ids=["two Gathers", "a Slice", "one Gather"])
def test_distillation_and_class_token_both_stay(readers: list[onnx.NodeProto], form: str) -> None:
    """DeiT reads tokens 0 and 1, each for a classifier of its own: neither is dropped or averaged with another."""
    arrays = {"zero": np.int64(0), "one": np.int64(1), "both": np.array([1, 0])}
    arrays |= {"starts": np.array([0]), "ends": np.array([2]), "axes": np.array([1])}
    model = with_readers(encoder(2, 16, readout="tokens"), *readers, **arrays)
    less, stats = pruned(model, PruneTokens(keep=0.1, form=form))
    assert stats["layers that drop tokens"] == 2
    assert all(node.op_type != "ScatterElements" or form == "merge" for node in less.graph.node)
    feed = feed_for(less, 4, 16)
    # The first layer's hidden states, and what goes on from them: with two tokens that are each as they were.
    graph = read_onnx(model)
    Context().shapes(graph)
    hidden = next(PruneTokens().sites(graph, Counter())).hidden
    norm = next(node for node in model.graph.node if node.op_type == "LayerNormalization" and hidden in node.input)
    thin = next(node.input[0] for node in less.graph.node if node.output[0] == norm.output[0])
    whole, kept = tensor(less, hidden, feed), tensor(less, thin, feed)
    assert kept.shape == (4, 2 if form == "drop" else 9, WIDTH)
    np.testing.assert_array_equal(kept[:, :2], whole[:, :2])


def test_more_tokens_read_than_stay_in_any_case_are_given_back() -> None:
    """Of a length that only a run decides, and of many tokens, none is known to be there: all rows are."""
    for tokens, many in (("tokens", [0, 1]), (16, list(range(12)))):
        reads = make_node("Gather", ["y", "many"], ["b"], axis=1)
        model = with_readers(encoder(2, tokens, readout="tokens"), reads, many=np.array(many))
        less, _ = pruned(model, PruneTokens(keep=0.1))
        feed = feed_for(less, 2, 16)
        assert outputs(less, feed).shape == (2, len(many), WIDTH)
        assert any(node.op_type == "ScatterElements" for node in less.graph.node)


@pytest.mark.parametrize("form", ["drop", "merge"])
def test_a_projection_between_the_tokens_and_their_mean_is_of_all(form: str) -> None:
    """As encoders of sound pool: what is averaged has another width than hidden states, which have all rows."""
    weight = np.random.default_rng(0).standard_normal((WIDTH, 3)).astype(np.float32)
    model = encoder(2, 12, readout="tokens")
    hidden = model.graph.output[0].name
    model.graph.node.append(make_node("MatMul", [hidden, "wide"], ["projected"]))
    mean = make_node("ReduceMean", ["projected", "axes"], ["b"], keepdims=0)
    model = with_readers(model, mean, wide=weight, axes=np.array([1]))
    less, stats = pruned(model, PruneTokens(keep=0.5, form=form))
    assert stats["layers that drop tokens"] == 2
    feed = feed_for(model, 2, 12)
    assert tensor(less, "projected", feed).shape == (2, 12, 3)
    whole, _ = pruned(model, PruneTokens(keep=1.0, form=form))
    np.testing.assert_array_equal(outputs(whole, feed), outputs(model, feed))


def test_the_class_token_stays_among_scores_that_overflow() -> None:
    less, _ = pruned(encoder(1, 16, readout="first"), PruneTokens(keep=0.1, score="norm"))
    feed = {"x": np.full((2, 16, WIDTH), 1e30, np.float32)}
    feed["x"][:, 0] = 1
    taken = next(node for node in less.graph.node if node.op_type == "GatherND")
    hidden, kept = tensor(less, taken.input[0], feed), tensor(less, taken.output[0], feed)
    np.testing.assert_array_equal(kept[:, 0], hidden[:, 0])


def test_padding_goes_first() -> None:
    """What gets no attention has the lowest score, so that a batch loses padding before it loses tokens."""
    model = encoder(2, 8, readout="first", masked=True)
    less, _ = pruned(model, PruneTokens(keep=0.5))
    feed = feed_for(model, 3, 8)
    feed["mask"] = (np.arange(8) < np.array([4, 3, 2])[:, None]).astype(np.float32)
    np.testing.assert_allclose(outputs(less, feed), outputs(model, feed), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", ["drop", "merge"])
def test_a_mean_of_the_tokens_that_a_mask_shows_has_no_padding(form: str) -> None:
    """As sentence encoders pool: rows are given back before the mask is multiplied with, not behind it."""
    model = encoder(2, 12, masked=True, readout="tokens")
    hidden = model.graph.output[0].name
    model.graph.node.extend(
        [
            make_node("Unsqueeze", ["mask", "last"], ["shown"]),
            make_node("Mul", [hidden, "shown"], ["masked"]),
            make_node("ReduceSum", ["masked", "tokens"], ["pooled"], keepdims=0),
        ]
    )
    constants = {"last": [2], "tokens": [1]}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.array(v), n) for n, v in constants.items())
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info("pooled", onnx.TensorProto.FLOAT, None))
    less, stats = pruned(model, PruneTokens(keep=0.75, form=form, layers=(0,)))
    assert stats["layers that drop tokens"] == 1
    feed = feed_for(model, 2, 12)
    feed["mask"] = (np.arange(12) < np.array([[6], [4]])).astype(np.float32)
    feed["x"][feed["mask"] == 0] = 5  # whatever padding holds
    np.testing.assert_allclose(outputs(less, feed), outputs(model, feed), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["drop", "merge"])
def test_those_who_ask_for_a_shape_see_all_tokens(form: str) -> None:
    model = encoder(2, "tokens", readout="first")
    scores = [node.output[0] for node in model.graph.node if node.op_type == "Softmax"][-1]
    model.graph.node.extend(
        [make_node("Shape", [scores], ["whole"]), make_node("Shape", [scores], ["part"], start=-1, end=4)]
    )
    for name, extent in (("whole", 4), ("part", 1)):
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, [extent]))
    less, stats = pruned(model, PruneTokens(keep=0.5, form=form))
    assert stats["layers that drop tokens"] == 2
    feed = feed_for(model, 3, 9)
    assert tensor(less, "whole", feed).tolist() == [3, 2, 9, 9]
    assert tensor(less, "part", feed).tolist() == [9]


def test_padding_is_merged_with_padding_alone() -> None:
    """Padding that looks like a token: merged with that one, it would be counted as a second one of it."""
    model = encoder(2, 12, masked=True, readout="first")
    merged, stats = pruned(model, PruneTokens(keep=0.75, form="merge", layers=(0,)))
    assert stats["layers that drop tokens"] == 1
    feed = feed_for(model, 1, 12)
    feed["mask"] = (np.arange(12) < 6).astype(np.float32)[None]
    feed["x"][:, 6:] = feed["x"][:, 1:2]
    np.testing.assert_allclose(outputs(merged, feed), outputs(model, feed), rtol=1e-4, atol=1e-5)


def test_dropped_tokens_have_an_output_all_the_same() -> None:
    model = encoder(2, 16, readout="tokens")
    less, _ = pruned(model, PruneTokens(keep=0.5, layers=(0,)))
    feed = feed_for(model, 2, 16)
    found = outputs(less, feed)
    assert found.shape == (2, 16, WIDTH)
    # Half of the tokens go on; the others' rows are those of the layer that dropped them, and depend on the input.
    other = outputs(less, {"x": feed["x"][::-1].copy()})[::-1]
    np.testing.assert_allclose(found, other, rtol=1e-4, atol=1e-5)
    rows = found.round(4).reshape(-1, WIDTH)
    assert len(np.unique(rows, axis=0)) == len(rows)


LONG = {"batch": 8, "tokens": 512}
"""Extents at which choosing tokens takes less than computing with all of them."""


def masked_data(model: onnx.ModelProto, length: int) -> Data:
    """32 samples of 16 tokens, of which `length` are no padding."""
    rng = np.random.default_rng(1)
    mask = (np.arange(16) < length).astype(np.float32)[None]
    feeds = [{"x": rng.standard_normal((1, 16, WIDTH)).astype(np.float32), "mask": mask} for _ in range(32)]
    return Data(feeds, {value.name: value.type for value in read_onnx(model).inputs})


def test_data_says_how_many() -> None:
    """Padding that no output depends on goes without loss; a limit that nothing meets leaves the model alone."""
    model = encoder(2, "tokens", readout="first", masked=True)
    data = masked_data(model, 8)
    less, stats = pruned(model, PruneTokens(min_sqnr=60.0), Context(calibration=data, validation=data, dims=LONG))
    assert stats["layers that drop tokens"] >= 1
    feed = next(iter(data)).feed
    np.testing.assert_allclose(outputs(less, feed), outputs(model, feed), rtol=1e-4, atol=1e-5)
    model = encoder(2, "tokens", readout="mean", masked=True)
    data = masked_data(model, 16)
    same, stats = pruned(model, PruneTokens(min_sqnr=60.0), Context(calibration=data, validation=data, dims=LONG))
    assert stats["left: outputs need all tokens"] == 1
    assert same.graph.node == to_proto(read_onnx(model)).graph.node


@pytest.mark.parametrize(("lost", "rows"), [(0, 45), (1, 77)])  # 0.95 ** 45 < 0.1
def test_few_labels_are_followed_by_as_many_of_the_calibration_as_a_loss_takes(
    lost: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    full = Examiner.full

    def counted(self: Examiner, candidate: ModelSource, failed: object = None) -> Quality:
        found = full(self, candidate)
        assert found.hits is not None
        seen.append(found.hits.rows)
        return found

    monkeypatch.setattr(Examiner, "full", counted)
    monkeypatch.setattr(prune_tokens, "LOST", lost)
    monkeypatch.setattr(prune_tokens, "QUICK", np.inf)
    model = encoder(2, "tokens", readout="first", masked=True)
    types = {value.name: value.type for value in read_onnx(model).inputs}
    feeds = [{**sample.feed, "labels": np.array([3])} for sample in masked_data(model, 8)]
    options = PruneTokens(min_sqnr=None, max_loss=0.05)
    context = Context(calibration=Data(feeds * 2, types), validation=Data(feeds[:20], types), dims=LONG)
    _, stats = pruned(model, options, context)
    assert stats["layers that drop tokens"] >= 1
    assert set(seen) == {rows}
    assert f"0 lost and 0 won of {rows}" in context.decisions[-1].why


@pytest.mark.parametrize(("readout", "tried"), [("first", {True, False}), ("mean", {False})])
def test_both_scores_are_tried_where_outputs_read_token_0(
    readout: Readout, tried: set[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[bool] = set()

    def watched(region: TokenRegion, drop: TokenDrop, sizes: TokenCounts, rule: str) -> None:
        seen.update(() if drop.merge else (drop.from_first,))
        drop_tokens(region, drop, sizes, rule)

    monkeypatch.setattr(prune_tokens, "drop_tokens", watched)
    model = encoder(2, "tokens", readout=readout, masked=True)
    data = masked_data(model, 8)
    pruned(model, PruneTokens(min_sqnr=60.0), Context(calibration=data, validation=data, dims=LONG))
    assert seen == tried


@pytest.mark.parametrize(("seconds", "samples"), [(60.0, 16), (0.0, prune_tokens.FEWEST)])
def test_large_models_are_measured_on_few_samples(
    seconds: float, samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    quick = Examiner.quick

    def counted(self: Examiner, candidate: ModelSource, most: int | None = None) -> Quality:
        found = quick(self, candidate, most)
        if most is not None:
            seen.append(found.samples)
        return found

    monkeypatch.setattr(Examiner, "quick", counted)
    monkeypatch.setattr(prune_tokens, "SECONDS", seconds)
    model = encoder(2, "tokens", readout="first", masked=True)
    data = masked_data(model, 8)
    pruned(model, PruneTokens(min_sqnr=60.0), Context(calibration=data, validation=data, dims=LONG))
    assert set(seen) == {samples}


@pytest.mark.parametrize(
    ("dims", "measured"), [(LONG, lambda graph: 1.0), ({"batch": 1, "tokens": 16}, None)], ids=["measured", "predicted"]
)
def test_it_is_taken_back_where_it_does_not_pay(
    dims: dict[str, int], measured: Callable[[Graph], float] | None
) -> None:
    model = encoder(2, "tokens", readout="first", masked=True)
    data = masked_data(model, 8)
    context = Context(calibration=data, validation=data, dims=dims, slowdown=measured)
    same, stats = pruned(model, PruneTokens(min_sqnr=60.0), context)
    assert any(prune_tokens.UNPAID in name for name in stats)
    assert same.graph.node == to_proto(read_onnx(model)).graph.node


@pytest.mark.parametrize("form", ["drop", "merge"])
@pytest.mark.parametrize(("batch", "tokens"), [(0, 5), (2, 0), (0, 0), (1, 1)])
def test_nothing_in_gives_the_originals_nothing(batch: int, tokens: int, form: str) -> None:
    model = encoder(2, "tokens", readout="tokens", masked=True)
    less, _ = pruned(model, PruneTokens(keep=0.5, form=form))
    feed = {"x": np.zeros((batch, tokens, WIDTH), np.float32), "mask": np.ones((batch, tokens), np.float32)}
    assert outputs(less, feed).shape == outputs(model, feed).shape == (batch, tokens, WIDTH)
