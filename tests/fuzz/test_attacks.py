"""Damaged files give a clear error or a correct result: no other exception, no memory beyond a multiple of the file."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import sympy  # noqa: F401  (imported where extents need it: its own memory is none of a file's)
from attacks import Rng, damaged, edited, models
from onnx import TensorProto, helper, numpy_helper

from memoptc import compile
from memoptc.ir.diagnostics import InputError
from memoptc.ir.infer import infer_shapes
from memoptc.ir.mir import read_mir
from memoptc.ir.onnx_io import read_onnx, to_proto
from memoptc.ir.parser import parse
from memoptc.ir.printer import print_graph
from memoptc.ir.verifier import VerifyError, verify
from memoptc.ir.weights import Npz
from memoptc.registry import load_plugin
from memoptc.runtime.contract import Contract, load_contract
from memoptc.runtime.data import Data
from memoptc.runtime.session import Session

SEEDS, NIGHTLY_SEEDS = 80, 20_000
MULTIPLE, ROOM = 10, 24 << 20
"""Bytes that reading may allocate: times the file, and what any reading takes."""
LONGEST = 4000
"""Characters of a message."""

MODELS = models()


def _calm(action: Callable[[], Any], size: int, what: object) -> bool:
    """Run; whether it went well. Anything but a clear error fails the test."""
    said = ""
    tracemalloc.start()
    try:
        action()
    except (InputError, VerifyError) as error:  # VerifyError: a text that says something impossible
        said = str(error)
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak <= MULTIPLE * size + ROOM, what
    assert len(said) < LONGEST, what
    return not said


def _model(r: Rng) -> bytes:
    model = MODELS[int(r.integers(len(MODELS)))]
    if r.random() < 0.7:
        return bytes(edited(model, r).SerializeToString())
    return damaged(model.SerializeToString(), r)


def _read(data: bytes) -> None:
    graph = read_onnx(data)
    verify(graph)
    infer_shapes(graph)
    verify(graph)
    parse(print_graph(graph))
    to_proto(graph)


def _models(seeds: range) -> None:
    went_well = 0
    for seed in seeds:
        data = _model(np.random.default_rng(seed))
        went_well += _calm(lambda data=data: _read(data), len(data), seed)  # type: ignore[misc]
    assert 0.2 * len(seeds) < went_well < len(seeds)


def test_models() -> None:
    _models(range(SEEDS))


@pytest.mark.nightly
def test_models_at_length() -> None:
    _models(range(1000, 1000 + NIGHTLY_SEEDS))


@pytest.mark.nightly
def test_compiles_of_damaged_models() -> None:
    """What onnxruntime refuses is an error of the input, too."""

    def work(data: bytes) -> None:
        compile(onnx.ModelProto.FromString(read_bytes(data)), 2, verify="off", measure=False)

    def read_bytes(data: bytes) -> bytes:
        read_onnx(data)
        return data

    for seed in range(400):
        data = _model(np.random.default_rng(seed))
        _calm(lambda data=data: work(data), 16 * len(data), seed)  # type: ignore[misc]


def _external(folder: Path, **entries: str) -> Path:
    model = onnx.ModelProto()
    model.CopyFrom(MODELS[0])
    tensor = next(t for t in model.graph.initializer if t.name == "w2")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


BAD_ENTRIES: list[dict[str, str]] = [
    {},
    {"location": ""},
    {"location": "../outside.bin"},
    {"location": "inside/../../outside.bin"},
    {"location": "/etc/hostname"},
    {"location": "link.bin"},
    {"location": "missing.bin"},
    {"location": "inside"},
    {"location": "w\0.bin"},
    {"location": "a" * 5000},
    {"location": "w.bin", "offset": "-1"},
    {"location": "w.bin", "offset": "99999999999999999999"},
    {"location": "w.bin", "offset": "1"},
    {"location": "w.bin", "offset": "x"},
    {"location": "w.bin", "length": "-1000"},
    {"location": "w.bin", "length": "9223372036854775808"},
    {"location": "w.bin", "length": "1e3"},
    {"location": "w.bin", "length": "4"},
    {"location": "pipe"},
]


@pytest.mark.parametrize("entries", BAD_ENTRIES, ids=lambda e: "-".join(f"{v:.20}" for v in e.values()) or "none")
def test_external_data(tmp_path: Path, entries: dict[str, str]) -> None:
    folder = tmp_path / "model"
    (folder / "inside").mkdir(parents=True)
    (tmp_path / "outside.bin").write_bytes(bytes(1000))
    (folder / "w.bin").write_bytes(bytes(1000))
    os.symlink(tmp_path / "outside.bin", folder / "link.bin")
    os.mkfifo(folder / "pipe")
    path = _external(folder, **entries)
    with pytest.raises(InputError, match=r"w2|model\.onnx"):
        read_onnx(path)


def test_good_external_data(tmp_path: Path) -> None:
    """A link to a file in the model's folder, and an offset: what is refused above is not refused for its form."""
    (tmp_path / "w.bin").write_bytes(bytes(1004))
    os.symlink("w.bin", tmp_path / "link.bin")
    graph = read_onnx(_external(tmp_path, location="link.bin", offset="4", length="1000"))
    assert not next(op for op in graph.walk("const") if op.result.name == "w2").result.tensor.numpy().any()  # type: ignore[union-attr]


