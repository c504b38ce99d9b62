"""The before/after table as rows of text, shared by terminal, Markdown and HTML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from memoptc.report.facts import ReportFacts
from memoptc.runtime.configuration import FILE_ORDER


@dataclass(frozen=True)
class Row:
    """One line of the before/after table. `better` is `None` where less is neither better nor worse."""

    what: str
    before: str
    after: str
    ratio: str
    better: bool | None
    part: bool = False
    """It tells what the row above is made of."""


def size(count: float | None) -> str:
    """Write a number of bytes for people (powers of 1,000, as disks count them)."""
    if count is None:
        return "unknown"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{int(count)} B"


def limit_text(count: int) -> str:
    """Write a limit as it was likely asked for, and as the sizes that it is held against."""
    if count < 1 << 20:
        return f"{size(count)} (a number without a unit is bytes)"
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if count % scale == 0:
            return f"{count // scale} {unit} ({size(count)})"
    return size(count)


def statistics_text(stats: Mapping[str, int]) -> str:
    """Write what a pass counted: bytes as sizes, and nothing that is nought."""
    return ", ".join(
        f"{key} {size(count) if 'bytes' in key.split() else count}" for key, count in stats.items() if count
    )


def markdown_cell(value: object) -> str:
    """Write a value into a cell of a Markdown table, which a bar or the end of a line would end."""
    return "<br>".join(f"{value}".replace("|", "\\|").splitlines())


def _milliseconds(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g} ms" if value < 100 else f"{value:.0f} ms"


_LABELS = {"weights": "weights and session"}
"""What a part is called in the table, where that is more than its name: a session without weights needs some, too."""

PARTS = ("weights", "activations", "workspace", "loading", "ours")


def before_after(report: ReportFacts) -> list[Row]:
    """Give the rows: what the process needs and what that is made of, how fast it is, what it weighs, how far off."""
    control, candidate = report.control, report.candidate
    rows = [*_needs(report), *_times(report)]
    rows += [
        _row("file", control.file_bytes, candidate.file_bytes, size),
        _row("weights at rest", control.weight_bytes, candidate.weight_bytes, size),
        Row("nodes", str(control.nodes), str(candidate.nodes), _ratio(control.nodes, candidate.nodes), None),
        _row(
            f"activations, planned peak ({FILE_ORDER})", control.planned_peak_bytes, candidate.planned_peak_bytes, size
        ),
    ]
    if candidate.arena_bytes is not None:
        rows.append(_row("activations, planned arena", control.arena_bytes, candidate.arena_bytes, size))
    if report.accuracy:
        a, b = report.accuracy["control"], report.accuracy["candidate"]
        count = report.accuracy["samples"]
        one_each = report.accuracy["metric"] != "top-1" or count == report.verification.get("samples")
        name = f"{report.accuracy['metric']}, {count} {'samples' if one_each else 'labels'}"
        if report.accuracy["metric"] == "perplexity":
            name = f"perplexity, {report.accuracy['samples']} tokens"
            rows.append(_row(name, a, b, lambda v: f"{v:.2f}"))
        else:
            rows.append(_row(name, a, b, lambda v: f"{v:.4f}", more_is_better=True))
    return rows


def _needs(report: ReportFacts) -> list[Row]:
    """Rows of the need of the process: stock onnxruntime, then each tier of `Session`, each with its breakdown."""
    before, after = report.control.measured, report.candidate.measured
    if not (before and after):
        a, b = report.control.predicted_need_bytes, report.candidate.predicted_need_bytes
        return [] if a is None or b is None else [_row("need, predicted", a, b, size)]
    rows = [_row("need", before["need_bytes"]["stock"], after["need_bytes"]["stock"], size)]
    rows += _breakdown(before, after, before["anonymous_bytes"]["stock"], after["anonymous_bytes"]["stock"])
    for index, (tier, found) in enumerate((report.candidate.session or {}).items()):
        # What is compared with is the original as it is run today: in plain onnxruntime.
        rows.append(_row(f"need in Session, {tier}", before["need_bytes"]["stock"], found["need_bytes"], size))
        if index == 0:  # the default tier
            rows += _breakdown(before, found, before["anonymous_bytes"]["stock"], found["anonymous_bytes"])
    return rows


def evictable(need: int, anonymous: int | None) -> str:
    """Say how much of a need the kernel cannot evict; nothing where that is not known.

    All of it where a session gave back more pages of onnxruntime's library than it reads.
    """
    if anonymous is None:
        return ""
    return f", {size(anonymous) if anonymous < need else 'all'} of them not evictable"


def _breakdown(before: dict[str, Any], after: dict[str, Any], *anonymous: int | None) -> list[Row]:
    rows = []
    for part in PARTS:
        a, b = before["parts"][part], after["parts"][part]
        if a or b:
            rows.append(replace(_row(f"  {_LABELS.get(part, part)}", a, b, size), better=None, part=True))
    if None not in anonymous:
        rows.append(replace(_row("  not evictable", anonymous[0], anonymous[1], size), better=None))
    for key, what in (("load_peak_bytes", "  peak of loading"), ("run_peak_bytes", "  peak of runs over loaded")):
        rows.append(replace(_row(what, before[key], after[key], size), better=None, part=True))
    if after["container_bytes"] is not None:
        rows.append(_row("  smallest container", before["container_bytes"], after["container_bytes"], size))
    return rows


def _times(report: ReportFacts) -> list[Row]:
    before, after = report.control.measured, report.candidate.measured
    if not (before and after):
        return []
    a, b = before["latency_ms"], after["latency_ms"]
    rows = [_latency_p50("latency p50", before, after), _row("latency p95", a["p95"], b["p95"], _milliseconds)]
    for tier, found in (report.candidate.session or {}).items():
        rows.append(_latency_p50(f"latency p50 in Session, {tier}", before, found))
    a, b = before["throughput_per_s"], after["throughput_per_s"]
    rows.append(_row("throughput", a, b, lambda v: f"{v:.1f}/s", more_is_better=True))
    return rows


def _latency_p50(what: str, before: dict[str, Any], after: dict[str, Any]) -> Row:
    """Compare medians; by the turns that the two took against each other where these are known, as the verdict does."""
    slowdown = after.get("slowdown")
    control = slowdown["control_ms"] if slowdown else before["latency_ms"]["p50"]
    row = _row(what, control, after["latency_ms"]["p50"], _milliseconds)
    return replace(row, ratio=f"{slowdown['ratio']:.2f}x") if slowdown else row


def _row(what: str, a: float | None, b: float | None, text: Any, *, more_is_better: bool = False) -> Row:
    before, after = ("unknown" if v is None else text(v) for v in (a, b))
    if a is None or b is None:
        return Row(what, before, after, "", None)
    ratio = _ratio(a, b)
    better = None if a == b or ratio == "1.00x" else (b > a) == more_is_better
    return Row(what, before, after, ratio, better)


def _ratio(a: float, b: float) -> str:
    return f"{b / a:.2f}x" if a else ("1.00x" if a == b else "")
