"""Extents that are planned for when nobody says: bounded by tables, by the kind of input, and by memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from decoders import decoder

from memoptc import compile
from memoptc.compilation import Compilation
from memoptc.ir.core import Graph
from memoptc.ir.diagnostics import InputError
from memoptc.ir.infer import Inference, infer_shapes
from memoptc.ir.onnx_io import to_proto
from memoptc.ir.parser import parse
from memoptc.options import Options
from memoptc.runtime import design_points as design_points_module
from memoptc.runtime.design_points import PLANNED, DesignPoints, design_points, multiplications, smaller_points
from memoptc.runtime.evaluate import Evaluator
from memoptc.runtime.inputs import InputMaker
from memoptc.runtime.memory.extents import likely_extents

MODEL = 'model {ir_version=10, opset={""=18}}'

TOKENS = """graph @g(%ids: i64[batch,sequence]) -> (f32[batch,sequence,8]) {
  %table = const() {value=@w500_8} : f32[500,8]
  %places = const() {value=@w77_8} : f32[77,8]
  %shape = Shape(%ids) {start = 1, end = 2} : i64[1]
  %zero = const() {value=0} : i64[]
  %one = const() {value=1} : i64[]
  %count = Squeeze(%shape) : i64[]
  %steps = Range(%zero, %count, %one)
  %at = Gather(%places, %steps)
  %words = Gather(%table, %ids)
  %sum = Add(%words, %at)
  return %sum
}
"""


def graph(inputs: str, body: str, result: str) -> str:
    return f"{MODEL}\ngraph @g({inputs}) -> ({result}) {{\n{body}\n  return %y\n}}"


WEIGHTS = {
    f"w{'_'.join(map(str, shape))}": np.full(shape, value, np.float32)
    for shape, value in [((500, 8), 0.5), ((77, 8), 0.25), ((8, 1, 10), 0.5), ((8, 1, 3), 0.5), ((1, 16, 4), 0.25)]
} | {
    "w128_4096": (np.random.default_rng(1).standard_normal((128, 4096)) / 16).astype(np.float32),
    "w4096_128": (np.random.default_rng(2).standard_normal((4096, 128)) / 64).astype(np.float32),
}


def read(text: str):
    return parse(text, weights=WEIGHTS)


def points(text: str, asked: dict[str, int] | None = None):
    return design_points(read(text), asked or {})


def test_a_table_of_positions_bounds_the_tokens():
    found = points(f"{MODEL}\n{TOKENS}")
    assert dict(found.plan) == dict(found.check) == {"batch": 1, "sequence": 77}


def test_an_image_is_planned_at_a_megapixel():
    found = points(graph("%x: f32[N,3,H,W]", "  %y = Relu(%x)", "f32[N,3,H,W]"))
    assert dict(found.plan) == {"N": 1, "H": 1024, "W": 1024}
    assert found.chosen == {"N": "batch", "H": "space", "W": "space"}
    assert found.small == {"N": 1, "H": 256, "W": 256}
    assert points(graph("%x: f32[N,3,H,W]", "  %y = Relu(%x)", "f32[N,3,H,W]"), {"H": 512, "W": 512}).small is None


def test_an_image_without_a_batch_is_one() -> None:
    found = points(graph("%x: f32[3,H,W]", "  %y = Relu(%x)", "f32[3,H,W]"))
    assert dict(found.plan) == {"H": 1024, "W": 1024}


@pytest.mark.parametrize("stated", ["f32[D0,3,D0,D3]", "f32[N,3,N,W]"])
def test_names_that_an_exporter_mixed_up_among_outputs_tie_no_inputs_together(stated: str) -> None:
    found = points(graph("%x: f32[N,3,H,W]", "  %y = Relu(%x)", stated))
    assert dict(found.plan) == {"N": 1, "H": 1024, "W": 1024}


def test_a_length_that_an_output_states_as_a_sum_of_others_is_that_sum() -> None:
    text = graph("%x: f32[N,P,8], %z: f32[N,S,8], %m: f32[N,T]", "  %y = Concat(%x, %z) {axis = 1}", "f32[N,T,8]")
    check = points(text).check
    assert check["T"] == check["P"] + check["S"]


def test_sound_is_planned_at_seconds_not_at_thousands_of_samples():
    body = """  %w = const() {value=@w8_1_10} : f32[8,1,10]
  %axis = const() {value=[1]} : i64[1]
  %c = Unsqueeze(%x, %axis)
  %y = Conv(%c, %w) {strides = [5]}"""
    assert points(graph("%x: f32[N,S]", body, "f32[N,8,T]")).plan["S"] == 160_000
    other = body.replace("w8_1_10", "w8_1_3").replace("[8,1,10]", "[8,1,3]")
    assert points(graph("%x: f32[N,S]", other, "f32[N,8,T]")).plan["S"] == 4096


LSTM = """  %w = const() {value=@w1_16_4} : f32[1,16,4]
  %r = const() {value=@w1_16_4} : f32[1,16,4]
  %none = absent()
  %a, %h, %c = LSTM(%x, %w, %r, %none, %none, %first, %second) {hidden_size = 4}
  %y = Concat(%h, %c) {axis = 0}"""
PARTED = """  %zero = const() {value=0} : i64[]
  %one = const() {value=1} : i64[]
  %axis = const() {value=[0]} : i64[1]
  %h0 = Gather(%state, %zero)
  %c0 = Gather(%state, %one)
  %first = Unsqueeze(%h0, %axis)
  %second = Unsqueeze(%c0, %axis)"""
BRANCHED = PARTED.replace(
    "  %first = Unsqueeze(%h0, %axis)",
    """  %again = If(%flag)
    region then_branch() -> (f32[*]) {
      %t = Unsqueeze(%h0, %axis)
      return %t
    }
    region else_branch() -> (f32[*]) {
      %e = Identity(%h0)
      return %e
    }
  %first = Cast(%again) {to = 1}""",
)


@pytest.mark.parametrize(
    ("inputs", "body"),
    [
        ("%x: f32[16,D,4], %state: f32[2,B,4]", PARTED),
        ("%x: f32[*], %state: f32[2,B,4]", PARTED),
        ("%x: f32[*], %state: f32[2,B,4], %flag: bool[]", BRANCHED),
        ("%x: f32[S,B,4], %first: f32[1,B,4], %second: f32[1,B,4]", ""),
        ("%x: f32[S,D,4], %first: f32[1,B,4], %second: f32[1,B,4]", ""),
        ("%x: f32[S,1,4], %first: f32[1,1,4], %second: f32[1,1,4]", ""),
    ],
)
def test_the_state_of_a_recurrent_operator_has_a_batch_and_no_steps(inputs: str, body: str) -> None:
    model = read(graph(inputs, f"{body}\n{LSTM}", "f32[2,B,4]"))
    kinds = {name: kind for name, (kind, _) in InputMaker(model).classes.items()}
    assert {name: kind for name, kind in kinds.items() if name in "SBD"} == {
        name: "sequence" if name == "S" else "batch" for name in kinds if name in "SBD"
    }
    if "f32[*]" not in inputs:
        found = design_points(model, {})
        assert found is not None
        assert dict(found.plan) == {name: 4096 if name == "S" else 1 for name in found.plan}


def test_what_is_asked_for_stays():
    found = points(graph("%x: f32[N,3,H,W]", "  %y = Relu(%x)", "f32[N,3,H,W]"), {"H": 300})
    assert found.plan["H"] == found.check["H"] == 300
    assert "H" not in found.chosen
    assert points(graph("%x: f32[N]", "  %y = Relu(%x)", "f32[N]"), {"N": 5}) is None


def test_an_unknown_dimension_is_refused():
    with pytest.raises(InputError, match="'Q' is not a symbolic dimension"):
        points(graph("%x: f32[N]", "  %y = Relu(%x)", "f32[N]"), {"Q": 5})


def test_a_plan_keeps_to_the_memory_that_a_machine_has():
    body = """  %t = Transpose(%x) {perm = [0,2,1]}
  %s = MatMul(%x, %t)
  %p = Softmax(%s) {axis = -1}
  %y = MatMul(%p, %x)"""
    found = points(graph("%x: f32[64,S,16]", body, "f32[64,S,16]"))
    scores = 64 * found.plan["S"] ** 2 * 4
    assert found.check["S"] < found.plan["S"] < 4096
    assert 2 * scores <= PLANNED * 1.1


def test_a_point_to_run_at_is_bounded_by_work(monkeypatch: pytest.MonkeyPatch):
    body = """  %w = const() {value=@w128_4096} : f32[128,4096]
  %y = MatMul(%x, %w)"""
    model = read(graph("%x: f32[1,S,128]", body, "f32[1,S,4096]"))
    assert multiplications(InputMaker(model).typed, {"S": 100}) == 100 * 128 * 4096
    monkeypatch.setattr(design_points_module, "AFFORDABLE_WORK", 300 * 128 * 4096)
    found = design_points(model, {})
    assert found is not None
    assert found.plan["S"] == 4096
    assert 150 <= found.check["S"] <= 300


def test_a_decoder_is_timed_at_one_step_first(tmp_path: Path):
    path = tmp_path / "decoder.onnx"
    path.write_bytes(decoder().SerializeToString())
    data = Compilation.of(path, Options(verify="off", measure=True), tmp_path).data
    step, prompt = data.timed()
    assert step["input_ids"].shape == (1, 1)
    assert step["past_key_values.0.key"].shape[2] == prompt["input_ids"].shape[1] > 1
    assert prompt["past_key_values.0.key"].shape[2] == 0
    Evaluator(path).run(step)


def test_a_static_model_has_no_points():
    assert points(graph("%x: f32[2,3]", "  %y = Relu(%x)", "f32[2,3]")) is None


def test_a_compile_plans_verifies_and_says_the_sizes():
    """An MLP over rows, wide inside: large inputs run in tiles, small ones as they were."""
    rng = np.random.default_rng(0)
    body = """  %w = const() {value=@w128_4096} : f32[128,4096]
  %v = const() {value=@w4096_128} : f32[4096,128]
  %h = MatMul(%x, %w)
  %g = Tanh(%h)
  %y = MatMul(%g, %v)"""
    model = to_proto(read(graph("%x: f32[S,128]", body, "f32[S,128]")))
    result = compile(model, 3)
    assert result.report.sizes["planned"] == {"S": 1}  # a first axis is a batch
    rows = body.replace("%h = MatMul", "%h = MatMul").replace("S,128", "1,S,128")
    model = to_proto(read(graph("%x: f32[1,S,128]", rows, "f32[1,S,128]")))
    result = compile(model, 3)
    assert result.report.sizes == {
        "planned": {"S": 4096}, "run": {"S": 4096}, "chosen": ["S"], "configuration": "file order"
    }  # fmt: skip
    assert result.report.verification["passed"]
    assert result.report.candidate.planned_peak_bytes < 0.5 * result.report.control.planned_peak_bytes
    before, after = Evaluator(model), Evaluator(result.model)
    for extent in (0, 1, 7, 500, 4096, 5001):
        feed = {"x": rng.standard_normal((1, extent, 128)).astype(np.float32)}
        np.testing.assert_allclose(after.run(feed)["y"], before.run(feed)["y"], rtol=1e-4, atol=1e-5)


def test_a_vocabulary_bounds_words_and_not_how_many_there_are() -> None:
    """Words look up a weight as positions do; taken for positions, they would be no more than there are words."""
    text = graph(
        "%ids: i64[batch,sequence]",
        "  %w = const() {value=@w77_8} : f32[77,8]\n  %y = Gather(%w, %ids)",
        "f32[batch,sequence,8]",
    )
    found = points(text)
    assert found is not None
    assert found.plan["sequence"] > 77
    feed = InputMaker(read(text)).make({"batch": 1, "sequence": 60})
    assert len(set(np.diff(feed["ids"][0]).tolist())) > 1


def test_a_model_that_does_not_run_at_the_chosen_sizes_is_planned_at_the_largest_at_which_it_does() -> None:
    """Its places are those of numbers, so that no shape says that 77 bounds how many there are."""
    body = """  %v = const() {value=@w77_8} : f32[77,8]
  %second = const() {value=1} : i64[]
  %odd = IsNaN(%x)
  %even = Not(%odd)
  %places = NonZero(%even)
  %column = Gather(%places, %second)
  %at = Gather(%v, %column)
  %y = ReduceMean(%at) {keepdims=0}"""
    model = read(graph("%x: f32[1,S]", body, "f32[]"))
    wanted = design_points(model, {})
    assert wanted is not None
    assert wanted.check["S"] > 77
    result = compile(to_proto(model), 1, measure=False)
    assert 16 <= result.report.sizes["planned"]["S"] <= 77
    assert any(f"S={wanted.check['S']}" in w and "--validation" in w for w in result.report.warnings)


def test_sizes_at_which_a_run_takes_far_too_long_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trips of a loop grow with the fourth power of a size: no estimate of work says so."""
    monkeypatch.setattr("memoptc.samples._RUN_SECONDS", 0.2)
    body = """  %size = Shape(%x) {start = 1, end = 2} : i64[1]
  %square = Mul(%size, %size)
  %fourth = Mul(%square, %square)
  %trips = Squeeze(%fourth) : i64[]
  %start = ReduceMean(%x) {keepdims=0} : f32[]
  %odd = IsNaN(%start)
  %yes = Not(%odd) : bool[]
  %y = Loop(%trips, %yes, %start) : f32[]
    region body(%i: i64[], %more: bool[], %state: f32[]) -> (bool[], f32[]) {
      %go = Identity(%more)
      %next = Sin(%state)
      return %go, %next
    }"""
    model = read(graph("%x: f32[1,S]", body, "f32[]"))
    result = compile(to_proto(model), 1, measure=False)
    assert 16 <= result.report.sizes["planned"]["S"] < 4096
    assert any("in a few seconds, at S=" in w for w in result.report.warnings)


