"""spell-gelu: onnxruntime makes one operator of every spelling, with the same numbers."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest

from memoptc.ir.onnx_io import read_onnx, write_into
from memoptc.manager import run_pipeline
from memoptc.pipeline import parse

SCALED = ("d = Div (x, root)", "d = Mul (x, inverse)", "d = Mul (inverse, x)")
SUMS = ("a = Add (e, one)", "a = Add (one, e)")
PRODUCTS = (
    "m = Mul (x, a) y = Mul (m, half)",
    "m = Mul (half, x) y = Mul (a, m)",
    "m = Mul (half, a) y = Mul (x, m)",
    "m = Mul (a, half) y = Mul (m, x)",
    "m = Div (a, two) y = Mul (x, m)",
    "m = Mul (x, a) y = Div (m, two)",
    "m = Div (x, two) y = Mul (m, a)",
)
NUMBERS = {"root": 2**0.5, "inverse": 2**-0.5, "one": 1.0, "half": 0.5, "two": 2.0}


def _optimized(model: Path, out: Path) -> tuple[ort.InferenceSession, Counter[str]]:
    options = ort.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(out), 4
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return session, Counter(node.op_type for node in onnx.load(out).graph.node)


@pytest.mark.parametrize(("scaled", "summed", "product"), itertools.product(SCALED, SUMS, PRODUCTS))
def test_one_operator_whatever_the_spelling(scaled: str, summed: str, product: str, tmp_path: Path) -> None:
    text = '<ir_version: 8, opset_import: ["": 17]> g (float[B,16] x) => (float[B,16] y) '
    model = onnx.parser.parse_model(f"{text}{{ {scaled} e = Erf (d) {summed} {product} }}")
    weights = (onnx.numpy_helper.from_array(np.float32(value), name) for name, value in NUMBERS.items())
    model.graph.initializer.extend(weights)
    onnx.save(model, tmp_path / "a.onnx")
    graph = read_onnx(tmp_path / "a.onnx")
    run_pipeline(parse("spell-gelu,drop-dead"), graph)
    write_into(graph, tmp_path / "b.onnx")
    before, _ = _optimized(tmp_path / "a.onnx", tmp_path / "a.opt.onnx")
    after, operators = _optimized(tmp_path / "b.onnx", tmp_path / "b.opt.onnx")
    assert operators == Counter(["Gelu"])
    feed = {"x": np.random.default_rng(0).normal(0, 3, (5, 16)).astype(np.float32)}
    np.testing.assert_allclose(after.run(None, feed)[0], before.run(None, feed)[0], rtol=1e-5, atol=1e-6)
