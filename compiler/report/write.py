"""Write a report: the file name's ending says in which form."""

from __future__ import annotations

import json
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from memoptc import __version__
from memoptc.ir.diagnostics import InputError
from memoptc.report.chart import memory_chart
from memoptc.report.model import Report
from memoptc.report.rows import before_after, size, verdict


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
    atomic_write(path, FORMS[path.suffix](report).encode("utf-8"))


def _render(template: str, report: Report) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("memoptc.report", "."),
        autoescape=template.endswith(".html.j2"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["size"] = size
    return environment.get_template(template).render(
        report=report,
        data=report.to_json(),
        rows=before_after(report),
        verdict=verdict(report),
        chart=memory_chart(report.control.curve, report.candidate.curve),
        version=__version__,
    )
