"""What a file is written to: devices, pipes and links stay what they are, modes stay, and killed runs leave nothing."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from memoptc.api import compile_file
from memoptc.ir import files
from memoptc.ir.diagnostics import InputError
from memoptc.ir.files import TemporaryFolder, atomic_write, staged
from memoptc.ir.onnx_io import read_onnx, write_onnx

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="devices, pipes and modes of POSIX")


def model(rows: int = 4) -> onnx.ModelProto:
    """A product with a weight of `rows` rows."""
    weight = numpy_helper.from_array(np.ones((rows, rows), np.float32), "w")
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, rows]) for n in "xy")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model file."""
    path = tmp_path / "source" / "m.onnx"
    path.parent.mkdir()
    onnx.save(model(), path)
    return path


def drained(pipe: Path, into: list[bytes]) -> threading.Thread:
    """A reader at the other end of a pipe."""
    thread = threading.Thread(target=lambda: into.append(pipe.read_bytes()), daemon=True)
    thread.start()
    return thread


def test_a_pipe_is_written_through(source: Path, tmp_path: Path) -> None:
    got: list[bytes] = []
    for name in ("p.onnx", "p.json"):
        os.mkfifo(tmp_path / name)
    threads = [drained(tmp_path / name, got) for name in ("p.onnx", "p.json")]
    compile_file(source, tmp_path / "p.onnx", reports=[tmp_path / "p.json"], level=1, measure=False)
    for thread in threads:
        thread.join(60)
    assert len(got) == 2
    assert onnx.load_model_from_string(got[0]).graph.node[0].op_type == "MatMul"
    for name in ("p.onnx", "p.json"):
        assert stat.S_ISFIFO((tmp_path / name).stat().st_mode)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.json", "p.onnx", "source"]


def test_nothing_can_lie_beside_a_pipe(tmp_path: Path) -> None:
    onnx.save(model(32), tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    os.mkfifo(tmp_path / "p.onnx")
    with pytest.raises(InputError, match="lie beside"):
        write_onnx(read_onnx(tmp_path / "m.onnx"), tmp_path / "p.onnx")


def test_a_device_stays_one(source: Path, tmp_path: Path) -> None:
    """The bit bucket, made anew: as root, a mistake here would cost the machine its own."""
    device = tmp_path / "null"
    try:
        os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        device.write_bytes(b"")
    except OSError:
        pytest.skip("devices can be made by root only")
    compile_file(source, device, level=1, measure=False)
    atomic_write(device, b"gone")
    assert stat.S_ISCHR(device.stat().st_mode)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["null", "source"]


def test_a_terminal_is_written_through() -> None:
    ours, theirs = os.openpty()
    try:
        atomic_write(Path(os.ttyname(theirs)), b"hello\n")
        assert os.read(ours, 100).split() == [b"hello"]
    finally:
        os.close(ours)
        os.close(theirs)


def test_links_are_followed(source: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    for name in ("m.onnx", "m.json"):
        (tmp_path / name).symlink_to(tmp_path / "real" / name)
    (tmp_path / "real" / "m.json").write_text("old")
    for _ in range(2):
        compile_file(source, tmp_path / "m.onnx", reports=[tmp_path / "m.json"], level=1, measure=False)
        assert (tmp_path / "m.onnx").is_symlink()
        assert (tmp_path / "m.json").is_symlink()
        found = sorted(p.name for p in (tmp_path / "real").iterdir())
        assert found == ["m.json", "m.onnx", "m.session.json"]
    assert (tmp_path / "real" / "m.json").read_text().startswith("{")


def test_a_link_to_an_input_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "o.onnx").symlink_to(source)
    with pytest.raises(InputError, match="also an input"):
        compile_file(source, tmp_path / "o.onnx", level=1, measure=False)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o444])
def test_modes_stay(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")
    path.chmod(mode)
    atomic_write(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_modes_of_all_files_of_a_model_stay(tmp_path: Path) -> None:
    onnx.save(model(32), tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    for _ in range(2):
        written = write_onnx(read_onnx(tmp_path / "m.onnx"), tmp_path / "o.onnx")
        assert {p.name for p in written} == {"o.onnx", "o.onnx.data"}
        for path in written:
            path.chmod(0o640)
    for path in write_onnx(read_onnx(tmp_path / "m.onnx"), tmp_path / "o.onnx"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_new_file_has_the_usual_mode(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        atomic_write(tmp_path / "f", b"")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o640


def test_folders_and_missing_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        atomic_write(tmp_path, b"")
    with pytest.raises(InputError, match="cannot be written"):
        atomic_write(tmp_path / "none" / "f", b"")


KILLED = """
import os, signal, sys
from pathlib import Path
from memoptc.ir.files import TemporaryFolder, staged
with TemporaryFolder(parent=Path(sys.argv[1])) as one, staged(Path(sys.argv[1]) / "out") as inner:
    inner.write_bytes(b"half")
    (Path(one) / "large").write_bytes(b"half")
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_what_killed_runs_leave_is_removed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"ready\n"
        held = {p.name for p in tmp_path.iterdir()}
        assert len(held) == 2
        monkeypatch.setattr(files, "_SWEPT", set())
        atomic_write(tmp_path / "while it runs", b"")
        assert held <= {p.name for p in tmp_path.iterdir()}
        run.send_signal(signal.SIGKILL)
    assert held <= {p.name for p in tmp_path.iterdir()}
    (tmp_path / "memoptc-notes").mkdir()
    (tmp_path / "memoptc-notes" / "mine").write_bytes(b"")
    os.utime(tmp_path / "memoptc-notes", (0, 0))
    monkeypatch.setattr(files, "_SWEPT", set())
    atomic_write(tmp_path / "next", b"")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["memoptc-notes", "next", "while it runs"]


def broken_off(path: Path) -> None:
    """Half of an output, and an error."""
    with staged(path) as inner:
        inner.write_bytes(b"half")
        raise ValueError("broken")


def test_temporary_folders_go(tmp_path: Path) -> None:
    folder = TemporaryFolder(parent=tmp_path)
    (Path(folder.name) / "f").write_bytes(b"")
    del folder
    with pytest.raises(ValueError, match="broken"):
        broken_off(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_folder_in_the_making_is_not_taken_for_abandoned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process looks for abandoned folders between the making of the lock and the locking."""
    fcntl = pytest.importorskip("fcntl")
    lock = fcntl.flock

    def look_first(descriptor: int, how: int) -> None:
        monkeypatch.undo()
        files._SWEPT.clear()
        files._remove_abandoned(str(tmp_path), files._SCRATCH_PREFIX)
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", look_first)
    with TemporaryFolder(parent=tmp_path) as folder:
        assert Path(folder).is_dir()
