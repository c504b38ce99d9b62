"""What less work where the input is easy saves: tokens that go and early exits, at losses of 0.5 % and 2 %.

    python benchmarks/less_work.py FILE.jsonl [--only NAME ...] [--loss 0.005 ...]
    python benchmarks/less_work.py FILE.jsonl --summary

Each model is compiled at -O2 with `--prune-tokens`, or `--early-exit` for classifiers of pictures and sounds, on
calibration and validation data, and held against the original on data that no compile saw, and on shifted ones. Need
is MB of a fresh process in stock onnxruntime; latency is that of single held-out samples in one process, the models
taking turns: original, -O2 without either, and with. A line of JSON per model and loss is appended to FILE.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from models import vit_s
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import zoo

from memoptc.api import compile_file
from memoptc.ir.diagnostics import MemoptcError
from memoptc.ir.onnx_io import to_proto
from memoptc.runtime.evaluate import Evaluator
from memoptc.runtime.measure import measure_need
from memoptc.runtime.options import RunOptions

Feed = dict[str, Any]
Metric = Callable[[Iterable[Any]], float]
SECONDS = 6.0
"""Timed runs of one case."""


@dataclass(frozen=True)
class Case:
    """A model with its data.

    Args:
        path: The model.
        option: `prune_tokens` or `early_exit`.
        calibration: Feeds with labels; also what thresholds are set on.
        validation: What a compile is held to.
        held_out: What no compile sees.
        shifted: Feeds of another kind, in the order of `held_out`.
        metric: Of outcomes; top-1 if `None`.
    """

    path: Path
    option: str
    calibration: Sequence[Feed]
    validation: Sequence[Feed]
    held_out: Sequence[Feed]
    shifted: Sequence[Feed]
    metric: Metric | None = None


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

    model = to_proto(vit_s(len(files)))
    path = folder / "vit_s.onnx"
    onnx.save(model, path)
    product, bias = (next(n for n in reversed(model.graph.node) if n.op_type == kind) for kind in ("MatMul", "Add"))
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    bare.graph.output.add(name=product.input[0])
    onnx.save(bare, folder / "bare.onnx")
    evaluator = Evaluator(folder / "bare.onnx", RunOptions(), label="the model with its class token")
    fitted = draw(6)
    tokens = np.concatenate([evaluator.run({"image": f["image"]})[product.input[0]] for f in fitted])
    mean, spread = tokens.mean(0), tokens.std(0) + 1e-6
    x = (tokens - mean) / spread
    wanted = 10 * (np.eye(len(files))[[int(f["labels"]) for f in fitted]] - 1 / len(files))
    weight = np.linalg.solve(x.T @ x + 30 * np.eye(x.shape[1]), x.T @ wanted) / spread[:, None]
    heads = {product.input[1]: weight, bias.input[1]: -mean @ weight}
    for tensor in model.graph.initializer:
        if tensor.name in heads:
            tensor.CopyFrom(onnx.numpy_helper.from_array(heads[tensor.name].astype(np.float32), tensor.name))
    onnx.save(model, path)
    held = draw(10)
    shifted = [{**f, "image": f["image"] * 0.5 + rng.normal(0, 0.3, f["image"].shape).astype(np.float32)} for f in held]
    return Case(path, "prune_tokens", draw(40), draw(10), held, shifted)


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


CASES: dict[str, Callable[[Path], Case]] = {
    "digits_vit": lambda folder: digits("digits_vit", "prune_tokens"),
    "digits_vit, 8 at a time": lambda folder: digits("digits_vit", "prune_tokens", 8),
    "digits_vit, 64 at a time": lambda folder: digits("digits_vit", "prune_tokens", 64),
    "minilm_l6": lambda folder: sentences(),
    "vit_s": pictures,
    "digits_cnn": lambda folder: digits("digits_cnn", "early_exit"),
    "digits_vit exit": lambda folder: digits("digits_vit", "early_exit"),
    "fsmn_vad": lambda folder: sounds("fsmn_vad", "prune_tokens"),
    "speech_commands_squeeze": lambda folder: sounds("speech_commands_squeeze", "early_exit"),
}


@dataclass(frozen=True)
class _Outcome:
    feed: Feed
    outputs: Feed
    label: Any


def outcomes(evaluator: Evaluator, feeds: Sequence[Feed]) -> Iterator[_Outcome]:
    """Run samples one by one."""
    for feed in feeds:
        inputs = {k: v for k, v in feed.items() if k != "labels"}
        yield _Outcome(inputs, evaluator.run(inputs), feed.get("labels"))


def metric_of(case: Case, found: Sequence[_Outcome]) -> float | None:
    """The case's own metric; top-1 of labels; `None` without labels."""
    if case.metric is not None:
        return case.metric(found)
    if found[0].label is None:
        return None
    return float(np.mean([next(iter(o.outputs.values())).argmax(-1) == np.ravel(o.label) for o in found]))


def agreement(a: Sequence[_Outcome], b: Sequence[_Outcome]) -> float:
    """Share of samples of the same likeliest class; of hidden states and frames, of rows."""
    same = [
        (next(iter(x.outputs.values())).argmax(-1) == next(iter(y.outputs.values())).argmax(-1)).mean()
        for x, y in zip(a, b, strict=True)
    ]
    return float(np.mean(same))


