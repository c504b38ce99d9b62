"""Decoders whose layers carry states on: recognised, run as a plain loop runs them, and the same once compiled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from decoder_runs import CLOSE
from decoders import Style
from recurrent_forms import first_states, lstm, scan

import memoptc
from memoptc.ir.decoder import recognise
from memoptc.ir.decoder_facts import DecoderFacts
from memoptc.ir.diagnostics import InputError
from memoptc.ir.onnx_io import read_onnx
from memoptc.runtime import Decoder

PROMPT = [5, 17, 3, 80, 41]
STYLE = Style(layers=2)

FORMS: dict[str, Callable[[], onnx.ModelProto]] = {
    "LSTM": lambda: lstm(STYLE),
    "scan": lambda: scan(STYLE),
    "hybrid": lambda: scan(STYLE, attention=True),
}


def plain_loop(model: onnx.ModelProto, prompt: list[int], count: int) -> list[int]:
    """Greedy generation token by token; what an output gives back is known by its name."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    ids, *_ = (p.name for p in session.get_inputs())
    names = [p.name for p in session.get_outputs()]
    held = first_states(model, 1)
    todo, made = list(prompt), []
    while len(made) < count:
        found = dict(zip(names, session.run(None, {ids: np.asarray([[todo.pop(0)]]), **held}), strict=True))
        held = {n: found[n.replace("past", "present") if n.startswith("past") else f"new_{n}"] for n in held}
        if not todo:
            made.append(int(found["logits"][0, -1].argmax()))
            todo = [made[-1]]
    return made


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def saved(form: str, tmp_path: Path) -> Path:
    onnx.save(FORMS[form](), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_states_are_paired_with_what_they_become(form: str) -> None:
    found = recognise(read_onnx(FORMS[form]()))
    assert all(c.present == f"new_{c.past}" for c in found.states)
    assert {c.past[:-2] for c in found.states} == ({"h", "c"} if form == "LSTM" else {"conv", "sum"})
    assert len(found.states) == (2 if form == "hybrid" else 4)
    assert [c.past for c in found.own] == (["past_key", "past_value"] if form == "hybrid" else [])
    assert (found.steps, found.context, found.max_length) == (0 if form == "LSTM" else 1, (), 0)
    assert {c.batch for c in found.states} == ({1} if form == "LSTM" else {0})
    assert DecoderFacts.from_json(found.to_json()) == found
    assert "recurrent states (" in str(found)


def test_tokens_are_those_of_a_plain_loop(form: str, saved: Path) -> None:
    wanted = plain_loop(FORMS[form](), PROMPT, 6)
    with Decoder(saved) as model:
        assert list(model.generate(PROMPT, max_new_tokens=6)) == wanted
        rows = [PROMPT, PROMPT[::-1]]
        alone = [list(model.generate(row, max_new_tokens=4)) for row in rows]
        together = list(model.generate(rows, max_new_tokens=4))
        assert [list(row) for row in zip(*together, strict=True)] == alone
        scores = model.score(PROMPT)
        assert np.allclose(scores[-1], model.prefill(PROMPT[:-1])[0], atol=CLOSE * float(np.abs(scores).max()))


def test_states_to_begin_with(form: str, saved: Path) -> None:
    with Decoder(saved) as model:
        name = model.facts.states[0].past
        start = first_states(FORMS[form](), 1)[name] + 1
        usual, other = model.prefill(PROMPT), model.prefill(PROMPT, context={name: start})
        assert np.abs(usual - other).max() > 0
        assert np.array_equal(model.prefill(PROMPT), usual)


def test_padding_would_change_states(saved: Path) -> None:
    with Decoder(saved) as model, pytest.raises(InputError, match=r"states on|has no mask"):
        model.prefill([PROMPT, PROMPT[:2]])


@pytest.mark.parametrize("options", [{}, {"target": "int8"}], ids=["O2", "int8"])
def test_compiled(form: str, options: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "compiled.onnx"
    memoptc.compile(FORMS[form](), **options).save(path)
    with Decoder(path) as model:
        made = list(model.generate(PROMPT, max_new_tokens=6))
        assert model.facts.states
        if not options:
            assert made == plain_loop(FORMS[form](), PROMPT, 6)
    carried = {p.key for p in onnx.load(path).metadata_props}
    assert "memoptc.decoder" in carried


def test_a_state_of_no_decoder_is_none_of_ours() -> None:
    """Scores of two classes beside a state: tokens go in, and none come out."""
    model = scan(Style(layers=1, vocabulary=31))
    weights = {i.name: i for i in model.graph.initializer}
    head = weights[model.graph.node[-1].input[1]]
    head.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(head)[:, :2].copy(), head.name))
    with pytest.raises(InputError, match="tokens that go in"):
        recognise(read_onnx(model))
