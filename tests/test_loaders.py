"""Loaders for other languages give what onnxruntime gives in Python; skipped where their tools are not at hand."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import memoptc

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
MODULES = Path(os.environ.get("MEMOPTC_NODE_MODULES", EXAMPLES / "loaders" / "node_modules"))


def test_loaders_are_short() -> None:
    files = [file for file in (EXAMPLES / "loaders").iterdir() if file.is_file()]
    assert files
    assert all(len(file.read_text().splitlines()) <= 60 for file in files)


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
@pytest.mark.skipif(
    not (MODULES / "onnxruntime-node").is_dir(),
    reason="onnxruntime-node is not installed (npm install onnxruntime-node, MEMOPTC_NODE_MODULES=.../node_modules)",
)
def test_javascript_runs_a_compiled_model_by_its_contract(tmp_path: Path) -> None:
    shutil.copy(EXAMPLES / "loaders" / "load.mjs", tmp_path)
    (tmp_path / "node_modules").symlink_to(MODULES.resolve())
    memoptc.compile(EXAMPLES / "models" / "digits_cnn.onnx", measure=False).save(tmp_path / "small.onnx")
    image = np.random.default_rng(0).random((1, 1, 8, 8), np.float32)
    (tmp_path / "image.bin").write_bytes(image.tobytes())
    command = ["node", "load.mjs", "small.onnx", "image=image.bin"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    (wanted,) = onnxruntime.InferenceSession(
        EXAMPLES / "models" / "digits_cnn.onnx", providers=["CPUExecutionProvider"]
    ).run(None, {"image": image})
    assert found["dims"] == [1, 10]
    np.testing.assert_allclose(found["first"], wanted[0], rtol=1e-4, atol=1e-5)
