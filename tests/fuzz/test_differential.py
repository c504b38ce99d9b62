"""Small random models at every level, against onnxruntime without its optimizer on the model as it was.

A model is an instance of one operator with a tail that looks at what it gives: its shape, a part of it, sums. The shape
is an output, so that a wrong inferred one shows as soon as a pass trusts it. `FUZZ_LOG` names a file that one JSON line
per family is written into: seeds, counts per operator, compiles in which a pass reported something, faults.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper
from samplers import SAMPLERS, Instance, Rng, Sample, instance
from shape_oracle import deviates

from memoptc import compile
from memoptc.ir.diagnostics import MemoptcError
from memoptc.ir.onnx_io import read_onnx
from memoptc.runtime.evaluate import Evaluator, RunOptions
from memoptc.runtime.judge import TOLERANCES

CI_SEEDS, NIGHTLY_SEEDS = 12, 1700
LEAST_RUN = 0.5
"""Share of models that onnxruntime must run for a family to have been tried."""


def _with_tail(sample: Sample, r: Rng) -> list[str]:
    """Append nodes that look at the first result; gives their outputs."""
    first = sample.nodes[-1].output[0]
    outputs = [first, "shape"]
    sample.nodes.append(helper.make_node("Shape", [first], ["shape"]))
    sample.nodes.append(helper.make_node("Cast", [first], ["tail0"], to=1))
    last = "tail0"
    for index in range(int(r.integers(1, 4))):
        made, way = f"tail{index + 1}", int(r.integers(5))
        if way == 0:
            sample.nodes.append(helper.make_node("Sigmoid", [last], [made]))
        elif way == 1:
            sample.nodes.append(helper.make_node("Shape", [last], [f"{made}s"]))
            sample.nodes.append(helper.make_node("Reshape", [last, f"{made}s"], [made]))
        elif way == 2:
            sample.nodes.append(helper.make_node("Add", [last, last], [made]))
        elif way == 3:
            sample.nodes.append(helper.make_node("Transpose", [last], [made]))
        else:
            sample.nodes.append(helper.make_node("Concat", [last, last], [made], axis=0))
        last = made
    return [*outputs, last]


def _try(name: str, index: int, seed: int, counts: Counter[str]) -> str:
    """Compile one model at each level and compare; says what is wrong, "" when nothing is."""
    r = np.random.default_rng([seed, index])
    sample = SAMPLERS[name][index](r)
    key = sample.op_type
    if sample.random or sample.opset < 11:
        return ""
    outputs = _with_tail(sample, r)
    made: Instance = instance(sample, r)
    made.model.graph.output.extend(helper.make_empty_tensor_value_info(o) for o in outputs)
    try:
        original = Evaluator(made.model, RunOptions(optimize=False))
        original.run(made.feeds[0])
    except MemoptcError:
        counts["refused"] += 1
        return ""
    counts["models"] += 1
    counts[key] += 1
    graph = read_onnx(made.model)
    for level in (1, 2, 3):
        result = compile(made.model, level, verify="off", measure=False)
        for step in result.report.passes:
            counts[f"pass {step.name}"] += bool(step.stats)
        compiled = Evaluator(result.model, RunOptions(optimize=False))
        for feed in made.feeds:
            if any(deviates(op, feed) for op in graph.ops):
                continue
            try:
                expected = original.run(feed)
            except MemoptcError:
                continue
            fault = _difference(expected, compiled, feed)
            if fault:
                weights = {t.name: numpy_helper.to_array(t).shape for t in made.model.graph.initializer}
                return (
                    f"{key} {seed} at -O{level}: {fault} on { ({k: np.shape(v) for k, v in feed.items()}) } {weights}"
                )
    return ""


def _difference(expected: dict[str, Any], compiled: Evaluator, feed: dict[str, Any]) -> str:
    try:
        found = compiled.run(feed)
    except MemoptcError as e:
        return e.message
    for name, a in expected.items():
        b = np.asarray(found[name])
        a = np.asarray(a)
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"{name} is {b.dtype}{b.shape}, was {a.dtype}{a.shape}"
        if a.dtype.kind in "OU":
            equal = bool((a == b).all())
        else:
            one, two = a.astype(np.float64), b.astype(np.float64)
            usual = np.isfinite(one)
            slack = TOLERANCES.get(str(a.dtype), 0.0) * max(float(np.abs(one[usual]).max(initial=0.0)), 1.0)
            equal = bool(np.array_equal(usual, np.isfinite(two)) and np.allclose(one[usual], two[usual], 0.0, slack))
        if not equal:
            return f"{name} differs"
    return ""


def _family(name: str, seeds: range) -> Counter[str]:
    counts: Counter[str] = Counter()
    samplers = SAMPLERS[name]
    faults = [f for seed in seeds if (f := _try(name, seed % len(samplers), seed, counts))]
    log = os.environ.get("FUZZ_LOG")
    if log:
        with Path(log).open("a") as file:
            file.write(
                json.dumps({"family": name, "seeds": [seeds[0], seeds[-1]], "counts": counts, "faults": faults}) + "\n"
            )
    assert not faults, "\n".join(faults)
    assert counts["models"] >= LEAST_RUN * counts["refused"]
    return counts


@pytest.mark.parametrize("name", SAMPLERS)
def test_levels_keep_numbers(name: str) -> None:
    assert _family(name, range(CI_SEEDS))["models"]


@pytest.mark.nightly
@pytest.mark.parametrize("name", SAMPLERS)
def test_levels_keep_numbers_at_length(name: str) -> None:
    assert _family(name, range(5000, 5000 + NIGHTLY_SEEDS))["models"]
