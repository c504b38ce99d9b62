"""Equal models pass, wrong ones fail, and coarser ones are judged as such."""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from decoders import Style, decoder
from runtime_models import convolutions, mlp, normal, parse, weight, with_weight

from memoptc.ir.diagnostics import InputError
from memoptc.report.model import Report
from memoptc.report.verdict import proof
from memoptc.runtime import check, isolated
from memoptc.runtime.check import EFFORTS
from memoptc.runtime.compare import Totals, difference
from memoptc.runtime.judge import GATES, Evidence, Judge, judge_other_way
from memoptc.runtime.npz import load_feed
from memoptc.runtime.spool import trim
from memoptc.runtime.verification import Verification
from memoptc.runtime.verify import verify

BITS = Judge(bit_exact=True)


def reordered(model: onnx.ModelProto, name: str, seed: int = 0) -> onnx.ModelProto:
    """Permute the hidden units of `mlp`: the same function, its sums in another order."""
    order = np.random.default_rng(seed).permutation(32)
    first = with_weight(model, "w1", weight(model, "w1")[:, order])
    return with_weight(first, "w2", weight(model, "w2")[order])


def test_a_model_equals_itself_bit_for_bit() -> None:
    for model in (mlp(), convolutions()):
        found = verify(model, model, BITS)
        assert found.passed
        assert found.samples == 3
        assert set(found.judged_by.values()) == {"bits"}
        assert found.outputs[0]["exact"]
        assert found.inputs == "random"
        assert found.max_error == 0.0


def test_another_order_of_summation_is_noise_but_not_bit_exact() -> None:
    model = mlp()
    for seed in range(20):
        other = reordered(model, "w1", seed)
        found = verify(model, other)
        assert found.passed, found.failures
        assert found.judged_by["y"] in ("float64 noise", "bits")
    exact = verify(model, other, BITS)
    assert not exact.passed
    assert "elements differ" in exact.failures[0]


@pytest.mark.parametrize("name", ["w1", "b1", "w2", "w3"])
@pytest.mark.parametrize("factor", [1.01, 1.001])
def test_a_slightly_wrong_weight_is_found(name: str, factor: float) -> None:
    model = convolutions()
    array = weight(model, name)
    array.reshape(-1)[np.abs(array).argmax()] *= factor
    found = verify(model, with_weight(model, name, array))
    assert not found.passed
    assert "float64" in found.failures[0]


def test_a_swapped_axis_is_found() -> None:
    model = parse("g (float[N, 4, 4] x) => (float[N, 4, 4] y) { a = Transpose <perm = [0, 2, 1]> (x) y = Exp(a) }")
    other = parse("g (float[N, 4, 4] x) => (float[N, 4, 4] y) { a = Identity(x) y = Exp(a) }")
    assert not verify(model, other).passed


def test_wrong_shapes_types_names_and_models_fail_with_a_reason() -> None:
    model = mlp()
    renamed = parse("g (float[N, 16] z) => (float[N, 4] y) { y = MatMul(z, w) }", w=normal(16, 4))
    assert "inputs are ['z'] instead of ['x']" in verify(model, renamed).failures[0]
    other = parse("g (float[N, 16] x) => (double[N, 4] y) { a = MatMul(x, w) y = Cast <to = 11> (a) }", w=normal(16, 4))
    assert "among the candidate's outputs" in verify(model, other).failures[0]
    broken = parse("g (float[N, 16] x) => (float[N, 4] y) { y = Nonsense(x) }")
    assert "Nonsense" in verify(model, broken).failures[0]
    static = parse("g (float[N, 16] x) => (float[N, 4] y) { a = Reshape(x, s) y = MatMul(a, w) }",
                   s=np.array([2, 16], np.int64), w=normal(16, 4))  # fmt: skip
    assert not verify(model, static).passed


def test_nan_patterns_must_match() -> None:
    model = parse("g (float[N] x) => (float[N] y) { z = Neg(x) y = Log(z) }")
    other = parse("g (float[N] x) => (float[N] y) { z = Abs(x) y = Log(z) }")
    feeds = [{"x": np.array([-1.0, 2.0], np.float32)}]
    found = verify(model, other, data=feeds)
    assert not found.passed
    assert "nan" in found.failures[0]
    assert verify(model, model, BITS, data=feeds).passed


def test_integers_are_equal_or_fail_and_ties_follow_the_noise() -> None:
    model = parse("g (float[N, 8] x) => (int64[N, 1] y) { y = ArgMax <axis = 1> (x) }")
    assert verify(model, model).passed
    other = parse("g (float[N, 8] x) => (int64[N, 1] y) { z = Neg(x) y = ArgMax <axis = 1> (z) }")
    assert not verify(model, other).passed


