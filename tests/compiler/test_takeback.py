"""What makes a model worse is taken back, and the report says so."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from runtime_models import parse

import memoptc
from memoptc.allowance import CUT, Allowance
from memoptc.attempts import Edit
from memoptc.cli.main import main
from memoptc.edits import find_edit, weaker_forms
from memoptc.ir.diagnostics import ProofError
from memoptc.ir.forms import WritingForm
from memoptc.ir.onnx_io import read_onnx
from memoptc.options import Options
from memoptc.pipeline import Pipeline
from memoptc.pipeline import parse as parse_pipeline
from memoptc.report.model import PassRecord
from memoptc.steps.describe import content_key
from memoptc.takeback import Keeper

MB = 1 << 20

HOARD = '''
"""hoard: every Relu's result is copied eight times, and cut out of the copies again."""

import numpy as np

from memoptc import Context, Pass
from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph


class Hoard(Pass):
    copies: int = 8

    def run(self, graph: Graph, context: Context) -> None:
        if any(graph.walk("Concat")):
            return
        for op in list(graph.walk("Relu")):
            value = op.result
            users = set(value.users)
            b = Builder(graph, before=op.next)
            many = b.Concat(*[value] * self.copies, axis=0)
            one = b.Slice(many, np.array([0]), np.array([1]), np.array([0]), _type=value.type)
            value.replace_by(one, where=lambda user, _: user in users)
            context.stats["hoarded"] += 1
