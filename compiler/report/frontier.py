"""A frontier as a picture (SVG), a page and a table: what smaller budgets cost."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from memoptc.ir.diagnostics import InputError
from memoptc.ir.files import atomic_write
from memoptc.report.rows import size

if TYPE_CHECKING:
    from memoptc.frontier import Frontier, Point

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860, 340, 84, 70, 40, 44
HEADINGS = ("budget", "planned", "of the original", "run peak", "latency", "largest error", "verified", "held", "nodes")
FORMS = ".svg, .html or .json"
"""How names of reports end."""
_STYLE = (
    "<style>text{font:12px system-ui,sans-serif;fill:#495057}.title{font-weight:600;font-size:14px;fill:#212529}"
    ".grid{stroke:#dee2e6}.line{fill:none;stroke-width:2}</style>"
)
_MEMORY, _TIME, _MISSED = "#0b7285", "#e8590c", "#c92a2a"


def rows(found: Frontier) -> list[tuple[str, ...]]:
    """Give one row of text per point, below `HEADINGS`."""
    return [_row(point, found) for point in found.points]


def _row(point: Point, found: Frontier) -> tuple[str, ...]:
    return (
        size(point.budget_bytes),
        size(point.planned_bytes),
        f"{point.planned_bytes / found.planned_bytes:.2f}" if found.planned_bytes else "",
        size(point.run_peak_bytes),
        f"{point.latency_ms / found.latency_ms:.2f}x" if point.latency_ms and found.latency_ms else "",
        "" if point.max_error is None else f"{point.max_error:.2g}",
        _mark(point.verified),
        _mark(point.held) if point.reached else f"out of reach: {point.holder}",
        str(point.nodes),
    )


def _mark(value: bool | None) -> str:
    return "" if value is None else "yes" if value else "no"


def check_frontier_path(path: str | Path) -> Path:
    """Give the path when its ending names a known form.

    Raises:
        InputError: it does not.
    """
    path = Path(path)
    if path.suffix not in (".svg", ".html", ".json"):
        raise InputError(f"{path.name} is no report of a frontier.", hint=f"Use a name that ends in {FORMS}.")
    return path


def write_frontier(found: Frontier, path: str | Path) -> None:
    """Write a frontier whole or not at all; the ending (.svg, .html, .json) says in which form.

    Raises:
        InputError: the ending names no known form, or the file cannot be written.
    """
    path = check_frontier_path(path)
    render = {".svg": picture, ".html": page, ".json": _json}[path.suffix]
    atomic_write(path, render(found).encode("utf-8", "backslashreplace"))


def _json(found: Frontier) -> str:
    return json.dumps(found.to_json(), indent=2) + "\n"


def page(found: Frontier) -> str:
    """Give a self-contained HTML page: the picture and the table."""
    head = "".join(f"<th>{escape(h)}</th>" for h in HEADINGS)
    body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>\n" for row in rows(found))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>memoptc: {escape(found.model)}</title><style>body{{font:15px/1.5 system-ui,sans-serif;"
        "max-width:62rem;margin:2rem auto;padding:0 1rem}td,th{text-align:right;padding:.3rem .6rem;"
        "border-bottom:1px solid #dee2e6}table{border-collapse:collapse;width:100%}</style></head>\n"
        f"<body>{picture(found)}<table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></body></html>\n"
    )


def picture(found: Frontier) -> str:
    """Draw planned memory over the budget, and latency beside it; both as shares of the original's."""
    shares = [(p.budget_bytes / found.planned_bytes, p) for p in found.points] if found.planned_bytes else []
    parts = [f'<text x="{LEFT}" y="20" class="title">{escape(found.model)}: what smaller budgets cost</text>']
    slowest = max(
        (p.latency_ms / found.latency_ms for _, p in shares if p.latency_ms and found.latency_ms), default=1.0
    )
    top = max(1.25, slowest * 1.05)
    for part in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = _y(part)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}" class="grid"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{size(part * found.planned_bytes)}</text>')
        parts.append(f'<text x="{WIDTH - RIGHT + 8}" y="{y + 4}" fill="{_TIME}">{part * top:.2f}x</text>')
    count = max(len(shares) - 1, 1)
    places = [round(LEFT + (WIDTH - LEFT - RIGHT) * i / count, 1) for i in range(len(shares))]
    memory = [
        (x, _y(min(p.planned_bytes / found.planned_bytes, 1.0)), p) for x, (_, p) in zip(places, shares, strict=True)
    ]
    times = [
        (x, _y(p.latency_ms / found.latency_ms / top), p)
        for x, (_, p) in zip(places, shares, strict=True)
        if p.latency_ms and found.latency_ms
    ]
    for points, color in ((memory, _MEMORY), (times, _TIME)):
        line = " ".join(f"{x},{y}" for x, y, _ in points)
        parts.append(f'<polyline points="{line}" class="line" stroke="{color}"/>')
        for x, y, point in points:
            parts.append(
                f'<circle cx="{x}" cy="{y}" r="4" fill="{color if point.reached else _MISSED}">'
                f"<title>{escape(', '.join(_row(point, found)))}</title></circle>"
            )
    for x, (share, _) in zip(places, shares, strict=True):
        parts.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{share:.1%}</text>')
    legend = f"budget as a share of the original's planned peak; planned memory (left), latency (right, {_unit(found)})"
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 8}">{escape(legend)}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
        f'{_STYLE}<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def _unit(found: Frontier) -> str:
    return "not measured" if not found.latency_ms else f"1.00x is {found.latency_ms:.1f} ms"


def _y(share: float) -> float:
    return round(TOP + (HEIGHT - BOTTOM - TOP) * (1 - share), 1)
