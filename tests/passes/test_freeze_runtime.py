"""freeze-runtime: onnxruntime's own optimization becomes part of the model, its order and plan hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

from memoptc.api import compile_file
from memoptc.ir.diagnostics import InputError
from memoptc.ir.onnx_io import write_onnx
from memoptc.ir.parser import parse
from memoptc.runtime.contract import contract_path, load_contract
from memoptc.runtime.executed import executed_order, first_difference
from memoptc.runtime.session import Session

MODELS = Path(__file__).resolve().parents[2] / "examples" / "models"
CNN = MODELS / "digits_cnn.onnx"


def feed(batch: int) -> dict[str, np.ndarray]:
    """Made-up pictures."""
    return {"image": np.random.default_rng(0).random((batch, 1, 8, 8), np.float32)}


def test_a_frozen_model_runs_in_the_files_order(tmp_path: Path) -> None:
    out = tmp_path / "frozen.onnx"
    result = compile_file(CNN, out, level=1, freeze_runtime=True)
    assert "freeze-runtime" in result.report.options["passes"]
    assert {n.domain for n in onnx.load(out).graph.node} & {"com.microsoft"}
    contract = load_contract(contract_path(out))
    assert contract is not None
    assert (contract.options.optimize, contract.options.file_order) == (False, True)
    assert first_difference(out, executed_order(out, feed(4), contract.options)) == ""
    session = Session(out, threads=1)
    expected = Session(CNN, memory="stock", threads=1).run(None, feed(4))
    assert np.allclose(session.run(None, feed(4))[0], expected[0], atol=1e-4)


def test_kernels_of_fewer_bits_are_those_that_run_without_freezing(tmp_path: Path) -> None:
    """Codes of 4 bits are multiplied by rounded activations wherever onnxruntime's optimizer is on, frozen or not."""
    text = """<ir_version: 10, opset_import: ["" : 21]> g (float[N, 64] x) => (float[N, 32] y) {
        d = DequantizeLinear <axis = 0, block_size = 32> (w, s)  y = MatMul (x, d) }"""
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    codes = helper.make_tensor("w", TensorProto.INT4, (64, 32), rng.integers(-7, 8, (64, 32)))
    model.graph.initializer.extend([codes, numpy_helper.from_array(rng.random((2, 32), np.float32) / 7, "s")])
    onnx.save(model, tmp_path / "m.onnx")
    result = compile_file(tmp_path / "m.onnx", tmp_path / "o.onnx", level=2, freeze_runtime=True, measure=False)
    assert [n.op_type for n in onnx.load(tmp_path / "o.onnx").graph.node] == ["MatMulNBits"]
    assert result.report.verification["passed"]
    given = {"x": rng.standard_normal((3, 64)).astype(np.float32)}
    runs = [Session(path, memory="stock", threads=1).run(None, given)[0] for path in sorted(tmp_path.glob("?.onnx"))]
    np.testing.assert_array_equal(*runs)


def test_weights_that_stay_are_not_written_twice(tmp_path: Path) -> None:
    plain = compile_file(CNN, tmp_path / "plain.onnx", level=1)
    frozen = compile_file(CNN, tmp_path / "frozen.onnx", level=1, freeze_runtime=True)
    assert frozen.report.candidate.weight_bytes <= plain.report.candidate.weight_bytes * 1.01


def test_packed_weights_give_the_same_bits_and_keep_the_order(tmp_path: Path) -> None:
    plain, packed = tmp_path / "plain.onnx", tmp_path / "packed.onnx"
    compile_file(CNN, plain, level=1, freeze_runtime=True)
    compile_file(CNN, packed, level=1, freeze_runtime=True, pack_weights=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "packed.onnx", "packed.onnx.data", "packed.session.json", "plain.onnx", "plain.session.json",
    ]  # fmt: skip
    outputs = [[n.output[0] for n in onnx.load(p, load_external_data=False).graph.node] for p in (plain, packed)]
    assert outputs[0] == outputs[1]
    a, b = (Session(p, threads=1).run(None, feed(4)) for p in (plain, packed))
    assert a[0].tobytes() == b[0].tobytes()


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="packed"):
        compile_file(CNN, tmp_path / "x.onnx", pack_weights=True, form="branch")
    with pytest.raises(InputError, match="no level 'most'"):
        compile_file(CNN, tmp_path / "x.onnx", passes='freeze-runtime{level="most"}')
    assert list(tmp_path.iterdir()) == []


def test_nothing_worth_packing(tmp_path: Path) -> None:
    """A model without weights need not have data beside it."""
    model = parse("graph @g(%x: f32[N,4]) -> (f32[N,4]) {\n  %y = Relu(%x)\n  return %y\n}")
    write_onnx(model, tmp_path / "m.onnx")
    compile_file(tmp_path / "m.onnx", tmp_path / "o.onnx", level=1, freeze_runtime=True, pack_weights=True)
    assert Session(tmp_path / "o.onnx").run(None, {"x": -np.ones((2, 4), np.float32)})[0].max() == 0


def test_half_scales_of_packed_products_are_constants(tmp_path: Path) -> None:
    """Packing while loading reads them: through a Cast that nothing folds any more, it would read 0."""
    text = """
model {opset={""=21}}

graph @g(%x: f16[N,2]) -> (f16[N,2]) {
  %codes = const() {value=[1,-2,3,-4]} : i8[2,2]
  %scale = const() {value=0.5} : f16[]
  %w = DequantizeLinear(%codes, %scale) : f16[2,2]
  %y = MatMul(%x, %w) : f16[N,2]
  return %y
}
"""
    write_onnx(parse(text), tmp_path / "half.onnx")
    compile_file(tmp_path / "half.onnx", tmp_path / "y.onnx", passes="freeze-runtime,lower", measure=False)
    (found,) = Session(tmp_path / "y.onnx").run(None, {"x": np.eye(2, dtype=np.float16)})
    assert np.array_equal(found, np.float16([[0.5, -1.0], [1.5, -2.0]]))
