"""Bars of the memory that each process needs, by its parts, as inline SVG."""

from __future__ import annotations

from html import escape
from typing import Any

from memoptc.report.facts import ReportFacts
from memoptc.report.rows import PARTS, size

WIDTH, LEFT, RIGHT, BAR, GAP = 860, 190, 90, 22, 12
COLORS = {
    "weights": "#0b7285",
    "activations": "#e8590c",
    "workspace": "#f59f00",
    "loading": "#868e96",
    "ours": "#862e9c",
}


def need_bars(report: ReportFacts) -> str:
    """Give an SVG element with a bar for the original and for each way to run the candidate; `""` if not measured."""
    before, after = report.control.measured, report.candidate.measured
    if not (before and after):
        return ""
    bars: list[tuple[str, dict[str, Any]]] = [("original", before["parts"]), ("in onnxruntime", after["parts"])]
    bars += [(f"in Session, {tier}", found["parts"]) for tier, found in (report.candidate.session or {}).items()]
    top = max(sum(parts.values()) for _, parts in bars) or 1
    height = len(bars) * (BAR + GAP) + 24
    drawn = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="what each process needs, by parts">']
    for index, (name, parts) in enumerate(bars):
        drawn.append(_bar(index * (BAR + GAP), name, parts, top))
    shown = [part for part in PARTS if any(parts[part] for _, parts in bars)]
    for index, part in enumerate(shown):
        x = LEFT + 120 * index
        drawn.append(f'<rect x="{x}" y="{height - 14}" width="12" height="12" fill="{COLORS[part]}"/>')
        drawn.append(f'<text x="{x + 18}" y="{height - 4}">{part}</text>')
    return "".join([*drawn, "</svg>"])


def _bar(y: int, name: str, parts: dict[str, int], top: int) -> str:
    drawn = [f'<text x="{LEFT - 10}" y="{y + 15}" text-anchor="end">{escape(name)}</text>']
    x = float(LEFT)
    for part in PARTS:
        width = (WIDTH - LEFT - RIGHT) * parts[part] / top
        if width:
            drawn.append(
                f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{BAR}" fill="{COLORS[part]}">'
                f"<title>{part}: {size(parts[part])}</title></rect>"
            )
        x += width
    drawn.append(f'<text x="{x + 8:.1f}" y="{y + 15}">{size(sum(parts.values()))}</text>')
    return "".join(drawn)