def test_random_models_are_recognised() -> None:
    model = parse("g (float[N] x) => (float[N] y, float[N] z) { r = RandomNormalLike(x) y = Add(x, r) z = Neg(x) }")
    found = verify(model, model, BITS)
    assert found.passed
    assert found.nondeterministic
    assert "'y' compared by shape and type only" in found.notes[-1]
    assert found.judged_by["z"] == "bits"
    wrong = parse("g (float[N] x) => (float[N] y, float[N] z) { r = RandomNormalLike(x) y = Add(x, r) z = Abs(x) }")
    assert not verify(model, wrong).passed
    for other in (model, wrong):  # a name, though it reads like an element of the other output
        for made in (*other.graph.output, *other.graph.node):
            if isinstance(made, onnx.NodeProto):
                made.output[:] = ["y[0]" if name == "z" else name for name in made.output]
            elif made.name == "z":
                made.name = "y[0]"
    assert verify(model, model, BITS).judged_by["y[0]"] == "bits"
    assert not verify(model, wrong).passed


def test_sequences_are_compared_inside() -> None:
    text = (
        "g (float[N, 4] x) => (seq(float[N, M]) y) "
        "{{ z = {}(x) a, b = Split <axis = 1> (z) y = SequenceConstruct(a, b) }}"
    )
    model, other = parse(text.format("Exp")), parse(text.format("Sin"))
    good = verify(model, model, BITS)
    assert good.passed
    assert [o["name"] for o in good.outputs] == ["y[]", "y[0]", "y[1]"]
    assert not verify(model, other).passed


def rounded(model: onnx.ModelProto, bits: int) -> onnx.ModelProto:
    """Round every weight as quantization to `bits` would."""
    for name in ("w1", "w2"):
        array = weight(model, name)
        step = np.abs(array).max() / (2 ** (bits - 1) - 1)
        model = with_weight(model, name, (np.round(array / step) * step).astype(np.float32))
    return model


def test_coarser_targets_have_gates() -> None:
    model = mlp()
    assert not verify(model, rounded(model, 8)).passed
    found = verify(model, rounded(model, 8), Judge(target="int8"))
    assert found.passed
    assert found.judged_by["y"] == "accuracy gate"
    assert found.outputs[0]["sqnr_db"] > GATES["int8"].sqnr_db
    assert not verify(model, rounded(model, 2), Judge(target="int8")).passed
    assert verify(model, rounded(model, 8), Judge(max_error=0.05)).passed
    assert not verify(model, rounded(model, 8), Judge(max_error=1e-5)).passed
    with pytest.raises(InputError, match="is not a target"):
        Judge(target="int7")


def test_labels_give_accuracy(tmp_path: Path) -> None:
    model = mlp()
    x = normal(40, 1, 16)
    from memoptc.runtime.evaluate import Evaluator

    labels = np.array([int(Evaluator(model).run({"x": row})["y"].argmax()) for row in x])
    np.savez(tmp_path / "d.npz", x=x, labels=labels)
    found = verify(model, model, data=tmp_path / "d.npz", mode="full")
    assert found.accuracy is not None
    bound = found.accuracy.pop("loss_bound")
    assert found.accuracy == {"control": 1.0, "candidate": 1.0, "samples": 40, "lost": 0, "won": 0}
    assert (1 - bound - 1e-3) ** 40 < 0.1 < (1 - bound + 1e-3) ** 40  # what none lost of 40 shows
    assert found.samples == 40
    flipped = with_weight(model, "w2", weight(model, "w2")[:, ::-1])
    worse = verify(model, flipped, Judge(target="int8"), data=tmp_path / "d.npz")
    assert not worse.passed
    assert worse.samples == 16
    assert any("accuracy fell from 1.0000" in failure for failure in worse.failures)


def test_the_worst_sample_is_kept(tmp_path: Path) -> None:
    model = mlp()
    array = weight(model, "w2")
    array[0, 0] += 0.5
    feeds = [{"x": normal(1, 16, seed=i, scale=i + 1)} for i in range(4)]
    keep = tmp_path / "worst" / "sample.npz"
    found = verify(model, with_weight(model, "w2", array), data=feeds, keep=keep)
    assert found.worst_sample == str(keep)
    kept = load_feed(keep)
    assert set(kept) == {"input/x", "original/y", "candidate/y"}
    gap = np.abs(kept["original/y"] - kept["candidate/y"]).max()
    assert any(np.array_equal(kept["input/x"], feed["x"]) for feed in feeds)
    assert 0 < gap <= found.max_error * (1 + 1e-6)  # type: ignore[operator]
    assert verify(model, model, data=feeds, keep=tmp_path / "none.npz").worst_sample is None