RULES = """rule conv-relu {
  match   %c = Conv(%x, %w, ...) ; %y = Relu(%c)
  where   single_use(%c), attr(%c, group) == 1
  replace %y = com.microsoft::FusedConv(%x, %w, ...) {activation = "Relu", ...%c}
}
rule double { match %y = Add(%x, %x) replace %y = Mul(%x, 2.0) }
"""


def _texts(folder: Path, seeds: range) -> None:
    sources = [print_graph(read_onnx(m)).encode() for m in MODELS]
    mir, rules = folder / "a.mir", folder / "a.rules"
    for seed in seeds:
        r = np.random.default_rng(seed)
        mir.write_bytes(damaged(sources[seed % 2], r))
        rules.write_bytes(damaged(RULES.encode(), r))
        size = mir.stat().st_size
        # Lark's tables are made once; its trees are larger than the text.
        _calm(lambda: verify(read_mir(mir)), 20 * size, seed)
        _calm(lambda: load_plugin(str(rules)), 20 * size, seed)


def test_texts(tmp_path: Path) -> None:
    _texts(tmp_path, range(40))


@pytest.mark.nightly
def test_texts_at_length(tmp_path: Path) -> None:
    _texts(tmp_path, range(1000, 4000))


def _arrays(folder: Path, seeds: range) -> None:
    types = {v.name: v.type for v in read_onnx(MODELS[0]).inputs}
    array = np.zeros((4, 3, 8, 8), np.float32)
    for seed in seeds:
        r = np.random.default_rng(seed)
        path = folder / ("a.npy" if seed % 4 == 3 else "a.npz")
        if seed % 4 == 3:
            np.save(path, array)
        else:
            (np.savez if seed % 2 else np.savez_compressed)(path, x=array)
        path.write_bytes(damaged(path.read_bytes(), r))
        _calm(lambda path=path: [s.feed for s in Data(path, types)], array.nbytes, seed)  # type: ignore[misc]
        if path.suffix == ".npz":
            _calm(lambda path=path: [np.asarray(_held(Npz(path), n)) for n in Npz(path)], array.nbytes, seed)  # type: ignore[misc]


def _held(weights: Npz, name: str) -> Any:
    held = weights[name]
    return held if isinstance(held, np.ndarray) else held._raw()


def test_arrays(tmp_path: Path) -> None:
    _arrays(tmp_path, range(100))


@pytest.mark.nightly
def test_arrays_at_length(tmp_path: Path) -> None:
    _arrays(tmp_path, range(1000, 6000))


class _Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, ("exploded",)


def test_no_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    objects = np.asarray([_Bomb()], object)
    np.savez(tmp_path / "a.npz", x=objects)
    np.save(tmp_path / "a.npy", objects)
    types = {v.name: v.type for v in read_onnx(MODELS[0]).inputs}
    for path in (tmp_path / "a.npz", tmp_path / "a.npy"):
        with pytest.raises(InputError):
            list(Data(path, types))
    with pytest.raises(InputError):
        Npz(tmp_path / "a.npz")
    assert not (tmp_path / "exploded").exists()


def test_an_array_that_claims_to_be_large(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((2, 3, 8, 8), np.float32))
    path.write_bytes(path.read_bytes().replace(b"(2, 3, 8, 8), }       ", b"(2, 99999, 9999, 8), }"))
    types = {v.name: v.type for v in read_onnx(MODELS[0]).inputs}
    assert not _calm(lambda: list(Data(path, types)), path.stat().st_size, "large")


def _contracts(folder: Path, seeds: range) -> None:
    path = folder / "m.session.json"
    onnx.save(
        helper.make_model(
            helper.make_graph(
                [helper.make_node("Add", ["x", "w"], ["y"])],
                "g",
                [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
                [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
                [numpy_helper.from_array(np.ones(2, np.float32), "w")],
            ),
            opset_imports=[helper.make_opsetid("", 17)],
            ir_version=8,
        ),
        folder / "m.onnx",
    )
    whole = Contract(arena_bytes=4096, inputs={"x": (2,)}, measured={"peak": 1}, peaks={"a": 1}).to_json()
    for seed in seeds:
        r = np.random.default_rng(seed)
        text = json.dumps(_changed(whole, r)) if seed % 3 else damaged(json.dumps(whole).encode(), r).decode("latin-1")
        path.write_text(text)
        _calm(lambda: load_contract(path), len(text), text)
        if seed % 5 == 0:
            _calm(lambda: Session(folder / "m.onnx").run(None, {"x": np.ones(2, np.float32)}), len(text), text)


def _changed(value: Any, r: Rng) -> Any:
    if isinstance(value, dict) and value and r.random() < 0.85:
        key = str(r.choice(list(value)))
        return {**value, key: _changed(value[key], r)}
    others = (None, -1, 0, 2**63, 1e300, "x", "", [], [1, "a"], {}, {"a": None}, True)
    return others[int(r.integers(len(others)))]


def test_contracts(tmp_path: Path) -> None:
    _contracts(tmp_path, range(100))


@pytest.mark.nightly
def test_contracts_at_length(tmp_path: Path) -> None:
    _contracts(tmp_path, range(1000, 4000))
