"""The before/after table as rows of text, shared by terminal, Markdown and HTML."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from memoptc.report.model import Report, Side


@dataclass(frozen=True)
class Row:
    """One line of the before/after table. `better` is `None` where less is neither better nor worse."""

    what: str
    before: str
    after: str
    ratio: str
    better: bool | None


def size(count: float | None) -> str:
    """Write a number of bytes for people (powers of 1,000, as disks count them)."""
    if count is None:
        return "unknown"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{int(count)} B"


def _milliseconds(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g} ms" if value < 100 else f"{value:.0f} ms"


def before_after(report: Report) -> list[Row]:
    """Give the rows: what it weighs, what it needs, how fast it is, how far off it is."""
    control, candidate = report.control, report.candidate
    rows = [
        _row("file", control.file_bytes, candidate.file_bytes, size),
        _row("weights at rest", control.weight_bytes, candidate.weight_bytes, size),
        Row("nodes", str(control.nodes), str(candidate.nodes), _ratio(control.nodes, candidate.nodes), None),
        _row("activations, planned peak", control.planned_peak_bytes, candidate.planned_peak_bytes, size),
    ]
    if candidate.arena_bytes is not None:
        rows.append(_row("activations, planned arena", control.arena_bytes, candidate.arena_bytes, size))
    if control.measured and candidate.measured:
        rows += [
            _measured("loading, measured peak", control, candidate, "load_peak_bytes", size),
            _measured("run, measured peak", control, candidate, "run_peak_bytes", size),
            _row("loaded and running, measured peak", _process(control.measured), _process(candidate.measured), size),
        ]
        for tier, found in (candidate.session or {}).items():
            before = control.measured["run_peak_bytes"]
            rows.append(_row(f"run in Session, {tier}, measured peak", before, found["run_peak_bytes"], size))
        for key in ("p50", "p95"):
            a, b = (side.measured["latency_ms"][key] for side in (control, candidate) if side.measured)
            rows.append(_row(f"latency {key}", a, b, _milliseconds))
        a, b = (side.measured["throughput_per_s"] for side in (control, candidate) if side.measured)
        rows.append(_row("throughput", a, b, lambda v: f"{v:.1f}/s", more_is_better=True))
    if report.accuracy:
        a, b = report.accuracy["control"], report.accuracy["candidate"]
        name = f"{report.accuracy['metric']}, {report.accuracy['samples']} samples"
        rows.append(_row(name, a, b, lambda v: f"{v:.4f}", more_is_better=True))
    return rows


def _process(measured: dict[str, Any]) -> int | None:
    """Most bytes of the whole process over one that has loaded nothing: mapped weights come in as they are read."""
    if measured.get("loaded_bytes") is None:
        return None
    return int(max(measured["load_peak_bytes"], measured["loaded_bytes"] + measured["run_peak_bytes"]))


def _measured(what: str, control: Side, candidate: Side, key: str, text: Any) -> Row:
    a, b = ((side.measured or {}).get(key) for side in (control, candidate))
    return _row(what, a, b, text)


def _row(what: str, a: float | None, b: float | None, text: Any, *, more_is_better: bool = False) -> Row:
    before, after = ("unknown" if v is None else text(v) for v in (a, b))
    if a is None or b is None:
        return Row(what, before, after, "", None)
    better = None if a == b else (b > a) == more_is_better
    return Row(what, before, after, _ratio(a, b), better)


def _ratio(a: float, b: float) -> str:
    return f"{b / a:.2f}x" if a else ("1.00x" if a == b else "")


def verdict(report: Report) -> str:
    """Say in one sentence what the proof found."""
    found = report.verification
    mode = found.get("mode", "off")
    if mode == "off":
        return "Not verified (--verify off)."
    samples, source = found.get("samples", 0), found.get("inputs", "random")
    noun = "sample" if samples == 1 else "samples"
    how = f"{samples} {source} {noun}"
    if not found.get("passed"):
        return f"Verification FAILED on {how}."
    if found.get("bit_exact"):
        return f"Verified on {how}: every output bit is the same."
    if report.options.get("target") != "float32":
        ratios = [o["sqnr_db"] for o in found.get("outputs", []) if _number(o.get("sqnr_db"))]
        least = f", lowest signal to noise ratio {min(ratios):.1f} dB" if ratios else ""
        return f"Verified on {how}: within the gates of {report.options['target']}{least}."
    worst = max((o.get("max_abs") or 0.0 for o in found.get("outputs", []) if _number(o.get("max_abs"))), default=0.0)
    return f"Verified on {how}: within tolerance, largest absolute difference {worst:.3g}."


def _number(value: Any) -> bool:
    return isinstance(value, int | float)
