"""Run two models on the same samples, one loaded at a time, and compare their outputs."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from memoptc.ir.diagnostics import InputError, InternalError, MemoptcError, first_line
from memoptc.ir.files import staged
from memoptc.ir.ops.double import NoDouble
from memoptc.runtime.compare import Difference
from memoptc.runtime.data import Sample
from memoptc.runtime.evaluate import Evaluator, ModelSource
from memoptc.runtime.findings import Findings
from memoptc.runtime.float64 import Float64
from memoptc.runtime.judge import Judge
from memoptc.runtime.metric import Metric, Outcome
from memoptc.runtime.npz import save_feed
from memoptc.runtime.options import RunOptions
from memoptc.runtime.ports import Refused, check_ports
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
    """The runs of both models on the same samples; `Findings` holds what their outputs come to.

    One model is loaded at a time: the original runs on all samples, then the candidate, then the float64 twin, then
    both models with onnxruntime's optimizer switched the other way. Their outputs lie on disk in between.

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
        self.metric = metric
        self.judge, self.mode, self.threads, self.keep = judge, mode, threads, keep
        self.effort = EFFORTS[mode]
        off, on = _options(threads, optimize=False), _options(threads, optimize=True)
        # integer kernels appear only when onnxruntime fuses them: a coarser model is judged as it will be run
        self.first, self.second = (on, off) if judge.coarser or judge.frozen else (off, on)
        # what holds that optimizer's kernels has them either way
        self.second_of_original = on if judge.frozen else self.second
        self.original: Evaluator | None = _evaluator(original, self.first, "the original")
        self.ports = self.original.inputs, self.original.outputs
        self.spool = Spool()
        self.taken: list[_Taken] = []
        self.broken: MemoptcError | None = None
        self.findings = Findings(judge, None if metric is None else metric[0])
        self.twin_left = self.effort.twin_seconds
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
            self.findings.repeated(wanted, self.original.run(sample.feed))
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
        if self.broken is not None and self.findings.count == len(self.taken) and not self.findings.failures:
            raise self.broken
        complete = range(self.findings.count - bool(self.findings.failures))
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
            self.findings.count += 1
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
        for index in range(self.findings.count - (error is not None)):
            sample, wanted, got = self._sample(index), self.spool.get("wanted", index), self.spool.get("got", index)
            if self._compare(sample, wanted, got):
                differing.append(index)
        if self.metric is not None and not error:
            for place, kind in enumerate(("wanted", "got")):
                self.findings.measured[place] = float(self.metric[1](self._outcomes(kind)))
        if error is not None:
            sample = self._sample(self.findings.count - 1)
            self.findings.failures.append(f"{sample.where}: {error.message}")
            self._write(sample, self.spool.get("wanted", self.findings.count - 1), {})
        return differing

    def _outcomes(self, kind: str) -> Iterator[Outcome]:
        """Outputs of one of the models, as a metric takes them."""
        for index in range(self.findings.count):
            yield Outcome(self.spool.get("feed", index), self.spool.get(kind, index), self.taken[index].label)

    @property
    def _wants_twin(self) -> bool:
        return not self.judge.bit_exact and not self.judge.coarser and self.judge.max_error is None

    def _compare(self, sample: Sample, wanted: Mapping[str, Any], got: Mapping[str, Any]) -> bool:
        differs, worst = self.findings.compare(sample, wanted, got)
        if worst:
            self._write(sample, wanted, got)
        self.findings.compare_labels(sample, wanted, got)
        return differs

    def _write(self, sample: Sample, wanted: Mapping[str, Any], got: Mapping[str, Any]) -> None:
        if self.keep is None:
            return
        parts = {"input": sample.feed, "original": wanted, "candidate": got}
        self.keep.parent.mkdir(parents=True, exist_ok=True)
        with staged(self.keep) as inner:
            save_feed(inner, {f"{part}/{n}": v for part, values in parts.items() for n, v in values.items()})
        self.written = True

    def _run_twin(self, differing: Sequence[int]) -> dict[int, _Distances]:
        """Measure how far both models lie from float64 on samples where they differ, while time is left."""
        found: dict[int, _Distances] = {}
        twin: Float64 | None = None
        sizes: dict[int, int] = {}
        for index in differing if self._wants_twin else ():
            started = time.perf_counter()
            if self.twin_left < TWIN_COST * self.taken[index].seconds:
                if self.twin_left > 0 and twin is None:
                    self.findings.notes.append("a float64 run of the original would take too long; tolerances judge")
                    self.twin_left = 0.0
                continue
            try:
                if twin is None:
                    twin = Float64(self.source, self.threads)
                    sizes = {i: twin.excess_bytes(self.spool.get("feed", i)) for i in differing}
                if sizes[index] > TWIN_BYTES:
                    where, size = self.taken[index].where, sizes[index] / 1e6
                    self.findings.notes.append(
                        f"{where}: no float64 run, which would take {size:.0f} MB more than the original"
                    )
                    continue
                wanted, got = self.spool.get("wanted", index), self.spool.get("got", index)
                exact = twin.run(self.spool.get("feed", index), list(wanted))
            except (NoDouble, MemoptcError) as error:
                self._no_twin(error)
                break
            measured = self.findings.distances
            found[index] = _Distances(measured(exact, {n: got[n] for n in wanted}), measured(exact, wanted))
            self.spool.put("exact", index, exact)
            self.twin_left -= time.perf_counter() - started
        return found

    def _no_twin(self, error: Exception) -> None:
        self.findings.notes.append(f"no float64 reference: {first_line(error)}; tolerances judge")

    def _run_original_other_way(self, samples: Sequence[int]) -> dict[int, MemoptcError]:
        """Run the original with onnxruntime's optimizer switched the other way; give the samples where it fails."""
        if not samples:
            return {}
        try:
            original = _evaluator(self.source, self.second_of_original, "the original")
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
            other = self.findings.distances(self.spool.get("exact", index), self.spool.get("other", index))
            self.findings.add_distances(found.errors, found.noise + other)

    def _run_candidate_other_way(self, samples: Sequence[int]) -> None:
        """Compare the two models again with onnxruntime's optimizer switched the other way."""
        candidate: Evaluator | None = self._candidate(self.second)
        ran = []
        for index in samples:
            assert candidate is not None
            try:
                self.spool.put("got", index, candidate.run(self.spool.get("feed", index)))
                ran.append(index)
            except MemoptcError as error:
                self.findings.failures.append(f"with onnxruntime's optimizer {self._other_state}: {error.message}")
        candidate = None
        trim()
        for index in ran:
            got = self.spool.get("got", index)
            self.findings.compare_other_way(self.spool.get("wanted", index), self.spool.get("other", index), got)

    def result(self, kind: str, notes: Sequence[str]) -> Verification:
        """Judge what was seen."""
        kept = self.keep if self.written else None
        return self.findings.judged(self.mode, kind, notes, other_state=self._other_state, kept=kept)

    @property
    def _other_state(self) -> str:
        return "on" if self.second.optimize else "off"


def _options(threads: int, *, optimize: bool) -> RunOptions:
    """Options that hold no more memory than a run needs: no arena that grows by doubling, no block beside it."""
    return RunOptions(optimize=optimize, threads=threads, arena=False, mem_pattern=False)


def _evaluator(model: ModelSource, options: RunOptions, label: str) -> Evaluator:
    name = "" if isinstance(model, bytes | onnx.ModelProto) else Path(os.fspath(model)).name
    return Evaluator(model, options, label=name or label)
