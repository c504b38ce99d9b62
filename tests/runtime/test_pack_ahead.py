"""Weights packed ahead of onnxruntime's own optimizer: mapped where hashes agree, packed anew elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from memoptc import packing
from memoptc.api import compile_file
from memoptc.ir.diagnostics import InputError
from memoptc.ir.merge import merge_models
from memoptc.ir.onnx_data import PAGE
from memoptc.runtime.measured_contract import make_contract
from memoptc.runtime.pack_ahead import append_packed
from memoptc.runtime.session import Session

WIDTH, LAYERS = 192, 3
WEIGHT_BYTES = WIDTH * WIDTH * 4


def chain(path: Path) -> Path:
    """Products with weights beside the model; two weights are equal, and one is scaled while onnxruntime loads."""
    rng = np.random.default_rng(0)
    make, nodes, weights, name = onnx.helper, [], [], "x"
    arrays = [rng.standard_normal((WIDTH, WIDTH)).astype(np.float32) / 14 for _ in range(LAYERS)]
    for i, array in enumerate((*arrays, arrays[0])):
        weights.append(onnx.numpy_helper.from_array(array, f"w{i}"))
        nodes += [make.make_node("MatMul", [name, f"w{i}"], [f"p{i}"]), make.make_node("Tanh", [f"p{i}"], [f"y{i}"])]
        name = f"y{i}"
    weights.append(onnx.numpy_helper.from_array(np.float32(0.5), "half"))
    nodes += [make.make_node("Mul", ["w1", "half"], ["s"]), make.make_node("MatMul", [name, "s"], ["y"])]
    info = make.make_tensor_value_info
    graph = make.make_graph(nodes, "chain", [info("x", 1, ["n", WIDTH])], [info("y", 1, ["n", WIDTH])], weights)
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=1024)
    return path


def outputs(path: Path) -> bytes:
    feed = {"x": np.random.default_rng(1).standard_normal((5, WIDTH)).astype(np.float32)}
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run(None, feed)[0].tobytes()
    assert found == Session(path, contract=False).run(None, feed)[0].tobytes()
    return bytes(found)


def loaded_bytes(path: Path) -> int:
    """Bytes that onnxruntime keeps allocated once the model is loaded."""
    return make_contract(path, {"x": np.zeros((1, WIDTH), np.float32)}).measured["loaded_bytes"]


def test_packed_weights_are_mapped_and_give_the_same_bits(tmp_path: Path) -> None:
    path = chain(tmp_path / "model.onnx")
    before, packed_before = outputs(path), loaded_bytes(path)
    added = append_packed(path, tmp_path)
    assert LAYERS * WEIGHT_BYTES <= added < (LAYERS + 1) * WEIGHT_BYTES  # equal weights once, computed ones not
    assert outputs(path) == before
    assert loaded_bytes(path) <= packed_before - LAYERS * WEIGHT_BYTES  # what is computed while loading is packed then


def test_models_that_are_merged_keep_what_was_packed(tmp_path: Path) -> None:
    one, two = (chain(tmp_path / f"{name}.onnx") for name in ("one", "two"))
    for path in (one, two):
        (folder := tmp_path / path.stem).mkdir()
        append_packed(path, folder)
    merged = merge_models([one, two], tmp_path / "merged")
    assert [outputs(path) for path in merged.models] == [outputs(one), outputs(two)]
    assert [loaded_bytes(path) for path in merged.models] == [loaded_bytes(one), loaded_bytes(two)]
    size = one.with_name(f"{one.name}.data").stat().st_size
    assert merged.weights.stat().st_size <= size + 8 * PAGE < 2 * size  # what both have is there once


def test_other_kernels_pack_for_themselves(tmp_path: Path) -> None:
    """Another processor's layout has another hash: then nothing of the file is used."""
    path = chain(tmp_path / "model.onnx")
    before, packed_before = outputs(path), loaded_bytes(path)
    append_packed(path, tmp_path)
    model = onnx.load(path, load_external_data=False)
    for entry in (e for t in model.graph.initializer for e in t.external_data if e.key.startswith("prepacked_")):
        entry.value = re.sub(r"\+(\d+)", lambda found: f"+{int(found[1]) ^ 1}", entry.value)
    path.write_bytes(model.SerializeToString())
    data = path.with_name("model.onnx.data")
    size = (LAYERS + 1) * WEIGHT_BYTES
    data.write_bytes(data.read_bytes()[:size].ljust(data.stat().st_size, b"\xff"))
    assert outputs(path) == before
    assert loaded_bytes(path) == packed_before


def test_a_compile_packs_where_copies_are_much_of_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "PACKED_FROM", WEIGHT_BYTES)
    monkeypatch.setattr(packing, "SHARE", 0.01)
    source, out, plain = chain(tmp_path / "model.onnx"), tmp_path / "out.onnx", tmp_path / "plain.onnx"
    result = compile_file(source, out, level=2, measure=False)
    assert [d.step for d in result.report.decisions].count("packing") == 1
    compile_file(source, plain, level=2, measure=False, portable=True)
    assert loaded_bytes(out) < loaded_bytes(plain) - (LAYERS - 1) * WEIGHT_BYTES
    assert outputs(out) == outputs(plain)
    result.save(tmp_path / "saved.onnx")
    assert outputs(tmp_path / "saved.onnx") == outputs(plain)
    assert loaded_bytes(tmp_path / "saved.onnx") == loaded_bytes(out)


def test_weights_that_cannot_be_packed_ahead_are_packed_while_loading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(model: Path, scratch: Path) -> int:
        raise InputError("there is no room")

    monkeypatch.setattr(packing, "PACKED_FROM", WEIGHT_BYTES)
    monkeypatch.setattr(packing, "SHARE", 0.01)
    monkeypatch.setattr(packing, "pack_ahead", refuse)
    source, out = chain(tmp_path / "model.onnx"), tmp_path / "out.onnx"
    result = compile_file(source, out, level=2, measure=False)
    assert [d.why for d in result.report.decisions if d.step == "packing"] == ["there is no room"]
    assert outputs(out) == outputs(source)
    with pytest.raises(InputError, match="there is no room"):
        compile_file(source, tmp_path / "asked.onnx", level=2, measure=False, pack_weights=True)
    assert not (tmp_path / "asked.onnx").exists()
