"""Perplexity of ids alone: what a plain loop over log-softmax gives, whichever steps the model scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
from decoders import Style, decoder
from runtime_models import mlp

import memoptc
from memoptc.cli.main import main
from memoptc.ir.onnx_io import read_onnx
from memoptc.runtime.accuracy import AccuracyTarget
from memoptc.runtime.data import Data
from memoptc.runtime.metric import Outcome, load_metric
from memoptc.runtime.options import RunOptions
from memoptc.runtime.perplexity import Completed, Perplexity, measure_perplexity, perplexity
from memoptc.runtime.verify import verify

STYLE = Style(layers=1, tied=False)
IDS = np.random.default_rng(0).integers(0, STYLE.vocabulary, (3, 12))


def plainly(model: onnx.ModelProto) -> float:
    """With nothing of ours: a run of each row without a past, and its log-softmax."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    empty = {f"past_key_values.0.{part}": np.zeros((1, 2, 0, 16), np.float32) for part in ("key", "value")}
    total = 0.0
    for row in IDS:
        ids, steps = row[None], np.arange(len(row))[None]
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": steps, **empty}
        logits = session.run(["logits"], feed)[0][0].astype(np.float64)
        for scores, token in zip(logits[:-1], row[1:], strict=True):
            total += scores[token] - np.log(np.exp(scores).sum())
    return float(np.exp(-total / (IDS.size - len(IDS))))


def test_of_ids_alone() -> None:
    model = decoder(STYLE)
    wanted = plainly(model)
    graph = read_onnx(model)
    data = Data([{"input_ids": row[None]} for row in IDS], {v.name: v.type for v in graph.inputs}, (), Completed(graph))
    metric = load_metric("perplexity", graph)
    assert isinstance(metric, Perplexity)
    mean, tokens = measure_perplexity(model, metric.facts, data, RunOptions())
    assert tokens == IDS.size - len(IDS)
    assert perplexity(mean) == pytest.approx(wanted, rel=1e-5)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    outcomes = (Outcome(s.feed, {"logits": session.run(["logits"], s.feed)[0]}, None) for s in data)
    assert metric(outcomes) == pytest.approx(mean, rel=1e-5)
    with pytest.raises(memoptc.InputError, match="scores of all steps"):
        metric([Outcome(next(iter(data)).feed, {"logits": np.zeros((1, 1, STYLE.vocabulary))}, None)])
    with pytest.raises(memoptc.InputError, match="no decoder"):
        load_metric("perplexity", read_onnx(mlp()))


@pytest.mark.parametrize("last", [False, True])
def test_in_the_report(last: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data, out = tmp_path / "m.onnx", tmp_path / "ids.npz", tmp_path / "o.onnx"
    onnx.save(decoder(STYLE), model)
    np.savez(data, input_ids=IDS)
    options = ["-O1", "--no-measure", "--validation", str(data), "--metric", "perplexity", *["--last-logits"] * last]
    assert main([str(model), "-o", str(out), *options]) == 0
    assert f"perplexity, {IDS.size - len(IDS)} tokens" in capsys.readouterr().out
    if not last:
        found = verify(model, out, data=data, metric="perplexity")
        assert found.accuracy is not None
        assert found.accuracy["candidate"] == pytest.approx(plainly(decoder(STYLE)), rel=1e-5)
        assert main(["verify", str(model), str(out), "--validation", str(data), "--metric", "perplexity"]) == 0
        assert "1.000x" in capsys.readouterr().out


def test_one_that_rises_too_far_fails() -> None:
    model = decoder(STYLE)
    worse = onnx.ModelProto()
    worse.CopyFrom(model)
    head = next(n for n in worse.graph.node if "logits" in n.output)
    weight = next(t for t in worse.graph.initializer if t.name == head.input[1])
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * np.float32(1.3), weight.name))
    feeds = [{"input_ids": IDS[:1]}]
    judge = memoptc.runtime.judge.Judge(max_error=10.0)
    assert verify(model, worse, judge, data=feeds, metric="perplexity").passed
    found = verify(model, worse, judge, data=feeds, metric="perplexity", max_loss=0.01)
    assert ["perplexity rose" in failure for failure in found.failures] == [True]
    by_text = memoptc.runtime.judge.Judge(target="int4", accuracy=AccuracyTarget())
    found = verify(model, worse, by_text, data=feeds, metric="perplexity", max_loss=5.0)
    assert (found.passed, found.target) == (True, "perplexity at most 148.413 times the original's")
    both = memoptc.runtime.judge.Judge(target="int4", accuracy=AccuracyTarget(1.0))
    found = verify(model, worse, both, data=feeds, metric="perplexity", max_loss=5.0)
    assert found.target == "at least 1 dB, perplexity at most 148.413 times the original's"


