"""Weights of operators without a kernel for codes: tables, which onnxruntime decodes while it loads."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numbers_of import Feed, run
from runtime_models import normal, parse

from memoptc.api import compile as compile_model
from memoptc.ir.core import Graph
from memoptc.ir.diagnostics import InputError
from memoptc.ir.infer import infer_shapes
from memoptc.ir.onnx_io import read_onnx, to_proto
from memoptc.levels import Accuracy, pipeline_text
from memoptc.passes.precision._quantize.tables import make_table
from memoptc.passes.precision.mix_weights import MixWeights
from memoptc.runtime.data import Sample
from memoptc.runtime.quality import Examiner
from memoptc.testing import run_pass

MODEL = (
    "g (bool c, float[3, 8, 20] x) => (float[3, 1, 4, 16] y) { h = Conv <pads=[1, 1]> (x, k) t = Transpose "
    "<perm=[2, 0, 1]> (h) z = If (c) <then_branch = t () => (float[20, 1, 3, 16] a) { a, ah, ac = LSTM "
    "<hidden_size=16> (t, w, r) }, else_branch = e () => (float[20, 1, 3, 16] b) { b, bh, bc = LSTM <hidden_size=16> "
    "(t, w, r) }> s = Slice (z, from, to) y = Transpose <perm=[2, 1, 0, 3]> (s) }"
)
FEED = {"c": np.array(True), "x": normal(3, 8, 20, seed=9)}


def model(opset: int) -> onnx.ModelProto:
    """A convolution, and an LSTM in two branches that read its weights from outside."""
    weights = {"k": normal(32, 8, 3, seed=1, scale=0.2), "w": normal(1, 64, 32, seed=2, scale=0.2)}
    weights |= {"r": normal(1, 64, 16, seed=3, scale=0.2), "from": np.array([0]), "to": np.array([4])}
    return parse(MODEL, opset=opset, **weights)


def coded(opset: int, **options: Any) -> tuple[Graph, Counter[str]]:
    graph = read_onnx(model(opset))
    infer_shapes(graph)
    stats = run_pass(MixWeights(by="weights", min_sqnr=0.0, smallest=0, **options), graph)
    return graph, stats


@pytest.mark.parametrize("opset", [11, 21])
def test_decoded_while_loading(opset: int, tmp_path: Path) -> None:
    graph, _ = coded(opset)
    wanted, found = (run(g, FEED) for g in (read_onnx(model(opset)), graph))
    assert wanted is not None
    assert found is not None
    error = np.square(wanted["y"] - found["y"]).mean() / np.square(wanted["y"]).mean()
    assert 0 < error < 10**-1.5
    floats = [v.result.tensor for v in graph.walk("const") if v.result.has_uses and v.result.tensor is not None]
    assert max(t.nbytes for t in floats) <= max(64 * 32 // 2, 2048)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    ort.InferenceSession(to_proto(graph).SerializeToString(), options, providers=["CPUExecutionProvider"])
    loaded = read_onnx(tmp_path / "loaded.onnx")
    assert not list(loaded.walk("Gather", "Cast", "DequantizeLinear"))


def test_decoded_in_each_run() -> None:
    graph, stats = coded(21, decode="run")
    assert [op.operands[1].op is not None and op.operands[1].op.op_type for op in graph.walk("Conv")] == ["Reshape"]
    assert stats["weights left"] == 2  # of the LSTM
    with pytest.raises(InputError, match="no decode='never'"):
        MixWeights(decode="never")


@pytest.mark.parametrize(("shape", "entries"), [((64, 33), 256), ((64, 34), 2), ((16, 8), 256)])
def test_tables_of_pairs(shape: tuple[int, ...], entries: int) -> None:
    """Before opset 21 bytes index pairs, where the elements are even in number and enough."""
    content = normal(*shape, seed=1)
    table = make_table(content, 4, 17, np.arange(1, shape[1] + 1, dtype=np.float64))
    assert table.numbers.shape[-1] <= entries
    decoded = table.numbers[table.indices.astype(np.int64)].reshape(shape)
    assert np.isclose(np.square(content - decoded, dtype=np.float64).sum(), table.noise)
    assert table.noise < 0.02 * table.signal


def test_what_meets_more_counts_for_more() -> None:
    content = normal(64, 64, seed=4)
    importance = np.where(np.arange(64) < 4, 1000.0, 1.0)
    plain, weighted = (make_table(content, 4, 21, given) for given in (None, importance))
    errors = [np.square(content - t.numbers[t.indices.astype(np.int64)])[:, :4].sum() for t in (plain, weighted)]
    assert errors[1] < errors[0]


def test_models_of_tables_are_held_to_more() -> None:
    """16 numbers for a whole weight come to 14.3 dB here: too little by themselves, enough when it is asked for."""
    strict, asked = (
        run_pass(MixWeights(smallest=0, **given), read_onnx(model(21))) for given in ({}, {"tables_sqnr": None})
    )
    assert asked["weights in 4 bits"] > strict["weights in 4 bits"]
    assert "tables_sqnr=none" in pipeline_text(2, "int4", calibrated=True, accuracy=Accuracy(min_sqnr=12.0))


@pytest.mark.parametrize("opset", [12, 21])
def test_tables_by_data_err_no_more_than_those_without(opset: int, tmp_path: Path) -> None:
    """Three samples in four are loud in one channel; those kept aside say that others are not."""
    kernel = normal(32, 16, 3, 3, seed=1, scale=0.08)
    kernel[:, 0] *= 0.1
    convolution = parse(
        "g (float[N, 16, 12, 12] x) => (float[N, 32, 12, 12] y) { y = Conv<pads = [1, 1, 1, 1]>(x, k) }",
        opset=opset,
        k=kernel,
    )

    def sample(seed: int, loud: float) -> Feed:
        found = normal(1, 16, 12, 12, seed=seed)
        found[:, 0] *= loud
        return {"x": found}

    data = [sample(3 + i, 1.0 if i % 4 == 3 else 300.0) for i in range(24)]
    unseen = [sample(50 + i, 1.0) for i in range(8)]
    examiner = Examiner(convolution, [Sample(feed, None, "unseen") for feed in unseen])
    options = {"measure": False, "validation": unseen}
    compile_model(convolution, 2, "int4", calibration=data, min_sqnr=5.0, **options).save(tmp_path / "a.onnx")
    compile_model(convolution, 2, "int4", **options).save(tmp_path / "b.onnx")
    with_data, without = (examiner.full(tmp_path / name).sqnr_db for name in ("a.onnx", "b.onnx"))
    assert with_data > without - 0.2
