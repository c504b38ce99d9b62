"""Inferred types against what onnxruntime gives, for random instances of every operator that inference knows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from samplers import SAMPLERS
from samplers.sample import Instance, Operand, Sample, fixed, floats, instance, one, param, weight
from shape_oracle import Tally, check, try_sampler

from memoptc.ir.diagnostics import InputError

CI_SEEDS, NIGHTLY_SEEDS = 4, 60
FAMILIES = [(family, index) for family, samplers in SAMPLERS.items() for index in range(len(samplers))]


def _names(families: list[tuple[str, int]]) -> list[str]:
    return [f"{family}-{SAMPLERS[family][index].__name__}-{index}" for family, index in families]


def _assert_sound(family: str, index: int, seeds: range) -> None:
    tally = Tally()
    try_sampler(SAMPLERS[family][index], [(seed, index) for seed in seeds], tally)
    assert not tally.faults, "\n".join(tally.faults)
    assert tally.instances, tally.reasons


@pytest.mark.parametrize(("family", "index"), FAMILIES, ids=_names(FAMILIES))
def test_inferred_types_hold(family: str, index: int) -> None:
    _assert_sound(family, index, range(CI_SEEDS))


@pytest.mark.nightly
@pytest.mark.parametrize(("family", "index"), FAMILIES, ids=_names(FAMILIES))
def test_inferred_types_hold_at_length(family: str, index: int) -> None:
    _assert_sound(family, index, range(1000, 1000 + NIGHTLY_SEEDS))


X = np.arange(81, dtype=np.float32).reshape(1, 1, 9, 9)
R = np.random.default_rng(0)
SMALLEST: dict[str, Callable[[], Sample]] = {
    "sizes of a Split from an input": lambda: one(
        "Split", [fixed(floats(R, 5)), fixed(np.array([4, 1]))], outputs=2, axis=0
    ),
    "SAME and dilations": lambda: one(
        "MaxPool", [X], opset=12, kernel_shape=[3, 3], dilations=[2, 2], auto_pad="SAME_UPPER"
    ),
    "SAME, dilations and a last window that is cut off": lambda: one(
        "MaxPool",
        [floats(R, 1, 1, 8)],
        opset=12,
        kernel_shape=[3],
        dilations=[3],
        strides=[3],
        auto_pad="SAME_UPPER",
        ceil_mode=1,
    ),
    "SAME and strides, transposed": lambda: one(
        "ConvTranspose",
        [floats(R, 1, 1, 3, 3), weight(floats(R, 1, 1, 3, 1))],
        strides=[1, 3],
        auto_pad="SAME_LOWER",
        empty=False,
    ),
    "a window larger than its operand": lambda: one(
        "MaxPool", [floats(R, 1, 1, 2)], opset=12, kernel_shape=[3], strides=[2]
    ),
    "scales that float32 rounds down": lambda: one(
        "Resize", [floats(R, 10), None, weight(np.array([0.7], np.float32))], mode="nearest"
    ),
    "scales that float32 rounds up": lambda: one(
        "Upsample", [floats(R, 1, 30), weight(np.array([1, 1.3], np.float32))], opset=9
    ),
    "a condition that is too long": lambda: one(
        "Compress", [floats(R, 2), weight(np.array([True, False, True]))], axis=0
    ),
    "a batch of a product over nothing": lambda: one("MatMul", [floats(R, 2, 2, 0), floats(R, 5, 0, 4)]),
    "an Expand of unknown rank": lambda: one("Expand", [floats(R, 1, 2), param(1)]),
    "a slice that begins before the first, backwards": lambda: one(
        "Slice", [floats(R, 3), weight(np.array([-5])), weight(np.array([-9])), None, weight(np.array([-2]))]
    ),
    "a slope that is wider": lambda: one("PRelu", [floats(R, 0, 1), floats(R, 0, 0)]),
    "letters that broadcast": lambda: one(
        "Einsum", [floats(R, 1, 1), floats(R, 3, 1)], equation="ij,ij->i", empty=False
    ),
    "a scalar's places": lambda: one("NonZero", [np.asarray(1.0, np.float32)]),
    "rows of unknown rank": lambda: one("Unique", [np.ones((5, 4), np.float32)], axis=0, empty=False),
    "an empty operand that differs": lambda: one("Concat", [floats(R, 9, 2, 0), floats(R, 5, 2, 2)], axis=0),
    "a target of 0 from a shape": lambda: one("Reshape", [floats(R, 2, 3), param(3, 2)]),
}


@pytest.mark.parametrize("name", SMALLEST)
def test_smallest_cases(name: str) -> None:
    runs = 0
    for seed in range(6):
        sample = SMALLEST[name]()
        made: Instance = instance(sample, np.random.default_rng(seed))
        try:
            ran, _, faults = check(made)
        except InputError:  # what onnxruntime itself sees to be wrong is no case
            continue
        runs += ran
        assert not faults, faults
    assert runs


def test_the_oracle_finds_a_wrong_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """What must hold for the tests above to be able to fail."""
    import shape_oracle

    from memoptc.ir.infer import infer_shapes
    from memoptc.ir.types import DType, TensorType

    def wrong(graph: Any) -> Any:
        found = infer_shapes(graph)
        for op in graph.walk("Relu"):
            op.result.type = TensorType(DType.FLOAT, (3,))
        return found

    monkeypatch.setattr(shape_oracle, "infer_shapes", wrong)
    sample = Sample(one("Relu", [np.zeros(2, np.float32)]).nodes, {"x0": Operand(np.zeros(2, np.float32), fixed=True)})
    assert check(instance(sample, np.random.default_rng(0)))[2]
