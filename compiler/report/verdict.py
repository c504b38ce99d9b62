"""The verdict: what a compile reached, in one sentence, and every measured figure that got worse, with its reason."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from typing import Any

from memoptc.report.facts import ReportFacts
from memoptc.report.rows import evictable, size
from memoptc.runtime.sizes import GROWTH, grown
from memoptc.runtime.slowdown import TICK_MS

TAKEN_BACK = "taken back"
"""Step of the decisions that the gate takes back."""

NOT_CHOSEN = "not chosen"
"""Step of the decisions on forms that are better in one respect and worse in another, and how to get them."""

BUDGET = "budget"
"""Step of the decision that a budget of the whole process is kept."""


@dataclass(frozen=True)
class Worse:
    """A measured figure that got worse.

    Args:
        what: Its row.
        before: The original's figure, in text.
        after: The candidate's.
        ratio: After over before.
        why: The reason, as far as it is known.
    """

    what: str
    before: str
    after: str
    ratio: float
    why: str

    def __str__(self) -> str:
        times = f"{self.ratio:.2f}" if isfinite(self.ratio) else "from nothing"
        return f"{self.what} {times} ({self.after} instead of {self.before}): {self.why}"


def verdict(report: ReportFacts) -> str:
    """Say in one sentence what came out: need, latency, and whether the outputs are those of the original."""
    parts = [_memory(report), _budget(report), _latency(report), _outputs(report), _taken_back(report)]
    return "; ".join(part for part in parts if part) + "."


def planned_for(report: ReportFacts) -> str:
    """Say which extents were chosen, where neither options nor data decide; `""` where they do."""
    chosen = report.sizes.get("chosen") or []
    planned, run = report.sizes.get("planned") or {}, report.sizes.get("run") or {}
    if not chosen:
        return ""
    text = ", ".join(f"{name}={planned[name]}" for name in chosen)
    smaller = [f"{name}={run[name]}" for name in chosen if run.get(name) != planned[name]]
    at = f", run at {', '.join(smaller)}" if run and smaller else ""
    return f"Planned for sizes up to {text}{at}; say --dim {chosen[-1]}=N to change."


def _memory(report: ReportFacts) -> str:
    before, after = report.control.measured, report.candidate.measured
    if before and after:
        a, b = before["need_bytes"]["stock"], after["need_bytes"]["stock"]
        text = f"Needs {size(b)} instead of {size(a)} in stock onnxruntime ({_ratio(a, b)})"
        session, kept = after["need_bytes"]["session"], after["anonymous_bytes"]["session"]
        if session is not None:
            text += f", {size(session)} in Session{evictable(session, kept)}"
        return text
    a, b = report.control.predicted_need_bytes, report.candidate.predicted_need_bytes
    if a is None or b is None:
        return "Not measured"
    return f"Not measured; predicted to need {size(b)} instead of {size(a)} in stock onnxruntime ({_ratio(a, b)})"


def _budget(report: ReportFacts) -> str:
    return ", ".join(f"budget {d.what} ({d.why})" for d in report.decisions if d.step == BUDGET)


def _latency(report: ReportFacts) -> str:
    measured = report.candidate.measured or {}
    stock, step = measured.get("slowdown"), measured.get("step_slowdown")
    if not stock:
        return ""
    session = (_default_session(report) or {}).get("slowdown")
    text = f"latency {_slowdown(stock)}" + (f", {_slowdown(session)} in Session" if session else "")
    return text + (f", {_slowdown(step)} at a decoding step" if step else "")


def _slowdown(found: dict[str, float]) -> str:
    ratio, low, high = (found[key] for key in ("ratio", "low", "high"))
    return f"{ratio:.2f}" + (f" (noisy: {low:.2f} to {high:.2f})" if high - low > _NOISE else "")


_NOISE = 0.1
"""Width of the interval of a ratio of latencies above which the verdict names it."""


def _taken_back(report: ReportFacts) -> str:
    found = [d.what for d in report.decisions if d.step == TAKEN_BACK]
    return f"taken back: {', '.join(found)}" if found else ""


def _outputs(report: ReportFacts) -> str:
    found = report.verification
    if found.get("mode", "off") == "off":
        return "outputs not verified"
    if not found.get("passed"):
        return "outputs DIFFER by more than allowed"
    if found.get("bit_exact"):
        return f"every output bit the same{_optimizer(report)}"
    if found.get("target"):
        return f"outputs within the accuracy asked for ({found['target']}){_least_sqnr(report)}{_metric(report)}"
    if report.options.get("max_error") is not None:
        return f"outputs within {report.options['max_error']:g} of their scale, as asked for"
    if report.options.get("target") == "float32":
        return "outputs within float noise"
    return f"outputs within the limits of {report.options['target']}{_least_sqnr(report)}{_metric(report)}"


def _optimizer(report: ReportFacts) -> str:
    """Which configuration gave the same bits, where onnxruntime's optimizer, switched the other way, gave others."""
    found = report.verification.get("other_way")
    if not found or not found["max_abs"]:
        return ""
    other = found["optimizer"]
    first = "off" if other == "on" else "on"
    return f" with onnxruntime's optimizer {first}, within {found['max_abs']:.3g} with it {other}"


