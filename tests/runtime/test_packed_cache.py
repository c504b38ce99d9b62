"""Copies with weights packed ahead, kept in a folder: the same bits, made once, never another model's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import native_models
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from native_models import usable

from memoptc.ir.diagnostics import InputError
from memoptc.ir.merge import merge_models
from memoptc.runtime import Pool
from memoptc.runtime.admission import RunBytes
from memoptc.runtime.container import Limiter, drop_from_cache, limiter
from memoptc.runtime.contract import Contract
from memoptc.runtime.errors import MemoryLimit
from memoptc.runtime.external_weights import data_files, external_weights
from memoptc.runtime.measuring_process import InSession
from memoptc.runtime.session import Session

WIDTH = 1024
FEED = {"x": np.random.default_rng(1).standard_normal((3, WIDTH)).astype(np.float32)}
TIERS = ["stock", "arena", pytest.param("planned", marks=pytest.mark.skipif(not usable(), reason="no C interface"))]


def write(path: Path, seed: int = 0, *, external: bool = True) -> Path:
    """Two products, the second one in a branch with a weight of its own."""
    rng, make, info = np.random.default_rng(seed), onnx.helper, onnx.helper.make_tensor_value_info
    w, v = (
        onnx.numpy_helper.from_array(rng.standard_normal((WIDTH, WIDTH)).astype(np.float32) / 32, name)
        for name in ("w", "v")
    )
    branches = [
        make.make_graph([make.make_node("MatMul", ["p", "v"], ["b"])], "then", [], [info("b", 1, None)], [v]),
        make.make_graph([make.make_node("Neg", ["p"], ["b"])], "else", [], [info("b", 1, None)]),
    ]
    nodes = [
        make.make_node("MatMul", ["x", "w"], ["p"]),
        make.make_node("If", ["c"], ["y"], then_branch=branches[0], else_branch=branches[1]),
    ]
    condition = onnx.numpy_helper.from_array(np.array(True), "t")
    nodes[:0] = [make.make_node("ReduceSum", ["x"], ["s"], keepdims=0), make.make_node("IsNaN", ["s"], ["n"])]
    nodes.insert(2, make.make_node("Not", ["n"], ["c"]))
    graph = make.make_graph(nodes, "g", [info("x", 1, ["n", WIDTH])], [info("y", 1, ["n", WIDTH])], [w, condition])
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=9)
    options = {"save_as_external_data": True, "location": "w.bin", "size_threshold": 1024} if external else {}
    onnx.save(model, path, **options)
    return path


def plain(model: Path) -> bytes:
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    return bytes(session.run(None, FEED)[0].tobytes())


def cached(model: Path, folder: Path, **options: object) -> bytes:
    with Session(model, packed_cache=folder, **options) as session:  # type: ignore[arg-type]
        return bytes(session.run(None, FEED)[0].tobytes())


@pytest.mark.parametrize("external", [True, False])
@pytest.mark.parametrize("memory", TIERS)
def test_bits_are_the_same_and_the_copy_is_made_once(tmp_path: Path, memory: str, external: bool) -> None:
    model, folder = write(tmp_path / "m.onnx", external=external), tmp_path / "deep" / "kept"
    before = {f: f.read_bytes() for f in tmp_path.iterdir()}
    assert cached(model, folder, memory=memory) == plain(model)
    (entry,) = folder.iterdir()  # nothing temporary stays
    made = {f: (f.stat().st_ino, f.stat().st_mtime_ns) for f in entry.iterdir()}
    assert cached(model, folder, memory=memory) == plain(model)
    assert [entry] == list(folder.iterdir())
    assert made == {f: (f.stat().st_ino, f.stat().st_mtime_ns) for f in entry.iterdir()}
    assert {f: f.read_bytes() for f in before} == before


def test_weights_come_from_the_copy(tmp_path: Path) -> None:
    model, folder = write(tmp_path / "m.onnx"), tmp_path / "kept"
    cached(model, folder)
    (data,) = folder.glob("*/*.data")
    with Session(model, packed_cache=folder, memory="stock"):
        mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line}
    assert str(data) in mapped
    assert data.stat().st_size >= 3 * WIDTH * WIDTH * 4  # both, and the one outside of the branch a second time


@pytest.mark.skipif(not usable(), reason="no C interface")
def test_what_is_mapped_counts_for_no_limit(tmp_path: Path) -> None:
    """Two weights of 4 MiB: the one in the branch is packed while loading all the same."""
    model, folder = write(tmp_path / "m.onnx"), tmp_path / "kept"
    with pytest.raises(MemoryLimit):
        Session(model, memory="planned", memory_limit="7MiB")
    with Session(model, memory="planned", memory_limit="7MiB", packed_cache=folder) as session:
        assert session.run(None, FEED)[0].tobytes() == plain(model)


def test_what_a_contract_counts_packed_is_not_counted(tmp_path: Path) -> None:
    model, folder = write(tmp_path / "m.onnx"), tmp_path / "kept"
    limited = {"memory": "arena", "memory_limit": "7MiB", "contract": heavy()}
    with pytest.raises(MemoryLimit):
        Session(model, **limited).run(None, FEED)  # type: ignore[arg-type]
    assert cached(model, folder, **limited) == plain(model)


def heavy() -> Contract:
    """A contract recorded where both weights were packed."""
    return Contract(
        inputs={"x": (3, WIDTH)},
        measured={"loaded_bytes": 2 * 4 * WIDTH * WIDTH, "run_peak_bytes": 3 * 4 * WIDTH},
        run_bytes=RunBytes(("4*n*1024",), {"n": ("x", 0)}),
    )


def test_other_weights_are_another_copy(tmp_path: Path) -> None:
    """Also where only a branch's weights differ, the model's own file is the same and so are sizes and times."""
    model, folder = write(tmp_path / "m.onnx"), tmp_path / "kept"
    first = cached(model, folder)
    data = bytearray((tmp_path / "w.bin").read_bytes())
    at = len(data) - WIDTH * WIDTH * 4
    data[at:] = np.negative(np.frombuffer(data[at:], np.float32)).tobytes()
    (tmp_path / "w.bin").write_bytes(data)
    assert cached(model, folder) == plain(model) != first
    assert len(list(folder.iterdir())) == 2


def test_files_of_weights_are_found_in_branches(tmp_path: Path) -> None:
    """And in sparse tensors, attributes and functions; text that looks like an entry names none."""
    model = write(tmp_path / "m.onnx")
    assert data_files(model) == {"w.bin": tmp_path / "w.bin"}
    assert data_files(write(tmp_path / "n.onnx", external=False)) == {}
    proto = onnx.load(model, load_external_data=False)
    proto.graph.doc_string = "\n\x08location\x12\x05/etc/"
    where = {"dense": proto.graph.sparse_initializer.add().values, "index": proto.graph.sparse_initializer[0].indices}
    function = proto.functions.add(name="f", domain="d")
    node = function.node.add(op_type="Constant", output=["c"])
    where["held"] = node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t
    other = proto.graph.node.add(op_type="Constant", output=["c"])
    where["deep"] = other.attribute.add(name="s", type=onnx.AttributeProto.SPARSE_TENSOR).sparse_tensor.values
    for name, tensor in where.items():
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=name)
    unused = proto.graph.initializer.add(name="inline", data_type=1, dims=[1], float_data=[1.0])
    unused.external_data.add(key="location", value="unused")
    onnx.save(proto, model)
    assert set(data_files(model)) == {"w.bin", *where}


def elsewhere(model: Path, location: str) -> Path:
    """The same model with its first weight in another file."""
    proto = onnx.load(model, load_external_data=False)
    entries = proto.graph.initializer[0].external_data
    next(e for e in entries if e.key == "location").value = location
    onnx.save(proto, model)
    return model


@pytest.mark.parametrize("place", ["/dev/zero", "../outside", "pipe", "folder", "absent", ".", "link", "z\0"])
def test_only_plain_files_in_the_folder_are_read(tmp_path: Path, place: str) -> None:
    (tmp_path / "outside").write_bytes(bytes(WIDTH * WIDTH * 4))
    folder = tmp_path / "model"
    (folder / "folder").mkdir(parents=True)
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to(tmp_path / "outside")
    model = elsewhere(write(folder / "m.onnx"), place)
    with pytest.raises(InputError, match=r"outside the model's folder|missing, or no plain file"):
        Session(model, packed_cache=tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
    with pytest.raises(InputError, match=r"outside the model's folder|missing, or no plain file"):
        merge_models([model], tmp_path / "merged")
    if place in ("/dev/zero", "../outside", ".", "link", "z\0"):
        with pytest.raises(InputError, match="outside the model's folder"):
            external_weights(model)
    elif usable():
        with Pool() as pool, pytest.raises(InputError, match="cannot be mapped"):
            pool.open(model)


def test_a_model_that_links_lead_to_has_a_copy(tmp_path: Path) -> None:
    """As caches of downloads hold them: names beside each other, contents elsewhere."""
    names, contents = tmp_path / "names", tmp_path / "contents"
    names.mkdir()
    contents.mkdir()
    expected = plain(write(contents / "m.onnx"))
    for name in ("m.onnx", "w.bin"):
        (names / name).symlink_to((contents / name).rename(contents / f"of-{name}"))
    assert cached(names / "m.onnx", tmp_path / "kept") == expected


def test_the_same_model_by_another_name_has_a_copy(tmp_path: Path) -> None:
    model = write(tmp_path / "m.onnx")
    other = tmp_path / "n.onnx"
    other.write_bytes(model.read_bytes())
    assert cached(model, tmp_path / "kept") == cached(other, tmp_path / "kept") == plain(model)


@pytest.mark.parametrize("lost", ["m.onnx", "weights.data"])
def test_what_is_left_of_a_copy_is_made_whole(tmp_path: Path, lost: str) -> None:
    model, folder = write(tmp_path / "m.onnx"), tmp_path / "kept"
    cached(model, folder)
    (entry,) = folder.iterdir()
    (entry / lost).unlink()
    assert cached(model, folder) == plain(model)
    assert list(folder.iterdir()) == [entry]


def test_processes_that_make_it_at_once_agree(tmp_path: Path) -> None:
    model, folder = write(tmp_path / "m.onnx"), tmp_path / "kept"
    text = (
        "import sys, numpy as np; from memoptc.runtime.session import Session\n"
        f"x = np.ones((1, {WIDTH}), np.float32)\n"
        "print(Session(sys.argv[1], packed_cache=sys.argv[2], threads=1).run(None, {'x': x})[0].tobytes()[:64].hex())"
    )
    command = [sys.executable, "-c", text, str(model), str(folder)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    found = {process.communicate(timeout=120)[0] for process in started}
    assert [process.returncode for process in started] == [0, 0, 0]
    assert len(found) == 1
    assert len(list(folder.iterdir())) == 1


@pytest.mark.skipif(not native_models.streams(), reason="this system lets no program fill its own pages")
def test_packed_weights_stream(tmp_path: Path) -> None:
    model, folder = write(tmp_path / "m.onnx"), tmp_path / "kept"
    for memory in ("stock", "arena"):
        with Session(
            model, packed_cache=folder, memory=memory, weights="streamed", weight_limit="16MiB", threads=1
        ) as session:
            assert session.run(None, FEED)[0].tobytes() == plain(model)


def test_what_cannot_be_kept_is_said(tmp_path: Path) -> None:
    model = write(tmp_path / "m.onnx")
    with pytest.raises(InputError, match="given as bytes has no packed copy"):
        Session(write(tmp_path / "n.onnx", external=False).read_bytes(), packed_cache=tmp_path / "kept")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"No packed copy of m\.onnx can be kept in .*file"):
        Session(model, packed_cache=tmp_path / "file")
    broken = tmp_path / "broken.onnx"
    for content in (b"\x08\x09nothing", b""):
        broken.write_bytes(content)
        with pytest.raises(InputError):
            Session(broken, packed_cache=tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_without_packing_there_is_no_copy(tmp_path: Path) -> None:
    model = write(tmp_path / "m.onnx")
    Session(model, packed_cache=tmp_path / "kept", packing=False)
    assert not (tmp_path / "kept").exists()


def test_containers_are_charged_for_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of a copy that another process has read would be free of charge, else."""
    model, folder = write(tmp_path / "m.onnx"), tmp_path / "kept"
    cached(model, folder)
    dropped: list[Path] = []
    monkeypatch.setattr("memoptc.runtime.container.drop_from_cache", lambda f: dropped.extend(f) or drop_from_cache(f))
    try:
        with limiter(model, FEED, InSession(None, {"packed_cache": str(folder)})) as tries:
            assert isinstance(tries, Limiter)
            assert tries.free().fits
    except InputError:
        pytest.skip("no control groups here")
    assert set(folder.glob("*/*")) <= set(dropped)