def test_a_smaller_point_halves_what_was_chosen_and_keeps_what_was_not() -> None:
    model = parse(graph("%x: f32[batch,steps,8]", "  %y = Relu(%x) : f32[batch,steps,8]", "f32[batch,steps,8]"))
    extents = {"batch": 6, "steps": 100}
    points = DesignPoints(extents, extents, {"steps": "sequence"})
    found = [point.check for point in smaller_points(model, {"batch": 6}, points)]
    assert found == [{"batch": 6, "steps": steps} for steps in (50, 25, 16)]


def test_sizes_that_only_a_run_decides_are_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials estimate a model at dozens of sizes; each inference of a model takes longer than a run of it."""
    asked = []

    def counting(graph: Graph, **options: bool) -> Inference:
        asked.append(graph)
        return infer_shapes(graph, **options)

    monkeypatch.setattr("memoptc.runtime.memory.extents.infer_shapes", counting)
    typed = parse(graph("%x: f32[n]", "  %y = NonZero(%x)", "i64[1,count]"))
    infer_shapes(typed)
    for n in range(1, 9):
        found = likely_extents(typed, {"n": n})
        assert found["n"] == n
        assert found.unknown
    assert len(asked) == 1


def test_sizes_that_follow_are_told_at_each() -> None:
    body = "  %one = const() {value=[1]} : i64[1]\n  %s = Add(%a, %b)\n  %y = Expand(%s, %one)"
    typed = parse(graph("%a: f32[n], %b: f32[m]", body, "f32[most]"))
    infer_shapes(typed)
    for n, m in ((1, 4), (4, 1), (5, 5)):
        assert set(likely_extents(typed, {"n": n, "m": m}).values()) == {n, m}
        assert not likely_extents(typed, {"n": n, "m": m}).unknown