def test_wrong_data_is_the_users_fault() -> None:
    with pytest.raises(InputError, match="'x' has shape"):
        verify(mlp(), mlp(), data=[{"x": normal(1, 15)}])


def test_in_a_process_of_its_own(tmp_path: Path) -> None:
    model = mlp()
    onnx.save(model, tmp_path / "m.onnx")

    def feeds() -> Iterator[dict[str, Any]]:
        yield from ({"x": normal(1, 16, seed=i)} for i in range(100))

    keep = tmp_path / "worst.npz"
    good = verify(tmp_path / "m.onnx", model, BITS, data=feeds(), isolate=True, keep=keep, inputs="calibration")
    assert good.passed
    assert (good.samples, good.inputs) == (16, "calibration")
    bad = verify(model, with_weight(model, "w2", -weight(model, "w2")), isolate=True, keep=keep, mode="full")
    assert not bad.passed
    assert bad.worst_sample == str(keep)
    assert keep.exists()
    with pytest.raises(InputError, match="is missing"):
        verify(model, model, data=[{}], isolate=True)


def test_off_says_so_and_results_survive_json() -> None:
    off = verify(mlp(), mlp(), mode="off")
    assert off.passed
    assert off.samples == 0
    assert "switched off" in off.notes[0]
    found = verify(mlp(), reordered(mlp(), "w1"))
    assert Verification.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_without_a_twin_tolerances_judge() -> None:
    text = """g (float[1, 3, 8, 8] x) => (float[1, 4, 16, 16] y)
              { a = Resize <mode = "cubic"> (x, , s) y = Conv <kernel_shape = [1, 1]> (a, w) }"""
    scales = np.array([1, 1, 2, 2], np.float32)
    model = parse(text, s=scales, w=normal(4, 3, 1, 1))
    nearly = parse(text, s=scales, w=normal(4, 3, 1, 1) * np.float32(1 + 1e-6))
    wrong = parse(text, s=scales, w=normal(4, 3, 1, 1) * np.float32(1 + 1e-3))
    found = verify(model, nearly)
    assert found.passed, found.failures
    assert found.judged_by["y"] == "tolerance"
    assert any("no float64 reference: Resize" in note for note in found.notes)
    assert not verify(model, wrong).passed


def test_a_twin_that_would_take_too_much_memory_or_time_leaves_it_to_tolerances(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, other = mlp(), reordered(mlp(), "w1")
    usual = verify(model, other)
    assert usual.judged_by["y"] == "float64 noise"
    with monkeypatch.context() as patch:
        patch.setattr(check, "TWIN_BYTES", -1)
        found = verify(model, other)
        assert found.judged_by["y"] == "tolerance"
        assert sum("no float64 run, which would take" in note for note in found.notes) == found.samples
    monkeypatch.setattr(check, "TWIN_COST", 1e9)
    found = verify(model, other)
    assert found.judged_by["y"] == "tolerance"
    assert sum("would take too long" in note for note in found.notes) == 1


# -- the measures themselves --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("candidate", "itself", "twin", "passes"),
    [
        (2e-3, 5e-3, False, True),  # nearer to the original than the original's own two runs are to each other
        (5e-3, 2e-3, False, False),  # farther
        (2e-3, 0.0, False, False),
        (2e-3, math.nan, False, False),  # no distance to go by
        (2e-3, 5e-3, True, False),  # a float64 run says how large the noise is
        (math.nan, 5e-3, False, False),
    ],
)
def test_without_a_twin_the_originals_two_runs_tell_its_noise(
    candidate: float, itself: float, twin: bool, passes: bool
) -> None:
    exact = np.linspace(-1, 1, 64, dtype=np.float32)

    def moved(by: float) -> np.ndarray:
        return exact + np.float32(by) * (np.arange(64) == 5).astype(np.float32)

    pair = difference(exact, moved(candidate))
    evidence, main = Evidence(Totals("y"), "float32", [pair]), Evidence(Totals("y"), "float32")
    evidence.totals.add(pair)
    main.own.append(difference(exact, moved(itself)))
    if twin:
        main.noise.append(difference(exact, moved(1e-7), bits=False))
        main.errors.append(difference(exact, moved(candidate), bits=False))
    assert (judge_other_way(evidence, main, Judge()) == "") is passes
    assert judge_other_way(evidence, main, Judge(max_error=1e-3)) != ""


