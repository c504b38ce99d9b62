"""Messages of the gates: what does not hold, by how much, and how to go on; `--force` turns them into warnings."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import onnx
import onnx.parser
import pytest

import memoptc
from memoptc.bisect import Culprit
from memoptc.budget import Budget
from memoptc.gate import Broken, broken_needs, check_budget, check_verification, refusal
from memoptc.ir.diagnostics import BudgetError, ProofError
from memoptc.ir.parser import parse
from memoptc.options import Options
from memoptc.passes.memory.narrow import Narrow
from memoptc.report.verdict import verdict
from memoptc.runtime.contract import Contract
from memoptc.runtime.verification import Verification

MB = 1 << 20
GRAPH = """
graph @g(%x: f32[256,1024]) -> (f32[256,1024]) {
  %y = Relu(%x) : f32[256,1024]
  %z = Sigmoid(%y) : f32[256,1024]
  return %z
}
"""


def attempt(**facts: Any) -> Any:
    """What the gates read of an attempt."""
    figures = {"plan": None, "planned_peak_bytes": 2 * MB, "weight_bytes": 3 * MB}
    peak = SimpleNamespace(unknown=facts.pop("unknown", ()))
    written = SimpleNamespace(peak=peak, **{k: facts.pop(k, v) for k, v in figures.items()})
    contract = Contract(peaks=facts.pop("peaks", {}))
    return SimpleNamespace(
        written=written, contract=contract, graph=parse(GRAPH), warnings=[], verification=None, **facts
    )


def test_a_refusal_names_each_figure_and_the_ways_out() -> None:
    broken = [*broken_needs((40 * MB, 41 * MB), (60 * MB, 70 * MB)), Broken("latency", 2.0, 5.0, 1.25, "ms")]
    message, hint = refusal(broken)
    assert "need in stock onnxruntime is 62.91 MB instead of 41.94 MB (1.50; at most" in message
    assert "need in Session is 73.40 MB instead of 42.99 MB (1.71; at most" in message
    assert (
        "latency is 5 ms instead of 2 ms (2.50; at most 1.25 is promised), also with every pass taken back" in message
    )
    assert "--max-slowdown" in hint
    assert "--force" in hint
    assert broken[-1].sentence().startswith("Latency is 5 ms")
    message, hint = refusal(broken, ["freeze-runtime"])
    assert "every pass taken back but freeze-runtime." in message
    assert "leave freeze-runtime out" in hint


@pytest.mark.parametrize(
    ("budget", "facts", "message"),
    [
        (Budget(activations=MB), {}, r"budget of 1 MiB .*out of reach: the plan needs 2\.1\d? MB"),
        (Budget(activations=MB), {"planned_peak_bytes": None}, "planned memory is unknown, since some sizes are"),
        (Budget(activations=4 * MB), {"unknown": ("v",)}, r"unknown, since some sizes of 1 values, such as 'v', are"),
        (Budget(activations=4 * MB), {"unknown": ("v",), "peaks": {"session": 9 * MB}}, r"a run allocated 9\.4\d MB"),
        (Budget(weights=MB), {}, r"weights take 3\.1\d* MB, their budget is 1 MiB"),
    ],
)
def test_a_budget_out_of_reach_is_refused_or_forced(budget: Budget, facts: dict[str, Any], message: str) -> None:
    with pytest.raises(BudgetError, match=message) as caught:
        check_budget(attempt(**facts), Options(memory_budget=budget), {})
    assert "--force" in caught.value.hint
    found = attempt(**facts)
    check_budget(found, Options(memory_budget=budget, force=True), {})
    assert found.warnings[0].endswith("Written all the same (--force).")


def test_a_run_above_a_budget_that_the_plan_keeps_is_told() -> None:
    found = attempt(peaks={"session": 5 * MB})
    check_budget(found, Options(memory_budget=Budget(activations=4 * MB)), {})
    assert "a run in Session allocated 5.24 MB" in found.warnings[0]
    check_budget(found, Options(memory_budget=Budget(activations=6 * MB)), {})
    assert len(found.warnings) == 1


def test_a_failed_proof_names_the_output_and_the_pass_or_warns() -> None:
    found = attempt()
    found.verification = Verification(False, "fast", failures=("y differs by 0.5",))
    with pytest.raises(ProofError, match=r"Verification failed: y differs by 0\.5; first broken by pass narrow\."):
        check_verification(found, Options(), lambda: Culprit(Narrow()))
    found.verification = Verification(False, "fast", inputs="random", failures=("y differs by 0.5",))
    with pytest.raises(ProofError) as caught:
        check_verification(found, Options(), lambda: Culprit(Narrow()))
    assert "real inputs with --validation" in caught.value.hint
    check_verification(found, Options(force=True), lambda: Culprit(None))
    assert found.warnings == ["Verification failed: y differs by 0.5. Written all the same (--force)."]


def test_the_original_is_predicted_with_the_bodies_of_its_functions() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 21, "local": 1]>
        g (float[1024, 64] x) => (float[1024, 64] y) { y = local.F (x) }
        <domain: "local", opset_import: ["": 21]> F (x) => (y)
        {
            n = Constant <value_ints = [16, 1, 1]> ()
            wide = Expand (x, n)
            more = Exp (wide)
            axes = Constant <value_ints = [0]> ()
            y = ReduceSum <keepdims = 0> (more, axes)
        }"""
    )
    result = memoptc.compile(model, 1, measure=False, verify="off")
    before, after = result.report.control, result.report.candidate
    assert before.planned_peak_bytes == after.planned_peak_bytes == 2 * 16 * 1024 * 64 * 4
    assert before.predicted_need_bytes is not None
    assert before.predicted_need_bytes > 2 * 16 * 1024 * 64 * 4


def test_no_need_is_predicted_of_an_original_whose_sizes_are_less_known() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["": 18]>
        g (float[64, 64] x, bool c) => (float[64, 64] y) {
            a = Abs (x)
            unused = If (c) <
                then_branch = t () => (float r) {
                    i = NonZero (a)
                    f = Cast <to = 1> (i)
                    r = ReduceMax <keepdims = 0> (f)
                },
                else_branch = e () => (float s) { s = ReduceMax <keepdims = 0> (a) }>
            y = Sqrt (a)
        }"""
    )
    report = memoptc.compile(model, 1, measure=False, verify="off").report
    assert report.control.predicted_need_bytes is None
    assert report.candidate.predicted_need_bytes is not None
    assert verdict(report).startswith("Not measured;")