def _least_sqnr(report: ReportFacts) -> str:
    ratios = [o["sqnr_db"] for o in report.verification.get("outputs", []) if _number(o.get("sqnr_db"))]
    return f", {min(ratios):.1f} dB of signal over noise at least" if ratios else ""


def _metric(report: ReportFacts) -> str:
    found = report.accuracy
    return f", {found['metric']} {found['control']:.4f} -> {found['candidate']:.4f}" if found else ""


def proof(report: ReportFacts) -> str:
    """Say in one sentence how outputs were compared, and how far they are off."""
    found = report.verification
    mode = found.get("mode", "off")
    if mode == "off":
        return "Not verified (--verify off)."
    samples, source = found.get("samples", 0), found.get("inputs", "random")
    noun = "sample" if samples == 1 else "samples"
    how = f"{samples} {source} {noun}"
    if not found.get("passed"):
        return f"Verification FAILED on {how}."
    if found.get("bit_exact"):
        return f"Verified on {how}: every output bit is the same{_optimizer(report)}."
    if found.get("target"):
        within = f"within the accuracy asked for ({found['target']})"
        return f"Verified on {how}: {within}{_least_sqnr(report)}{_metric(report)}."
    if report.options.get("target") != "float32":
        return f"Verified on {how}: within the gates of {report.options['target']}{_least_sqnr(report)}."
    worst = max((o.get("max_abs") or 0.0 for o in found.get("outputs", []) if _number(o.get("max_abs"))), default=0.0)
    return f"Verified on {how}: within tolerance, largest absolute difference {worst:.3g}."


def _number(value: Any) -> bool:
    return isinstance(value, int | float)


def worse(report: ReportFacts) -> list[Worse]:
    """Give every measured figure that got worse by more than measuring can be off."""
    before, after = report.control.measured, report.candidate.measured
    if not (before and after):
        return _worse_file(report) + _worse_accuracy(report)
    found = _worse_process("in stock onnxruntime", before, {**after, **_stock(after)})
    for where, session in _sessions(report):
        found += _worse_process(where, before, session)
    return found + _worse_latency(report, before, after) + _worse_file(report) + _worse_accuracy(report)


def _worse_accuracy(report: ReportFacts) -> list[Worse]:
    """The task's own figure, where it got worse by what its four decimals show."""
    found = report.accuracy
    if not found:
        return []
    metric, a, b = found["metric"], found["control"], found["candidate"]
    if not (_number(a) and _number(b)):
        return []
    loss = b - a if metric == "perplexity" else a - b
    if round(loss, 4) <= 0:
        return []
    why = f"over {found['samples']} {'tokens' if metric == 'perplexity' else 'samples'}"
    if metric == "top-1":
        why = f"{round(loss * found['samples'])} fewer of {found['samples']} samples are right"
    allowed = report.options.get("max_accuracy_loss")
    why += f"; a loss of {allowed:g} is allowed" if allowed is not None else "; no limit was asked for"
    return [Worse(metric, f"{a:.4f}", f"{b:.4f}", b / a if a else float("inf"), why)]


_RECORDS = 16 << 10
"""Bytes of a file that may be names, types and what it says of its own making."""


def _worse_file(report: ReportFacts) -> list[Worse]:
    """A file that grew: by nodes, by weights, or by a second layout of them."""
    control, candidate = report.control, report.candidate
    a, b = control.file_bytes, candidate.file_bytes
    if not grown(a, b, _RECORDS):
        return []
    weights = candidate.weight_bytes - control.weight_bytes
    why = f"{candidate.nodes} nodes instead of {control.nodes}"
    if candidate.nodes <= control.nodes:
        why = "what the writer adds: names, types, whole pages for weights that are mapped"
    if (b - a) / 2 < weights <= b - a:  # more of them than that are stored once: a branch has those of the other
        why = f"weights take {size(weights)} more"
    packing = [d for d in report.decisions if d.step == "packing" and d.gain_bytes]
    if packing:
        why = packing[-1].what
    return [Worse("file", size(a), size(b), b / a, why)]


def _sessions(report: ReportFacts) -> Iterator[tuple[str, dict[str, Any]]]:
    """The tiers of `Session` that were measured, the one that it takes by itself first, and how to name each."""
    for index, (tier, figures) in enumerate((report.candidate.session or {}).items()):
        yield f"in Session with memory={tier!r}" if index else "in Session", figures


def _default_session(report: ReportFacts) -> dict[str, Any] | None:
    """The candidate in the tier that `Session` takes by itself."""
    return next(iter((report.candidate.session or {}).values()), None)


def _stock(measured: dict[str, Any]) -> dict[str, Any]:
    return {k: measured[k]["stock"] for k in ("need_bytes", "anonymous_bytes")}


