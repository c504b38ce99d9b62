"""Small valid models of which compilers get something wrong keep their numbers: every bit at levels 0 and 1."""

from __future__ import annotations

from collections import Counter

import onnx
import onnx.parser
import pytest
from fuzzing import Way, try_ways
from odd_models import MODELS

from memoptc import compile
from memoptc.ir.onnx_io import read_onnx
from memoptc.runtime.inputs import InputMaker

WAYS: tuple[Way, ...] = (
    {"level": 0},
    {"level": 3},
    *({"level": 2, "target": target} for target in ("int8", "int4", "float16")),
    {"level": 1, "external": "always"},
    {"level": 2, "freeze_runtime": True, "pack_weights": True, "external": "always"},
)


@pytest.mark.parametrize("name", MODELS)
def test_levels_keep_numbers(name: str) -> None:
    _try(name, ({"level": 1}, {"level": 2}))


@pytest.mark.nightly
@pytest.mark.parametrize("name", MODELS)
def test_every_way_keeps_numbers(name: str) -> None:
    _try(name, WAYS)


def _try(name: str, ways: tuple[Way, ...]) -> None:
    model, feeds = MODELS[name]()
    counts: Counter[str] = Counter()
    assert try_ways(model, feeds, ways, counts) == ""
    assert counts["models"] == 1


def test_sequences_of_tensors_of_open_extents_are_made_up_small() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 21]> g (seq(float[A,B,C,D]) s) => (float[A,B,C,D] y) <int64 first = {0}>
        { x = SequenceAt (s, first) y = Relu (x) }"""
    )
    maker = InputMaker(read_onnx(model))
    assert min(maker.nbytes(binding) for binding in maker.bindings()) < 1 << 24
    compile(model, 1, measure=False, verify="off")
