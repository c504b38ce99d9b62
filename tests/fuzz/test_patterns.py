"""Chains that passes look for, through those passes, against onnxruntime without its optimizer on the model as it was.

Extents are open: 0, 1 and 2 among them. `FUZZ_LOG` names a file that one JSON line per pattern is written into: seeds,
compiles per level and target, how often each pass did something, and faults.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from fuzzing import Way, log, try_ways
from samplers.patterns import PATTERNS, chain

CI_SEEDS, NIGHTLY_SEEDS = 1, 300
MOVERS = (
    "narrow,widen-late,scale-early,split-products{least=1},split-sums,drop-dead-channels,(simplify,drop-dead)*,"
    "fuse-attention,share-transposed{least=4},lower"
)
WAYS: tuple[Way, ...] = (
    {"passes": MOVERS},
    {"level": 3},
    {"level": 2, "target": "int8"},
    {"level": 1},
    {"level": 2, "external": "always"},
    {"passes": MOVERS},
    {"level": 3, "target": "float16"},
    {"level": 2, "target": "int4"},
    {"level": 2, "target": "mixed"},
    {"level": 1, "target": "uint8"},
    {"level": 2, "target": "bfloat16"},
    {"level": 2, "target": "float8"},
    {"level": 2, "freeze_runtime": True, "force": True},
    {"level": 3, "form": "branch", "force": True},
    {"level": 0, "external": "always"},
)
"""Each model is compiled in three ways, which advance with the seed."""
FIRES = {
    "part_of_convolution": ("narrow",),
    "late_broadcast": ("widen-late",),
    "parts_of_product": ("split-products",),
    "sum_of_products": ("split-sums",),
    "attention": ("scale-early", "fuse-attention"),
    "dead_channels": ("drop-dead-channels",),
    "tiles": ("fit",),
    "takes": ("narrow",),
    "batch_normalized": ("fuse-conv-bn",),
    "twins": ("share-common", "share-transposed"),
    "rotary": ("fuse-rotary",),
    "wide_product": ("mix-weights", "share-transposed"),
    "skipped_norm": ("fuse-skip-norm",),
}
"""Patterns and passes that must have done something to one of their models in the long form."""


def _pattern(name: str, seeds: range) -> Counter[str]:
    counts: Counter[str] = Counter()
    faults = []
    for seed in seeds:
        model, feeds = chain(name, np.random.default_rng([seed, sorted(PATTERNS).index(name)]))
        ways = [WAYS[(3 * seed + i) % len(WAYS)] for i in range(3)]
        if fault := try_ways(model, feeds, ways, counts):
            faults.append(f"{name} {seed} {fault}")
    log({"pattern": name, "seeds": [seeds[0], seeds[-1]], "counts": counts, "faults": faults})
    assert not faults, "\n".join(faults)
    assert not counts["ended early"]
    assert counts["models"] > counts["refused"]
    return counts


@pytest.mark.parametrize("name", PATTERNS)
def test_passes_keep_numbers(name: str) -> None:
    _pattern(name, range(CI_SEEDS))


@pytest.mark.nightly
@pytest.mark.parametrize("name", PATTERNS)
def test_passes_keep_numbers_at_length(name: str) -> None:
    counts = _pattern(name, range(5000, 5000 + NIGHTLY_SEEDS))
    assert all(counts[f"pass {p}"] for p in FIRES.get(name, ()))