_FIGURES = {
    "need_bytes": "need",
    "anonymous_bytes": "bytes that are not evictable",
    "container_bytes": "smallest container",
    "load_peak_bytes": "peak of loading",
    "run_peak_bytes": "peak of runs over loaded",
}


def _worse_process(where: str, before: dict[str, Any], after: dict[str, Any]) -> list[Worse]:
    """Figures of one process that got worse; where need did, none that is part of it is named besides."""
    before = {**before, **_stock(before)}
    found: list[Worse] = []
    for key, what in _FIGURES.items():
        a, b = _figure(before, key), _figure(after, key)
        if a is None or b is None or not grown(a, b):
            continue
        why = _why_more(before["parts"], after["parts"], _CAUSES.get(key))
        if found and key in _WITHIN_NEED:
            continue
        found.append(Worse(f"{what} {where}", size(a), size(b), b / a if a else float("inf"), why))
    return found


def _figure(process: dict[str, Any], key: str) -> int | None:
    """A figure of a process; of runs without mapped weights, which they read in and the kernel can evict.

    `None` where it is not known: what runs take is not where it stays below what loading gave back.
    """
    if key == "run_peak_bytes":
        return int(process["parts"]["activations"] + process["parts"]["workspace"]) or None
    found: int | None = process.get(key)
    return found


_WITHIN_NEED = ("anonymous_bytes", "load_peak_bytes", "run_peak_bytes")

_ROUNDING = 0.03
"""Part by which a ratio may differ from that of two figures before it is said why."""

_CAUSES = {
    "anonymous_bytes": ("weights", "activations", "workspace", "ours"),
    "load_peak_bytes": ("loading", "weights", "ours"),
    "run_peak_bytes": ("activations", "workspace"),
}
"""Parts that a figure can have grown by; all where none are named."""

_REASONS = {
    "loading": "loading takes {} more for a while",
    "weights": "weights, with all copies that onnxruntime makes of them, take {} more",
    "activations": "activations take {} more",
    "workspace": "kernels and arenas take {} more",
    "ours": "importing memoptc's Session takes {}",
}


def _why_more(before: dict[str, int], after: dict[str, int], parts: tuple[str, ...] | None) -> str:
    more = {k: after[k] - before[k] for k in after if (parts is None or k in parts) and after[k] > before[k]}
    largest = sorted(more, key=lambda k: -more[k])[:2]
    largest = [k for k in largest if more[k] >= more[largest[0]] / 4]
    return (
        " and ".join(_REASONS[k].format(size(more[k])) for k in largest)
        or "no part that is measured by itself tells why"
    )


def _worse_latency(report: ReportFacts, before: dict[str, Any], after: dict[str, Any]) -> list[Worse]:
    """Latencies that got worse for certain, or that exceed what is promised, be it by noise."""
    found: list[Worse] = []
    sides = [("in stock onnxruntime", before, after), *((where, before, side) for where, side in _sessions(report))]
    if "step_slowdown" in after:
        sides.append(("of a decoding step", _of_step(before), _of_step(after)))
    for where, first, side in sides:
        a, b = first["latency_ms"]["p50"], side["latency_ms"]["p50"]
        slowdown = side.get("slowdown") or {"ratio": b / a, "low": b / a}
        a = slowdown.get("control_ms", a)
        certain = slowdown["low"] > GROWTH and b - a > TICK_MS
        promised, calling = slowdown.get("promised", float("inf")), slowdown.get("calling_ms", 0.0)
        if certain or (slowdown["ratio"] > promised and b - promised * a > TICK_MS):
            why = _why_slower(report, where)
            if calling and b - promised * a <= TICK_MS + calling:
                why = f"calling Session takes {calling:.3g} ms more than calling onnxruntime, also with the original"
            elif slowdown["low"] <= promised < slowdown["ratio"]:
                why = f"{why}; above the {promised:g} that is promised, but noise may explain it"
            if abs(b - slowdown["ratio"] * a) > _ROUNDING * b:
                why += "; the ratio is the median of pairs of runs, which is not that of the two medians"
            found.append(Worse(f"latency {where}", f"{a:.3g} ms", f"{b:.3g} ms", slowdown["ratio"], why))
    return found


def _of_step(measured: dict[str, Any]) -> dict[str, Any]:
    """The latency of a decoding step, in the form of that of a run."""
    return {"latency_ms": {"p50": measured["step_ms"]}, "slowdown": measured.get("step_slowdown")}


def _why_slower(report: ReportFacts, where: str) -> str:
    control, candidate = report.control.nodes, report.candidate.nodes
    found = [f"{candidate} nodes instead of {control}"] if candidate != control else []
    found += [f"{d.step}: {d.what}" for d in report.decisions if d.step in ("fit", "form")][:2]
    found += ["each allocation is looked up in the plan"] if "planned" in where else []
    return "; ".join(found) or "nothing in the model tells why"


def _ratio(a: float, b: float) -> str:
    return f"{b / a:.2f}" if a else "1.00" if a == b else "from nothing"
