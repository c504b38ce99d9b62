"""Verification holds one model at a time, and a float64 run that would be too large is left out and said."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from runtime_models import convolutions, mlp, normal, with_weight

from memoptc.runtime import check, float64
from memoptc.runtime.evaluate import Evaluator
from memoptc.runtime.float64 import Float64
from memoptc.runtime.spool import Spool
from memoptc.runtime.verify import verify


def reordered() -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A model, and the same function with its sums in another order."""
    model = mlp()
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    order = np.random.default_rng(0).permutation(32)
    other = with_weight(model, "w1", weights["w1"][:, order])
    return model, with_weight(other, "w2", weights["w2"][order])


@pytest.mark.parametrize("mode", ["fast", "full"])
def test_one_session_is_open_at_a_time(mode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: weakref.WeakSet[Evaluator] = weakref.WeakSet()
    most: list[int] = []
    load = Evaluator.__init__

    def counted(self: Evaluator, *args: Any, **more: Any) -> None:
        load(self, *args, **more)
        alive.add(self)
        most.append(len(alive))

    monkeypatch.setattr(Evaluator, "__init__", counted)
    found = verify(*reordered(), mode=mode)
    assert found.passed
    assert found.judged_by["y"] == "float64 noise"
    assert len(most) == 5  # original, candidate, twin, and both models again with the optimizer on
    assert max(most) == 1


def test_a_float64_run_that_does_not_fit_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "TWIN_BYTES", -1)
    found = verify(*reordered())
    assert found.passed
    assert found.judged_by["y"] == "tolerance"
    assert any("no float64 run, which would take" in note for note in found.notes)


def test_a_failing_candidate_counts_before_data_that_is_wrong_later() -> None:
    model = mlp()
    data = [{"x": normal(2, 16)}, {"x": normal(2, 17)}]
    broken = with_weight(model, "w1", onnx.numpy_helper.to_array(model.graph.initializer[0])[:, :31])
    assert not verify(model, broken, data=data).passed


def table_and_branches() -> onnx.ModelProto:
    """Weights as a table, as a factor in two places, inside a branch, and returned."""
    ports = [helper.make_tensor_value_info(name, 1, None) for name in ("inner", "negative")]
    inner = helper.make_graph([helper.make_node("MatMul", ["rows", "w"], ["inner"])], "then", [], ports[:1])
    other = helper.make_graph([helper.make_node("Neg", ["rows"], ["negative"])], "else", [], ports[1:])
    nodes = [
        helper.make_node("Gather", ["table", "i"], ["rows"]),
        helper.make_node("If", ["c"], ["picked"], then_branch=inner, else_branch=other),
        helper.make_node("MatMul", ["picked", "w"], ["y"]),
        helper.make_node("Identity", ["w"], ["z"]),
    ]
    weights = {"table": normal(50, 8), "w": normal(8, 8)}
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, ["n"]),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", 1, ["n", 8]), helper.make_tensor_value_info("z", 1, [8, 8])],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


@pytest.mark.parametrize("make", [table_and_branches, convolutions])
def test_weights_widened_where_they_are_used_give_the_same_twin(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    feeds: dict[str, Any] = {"i": np.array([3, 1]), "c": np.array(True)}
    if make is convolutions:
        feeds = {v.name: normal(*(d.dim_value or 2 for d in v.type.tensor_type.shape.dim)) for v in model.graph.input}
    names = [o.name for o in model.graph.output]
    ahead = Float64(model).run(feeds, names)
    monkeypatch.setattr(float64, "_NARROW_FROM", 200)
    at_use = Float64(model).run(feeds, names)
    for name in names:
        assert np.asarray(at_use[name]).dtype == np.float64
        np.testing.assert_array_equal(at_use[name], ahead[name])


def test_values_come_back_from_the_spool_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool()
    large = {"a": np.full((1 << 19,), np.nan, np.float32), "s": [np.array(["x"], object), None], "m": {1: 2.0}}
    spool.put("wanted", 3, large)
    spool.put("wanted", 4, {"a": np.zeros(3)})
    found = spool.get("wanted", 3)
    assert found["a"].tobytes() == large["a"].tobytes()
    assert found["s"][0].dtype == object
    assert found["s"][1] is None
    assert found["m"] == {1: 2.0}
    np.testing.assert_array_equal(spool.get("wanted", 4)["a"], np.zeros(3))