def test_a_cache_that_is_wrong_fails_where_perplexity_decides() -> None:
    """Texts are scored at once, so that nothing but steps reads a cache."""
    model, wrong = decoder(STYLE), decoder(STYLE)
    name = "present.0.value"
    maker = next(n for n in wrong.graph.node if name in n.output)
    maker.output[list(maker.output).index(name)] = "right"
    for reader in wrong.graph.node:
        reader.input[:] = ["right" if read == name else read for read in reader.input]
    wrong.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(-30.0), "factor"))
    wrong.graph.node.append(onnx.helper.make_node("Mul", ["right", "factor"], [name]))
    judge = memoptc.runtime.judge.Judge(target="int4", accuracy=AccuracyTarget())
    found = verify(model, wrong, judge, data=[{"input_ids": IDS[:1]}], metric="perplexity", max_loss=0.1)
    assert found.accuracy is not None
    assert found.accuracy["candidate"] == found.accuracy["control"]
    assert ["over the cache instead of" in failure for failure in found.failures] == [True]


def _language_model(*, looks_ahead: bool) -> onnx.ModelProto:
    """Token numbers and a mask in, a running (or a whole) mean of embeddings, scores of the vocabulary out."""
    step = "s = CumSum (p, axis)" if not looks_ahead else "r = ReduceMean <keepdims=1> (p, axes) s = Add (p, r)"
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["": 18]>
        lm (int64[B,S] ids, int64[B,S] mask) => (float[B,S,32] logits)
        {{ e = Gather (table, ids) m = Cast <to=1> (mask) u = Unsqueeze (m, minus) p = Mul (e, u) {step}
           t = Mul (s, u) c = MatMul (t, head) logits = Add (c, ruled_out) }}""")
    rng = np.random.default_rng(1)
    named = {"table": rng.normal(size=(32, 8)), "head": rng.normal(size=(8, 32))}
    weights = {name: value.astype(np.float32) for name, value in named.items()}
    weights["ruled_out"] = np.where(np.arange(32) == 31, -np.inf, 0).astype(np.float32)
    weights |= {"axis": np.array(1), "axes": np.array([1]), "minus": np.array([-1])}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in weights.items())
    return model


def test_of_a_language_model_without_a_cache(tmp_path: Path) -> None:
    model, ids = _language_model(looks_ahead=False), IDS % 31
    onnx.save(model, tmp_path / "lm.onnx")
    mask = np.ones_like(ids)
    mask[1, 7:] = 0  # padding does not count
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    scores = session.run(None, {"ids": ids, "mask": mask})[0].astype(np.float64)
    each = np.log(np.exp(scores).sum(-1))[:, :-1] - np.take_along_axis(scores[:, :-1], ids[:, 1:, None], -1)[..., 0]
    wanted = np.exp(each[mask[:, 1:] == 1].mean())
    data = tmp_path / "text.npz"
    np.savez(data, ids=ids, mask=mask)
    found = verify(tmp_path / "lm.onnx", tmp_path / "lm.onnx", data=str(data), metric="perplexity").accuracy
    assert found is not None
    assert found["samples"] == int(mask[:, 1:].sum())
    assert found["control"] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("shown", [IDS.shape[1], 4])
def test_a_model_that_has_seen_the_next_token_has_no_perplexity(tmp_path: Path, shown: int) -> None:
    """Also where padding ends the text, and where a word is ruled out by -Inf."""
    onnx.save(_language_model(looks_ahead=True), tmp_path / "lm.onnx")
    mask = np.ones_like(IDS)
    mask[:, shown:] = 0
    feed = {"ids": IDS % 31, "mask": mask}
    with pytest.raises(memoptc.InputError, match="depend on later tokens"):
        verify(tmp_path / "lm.onnx", tmp_path / "lm.onnx", data=[feed], metric="perplexity")
