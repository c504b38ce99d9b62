"""A class token that alone is read: what becomes of the others behind the last attention is not computed."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser

import memoptc
from memoptc.runtime.evaluate import Evaluator
from memoptc.runtime.options import RunOptions

LAYER = """<ir_version: 9, opset_import: ["" : 18]> g (float[N,7,12] x) => (float[N,3] y) {
    k = Transpose <perm = [0, 2, 1]> (x)  s = MatMul (x, k)  p = Softmax (s)  h = MatMul (p, x)
    heads = Reshape (h, split)  moved = Transpose <perm = [0, 2, 1, 3]> (heads)  merged = Reshape (moved, flat)
    o = MatMul (merged, w)  o2 = Add (o, c)  r = Add (x, o2)
    m = Relu (r)  first = Gather <axis = 1> (m, zero)  y = MatMul (first, last) }"""


def test_the_projection_behind_attention_is_of_one_token() -> None:
    """Exporters write it behind a Reshape: as a product over all rows of the batch it would need every token."""
    model, rng = onnx.parser.parse_model(LAYER), np.random.default_rng(0)
    arrays = {name: rng.standard_normal((12, n)).astype(np.float32) for name, n in (("w", 12), ("last", 3))}
    arrays |= {"c": rng.standard_normal(12).astype(np.float32), "zero": np.array(0)}
    arrays |= {"split": np.array([-1, 3, 7, 4]), "flat": np.array([-1, 7, 12])}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in arrays.items())
    made = memoptc.compile(model, level=2, measure=False).model
    shown = onnx.ModelProto()
    shown.CopyFrom(made)
    weights = {t.name for t in made.graph.initializer if list(t.dims) == [12, 12]}
    products = [node.output[0] for node in made.graph.node if weights & set(node.input)]
    assert len(products) == 1
    shown.graph.output.add().name = products[0]
    feed = {"x": rng.standard_normal((2, 7, 12)).astype(np.float32)}
    found = Evaluator(shown, RunOptions(), label="compiled").run(feed)
    assert found[products[0]].size == 2 * 12
    expected = Evaluator(model, RunOptions(), label="original").run(feed)["y"]
    np.testing.assert_allclose(found["y"], expected, rtol=1e-5, atol=1e-6)