'''


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Activations of 4 MiB, and a little to do before and after."""
    path = tmp_path / "m.onnx"
    onnx.save(
        parse("g (float[1, 1048576] x) => (float[1, 1048576] y) { a = Sin (x) b = Relu (a) c = Abs (b) y = Cos (c) }"),
        path,
    )
    return path


@pytest.fixture
def hoard(tmp_path: Path) -> str:
    """A plug-in whose pass makes the need grow, and no number differ."""
    path = tmp_path / "hoard.py"
    path.write_text(HOARD)
    return str(path)


PIPELINE = "simplify,hoard,drop-dead,plan-memory,lower"


def test_a_pass_that_makes_the_need_grow_is_taken_back(
    model: Path, hoard: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, report = tmp_path / "out.onnx", tmp_path / "out.json"
    assert main([str(model), "-o", str(out), "--passes", PIPELINE, "--plugin", hoard, "--report", str(report)]) == 0
    shown = capsys.readouterr()
    found = json.loads(report.read_text())
    assert found["options"]["passes"] == "simplify,drop-dead,plan-memory,lower"  # the others stay
    (decision,) = [d for d in found["decisions"] if d["step"] == "taken back"]
    assert decision["what"] == "hoard"
    assert "need in stock onnxruntime is" in decision["why"]
    assert decision["gain_bytes"] > 24 * MB
    (warning,) = [w for w in found["warnings"] if w.startswith("Taken back")]
    assert "--force" in warning
    assert "Taken back: hoard. With it, need in stock onnxruntime is" in shown.err
    assert "taken back: hoard" in found["verdict"]
    assert found["verdict"] in shown.out.replace("\n", " ")
    needs = [found[side]["measured"]["need_bytes"] for side in ("control", "candidate")]
    assert needs[1]["stock"] < needs[0]["stock"] + 2 * MB
    assert [n.op_type for n in onnx.load(out).graph.node] == ["Sin", "Relu", "Abs", "Cos"]
    assert found["verification"]["passed"]


def test_a_pass_decodes_in_each_run_before_it_is_taken_back(model: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "hoard.py"
    plugin.write_text(
        HOARD.replace("copies: int = 8", 'copies: int = 8\n    decode: str = "load"').replace(
            "return\n        for", 'return\n        if self.decode == "run":\n            return\n        for'
        )
    )
    result = memoptc.compile(str(model), 1, passes=PIPELINE, plugins=(str(plugin),))
    (decision,) = [d for d in result.report.decisions if d.step == "taken back"]
    assert decision.what == 'hoard (now hoard{decode="run"})'


def test_a_pass_that_does_again_what_was_taken_back_goes_too(model: Path, hoard: str) -> None:
    """The second one changed nothing as long as the first one was there."""
    result = memoptc.compile(str(model), 1, passes="simplify,hoard,drop-dead,hoard,lower", plugins=(hoard,))
    assert result.report.options["passes"] == "simplify,drop-dead,lower"
    assert "Concat" not in [n.op_type for n in result.model.graph.node]


def test_the_only_pass_that_leaves_nodes_out_is_taken_back(model: Path, tmp_path: Path) -> None:
    """What is excluded then has no pass that would do anything to it."""
    plugin = tmp_path / "hoard.py"
    plugin.write_text(HOARD.replace("copies: int = 8", "copies: int = 8\n    exclude: tuple[str, ...] = ()"))
    result = memoptc.compile(str(model), 1, passes=PIPELINE, plugins=(str(plugin),), exclude=("Sin",))
    assert result.report.options["passes"] == "simplify,drop-dead,plan-memory,lower"


def test_of_a_pass_that_is_taken_back_a_weaker_one_stays(model: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "hoard.py"
    plugin.write_text(
        HOARD.replace("copies: int = 8\n", "copies: int = 8\n\n    def weaker(self):\n        return Hoard(copies=1)\n")
    )
    result = memoptc.compile(str(model), 1, passes=PIPELINE, plugins=(str(plugin),))
    assert result.report.options["passes"] == "simplify,hoard{copies=1},drop-dead,plan-memory,lower"
    assert [d.what for d in result.decisions if d.step == "taken back"] == ["hoard (now hoard{copies=1})"]


def test_with_force_it_is_written_and_named_as_worse(
    model: Path, hoard: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, report = tmp_path / "out.onnx", tmp_path / "out.json"
    arguments = ["--passes", PIPELINE, "--plugin", hoard, "--report", str(report), "--force"]
    assert main([str(model), "-o", str(out), *arguments]) == 0
    shown = capsys.readouterr()
    found = json.loads(report.read_text())
    assert "Concat" in [n.op_type for n in onnx.load(out).graph.node]
    assert "Written all the same (--force)" in shown.err
    worse = {w["what"]: w for w in found["worse"]}
    assert worse["need in stock onnxruntime"]["ratio"] > 2
    assert "activations take" in worse["need in stock onnxruntime"]["why"]
    assert "worse: need in stock onnxruntime" in shown.out


def test_without_measuring_what_is_predicted_counts(model: Path, hoard: str) -> None:
    result = memoptc.compile(str(model), 1, passes=PIPELINE, plugins=(hoard,))
    assert "Concat" not in [n.op_type for n in result.model.graph.node]
    (decision,) = [d for d in result.report.decisions if d.step == "taken back"]
    assert decision.what == "hoard"
    assert "predicted need in stock onnxruntime is" in decision.why
    assert "Not measured; predicted to need" in result.verdict
    before, after = (side.predicted_need_bytes for side in (result.report.control, result.report.candidate))
    assert before is not None
    assert after is not None
    assert after <= before


def test_level_0_holds_to_nothing(model: Path, hoard: str) -> None:
    result = memoptc.compile(str(model), 0, passes=PIPELINE, plugins=(hoard,), measure=True, verify="off")
    assert "Concat" in [n.op_type for n in result.model.graph.node]
    assert any("need in stock" in str(w) for w in result.report.worse)
    assert "taken back" not in result.verdict


def test_what_cannot_be_taken_back_is_refused(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.onnx"
    arguments = [str(model), "-o", str(out), "--max-slowdown", "0.01", "--verify", "off", "-q"]
    assert main(arguments) == 3
    shown = capsys.readouterr()
    assert "latency is" in shown.err
    assert "Nothing was written" in shown.err
    assert not out.exists()


def test_the_shortest_tail_is_found_and_the_rest_put_back() -> None:
    asked: list[frozenset[int]] = []

    def holds(edit: Edit) -> bool:
        asked.append(edit.dropped)
        return 7 in edit.dropped

    found = find_edit(list(range(20)), holds, iter(()))
    assert found == Edit(frozenset({7}))
    assert len(asked) == len(set(asked)) <= 12


def test_two_culprits_are_both_found() -> None:
    found = find_edit(list(range(10)), lambda e: {2, 8} <= e.dropped, iter(()), most=30)
    assert found == Edit(frozenset({2, 8}))


def test_with_few_attempts_left_the_known_tail_is_taken() -> None:
    found = find_edit(list(range(100)), lambda e: {3, 70, 90} <= e.dropped, iter(()), most=8)
    assert found is not None
    assert {3, 70, 90} <= found.dropped


def test_out_of_time_all_is_dropped_at_once_and_nothing_smaller_looked_for() -> None:
    asked: list[frozenset[int]] = []

    def holds(edit: Edit) -> bool:
        asked.append(edit.dropped)
        return 7 in edit.dropped

    found = find_edit(list(range(20)), holds, iter(()), late=lambda: True)
    assert found == Edit(frozenset(range(20)))
    assert len(asked) == 1
    assert find_edit([1, 2], lambda e: False, iter(()), late=lambda: True) is None


def test_nothing_helps() -> None:
    assert find_edit([1, 2, 3], lambda e: False, iter(())) is None


def test_of_a_slow_tiling_less_is_tried_before_it_is_dropped() -> None:
    """It stops at higher and higher peaks, between the one that it reached and the one that it found."""
    passes = list(parse_pipeline("fit{slowdown=1.05},lower").passes())
    record = PassRecord("fit", 1.0, 5, 9, planned_peak_bytes=10 * MB, stats={"bytes saved": 30 * MB})
    (ladder,) = weaker_forms(passes, [0], [record])
    goals = [edit.replaced[0].ignore for edit in ladder]  # type: ignore[attr-defined]
    assert goals == sorted(goals)
    assert goals[0] == 10 * MB
    assert 30 * MB < goals[-1] < 40 * MB
    assert not list(weaker_forms(passes, [1], [record]))


@pytest.mark.parametrize("least", range(9))
def test_of_a_ladder_the_least_that_holds_is_found(least: int) -> None:
    ladder = [Edit(frozenset({9}), {0: index}) for index in range(8)]  # type: ignore[dict-item]
    asked: list[Edit] = []

    def holds(edit: Edit) -> bool:
        asked.append(edit)
        return not edit.replaced or edit.replaced[0] >= least  # type: ignore[operator]

    found = find_edit([1], holds, iter([ladder]))
    assert found == (ladder[least] if least < 8 else Edit(frozenset({1})))
    assert sum(bool(edit.replaced) for edit in asked) <= 4


def test_a_weaker_form_is_tried_first() -> None:
    weak = Edit(replaced={1: object()})  # type: ignore[dict-item]
    assert find_edit([1, 2], lambda e: bool(e.replaced), iter([[weak]])) is weak


def attempts_that_hold(holds: Callable[[str, str], bool], seconds: float = 60.0) -> tuple[Any, list[str]]:
    """Stand-in for attempts of which only those hold of which that is true, by form and pipeline; and forms written.

    Of several passes named `simplify`, one does all that they do. There is an allowance of so many seconds.
    """
    built: list[str] = []

    def build(pipeline: Pipeline, *, form: str | None = None) -> Any:
        name = form or "shapeless"  # what is chosen where nobody says
        need = 10 * MB if holds(name, str(pipeline)) else 90 * MB
        changed = [i for i, p in enumerate(pipeline.passes()) if p.name == "simplify"]
        built.append(name)
        return SimpleNamespace(
            choice=SimpleNamespace(form=SimpleNamespace(name=name)), predicted=(need, need), needs=None, largest=None,
            times=None, recorded=False, edit=None,
            pipeline=pipeline, compiled=SimpleNamespace(changed=changed), decisions=[], warnings=[],
            taken_back=([], []), content=f"{name} {'simplify' in str(pipeline)}",
        )  # fmt: skip

    attempts = SimpleNamespace(
        build=build,
        compilation=SimpleNamespace(options=Options()),
        original=SimpleNamespace(sizes=(50 * MB, 50 * MB)),
        allowance=Allowance(seconds),
    )
    return attempts, built


@pytest.mark.parametrize(("holding", "tried"), [("branch", ["branch"]), ("plain", ["branch", "plain"])])
def test_a_form_gives_way_to_the_next_simpler_one(holding: str, tried: list[str]) -> None:
    attempts, built = attempts_that_hold(lambda form, _: form == holding)
    held = Keeper(attempts).hold_predictions(attempts.build(parse_pipeline("simplify")))
    assert built == ["shapeless", *tried]
    assert held.decisions[0].what == f"the form shapeless (now {holding})"


@pytest.mark.parametrize(
    ("forms", "taken_back"),
    [
        (("plain",), ["simplify", "the form shapeless (now plain)"]),
        (("plain", "branch", "shapeless"), ["simplify"]),  # the form is not to blame
    ],
)
def test_a_form_and_a_pass_may_both_be_to_blame(forms: Sequence[str], taken_back: list[str]) -> None:
    attempts, built = attempts_that_hold(lambda form, pipeline: form in forms and "simplify" not in pipeline)
    held = Keeper(attempts).hold_predictions(attempts.build(parse_pipeline("simplify,drop-dead")))
    assert [d.what for d in held.decisions] == taken_back
    assert built[-1] == forms[-1]


def test_what_is_written_alike_is_judged_once() -> None:
    attempts, built = attempts_that_hold(lambda _, pipeline: "simplify" not in pipeline)
    looks: list[Any] = []

    class Counting(Keeper):
        def _hold(self, first: Any, check: Any, weaker: Any) -> Any:
            return super()._hold(first, lambda a: looks.append(a) or check(a), weaker)

    first = attempts.build(parse_pipeline("simplify,simplify,simplify"), form="plain")
    held = Counting(attempts).hold_predictions(first)
    assert len(held.decisions) == 3
    # With two of the three left, and with one, what is written is what broke the promise already.
    broken = [a.content for a in looks if a.content.endswith("True")]
    assert broken == ["plain True", "shapeless True"]
    assert len(built) > len(looks)


def test_when_the_allowance_is_spent_all_is_taken_back_at_once() -> None:
    attempts, built = attempts_that_hold(lambda _, pipeline: "simplify" not in pipeline, seconds=-1.0)
    held = Keeper(attempts).hold_predictions(attempts.build(parse_pipeline("simplify,simplify,simplify"), form="plain"))
    assert len(built) == 2
    assert held.warnings[-1] == CUT


def test_searches_share_one_allowance(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("memoptc.allowance.time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr("memoptc.allowance.GATE_SECONDS", 20.0)
    allowance = Allowance(math.inf)
    for _ in range(2):
        with allowance.search(measured=True) as spent:
            assert not spent()
            now[0] += 12
    now[0] += 1000  # what other steps take counts for nothing
    with allowance.search(measured=True) as spent:
        assert spent()
        allowance.grant(1.0)
        assert not spent()


CHAIN = '''
"""chain: one Abs becomes 2,000 of them, fewer where nodes weigh more."""

