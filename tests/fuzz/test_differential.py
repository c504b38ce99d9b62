"""Small random models at every level, against onnxruntime without its optimizer on the model as it was.

A model is an instance of one operator with a tail that looks at what it gives: its shape, a part of it, sums. The shape
is an output, so that a wrong inferred one shows as soon as a pass trusts it. `FUZZ_LOG` names a file that one JSON line
per family is written into: seeds, counts per operator, compiles in which a pass reported something, faults.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from fuzzing import log, try_ways
from onnx import helper
from samplers import SAMPLERS, Instance, Rng, Sample, instance
from shape_oracle import deviates

from memoptc.ir.onnx_io import read_onnx

CI_SEEDS, NIGHTLY_SEEDS = 12, 1700
TARGETS = tuple(
    {"level": level, "target": target}
    for level in (1, 2)
    for target in ("int8", "uint8", "int4", "mixed", "float16", "bfloat16", "float8")
)
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
    before = counts["models"]
    graph = read_onnx(made.model)
    feeds = [made.feeds[0], *(f for f in made.feeds[1:] if not any(deviates(op, f) for op in graph.ops))]
    fault = try_ways(
        made.model, feeds, [{"level": 1}, {"level": 2}, {"level": 3}, TARGETS[seed % len(TARGETS)]], counts
    )
    counts[key] += counts["models"] - before
    weights = {t.name: tuple(t.dims) for t in made.model.graph.initializer}
    return f"{key} {seed} {fault} {weights}" if fault else ""


def _family(name: str, seeds: range) -> Counter[str]:
    counts: Counter[str] = Counter()
    samplers = SAMPLERS[name]
    faults = [f for seed in seeds if (f := _try(name, seed % len(samplers), seed, counts))]
    log({"family": name, "seeds": [seeds[0], seeds[-1]], "counts": counts, "faults": faults})
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
