"""Findings of a comparison: distances of the candidate's outputs from the original's, and the judgement of them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from memoptc.runtime.compare import Difference, Totals, deciles, difference, flatten
from memoptc.runtime.data import Sample
from memoptc.runtime.example import farthest
from memoptc.runtime.judge import Evidence, Judge, dtype_name, judge_other_way, judge_output
from memoptc.runtime.loss_bound import PairedHits
from memoptc.runtime.metric import hits_of
from memoptc.runtime.verification import Verification

Outputs = Mapping[str, Any]
"""Output name -> value of one run."""


class Findings:
    """Evidence about every output, collected sample by sample, and what it comes to.

    Args:
        judge: The bounds that the candidate is held to.
        metric: Name of the metric whose figures `measured` takes; top-1 on labels where there are some, when `None`.

    Attributes:
        count: Samples that the candidate ran on.
        failures: Sentences about runs that failed.
        notes: Sentences for the report.
        random: Outputs that the original itself does not repeat; compared by shape and type only.
        measured: The metric of the original and of the candidate.
    """

    def __init__(self, judge: Judge, metric: str | None) -> None:
        self.judge, self.metric = judge, metric
        self.count = 0
        self.failures: list[str] = []
        self.notes: list[str] = []
        self.random: set[str] = set()
        self.measured = [0.0, 0.0]
        self._evidence: dict[str, Evidence] = {}
        self._unjudged: set[str] = set()  # of the evidence, what is of random outputs
        self._other_evidence: dict[str, Evidence] = {}
        self._worst = 0.0
        self._example: dict[str, Any] | None = None
        self._right, self._hits = [0, 0], PairedHits(0, 0, 0)  # labelled rows right by the original, by the candidate

    def repeated(self, first: Outputs, second: Outputs) -> None:
        """Note which outputs differ between two runs of the original on one sample."""
        self.random = {n for n in first if not all(d.exact for d in _pairs(n, first[n], second[n]))}

    def compare(self, sample: Sample, wanted: Outputs, got: Outputs) -> tuple[bool, bool]:
        """Compare the outputs of both models on one sample.

        Returns:
            Whether any bit differs, and whether this is the worst sample so far.
        """
        differs, score = False, 0.0
        for name in wanted:
            for key, a, b in _leaves(name, wanted[name], got[name]):
                evidence = self._evidence.setdefault(key, Evidence(Totals(key), dtype_name(a)))
                found = difference(a, b)
                if name in self.random:
                    self._unjudged.add(key)
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
        worst = score > self._worst or (differs and self._example is None)
        if worst:
            self._worst = max(self._worst, score)
            self._example = farthest(os.path.basename(sample.where), wanted, got)
        return differs, worst

    def compare_labels(self, sample: Sample, wanted: Outputs, got: Outputs) -> None:
        """Count right answers of both models, where a sample has labels and an output has a score for each class."""
        if sample.label is None:
            return
        before, after = hits_of(wanted, sample.label), hits_of(got, sample.label)
        self._right = [self._right[0] + int(before.sum()), self._right[1] + int(after.sum())]
        self._hits += PairedHits.of(before, after)

    def compare_other_way(self, first: Outputs, wanted: Outputs, got: Outputs) -> None:
        """Compare the outputs on one sample with onnxruntime's optimizer switched the other way.

        Args:
            first: Outputs of the original as it was run first.
            wanted: Those of the original the other way.
            got: Those of the candidate the other way.
        """
        for name in wanted:
            if name not in self.random:
                for key, a, b in _leaves(name, wanted[name], got[name]):
                    evidence = self._other_evidence.setdefault(key, Evidence(Totals(key), dtype_name(a)))
                    found = difference(a, b)
                    evidence.totals.add(found)
                    evidence.pairs.append(found)
                for key, a, b in _leaves(name, first[name], wanted[name]):
                    self._evidence[key].own.append(difference(a, b))

    def distances(self, exact: Outputs, run: Outputs) -> list[tuple[str, Difference]]:
        """Measure the distances of one run's outputs from those in float64."""
        return [
            (key, difference(reference, a, bits=False))
            for name in run
            if name not in self.random
            for key, reference, a in _leaves(name, exact[name], run[name])
        ]

    def add_distances(self, errors: Sequence[tuple[str, Difference]], noise: Sequence[tuple[str, Difference]]) -> None:
        """Take distances from float64 as evidence: the candidate's, and those of the original's runs."""
        for key, error in errors:
            self._evidence[key].errors.append(error)
        for key, own in noise:
            self._evidence[key].noise.append(own)

    def judged(
        self, mode: str, kind: str, notes: Sequence[str], *, other_state: str, kept: Path | None
    ) -> Verification:
        """Judge what was collected.

        Args:
            mode: Mode of the verification.
            kind: Kind of the inputs.
            notes: Further sentences for the report.
            other_state: State of onnxruntime's optimizer in the runs the other way, `on` or `off`.
            kept: Where the worst sample was written.
        """
        failures, judged = [], {}
        for key, evidence in self._evidence.items():
            if key in self._unjudged:
                judged[key] = "structure (nondeterministic)"
                fault = evidence.totals.faults[0] if evidence.totals.faults else ""
            else:
                fault, judged[key] = judge_output(evidence, self.judge)
            if fault:
                failures.append((-evidence.totals.max_abs, f"output {key!r}: {fault}"))
        failures.sort(key=lambda item: item[0])
        found = self.failures + [text for _, text in failures]
        if not found:
            found += self._judge_other_way(other_state)
        accuracy = self._accuracy()
        target = self.judge.accuracy
        if target is not None:
            lost_more = target.loss_fault(accuracy) if not self.failures else ""
            found += [lost_more] if lost_more else []
        elif accuracy and self.judge.gate is not None:
            lost = accuracy["control"] - accuracy["candidate"]
            if not lost <= self.judge.gate.accuracy_loss + 1 / accuracy["samples"]:
                found.append(f"accuracy fell from {accuracy['control']:.4f} to {accuracy['candidate']:.4f}")
        notes = [*notes, *self.notes]
        if target is not None and target.max_loss is not None and self.metric is None and self._hits.rows:
            doubt = self._hits.doubt(target.max_loss)
            notes += [doubt] if doubt else []
        if self.random:
            names = ", ".join(repr(name) for name in sorted(self.random))
            notes.append(f"the original is not deterministic: {names} compared by shape and type only")
        return Verification(
            passed=not found,
            mode=mode,
            inputs=kind,
            samples=self.count,
            outputs=tuple(
                {**evidence.totals.to_json(), "error_deciles": deciles(evidence.pairs)}
                for evidence in self._evidence.values()
            ),
            worst_sample=None if kept is None else str(kept),
            judged_by=judged,
            failures=tuple(found),
            notes=tuple(dict.fromkeys(notes)),
            nondeterministic=bool(self.random),
            accuracy=accuracy,
            example=self._example,
            target=None if target is None else str(target),
            other_way=self._other_way(other_state),
        )

    def _other_way(self, state: str) -> dict[str, Any] | None:
        found = [e.totals for e in self._other_evidence.values()]
        if not found or any(totals.faults for totals in found):
            return None
        return {"optimizer": state, "max_abs": max(float(totals.max_abs) for totals in found)}

    def _judge_other_way(self, state: str) -> list[str]:
        """Judge both models with onnxruntime's optimizer switched the other way."""
        failures = []
        for key, evidence in self._other_evidence.items():
            fault = judge_other_way(evidence, self._evidence.get(key), self.judge)
            if fault:
                failures.append(f"output {key!r} with onnxruntime's optimizer {state}: {fault}")
        return failures

    def _accuracy(self) -> dict[str, Any] | None:
        if self.metric is not None:
            control, candidate = self.measured
            return {"metric": self.metric, "control": control, "candidate": candidate, "samples": self.count}
        lost, won, rows = self._hits
        if not rows:
            return None
        control, candidate = self._right
        found = {"control": control / rows, "candidate": candidate / rows, "samples": rows}
        return found | {"lost": lost, "won": won, "loss_bound": self._hits.bound}


def _leaves(name: str, a: Any, b: Any) -> Iterator[tuple[str, Any, Any]]:
    """Give the arrays of both values side by side; where their structure differs, the whole as a fault."""
    left, right = dict(flatten(name, a)), dict(flatten(name, b))
    for key in {**left, **right}:
        yield key, left.get(key), right.get(key)


def _pairs(name: str, a: Any, b: Any) -> Iterator[Any]:
    for _, x, y in _leaves(name, a, b):
        yield difference(x, y)