from memoptc import Context, Pass
from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph


class Chain(Pass):
    node_weight: float = 1.0

    def run(self, graph: Graph, context: Context) -> None:
        for op in list(graph.walk("Abs")):
            if context.stats["chained"]:
                break
            users, value, b = set(op.result.users), op.result, Builder(graph, before=op.next)
            for _ in range(int(2000 / self.node_weight)):
                value = b.Abs(value)
            op.result.replace_by(value, where=lambda user, _: user in users)
            context.stats["chained"] += 1
'''


@pytest.mark.parametrize("weighs", [True, False])
def test_growth_at_small_extents_is_taken_back(weighs: bool, tmp_path: Path) -> None:
    """At a megapixel, 8 MB of nodes are 1 % of the need; at 128 by 128 they are a quarter of it."""
    path, plugin = tmp_path / "dynamic.onnx", tmp_path / "chain.py"
    onnx.save(
        parse("g (float[N, 96, H, W] x, float[1] s) => (float[N, 96, H, W] y) { a = Abs (s) y = Add (x, a) }"), path
    )
    plugin.write_text(CHAIN if weighs else CHAIN.replace("node_weight", "other_name"))
    steps = "chain,drop-dead,plan-memory,lower"
    result = memoptc.compile(str(path), 1, passes=steps, plugins=(str(plugin),), verify="off")
    (decision,) = [d for d in result.report.decisions if d.step == "taken back"]
    assert "at N=1, H=128, W=128 predicted need in stock onnxruntime" in decision.why
    assert decision.what == ("chain (now chain{node_weight=8.0})" if weighs else "chain")
    nodes = len([op for op in result.graph.walk() if op.op_type == "Abs"])
    assert nodes == (251 if weighs else 1)


def test_codes_that_fail_the_proof_give_way_to_weaker_ones(tmp_path: Path) -> None:
    """A column of 1e4 that no weight reads leaves no codes for the others."""
    rng = np.random.default_rng(3)
    gain, weight = np.ones(64, np.float32), rng.normal(size=(64, 64)).astype(np.float32)
    gain[7], weight[7] = 1e4, 0.0
    model = parse("g (float[N, 64] x) => (float[N, 64] y) { s = Mul (x, gain) y = MatMul (s, w) }")
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in (("gain", gain), ("w", weight)))
    onnx.save(model, tmp_path / "m.onnx")
    result = memoptc.compile(tmp_path / "m.onnx", 2, "int8", measure=False)
    told = [warning for warning in result.report.warnings if warning.startswith("Taken back")][-1]
    assert "weights_only=true" in told
    assert "verification fails" in told
    stored = [
        t for t in result.model.graph.initializer if t.data_type in (onnx.TensorProto.UINT8, onnx.TensorProto.INT8)
    ]
    assert sum(np.prod(t.dims) for t in stored) >= 64 * 64


def test_few_layers_stay_in_float_where_all_on_integers_fail_the_proof(tmp_path: Path) -> None:
    """As above, behind a wide product and before another one, which keep their codes."""
    rng = np.random.default_rng(3)
    arrays = {
        f"w{i}": rng.normal(size=s).astype(np.float32) / 8 for i, s in enumerate([(64, 128), (128, 64), (64, 64)])
    }
    arrays["gain"] = np.ones(64, np.float32)
    arrays["gain"][7], arrays["w2"][7] = 1e4, 0.0
    model = parse(
        "g (float[N, 64] x) => (float[N, 64] y) {"
        " a = MatMul (x, w0) b = MatMul (a, w1) s = Mul (b, gain) y = MatMul (s, w2) }"
    )
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in arrays.items())
    onnx.save(model, tmp_path / "m.onnx")
    result = memoptc.compile(tmp_path / "m.onnx", 2, "int8", measure=False)
    assert any("min_sqnr=20.0" in warning for warning in result.report.warnings)
    kept = [t for t in result.model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    assert [tuple(t.dims) for t in kept if np.prod(t.dims) >= 64 * 64] == [(64, 64)]


def test_what_differs_in_names_and_origin_alone_is_the_same_content() -> None:
    """Passes that tried other things first number their values otherwise; provenance names every pipeline."""
    model = parse("g (float[64] x) => (float[64] y) { a = Sin (x) b = Add (a, x) y = Relu (b) }")
    one, other = (read_onnx(model) for _ in range(2))
    other.info.metadata["memoptc.options"] = "-O2 --passes 'another pipeline'"
    for op in list(other.ops):
        op.name = f"other {op.name}"
        for result in op.results:
            result.name = f"other_{result.name}"
    form = WritingForm("plain", False)
    assert content_key(one, form) == content_key(other, form) != content_key(one, WritingForm("branch", False))
    next(op for op in other.ops if op.op_type == "Add").op_type = "Sub"
    assert content_key(one, form) != content_key(other, form)


NUDGE = '''
"""nudge: every Sin's result is a hundredth larger."""

