"""Reports of two compiles side by side: figures of what came out, options and passes that differ."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memoptc.digest import digest
from memoptc.report.facts import stats_by_pass
from memoptc.report.rows import size

FIGURES = {
    "need": ("measured", "need_bytes", "stock"),
    "need in Session": ("measured", "need_bytes", "session"),
    "not evictable": ("measured", "anonymous_bytes", "stock"),
    "need, predicted": ("predicted_need_bytes",),
    "latency p50, ms": ("measured", "latency_ms", "p50"),
    "latency over the original's": ("measured", "slowdown", "ratio"),
    "file": ("file_bytes",),
    "weights at rest": ("weight_bytes",),
    "nodes": ("nodes",),
    "activations, planned peak": ("planned_peak_bytes",),
    "activations, planned arena": ("arena_bytes",),
}
"""Figures of the candidate, by their way into the JSON report."""

_BYTES = ("need", "evictable", "file", "weights", "activations")


def report_of(path: Path) -> dict[str, Any] | None:
    """Give a report: the file itself, or the one beside a model that was written with it; else `None`."""
    for file in (path, path.with_suffix(".json"), path.with_name(f"{path.name}.json")):
        if file.suffix == ".json" and file.is_file():
            try:
                found = json.loads(file.read_text("utf-8"))
            except ValueError:
                continue
            if isinstance(found, dict) and "schema_version" in found and "candidate" in found:
                if file == path or _written_with(path, found):
                    return found
    return None


def _written_with(model: Path, report: Mapping[str, Any]) -> bool:
    """True if a report is that of a model: it names its hash."""
    return any(a.get("sha256") == digest([model]) for a in report.get("artefacts") or ())


def side_by_side(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Give rows: what, in the first, in the second; figures that neither has are left out."""
    rows: list[tuple[str, str, str]] = []
    for name, way in FIGURES.items():
        found = [_at(report["candidate"], way) for report in (first, second)]
        if any(value is not None for value in found):
            rows.append((name, _figure(name, found[0]), _figure(name, found[1])))
    for what, get in (("least SQNR, dB", _sqnr), ("accuracy", lambda r: _at(r, ("accuracy", "candidate")))):
        found = [get(report) for report in (first, second)]
        if any(value is not None for value in found):
            rows.append((what, _figure(what, found[0]), _figure(what, found[1])))
    options = [report["options"] for report in (first, second)]
    for name in dict.fromkeys((*options[0], *options[1])):
        values = [o.get(name) for o in options]
        if values[0] != values[1]:
            rows.append((f"option {name}", str(values[0]), str(values[1])))
    passes = [stats_by_pass((p["name"], p["stats"]) for p in report["passes"]) for report in (first, second)]
    for name in dict.fromkeys((*passes[0], *passes[1])):
        did = [", ".join(f"{k} {v}" for k, v in p[name].items()) if name in p else "not run" for p in passes]
        if did[0] != did[1]:
            rows.append((f"pass {name}", did[0], did[1]))
    return rows


def _at(value: Any, way: tuple[str, ...]) -> Any:
    for key in way:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _sqnr(report: Mapping[str, Any]) -> float | None:
    found = [o.get("sqnr_db") for o in report["verification"].get("outputs") or ()]
    return min((v for v in found if isinstance(v, int | float)), default=None)


def _figure(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name.startswith(_BYTES) or name.startswith("not evictable"):
        return size(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
