"""A table that a product reads, too, gets one code, stored once, and whatever it holds stays right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from runtime_models import normal, parse

from memoptc.api import compile as compile_model
from memoptc.passes.precision._quantize.candidates import CandidateEvaluator
from memoptc.passes.precision.quantize_search import _Search
from memoptc.runtime.evaluate import Evaluator
from memoptc.runtime.quality import FEW

WORDS, WIDTH = 400, 96
BODY = "{ e = Gather(w, ids) m = MatMul(e, a) t = Tanh(m) wt = Transpose(w) y = MatMul(t, wt) }"
TIED = f"g (int64[B, S] ids) => (float[B, S, {WORDS}] y) {BODY}"


def weights() -> dict[str, np.ndarray[Any, Any]]:
    return {"w": normal(WORDS, WIDTH, seed=1), "a": normal(WIDTH, WIDTH, seed=2, scale=0.1)}


def data(count: int = 6) -> list[dict[str, Any]]:
    rng = np.random.default_rng(3)
    return [{"ids": rng.integers(0, WORDS, (2, 7))} for _ in range(count)]


@pytest.mark.parametrize(("target", "share"), [("int8", 0.28), ("int4", 0.18), ("mixed", 0.28)])
def test_a_tied_table_has_one_code(target: str, share: float) -> None:
    model = parse(TIED, **weights())
    found = compile_model(model, 2, target, calibration=data(), measure=False, min_sqnr=14.0)
    assert found.report.verification["passed"]
    assert found.report.candidate.weight_bytes < share * found.report.control.weight_bytes
    sizes = (WORDS * WIDTH, WORDS * WIDTH // 2)
    codes = [op.result for op in found.graph.walk("const") if op.attrs["value"].nbytes in sizes]
    assert [len(list(value.uses)) for value in codes] == [2]
    assert codes[0].type.dtype.bitwidth == 8


def test_indices_that_are_none_at_all_and_at_the_end_are_looked_up() -> None:
    model = parse(TIED, **weights())
    found = compile_model(model, 2, "int8", calibration=data(), measure=False)
    run, original = Evaluator(found.model), Evaluator(model)
    for ids in (np.zeros((0, 7), np.int64), np.array([[-1, WORDS - 1, 0]], np.int64)):
        got, wanted = run.run({"ids": ids})["y"], original.run({"ids": ids})["y"]
        assert got.shape == wanted.shape
        np.testing.assert_allclose(got, wanted, atol=0.05 * max(float(np.abs(wanted).max(initial=0.0)), 1e-6))


def test_a_tied_table_stays_in_float_wholly_or_not_at_all() -> None:
    """Asked for more than 8 bits give, all that reads it reads floats: no second copy of it in codes."""
    model = parse(TIED, **weights())
    found = compile_model(model, 2, "int8", calibration=data(), measure=False, min_sqnr=70.0)
    assert found.report.candidate.weight_bytes <= 1.01 * found.report.control.weight_bytes
    assert found.report.precision["reached"]["sqnr_db"] >= 70.0


def test_unnamed_nodes_beside_a_tied_table_are_quantized() -> None:
    model = parse(TIED, **weights())
    assert not any(node.name for node in model.graph.node)
    found = compile_model(model, 2, "int8", calibration=data(), measure=False)
    assert {row["decision"] for row in found.report.to_json()["precision"]["layers"]} <= {"integer", "integer weights"}
    assert not any(op.op_type == "MatMul" and op.operands[1].tensor is not None for op in found.graph.walk())


def test_a_search_has_few_whole_looks_and_is_done_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks are counted, not timed: copies that run, and what is searched again when another attempt is made."""
    looks, searches = [0], [0]
    look, run = CandidateEvaluator._with, _Search.run

    def counted_look(self: Any, *args: Any) -> Any:
        looks[0] += 1
        return look(self, *args)

    def counted_run(self: Any) -> None:
        searches[0] += 1
        run(self)

    monkeypatch.setattr(CandidateEvaluator, "_with", counted_look)
    monkeypatch.setattr(_Search, "run", counted_run)
    chain = " ".join(f"x{i + 1} = MatMul(x{i}, w{i})" for i in range(60))
    model = parse(
        f"g (float[N, 48] x0) => (float[N, 48] x60) {{ {chain} }}",
        **{f"w{i}": normal(48, 48, seed=i, scale=0.15) for i in range(60)},
    )
    samples = [{"x0": normal(4, 48, seed=i)} for i in range(FEW)]
    compile_model(model, 2, "int8", calibration=samples, min_sqnr=30.0, force=True)
    assert searches == [1]
    assert 5 < looks[0] < 130
