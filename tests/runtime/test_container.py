"""The smallest container of a model, and what is said where there are none."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from runtime_models import normal, parse

from memoptc.cli.main import main
from memoptc.runtime import container
from memoptc.runtime.container import ControlGroup, Limiter, Unavailable, control_group, drop_from_cache, model_files
from memoptc.runtime.control_groups import bytes_left
from memoptc.runtime.options import STOCK

MB = 1 << 20


def limits() -> bool:
    """Whether the kernel lets this process set limits."""
    try:
        with control_group():
            return True
    except Unavailable:
        return False


needs_limits = pytest.mark.skipif(not limits(), reason="no control groups that this process may make")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """32 MiB of activations at its peak."""
    path = tmp_path / "m.onnx"
    onnx.save(
        parse("g (float[2097152] x) => (float y) { a = Exp(x) b = Sin(a) y = ReduceMax <keepdims = 0> (b) }"), path
    )
    return path


@pytest.fixture
def nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without control groups."""
    mounts = tmp_path / "mounts"
    mounts.write_text("proc /proc proc rw 0 0\n")
    monkeypatch.setattr(container, "MOUNTS", mounts)


@needs_limits
def test_fits_finds_the_smallest_limit(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fits", str(model), "-q"]) == 0
    shown = capsys.readouterr().out
    need = float(re.search(r"need in stock onnxruntime: ([\d.]+) MB", shown)[1])  # type: ignore[index]
    found = float(re.search(r"smallest container: ([\d.]+) MB", shown)[1])  # type: ignore[index]
    assert need > 16
    assert 24 < found < need + 100


@needs_limits
@pytest.mark.parametrize("way", ["stock", "session"])
def test_a_limit_holds_or_not(model: Path, way: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fits", str(model), "-q", "--limit", "1GiB", "--run-with", way]) == 0
    assert "runs in 1 GiB (1.07 GB)" in capsys.readouterr().out
    assert main(["fits", str(model), "-q", "--limit", "24MiB", "--run-with", way]) == 4
    shown = capsys.readouterr().err
    assert "m.onnx does not run in 24 MiB (25.17 MB)" in shown
    assert "Leave --limit out" in shown


@needs_limits
def test_a_compile_measures_it_when_asked(model: Path, tmp_path: Path) -> None:
    report = tmp_path / "r.json"
    arguments = [
        str(model),
        "-O1",
        "-o",
        str(tmp_path / "o.onnx"),
        "--container",
        "--report",
        str(report),
        "-q",
        "--verify",
        "off",
    ]
    assert main(arguments) == 0
    found = json.loads(report.read_text())
    session = next(iter(found["candidate"]["session"].values()))
    for figures in (found["control"]["measured"], found["candidate"]["measured"], session):
        assert figures["container_bytes"] > 24 * MB


@pytest.mark.usefixtures("nothing")
def test_without_control_groups_need_is_given(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fits", str(model), "-q", "--limit", "1MiB"]) == 4
    assert "the model alone needs" in capsys.readouterr().err
    assert main(["fits", str(model), "-q", "--limit", "1GiB"]) == 0
    shown = capsys.readouterr()
    assert "need in stock onnxruntime" in shown.out
    assert "No memory limit can be set here" in shown.err
    assert "systemd-run" in shown.err


@pytest.mark.usefixtures("nothing")
def test_a_compile_says_when_it_cannot(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(model), "-O1", "-o", str(tmp_path / "o.onnx"), "--container", "-q", "--verify", "off"]) == 0
    assert "No container was measured" in capsys.readouterr().err


def test_a_container_is_not_measured_without_measuring(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(model), "--container", "--no-measure"]) == 2
    assert "Leave --no-measure out" in capsys.readouterr().err


def unified(root: Path, *, controllers: str, handed: dict[str, str]) -> tuple[Path, Path]:
    """A tree such as the kernel shows of version 2, with what each group hands down; give `mounts` and `own`."""
    for name, content in handed.items():
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cgroup.controllers").write_text(controllers)
        (folder / "cgroup.subtree_control").write_text(content)
    mounts, own = root.parent / "mounts", root.parent / "own"
    mounts.write_text(f"cgroup2 {root} cgroup2 rw,nosuid 0 0\n")
    own.write_text("0::/user/app\n")
    return mounts, own


def test_version_2_takes_a_group_that_hands_memory_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own group has processes, so that the one above is taken, which was delegated with memory."""
    root = tmp_path / "cgroup"
    places = unified(root, controllers="cpu memory", handed={"": "", "user": "memory", "user/app": ""})
    written: list[tuple[str, str]] = []
    write = Path.write_text

    def refuse(path: Path, data: str, *args: object, **kwargs: object) -> int:
        if path == root / "user/app/cgroup.subtree_control":
            raise OSError(16, "busy")
        written.append((path.name, data))
        return write(path, data)

    monkeypatch.setattr(Path, "write_text", refuse)
    monkeypatch.setattr(Path, "rmdir", lambda path: None)
    with control_group(*places) as group:
        assert group.version == 2
        assert group.path.parent == root / "user"
        group.limit(64 * MB)
    assert ("memory.max", "max") in written
    assert ("memory.max", str(64 * MB)) in written
    assert ("memory.swap.max", "0") in written


def test_version_2_without_memory_is_refused(tmp_path: Path) -> None:
    places = unified(tmp_path / "cgroup", controllers="cpu", handed={"": "", "user": "", "user/app": ""})
    with pytest.raises(Unavailable, match="offers this process no control group"), control_group(*places):
        pass


def test_all_files_of_a_model_are_dropped(tmp_path: Path) -> None:
    model = parse("g (float[4, 64] x) => (float[4, 64] y) { y = MatMul (x, w) }", w=normal(64, 64))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    (tmp_path / "m.session.json").write_text("{}")
    (tmp_path / "other.onnx").write_bytes(b"")
    files = model_files(tmp_path / "m.onnx")
    assert {f.name for f in files} == {"m.onnx", "weights.bin", "m.session.json"}
    drop_from_cache(files)
    assert np.fromfile(tmp_path / "weights.bin", np.float32).size == 64 * 64


@pytest.mark.parametrize(("version", "count"), [(1, "memory.failcnt"), (2, "memory.events")])
def test_hits_of_the_limit_are_read(version: int, count: str, tmp_path: Path) -> None:
    group = ControlGroup(tmp_path, version)
    assert group.hits() is None
    (tmp_path / count).write_text("7\n" if version == 1 else "low 0\nhigh 0\nmax 7\noom 0\n")
    assert group.hits() == 7


@pytest.mark.parametrize(("hits", "fits"), [([3, 3], True), ([3, 9], False), ([None, None], False)])
def test_slow_runs_that_never_reach_the_limit_fit(
    hits: list[int | None], fits: bool, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = iter(2 * hits)  # a slow run is tried twice

    @contextmanager
    def worker(*_: object) -> Iterator[Callable[..., dict[str, list[float]]]]:
        yield lambda **asked: {"ms": [90.0] * 5}

    monkeypatch.setattr(container, "start_worker", worker)
    monkeypatch.setattr(ControlGroup, "hits", lambda self: next(counts))
    for name in ("limit", "empty"):
        monkeypatch.setattr(ControlGroup, name, lambda *_: None)
    trial = Limiter(ControlGroup(model.parent, 1), model, STOCK, model, free_ms=10.0).run(64 * MB)
    assert (trial.fits, trial.latency_ms) == (fits, 90.0)


def test_sizes_take_a_limit(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fits", str(model), "--sizes"]) == 2
    assert "--limit" in capsys.readouterr().err


@needs_limits
def test_the_largest_sizes_in_a_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(parse("g (float[N, 1, 65536] x) => (float[N, 1, 65536] y) { a = Exp(x) b = Sin(a) y = Add(a, b) }"), path)
    assert main(["fits", str(path), "-q", "--limit", "192MiB", "--sizes"]) == 0
    shown = re.search(r"N = (\d+) \([\d.]+ ms; (\d+) does not", capsys.readouterr().out)
    assert shown is not None
    # The input, three results at 256 KiB each, and Python with onnxruntime.
    assert 40 < int(shown[1]) < int(shown[2]) < 192


@pytest.mark.parametrize("version", [1, 2])
def test_limits_of_groups_bound_what_is_left(version: int, tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    mounts, own = unified(root, controllers="memory", handed={"": "", "user": "", "user/app": ""})
    limit, used, prefix = "memory.max", "memory.current", ""
    if version == 1:
        limit, used, prefix = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"
        mounts.write_text(f"cgroup {root} cgroup rw,memory 0 0\n")
        own.write_text("4:memory:/user/app\n0::/\n")
    assert bytes_left(mounts, own) is None
    for name, most, charged, pages in (("user/app", "max", 7, 0), ("user", "1000", 700, 300)):
        if version == 2 or most != "max":
            (root / name / limit).write_text(most + "\n")
            (root / name / used).write_text(f"{charged}\n")
            stated = f"{prefix}anon 5\n{prefix}inactive_file {pages}\n{prefix}active_file 0\n"
            (root / name / "memory.stat").write_text(stated)
    assert bytes_left(mounts, own) == 600