import numpy as np

from memoptc import Context, Pass
from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph


class Nudge(Pass):
    def run(self, graph: Graph, context: Context) -> None:
        for op in list(graph.walk("Sin")):
            users = set(op.result.users)
            b = Builder(graph, before=op.next)
            more = b.Mul(op.result, np.float32(1.01), _type=op.result.type)
            op.result.replace_by(more, where=lambda user, _: user in users)
            context.stats["nudged"] += 1
'''


def _sine(*, codes: bool) -> onnx.ModelProto:
    last = "q = QuantizeLinear(s, scale, zero) y = DequantizeLinear(q, scale, zero)" if codes else "y = Neg(s)"
    model = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 18]> g (float[4,8] x) => (float[4,8] y) {{ s = Sin(x) {last} }}'
    )
    if codes:
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(0.01, np.float32), "scale"))
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(0, np.int8), "zero"))
    return model


def test_a_pass_that_moves_codes_is_left_out(tmp_path: Path) -> None:
    """Between two codes a sum in another order may become either, which is no fault of a pass."""
    plugin = tmp_path / "nudge.py"
    plugin.write_text(NUDGE)
    how = {"passes": "simplify,nudge,lower", "plugins": (str(plugin),), "measure": False}
    result = memoptc.compile(_sine(codes=True), 2, **how)
    (decision,) = [d for d in result.report.decisions if d.step == "taken back"]
    assert decision.what == "nudge"
    assert "verification fails" in decision.why
    assert "Mul" not in [n.op_type for n in result.model.graph.node]
    with pytest.raises(ProofError, match="first broken by pass nudge"):
        memoptc.compile(_sine(codes=False), 2, **how)
