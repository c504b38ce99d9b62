"""Models that share a pool of weights: each content on disk once, and every model runs as it would alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from memoptc.ir import tensors
from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph
from memoptc.ir.onnx_io import read_onnx
from memoptc.ir.pool import WeightPool
from memoptc.runtime.evaluate import Evaluator


def _model(seed: int = 0) -> Graph:
    rng = np.random.default_rng(seed)
    weights = [rng.standard_normal((64, 64)).astype(np.float32) for _ in range(2)]
    make = onnx.helper
    nodes = [make.make_node("MatMul", ["x", "a"], ["h"]), make.make_node("MatMul", ["h", "b"], ["y"])]
    ends = [make.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 64]) for name in "xy"]
    held = [onnx.numpy_helper.from_array(w, name) for w, name in zip(weights, "ab", strict=True)]
    graph = make.make_graph(nodes, "g", ends[:1], ends[1:], held)
    return read_onnx(make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=8))


def _run(path: Path) -> np.ndarray:
    found: np.ndarray = Evaluator(path).run({"x": np.eye(3, 64, dtype=np.float32)})["y"]
    return found


def test_a_copy_writes_what_is_new_only_and_earlier_models_still_run(tmp_path: Path) -> None:
    pool, graph = WeightPool(tmp_path), _model()
    first = pool.write(graph, "first.onnx")
    whole = pool.written
    assert whole >= 2 * 64 * 64 * 4
    before = _run(first)
    copy = graph.clone()
    (product, *_) = copy.walk("MatMul")
    assert product.operands[1].tensor is not None
    doubled = 2 * product.operands[1].tensor.numpy()
    product.set_operand(1, Builder(copy, before=product).const(tensors.from_array(doubled)))
    second = pool.write(copy, "second.onnx")
    assert whole < pool.written <= whole + 64 * 64 * 4
    np.testing.assert_array_equal(_run(first), before)
    np.testing.assert_allclose(_run(second), 2 * before, rtol=1e-6)
    assert pool.write(graph, "third.onnx").stat().st_size < 4096
    pool.remove()
    assert not list(tmp_path.iterdir())


def test_equal_contents_of_other_objects_are_written_once(tmp_path: Path) -> None:
    pool = WeightPool(tmp_path)
    pool.write(_model(), "first.onnx")
    written = pool.written
    pool.write(_model(), "second.onnx")
    assert pool.written == written
    pool.write(_model(seed=1), "third.onnx")
    assert pool.written == 2 * written


def test_a_model_names_the_content_of_its_weights(tmp_path: Path) -> None:
    """Files of equal layout and other contents must differ: resumed searches tell models apart by them."""
    pools = [WeightPool(tmp_path) for _ in range(3)]
    files = [pool.write(_model(seed), "m.onnx").read_bytes() for pool, seed in zip(pools, (0, 1, 0), strict=True)]
    assert files[0] != files[1]
    assert files[0] == files[2]
