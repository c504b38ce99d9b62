"""A compile that is killed leaves the whole output or none, and what it leaves besides goes with the next one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from runtime_models import normal, parse

from memoptc.ir.files import _SCRATCH_PREFIX, _STAGING_PREFIX

KILLS, NIGHTLY_KILLS = 2, 30

RUN = """
import os, sys
from memoptc.ir import files
from memoptc.cli.main import main
moments = [0]
for name in ("fsync", "replace", "open", "chmod"):
    def wrapped(*args, _real=getattr(os, name), **options):
        moments[0] += 1
        if moments[0] == int(sys.argv[1]):
            os.kill(os.getpid(), 9)
        return _real(*args, **options)
    setattr(os, name, wrapped)
code = main(sys.argv[2:])
print(moments[0])
sys.exit(code)
"""
"""Dies at a moment between two steps on files; the number of such moments is what it prints."""


def _model(path: Path) -> None:
    text = "m (float[N, 512] x) => (float[N, 64] y) { a = MatMul (x, w1) b = Relu (a) y = MatMul (b, w2) }"
    onnx.save(parse(text, w1=normal(512, 700, scale=0.1), w2=normal(700, 64, scale=0.1)), path)


def _compile(folder: Path, moment: int) -> subprocess.CompletedProcess[str]:
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    arguments = [str(folder / "m.onnx"), "-o", str(folder / "out.onnx"), "-O1", "--no-measure", "--verify", "off", "-q"]
    environment = {**os.environ, "TMPDIR": str(scratch)}
    return subprocess.run(
        [sys.executable, "-c", RUN, str(moment), *arguments], env=environment, capture_output=True, text=True
    )


def _whole(folder: Path) -> None:
    """The model loads with its weights, or is not there."""
    out = folder / "out.onnx"
    if out.exists():
        loaded = onnx.load(out)
        assert sum(np.prod(t.dims) for t in loaded.graph.initializer) == 512 * 700 + 700 * 64


def _left(folder: Path) -> list[Path]:
    found = [p for place in (folder, folder / "scratch") for p in place.iterdir()]
    return [p for p in found if p.name.startswith((_STAGING_PREFIX, _SCRATCH_PREFIX))]


def _age(folder: Path) -> None:
    """A folder whose process died before it had a lock may be in the making for a minute: let that be over."""
    for path in _left(folder):
        os.utime(path, (time.time() - 120, time.time() - 120))


def _kills(folder: Path, count: int) -> None:
    _model(folder / "m.onnx")
    total = int(_compile(folder, 0).stdout.split()[-1])
    expected = {p.name: p.read_bytes() for p in folder.glob("out.*")}
    assert "out.onnx" in expected
    died = 0
    for index in range(count):
        for file in folder.glob("out.*"):
            file.unlink()
        moment = 1 + (total - 1) * index // max(count - 1, 1)
        died += _compile(folder, moment).returncode == -signal.SIGKILL
        _whole(folder)
        _age(folder)
        assert _compile(folder, 0).returncode == 0
        assert not _left(folder)
        assert {p.name: p.read_bytes() for p in folder.glob("out.*")} == expected
    assert died == count


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_killed_compiles(tmp_path: Path) -> None:
    _kills(tmp_path, KILLS)


@pytest.mark.nightly
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_compiles_killed_at_any_moment(tmp_path: Path) -> None:
    """Between two steps on files, and at random times of a compile that measures, whose workers outlive it shortly."""
    _kills(tmp_path, NIGHTLY_KILLS // 2)
    arguments = [str(tmp_path / "m.onnx"), "-o", str(tmp_path / "out.onnx"), "-O2", "-q"]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "scratch")}
    r = np.random.default_rng(0)
    for _ in range(NIGHTLY_KILLS // 2):
        for file in tmp_path.glob("out.*"):
            file.unlink()
        process = subprocess.Popen(
            [sys.executable, "-m", "memoptc", *arguments], env=environment, stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(float(r.uniform(0.5, 8)))
        process.kill()
        process.wait()
        _whole(tmp_path)
    time.sleep(3)
    _age(tmp_path)
    assert _compile(tmp_path, 0).returncode == 0
    assert not _left(tmp_path)
