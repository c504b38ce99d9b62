"""Pipelines of levels: which passes write the numbers of a target."""

from __future__ import annotations

import pytest

from memoptc.levels import Accuracy, pipeline_text
from memoptc.pass_base import Pass
from memoptc.pipeline import parse

NOTHING_ASKED = Accuracy()
WRITERS = {"quantize", "quantize-search", "quantize-weights", "mix-weights", "to-half"}


def passes(level: int, target: str, *, calibrated: bool = False, accuracy: Accuracy = NOTHING_ASKED) -> list[Pass]:
    return list(parse(pipeline_text(level, target, calibrated=calibrated, accuracy=accuracy)).passes())


@pytest.mark.parametrize("level", [0, 1, 2, 3])
@pytest.mark.parametrize(
    ("target", "calibrated", "writers"),
    [
        ("float32", True, set()), ("float16", False, {"to-half"}), ("bfloat16", False, {"to-half"}),
        ("int4", True, {"mix-weights"}), ("mixed", False, {"mix-weights"}), ("mixed", True, {"quantize-search"}),
        ("int8", True, {"quantize-search"}), ("uint8", True, {"quantize-search"}),
    ],
)  # fmt: skip
def test_one_pass_writes_the_numbers(level: int, target: str, calibrated: bool, writers: set[str]) -> None:
    names = [p.name for p in passes(level, target, calibrated=calibrated)]
    assert {name for name in names if name in WRITERS} == writers
    assert ("scale-columns" in names) == (writers == {"mix-weights"})


@pytest.mark.parametrize(("level", "count"), [(0, 1), (1, 1), (2, 1), (3, 1)])
def test_integers_have_their_opset_at_each_level(level: int, count: int) -> None:
    names = [p.name for p in passes(level, "int8", calibrated=True)]
    assert names.count("raise-opset") == count
    assert names.index("raise-opset") < names.index("quantize-search")


def test_mixed_without_data_goes_by_the_weights_themselves() -> None:
    (mix,) = [p for p in passes(2, "mixed") if p.name == "mix-weights"]
    assert (mix.by, mix.min_sqnr) == ("weights", 20.0)  # type: ignore[attr-defined]
    (mix,) = [p for p in passes(2, "int4", calibrated=True) if p.name == "mix-weights"]
    assert mix.by == "outputs"  # type: ignore[attr-defined]


def test_who_asks_for_an_accuracy_gets_that_one_for_tables_too() -> None:
    (usual,) = [p for p in passes(2, "int4", calibrated=True) if p.name == "mix-weights"]
    asked = passes(2, "int4", calibrated=True, accuracy=Accuracy(min_sqnr=12.0))
    (held,) = [p for p in asked if p.name == "mix-weights"]
    assert usual.tables_sqnr is not None  # type: ignore[attr-defined]
    assert (held.tables_sqnr, held.min_sqnr) == (None, 12.0)  # type: ignore[attr-defined]
