"""The comparison of two models, sample by sample."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from memoptc.ir.diagnostics import InputError, InternalError, MemoptcError
from memoptc.ir.files import staged
from memoptc.ir.ops.double import NoDouble
from memoptc.runtime.compare import Difference, Totals, deciles, difference, flatten
from memoptc.runtime.data import Sample
from memoptc.runtime.evaluate import Evaluator, ModelSource
from memoptc.runtime.example import farthest
from memoptc.runtime.float64 import Float64
from memoptc.runtime.judge import Evidence, Judge, dtype_name, judge_other_way, judge_output
from memoptc.runtime.npz import save_feed
from memoptc.runtime.options import RunOptions
from memoptc.runtime.ports import Refused, check_ports
from memoptc.runtime.quality import Metric, Outcome
from memoptc.runtime.spool import Spool, trim
from memoptc.runtime.verification import Verification


@dataclass(frozen=True)
class Effort:
    """Bounds of a mode.

    Args:
        made_up: Samples where there is no data.
        samples: Most samples of data; `None` for all.
        seconds: After these no further sample is taken; the first always is.
        twin_seconds: Most seconds for the float64 twin.
    """

    made_up: int
    samples: int | None
    seconds: float
    twin_seconds: float


EFFORTS = {"fast": Effort(3, 16, 20.0, 15.0), "full": Effort(12, None, math.inf, 300.0)}
TWIN_BYTES = 192 << 20
"""Bytes that a float64 run may take beyond a run of the original; on samples where it takes more, tolerances judge."""

TWIN_COST = 20.0  # a float64 run takes about this many runs of the original


@dataclass(frozen=True)
class _Taken:
    """A sample that the original ran on: its label, where it came from, and the seconds that the run took."""

    label: Any
    where: str
    seconds: float


@dataclass
class _Distances:
    """Distances from float64 on one sample, by output: the candidate's, and the original's for each way to run it."""

    errors: list[tuple[str, Difference]] = field(default_factory=list)
    noise: list[tuple[str, Difference]] = field(default_factory=list)


class Check:
    """The comparison under way.

    One model is loaded at a time: the original runs on all samples, then the candidate, then the float64 twin, then
    both models with onnxruntime's optimizer switched the other way. What they give lies on disk in between.

    Args:
        original: The model as the user gave it.
        candidate: What memoptc made of it.
        judge: What is asked of the candidate.
        mode: `fast` or `full`.
        threads: Threads of onnxruntime.
        keep: Where to write the worst sample.
        metric: What measures accuracy, by its name; top-1 on labels where the data has some, when not given.

    Raises:
        InputError: the original cannot be loaded.
    """

    def __init__(
        self,
        original: ModelSource,
        candidate: ModelSource,
        judge: Judge,
        mode: str,
        threads: int,
        keep: Path | None,
        metric: tuple[str, Metric] | None = None,
    ) -> None:
        self.source, self.source_candidate = original, candidate
        self.metric, self.measured = metric, [0.0, 0.0]
        self.judge, self.mode, self.threads, self.keep = judge, mode, threads, keep
        self.effort = EFFORTS[mode]
        off, on = _options(threads, optimize=False), _options(threads, optimize=True)
        # integer kernels appear only when onnxruntime fuses them: a coarser model is judged as it will be run
        self.first, self.second = (on, off) if judge.coarser else (off, on)
        self.original: Evaluator | None = _evaluator(original, self.first, "the original")
        self.ports = self.original.inputs, self.original.outputs
        self.spool = Spool()
        self.taken: list[_Taken] = []
        self.broken: MemoptcError | None = None
        self.evidence: dict[str, Evidence] = {}
        self.other_evidence: dict[str, Evidence] = {}
        self.random: set[str] = set()
        self.failures: list[str] = []
        self.notes: list[str] = []
        self.count = 0
        self.worst = 0.0
        self.example: dict[str, Any] | None = None
        self.twin_left = self.effort.twin_seconds
        self.hits = [0, 0, 0]  # labelled rows; right by the original; right by the candidate
        self.written = False

    def take(self, sample: Sample) -> bool:
        """Run the original on one sample; `False` when no further one can be taken."""
        assert self.original is not None
        started = time.perf_counter()
        try:
            wanted = self.original.run(sample.feed)
        except MemoptcError as error:
            self.broken = InputError(f"{sample.where}: {error.message}", hint=error.hint)
            return False
        seconds = time.perf_counter() - started
        if not self.taken:
            again = self.original.run(sample.feed)
            self.random = {n for n in wanted if not all(d.exact for d in _pairs(n, wanted[n], again[n]))}
        self.spool.put("feed", len(self.taken), sample.feed)
        self.spool.put("wanted", len(self.taken), wanted)
        self.taken.append(_Taken(sample.label, sample.where, seconds))
        return True

    def finish(self, seconds: float) -> None:
        """Run the other models on the samples that were taken, and compare.

        Args:
            seconds: After these the candidate runs on no further sample.

        Raises:
            Refused: the candidate cannot be loaded, or has other inputs and outputs.
            InputError: the original cannot be run on a sample behind those that were taken.
        """
        self.original = None
        trim()
        differing = self._run_candidate(seconds)
        trim()
        if self.broken is not None and self.count == len(self.taken) and not self.failures:
            raise self.broken
        complete = range(self.count - bool(self.failures))
        distances = self._run_twin(differing)
        trim()
        both = set(complete) if self.mode == "full" else set(complete[:1])
        other = self._run_original_other_way(sorted(both | distances.keys()))
        trim()
        self._add_distances(distances, other)
        self._run_candidate_other_way([i for i in sorted(both) if i not in other])

    def _sample(self, index: int) -> Sample:
        return Sample(self.spool.get("feed", index), self.taken[index].label, self.taken[index].where)

    def _candidate(self, options: RunOptions) -> Evaluator:
        try:
            return Evaluator(self.source_candidate, options, label="the candidate", blame=InternalError)
        except MemoptcError as error:
            raise Refused(error.message) from error

    def _run_candidate(self, seconds: float) -> list[int]:
        """Compare with the original's outputs; give the samples on which any bit differs."""
        candidate = self._candidate(self.first)
        check_ports(self.ports, candidate)
        error: MemoptcError | None = None
        started = time.perf_counter()
        for index in range(len(self.taken)):
            self.count += 1
            try:
                self.spool.put("got", index, candidate.run(self.spool.get("feed", index)))
            except MemoptcError as failure:
                error = failure
                break
            if time.perf_counter() - started > seconds:
                break
        del candidate
        trim()
        differing = []
        for index in range(self.count - (error is not None)):
            sample, wanted, got = self._sample(index), self.spool.get("wanted", index), self.spool.get("got", index)
            if self._compare(sample, wanted, got):
                differing.append(index)
            self._labels(sample, wanted, got)
        if self.metric is not None and not error:
            for place, kind in enumerate(("wanted", "got")):
                self.measured[place] = float(self.metric[1](self._outcomes(kind)))
        if error is not None:
            sample = self._sample(self.count - 1)
            self.failures.append(f"{sample.where}: {error.message}")
            self._write(sample, self.spool.get("wanted", self.count - 1), {})
        return differing

    def _outcomes(self, kind: str) -> Iterator[Outcome]:
        """Outputs of one of the models, as a metric takes them."""
        for index in range(self.count):
            yield Outcome(self.spool.get("feed", index), self.spool.get(kind, index), self.taken[index].label)

    @property
    def _wants_twin(self) -> bool:
        return not self.judge.bit_exact and not self.judge.coarser and self.judge.max_error is None

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
        if score > self.worst or (differs and self.example is None):
            self.worst = max(self.worst, score)
            self.example = farthest(os.path.basename(sample.where), wanted, got)
            self._write(sample, wanted, got)
        return differs

    def _write(self, sample: Sample, wanted: Mapping[str, Any], got: Mapping[str, Any]) -> None:
        if self.keep is None:
            return
        parts = {"input": sample.feed, "original": wanted, "candidate": got}
        self.keep.parent.mkdir(parents=True, exist_ok=True)
        with staged(self.keep) as inner:
            save_feed(inner, {f"{part}/{n}": v for part, values in parts.items() for n, v in values.items()})
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

    def _run_twin(self, differing: Sequence[int]) -> dict[int, _Distances]:
        """Measure how far both models lie from float64 on samples where they differ, while time is left."""
        found: dict[int, _Distances] = {}
        twin: Float64 | None = None
        sizes: dict[int, int] = {}
        for index in differing if self._wants_twin else ():
            started = time.perf_counter()
            if self.twin_left < TWIN_COST * self.taken[index].seconds:
                if self.twin_left > 0 and twin is None:
                    self.notes.append("a float64 run of the original would take too long; tolerances judge")
                    self.twin_left = 0.0
                continue
            try:
                if twin is None:
                    twin = Float64(self.source, self.threads)
                    sizes = {i: twin.excess_bytes(self.spool.get("feed", i)) for i in differing}
                if sizes[index] > TWIN_BYTES:
                    where, size = self.taken[index].where, sizes[index] / 1e6
                    self.notes.append(f"{where}: no float64 run, which would take {size:.0f} MB more than the original")
                    continue
                wanted, got = self.spool.get("wanted", index), self.spool.get("got", index)
                exact = twin.run(self.spool.get("feed", index), list(wanted))
            except (NoDouble, MemoptcError) as error:
                self._no_twin(error)
                break
            distances = found[index] = _Distances()
            for name in wanted:
                if name not in self.random:
                    for key, reference, b in _leaves(name, exact[name], got[name]):
                        distances.errors.append((key, difference(reference, b, bits=False)))
            distances.noise += self._noise(exact, wanted)
            self.spool.put("exact", index, exact)
            self.twin_left -= time.perf_counter() - started
        return found

    def _no_twin(self, error: Exception) -> None:
        self.notes.append(f"no float64 reference: {str(error).splitlines()[0]}; tolerances judge")

    def _noise(self, exact: Mapping[str, Any], run: Mapping[str, Any]) -> list[tuple[str, Difference]]:
        """Distances of one run of the original from float64."""
        return [
            (key, difference(reference, a, bits=False))
            for name in run
            if name not in self.random
            for key, reference, a in _leaves(name, exact[name], run[name])
        ]

    def _run_original_other_way(self, samples: Sequence[int]) -> dict[int, MemoptcError]:
        """Run the original with onnxruntime's optimizer switched the other way; give the samples where it fails."""
        if not samples:
            return {}
        try:
            original = _evaluator(self.source, self.second, "the original")
        except MemoptcError as error:
            return dict.fromkeys(samples, error)
        failed: dict[int, MemoptcError] = {}
        for index in samples:
            try:
                self.spool.put("other", index, original.run(self.spool.get("feed", index)))
            except MemoptcError as error:
                failed[index] = error
        return failed

    def _add_distances(self, distances: Mapping[int, _Distances], failed: Mapping[int, MemoptcError]) -> None:
        """Take the distances from float64 as evidence, those of the original run the other way among them."""
        for index, found in distances.items():
            if index in failed:
                self._no_twin(failed[index])
                break
            found.noise += self._noise(self.spool.get("exact", index), self.spool.get("other", index))
            for key, error in found.errors:
                self.evidence[key].errors.append(error)
            for key, noise in found.noise:
                self.evidence[key].noise.append(noise)

    def _run_candidate_other_way(self, samples: Sequence[int]) -> None:
        """The same comparison with onnxruntime's optimizer switched the other way."""
        candidate: Evaluator | None = self._candidate(self.second)
        ran = []
        for index in samples:
            assert candidate is not None
            try:
                self.spool.put("got", index, candidate.run(self.spool.get("feed", index)))
                ran.append(index)
            except MemoptcError as error:
                state = "on" if self.second.optimize else "off"
                self.failures.append(f"with onnxruntime's optimizer {state}: {error.message}")
        candidate = None
        trim()
        for index in ran:
            got = self.spool.get("got", index)
            first, wanted = self.spool.get("wanted", index), self.spool.get("other", index)
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
        target = self.judge.accuracy
        if target is not None:
            lost_more = target.loss_fault(accuracy) if not self.failures else ""
            found += [lost_more] if lost_more else []
        elif accuracy and self.judge.gate is not None:
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
            outputs=tuple(
                {**evidence.totals.to_json(), "error_deciles": deciles(evidence.pairs)}
                for evidence in self.evidence.values()
            ),
            worst_sample=str(self.keep) if self.written else None,
            judged_by=judged,
            failures=tuple(found),
            notes=tuple(dict.fromkeys(notes)),
            nondeterministic=bool(self.random),
            accuracy=accuracy,
            example=self.example,
            target=None if target is None else str(target),
        )

    def _judge_other_way(self) -> list[str]:
        """Both models with onnxruntime's optimizer switched the other way."""
        state = "on" if self.second.optimize else "off"
        failures = []
        for key, evidence in self.other_evidence.items():
            fault = judge_other_way(evidence, self.evidence.get(key), self.judge)
            if fault:
                failures.append(f"output {key!r} with onnxruntime's optimizer {state}: {fault}")
        return failures

    def _accuracy(self) -> dict[str, Any] | None:
        if self.metric is not None:
            control, candidate = self.measured
            return {"metric": self.metric[0], "control": control, "candidate": candidate, "samples": self.count}
        rows, control, candidate = self.hits
        if not rows:
            return None
        return {"control": control / rows, "candidate": candidate / rows, "samples": rows}


def _options(threads: int, *, optimize: bool) -> RunOptions:
    """Options that hold no more memory than a run needs: no arena that grows by doubling, no block beside it."""
    return RunOptions(optimize=optimize, threads=threads, arena=False, mem_pattern=False)


def _evaluator(model: ModelSource, options: RunOptions, label: str) -> Evaluator:
    name = "" if isinstance(model, bytes | onnx.ModelProto) else Path(os.fspath(model)).name
    return Evaluator(model, options, label=name or label)


def _leaves(name: str, a: Any, b: Any) -> Iterator[tuple[str, Any, Any]]:
    """Give the arrays of both values side by side; where their structure differs, the whole as a fault."""
    left, right = dict(flatten(name, a)), dict(flatten(name, b))
    for key in {**left, **right}:
        yield key, left.get(key), right.get(key)


def _pairs(name: str, a: Any, b: Any) -> Iterator[Any]:
    for _, x, y in _leaves(name, a, b):
        yield difference(x, y)
