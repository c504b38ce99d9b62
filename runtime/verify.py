"""Original against candidate in onnxruntime: the numbers, the judgement, the worst sample.

`verify` can do its work in a process of its own, so that the caller's memory holds neither model.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

from memoptc.ir.core import Graph
from memoptc.ir.diagnostics import InputError, InternalError, MemoptcError
from memoptc.ir.onnx_io import read_onnx
from memoptc.ir.types import TensorType, Type
from memoptc.runtime.compare import Totals, difference, flatten
from memoptc.runtime.data import Data, DataSource, Sample
from memoptc.runtime.double_ops import NoDouble
from memoptc.runtime.evaluate import Evaluator, ModelSource, RunOptions
from memoptc.runtime.float64 import Float64
from memoptc.runtime.inputs import find_feeds
from memoptc.runtime.judge import Evidence, Judge, dtype_name, judge_output
from memoptc.runtime.npz import save_feed

Mode = Literal["off", "fast", "full"]


AS_ORIGINAL = Judge()
"""The judge of a candidate that computes in the original's number format, bits aside."""


@dataclass(frozen=True)
class _Effort:
    """What a mode spends: made-up samples, samples of data, seconds after which no further sample is taken
    (the first always is), and seconds on the float64 twin."""

    made_up: int
    samples: int | None
    seconds: float
    twin_seconds: float


_EFFORTS = {"fast": _Effort(3, 16, 20.0, 15.0), "full": _Effort(12, None, math.inf, 300.0)}
_TWIN_COST = 20.0  # a float64 run takes about this many runs of the original


@dataclass(frozen=True)
class Verification:
    """What verification found.

    Args:
        passed: Whether the candidate may be handed out (also where `mode` is `off`: nothing was looked at).
        mode: `off`, `fast` or `full`.
        inputs: Where the samples came from: `random`, `calibration`, `validation`, or `none`.
        samples: How many there were.
        outputs: The report's entry per output.
        worst_sample: File with inputs and both outputs of the sample that differs most, or `None`.
        judged_by: What decided, per output name.
        failures: One sentence per output that failed, worst first.
        notes: What a reader should know (nondeterminism, no float64 twin, extents tried).
        nondeterministic: Whether the original differs from itself.
        accuracy: Accuracy on labels of both models, where the data has labels.
    """

    passed: bool
    mode: str
    inputs: str = "none"
    samples: int = 0
    outputs: tuple[dict[str, Any], ...] = ()
    worst_sample: str | None = None
    judged_by: dict[str, str] = field(default_factory=dict)
    failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    nondeterministic: bool = False
    accuracy: dict[str, float] | None = None

    @property
    def max_error(self) -> float | None:
        """Largest absolute difference over all outputs; `None` when nothing was compared."""
        found = [o["max_abs"] for o in self.outputs if o["max_abs"] is not None]
        return max(found) if found else None

    def to_json(self) -> dict[str, Any]:
        """Give the report's `verification` object."""
        plain = dict(self.__dict__)
        for key in ("outputs", "failures", "notes"):
            plain[key] = list(plain[key])
        return plain

    @staticmethod
    def from_json(plain: Mapping[str, Any]) -> Verification:
        """Read what `to_json` gave."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()}
        return Verification(**fields)


def verify(
    original: ModelSource,
    candidate: ModelSource,
    judge: Judge = AS_ORIGINAL,
    *,
    mode: Mode = "fast",
    data: DataSource | None = None,
    inputs: str = "validation",
    dims: Mapping[str, int] | None = None,
    seed: int = 0,
    keep: str | os.PathLike[str] | None = None,
    threads: int = 1,
    isolate: bool = False,
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
        seed: Seed for made-up inputs.
        keep: Where to write the worst sample (`.npz` with `input/...`, `original/...`, `candidate/...`).
        threads: Threads of onnxruntime.
        isolate: Do it in a process of its own.

    Raises:
        InputError: the original cannot be run, the data is wrong, or no inputs can be made up.
    """
    if mode == "off":
        return Verification(True, "off", notes=("verification was switched off",))
    if isolate:
        return _isolated(original, candidate, judge, mode, data, inputs, dims, seed, keep, threads)
    graph = read_onnx(original)
    try:
        check = _Check(graph, original, candidate, judge, mode, threads, Path(keep) if keep else None)
    except _Refused as refused:
        return Verification(False, mode, failures=(str(refused),))
    samples, kind, notes = _samples(graph, check, mode, data, inputs, dims, seed)
    started = time.perf_counter()
    for sample in samples:
        if not check.take(sample):
            break
        if time.perf_counter() - started > _EFFORTS[mode].seconds:
            notes.append(f"stopped after {check.count} samples, which took long; mode full takes all")
            break
    return check.result(kind, notes)


