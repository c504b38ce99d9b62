"""Searches of a whole compile: killed and run again, the model is the same; memory does not grow with data."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memoptc.api import compile as compile_model
from memoptc.runtime import result_cache

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "models"
CNN = EXAMPLES / "digits_cnn.onnx"


def compiles(folder: Path, *options: str) -> list[str]:
    """The command of a compile that searches for numbers by layer, and writes into a folder."""
    data, output = EXAMPLES / "digits_calibration.npz", folder / "out.onnx"
    passes = "--passes", "quantize-search{mixed=true},drop-dead,lower"
    given = ("--calibration", str(data), *passes, "--no-measure", "--verify", "off", "-q", "-o", str(output))
    return [sys.executable, "-m", "memoptc", str(CNN), *given, *options]


def looks(folder: Path) -> list[str]:
    """Keys of what a search has measured so far."""
    file = folder / result_cache.FILE
    whole = file.read_text().rpartition("\n")[0] if file.exists() else ""
    return [json.loads(line)[0] for line in whole.splitlines() if line]


def test_killed_and_run_again_measures_and_codes_nothing_twice(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    subprocess.run(compiles(first, "--checkpoint", str(first)), check=True)
    wanted = looks(first)
    assert len(wanted) == len(set(wanted)) > 8
    process = subprocess.Popen(compiles(second, "--checkpoint", str(second)))
    while process.poll() is None and len(looks(second)) < len(wanted) // 2:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (second / "out.onnx").exists()
    before, coded = looks(second), {f.name: f.stat().st_mtime_ns for f in second.glob("*.npz")}
    subprocess.run(compiles(second, "--checkpoint", str(second)), check=True)
    assert looks(second) == wanted  # each once, those before the kill included
    assert wanted[: len(before)] == before
    assert {f.name: f.stat().st_mtime_ns for f in second.glob("*.npz")}.items() >= coded.items()
    assert (first / "out.onnx").read_bytes() == (second / "out.onnx").read_bytes()


def test_what_was_kept_holds_for_the_same_data_only(tmp_path: Path) -> None:
    with np.load(EXAMPLES / "digits_calibration.npz") as data:
        images = data["image"]
    found = []
    for part, labels in ((images[:8], None), (images[8:16], None), (images[:8], None), (images[:8], np.arange(8))):
        feeds = [{"image": x[None]} | ({} if labels is None else {"labels": labels[:1]}) for x in part]
        passes = "mix-weights{smallest=1024},drop-dead,lower"
        how: dict[str, Any] = {"calibration": feeds, "passes": passes, "verify": "off", "measure": False}
        done = compile_model(CNN, 2, "int4", checkpoint=tmp_path, **how)
        assert done.model == compile_model(CNN, 2, "int4", **how).model
        found.append((len(looks(tmp_path)), len(list(tmp_path.glob("*.npz"))), done.model.SerializeToString()))
    assert found[0][:2] < found[1][:2] == found[2][:2]
    assert found[0][2] == found[2][2]
    assert found[3][0] > found[2][0]  # labels belong to a metric


MEASURE = """
import resource, sys
import numpy as np
from memoptc.api import compile
count = int(sys.argv[2])
class Samples:
    def __iter__(self):
        rng = np.random.default_rng(0)
        for _ in range(count):
            yield {"image": rng.normal(size=(1, 1, 8, 8)).astype(np.float32)}
compile(sys.argv[1], 2, "int8", calibration=Samples(), passes="quantize-search,drop-dead,lower", verify="off")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory in Linux's units")
def test_memory_does_not_grow_with_the_data() -> None:
    peaks = []
    for count in (20, 1000):
        command = [sys.executable, "-c", MEASURE, str(CNN), str(count)]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    assert peaks[1] < peaks[0] + (48 << 20)
