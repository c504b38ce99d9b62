"""Calibration of a whole compile: interrupted and resumed, the model is the same; memory does not grow with data."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from memoptc.api import compile as compile_model
from memoptc.runtime import checkpoint

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "models"
CNN = EXAMPLES / "digits_cnn.onnx"


class Interrupted(BaseException):
    """What stands for a process that was stopped."""


class Samples:
    """The example's own samples, up to where the power fails.

    Args:
        left: How many samples may be walked in all.
    """

    def __init__(self, left: int) -> None:
        with np.load(EXAMPLES / "digits_calibration.npz") as data:
            self.images = data["image"][:12]
        self.left = left

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        for image in self.images:
            if self.left <= 0:
                raise Interrupted
            self.left -= 1
            yield {"image": image[np.newaxis]}


def test_interrupted_and_resumed_gives_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)
    passes = "quantize-search{checkpoint=%s},drop-dead,lower"
    whole = compile_model(CNN, 2, "int8", calibration=Samples(10**9), passes=passes % '""', verify="off")
    kept = tmp_path / "kept"
    count, tries, seen = len(Samples(0).images), 0, False
    for left in range(count + count // 3, 100 * count, count):
        tries += 1
        data = Samples(left)
        try:
            resumed = compile_model(
                CNN, 2, "int8", calibration=data, passes=passes % f'"{kept.as_posix()}"', verify="off"
            )
        except Interrupted:
            seen = seen or any(kept.rglob(checkpoint.FILE))
            continue
        break
    assert tries > 3
    assert seen
    first, second = whole.model, resumed.model
    for model in (first, second):
        del model.metadata_props[:]  # names the pipeline, and hence the folder
    assert first.SerializeToString() == second.SerializeToString()


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
