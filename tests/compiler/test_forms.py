"""Writing forms: chosen by need, written and read back; default sessions keep to their arena, numbers stay."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from memoptc.api import compile, compile_file
from memoptc.forms import choose_form, predicted_needs
from memoptc.ir.diagnostics import GateError, InputError
from memoptc.ir.forms import KEY, WritingForm, wrap
from memoptc.ir.infer import infer_shapes
from memoptc.ir.onnx_io import read_onnx, write_onnx
from memoptc.ir.parser import parse
from memoptc.levels import pipeline_text
from memoptc.options import Options
from memoptc.runtime.measure import measure_need
from memoptc.runtime.memory.liveness import peak
from memoptc.runtime.options import RunOptions
from memoptc.runtime.session import Session

CNN = Path(__file__).resolve().parents[2] / "examples" / "models" / "digits_cnn.onnx"
BATCH = 256
PASSES = "simplify,order,plan-memory,lower"


def feed(batch: int = BATCH) -> dict[str, np.ndarray]:
    """Made-up pictures."""
    return {"image": np.random.default_rng(0).random((batch, 1, 8, 8), np.float32)}


def compiled(path: Path, form: str, batch: int = BATCH, **more: object) -> list[str]:
    """Compile; give the names of the file's operators."""
    compile_file(CNN, path, passes=PASSES, form=form, dims={"batch": batch}, verify="off", **more)  # type: ignore[arg-type]
    return [n.op_type for n in onnx.load(path).graph.node]


def test_default_sessions_need_less_in_a_branch_and_compute_the_same(tmp_path: Path) -> None:
    plain, branch = tmp_path / "plain.onnx", tmp_path / "branch.onnx"
    assert "If" not in compiled(plain, "plain")
    assert compiled(branch, "branch")[-1] == "If"
    expected = Session(plain, memory="stock", threads=1).run(None, feed())[0]
    for memory in ("stock", "arena", "planned"):
        session = Session(branch, memory=memory, threads=1)
        for _ in range(3):
            assert np.array_equal(session.run(None, feed())[0], expected)
    before, after = (measure_need(p, feed(), options=RunOptions(threads=1), repeats=2) for p in (plain, branch))
    assert after.run_peak_bytes < 0.8 * before.run_peak_bytes


@pytest.mark.parametrize("form", ["branch", "captured", "shapeless"])
def test_any_batch_runs_and_the_interface_is_kept(tmp_path: Path, form: str) -> None:
    path = tmp_path / "model.onnx"
    compiled(path, form)
    before, after = Session(CNN, memory="stock", threads=1), Session(path, memory="stock", threads=1)
    for batch in (1, 3, BATCH):
        assert np.allclose(before.run(None, feed(batch))[0], after.run(None, feed(batch))[0], atol=1e-5)
    for ends in ("get_inputs", "get_outputs"):
        a, b = ([(v.name, v.shape, v.type) for v in getattr(s, ends)()] for s in (before, after))
        assert a == b


def test_a_shapeless_branch_takes_inputs_of_four_bits(tmp_path: Path) -> None:
    graph = parse("""graph @codes(%x: i4[N,4], %y: f32[N,4]) -> (f32[*]) {
      %one = const() {value=1.0} : f32[]
      %a = DequantizeLinear(%x, %one)
      %z = Add(%a, %y)
      return %z
    }""")
    infer_shapes(graph)
    path = tmp_path / "codes.onnx"
    write_onnx(graph, path, WritingForm("shapeless"))
    assert Session(path, memory="stock").get_inputs()[0].type == "tensor(int4)"
    (guard,) = (n for n in onnx.load(path).graph.node if n.op_type == "If")
    (then,) = (a.g for a in guard.attribute if a.name == "then_branch")
    assert [n.op_type for n in then.node].count("Reshape") == 1  # of %y
    assert not any(op.is_a("If", "Reshape") for op in read_onnx(path).ops)


def test_the_form_is_no_pass_and_chosen_from_level_2_on(tmp_path: Path) -> None:
    for level in (1, 2, 3):
        assert "avoid-pattern" not in pipeline_text(level)
        path = tmp_path / f"level{level}.onnx"
        result = compile_file(CNN, path, level=level, passes=PASSES, dims={"batch": BATCH}, verify="off")
        decided = [d for d in result.report.decisions if d.step == "form"]
        assert len(decided) == (level >= 2)
        forms = [p.value for p in onnx.load(path).metadata_props if p.key == KEY]
        assert forms == (["branch"] if level >= 2 else [])


def test_the_predicted_need_decides(tmp_path: Path) -> None:
    graph = read_onnx(CNN)
    infer_shapes(graph)
    for batch, expected in ((1, "plain"), (BATCH, "branch")):
        dims = {"batch": batch}
        needs = predicted_needs(graph, dims, external=False)
        form = choose_form(graph, dims, Options()).form
        assert needs[form.name] <= needs["plain"]
        assert form.name == expected
        assert form.external == (expected == "branch")  # which would hold copies of what lies inside of it
        assert not choose_form(graph, dims, Options(external="never")).form.external


def test_measuring_decides_where_it_is_on(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"passes": PASSES, "dims": {"batch": BATCH}, "verify": "off"}
    # Any latency: on a busy machine the form would be taken back for it.
    result = compile_file(CNN, tmp_path / "out.onnx", measure=True, max_slowdown=1000.0, **asked)
    (decided,) = [d for d in result.report.decisions if d.step == "form"]
    assert "measured" in decided.why
    assert decided.gain_bytes is not None
    assert decided.gain_bytes > 0


