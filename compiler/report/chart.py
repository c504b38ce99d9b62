"""The memory curve: planned bytes alive over one run, before and after, as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from memoptc.report.model import Curve
from memoptc.report.rows import size

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 860, 260, 74, 28, 14
POINTS = 1500
"""More steps than this are thinned, each point keeping the peak of the steps it stands for."""


@dataclass(frozen=True)
class _Series:
    name: str
    color: str
    curve: Curve


def memory_chart(before: Curve | None, after: Curve | None) -> str:
    """Give an SVG element with both curves over the share of the run, or `""` when there is no curve."""
    series = [
        _Series(name, color, curve)
        for name, color, curve in (("before", "#8a8f98", before), ("after", "#0b7285", after))
        if curve is not None and curve.live_bytes
    ]
    if not series:
        return ""
    top = max(max(s.curve.live_bytes) for s in series) or 1
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="planned activation memory over one run">']
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = _y(share * top, top)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - 8}" y1="{y}" y2="{y}" class="grid"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{size(share * top)}</text>')
    for s in series:
        parts.append(_area(s, top))
    for i, s in enumerate(series):
        x = LEFT + 8 + 110 * i
        parts.append(f'<rect x="{x}" y="{HEIGHT - 16}" width="12" height="12" fill="{s.color}"/>')
        parts.append(f'<text x="{x + 18}" y="{HEIGHT - 6}">{s.name}</text>')
    return "".join([*parts, "</svg>"])


def _y(value: float, top: float) -> float:
    return round(TOP + (HEIGHT - BOTTOM - TOP) * (1 - value / top), 1)


def _area(series: _Series, top: int) -> str:
    live, labels = series.curve.live_bytes, series.curve.labels
    count = len(live)
    group = -(-count // POINTS)
    span = WIDTH - 8 - LEFT
    points, peak_at = [], max(range(count), key=live.__getitem__)
    for start in range(0, count, group):
        stop = min(start + group, count)
        y = _y(max(live[start:stop]), top)
        points.append(f"{LEFT + span * start / count:.1f},{y} {LEFT + span * stop / count:.1f},{y}")
    base = _y(0, top)
    outline = f"{LEFT},{base} {' '.join(points)} {WIDTH - 8},{base}"
    label = escape(labels[peak_at]) if peak_at < len(labels) else f"step {peak_at}"
    x = LEFT + span * (peak_at + 0.5) / count
    return (
        f'<polygon points="{outline}" fill="{series.color}" fill-opacity="0.25" stroke="{series.color}"/>'
        f'<circle cx="{x:.1f}" cy="{_y(live[peak_at], top)}" r="4" fill="{series.color}">'
        f"<title>{series.name}: peak {size(live[peak_at])} at {label}</title></circle>"
    )


_BLOCKS = " ▁▂▃▄▅▆▇█"


def sparkline(curve: Sequence[int], top: int | None = None, width: int = 64) -> str:
    """Draw a curve in one line of text, each column the peak of the steps that it stands for.

    Args:
        curve: Bytes alive during each step.
        top: What the full height stands for; the curve's own peak when not given.
        width: Columns at most.
    """
    top = max(curve, default=0) if top is None else top
    columns = min(width, len(curve))
    edges = [len(curve) * i // columns for i in range(columns + 1)] if columns else []
    peaks = [max(curve[a:b]) for a, b in pairwise(edges)]
    # Something alive is always seen: only 0 is a blank.
    return "".join(_BLOCKS[-(-p * (len(_BLOCKS) - 1) // top)] if top and p else _BLOCKS[0] for p in peaks)