def latencies(paths: Sequence[Path], feeds: Sequence[Feed]) -> list[dict[str, float]]:
    """p50 and p95 in ms over samples, the models taking turns."""
    models = [Evaluator(path, RunOptions(threads=2), label=path.name) for path in paths]
    taken: list[list[float]] = [[] for _ in models]
    bare = [{k: v for k, v in f.items() if k != "labels"} for f in feeds]
    for model in models:
        model.run(bare[0])
    start = time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        for feed in bare:
            for times, model in zip(taken, models, strict=True):
                before = time.perf_counter()
                model.run(feed)
                times.append(time.perf_counter() - before)
            if time.perf_counter() - start > SECONDS:
                break
    return [{"p50": float(np.percentile(t, 50)) * 1e3, "p95": float(np.percentile(t, 95)) * 1e3} for t in taken]


def one(name: str, loss: float, folder: Path) -> dict[str, Any]:
    """Compile a case at a loss; everything that was measured."""
    case = CASES[name](folder)
    option: Any = loss if case.option == "early_exit" else True
    limits: dict[str, Any] = {case.option: option}
    if case.option == "prune_tokens" and "labels" in case.calibration[0]:
        limits |= {"max_accuracy_loss": loss, "metric": case.metric}
    elif case.option == "prune_tokens":
        limits |= {"min_sqnr": 20.0}
    data = {"calibration": list(case.calibration), "validation": list(case.validation)}
    line: dict[str, Any] = {"name": name, "option": case.option, "loss": loss}
    bare = {k: v for k, v in case.held_out[0].items() if k != "labels"}
    paths = [case.path, folder / "plain.onnx", folder / "less.onnx"]
    start = time.perf_counter()
    try:
        compile_file(case.path, paths[1], level=2, measure=False, verify="off")
        result = compile_file(case.path, paths[2], level=2, measure=False, verify="fast", **limits, **data)
    except MemoptcError as problem:
        return line | {"failed": problem.message}
    line["seconds"] = time.perf_counter() - start
    line["did"] = [f"{d.what}; {d.why}" for d in result.report.decisions if d.step in ("prune-tokens", "early-exit")]
    line["stats"] = {p.name: dict(p.stats) for p in result.report.passes if p.name in ("prune-tokens", "early-exit")}
    line["warnings"] = [w for w in result.report.warnings if "prune-tokens" in w or "early-exit" in w]
    line["need_mb"] = [measure_need(p, bare, options=RunOptions(threads=2)).need_bytes / 1e6 for p in paths]
    line["activations_mb"] = [measure_need(p, bare).parts()["activations"] / 1e6 for p in paths]
    line["latency_ms"] = latencies(paths, case.held_out)
    original, less = (Evaluator(p, RunOptions(), label=p.name) for p in (paths[0], paths[2]))
    seen = {}
    for kind in ("validation", "held_out", "shifted"):
        before, after = (list(outcomes(e, getattr(case, kind))) for e in (original, less))
        seen[kind] = {
            "agreement": agreement(before, after),
            "metric": [metric_of(case, before), metric_of(case, after)],
            "samples": len(before),
        }
    return line | {"data": seen}


def summary(lines: Sequence[dict[str, Any]]) -> Table:
    """The lines as a table."""
    heads = ("model", "loss", "need", "activations", "p50 ms", "p95 ms", "ratio (to -O2)", "metric held out",
             "agreement validation / held out / shifted", "what")  # fmt: skip
    table = Table(*heads)
    for line in lines:
        if "failed" in line:
            table.add_row(line["name"], f"{line['loss']:.1%}", *[""] * 7, line["failed"])
            continue
        need, activations, times = line["need_mb"], line["activations_mb"], line["latency_ms"]
        data = line["data"]
        before, after = data["held_out"]["metric"]
        table.add_row(
            f"{line['name']} ({line['option']})",
            f"{line['loss']:.1%}",
            f"{need[0]:.1f} -> {need[2]:.1f} ({need[1]:.1f})",
            f"{activations[0]:.1f} -> {activations[2]:.1f} ({activations[1]:.1f})",
            f"{times[0]['p50']:.3g} -> {times[2]['p50']:.3g}",
            f"{times[0]['p95']:.3g} -> {times[2]['p95']:.3g}",
            f"{times[2]['p50'] / times[0]['p50']:.2f} ({times[2]['p50'] / times[1]['p50']:.2f})",
            "" if before is None else f"{before:.4f} -> {after:.4f}",
            " / ".join(f"{data[k]['agreement']:.2%}" for k in ("validation", "held_out", "shifted")),
            "; ".join(line["did"] or line["warnings"]) or str(line["stats"]),
        )
    return table


@click.command(help=__doc__)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--only", multiple=True, type=click.Choice(list(CASES)))
@click.option("--loss", "losses", multiple=True, type=float, default=(0.005, 0.02), show_default=True)
@click.option("--summary", "show", is_flag=True)
def main(file: Path, only: tuple[str, ...], losses: tuple[float, ...], show: bool) -> None:
    """Run the cases that FILE does not have."""
    lines = [json.loads(text) for text in file.read_text().splitlines()] if file.exists() else []
    have = {(line["name"], line["loss"]) for line in lines}
    if not show:
        for name in only or CASES:
            for loss in losses:
                if (name, loss) not in have:
                    with tempfile.TemporaryDirectory() as folder:
                        lines.append(one(name, loss, Path(folder)))
                    with file.open("a") as out:
                        out.write(json.dumps(lines[-1]) + "\n")
    Console(width=250).print(summary(lines))


if __name__ == "__main__":
    main()
