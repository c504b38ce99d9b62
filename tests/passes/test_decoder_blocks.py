"""Products that single outputs of a decoder follow at once, which stay in float where these err too much."""

from __future__ import annotations

import numpy as np
import pytest
from decoders import Style, decoder
from onnx import numpy_helper

from memoptc.ir.core import Graph
from memoptc.ir.onnx_io import read_onnx
from memoptc.manager import run_pipeline
from memoptc.pass_base import Context
from memoptc.passes.precision._quantize.nearest_products import nearest_products
from memoptc.pipeline import parse

STYLE = Style(tied=False)
FUSED = "(simplify,fold-constants,share-common,drop-dead)*,fuse-rotary,fuse-skip-norm,fuse-cached-attention,drop-dead"


def graphs() -> tuple[Graph, list[np.ndarray]]:
    """A decoder whose attention is one operator, and the matrices of its keys and values, layer by layer."""
    model = decoder(STYLE)
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    read = [held[n.input[1]] for n in model.graph.node if n.op_type == "MatMul" and n.input[1] in held]
    graph = read_onnx(model)
    run_pipeline(parse(FUSED), graph, Context())
    return graph, [matrix for matrix in read if matrix.shape == (STYLE.hidden, STYLE.kv * STYLE.width)]


@pytest.mark.parametrize(("layer", "part"), [(0, "key"), (0, "value"), (1, "key"), (1, "value")])
def test_a_cache_is_followed_to_its_own_product(layer: int, part: str) -> None:
    graph, matrices = graphs()
    assert any(True for _ in graph.walk("com.microsoft::GroupQueryAttention"))
    (found,) = nearest_products(graph, {f"present.{layer}.{part}"})
    tensor = found.operands[1].tensor
    assert tensor is not None
    np.testing.assert_array_equal(tensor.numpy(), matrices[2 * layer + (part == "value")])


def test_scores_are_followed_to_the_head() -> None:
    graph, _ = graphs()
    (found,) = nearest_products(graph, {"logits"})
    assert found.operands[1].static_shape == (STYLE.hidden, STYLE.vocabulary)
    assert nearest_products(graph, set()) == []
