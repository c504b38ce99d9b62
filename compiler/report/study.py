"""A study as `study.md`, `.json` and `.html`: the evidence card, the trade-off table, the Pareto picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from memoptc.plain_values import plain
from memoptc.report.rows import markdown_cell, size, statistics_text
from memoptc.study.findings import accuracy_lost, compare, told_apart

if TYPE_CHECKING:
    from memoptc.study.findings import Row, Study

FILES = ("study.md", "study.json", "study.html")
HEADINGS = (
    "",
    "change",
    "runs in",
    "need",
    "latency p50 / p95",
    "ratio",
    "per second",
    "file",
    "outputs",
    "worst example",
    "examples that flip",
)
_FLIPS_SHOWN = 12
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 860, 360, 80, 44, 36
_PAGE = (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>memoptc study: {title}</title><style>'
    "body{{font:15px/1.5 system-ui,sans-serif;max-width:84rem;margin:2rem auto;padding:0 1rem}}"
    "td,th{{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #dee2e6;vertical-align:top}}"
    "table{{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}}.card th{{width:12rem}}"
    ".card{{border:2px solid #0b7285}}.failed{{color:#c92a2a}}text{{font:12px system-ui,sans-serif}}"
    "code{{overflow-wrap:anywhere}}.wide{{overflow-x:auto;font-size:13px}}.wide td{{padding:.3rem .4rem}}"
    ".wide td{{overflow-wrap:anywhere}}.wide td:nth-child(-n+8){{white-space:nowrap}}</style></head>\n<body>"
)


def render(found: Study, name: str) -> str:
    """Give the text of one of `FILES`."""
    if name.endswith(".json"):
        return json.dumps(plain(found.to_json()), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return _html(found) if name.endswith(".html") else _markdown(found)


def headline(found: Study) -> str:
    """Say in one sentence what the study recommends."""
    if found.recommended == "control":
        return (
            "Keep the original: nothing is better in need, latency or accuracy and worse in none of them, "
            f"at no more than {found.slowdown:g} times its latency."
        )
    control, best = found.rows[0], found.row(found.recommended)
    better = " and ".join(compare(control, best, found.slowdown)[0])
    figures = f"needs {_need(best)} instead of {_need(control)}, latency {_ratio(best)}, {_outputs(best)}"
    return f"Take {best.name}, better in {better}: {figures}."


def rows(found: Study) -> list[tuple[str, ...]]:
    """Give one row of text for each change, below `HEADINGS`; `*` marks those that no other row beats."""
    return [
        (
            "*" if row.pareto else "",
            row.name,
            row.runtime,
            _need(row),
            "" if row.latency_ms is None else f"{row.latency_ms['p50']:.3g} / {row.latency_ms['p95']:.3g} ms",
            "" if row.kind == "control" else _ratio(row),
            "" if row.throughput_per_s is None else f"{row.throughput_per_s:.4g}",
            "" if row.file_bytes is None else size(row.file_bytes),
            f"FAILED: {row.failure}" if row.failure else _outputs(row),
            row.worst_example or "",
            _flipped(row),
        )
        for row in found.rows
    ]


def card(found: Study) -> list[tuple[str, str]]:
    """Give the evidence card: question and answer."""
    control, best = found.rows[0], found.row(found.recommended)
    better, worse = _compared(control, best)
    checked = best.checked
    inputs = f"{checked.get('samples') or 'no'} {checked.get('inputs') or ''} samples".replace("  ", " ")
    sizes = ", ".join(f"{k}={v}" for k, v in (found.environment.get("sizes") or {}).items())
    versions = ", ".join(f"{k} {v}" for k, v in found.environment.items() if k not in ("sizes", "threads"))
    return [
        ("Deployment target", f"{found.deployment}; runs in {best.runtime}"),
        ("Artefact", f"{best.file or found.model['name']}, sha256 {best.sha256 or found.model['sha256']}"),
        ("What changed", _changed(best)),
        ("Improved", "; ".join(better) or "nothing beyond what measuring can tell apart"),
        ("Worse, or at risk", "; ".join([*worse, *_risks(found, best)])),
        ("Examples checked", f"{inputs}; worst kept in {best.worst_example}" if best.worst_example else inputs),
        ("Failure check", found.failure_check),
        ("Failed changes", "; ".join(f"{r.name}: {r.failure}" for r in found.rows if r.failure) or "none"),
        ("How to repeat", found.command + (f"\n{best.command}" if best.command else "")),
        ("Measured with", f"{versions}; threads {found.environment.get('threads') or 'as onnxruntime chooses'}; "
         f"sizes {sizes or 'fixed'}; original sha256 {found.model['sha256']}"),
    ]  # fmt: skip


def _changed(row: Row) -> str:
    told = ((name, statistics_text(stats)) for name, stats in row.passes.items())
    did = [f"{name} ({text})" for name, text in told if text]
    return f"{row.name}: {', '.join(did) or 'the file is the original'}"


def _compared(control: Row, best: Row) -> tuple[list[str], list[str]]:
    """Compare both sides: improvements and losses, each with both figures; intervals decide."""
    better: list[str] = []
    worse: list[str] = []
    if best is control or control.need_bytes is None or best.need_bytes is None:
        return better, worse
    if best.need_bytes["most"] < control.need_bytes["least"]:
        better.append(f"need {_need(best)} instead of {_need(control)}")
    elif best.need_bytes["least"] > control.need_bytes["most"]:
        worse.append(f"need {_need(best)} instead of {_need(control)}")
    if best.slowdown is not None and control.latency_ms is not None and best.latency_ms is not None:
        text = f"latency {_ratio(best)}, p95 {best.latency_ms['p95']:.3g} instead of {control.latency_ms['p95']:.3g} ms"
        if best.slowdown["high"] < 1:
            better.append(text)
        elif best.slowdown["low"] > 1:
            worse.append(text)
    if best.file_bytes and control.file_bytes and best.file_bytes != control.file_bytes:
        text = f"file {size(best.file_bytes)} instead of {size(control.file_bytes)}"
        (better if best.file_bytes < control.file_bytes else worse).append(text)
    if best.accuracy is not None and told_apart(best.accuracy):
        (worse if accuracy_lost(best.accuracy) > 0 else better).append(_accuracy(best))
    return better, worse


def _risks(found: Study, best: Row) -> list[str]:
    """Risks that the figures leave open."""
    risks = []
    if best.slowdown is not None and best.slowdown["low"] <= 1 <= best.slowdown["high"] and best.kind != "control":
        low, high = best.slowdown["low"], best.slowdown["high"]
        risks.append(f"latency is not decided ({low:.2f} to {high:.2f} times the original's)")
    if best.accuracy is not None and best.accuracy["candidate"] != best.accuracy["control"]:
        if not told_apart(best.accuracy):
            risks.append(f"{_accuracy(best)} cannot be told apart on {best.accuracy['samples']} samples")
    source = best.checked.get("inputs")
    if source == "random":
        risks.append("outputs were compared on generated inputs only: give --validation")
    elif source == "calibration":
        risks.append("outputs were compared on the calibration data")
    elif source == "held-out":
        risks.append("outputs were compared on a fifth of the calibration data, held out: --validation shows more")
    if not best.checked.get("bit_exact") and best.accuracy is None and best.kind != "control":
        risks.append("no labels, so what the difference means for the task is not known")
    if found.environment.get("sizes"):
        risks.append(f"measured at {', '.join(f'{k}={v}' for k, v in found.environment['sizes'].items())} only")
    return risks or ["nothing measured"]


def _need(row: Row) -> str:
    if row.need_bytes is None:
        return ""
    least, median, most = (row.need_bytes[k] for k in ("least", "median", "most"))
    between = f" ({least / 1e6:.2f} to {most / 1e6:.2f})" if least != most else ""
    return f"{median / 1e6:.2f} MB{between}"


def _ratio(row: Row) -> str:
    if row.slowdown is None:
        return ""
    return f"{row.slowdown['ratio']:.2f} ({row.slowdown['low']:.2f} to {row.slowdown['high']:.2f})"


def _accuracy(row: Row) -> str:
    assert row.accuracy is not None
    return f"{row.accuracy['metric']} {row.accuracy['candidate']:.4f} instead of {row.accuracy['control']:.4f}"


def _outputs(row: Row) -> str:
    if row.kind == "control":
        return "the control"
    parts = ["every bit the same"] if row.checked.get("bit_exact") else []
    if not parts and row.sqnr_db is not None:
        parts.append(f"{row.sqnr_db:.1f} dB")
    if not parts and row.max_abs is not None:
        parts.append(f"largest difference {row.max_abs:.2g}")
    if row.accuracy is not None:
        parts.append(_accuracy(row))
    return "; ".join([", ".join(parts) or "not compared", *row.decided, *(text.rstrip(".") for text in row.unchanged)])


def _flipped(row: Row) -> str:
    """The samples that get another likeliest class; the first few by number."""
    if not row.flipped:
        return ""
    numbers = ", ".join(map(str, row.flipped[:_FLIPS_SHOWN]))
    more = ", …" if len(row.flipped) > _FLIPS_SHOWN else ""
    return f"{len(row.flipped)} of {row.checked.get('samples')}: {numbers}{more}"


def _markdown(found: Study) -> str:
    def line(cells: tuple[str, ...]) -> str:
        return "| " + " | ".join(markdown_cell(c) for c in cells) + " |"

    table = [line(HEADINGS), "|" + " --- |" * len(HEADINGS), *(line(row) for row in rows(found))]
    facts = [line(("Evidence card", "")), "| --- | --- |", *(line(pair) for pair in card(found))]
    head = [f"# Study of {found.model['name']}", "", headline(found), "", *facts, ""]
    return "\n".join([*head, "## Trade-offs", "", _note(found), "", *table, ""])


def _note(found: Study) -> str:
    repeats = "one fresh process" if found.repeats == 1 else f"{found.repeats} fresh processes (least to most)"
    return (
        "`*`: no other row is as good in need, latency and outputs, and better in one. Need: median of "
        f"{repeats}. Ratio: latency over the control's, median of turns taken "
        "one after the other, with an interval that holds it in 93 % of cases. Failed rows stay."
    )


def _html(found: Study) -> str:
    head = "".join(f"<th>{escape(h)}</th>" for h in HEADINGS)
    body = "".join(
        f'<tr class="{"failed" if row.failure else ""}">' + "".join(f"<td>{escape(c)}</td>" for c in cells) + "</tr>\n"
        for row, cells in zip(found.rows, rows(found), strict=True)
    )
    facts = "".join(
        f"<tr><th>{escape(k)}</th><td>{escape(v).replace(chr(10), '<br>')}</td></tr>" for k, v in card(found)
    )
    name, note = escape(found.model["name"]), escape(_note(found)).replace("`", "")
    return (
        f"{_PAGE.format(title=name)}<h1>Study of {name}</h1><p><b>{escape(headline(found))}</b></p>"
        f'<h2>Evidence card</h2><table class="card">{facts}</table><h2>Trade-offs</h2>{_picture(found)}'
        f'<p>{note}</p><div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody>'
        "</table></div></body></html>\n"
    )


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Ends of an axis: from 0, or nearer where all values are close to each other."""
    low, high = min(values), max(values)
    return (low - (high - low) * 0.2 if low > high / 2 and high > low else 0.0), high + (high - low) * 0.1 or 1.0