def _samples(
    graph: Graph,
    check: _Check,
    mode: str,
    data: DataSource | None,
    kind: str,
    dims: Mapping[str, int] | None,
    seed: int,
) -> tuple[Iterator[Sample], str, list[str]]:
    effort = _EFFORTS[mode]
    if data is not None:
        found = Data(data, {v.name: v.type for v in graph.inputs}, (v.name for v in graph.defaults))
        count = effort.samples
        limited = (s for i, s in zip(range(count), found, strict=False)) if count else iter(found)
        return limited, kind, []
    feeds = find_feeds(graph, check.original, count=effort.made_up, dims=dims, seed=seed)
    extents = {tuple(feed.dims.items()) for feed in feeds if feed.dims}
    notes = []
    if extents:
        spelled = "; ".join(" ".join(f"{k}={v}" for k, v in one) for one in sorted(extents))
        notes.append(f"made-up inputs at {spelled}")
    if not all(feed.finite for feed in feeds):
        notes.append("on made-up inputs the original gives NaN or Inf; real inputs would test more")
    return (Sample(f.feed, None, f"made-up input {i}") for i, f in enumerate(feeds)), "random", notes


class _Refused(Exception):
    """The candidate cannot even be loaded or has other inputs and outputs."""


class _Check:
    """The comparison under way."""

    def __init__(
        self,
        graph: Graph,
        original: ModelSource,
        candidate: ModelSource,
        judge: Judge,
        mode: str,
        threads: int,
        keep: Path | None,
    ) -> None:
        self.source, self.judge, self.mode, self.threads, self.keep = original, judge, mode, threads, keep
        self.effort = _EFFORTS[mode]
        off, on = RunOptions(optimize=False, threads=threads), RunOptions(threads=threads)
        # integer kernels appear only when onnxruntime fuses them: a coarser model is judged as it will be run
        first, second = (on, off) if judge.gate is not None and not judge.bit_exact else (off, on)
        self.original = _evaluator(original, first, "the original")
        try:
            self.candidate = Evaluator(candidate, first, label="the candidate", blame=InternalError)
            self.other = Evaluator(candidate, second, label="the candidate", blame=InternalError)
        except MemoptcError as error:
            raise _Refused(error.message) from error
        _check_ports(self.original, self.candidate)
        self.other_original: Evaluator | None = None
        self.second = second
        self.evidence: dict[str, Evidence] = {}
        self.other_evidence: dict[str, Evidence] = {}
        self.random: set[str] = set()
        self.failures: list[str] = []
        self.notes: list[str] = []
        self.count = 0
        self.worst = 0.0
        self.twin: Float64 | None = None
        self.twin_left = self.effort.twin_seconds
        self.hits = [0, 0, 0]  # labelled rows; right by the original; right by the candidate
        self.written = False

    def take(self, sample: Sample) -> bool:
        """Compare one sample; `False` when going on makes no sense."""
        started = time.perf_counter()
        try:
            wanted = self.original.run(sample.feed)
        except MemoptcError as error:
            raise InputError(f"{sample.where}: {error.message}", hint=error.hint) from error
        seconds = time.perf_counter() - started
        if not self.count:
            again = self.original.run(sample.feed)
            self.random = {n for n in wanted if not all(d.exact for d in _pairs(n, wanted[n], again[n]))}
        self.count += 1
        try:
            got = self.candidate.run(sample.feed)
        except MemoptcError as error:
            self.failures.append(f"{sample.where}: {error.message}")
            self._write(sample, wanted, {})
            return False
        differs = self._compare(sample, wanted, got)
        self._labels(sample, wanted, got)
        if differs and not self.judge.bit_exact and self.judge.gate is None and self.judge.max_error is None:
            self._float64(sample, wanted, got, seconds)
        if self.count == 1 or self.mode == "full":
            self._other_way(sample, wanted)
        return True

    def _compare(self, sample: Sample, wanted: Mapping[str, Any], got: Mapping[str, Any]) -> bool:
        differs, score = False, 0.0
        for name in wanted:
            for key, a, b in _leaves(name, wanted[name], got[name]):
                evidence = self.evidence.setdefault(key, Evidence(Totals(key), dtype_name(a)))
                found = difference(a, b)
                if name in self.random:
                    if found.fault and "shape" not in found.fault and "type" not in found.fault:
                        continue
                    evidence.totals.samples += 1
                    evidence.totals.faults += [found.fault] if found.fault else []
                    continue
                evidence.totals.add(found)
                evidence.pairs.append(found)
                differs = differs or not found.exact
                relative = found.max_abs / found.scale if found.scale else found.max_abs
                score = max(score, math.inf if found.fault else relative)
        if score > self.worst or (differs and not self.written):
            self.worst = max(self.worst, score)
            self._write(sample, wanted, got)
        return differs

    def _write(self, sample: Sample, wanted: Mapping[str, Any], got: Mapping[str, Any]) -> None:
        if self.keep is None:
            return
        parts = {"input": sample.feed, "original": wanted, "candidate": got}
        self.keep.parent.mkdir(parents=True, exist_ok=True)
        save_feed(self.keep, {f"{part}/{n}": v for part, values in parts.items() for n, v in values.items()})
        self.written = True

    def _labels(self, sample: Sample, wanted: Mapping[str, Any], got: Mapping[str, Any]) -> None:
        if sample.label is None:
            return
        labels = np.atleast_1d(sample.label).reshape(-1)
        for name, value in wanted.items():
            fits = isinstance(value, np.ndarray) and value.ndim == 2 and value.shape[0] == labels.size
            if fits and value.shape[1] > 1 and labels.dtype.kind in "iu":
                self.hits[0] += int(labels.size)
                for place, scores in ((1, value), (2, got[name])):
                    self.hits[place] += int((np.argmax(np.asarray(scores), 1) == labels).sum())
                return

    def _float64(self, sample: Sample, wanted: Mapping[str, Any], got: Mapping[str, Any], seconds: float) -> None:
        """Measure how far both models lie from float64 on this sample, while time is left."""
        if self.twin_left < _TWIN_COST * seconds:
            if self.twin_left > 0 and self.twin is None:
                self.notes.append("a float64 run of the original would take too long; tolerances judge")
                self.twin_left = 0.0
            return
        started = time.perf_counter()
        try:
            if self.twin is None:
                self.twin = Float64(self.source, self.threads)
            exact = self.twin.run(sample.feed, list(wanted))
            variants = [wanted, self._original_other_way().run(sample.feed)]
        except (NoDouble, MemoptcError) as error:
            self.notes.append(f"no float64 reference: {str(error).splitlines()[0]}; tolerances judge")
            self.twin_left = 0.0
            return
        for name in wanted:
            if name in self.random:
                continue
            for key, reference, b in _leaves(name, exact[name], got[name]):
                self.evidence[key].errors.append(difference(reference, b, bits=False))
            for variant in variants:
                for key, reference, a in _leaves(name, exact[name], variant[name]):
                    self.evidence[key].noise.append(difference(reference, a, bits=False))
        self.twin_left -= time.perf_counter() - started

    def _original_other_way(self) -> Evaluator:
        if self.other_original is None:
            self.other_original = _evaluator(self.source, self.second, "the original")
        return self.other_original

    def _other_way(self, sample: Sample, first: Mapping[str, Any]) -> None:
        """The same comparison with onnxruntime's optimizer switched the other way."""
        try:
            wanted = self._original_other_way().run(sample.feed)
        except MemoptcError:
            return  # the original itself cannot be run this way
        try:
            got = self.other.run(sample.feed)
        except MemoptcError as error:
            state = "on" if self.second.optimize else "off"
            self.failures.append(f"with onnxruntime's optimizer {state}: {error.message}")
            return
        for name in wanted:
            if name not in self.random:
                for key, a, b in _leaves(name, wanted[name], got[name]):
                    evidence = self.other_evidence.setdefault(key, Evidence(Totals(key), dtype_name(a)))
                    found = difference(a, b)
                    evidence.totals.add(found)
                    evidence.pairs.append(found)
                for key, a, b in _leaves(name, first[name], wanted[name]):
                    self.evidence[key].own.append(difference(a, b))

    def result(self, kind: str, notes: Sequence[str]) -> Verification:
        """Judge what was seen."""
        failures, judged = [], {}
        for key, evidence in self.evidence.items():
            if key.split("[")[0].split("{")[0] in self.random:
                judged[key] = "structure (nondeterministic)"
                fault = evidence.totals.faults[0] if evidence.totals.faults else ""
            else:
                fault, judged[key] = judge_output(evidence, self.judge)
            if fault:
                failures.append((-evidence.totals.max_abs, f"output {key!r}: {fault}"))
        failures.sort(key=lambda item: item[0])
        found = self.failures + [text for _, text in failures]
        if not found:
            found += self._judge_other_way()
        accuracy = self._accuracy()
        if accuracy and self.judge.gate is not None:
            lost = accuracy["control"] - accuracy["candidate"]
            if lost > self.judge.gate.accuracy_loss + 1 / accuracy["samples"]:
                found.append(f"accuracy fell from {accuracy['control']:.4f} to {accuracy['candidate']:.4f}")
        notes = [*notes, *self.notes]
        if self.random:
            names = ", ".join(repr(name) for name in sorted(self.random))
            notes.append(f"the original is not deterministic: {names} compared by shape and type only")
        return Verification(
            passed=not found,
            mode=self.mode,
            inputs=kind,
            samples=self.count,
            outputs=tuple(evidence.totals.to_json() for evidence in self.evidence.values()),
            worst_sample=str(self.keep) if self.written else None,
            judged_by=judged,
            failures=tuple(found),
            notes=tuple(dict.fromkeys(notes)),
            nondeterministic=bool(self.random),
            accuracy=accuracy,
        )

    def _judge_other_way(self) -> list[str]:
        """Both models optimized by onnxruntime: their kernels may differ, so bits are never asked for."""
        judge = Judge(target=self.judge.target, max_error=self.judge.max_error)
        state = "on" if self.second.optimize else "off"
        failures = []
        for key, evidence in self.other_evidence.items():
            main = self.evidence.get(key)
            if main is not None:  # the noise that was measured holds here, too
                evidence.noise, evidence.errors, evidence.own = main.noise, main.errors, main.own
            fault, _ = judge_output(evidence, judge)
            if fault:
                failures.append(f"output {key!r} with onnxruntime's optimizer {state}: {fault}")
        return failures

    def _accuracy(self) -> dict[str, float] | None:
        rows, control, candidate = self.hits
        if not rows:
            return None
        return {"control": control / rows, "candidate": candidate / rows, "samples": rows}


