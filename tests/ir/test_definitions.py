"""Every definition on instances that it makes itself: types, text and float64 form against what onnxruntime computes.

Iteration spaces are held against it in `test_iteration.py`, on the same instances. A new operator needs no line here.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from numbers_of import UNOPTIMIZED
from sampled import SAMPLED, Feed, built, drawn
from samplers import SAMPLERS
from tileable_moves import MOVES

from memoptc.ir.equality import same_structure
from memoptc.ir.onnx_io import to_proto
from memoptc.ir.ops import TABLE, is_pure
from memoptc.ir.parser import parse
from memoptc.ir.printer import print_graph
from memoptc.ir.types import TensorType
from memoptc.ir.verifier import verify
from memoptc.runtime.evaluate import Evaluator
from memoptc.runtime.float64 import Float64

UNTWINNED = {"LpPool": "roots of sums over windows are written with no other operator"}
"""Operators of standard ONNX without a float64 form, and why."""
UNSAMPLED = {
    "Affine": "experimental, of opset 1: onnxruntime runs it, ONNX has no schema of it",
    "ParametricSoftplus": "experimental, of opset 1",
    "ScaledTanh": "experimental, of opset 1",
    "com.microsoft.nchwc::Conv": "made by onnxruntime's optimizer only",
}
"""Operators that claim something and of which no test makes instances, and why."""


def _run(model: onnx.ModelProto, feed: Feed) -> list[object]:
    return list(Evaluator(model, UNOPTIMIZED).run(feed).values())


@pytest.mark.parametrize("key", SAMPLED)
def test_a_definition_holds_on_its_instances(key: str) -> None:
    for seed in range(3 if TABLE[key].sample is not None else 1):
        op, feed = built(key, drawn(key, seed))
        graph = op.graph
        assert graph is not None
        assert verify(graph) == []
        assert same_structure(parse(print_graph(graph)), graph, names=True) is None
        model = to_proto(graph)
        found = _run(model, feed)
        for result, array in zip(op.results, found, strict=True):
            assert isinstance(result.type, TensorType)
            assert result.static_shape == np.shape(array), f"{op}, seed {seed}"
            assert result.type.dtype.numpy() == np.asarray(array).dtype, f"{op}, seed {seed}"
        for name, near in zip([o.name for o in model.graph.output], found, strict=True):
            if np.asarray(near).dtype == np.float32 and key not in UNTWINNED:
                twin = np.asarray(Float64(model).run(feed, [name])[name])
                assert twin.dtype == np.float64
                scale = max(1.0, float(np.nanmax(np.abs(near), initial=0)))
                np.testing.assert_allclose(twin, near, rtol=1e-5, atol=2e-6 * scale, err_msg=f"{op}, seed {seed}")


def test_every_operator_that_claims_something_has_instances() -> None:
    """In its definition, or among the samplers and moves of the tests, which draw symbols and computed parameters."""
    by_hand = set(MOVES)
    for samplers in SAMPLERS.values():
        for sampler in samplers:
            for seed in range(40):
                nodes = sampler(np.random.default_rng(seed)).nodes
                by_hand |= {f"{n.domain}::{n.op_type}" if n.domain else n.op_type for n in nodes}
    claims = ("arity", "view", "in_place", "homogeneous", "space", "accumulates", "layout", "double")
    without = {
        key
        for key, known in TABLE.items()
        if any(getattr(known, claim) not in (None, (), False) for claim in claims)
        and key not in by_hand
        and known.sampler is None
    }
    assert without == set(UNSAMPLED)


def test_a_new_operator_is_one_entry() -> None:
    """Its definition alone brings it into the tests of types, iteration spaces, text and float64 forms."""
    for key in ("RMSNormalization", "RotaryEmbedding", "com.microsoft::Trilu", "com.microsoft::QuickGelu"):
        assert key in SAMPLED
        assert key not in MOVES
        assert TABLE[key].space is not None


def test_numbers_that_a_sample_fixes_are_parameters() -> None:
    """Axes, shapes and counts have values that suit them, which made-up inputs then hold."""
    for key in SAMPLED:
        for seed in range(5):
            sample = drawn(key, seed)
            fixed = {i for i in sample.weights if np.asarray(sample.operands[i]).dtype == np.int64}
            assert fixed <= TABLE[key].parameters.keys(), key


def test_dropout_of_old_draws_unless_told_not_to() -> None:
    lines = "%a = Dropout(%x)\n%b = Dropout(%x) {is_test=1}\nreturn %a, %b"
    for version, pure in ((6, [False, True]), (7, [True, True])):
        header = f'model {{ir_version=3, opset={{""={version}}}}}'
        graph = parse(f"{header}\ngraph @g(%x: f32[4]) -> (f32[*], f32[*]) {{\n{lines}\n}}")
        assert [is_pure(op) for op in graph.walk("Dropout")] == pure
