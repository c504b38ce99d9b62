"""A plan for other programs: a C header, and a picture of the arena."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from memoptc.ir.names import unique
from memoptc.runtime.memory.plan import Plan

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 960, 420, 84, 30, 34
_COLORS = ("#4dabf7", "#69db7c", "#ffd43b", "#ffa94d", "#ff8787", "#b197fc", "#66d9e8", "#c0eb75", "#faa2c1")
MOST = 3000
"""Buffers drawn one by one: the largest by bytes times steps; a picture of more would not open."""


def to_header(plan: Plan, name: str = "model") -> str:
    """Give a C header: the arena's size and alignment, and each buffer's offset and size.

    Args:
        plan: The plan.
        name: Prefix of all names, made a legal identifier.
    """
    prefix = f"MEMOPTC_{_identifier(name)}"
    guard = f"{prefix}_ARENA_H"
    taken = {guard, f"{prefix}_ARENA_BYTES", f"{prefix}_ARENA_ALIGNMENT", f"{prefix}_BUFFERS"}
    alignment = max((b.alignment for b in plan.problem.buffers), default=1)
    lines = [
        f"/* Arena plan of {_comment(name)}: {len(plan.offsets)} buffers, {plan.arena_bytes} bytes"
        f" ({plan.floor} alive at once). */",
        f"#ifndef {guard}",
        f"#define {guard}",
        "",
        f"#define {prefix}_ARENA_BYTES {plan.arena_bytes}u",
        f"#define {prefix}_ARENA_ALIGNMENT {alignment}u",
        f"#define {prefix}_BUFFERS {len(plan.offsets)}u",
    ]
    for buffer, offset in zip(plan.problem.buffers, plan.offsets, strict=True):
        label = unique(f"{prefix}_{_identifier(buffer.name)}", taken)
        lines.append("")
        lines.append(f"/* {_comment(buffer.name)}: steps {buffer.first} to {buffer.last} */")
        lines.append(f"#define {label}_OFFSET {offset}u")
        lines.append(f"#define {label}_SIZE {buffer.size}u")
    return "\n".join([*lines, "", f"#endif /* {guard} */", ""])


def _identifier(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_").upper() or "UNNAMED"


def _comment(text: str) -> str:
    return re.sub(r"[^\x20-\x7e]", "?", text).replace("*/", "* /").replace("/*", "/ *")


def to_svg(plan: Plan, title: str = "", labels: Sequence[str] = ()) -> str:
    """Draw the arena: steps from left to right, addresses from bottom to top; names show on hover.

    Args:
        plan: The plan.
        title: Above the picture.
        labels: What runs at each step.
    """
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">'
        "<style>text{font:12px system-ui,sans-serif;fill:#495057}.t{font-weight:600;font-size:14px;fill:#212529}"
        f'.b{{stroke:#fff;stroke-width:.5}}</style><rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>'
        f"{arena_map(plan, title, labels)}</svg>\n"
    )


def arena_map(plan: Plan, title: str = "", labels: Sequence[str] = (), *, most: int = MOST, top: int = 0) -> str:
    """Give the content of the picture, for an SVG element of 960 x 420 units.

    Args:
        plan: The plan.
        title: Above the picture.
        labels: What runs at each step.
        most: Buffers drawn one by one.
        top: Bytes that the height stands for; the arena's own when smaller.
    """
    buffers, top = plan.problem.buffers, max(plan.arena_bytes, top, 1)
    steps = max((b.last for b in buffers), default=0) + 1
    wide, high = _WIDTH - _LEFT - 10, _HEIGHT - _TOP - _BOTTOM
    parts = [f'<text x="{_LEFT}" y="20" class="t">{escape(title, quote=False)}</text>'] if title else []
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = _TOP + high * (1 - share)
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_human(top * share)}</text>')
    order = sorted(range(len(buffers)), key=lambda i: -buffers[i].size * (buffers[i].last - buffers[i].first + 1))
    for index in order[:most]:
        b, offset = buffers[index], plan.offsets[index]
        x, width = _LEFT + wide * b.first / steps, wide * (b.last - b.first + 1) / steps
        y, height = _TOP + high * (1 - (offset + b.size) / top), high * b.size / top
        span = f"steps {b.first} to {b.last}"
        if b.first < len(labels):
            span += f" (made by {labels[b.first]})"
        parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.6):.1f}" height="{max(height, 0.6):.1f}" class="b" '
            f'fill="{_COLORS[index % len(_COLORS)]}"><title>{escape(b.name, quote=False)}: {b.size} bytes at {offset}, '
            f"{escape(span, quote=False)}</title></rect>"
        )
    dropped = len(buffers) - len(order[:most])
    note = f"; the {dropped} smallest are not drawn" if dropped else ""
    parts.append(
        f'<text x="{_LEFT}" y="{_HEIGHT - 8}">{len(buffers)} buffers over {steps} steps, {plan.arena_bytes} bytes, '
        f"{plan.floor} alive at once{note}</text>"
    )
    return "".join(parts)


def _human(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:.4g} GB"