def _evaluator(model: ModelSource, options: RunOptions, label: str) -> Evaluator:
    name = "" if isinstance(model, bytes | onnx.ModelProto) else Path(os.fspath(model)).name
    return Evaluator(model, options, label=name or label)


def _check_ports(original: Evaluator, candidate: Evaluator) -> None:
    for what, a, b in (
        ("inputs", original.inputs, candidate.inputs),
        ("outputs", original.outputs, candidate.outputs),
    ):
        if list(a) != list(b):
            raise _Refused(f"the candidate's {what} are {list(b)} instead of {list(a)}")
        for name in a:
            if _kind(a[name]) != _kind(b[name]):
                raise _Refused(f"{name!r} among the candidate's {what} is {b[name]} instead of {a[name]}")


def _kind(type_: Type | None) -> object:
    return type_.dtype if isinstance(type_, TensorType) else type(type_)


def _leaves(name: str, a: Any, b: Any) -> Iterator[tuple[str, Any, Any]]:
    """Give the arrays of both values side by side; where their structure differs, the whole as a fault."""
    left, right = dict(flatten(name, a)), dict(flatten(name, b))
    for key in {**left, **right}:
        yield key, left.get(key), right.get(key)


def _pairs(name: str, a: Any, b: Any) -> Iterator[Any]:
    for _, x, y in _leaves(name, a, b):
        yield difference(x, y)


