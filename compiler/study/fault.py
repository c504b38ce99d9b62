"""The failure check of a study: a fault planted in the control must be reported by what compares the rows."""

from __future__ import annotations

import subprocess
from pathlib import Path

import onnx_ir

from memoptc.ir.onnx_io import read_onnx, write_into
from memoptc.ir.tensors import nbytes
from memoptc.ir.types import DType
from memoptc.runtime.child import environment, python
from memoptc.study.changes import Asked

MOST_BYTES = 1 << 30
"""Larger models are not copied for this."""


def failure_check(original: Path, file_bytes: int, asked: Asked, scratch: Path) -> str:
    """Negate the largest float weights of the original, compare the two as the rows are, and say what came out.

    Args:
        original: The untouched model.
        file_bytes: With its external data.
        asked: The data and extents of the study.
        scratch: An existing folder for temporary files.
    """
    if file_bytes > MOST_BYTES:
        return "Not done: the model is larger than 1 GiB."
    graph = read_onnx(original)
    floats = [op for op in graph.walk("const") if op.result.dtype is DType.FLOAT]
    if not floats:
        return "Not done: the model has no float32 weights to negate."
    largest = max(floats, key=lambda op: nbytes(op.attrs["value"]))
    name = largest.result.name
    largest.set_attr("value", onnx_ir.tensor(-largest.attrs["value"].numpy(), name=name))
    broken = scratch / "broken.onnx"
    write_into(graph, broken)
    words = ["verify", str(original), str(broken)]
    for symbol, extent in asked.dims:
        words += ["--dim", f"{symbol}={extent}"]
    data = asked.validation or asked.calibration
    words += [] if data is None else ["--validation", data]
    words += ["--target", asked.targets[-1]] if asked.targets else []
    done = subprocess.run(python("-m", "memoptc", *words), capture_output=True, check=False, env=environment())
    outcome = (
        "was reported (exit code 3)" if done.returncode == 3 else f"was NOT reported (exit code {done.returncode})"
    )
    return f"A planted fault, the weights {name!r} of the original negated, {outcome}."
