"""--last-logits: the last row of the original's scores, computed without the others; caches keep their form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from decoder_runs import CLOSE, feed
from decoders import Style, decoder
from runtime_models import mlp, parse

import memoptc
from memoptc.ir.dims import same
from memoptc.ir.infer import infer_shapes
from memoptc.ir.onnx_io import read_onnx
from memoptc.ir.printer import print_graph
from memoptc.last_logits import keep_last, keep_last_of, logits_of
from memoptc.pass_base import Context
from memoptc.passes.fuse._fuse.core import shape_of
from memoptc.passes.memory.narrow import Narrow
from memoptc.passes.precision._quantize.operand_moments import moments_of
from memoptc.runtime.data import Data
from memoptc.testing import run_pass


def run(model: onnx.ModelProto, fed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, fed), strict=True))


@pytest.mark.parametrize("style", [Style(), Style(cache="flat", symbols="unnamed", tied=False, mask="causal")])
def test_the_last_row_alone(style: Style) -> None:
    model = decoder(style)
    result = memoptc.compile(model, last_logits=True, measure=False)
    assert result.report.to_json()["verification"]["passed"]
    assert any("logits: the last step only" in w for w in result.report.warnings)
    assert {p.key: p.value for p in result.model.metadata_props}["memoptc.last_logits"] == "logits"
    for shape in ((1, 7, 0), (1, 1, 9), (2, 4, 5)):
        fed = feed(style, *shape)
        before, after = run(model, fed), run(result.model, fed)
        assert before.keys() == after.keys()
        scale = float(np.abs(before["logits"]).max())
        assert after["logits"].shape == (shape[0], 1, style.vocabulary)
        assert np.abs(before["logits"][:, -1:] - after["logits"]).max() <= CLOSE * scale
        for name in before.keys() - {"logits"}:
            assert before[name].shape == after[name].shape
    graph = read_onnx(result.model)
    infer_shapes(graph)
    heads = [m.result for m in graph.walk("MatMul") if shape_of(m.result)[-1:] == (style.vocabulary,)]
    assert heads
    assert all(str(shape_of(head)[1]) not in ("sequence", "input_ids_d1") for head in heads)


def test_a_text_is_proven_at_several_lengths_too() -> None:
    """One row of scores says little: a text has one for each of its beginnings."""
    style = Style()
    text = [{"input_ids": np.arange(1, 33)[None] % style.vocabulary}]
    one = memoptc.compile(decoder(style), last_logits=True, measure=False, validation=text)
    assert one.report.verification["samples"] == 16
    assert one.report.to_json()["verification"]["passed"]
    whole = memoptc.compile(decoder(style), measure=False, validation=text)
    assert whole.report.verification["samples"] == 1
    held = feed(style, 1, 4, 3)
    begun = memoptc.compile(decoder(style), last_logits=True, measure=False, validation=[held])
    assert begun.report.verification["samples"] == 1


def test_which_outputs_score_a_vocabulary() -> None:
    assert logits_of(read_onnx(decoder(Style()))) == ["logits"]
    with pytest.raises(memoptc.InputError, match="no output is"):
        memoptc.compile(mlp(), last_logits=True, measure=False)


def test_an_output_that_others_use_keeps_all_rows_for_them() -> None:
    model = parse(
        """g (int64[B, S] ids) => (float[B, S, 4] logits, float[B, S, 4] twice) {
             x = Gather(table, ids) logits = MatMul(x, w) twice = Add(logits, logits) }""",
        table=np.eye(5, 3, dtype=np.float32),
        w=np.ones((3, 4), np.float32),
    )
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    keep_last_of(copy, ["logits"])
    onnx.checker.check_model(copy)
    found = run(copy, {"ids": np.array([[0, 1, 2]])})
    assert found["logits"].shape == (1, 1, 4)
    assert found["twice"].shape == (1, 3, 4)


def test_calibration_sees_all_steps(tmp_path: Path) -> None:
    style = Style()
    graph = read_onnx(decoder(style))
    keep_last(graph, ["logits"])
    infer_shapes(graph)
    run_pass(Narrow(), graph)
    data = [feed(style, 1, 7, 0, seed=i) for i in range(5)]
    heads = [m for m in graph.walk("MatMul") if shape_of(m.result)[-1:] == (style.vocabulary,)]
    assert not any(same(shape_of(m.operand)[1], shape_of(graph.inputs[0])[1]) for m in heads)
    context = Context(calibration=Data(data, {v.name: v.type for v in graph.inputs}), scratch=tmp_path)
    before = print_graph(graph)
    found = moments_of(graph, graph.walk("MatMul"), context)
    assert found[heads[0]].rows == 5 * 7
    assert print_graph(graph) == before
