"""The evidence card of a compile: what was made for what, what it gains and costs, and what that rests on."""

from __future__ import annotations

from memoptc.report.facts import ReportFacts, stats_by_pass
from memoptc.report.rows import before_after, size, statistics_text
from memoptc.report.verdict import TAKEN_BACK, proof, worse

TOLD = ("need", "need, predicted", "latency p50", "file", "activations, planned arena")
"""Rows of the table that a card repeats where they improved; a task's accuracy is added."""


def card(report: ReportFacts) -> list[tuple[str, str]]:
    """Give the card: question and answer."""
    return [
        ("Deployment target", _deployment(report)),
        ("Artefact", _artefact(report)),
        ("What changed", _changed(report)),
        ("Improved", "; ".join(_improved(report)) or "nothing beyond what measuring can tell apart"),
        ("Worse, or at risk", "; ".join([*map(str, worse(report)), *_risks(report)]) or "nothing known"),
        ("Examples checked", _checked(report)),
        ("Failure check", _failure_check(report)),
        ("How to repeat", report.command or "memoptc.compile with the options below"),
        ("Measured with", _basis(report)),
    ]


def _deployment(report: ReportFacts) -> str:
    sizes = report.sizes.get("planned") or {}
    at = ", ".join(f"{k}={v}" for k, v in sizes.items()) or "fixed sizes"
    device = report.options.get("device")
    kernels = f", kernels of {device}" if device not in (None, "auto") else ""
    return f"{report.environment.get('platform', 'unknown')}, stock onnxruntime or memoptc's Session{kernels}; {at}"


def _artefact(report: ReportFacts) -> str:
    if not report.artefacts:
        return f"not written; made of a model with sha256 {report.model.get('sha256')}"
    model, *beside = report.artefacts
    text = f"{model['name']} ({size(model['bytes'])}), sha256 {model['sha256']}"
    return text + (f"; beside it {', '.join(f['name'] for f in beside)}" if beside else "")


def _changed(report: ReportFacts) -> str:
    did = stats_by_pass((record.name, record.stats) for record in report.passes)
    told = ((name, statistics_text(counts)) for name, counts in did.items())
    said = [f"{name} ({text})" for name, text in told if text]
    return "; ".join(said) or "nothing"


def _improved(report: ReportFacts) -> list[str]:
    accuracy = (report.accuracy or {}).get("metric")
    return [
        f"{row.what} {row.after} instead of {row.before}"
        for row in before_after(report)
        if row.better and (row.what in TOLD or (accuracy is not None and row.what.startswith(f"{accuracy},")))
    ]


def _risks(report: ReportFacts) -> list[str]:
    """Risks that the figures leave open."""
    found, risks = report.verification, []
    mode = found.get("mode", "off")
    if mode == "off":
        risks.append("outputs were not compared")
    elif found.get("inputs") == "random" and not found.get("bit_exact"):
        risks.append("outputs were compared on generated inputs only: give --validation")
    elif found.get("inputs") == "calibration":
        risks.append("outputs were compared on the data that integers were calibrated with: give --validation")
    if (
        mode != "off"
        and not found.get("bit_exact")
        and not report.accuracy
        and report.options.get("target") != "float32"
    ):
        risks.append("no labels, so what the difference means for the task is not known")
    if not (report.control.measured and report.candidate.measured):
        risks.append("need and latency were not measured")
    slowdown = (report.candidate.measured or {}).get("slowdown")
    if slowdown and slowdown["low"] < 1 < slowdown["high"]:
        risks.append(f"latency is not decided ({slowdown['low']:.2f} to {slowdown['high']:.2f} times the original's)")
    return risks


def _checked(report: ReportFacts) -> str:
    found, text = report.verification, proof(report)
    if (example := found.get("example")) is not None:
        text += f" Worst: {example['where']}, output {example['output']}"
        kept = found.get("worst_sample")
        text += f", kept in {kept}." if kept else "."
    return text


def _failure_check(report: ReportFacts) -> str:
    back = [f"{d.what} ({d.why})" for d in report.decisions if d.step == TAKEN_BACK]
    judged = sorted(set(report.verification.get("judged_by", {}).values()))
    parts = [f"outputs judged by {' and '.join(judged)}"] if judged else []
    measured = bool(report.control.measured and report.candidate.measured)
    parts.append(f"need {'measured' if measured else 'predicted'} against the original's before anything was written")
    parts += [f"taken back: {', '.join(back)}"] if back else ["nothing had to be taken back"]
    return "; ".join(parts)


def _basis(report: ReportFacts) -> str:
    versions = [f"{k} {report.environment[k]}" for k in ("memoptc", "onnxruntime", "python") if k in report.environment]
    threads = report.environment.get("threads") or "as onnxruntime chooses"
    hashes = [f"original sha256 {report.model.get('sha256')}"]
    hashes += [
        f"{what} data {facts['name']}" + (f" sha256 {facts['sha256']}" if facts["sha256"] else "")
        for what, facts in report.inputs.items()
    ]
    config = f"; options also from {report.options['config']}" if report.options.get("config") else ""
    return f"{', '.join(versions)}; threads {threads}{config}; {'; '.join(hashes)}"
