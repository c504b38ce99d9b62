"""A decoder run token by token gives what the whole prompt gives, and what a plain loop over onnxruntime gives."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from decoder_forms import LONGEST, genai, latent, merged, opset24, seq2seq
from decoder_runs import CLOSE
from decoders import Style, decoder

import memoptc
from memoptc.runtime import Decoder, MemoryLimit
from memoptc.runtime.sampling import Sampler

PROMPT = [5, 17, 3, 80, 41, 9, 66]

FORMS: dict[str, Callable[[], onnx.ModelProto]] = {
    "grown": lambda: decoder(Style(tied=False)),
    "no symbols, positions hide": lambda: decoder(Style(names="odd", mask="positions", symbols="unnamed")),
    "learned positions": lambda: decoder(Style(rotary="none", positions="learned", kv=4)),
    "stacked": lambda: decoder(Style(cache="stacked")),
    "flat": lambda: decoder(Style(cache="flat", mask="causal", positions="computed")),
    "genai": lambda: genai(Style()),
    "opset 24": lambda: opset24(Style()),
    "constant length": lambda: opset24(Style(), written=True),
    "latent": lambda: latent(Style()),
    "merged": lambda: merged(decoder(Style())),
}


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[onnx.ModelProto], Path]:
    def save(model: onnx.ModelProto) -> Path:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.onnx"
        onnx.save(model, path)
        return path

    return save


def near(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> bool:
    return a.shape == b.shape and float(np.abs(a - b).max()) <= 4 * CLOSE * float(np.abs(a).max())


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("longest", [None, 20])
def test_a_part_and_then_token_by_token(form: Any, longest: int | None, saved: Any) -> None:
    with Decoder(saved(form()), max_length=longest) as model:
        whole = model.prefill(PROMPT)
        assert whole.shape == (1, 97)
        model.prefill(PROMPT[:3])
        for token in PROMPT[3:]:
            scores = model.step(token)
        assert near(whole, scores)
        other = model.sequence()
        other.prefill(PROMPT[:4])
        assert near(whole, other.extend(PROMPT[4:]))
        assert other.length == len(PROMPT)
        in_place = any("in place" in note for note in model.notes)
        assert in_place == (form is FORMS["genai"] and longest is not None)


def plain_loop(model: onnx.ModelProto, prompt: list[int], count: int) -> list[int]:
    """Greedy generation as users write it, with nothing of ours."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [p.name for p in session.get_inputs()]
    past = {n: np.zeros((1, 2, 0, 16), np.float32) for n in names if n.startswith("past")}
    ids, made, done = np.asarray([prompt]), [], 0
    for _ in range(count):
        total = done + ids.shape[1]
        feed = {"input_ids": ids, "attention_mask": np.ones((1, total), np.int64), **past}
        if "position_ids" in names:
            feed["position_ids"] = np.arange(done, total)[None]
        logits, *present = session.run(None, feed)
        past, done = dict(zip(past, present, strict=True)), total
        made.append(int(logits[0, -1].argmax()))
        ids = np.asarray([made[-1:]])
    return made


@pytest.mark.parametrize("form", ["grown", "genai"])
def test_greedy_tokens_are_those_of_a_plain_loop(form: str, saved: Any) -> None:
    model = FORMS[form]()
    wanted = plain_loop(model, PROMPT, 12)
    compiled = memoptc.compile(model, measure=False, verify="off", last_logits=form == "grown").model
    for file in (saved(model), saved(compiled)):
        with Decoder(file, max_length=24) as run:
            assert list(run.generate(PROMPT, max_new_tokens=12)) == wanted
            stopped = list(run.generate(PROMPT, max_new_tokens=12, stop=wanted[5]))
            assert stopped == wanted[: wanted.index(wanted[5])]
            assert len(list(run.generate(PROMPT, max_new_tokens=99))) == 24 - len(PROMPT) + 1


