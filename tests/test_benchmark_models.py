"""The models that benchmarks build by script, small: valid, runnable, the same each time."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from zoo import module_of

from memoptc.api import compile_file
from memoptc.ir.onnx_io import read_onnx
from memoptc.ir.verifier import verify
from memoptc.manager import count_nodes

FILE = Path(__file__).resolve().parent.parent / "benchmarks" / "models.py"


@pytest.fixture(scope="module")
def models() -> ModuleType:
    return module_of(FILE, "benchmark_models")


def run(path: Path, width: int) -> np.ndarray:
    feed = np.random.default_rng(0).standard_normal((3, width)).astype(np.float32)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, {"x": feed})[0]


def test_chain(models: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "chain.onnx"
    models.chain50k(path, 1200)
    first = path.read_bytes()
    models.chain50k(path, 1200)
    assert path.read_bytes() == first
    onnx.checker.check_model(first)
    graph = read_onnx(path)
    verify(graph)
    assert count_nodes(graph) == 1200
    kinds = {op.op_type for op in graph.walk()}
    assert {"If", "Constant", "MatMul", "Reshape", "Add"} <= kinds
    assert np.isfinite(run(path, models.WIDTH)).all()


def test_external(models: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "dense.onnx"
    models.external3g(path, layers=4, width=64)
    assert path.stat().st_size < 8_000
    assert path.with_name("dense.onnx.data").stat().st_size >= 4 * 64 * 64 * 4
    compile_file(path, tmp_path / "out.onnx", level=1, verify="off", measure=False)
    assert np.array_equal(run(path, 64), run(tmp_path / "out.onnx", 64))
    # The last layer repeats the first one's weights, which are stored once now.
    assert len({op.attrs["value"].name for op in read_onnx(tmp_path / "out.onnx").walk("const")}) == 4
