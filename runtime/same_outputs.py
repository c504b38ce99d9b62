"""Test that two spellings of a model give the same outputs on made-up inputs, on request in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from memoptc.ir.core import Graph
from memoptc.ir.diagnostics import InternalError, MemoptcError
from memoptc.ir.files import TemporaryFolder
from memoptc.ir.infer import infer_shapes
from memoptc.ir.onnx_io import read_onnx
from memoptc.runtime import isolated
from memoptc.runtime.evaluate import Evaluator
from memoptc.runtime.feeds import find_feeds
from memoptc.runtime.options import RunOptions
from memoptc.runtime.trials import may_crash_process


def outputs_differ(graph: Graph, before: onnx.ModelProto, after: onnx.ModelProto, close: float) -> str:
    """Say how two models differ on made-up inputs; `""` when they do not.

    Args:
        graph: The first one, shapes inferred.
        before: The same, written.
        after: The other one.
        close: Largest difference relative to an output's largest magnitude.

    Raises:
        MemoptcError: one of them cannot be loaded, or a run ends onnxruntime's process.
    """
    if not may_crash_process(graph):
        return _difference(graph, before, after, close)
    with TemporaryFolder() as folder:
        paths = [Path(folder) / name for name in ("before.onnx", "after.onnx")]
        for path, model in zip(paths, (before, after), strict=True):
            path.write_bytes(model.SerializeToString())
        request = {"before": str(paths[0]), "after": str(paths[1]), "close": close}
        return str(isolated.ask("memoptc.runtime.same_outputs", request, Path(folder))["difference"])


def _difference(graph: Graph, before: onnx.ModelProto, after: onnx.ModelProto, close: float) -> str:
    """Say how outputs differ on four feeds; `""` where they do not."""
    run = RunOptions(optimize=False)
    first = Evaluator(before, run, blame=InternalError)
    second = Evaluator(after, run, blame=InternalError)
    try:
        feeds = find_feeds(graph, first, count=4)
    except MemoptcError as e:
        return e.message
    for feed in feeds:
        one, two = first.run(feed.feed), second.run(feed.feed)
        for name, value in one.items():
            if (what := _unlike(value, two.get(name), close)) is not None:
                return f"output {name!r} has {what}"
    return ""


def _unlike(one: Any, two: Any, close: float) -> str | None:
    """Say what two values do not share; containers are compared element by element."""
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        if len(one) != len(two):
            return "another length"
        return next((w for a, b in zip(one, two, strict=True) if (w := _unlike(a, b, close)) is not None), None)
    if one is None and two is None:
        return None
    if not isinstance(one, np.ndarray) or not isinstance(two, np.ndarray) or one.shape != two.shape:
        return "another form"
    if one.dtype != two.dtype:
        return "another type"
    if one.dtype.kind == "f":
        finite = np.isfinite(one)
        if not np.array_equal(one[~finite], two[~finite], equal_nan=True) or not np.isfinite(two[finite]).all():
            return "other numbers"
        scale = float(np.max(np.abs(one[finite]), initial=0.0)) or 1.0
        return None if np.allclose(one[finite], two[finite], rtol=0.0, atol=close * scale) else "other numbers"
    return None if np.array_equal(one, two) else "other values"


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    before, after = (onnx.load(request[name]) for name in ("before", "after"))
    graph = read_onnx(before)
    infer_shapes(graph)
    return {"difference": _difference(graph, before, after, request["close"])}


if __name__ == "__main__":
    isolated.answer(_answer, *sys.argv[1:3])
