"""Original against candidate in onnxruntime: the numbers, the judgement, the worst sample.

`verify` can do its work in a process of its own, so that the caller's memory holds neither model.
"""

from __future__ import annotations

import itertools
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from memoptc.ir.core import Graph
from memoptc.ir.diagnostics import InputError, MemoptcError
from memoptc.ir.files import TemporaryFolder
from memoptc.ir.onnx_io import read_onnx
from memoptc.runtime import isolated
from memoptc.runtime.accuracy import AccuracyTarget
from memoptc.runtime.check import EFFORTS, Check
from memoptc.runtime.continuation import compare_decoding
from memoptc.runtime.data import LABEL_KEYS, Data, DataSource, Sample
from memoptc.runtime.evaluate import ModelSource
from memoptc.runtime.feeds import find_feeds
from memoptc.runtime.judge import Judge
from memoptc.runtime.metric import Metric, load_metric
from memoptc.runtime.npz import save_feed
from memoptc.runtime.perplexity import PERPLEXITY, Completed, measure_perplexity, perplexity, step_scores
from memoptc.runtime.ports import Refused
from memoptc.runtime.prefixes import rows_enough
from memoptc.runtime.spool import trim
from memoptc.runtime.verification import Verification

__all__ = ["AS_ORIGINAL", "Judge", "Mode", "Verification", "verify"]

Mode = Literal["off", "fast", "full"]

IN_PART = "texts were taken in part, too, as a text has scores of one step only"
"""Note of a proof on a few texts of a decoder that scores its last step only."""

AS_ORIGINAL = Judge()
"""The judge of a candidate that computes in the original's number format, bits aside."""


@dataclass(frozen=True)
class _Asked:
    """The parameters of `verify` that say how, as another process gets them."""

    mode: Mode
    data: DataSource | None
    inputs: str
    dims: Mapping[str, int] | None
    point: Mapping[str, int] | None
    seed: int
    keep: str | os.PathLike[str] | None
    threads: int
    every: bool
    metric: str | Metric | None
    max_loss: float | None


def verify(
    original: ModelSource,
    candidate: ModelSource,
    judge: Judge = AS_ORIGINAL,
    *,
    mode: Mode = "fast",
    data: DataSource | None = None,
    inputs: str = "validation",
    dims: Mapping[str, int] | None = None,
    point: Mapping[str, int] | None = None,
    seed: int = 0,
    keep: str | os.PathLike[str] | None = None,
    threads: int = 1,
    isolate: bool = False,
    every: bool = False,
    metric: str | Metric | None = None,
    max_loss: float | None = None,
    graph: Graph | None = None,
) -> Verification:
    """Compare a candidate with its original.

    Args:
        original: The model as the user gave it.
        candidate: What memoptc made of it.
        judge: What is asked of the candidate.
        mode: `fast`: a few samples; `full`: all of them, more extents, onnxruntime's optimizer on for each.
        data: Samples; without them inputs are made up.
        inputs: What to call the samples in the result.
        dims: Extents for made-up inputs.
        point: Extents of one more made-up input, as a plan for large sizes has code of its own for them.
        seed: Seed for made-up inputs.
        keep: Where to write the worst sample (`.npz` with `input/...`, `original/...`, `candidate/...`).
        threads: Threads of onnxruntime.
        isolate: Do it in a process of its own.
        every: Take all data, whatever the mode: what was chosen by all of it is not judged by a part.
        metric: `perplexity`, `module:function` or a function: measure that, too, on the data.
        max_loss: How much the logarithm of the perplexity may grow; for other metrics the judge's target says it.
        graph: The original as a graph, where the caller has read it.

    Raises:
        InputError: the original cannot be run, the data is wrong, or no inputs can be made up.
    """
    if mode == "off":
        return Verification(True, "off", notes=("verification was switched off",))
    asked = _Asked(mode, data, inputs, dims, point, seed, keep, threads, every, metric, max_loss)
    if isolate and not callable(metric):
        return _isolated(original, candidate, judge, asked)
    check = Check(original, candidate, judge, mode, threads, Path(keep) if keep else None, _named(metric, data))
    graph = read_onnx(original, lazy=True) if graph is None else graph
    samples, kind, notes = _samples(graph, check, asked)
    share = math.inf if every and data is not None else EFFORTS[mode].seconds / _TURNS
    stopped = _take(check, samples, share)
    del samples  # with the inputs that were made up
    try:
        check.finish(share)
    except Refused as refused:
        return Verification(False, mode, failures=(str(refused),))
    if stopped or (check.findings.count < len(check.taken) and not check.findings.failures):
        notes.append(f"stopped after {check.findings.count} samples, which took long; mode full takes all")
    found = check.result(kind, notes)
    if metric == PERPLEXITY and data is not None and check.taken:
        found = _with_perplexity(found, graph, check, data, EFFORTS[mode].samples, max_loss)
    return _decoding(found, graph, check, seed) if found.passed and check.taken else found


