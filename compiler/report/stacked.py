"""Pictures of a profile, as SVG: bytes alive over the run, stacked by tensor, and the peak over input sizes."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from memoptc.report.rows import size
from memoptc.runtime.profile import Profile

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 960, 330, 84, 250, 40, 30
TENSORS = 14
"""Tensors that get a colour of their own: the largest by bytes times steps."""
_COLORS = (
    "#0b7285", "#e8590c", "#2b8a3e", "#862e9c", "#e67700", "#1864ab", "#c2255c", "#5c940d", "#5f3dc4", "#d9480f",
    "#087f5b", "#a61e4d", "#364fc7", "#9c36b5",
)  # fmt: skip
_OTHER = "#adb5bd"
_STYLE = (
    "<style>text{font:12px system-ui,sans-serif;fill:#495057}.title{font-weight:600;font-size:14px;fill:#212529}"
    ".grid{stroke:#dee2e6}.line{fill:none;stroke-width:2}</style>"
)


def picture(points: Sequence[Profile], name: str) -> str:
    """Draw the run of the last point; above it, with several points, the peak of each.

    Args:
        points: One profile per size.
        name: What the title calls the model.
    """
    parts = [_stacked(points[-1], name)]
    if len(points) > 1:
        parts.append(_growth(points))
    height = HEIGHT * len(parts)
    body = "".join(f'<g transform="translate(0 {i * HEIGHT})">{p}</g>' for i, p in enumerate(parts))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">'
        f'{_STYLE}<rect width="{WIDTH}" height="{height}" fill="#fff"/>{body}</svg>\n'
    )


def _frame(top: float, title: str) -> list[str]:
    parts = [f'<text x="{LEFT}" y="20" class="title">{escape(title)}</text>']
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = _y(share * top, top)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}" class="grid"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{size(share * top)}</text>')
    return parts


def _y(value: float, top: float) -> float:
    return round(TOP + (HEIGHT - BOTTOM - TOP) * (1 - value / (top or 1)), 1)


def _stacked(point: Profile, name: str) -> str:
    found = point.found
    count = len(found.steps)
    weight = {id(s): s.size * (s.last - s.first + 1) for s in found.storages}
    chosen = sorted(found.storages, key=lambda s: -weight[id(s)])[:TENSORS]
    others = [0] * count
    mine = {id(s) for s in chosen}
    change = [0] * (count + 1)
    for s in found.storages:
        if id(s) not in mine:
            change[s.first] += s.size
            change[s.last + 1] -= s.size
    alive = 0
    for step in range(count):
        alive += change[step]
        others[step] = alive
    top = max(found.curve) or 1
    sizes = ", ".join(f"{k}={v}" for k, v in point.dims.items())
    parts = _frame(top, f"{name}: bytes alive over one run{f' at {sizes}' if sizes else ''}")
    base = [0] * count
    layers = [("all others", _OTHER, others)]
    for color, s in zip(_COLORS, chosen, strict=False):
        layers.append((s.name, color, [s.size if s.first <= i <= s.last else 0 for i in range(count)]))
    for row, (label, color, values) in enumerate(layers):
        above = [b + v for b, v in zip(base, values, strict=True)]
        parts.append(_band(base, above, top, color, f"{label}: {size(max(values, default=0))}"))
        base = above
        y = TOP + 16 * row
        parts.append(f'<rect x="{WIDTH - RIGHT + 14}" y="{y}" width="11" height="11" fill="{color}"/>')
        short = label if len(label) <= 30 else f"…{label[-29:]}"
        parts.append(f'<text x="{WIDTH - RIGHT + 31}" y="{y + 10}">{escape(short)}</text>')
    x = _x(point.step + 0.5, count)
    parts.append(f'<circle cx="{x}" cy="{_y(top, top)}" r="4" fill="#212529"/>')
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 8}">peak {size(top)} at {escape(point.at)}, step {point.step}</text>')
    return "".join(parts)


def _x(step: float, count: int) -> float:
    return round(LEFT + (WIDTH - RIGHT - LEFT) * step / max(count, 1), 1)


def _band(low: list[int], high: list[int], top: int, color: str, title: str) -> str:
    """One layer, with a corner only where it changes."""
    count = len(low)
    upper: list[str] = []
    lower: list[str] = []
    for step in range(count):
        if step and low[step] == low[step - 1] and high[step] == high[step - 1]:
            continue
        end = step
        while end + 1 < count and low[end + 1] == low[step] and high[end + 1] == high[step]:
            end += 1
        left, right = _x(step, count), _x(end + 1, count)
        upper += [f"{left},{_y(high[step], top)}", f"{right},{_y(high[step], top)}"]
        lower += [f"{left},{_y(low[step], top)}", f"{right},{_y(low[step], top)}"]
    outline = " ".join(upper + lower[::-1])
    return f'<polygon points="{outline}" fill="{color}" fill-opacity="0.85"><title>{escape(title)}</title></polygon>'


def _growth(points: Sequence[Profile]) -> str:
    series = [("planned", "#0b7285", [p.planned_peak_bytes for p in points])]
    if all(p.as_planned for p in points):
        series.append(("recorded", "#e8590c", [p.as_planned.run_peak_bytes for p in points if p.as_planned]))
    if all(p.stock for p in points):
        series.append(("recorded, stock defaults", "#adb5bd", [p.stock.run_peak_bytes for p in points if p.stock]))
    top = max(max(values) for _, _, values in series) or 1
    parts = _frame(top, "peak over input sizes")
    last = max(len(points) - 1, 1)
    for row, (name, color, values) in enumerate(series):
        corners = " ".join(f"{_x(i, last)},{_y(v, top)}" for i, v in enumerate(values))
        parts.append(f'<polyline points="{corners}" class="line" stroke="{color}"/>')
        for i, v in enumerate(values):
            where = ", ".join(f"{k}={n}" for k, n in points[i].dims.items())
            parts.append(
                f'<circle cx="{_x(i, last)}" cy="{_y(v, top)}" r="4" fill="{color}">'
                f"<title>{escape(where)}: {name} {size(v)}</title></circle>"
            )
        y = TOP + 16 * row
        parts.append(f'<rect x="{WIDTH - RIGHT + 14}" y="{y}" width="11" height="11" fill="{color}"/>')
        parts.append(f'<text x="{WIDTH - RIGHT + 31}" y="{y + 10}">{escape(name)}</text>')
    for i, point in enumerate(points):
        text = ",".join(str(v) for v in point.dims.values())
        parts.append(f'<text x="{_x(i, last)}" y="{HEIGHT - 8}" text-anchor="middle">{escape(text)}</text>')
    return "".join(parts)