def test_shorter_prompts_of_a_batch_are_padded(saved: Any) -> None:
    prompts = [PROMPT, PROMPT[2:], [7]]
    with Decoder(saved(decoder(Style(tied=False)))) as model:
        alone = [list(model.generate(p, max_new_tokens=5)) for p in prompts]
        assert [list(t) for t in zip(*model.generate(prompts, max_new_tokens=5), strict=True)] == alone
        assert len(set(alone[0])) > 2
        ended = list(model.generate(prompts, max_new_tokens=5, stop=alone[0][1]))
        assert [t[0] for t in ended] == [alone[0][0], *[None] * (len(ended) - 1)]
    shared = decoder(Style(rotary="none", positions="learned computed"))
    for file in (saved(shared), saved(memoptc.compile(shared, measure=False, verify="off").model)):
        with Decoder(file) as model, pytest.raises(memoptc.InputError, match="all sequences alike"):
            model.prefill(prompts)
    with Decoder(saved(FORMS["latent"]())) as model:
        alone = [list(model.generate(p, max_new_tokens=5)) for p in prompts]
        assert [list(t) for t in zip(*model.generate(prompts, max_new_tokens=5), strict=True)] == alone
    for unmasked in ("genai", "constant length"):
        with Decoder(saved(FORMS[unmasked]())) as model, pytest.raises(memoptc.InputError, match="different lengths"):
            model.prefill(prompts)
    with Decoder(saved(FORMS["genai"]()), max_length=20) as model:  # several steps after a past, of two sequences
        whole = model.prefill([PROMPT, PROMPT[::-1]])
        batch = model.sequence()
        batch.prefill([PROMPT[:3], PROMPT[:3:-1]])
        assert near(whole, batch.extend([PROMPT[3:], PROMPT[3::-1]]))


@pytest.mark.parametrize(
    "style",
    [
        Style(rotary="none", positions="learned masked", tied=False),
        Style(rotary="none", positions="computed", bias="alibi", tied=False),
        Style(rotary="none", positions="computed", bias="t5", tied=False),
        Style(rotary="none", positions="learned", norm="layer_parts", tied=False),
        Style(rotary="none", positions="computed", tied=False),
    ],
    ids=["positions from the mask", "alibi", "relative", "positions as an input", "no positions"],
)
def test_positions_that_padding_does_not_shift(style: Style, saved: Any) -> None:
    prompts = [PROMPT, PROMPT[2:], [7]]
    model = decoder(style)
    for file in (saved(model), saved(memoptc.compile(model, measure=False, verify="off").model)):
        with Decoder(file) as run:
            alone = [list(run.generate(p, max_new_tokens=5)) for p in prompts]
            assert [list(t) for t in zip(*run.generate(prompts, max_new_tokens=5), strict=True)] == alone


def test_an_encoders_keys_come_as_context(saved: Any) -> None:
    model = seq2seq(Style(kv=4))
    rng = np.random.default_rng(0)
    read = [i.name for i in model.graph.input if ".encoder." in i.name]
    context = {n: rng.standard_normal((1, 4, 6, 16)).astype(np.float32) for n in read}
    with Decoder(saved(model)) as run:
        whole = run.prefill(PROMPT, context=context)
        run.prefill(PROMPT[:3], context=context)
        scores = [run.step(token) for token in PROMPT[3:]]
        assert near(whole, scores[-1])
        hidden = {**context, "encoder_attention_mask": np.asarray([[1, 1, 1, 0, 0, 0]])}
        assert not near(whole, run.prefill(PROMPT, context=hidden))
        with pytest.raises(memoptc.InputError, match="needed, and not given"):
            run.prefill(PROMPT)


def test_a_limit_makes_chunks(saved: Any) -> None:
    style = Style(layers=1, vocabulary=3000, rotary="none", positions="computed", mask="causal")
    ids = list(range(600))
    file = saved(decoder(style))
    with Decoder(file) as model:
        whole = model.prefill(ids)
    with Decoder(file, memory_limit="5MiB", packing=False) as model:
        assert near(whole, model.prefill(ids))
        assert any("tokens at a time" in note for note in model.notes)
    with Decoder(file, chunk=100) as model:
        assert near(whole, model.prefill(ids))
    with Decoder(file, memory_limit="64KiB", packing=False) as model, pytest.raises(MemoryLimit):
        model.prefill(ids)