def _free(taken: list[tuple[float, float, float]], x: float, y: float, width: float) -> float:
    """Give a height for a label that none which is there overlaps, near the one wished for."""
    heights = (y + sign * 15 * n for n in range(20) for sign in (1, -1))
    clear = (h for h in heights if not any(abs(h - b) < 14 and x < a + w and a < x + width for a, b, w in taken))
    found = next((h for h in clear if TOP - 10 < h < HEIGHT - BOTTOM + 8), y)
    taken.append((x, found, width))
    return round(found, 1)


def _picture(found: Study) -> str:
    """Draw need over latency; filled points are those that no other row beats."""
    points = [(r, r.latency_ms["p50"], r.need_bytes["median"]) for r in found.rows if r.latency_ms and r.need_bytes]
    (left, right), (bottom, top) = _range([x for _, x, _ in points]), _range([y for *_, y in points])
    parts = []
    for part in (0.0, 0.25, 0.5, 0.75, 1.0):
        y, x = _y(part), LEFT + (WIDTH - LEFT - 120) * part
        need, ms = size(bottom + part * (top - bottom)), f"{left + part * (right - left):.3g} ms"
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - 120}" y1="{y}" y2="{y}" stroke="#dee2e6"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{need}</text>')
        parts.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{ms}</text>')
    placed = []
    for row, latency, bytes_ in points:
        x = round(LEFT + (WIDTH - LEFT - 120) * (latency - left) / (right - left), 1)
        placed.append((row, x, _y((bytes_ - bottom) / (top - bottom))))
    labels = [(x - 6, y + 4, 12.0) for _, x, y in placed]  # a label covers no point
    for row, x, y in placed:
        fill = "#0b7285" if row.pareto else "#c92a2a" if row.failure else "#fff"
        parts.append(
            f'<circle cx="{x}" cy="{y}" r="5" stroke="#0b7285" fill="{fill}"><title>{escape(row.name)}</title>'
        )
        at = _free(labels, x + 8, y + 4, 8.0 * len(row.name))
        parts.append(f'</circle><text x="{x + 8}" y="{at}">{escape(row.name)}</text>')
        if at != y + 4:
            parts.append(f'<line x1="{x}" x2="{x + 7}" y1="{y}" y2="{at - 4}" stroke="#adb5bd"/>')
    parts.append(f'<text x="{LEFT}" y="18">need over median latency; filled: no other row beats it; red: failed</text>')
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="need over latency">{"".join(parts)}</svg>'


def _y(share: float) -> float:
    return round(TOP + (HEIGHT - BOTTOM - TOP) * (1 - share), 1)
