"""Results of a study: one row for each change, failures included, and the rows that no other row beats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from memoptc.runtime.sizes import GROWTH, RESOLUTION, grown

TIME_STEP = 1.05
"""Latencies whose ratio is smaller count as equal where rows are compared."""


@dataclass
class Row:
    """A row of the study: a change, and the figures of the model compiled with it.

    Args:
        name: How it is called; `control` for the untouched original in onnxruntime as it comes.
        kind: `control`, `alone` or `in sequence`.
        runtime: `onnxruntime` or `Session`.
        command: How to repeat it; `""` where the file is the original.
        failure: Why there are no figures, or why the outputs are not good enough; `""` where all is well.
        file: The model, relative to the study's folder; `None` for the original.
        sha256: Of that file.
        file_bytes: The model with its external data.
        need_bytes: Median over the processes, least and most.
        anonymous_bytes: Bytes of the first process that the kernel cannot evict.
        latency_ms: `p50`, `p95`, `p99`.
        slowdown: Ratio of latencies to the control's: `ratio`, and `low` and `high` of its interval.
        throughput_per_s: Runs per second.
        runs: Runs that were timed.
        checked: How outputs were compared: `inputs`, `samples`, `mode`, `passed`, `bit_exact`.
        sqnr_db: Least signal to difference of an output; `None` where the bits are the same or it is not known.
        max_abs: Largest difference of an output.
        accuracy: `metric`, `control`, `candidate`, where the data carries labels.
        worst_example: File with inputs and both outputs of the sample that differs most.
        flipped: Numbers of the samples, from 0, whose likeliest class is another one than the original's.
        passes: What each pass that did something did.
        decided: What passes chose by data, or measured there, and why.
        pareto: Whether no other row is at least as good in need, latency and difference, and better in one.
    """

    name: str
    kind: str
    runtime: str
    command: str = ""
    failure: str = ""
    file: str | None = None
    sha256: str = ""
    file_bytes: int | None = None
    need_bytes: dict[str, int] | None = None
    anonymous_bytes: int | None = None
    latency_ms: dict[str, float] | None = None
    slowdown: dict[str, float] | None = None
    throughput_per_s: float | None = None
    runs: int = 0
    checked: dict[str, Any] = field(default_factory=dict)
    sqnr_db: float | None = None
    max_abs: float | None = None
    accuracy: dict[str, Any] | None = None
    worst_example: str | None = None
    flipped: list[int] = field(default_factory=list)
    passes: dict[str, dict[str, int]] = field(default_factory=dict)
    decided: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    pareto: bool = False

    @property
    def usable(self) -> bool:
        """True if it was measured and its outputs are good enough."""
        return not self.failure and self.need_bytes is not None and self.latency_ms is not None

    @property
    def loss(self) -> tuple[float, float]:
        """Distance of the outputs, more being worse: the loss of the metric, and noise over signal."""
        if self.kind == "control" or self.checked.get("bit_exact"):
            return 0.0, 0.0
        lost = 0.0 if self.accuracy is None else accuracy_lost(self.accuracy)
        return max(0.0, lost), 1.0 if self.sqnr_db is None else 10 ** (-self.sqnr_db / 20)


@dataclass
class Study:
    """All rows of a study, the control first.

    Args:
        model: `name`, `sha256`, `bytes`.
        deployment: Where the model shall run, in words.
        environment: Versions, processor, threads, sizes.
        command: How to repeat the study.
        data: Hash of each file of data.
        failure_check: What planting a fault showed.
        rows: The control, then the changes.
        recommended: Name of the row that the card is about; `control` where nothing is better.
        slowdown: Ratio of latencies up to which a change counts as no slower where one is recommended.
        repeats: Fresh processes behind each need.
    """

    model: dict[str, Any]
    deployment: str
    environment: dict[str, Any]
    command: str
    data: dict[str, str]
    failure_check: str
    rows: list[Row]
    slowdown: float
    repeats: int
    recommended: str = "control"

    def judge(self) -> None:
        """Mark what no other row beats, and choose among those.

        A row may be chosen where it is better than the control in need, latency or accuracy, and worse in none of
        them, as far as noise allows to say. Of several, the one with the least product of need and latency is: what
        a run takes of memory, for as long as it takes it.
        """
        mark_pareto(self.rows)
        found = [(row, compare(self.rows[0], row, self.slowdown)) for row in self.rows[1:] if row.pareto]
        good = [row for row, (better, worse) in found if better and not worse]
        if good:
            self.recommended = min(good, key=lambda row: (_need(row) * _p50(row), row.loss)).name

    def row(self, name: str) -> Row:
        """Give the row of a name."""
        return next(r for r in self.rows if r.name == name)

    def to_json(self) -> dict[str, Any]:
        """Give plain values."""
        return asdict(self)


def mark_pareto(rows: Sequence[Row]) -> None:
    """Mark the rows that no other one dominates, in need, median latency and difference of outputs.

    Figures are compared on a grid as coarse as measuring is: so that noise neither makes a row nor unmakes it, and
    domination stays an order.
    """
    usable = {id(row): _point(row) for row in rows if row.usable}
    for row in rows:
        mine = usable.get(id(row))
        row.pareto = mine is not None and not any(
            other != mine and all(o <= m for o, m in zip(other, mine, strict=True)) for other in usable.values()
        )


def compare(control: Row, row: Row, slowdown: float = 1.0) -> tuple[list[str], list[str]]:
    """Give in which of need, latency and accuracy a row is better than the control, and in which worse, beyond noise.

    Args:
        control: The untouched original.
        row: A change.
        slowdown: Ratio of latencies up to which a row is no slower.
    """
    better: list[str] = []
    worse: list[str] = []
    if not (control.usable and row.usable):
        return better, worse
    if grown(_need(row), _need(control)):
        better.append("need")
    elif grown(_need(control), _need(row)):
        worse.append("need")
    if row.slowdown is not None and row.slowdown["high"] < 1:
        better.append("latency")
    elif row.slowdown is None or row.slowdown["low"] > slowdown:
        worse.append("latency")
    if row.accuracy is not None and _apart(row.accuracy):
        (worse if accuracy_lost(row.accuracy) > 0 else better).append("accuracy")
    return better, worse


def _apart(accuracy: dict[str, Any]) -> bool:
    """As `told_apart`; other metrics, whose spread is not known, by as much as needs."""
    return told_apart(accuracy) and (
        accuracy["metric"] == "top-1" or abs(accuracy_lost(accuracy)) > (GROWTH - 1) * abs(accuracy["control"])
    )


def accuracy_lost(accuracy: dict[str, Any]) -> float:
    """How much worse a metric is than the control's; of perplexity, less is better."""
    lost = float(accuracy["control"] - accuracy["candidate"])
    return -lost if accuracy["metric"] == "perplexity" else lost


def told_apart(accuracy: dict[str, Any]) -> bool:
    """True if two metrics differ by more than two standard errors of a share; other metrics by anything."""
    before, after, count = accuracy["control"], accuracy["candidate"], accuracy.get("samples") or 0
    if accuracy["metric"] != "top-1" or not count:
        return bool(before != after)
    share = (before + after) / 2
    return bool(abs(after - before) > 2 * math.sqrt(2 * share * (1 - share) / count))


def _p50(row: Row) -> float:
    assert row.latency_ms is not None
    return row.latency_ms["p50"]


def _need(row: Row) -> int:
    assert row.need_bytes is not None
    return row.need_bytes["median"]


def _point(row: Row) -> tuple[float, ...]:
    need = round(math.log(_need(row) + RESOLUTION / (GROWTH - 1)) / math.log(GROWTH))
    latency = round(math.log(max(_p50(row), 1e-6)) / math.log(TIME_STEP))
    return need, latency, *(float(f"{loss:.2g}") for loss in row.loss)