def _named(metric: str | Metric | None, data: DataSource | None) -> tuple[str, Metric] | None:
    """Give a metric of outputs with its name; perplexity is measured by itself."""
    if metric is None or metric == PERPLEXITY or data is None:
        return None
    return metric if isinstance(metric, str) else getattr(metric, "__name__", "metric"), load_metric(metric)


def _with_perplexity(
    found: Verification, graph: Graph, check: Check, data: DataSource, count: int | None, max_loss: float | None
) -> Verification:
    """Add the perplexity of both models on the data.

    Raises:
        InputError: the original is no language model.
    """
    facts = step_scores(graph)
    walk = _read(data, graph)
    means = []
    for model in (check.source, check.source_candidate):
        mean, tokens = measure_perplexity(model, facts, itertools.islice(walk, count), check.first)
        means.append(mean)
        trim()
    before, after = map(perplexity, means)
    accuracy: dict[str, Any] = {"metric": PERPLEXITY, "control": before, "candidate": after, "samples": tokens}
    failures = list(found.failures)
    if max_loss is not None and not means[0] - means[1] <= max_loss:  # nor is NaN within it
        failures.append(
            f"perplexity rose from {before:.2f} to {after:.2f}, by more than a factor of {math.exp(max_loss):.3f}"
        )
    target = found.target
    if target is not None and max_loss is not None:
        limit = f"perplexity at most {math.exp(max_loss):.3f} times the original's"
        target = limit if target == str(AccuracyTarget()) else f"{target}, {limit}"
    return replace(found, accuracy=accuracy, failures=tuple(failures), passed=not failures, target=target)


def _decoding(found: Verification, graph: Graph, check: Check, seed: int) -> Verification:
    """Add what decoding token by token shows, where the original is a decoder with a cache."""
    seen = compare_decoding(
        graph,
        check.source,
        check.source_candidate,
        check.judge,
        check.mode,
        check.first,
        check.spool.get("feed", 0),
        seed,
    )
    if seen is None:
        return found
    if seen.output is None and not seen.failure:
        return replace(found, notes=(*found.notes, seen.note))
    outputs = () if seen.output is None else (seen.output,)
    judged = {} if seen.output is None else {seen.output["name"]: seen.judged_by}
    return replace(
        found,
        passed=not seen.failure,
        outputs=(*found.outputs, *outputs),
        judged_by=found.judged_by | judged,
        failures=(seen.failure,) if seen.failure else (),
    )


_TURNS = 2
"""The original and the candidate run on all samples, one after the other, and share the time that there is."""


def _take(check: Check, samples: Iterator[Sample], seconds: float) -> bool:
    """Run the original on samples; whether there might be more, but for the time."""
    started = time.perf_counter()
    try:
        for sample in samples:
            if not check.take(sample):
                return False
            if time.perf_counter() - started > seconds:
                return True
    except MemoptcError as error:
        if not check.taken:
            raise
        check.broken = error  # unless the candidate fails on an earlier sample
    return False


