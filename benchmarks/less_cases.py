"""Models and data of less_work.py: calibration, validation, held-out and shifted samples of each case."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from models import audio_s, vit_s

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import zoo

from memoptc.ir.core import Graph
from memoptc.ir.onnx_io import to_proto
from memoptc.runtime.evaluate import Evaluator
from memoptc.runtime.options import RunOptions

Feed = dict[str, Any]
Metric = Callable[[Iterable[Any]], float]


@dataclass(frozen=True)
class Case:
    """A model with its data.

    Args:
        path: The model.
        option: `prune_tokens`, `early_exit` or `cascade`.
        calibration: Feeds with labels; also what thresholds are set on.
        validation: What a compile is held to.
        held_out: What no compile sees.
        shifted: Feeds of another kind, in the order of `held_out`.
        metric: Of outcomes; top-1 if `None`.
        small: Of a cascade, the model that is asked first.
    """

    path: Path
    option: str
    calibration: Sequence[Feed]
    validation: Sequence[Feed]
    held_out: Sequence[Feed]
    shifted: Sequence[Feed]
    metric: Metric | None = None
    small: Path | None = None


def digits(name: str, option: str, batch: int = 1) -> Case:
    """Digits of 8 by 8, so many at a time; shifted by a pixel, with noise."""
    assert zoo.ZOO is not None
    with np.load(zoo.FOLDER / "data" / "feeds" / "digits_train.npz") as train:
        known = [{"image": x, "labels": y} for x, y in zip(train["in0"], train["labels"], strict=True)]
    feeds, labels = zoo.ZOO.samples(name)
    rng = np.random.default_rng(0)
    shifted = [np.roll(f["image"], 1, axis=3) + rng.normal(0, 0.1, (1, 1, 8, 8)).astype(np.float32) for f in feeds]
    unseen = [{**f, "labels": y} for f, y in zip(feeds, labels, strict=True)]
    other = [{"image": x, "labels": y} for x, y in zip(shifted, labels, strict=True)]
    # Labels of calibration data are right by training; the validation data are a third of what was not trained on.
    parts = known, unseen[::3], unseen[1::3] + unseen[2::3], other[1::3] + other[2::3]
    return Case(zoo.ZOO.path(name), option, *(in_batches(part, batch) for part in parts))


def in_batches(feeds: Sequence[Feed], batch: int) -> Sequence[Feed]:
    """Put so many samples of one row into one; what is left over goes."""
    if batch == 1:
        return feeds
    ends = range(batch, len(feeds) + 1, batch)
    groups = [feeds[end - batch : end] for end in ends]
    return [
        {"image": np.concatenate([f["image"] for f in group]), "labels": np.array([int(f["labels"]) for f in group])}
        for group in groups
    ]


def spearman(outcomes: Iterable[Any]) -> float:
    """Rank correlation of the likeness of two sentences, one after the other, with people's."""
    from scipy.stats import spearmanr

    vectors, labels = [], []
    for outcome in outcomes:
        hidden = next(iter(outcome.outputs.values()))
        mask = np.asarray(outcome.feed["attention_mask"])[..., None]
        mean = ((hidden * mask).sum(1) / mask.sum(1))[0] if hidden.ndim == 3 else hidden[0]
        vectors.append(mean / np.linalg.norm(mean))
        labels.append(float(outcome.label))
    alike = [float(a @ b) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
    return float(spearmanr(alike, labels[::2])[0])


def sentences() -> Case:
    """Pairs of sentences; shifted by a fifth of the words unknown."""
    assert zoo.ZOO is not None
    feeds, labels = zoo.ZOO.samples("minilm_l6")
    every = [{**f, "labels": y} for f, y in zip(feeds, labels, strict=True)]
    rng, unknown = np.random.default_rng(0), 100

    def worse(feed: Feed) -> Feed:
        ids = feed["input_ids"].copy()
        at = (rng.random(ids.shape) < 0.2) & (feed["attention_mask"] == 1)
        at[:, 0] = False
        ids[at] = unknown
        return {**feed, "input_ids": ids}

    held = every[88:]
    return Case(
        zoo.ZOO.path("minilm_l6"), "prune_tokens", every[:32], every[32:88], held, [worse(f) for f in held], spearman
    )


def pictures(folder: Path) -> Case:
    """Which picture a crop is from; shifted by noise and half the light. The head is fitted by least squares."""
    from PIL import Image

    files = sorted((zoo.FOLDER / "data" / "images").glob("inet_*"))
    rng = np.random.default_rng(0)
    opened = [Image.open(f).convert("RGB") for f in files]

    def crop(image: Image.Image) -> np.ndarray:
        side = int(min(image.size) * rng.uniform(0.6, 0.9))
        left, top = (int(rng.integers(0, extent - side + 1)) for extent in image.size)
        small = image.crop((left, top, left + side, top + side)).resize((224, 224))
        return ((np.asarray(small, np.float32) / 255 - 0.5) / 0.25).transpose(2, 0, 1)[None]

    def draw(each: int) -> list[Feed]:
        return [{"image": crop(im), "labels": np.int64(i)} for _ in range(each) for i, im in enumerate(opened)]

    path = fitted(vit_s(len(files)), draw(6), folder)
    held = draw(10)
    shifted = [{**f, "image": f["image"] * 0.5 + rng.normal(0, 0.3, f["image"].shape).astype(np.float32)} for f in held]
    return Case(path, "prune_tokens", draw(40), draw(10), held, shifted)


def fitted(graph: Graph, feeds: Sequence[Feed], folder: Path) -> Path:
    """Write a model whose weights are random but for its head, which is fitted to labels by least squares."""
    model = to_proto(graph)
    path = folder / f"{graph.name}.onnx"
    product, bias = (next(n for n in reversed(model.graph.node) if n.op_type == kind) for kind in ("MatMul", "Add"))
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    bare.graph.output.add(name=product.input[0])
    onnx.save(bare, folder / "bare.onnx")
    evaluator = Evaluator(folder / "bare.onnx", RunOptions(), label="the model with what its head reads")
    inputs = [{k: v for k, v in f.items() if k != "labels"} for f in feeds]
    read = np.concatenate([evaluator.run(f)[product.input[0]] for f in inputs])
    mean, spread = read.mean(0), read.std(0) + 1e-6
    x = (read - mean) / spread
    labels = [int(f["labels"]) for f in feeds]
    classes = max(labels) + 1
    wanted = 10 * (np.eye(classes)[labels] - 1 / classes)
    weight = np.linalg.solve(x.T @ x + 30 * np.eye(x.shape[1]), x.T @ wanted) / spread[:, None]
    heads = {product.input[1]: weight, bias.input[1]: -mean @ weight}
    for tensor in model.graph.initializer:
        if tensor.name in heads:
            tensor.CopyFrom(onnx.numpy_helper.from_array(heads[tensor.name].astype(np.float32), tensor.name))
    onnx.save(model, path)
    return path


EXCERPTS, FRAMES, BANDS, HOP, WINDOW = 8, 256, 64, 40, 512


def speech(folder: Path) -> Case:
    """Which excerpt of a recording was heard, from its spectrum in bands; shifted by twice the noise."""
    with np.load(zoo.FOLDER / "data" / "feeds" / "silero_vad.npz") as file:
        wave = file["in0"].reshape(-1).astype(np.float32)
    rng = np.random.default_rng(0)
    shape = np.hanning(WINDOW)
    length = HOP * (FRAMES - 1) + WINDOW
    level = float(wave.std())

    def spectrum(sound: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Logarithms of the energies in bands, `[1, frames, bands]`."""
        frames = np.lib.stride_tricks.sliding_window_view(sound, WINDOW)[::HOP] * shape
        energy = np.abs(np.fft.rfft(frames)[:, : WINDOW // 2]) ** 2
        bands = energy.reshape(len(frames), BANDS, -1).mean(2)
        return ((np.log(bands + 1e-6) + 5) / 4)[None].astype(np.float32)

    def hear(excerpt: int, noise: float) -> Feed:
        start = excerpt * (len(wave) - length - 400) // (EXCERPTS - 1) + int(rng.integers(0, 400))
        sound = rng.uniform(0.7, 1.4) * wave[start : start + length] + noise * level * rng.standard_normal(length)
        return {"frames": spectrum(sound), "labels": np.int64(excerpt)}

    def draw(each: int, *, noise: float = 0.05) -> list[Feed]:
        return [hear(i, noise) for _ in range(each) for i in range(EXCERPTS)]

    path = fitted(audio_s(EXCERPTS), draw(40), folder)
    return Case(path, "prune_tokens", draw(60), draw(40), draw(40), draw(40, noise=0.1))


def sounds(name: str, option: str) -> Case:
    """Speech of the voice detector's samples, as frames or as a picture of its spectrum; no labels."""
    assert zoo.ZOO is not None
    with np.load(zoo.FOLDER / "data" / "feeds" / "silero_vad.npz") as file:
        wave = file["in0"].reshape(-1)
    rng = np.random.default_rng(0)
    spec = zoo.ZOO.meta(name)["inputs"]
    (key, shape), = ((k, v["shape"]) for k, v in spec.items())  # fmt: skip
    size = int(np.prod(shape[-2:]))

    def draw(noise: float) -> Feed:
        start = int(rng.integers(0, max(1, len(wave) - 2048)))
        piece = np.resize(np.roll(wave, -start), size).reshape(shape[-2:])
        piece = np.abs(np.fft.rfft(piece, 2 * shape[-2] - 1, axis=0)) if len(shape) == 4 else piece * 8
        piece = piece + noise * rng.standard_normal(piece.shape)
        return {key: np.broadcast_to(piece, shape).astype(np.float32)}

    count = 1000 if option == "early_exit" else 24
    every = [draw(0.02) for _ in range(count + 120)]
    return Case(zoo.ZOO.path(name), option, every[:count], every[count : count + 60], every[count + 60 :],
                [draw(0.5) for _ in range(60)])  # fmt: skip


def asked_first(small: str, big: str) -> Case:
    """Two classifiers of digits, one of which is asked first."""
    assert zoo.ZOO is not None
    return replace(digits(big, "cascade"), small=zoo.ZOO.path(small))


CASES: dict[str, Callable[[Path], Case]] = {
    "digits_vit": lambda folder: digits("digits_vit", "prune_tokens"),
    "digits_vit, 8 at a time": lambda folder: digits("digits_vit", "prune_tokens", 8),
    "digits_vit, 64 at a time": lambda folder: digits("digits_vit", "prune_tokens", 64),
    "minilm_l6": lambda folder: sentences(),
    "vit_s": pictures,
    "audio_s": speech,
    "digits_cnn": lambda folder: digits("digits_cnn", "early_exit"),
    "digits_vit exit": lambda folder: digits("digits_vit", "early_exit"),
    "digits_cnn, then digits_vit": lambda folder: asked_first("digits_cnn", "digits_vit"),
    "fsmn_vad": lambda folder: sounds("fsmn_vad", "prune_tokens"),
    "speech_commands_squeeze": lambda folder: sounds("speech_commands_squeeze", "early_exit"),
}
