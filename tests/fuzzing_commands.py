"""Merges a model, cuts it into stages and runs it in Session, and compares with the model as it was."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from fuzzing import UNOPTIMIZED, difference, runs_of

from memoptc import compile
from memoptc.ir.diagnostics import InputError
from memoptc.ir.merge import merge_models
from memoptc.ir.stages import split
from memoptc.runtime import Session, Stages
from memoptc.runtime.evaluate import Evaluator

TIERS = ("stock", "arena", "planned")


class _Callable:
    """What `run` of a session-like object gives, under the names of the outputs."""

    def __init__(self, run: Callable[[Any, Any], Sequence[Any]], names: Sequence[str]) -> None:
        self._run, self._names = run, names

    def run(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        return dict(zip(self._names, self._run(list(self._names), feed), strict=True))


def try_commands(
    model: onnx.ModelProto, feeds: Sequence[Mapping[str, Any]], counts: Counter[str], tier: str, count: int
) -> str:
    """Say which command deviates from the model, "" when none does.

    Args:
        model: The model.
        feeds: Those that do not run are passed over.
        counts: Gets models, and what each command did.
        tier: Of Session.
        count: Stages.
    """
    runs = runs_of(model, feeds, counts)
    if not runs:
        counts["refused"] += 1
        return ""
    counts["models"] += 1
    names = [o.name for o in model.graph.output]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        one, two = folder / "one.onnx", folder / "two.onnx"
        onnx.save(model, one)
        onnx.save(model, two)
        merged = merge_models([one, two], folder / "merged")
        tried: list[tuple[str, Any, bool]] = [("merge", Evaluator(p, UNOPTIMIZED), True) for p in merged.models]
        try:
            split(one, folder / "stages", count, {})
            tried.append(("stages", _Callable(Stages(folder / "stages").run, names), False))
        except InputError as e:
            counts[f"no stages: {e.message[:40]}"] += 1
        compile(one, level=1, verify="off", measure=False).save(folder / "out.onnx")
        arrays = [v for _, expected in runs for v in expected.values() if isinstance(v, np.ndarray)]
        if any(v.dtype.isbuiltin > 1 for v in arrays):
            tier = "planned"  # onnxruntime's own interface gives no bfloat16 and the like
        try:
            tried.append((f"run {tier}", _Callable(Session(folder / "out.onnx", memory=tier).run, names), False))
        except InputError as e:
            counts[f"no run {tier}: {e.message[-40:]}"] += 1
        for what, compiled, exact in tried:
            counts[f"way {what}"] += 1
            for feed, expected in runs:
                if fault := difference(expected, compiled, feed, exact=exact):
                    return f"{what}: {fault}"
        del tried, compiled
    return ""