def _read(data: DataSource, graph: Graph) -> Data:
    return Data(data, {v.name: v.type for v in graph.inputs}, (v.name for v in graph.defaults), Completed(graph))


def _samples(graph: Graph, check: Check, asked: _Asked) -> tuple[Iterator[Sample], str, list[str]]:
    effort = EFFORTS[asked.mode]
    if asked.data is not None:
        found = _read(asked.data, graph)
        rows, count = rows_enough(found, graph), None if asked.every else effort.samples
        limited = (s for i, s in zip(range(count), rows, strict=False)) if count else iter(rows)
        return limited, asked.inputs, [] if rows is found else [IN_PART]
    dims, point, seed = asked.dims, asked.point, asked.seed
    assert check.original is not None
    seconds = effort.seconds / _TURNS
    feeds = find_feeds(graph, check.original, count=effort.made_up, dims=dims, seed=seed, seconds=seconds)
    if point is not None:
        with suppress(InputError):  # the model does not run there: there is nothing to compare
            feeds[1:1] = find_feeds(graph, check.original, count=1, dims={**point, **(dims or {})}, seed=seed)
    used = {tuple(feed.dims.items()) for feed in feeds if feed.dims}
    notes = []
    if used:
        spelled = "; ".join(" ".join(f"{k}={v}" for k, v in one) for one in sorted(used))
        notes.append(f"made-up inputs at {spelled}")
    if not all(feed.finite for feed in feeds):
        notes.append("on made-up inputs the original gives NaN or Inf; real inputs would test more")
    return (Sample(f.feed, None, f"made-up input {i}") for i, f in enumerate(feeds)), "random", notes


def _isolated(original: ModelSource, candidate: ModelSource, judge: Judge, asked: _Asked) -> Verification:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryFolder("memoptc-verify-")))
        limit = None if asked.every else EFFORTS[asked.mode].samples
        request = {
            **vars(asked),
            "original": _on_disk(original, folder / "original.onnx"),
            "candidate": _on_disk(candidate, folder / "candidate.onnx"),
            "judge": asdict(judge),
            "data": None if asked.data is None else _data_on_disk(asked.data, folder / "data", limit),
            "dims": dict(asked.dims or {}),
            "point": None if asked.point is None else dict(asked.point),
            "keep": None if asked.keep is None else os.path.abspath(os.fspath(asked.keep)),
        }
        return Verification.from_json(isolated.ask("memoptc.runtime.verify", request, folder))


def _on_disk(model: ModelSource, path: Path) -> str:
    if isinstance(model, str | os.PathLike):
        return os.path.abspath(os.fspath(model))
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return str(path)


def _data_on_disk(data: DataSource, folder: Path, limit: int | None) -> str:
    """Give a name under which another process finds the data: Python objects are written out, as far as needed."""
    if isinstance(data, str | os.PathLike):
        text = os.fspath(data)
        return os.path.abspath(text) if os.path.exists(text) else text
    folder.mkdir()
    feeds = data() if callable(data) else data
    for index, feed in enumerate(feeds):
        if limit is not None and index >= limit:
            break
        if not isinstance(feed, Mapping):
            raise InputError(f"Sample {index} of the data is a {type(feed).__name__}, not a dictionary.")
        save_feed(folder / f"{index:08d}.npz", {name: _as_array(name, value) for name, value in feed.items()})
    return str(folder)


def _as_array(name: str, value: Any) -> Any:
    """Labels and numbers as the arrays that they are read as."""
    return np.asarray(value) if name in LABEL_KEYS or isinstance(value, int | float | np.generic) else value


def _work(asked: dict[str, Any]) -> dict[str, Any]:
    wanted = asked.pop("judge")
    accuracy = wanted.pop("accuracy")
    judge = Judge(**wanted, accuracy=accuracy and AccuracyTarget(**accuracy))
    return verify(asked.pop("original"), asked.pop("candidate"), judge, **asked).to_json()


if __name__ == "__main__":
    isolated.answer(_work, *sys.argv[1:3])