def test_sequences_of_one_decoder_in_threads(saved: Any) -> None:
    with Decoder(saved(genai(Style())), max_length=30) as model:
        prompts = [[seed, seed + 1, seed + 2] for seed in range(4)]
        wanted = [list(model.generate(p, max_new_tokens=20)) for p in prompts]
        found: dict[int, list[int]] = {}

        def run(number: int) -> None:
            found[number] = list(model.sequence().generate(prompts[number], max_new_tokens=20))

        threads = [threading.Thread(target=run, args=(i,)) for i in range(len(prompts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [found[i] for i in range(len(prompts))] == wanted


def test_what_is_wrong_is_said(saved: Any) -> None:
    with Decoder(saved(decoder(Style(rotary="table"))), max_length=1000) as model:
        assert model.max_length == LONGEST
        for ids, why in (([], "no ids"), ([97], "97 is no token"), ([-1], "-1 is no token"), ([0.5], "whole numbers"),
                         ([1] * 65, "more than the 64")):  # fmt: skip
            with pytest.raises(memoptc.InputError, match=why):
                model.generate(ids)
        with pytest.raises(memoptc.InputError, match="Call prefill first"):
            model.sequence().step(3)
        for option in ({"top_p": 0.0}, {"temperature": -1.0}, {"top_k": -1}, {"max_new_tokens": -1}):
            with pytest.raises(memoptc.InputError, match=next(iter(option))):
                model.generate([1], **option)
    model = decoder(Style())
    model.graph.output.pop(0)
    with pytest.raises(memoptc.InputError, match="no output scores a vocabulary"):
        Decoder(saved(model))


def test_random_choices() -> None:
    scores = np.log(np.asarray([[0.5, 0.3, 0.15, 0.05]] * 4000))
    rng = np.random.default_rng(0)

    def shares(sampler: Sampler) -> npt.NDArray[Any]:
        return np.bincount(sampler.choose(scores, rng), minlength=4) / len(scores)

    assert np.allclose(shares(Sampler(1.0)), [0.5, 0.3, 0.15, 0.05], atol=0.03)
    assert np.allclose(shares(Sampler(top_k=2)), [0.625, 0.375, 0, 0], atol=0.03)
    assert np.allclose(shares(Sampler(top_p=0.75)), [0.625, 0.375, 0, 0], atol=0.03)
    assert np.allclose(shares(Sampler(0.5)), np.square([0.5, 0.3, 0.15, 0.05]) / 0.365, atol=0.03)
    for best in (Sampler(), Sampler(0.0), Sampler(2.0, top_k=1)):
        assert best.greedy
        assert shares(best)[0] == 1


def test_a_seed_gives_the_same_tokens(saved: Any) -> None:
    with Decoder(saved(decoder(Style(tied=False)))) as model:
        made = [tuple(model.generate(PROMPT, max_new_tokens=8, temperature=3.0, seed=seed)) for seed in (1, 1, 2)]
    assert made[0] == made[1] != made[2]


def test_a_running_maximum_begins_below_any_number(saved: Any) -> None:
    """Sums of exponentials kept relative to their greatest: from zero, those of exp(-200) would be 0 / 0."""
    rng = np.random.default_rng(0)
    table, head = rng.standard_normal((11, 8)).astype(np.float32), rng.standard_normal((8, 11)).astype(np.float32)
    decay, far = np.full(8, -0.5, np.float32), np.float32(-200)
    body = """
        g (int64[b, 1] ids, float[b, 8] sum, float[b, 8] count, float[b, 8] top)
            => (float[b, 1, 11] logits, float[b, 8] sums, float[b, 8] counts, float[b, 8] tops)
        {
            wide = Gather(table, ids)
            one = Constant<value_ints = [1]>()
            x = Squeeze(wide, one)
            key = Add(x, far)
            aged = Add(top, decay)
            tops = Max(aged, key)
            old = Sub(aged, tops)
            keep = Exp(old)
            new = Sub(key, tops)
            weight = Exp(new)
            kept = Mul(keep, sum)
            add = Mul(weight, x)
            sums = Add(kept, add)
            some = Mul(keep, count)
            counts = Add(some, weight)
            mean = Div(sums, counts)
            scored = MatMul(mean, head)
            logits = Unsqueeze(scored, one)
        }"""
    model = onnx.parser.parse_model('<ir_version: 9, opset_import: ["" : 18]>' + body)
    for name, value in (("table", table), ("head", head), ("decay", decay), ("far", far)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    ids = [3, 1, 7, 7, 2]
    seen = table[ids].astype(np.float64)
    weights = np.exp(seen - 0.5 * np.arange(len(ids))[::-1, None])
    wanted = ((weights * seen).sum(0) / weights.sum(0)) @ head
    for file in (saved(model), saved(memoptc.compile(model, measure=False).model)):
        with Decoder(file) as run:
            assert np.allclose(run.prefill(ids)[0], wanted, rtol=1e-4, atol=1e-4)
