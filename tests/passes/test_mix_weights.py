"""mix-weights and `--target mixed`: what 4 bits are too coarse for gets more, as far as the outputs need it."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from accuracy_models import CNN, DATA, FLAGS, data_for, failing_model
from decoders import Style, decoder
from runtime_models import normal, parse

from memoptc.api import compile as compile_model
from memoptc.cli.main import main
from memoptc.ir.core import Graph
from memoptc.ir.diagnostics import GateError, InputError
from memoptc.ir.infer import infer_shapes
from memoptc.ir.onnx_io import read_onnx
from memoptc.levels import Accuracy, pipeline_text
from memoptc.pass_base import Context
from memoptc.passes.precision._quantize.accuracy_check import made_up
from memoptc.passes.precision._quantize.candidates import CandidateEvaluator
from memoptc.passes.precision.mix_weights import MixWeights
from memoptc.passes.precision.quantize import Quantize
from memoptc.runtime.data import Data
from memoptc.runtime.perplexity import Completed
from memoptc.runtime.quality import FAILED, Quality

OUTLIERS = (
    "g (float[N, 64] x) => (float[N, 64] y) "
    "{ a = MatMul(x, first) b = Tanh(a) c = MatMul(b, second) y = MatMul(c, third) }"
)


def weights(outliers: float = 3000.0) -> dict[str, np.ndarray[Any, Any]]:
    """Three matrices; every block of the second holds one number far beyond the others, which cancels out later."""
    found = {n: normal(64, 64, seed=i, scale=0.125) for i, n in enumerate(("first", "second", "third"))}
    found["second"][::8] *= outliers
    found["second"][:, 0] = 0.125
    found["third"][1:] *= 1e-3
    return found


def decided(found: Any) -> dict[str, str]:
    return {row["layer"]: row["decision"] for row in found.report.to_json()["precision"]["layers"]}


def test_int4_without_data_ends_with_a_model_that_passes() -> None:
    """Held against the original on the made-up inputs, for lack of others."""
    model = parse(OUTLIERS, **weights())
    found = compile_model(model, 2, "int4", dims={"N": 3})
    assert found.report.verification["passed"]
    assert any("made-up inputs" in d.why for d in found.report.decisions)
    reached = found.report.to_json()["precision"]["reached"]
    assert reached["sqnr_db"] >= 10.0
    plain = compile_model(model, 2, "int4", dims={"N": 3}, passes="quantize-weights", force=True)
    assert plain.report.verification["outputs"][0]["sqnr_db"] < 10.0


def test_made_up_inputs_are_as_large_as_runs_can_afford(tmp_path: Path) -> None:
    """Extents to plan with may be too large to run at: those to check with are taken, here where no plan fits them."""
    path = tmp_path / "model.onnx"
    onnx.save(parse(OUTLIERS, **weights()), path)
    context = Context(dims={"N": 1 << 20}, check={"N": 5})
    assert {feed["x"].shape for feed in made_up(read_onnx(path), path, context, 3)} == {(5, 64)}


@pytest.mark.parametrize(("kv", "finer"), [(1, 4), (8, 0)])
def test_keys_and_values_that_heads_share_take_8_bits(kv: int, finer: int) -> None:
    """Each of their numbers counts as often as query heads read it, and they are few."""
    graph = read_onnx(decoder(Style(heads=8, kv=kv, width=32)))
    infer_shapes(graph)
    rng = np.random.default_rng(0)
    feeds = [{"input_ids": rng.integers(0, 97, (1, 24))} for _ in range(2)]
    types = {v.name: v.type for v in graph.inputs}
    data = Data(feeds, types, (), Completed(graph))
    MixWeights(min_sqnr=None, smallest=1024).run(graph, Context(calibration=data))
    bits = Counter(op.attrs["bits"] for op in graph.walk("com.microsoft::MatMulNBits"))
    assert bits[8] == finer
    assert bits[4] > 8


def test_the_more_is_asked_the_more_weights_leave_4_bits() -> None:
    sizes, counts = [], []
    for least in (10.0, 40.0, 90.0):
        found = compile_model(CNN, 2, "int4", **DATA, min_sqnr=least)
        assert found.report.precision is not None
        assert found.report.precision["reached"]["sqnr_db"] >= least
        sizes.append(found.report.candidate.weight_bytes)
        counts.append(Counter(decided(found).values()))
    assert sizes == sorted(sizes)
    assert not counts[0]
    assert any(count["integer weights"] for count in counts)
    assert set(counts[-1]) == {"float"}


def test_int4_without_fallback_ends_with_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.onnx"
    flags = [str(CNN), f"--output={output}", "--target=int4", *FLAGS, "--no-measure", "-q", "--min-sqnr=45"]
    assert main([*flags, "--no-fallback"]) == 3
    said = capsys.readouterr().err
    assert "45 dB was asked for" in said
    assert "node_Conv" in said
    assert "--no-fallback" in said
    assert not output.exists()
    assert main(flags) == 0
    assert output.exists()


def test_labels_decide_for_int4_and_mixed() -> None:
    for target in ("int4", "mixed"):
        found = compile_model(CNN, 2, target, **DATA, max_accuracy_loss=0.0)
        reached = found.report.to_json()["precision"]["reached"]
        assert reached["metric"] >= reached["metric_before"]


def test_mixed_finds_the_layer_that_integers_break(tmp_path: Path) -> None:
    model, data = failing_model(tmp_path / "m.onnx"), data_for(tmp_path / "data")
    found = compile_model(model, 2, "mixed", calibration=data, min_sqnr=28.0)
    assert found.report.verification["outputs"][0]["sqnr_db"] >= 27.0
    states = decided(found)
    assert states["product_3"] != "integer"
    assert found.report.options["passes"].count("mixed=true") == 1
    best = compile_model(model, 2, "mixed", calibration=data, min_sqnr=120.0)
    assert set(decided(best).values()) == {"float"}
    with pytest.raises(GateError, match="120 dB was asked for"):
        compile_model(model, 2, "mixed", calibration=data, min_sqnr=120.0, fallback=False)


def test_mixed_puts_large_tables_in_4_bits() -> None:
    """A table has bytes and no work; a product on all rows has work: each gets what is cheapest for it."""
    text = (
        "g (int64[N] i, float[N, 64] z) => (float[N, 64] y) "
        "{ e = Gather <axis=0> (table, i) h = MatMul(z, w) y = Add(e, h) }"
    )
    model = parse(text, table=normal(4096, 64, seed=1), w=normal(64, 64, seed=2, scale=0.125))
    rng = np.random.default_rng(3)
    feeds = [{"i": rng.integers(0, 4096, 32), "z": rng.normal(size=(32, 64)).astype(np.float32)} for _ in range(12)]
    found = compile_model(model, 2, "mixed", calibration=feeds, min_sqnr=18.0)
    assert sorted(decided(found).values()) == ["4-bit weights", "integer"]
    assert found.report.candidate.weight_bytes < 0.18 * found.report.control.weight_bytes
    finer = compile_model(model, 2, "mixed", calibration=feeds, min_sqnr=35.0)
    assert "4-bit weights" not in decided(finer).values()
    assert finer.report.verification["outputs"][0]["sqnr_db"] >= 34.0
    first, second = (compile_model(model, 2, "mixed", calibration=feeds).model.SerializeToString() for _ in range(2))
    assert first == second


def test_mixed_reaches_weights_inside_subgraphs() -> None:
    text = (
        "g (bool c, float[4, 64] x) => (float[4, 64] y) { h = MatMul(x, outer) y = If (c) <"
        "then_branch = t () => (float[4, 64] a) { a = MatMul(h, w) }, "
        "else_branch = e () => (float[4, 64] b) { b = Neg(h) }> }"
    )
    model = parse(text, outer=normal(64, 64, seed=1, scale=0.125), w=normal(64, 64, seed=2, scale=0.125))
    rng = np.random.default_rng(3)
    feeds = [{"c": np.array(i % 2 == 0), "x": rng.normal(size=(4, 64)).astype(np.float32)} for i in range(8)]
    found = compile_model(model, 2, "mixed", calibration=feeds, min_sqnr=15.0)
    assert len(decided(found)) == 2
    assert found.report.candidate.weight_bytes < 0.3 * found.report.control.weight_bytes
    assert found.report.verification["passed"]


def test_mixed_without_data_says_what_it_goes_by() -> None:
    found = compile_model(CNN, 2, "mixed")
    assert any("if all that coding changes in weights reached the outputs" in d.why for d in found.report.decisions)
    states = Counter(decided(found).values())
    assert states["integer weights"]
    assert found.report.candidate.weight_bytes < 0.27 * found.report.control.weight_bytes
    with pytest.raises(InputError, match="with --calibration only"):
        compile_model(CNN, 2, "mixed", min_sqnr=20.0)
    with pytest.raises(InputError, match="say nothing of a metric"):
        MixWeights(by="weights", max_loss=0.1)


def test_study_shows_every_state(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for target, least in (("mixed", 30), ("int4", 40)):
        asked = [f"--target={target}", f"--min-sqnr={least}"]
        assert main(["study", "--layers", str(CNN), *FLAGS, *asked, "--json", "-q"]) == 0
        found = json.loads(capsys.readouterr().out)
        rows = [row for row in found["layers"] if "blocks_alone_db" in row]
        assert rows
        assert all(row["blocks_alone_db"] < row["weights_alone_db"] for row in rows)
        assert found["reached"]["sqnr_db"] >= least
    assert main(["study", "--layers", str(CNN), *FLAGS, "--target=mixed", "-q"]) == 0
    assert "4-bit weights dB" in capsys.readouterr().out


def test_pipelines_name_what_is_asked() -> None:
    asked = Accuracy(min_sqnr=30.0, fallback=False)
    assert "mix-weights{min_sqnr=30.0,fallback=false,tables_sqnr=none}" in pipeline_text(
        2, "int4", calibrated=True, accuracy=asked
    )
    assert "quantize-search{min_sqnr=30.0,fallback=false,mixed=true}" in pipeline_text(
        2, "mixed", calibrated=True, accuracy=asked
    )
    assert 'mix-weights{min_sqnr=20.0,by="weights"}' in pipeline_text(2, "mixed")


def test_a_size_decides_by_2_4_and_8_bits() -> None:
    """Most of what the second weight holds cancels out later: it is not the one that gets the bytes."""
    rng = np.random.default_rng(9)
    arrays = {name: rng.normal(size=(128, 128)).astype(np.float32) / 12 for name in ("first", "second", "third")}
    arrays["second"][:, 1:] *= 1e-2  # behind the product, one column counts
    arrays["third"][0] = 0.0
    model, states, errors = parse(OUTLIERS.replace("64", "128"), **arrays), {}, []
    data = [{"x": rng.normal(size=(4, 128)).astype(np.float32)} for _ in range(6)]
    for size in (0.05, 0.12, 0.2):
        steps = f"mix-weights{{size={size},block=64}},drop-dead,plan-memory,lower"
        found = compile_model(
            model, 2, "int4", passes=steps, calibration=data, validation=data, measure=False, force=True
        )
        states[size] = decided(found)
        errors.append(found.report.verification["outputs"][0]["sqnr_db"])
        assert any("need at least 0.071 of their bytes" in w for w in found.report.warnings) == (size < 0.1)
        assert not any("in 4 bits" in d.why for d in found.report.decisions if d.step == "mixed precision")
        if size > 0.1:  # 2 bits with scales take 0.071 of the bytes in blocks of 128, the least there is
            assert found.report.candidate.weight_bytes <= size * 3 * 4 * 128 * 128 + 1024
    assert set(states[0.05].values()) == {"2-bit weights"}
    assert "2-bit weights" in states[0.12].values()
    assert "2-bit weights" not in states[0.2].values()
    assert errors[0] < errors[1] < errors[2]
    with pytest.raises(InputError, match="size=0"):
        MixWeights(size=0.0)


def test_blocks_grow_before_weights_get_fewer_bits() -> None:
    """All take 0.16 of the bytes in blocks of 32, 0.143 of 64; in larger ones a quarter of a row is filler."""
    arrays = {name: normal(192, 192, seed=i, scale=0.1) for i, name in enumerate(("first", "second", "third"))}
    for size, block, narrow in ((0.17, 32, 0), (0.15, 64, 0), (0.12, 64, 2)):
        context, graph = Context(dims={"N": 3}), read_onnx(parse(OUTLIERS.replace("64", "192"), **arrays))
        infer_shapes(graph)
        MixWeights(size=size).run(graph, context)
        blocks = {op.attrs["block_size"] for op in graph.walk("com.microsoft::MatMulNBits")}
        assert (blocks, context.stats["weights in 2 bits"]) == ({block}, narrow)
        held = sum(v.tensor.nbytes for op in graph.walk("com.microsoft::MatMulNBits") for v in op.operands[1:4])
        assert held <= size * 3 * 4 * 192 * 192


def test_what_a_failed_proof_lacks_is_asked_for_on_top() -> None:
    assert MixWeights().stricter(0.5) == MixWeights(min_sqnr=11.5)
    assert MixWeights().stricter(30.0) == MixWeights().stricter() == MixWeights(min_sqnr=20.0)
    assert MixWeights(size=0.2).stricter(0.5) is None
    assert MixWeights(min_sqnr=None).stricter(0.5) is None


@pytest.mark.parametrize("failing", [1, 3])
def test_what_onnxruntime_does_not_run_in_2_bits_gets_more(failing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    quick, looks = CandidateEvaluator.quick, 0

    def failed_first(self: CandidateEvaluator, graph: Graph, most: int | None = None) -> Quality:
        nonlocal looks
        looks += 1
        failed = 1 < looks <= 1 + failing  # the first is of all in 4 bits
        return Quality({FAILED: math.inf}, 0, -math.inf) if failed else quick(self, graph, most)

    monkeypatch.setattr(CandidateEvaluator, "quick", failed_first)
    arrays = {name: normal(64, 64, seed=i, scale=0.125) for i, name in enumerate(("first", "second", "third"))}
    context = Context(dims={"N": 3})
    graph = read_onnx(parse(OUTLIERS, **arrays))
    infer_shapes(graph)
    MixWeights(size=0.1).run(graph, context)
    assert context.stats["weights in 4 bits"] == failing
    assert context.stats["weights in 2 bits"] == 3 - failing
    assert any("need at least" in w for w in context.warnings)


def test_weights_that_2_bits_hold_exactly_take_2_bits() -> None:
    arrays = {
        n: np.sign(normal(64, 64, seed=i)).astype(np.float32) / 8 for i, n in enumerate(("first", "second", "third"))
    }
    context = Context(dims={"N": 3})
    graph = read_onnx(parse(OUTLIERS, **arrays))
    infer_shapes(graph)
    MixWeights(size=0.1).run(graph, context)
    assert context.stats["weights in 2 bits"] == 3


def test_layers_are_not_searched_where_nothing_can_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without inputs on which the model runs, or where each look takes too long."""

    def none_found(*_: object, **__: object) -> None:
        raise InputError("No inputs were found on which the model runs.")

    for name, patched, text in (
        ("effort.Effort.looks", lambda *_: 0, "runs too long"),
        ("accuracy_check.find_feeds", none_found, "No inputs were found"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"memoptc.passes.precision._quantize.{name}", patched)
            context = Context(dims={"N": 3})
            graph = read_onnx(parse(OUTLIERS, **weights()))
            infer_shapes(graph)
            Quantize(form="dynamic", min_sqnr=20.0).run(graph, context)
            assert any(text in w and "is not measured" in w for w in context.warnings)
            assert any(op.op_type == "DynamicQuantizeMatMul" or "Integer" in op.op_type for op in graph.ops)


def test_the_layer_that_integers_break_stays_in_float_without_data() -> None:
    """One column of what the fourth product reads is far beyond the others, and counts as little as they do."""
    arrays = {f"w{i}": normal(64, 64, seed=i, scale=0.125) for i in range(6)}
    arrays["w2"][:, 0] *= 3000
    arrays["w3"][0] /= 3000
    chain = " ".join(f"x{i + 1} = MatMul(x{i}, w{i})" for i in range(6))
    graph = read_onnx(parse(f"g (float[N, 64] x0) => (float[N, 64] x6) {{ {chain} }}", **arrays))
    infer_shapes(graph)
    context = Context(dims={"N": 3})
    Quantize(form="dynamic", min_sqnr=20.0).run(graph, context)
    assert [op.result.name for op in graph.ops if op.is_a("MatMul")] == ["x4"]
    assert any("1 of 6 layers in float: MatMul_x4 (" in w for w in context.warnings)


@pytest.mark.parametrize(("effort", "most"), [(1e-9, 20), (1e9, 200)])
def test_candidates_of_a_search_are_bounded(effort: float, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty products, of which nearly all need more than 4 bits: each choice is a run of the whole model."""
    names = [f"w{i}" for i in range(20)]
    chain = " ".join(f"h{i + 1} = MatMul(h{i}, {name})" for i, name in enumerate(names))
    model = parse(
        f"g (float[N, 64] h0) => (float[N, 64] h20) {{ {chain} }}",
        **{name: normal(64, 64, seed=i, scale=0.125) for i, name in enumerate(names)},
    )
    looks: list[Graph] = []
    held = CandidateEvaluator._with
    monkeypatch.setattr(
        CandidateEvaluator, "_with", lambda self, graph, *rest: (looks.append(graph), held(self, graph, *rest))[1]
    )
    graph = read_onnx(model)
    infer_shapes(graph)
    MixWeights(min_sqnr=30.0, effort=effort).run(graph, Context(dims={"N": 4}))
    assert (len(looks) <= 20) == (most == 20), len(looks)
