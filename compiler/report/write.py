"""Write a report: the file name's ending says in which form."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

from memoptc.ir.diagnostics import InputError
from memoptc.report.chart import memory_chart
from memoptc.report.evidence import card
from memoptc.report.facts import PassRecord
from memoptc.report.model import Report
from memoptc.report.need_bars import need_bars
from memoptc.report.rows import before_after, markdown_cell, size, statistics_text
from memoptc.report.verdict import proof
from memoptc.runtime.memory.render import arena_map
from memoptc.version import __version__


@lru_cache(maxsize=1)
def schema() -> dict[str, Any]:
    """Give the JSON schema of the report."""
    text = resources.files("memoptc.report").joinpath("schema.json").read_text("utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def render_json(report: Report) -> str:
    """Give the report as JSON text."""
    return json.dumps(report.to_json(), indent=2, ensure_ascii=False) + "\n"


def render_html(report: Report) -> str:
    """Give the report as one self-contained HTML page; nothing in it loads anything."""
    return _render("report.html.j2", report)


def render_markdown(report: Report) -> str:
    """Give the report as Markdown."""
    return _render("report.md.j2", report)


FORMS = {".json": render_json, ".html": render_html, ".md": render_markdown}


def check_report_path(path: str | Path) -> Path:
    """Give the path when its ending names a known form.

    Raises:
        InputError: it does not.
    """
    path = Path(path)
    if path.suffix not in FORMS:
        raise InputError(
            f"{path.name} is no report file: its ending is {path.suffix or 'missing'}.",
            hint=f"Use one of {', '.join(FORMS)}.",
        )
    return path


def write_report(report: Report, path: str | Path) -> None:
    """Write the report whole or not at all.

    Raises:
        InputError: the ending names no known form, or the file cannot be written.
    """
    from memoptc.ir.files import atomic_write

    path = check_report_path(path)
    atomic_write(path, FORMS[path.suffix](report).encode("utf-8", "backslashreplace"))  # a name that is no text


_DRAWN = 1200
"""Buffers of one arena that a page draws: more make it slow, and larger than 2 MB."""


def _maps(report: Report) -> list[tuple[str, str]]:
    """The arenas as SVG, before and after, to one scale."""
    sides = [("before", report.control), ("after", report.candidate)]
    top = max((s.plan.arena_bytes for _, s in sides if s.plan is not None), default=0)
    return [
        (name, arena_map(s.plan, "", s.curve.labels if s.curve else (), most=_DRAWN, top=top))
        for name, s in sides
        if s.plan is not None and s.plan.offsets
    ]


def _steps(report: Report) -> list[tuple[PassRecord, int | None]]:
    """The passes that did something, each with the bytes of planned peak that it saved."""
    peaks = [report.control.planned_peak_bytes, *(p.planned_peak_bytes for p in report.passes)]
    saved = [None if a is None or b is None else a - b for a, b in pairwise(peaks)]
    return [
        (p, bytes_)
        for p, bytes_ in zip(report.passes, saved, strict=True)
        if any(p.stats.values()) or bytes_ or p.nodes_before != p.nodes_after
    ]


def _strip(given: Sequence[float | str]) -> str:
    """Draw the deciles of an error as eleven small bars, least to largest; what is no finite number has none."""
    deciles = [value for value in given if isinstance(value, int | float)]
    top = max(deciles, default=0.0)
    bars = "".join(
        f'<rect x="{9 * i}" y="{18 - 18 * value / top:.1f}" width="7" height="{18 * value / top:.1f}"/>'
        for i, value in enumerate(deciles)
        if top
    )
    told = ", ".join(f"{value:.2g}" for value in deciles)
    return f'<svg class="strip" viewBox="0 0 98 18" role="img"><title>{told}</title>{bars}</svg>'


def _figure(value: Any) -> str:
    """Write a number in four digits; what is no number as it stands."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, int | float) else str(value)


def _render(template: str, report: Report) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("memoptc.report", "."),
        autoescape=template.endswith(".html.j2"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"size": size, "strip": _strip, "figure": _figure, "cell": markdown_cell}
    environment.filters["statistics"] = statistics_text
    return environment.get_template(template).render(
        report=report,
        data=report.to_json(),
        rows=before_after(report),
        proof=proof(report),
        chart=memory_chart(report.control.curve, report.candidate.curve),
        maps=_maps(report),
        need=need_bars(report),
        card=card(report),
        steps=_steps(report),
        version=__version__,
    )