def test_compiled_once_more_it_is_the_same(tmp_path: Path) -> None:
    once, twice, flat = tmp_path / "once.onnx", tmp_path / "twice.onnx", tmp_path / "flat.onnx"
    compiled(once, "branch")
    assert not any(op.is_a("If", "SequenceEmpty") for op in read_onnx(once).ops)
    for path, level in ((twice, 2), (flat, 1)):
        compile_file(once, path, level=level, passes=PASSES, dims={"batch": BATCH}, verify="off")
    kinds = [[n.op_type for n in onnx.load(p).graph.node] for p in (once, twice, flat)]
    assert kinds[0] == kinds[1]
    assert "If" not in kinds[2]
    assert kinds[2].count("Conv") > 0


def test_the_same_bytes_each_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        compile_file(CNN, tmp_path / name / "m.onnx", dims={"batch": BATCH}, verify="off", external="always")
    for file in ("m.onnx", "m.onnx.data"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_budget_that_holds_without_a_branch_holds_with_one() -> None:
    rng = np.random.default_rng(0)
    shapes = {"w": (64, 8, 3, 3), "v": (8, 64, 3, 3)}
    weights = [onnx.numpy_helper.from_array(rng.random(s, np.float32), n) for n, s in shapes.items()]
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        onnx.helper.make_node("Relu", ["a"], ["b"]),
        onnx.helper.make_node("Conv", ["b", "v"], ["c"], pads=[1, 1, 1, 1]),
        onnx.helper.make_node("Sigmoid", ["c"], ["y"]),
    ]
    ends = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 8, 256, 256]) for n in "xy"]
    graph = onnx.helper.make_graph(nodes, "early", ends[:1], ends[1:], weights)
    graph = read_onnx(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8))
    infer_shapes(graph)
    planned, wrapped = peak(graph, {}).peak_bytes, peak(wrap(graph), {}).peak_bytes
    assert planned < wrapped
    chosen = [
        choose_form(graph, {}, Options(memory_budget=f"activations={budget}")).form.name
        for budget in (planned, wrapped)
    ]
    assert chosen == ["plain", "branch"]


@pytest.mark.parametrize(("external", "files"), [("auto", 1), ("always", 2), ("never", 1)])
def test_where_weights_go(tmp_path: Path, external: str, files: int) -> None:
    out = tmp_path / "out.onnx"
    result = compile_file(CNN, out, level=1, external=external, verify="off")
    assert len(list(tmp_path.glob("out.onnx*"))) == files
    assert len(result.save(tmp_path / "again.onnx")) == files + 1
    assert not any(t.external_data for t in result.model.graph.initializer)


def test_a_megabyte_of_weights_goes_beside_the_model(tmp_path: Path) -> None:
    weights = [
        onnx.numpy_helper.from_array(np.random.default_rng(i).random((512, 512), np.float32), f"w{i}") for i in (0, 1)
    ]
    nodes = [onnx.helper.make_node("MatMul", ["x", "w0"], ["h"]), onnx.helper.make_node("MatMul", ["h", "w1"], ["y"])]
    ends = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["n", 512]) for n in "xy"]
    graph = onnx.helper.make_graph(nodes, "wide", ends[:1], ends[1:], weights)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    compile_file(tmp_path / "model.onnx", tmp_path / "out.onnx", level=1)
    assert (tmp_path / "out.onnx.data").stat().st_size == 2 << 20
    kept, pipe = tmp_path / "kept.onnx", tmp_path / "pipe"
    os.mkfifo(pipe)  # nothing can lie beside it
    reader = threading.Thread(target=lambda: kept.write_bytes(pipe.read_bytes()))
    reader.start()
    compile_file(tmp_path / "model.onnx", pipe, level=1)
    reader.join(60)
    assert len(onnx.load(kept).graph.initializer) == 2
    assert compile(model, level=1).model.ByteSize() > 2 << 20


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="laid out for this machine"):
        Options(pack_weights=True, portable=True, freeze_runtime=True)
    with pytest.raises(InputError, match="form='round' is unknown"):
        Options(form="round")
    with pytest.raises(InputError, match="external='often' is unknown"):
        Options(external="often")


def test_a_shape_that_onnxruntime_infers_wrongly_is_written_as_a_plain_graph():
    """It pads SAME without regard to dilations: a warning at top level, an error where a branch gives the output."""
    nodes = [
        onnx.helper.make_node("Relu", ["x"], ["a"]),
        onnx.helper.make_node("Sin", ["a"], ["b"]),
        onnx.helper.make_node("Mul", ["a", "b"], ["c"]),
        onnx.helper.make_node("MaxPool", ["c"], ["y"], kernel_shape=[3, 3], dilations=[2, 2], auto_pad="SAME_UPPER"),
    ]
    x = onnx.helper.make_tensor_value_info("x", 1, [1, 64, 128, 128])
    y = onnx.helper.make_tensor_value_info("y", 1, ["a", "b", "c", "d"])
    graph = onnx.helper.make_graph(nodes, "pool", [x], [y])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    with pytest.raises(GateError, match="If"):
        compile(model, 2, form="branch")
    result = compile(model, 2)
    assert result.report.verification["passed"]
    assert any(d.step == "form" and d.what == "written as a plain graph" for d in result.report.decisions)
    assert not any(node.op_type == "If" for node in result.model.graph.node)
