"""avoid-pattern: default sessions keep to their arena; numbers, order and Session stay what they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from memoptc.api import compile_file
from memoptc.ir.infer import infer_shapes
from memoptc.ir.onnx_io import read_onnx
from memoptc.ir.taken import looked_into
from memoptc.levels import pipeline_text
from memoptc.runtime.measure import measure
from memoptc.runtime.memory.liveness import liveness, peak
from memoptc.runtime.options import RunOptions
from memoptc.runtime.session import Session

CNN = Path(__file__).resolve().parents[2] / "examples" / "models" / "digits_cnn.onnx"
BATCH = 512


def feed(batch: int = BATCH) -> dict[str, np.ndarray]:
    """Made-up pictures."""
    return {"image": np.random.default_rng(0).random((batch, 1, 8, 8), np.float32)}


def compiled(path: Path, passes: str, batch: int = BATCH, **more: object) -> list[str]:
    """Compile; give the names of the top graph's operators."""
    compile_file(CNN, path, passes=passes, dims={"batch": batch}, verify="off", **more)  # type: ignore[arg-type]
    return [n.op_type for n in onnx.load(path).graph.node]


def test_default_sessions_need_less_and_compute_the_same(tmp_path: Path) -> None:
    plain, wrapped = tmp_path / "plain.onnx", tmp_path / "wrapped.onnx"
    assert "If" not in compiled(plain, "simplify,order,plan-memory,lower")
    assert compiled(wrapped, "simplify,order,avoid-pattern,plan-memory,lower")[-1] == "If"
    expected = Session(plain, memory="stock", threads=1).run(None, feed())[0]
    for memory in ("stock", "arena", "planned"):
        session = Session(wrapped, memory=memory, threads=1)
        for _ in range(3):
            assert np.array_equal(session.run(None, feed())[0], expected)
    before, after = measure([plain, wrapped], feed(), options=RunOptions(threads=1), seconds=0.2)
    assert after.run_peak_bytes < 0.8 * before.run_peak_bytes


def test_any_batch_runs(tmp_path: Path) -> None:
    wrapped = tmp_path / "wrapped.onnx"
    compiled(wrapped, "simplify,order,avoid-pattern,plan-memory,lower")
    before, after = Session(CNN, memory="stock", threads=1), Session(wrapped, memory="stock", threads=1)
    for batch in (1, 3, BATCH):
        assert np.allclose(before.run(None, feed(batch))[0], after.run(None, feed(batch))[0], atol=1e-5)
    assert [o.shape for o in after.get_outputs()] == [o.shape for o in before.get_outputs()]


def test_it_is_part_of_the_levels_that_take_memory_first(tmp_path: Path) -> None:
    for level in (2, 3):
        assert ",avoid-pattern,plan-memory" in pipeline_text(level)
        assert "avoid-pattern" not in pipeline_text(level, freeze=True)
        assert ",avoid-pattern{most=4096}," in pipeline_text(level, budget=4096)
    assert "avoid-pattern" not in pipeline_text(1)


def test_compiled_once_more_it_is_the_same(tmp_path: Path) -> None:
    once, twice, flat = tmp_path / "once.onnx", tmp_path / "twice.onnx", tmp_path / "flat.onnx"
    compiled(once, "simplify,order,avoid-pattern,plan-memory,lower")
    for path, level in ((twice, 2), (flat, 1)):
        compile_file(once, path, level=level, dims={"batch": BATCH}, verify="off")
    kinds = [[n.op_type for n in onnx.load(p).graph.node] for p in (once, twice, flat)]
    assert kinds[0] == kinds[1]
    assert "If" not in kinds[2]
    assert kinds[2].count("Conv") > 0


@pytest.mark.parametrize("opset", [9, 10])
def test_old_models_get_an_opset_that_has_sequences(tmp_path: Path, opset: int) -> None:
    rng = np.random.default_rng(0)
    weights = onnx.numpy_helper.from_array(rng.random((8, 3, 3, 3), np.float32), "w")
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        onnx.helper.make_node("Relu", ["a"], ["b"]),
        onnx.helper.make_node("GlobalAveragePool", ["b"], ["c"]),
        onnx.helper.make_node("Softmax", ["c"], ["y"]),
    ]
    value = onnx.helper.make_tensor_value_info
    shapes = [[1, 3, 256, 256], [1, 8, 1, 1]]
    ends = [value(n, onnx.TensorProto.FLOAT, s) for n, s in zip("xy", shapes, strict=True)]
    graph = onnx.helper.make_graph(nodes, "old", ends[:1], ends[1:], [weights])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=6)
    source, out = tmp_path / "old.onnx", tmp_path / "new.onnx"
    onnx.save(model, source)
    result = compile_file(source, out, passes="raise-opset,avoid-pattern,lower")
    assert result.report.verification is not None
    assert result.report.verification["passed"]
    assert [n.op_type for n in onnx.load(out).graph.node][-1] == "If"


def test_figures_are_of_what_runs_inside(tmp_path: Path) -> None:
    wrapped = tmp_path / "wrapped.onnx"
    compiled(wrapped, "simplify,order,avoid-pattern,plan-memory,lower")
    outer, inside = (f(read_onnx(wrapped)) for f in (lambda g: g, looked_into))
    infer_shapes(inside)
    original = read_onnx(CNN)
    infer_shapes(original)
    assert [op.op_type for op in outer.ops][-1] == "If"
    assert not any(op.is_a("If", "SequenceEmpty") for op in inside.ops)
    peaks = [peak(g, {"batch": BATCH}).peak_bytes for g in (original, inside)]
    assert peaks[1] <= peaks[0]
    assert liveness(inside, {"batch": BATCH}).unknown == []
