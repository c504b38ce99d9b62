"""Weights that passes make lie in files while a compile goes on, with the same content."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from memoptc import compile, moved_weights
from memoptc.ir.mapped import is_mapped, move_to_file
from memoptc.ir.tensors import from_array


def _model() -> onnx.ModelProto:
    """A product, a scale and an offset, which become one product with other weights."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((8, 4, 3, 3)).astype(np.float32),
        "scale": rng.standard_normal(8).astype(np.float32),
        "shift": rng.standard_normal(8).astype(np.float32),
        "mean": rng.standard_normal(8).astype(np.float32),
        "var": rng.uniform(0.5, 2, 8).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["y"]),
    ]
    ends = [[1, 4, 8, 8], [1, 8, 6, 6]]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in zip("xy", ends, strict=True))
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(a, n) for n, a in weights.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_what_passes_make_is_moved_and_stays_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = compile(_model(), 2, measure=False)
    monkeypatch.setattr(moved_weights, "LEAST", 1)
    monkeypatch.setattr(moved_weights, "FROM", 1)
    found = compile(_model(), 2, measure=False)
    assert found.model.SerializeToString() == expected.model.SerializeToString()
    moved, kept = (
        [is_mapped(op.attrs["value"]) for op in r.graph.walk("const") if op.attrs["value"].nbytes > 1000]
        for r in (found, expected)
    )
    assert moved
    assert all(moved)
    assert not any(kept)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "bool"])
def test_content_in_a_file_is_the_same(tmp_path: Path, dtype: str) -> None:
    arrays = [np.arange(count).reshape(-1, 1).astype(dtype) for count in (5, 1, 300)]
    arrays.append(np.array(1, dtype))
    tensors = [from_array(array) for array in arrays]
    move_to_file(tensors, tmp_path)  # type: ignore[arg-type]
    assert all(is_mapped(t) for t in tensors)
    assert [t.numpy().tolist() for t in tensors] == [a.tolist() for a in arrays]
    assert [t.numpy().shape for t in tensors] == [a.shape for a in arrays]
    assert list(tmp_path.iterdir()) == []