def _isolated(
    original: ModelSource,
    candidate: ModelSource,
    judge: Judge,
    mode: str,
    data: DataSource | None,
    inputs: str,
    dims: Mapping[str, int] | None,
    seed: int,
    keep: str | os.PathLike[str] | None,
    threads: int,
) -> Verification:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="memoptc-verify-")))
        request = {
            "original": _on_disk(original, folder / "original.onnx"),
            "candidate": _on_disk(candidate, folder / "candidate.onnx"),
            "judge": judge.__dict__,
            "mode": mode,
            "data": None if data is None else _data_on_disk(data, folder / "data", _EFFORTS[mode].samples),
            "inputs": inputs,
            "dims": dict(dims or {}),
            "seed": seed,
            "keep": None if keep is None else os.path.abspath(os.fspath(keep)),
            "threads": threads,
        }
        (folder / "request.json").write_text(json.dumps(request))
        answer = folder / "answer.json"
        done = subprocess.run(
            [sys.executable, "-m", "memoptc.runtime.verify", str(folder / "request.json"), str(answer)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if not answer.exists():
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise InternalError(f"The verifying process ended with code {done.returncode}: {last}")
        found = json.loads(answer.read_text())
    if "error" in found:
        kind = InputError if found["exit_code"] == InputError.exit_code else InternalError
        raise kind(found["error"], hint=found["hint"])
    return Verification.from_json(found)


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
        save_feed(folder / f"{index:08d}.npz", feed)
    return str(folder)


def _main(request: str, answer: str) -> None:
    asked = json.loads(Path(request).read_text())
    judge = Judge(**asked.pop("judge"))
    try:
        found = verify(asked.pop("original"), asked.pop("candidate"), judge, **asked).to_json()
    except MemoptcError as error:
        found = {"error": error.message, "hint": error.hint, "exit_code": error.exit_code}
    part = Path(answer).with_suffix(".part")
    part.write_text(json.dumps(found))
    part.replace(answer)


if __name__ == "__main__":
    _main(*sys.argv[1:3])
