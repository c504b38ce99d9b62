"""Without measuring, the same model and options give the same bytes in every process (`benchmarks/same_bytes.py`)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

MODELS = Path(__file__).resolve().parents[2] / "examples" / "models"
DATA = ("--calibration", str(MODELS / "digits_calibration.npz"))


def written(folder: Path, seed: int, *options: str) -> dict[str, bytes]:
    """Files of a compile in a process of its own, whose sets of strings have another order with each seed."""
    folder.mkdir()
    command = [sys.executable, "-m", "memoptc", str(MODELS / "digits_cnn.onnx"), "-o", str(folder / "out.onnx")]
    environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
    subprocess.run([*command, "--no-measure", "-q", *options], env=environment, check=True)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("options", [("-O3",), ("-O2", "--target", "int8", *DATA)], ids=["tiled", "int8"])
def test_processes_write_the_same_bytes(options: tuple[str, ...], tmp_path: Path) -> None:
    first = written(tmp_path / "a", 1, *options)
    assert "out.onnx" in first
    assert first == written(tmp_path / "b", 2, *options)
