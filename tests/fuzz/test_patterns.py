"""Chains that passes look for, through those passes, against onnxruntime without its optimizer on the model as it was.

Extents are open: 0, 1 and 2 among them. `FUZZ_LOG` names a file that one JSON line per pattern is written into:
how often each pass did something, and faults.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from fuzz.test_differential import _difference
from samplers.patterns import PATTERNS, chain

from memoptc import compile
from memoptc.ir.diagnostics import MemoptcError
from memoptc.runtime.evaluate import Evaluator, RunOptions

CI_SEEDS, NIGHTLY_SEEDS = 15, 300
MOVERS = (
    "narrow,widen-late,scale-early,split-products{least=1},split-sums,drop-dead-channels,(simplify,drop-dead)*,"
    "fuse-attention,lower"
)
FIRES = {
    "part_of_convolution": "narrow",
    "late_broadcast": "widen-late",
    "parts_of_product": "split-products",
    "attention": "scale-early",
    "dead_channels": "drop-dead-channels",
}
"""Patterns and a pass that must have done something to one of their models."""


def _try(name: str, seed: int, counts: Counter[str]) -> str:
    """Compile one model and compare; says what is wrong, "" when nothing is."""
    model, feeds = chain(name, np.random.default_rng([seed, sorted(PATTERNS).index(name)]))
    try:
        original = Evaluator(model, RunOptions(optimize=False))
        original.run(feeds[0])
    except MemoptcError:
        counts["refused"] += 1
        return ""
    counts["models"] += 1
    way = {"level": 3} if seed % 3 == 0 else {"passes": MOVERS}
    result = compile(model, verify="off", measure=False, **way)  # type: ignore[arg-type]
    for step in result.report.passes:
        counts[step.name] += bool(step.stats)
    compiled = Evaluator(result.model, RunOptions(optimize=False))
    for feed in feeds:
        try:
            expected = original.run(feed)
        except MemoptcError:
            continue
        fault = _difference(expected, compiled, feed)
        if fault:
            return f"{name} {seed} {way}: {fault} on { ({k: np.shape(v) for k, v in feed.items()}) }"
    return ""


def _pattern(name: str, seeds: range) -> None:
    counts: Counter[str] = Counter()
    faults = [fault for seed in seeds if (fault := _try(name, seed, counts))]
    if log := os.environ.get("FUZZ_LOG"):
        with Path(log).open("a") as file:
            file.write(json.dumps({"pattern": name, "counts": counts, "faults": faults}) + "\n")
    assert not faults, "\n".join(faults)
    assert counts["models"] > counts["refused"]
    assert name not in FIRES or counts[FIRES[name]]


@pytest.mark.parametrize("name", PATTERNS)
def test_passes_keep_numbers(name: str) -> None:
    _pattern(name, range(CI_SEEDS))


@pytest.mark.nightly
@pytest.mark.parametrize("name", PATTERNS)
def test_passes_keep_numbers_at_length(name: str) -> None:
    _pattern(name, range(5000, 5000 + NIGHTLY_SEEDS))
