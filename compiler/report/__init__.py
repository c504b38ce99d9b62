"""The report of a compile, as JSON, HTML, Markdown and a terminal table."""

from memoptc.report.model import Curve, Decision, PassRecord, Report, Side
from memoptc.report.write import render_html, render_markdown, schema, write_report

__all__ = [
    "Curve",
    "Decision",
    "PassRecord",
    "Report",
    "Side",
    "render_html",
    "render_markdown",
    "schema",
    "write_report",
]