def test_garbage_is_not_collected_again_and_again() -> None:
    """Collecting takes long in a process of many objects: comparing small models there does not do it each turn."""
    collections = []

    def count(phase: str, info: dict[str, int]) -> None:
        if phase == "start" and info["generation"] == 2:
            collections.append(info)

    gc.callbacks.append(count)
    try:
        for _ in range(3):
            trim()
    finally:
        gc.callbacks.remove(count)
    assert len(collections) <= 1


def test_what_is_wrong_only_when_decoding_shows() -> None:
    """Scores are wrong behind a past of 12 steps, which no made-up input has: tokens one by one come across it."""
    model = decoder(Style(tied=False))
    assert all(
        o["exact"]
        for judge in (Judge(), BITS)
        for o in verify(model, model, judge).outputs
        if "one by one" in o["name"]
    )
    wrong = onnx.ModelProto()
    wrong.CopyFrom(model)
    last = wrong.graph.node[-1]
    assert list(last.output) == ["logits"]
    last.output[0] = "scores"
    make = onnx.helper.make_node
    for name, number in (("axis", 2), ("twelve", 12)):
        wrong.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(number), name))
    wrong.graph.node.extend(
        [
            make("Shape", ["past_key_values.0.key"], ["extents"]),
            make("Gather", ["extents", "axis"], ["past"]),
            make("Equal", ["past", "twelve"], ["bad"]),
            make("Cast", ["bad"], ["more"], to=onnx.TensorProto.FLOAT),
            make("Add", ["scores", "more"], ["logits"]),
        ]
    )
    for mode in ("fast", "full"):
        found = verify(model, wrong, mode=mode)  # type: ignore[arg-type]
        assert not found.passed
        assert ["one by one" in failure for failure in found.failures] == [True]
    assert verify(model, wrong, BITS).failures[0].startswith("logits, 10 tokens and 6 more one by one")
    assert not any("one by one" in o["name"] for o in verify(mlp(), mlp()).outputs)


@pytest.mark.parametrize("every", [False, True])
def test_all_that_is_asked_reaches_the_process_that_compares(every: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def ask(module: str, request: dict[str, Any], folder: Path) -> dict[str, Any]:
        seen.update(json.loads(json.dumps(request)), files=len(list(Path(request["data"]).iterdir())))
        return Verification(True, "fast").to_json()

    monkeypatch.setattr(isolated, "ask", ask)
    data = [{"x": np.ones((1, 16), np.float32)}] * (EFFORTS["fast"].samples + 1)
    extents: dict[str, Any] = {"dims": {"N": 5}, "point": {"N": 7}, "seed": 3, "threads": 2, "every": every}
    assert verify(mlp(), mlp(), Judge(max_error=0.5), data=data, isolate=True, **extents).passed
    assert {name: seen[name] for name in extents} == extents
    assert seen["judge"]["max_error"] == 0.5
    assert seen["files"] == EFFORTS["fast"].samples + every


def test_labels_that_are_numbers_reach_the_process_that_compares() -> None:
    model = mlp()
    data = [
        {"x": np.ones((1, 16), np.float32), "labels": np.int64(0)},
        {"x": np.ones((1, 16), np.float32), "labels": 1},
    ]
    found = verify(model, model, data=data, isolate=True)
    assert found.passed
    assert found.samples == 2


def test_equal_bits_are_told_of_the_configuration_that_has_them() -> None:
    """One of two models is fused by onnxruntime's optimizer, the other is not: the same nodes, other last bits."""
    fused = "one = Constant <value = float {1}> ()"
    apart = "u = Constant <value = float {1}> () e = Shape (x) one = Expand (u, e)"
    texts = [
        f"""<ir_version: 8, opset_import: ["" : 17]> g (float[N, 64] x) => (float[N, 64] y) {{
        {ones} r = Constant <value = float {{1.4142135}}> () h = Constant <value = float {{0.5}}> ()
        a = Div (x, r) b = Erf (a) c = Add (b, one) d = Mul (x, c) y = Mul (d, h) }}"""
        for ones in (fused, apart)
    ]
    first, second = map(onnx.parser.parse_model, texts)
    same, other = verify(first, first, BITS), verify(first, second, BITS)
    assert same.other_way == {"optimizer": "on", "max_abs": 0.0}
    assert other.passed
    assert other.other_way is not None
    assert 0 < other.other_way["max_abs"] < 1e-5
    for found, words in ((same, "is the same."), (other, "is the same with onnxruntime's optimizer off, within ")):
        report = Report({"path": "m"}, verification={**found.to_json(), "bit_exact": True})
        assert f"every output bit {words}" in proof(report)
