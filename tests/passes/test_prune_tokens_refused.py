"""Models and options for which prune-tokens does nothing, or refuses."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from encoders import encoder
from pruning import outputs, pruned

from memoptc.ir.diagnostics import InputError
from memoptc.ir.onnx_io import read_onnx, to_proto
from memoptc.passes.shrink.prune_tokens import PruneTokens


def test_an_older_opset_is_left_alone() -> None:
    """Reductions over axes that are operands need opset 18; the model would not be valid."""
    model = encoder(2, 9)
    model.opset_import[0].version = 17
    same, stats = pruned(model, PruneTokens(keep=0.5))
    assert stats["left: opset below 18 (raise-opset{to=18} first)"] == 1
    assert len(same.graph.node) == len(model.graph.node)


@pytest.mark.parametrize("options", [{"score": "best"}, {"keep": 0.0}, {"keep": 1.5}, {"form": "x"}])
def test_options_that_make_no_sense_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(InputError):
        PruneTokens(**options)  # type: ignore[arg-type]


def test_without_data_or_a_share_it_asks_for_one() -> None:
    with pytest.raises(InputError, match="needs data"):
        pruned(encoder(1), PruneTokens())


def test_a_model_without_attention_is_left_alone() -> None:
    model = encoder(0, readout="mean")
    same, stats = pruned(model, PruneTokens(keep=0.5))
    assert stats["left: no attention layer behind which tokens can go"] == 1
    assert same.graph.node == to_proto(read_onnx(model)).graph.node


@pytest.mark.parametrize(("batch", "layers"), [("batch", 1), (1, 2)])
def test_one_bias_for_all_heads_that_stand_in_the_batch_needs_a_batch_of_one(batch: str | int, layers: int) -> None:
    """Which rows are of which sample is not known, and each sample keeps other tokens."""
    model = encoder(2, 9, readout="first", flat_heads=True, batch=batch)
    for number, node in enumerate([node for node in model.graph.node if node.op_type == "Softmax"]):
        bias = np.random.default_rng(number).standard_normal((9, 9)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(bias, f"bias{number}"))
        add = onnx.helper.make_node("Add", [node.input[0], f"bias{number}"], [f"with{number}"], name=f"biased{number}")
        model.graph.node.insert(list(model.graph.node).index(node), add)
        node.input[0] = f"with{number}"
    less, stats = pruned(onnx.shape_inference.infer_shapes(model), PruneTokens(keep=0.5))
    assert stats["layers that drop tokens"] == layers
    assert any("tokens of another batch (with a batch of 1" in name for name in stats) == (layers == 1)
    feed = {"x": np.random.default_rng(1).standard_normal((1, 9, 8)).astype(np.float32)}
    assert outputs(less, feed).shape == outputs(model, feed).shape


WINDOWS = """<ir_version: 9, opset_import: ["" : 18]> g (float[N,8,8] x) => (float[N,16] y) {
    w = Reshape (x, windows)  k = Transpose <perm = [0, 1, 3, 2]> (w)  s = MatMul (w, k)  p = Softmax (s)
    a = MatMul (p, w)  m = Reshape (a, merged)  h = MatMul (m, weight)  r = Relu (h)  h2 = MatMul (r, weight)
    y = Gather <axis = 1> (h2, first) }"""


@pytest.mark.parametrize("form", ["drop", "merge"])
def test_attention_within_windows_is_left_alone(form: str) -> None:
    """Two windows of 4 tokens, then 4 tokens of merged patches: as many, but not those that were attended to."""
    model = onnx.parser.parse_model(WINDOWS)
    weight = np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32)
    arrays = {"weight": weight, "windows": np.array([-1, 1, 4, 8]), "merged": np.array([-1, 4, 16])}
    arrays |= {"first": np.array(0)}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in arrays.items())
    same, stats = pruned(model, PruneTokens(keep=0.5, form=form))
    assert stats["left: no attention layer behind which tokens can go"] == 1
    feed = {"x": np.random.default_rng(1).standard_normal((3, 8, 8)).astype(np.float32)}
    np.testing.assert_array_equal(outputs(same, feed), outputs(model, feed))
