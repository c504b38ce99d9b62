"""What less work where the input is easy saves: tokens that go and early exits, at losses of 0.5 % and 2 %.

    python benchmarks/less_work.py FILE.jsonl [--only NAME ...] [--loss 0.005 ...]
    python benchmarks/less_work.py FILE.jsonl --summary

Each model is compiled at -O2 with `--prune-tokens`, or `--early-exit` for classifiers of pictures and sounds, or
becomes the large one of a cascade, on calibration and validation data, and held against the original on data that no
compile saw, and on shifted ones. Need is MB of a fresh process in stock onnxruntime; latency is that of single held-out
samples in one process, the models taking turns: original, -O2 without either, and with. A line of JSON per model and
loss is appended to FILE.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from less_cases import CASES, Case, Feed
from rich.console import Console
from rich.table import Table

from memoptc.api import compile_file
from memoptc.ir.diagnostics import MemoptcError
from memoptc.levels import cascade_pipeline
from memoptc.runtime.evaluate import Evaluator
from memoptc.runtime.measure import measure_need
from memoptc.runtime.options import RunOptions

SECONDS = 6.0
"""Timed runs of one case."""

PASSES = ("prune-tokens", "early-exit", "cascade")


@dataclass(frozen=True)
class _Outcome:
    feed: Feed
    outputs: Feed
    label: Any


def outcomes(evaluator: Evaluator, feeds: Sequence[Feed]) -> Iterator[_Outcome]:
    """Run samples one by one."""
    for feed in feeds:
        inputs = {k: v for k, v in feed.items() if k != "labels"}
        yield _Outcome(inputs, evaluator.run(inputs), feed.get("labels"))


def metric_of(case: Case, found: Sequence[_Outcome]) -> float | None:
    """The case's own metric; top-1 of labels; `None` without labels."""
    if case.metric is not None:
        return case.metric(found)
    if found[0].label is None:
        return None
    return float(np.mean([next(iter(o.outputs.values())).argmax(-1) == np.ravel(o.label) for o in found]))


def agreement(a: Sequence[_Outcome], b: Sequence[_Outcome]) -> float:
    """Share of samples of the same likeliest class; of hidden states and frames, of rows."""
    same = [
        (next(iter(x.outputs.values())).argmax(-1) == next(iter(y.outputs.values())).argmax(-1)).mean()
        for x, y in zip(a, b, strict=True)
    ]
    return float(np.mean(same))


def latencies(paths: Sequence[Path], feeds: Sequence[Feed]) -> list[dict[str, float]]:
    """p50, p95 and mean in ms over samples, the models taking turns."""
    models = [Evaluator(path, RunOptions(threads=2), label=path.name) for path in paths]
    taken: list[list[float]] = [[] for _ in models]
    bare = [{k: v for k, v in f.items() if k != "labels"} for f in feeds]
    for model in models:
        model.run(bare[0])
    start = time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        for feed in bare:
            for times, model in zip(taken, models, strict=True):
                before = time.perf_counter()
                model.run(feed)
                times.append(time.perf_counter() - before)
            if time.perf_counter() - start > SECONDS:
                break
    return [
        {"p50": _ms(np.percentile(t, 50)), "p95": _ms(np.percentile(t, 95)), "mean": _ms(np.mean(t))} for t in taken
    ]


def _ms(seconds: Any) -> float:
    return float(seconds) * 1e3


def one(name: str, loss: float, folder: Path) -> dict[str, Any]:
    """Compile a case at a loss; everything that was measured."""
    case = CASES[name](folder)
    limits: dict[str, Any] = {"level": 2, case.option: loss if case.option == "early_exit" else True}
    if case.small is not None:
        limits = {"level": 0, "passes": cascade_pipeline(case.small, loss, None)}
    elif case.option == "prune_tokens" and "labels" in case.calibration[0]:
        limits |= {"max_accuracy_loss": loss, "metric": case.metric}
    elif case.option == "prune_tokens":
        limits |= {"min_sqnr": 20.0}
    data = {"calibration": list(case.calibration), "validation": list(case.validation)}
    line: dict[str, Any] = {"name": name, "option": case.option, "loss": loss}
    bare = {k: v for k, v in case.held_out[0].items() if k != "labels"}
    paths = [case.path, folder / "plain.onnx", folder / "less.onnx"]
    start = time.perf_counter()
    try:
        compile_file(case.path, paths[1], level=2, measure=False, verify="off")
        result = compile_file(case.path, paths[2], measure=False, verify="fast", **limits, **data)
    except MemoptcError as problem:
        return line | {"failed": problem.message}
    line["seconds"] = time.perf_counter() - start
    line["did"] = [f"{d.what}; {d.why}" for d in result.report.decisions if d.step in PASSES]
    line["stats"] = {p.name: dict(p.stats) for p in result.report.passes if p.name in PASSES}
    line["warnings"] = [w for w in result.report.warnings if any(name in w for name in PASSES)]
    line["need_mb"] = [measure_need(p, bare, options=RunOptions(threads=2)).need_bytes / 1e6 for p in paths]
    line["activations_mb"] = [measure_need(p, bare).parts()["activations"] / 1e6 for p in paths]
    line["latency_ms"] = latencies(paths, case.held_out)
    original, less = (Evaluator(p, RunOptions(), label=p.name) for p in (paths[0], paths[2]))
    seen = {}
    for kind in ("validation", "held_out", "shifted"):
        before, after = (list(outcomes(e, getattr(case, kind))) for e in (original, less))
        seen[kind] = {
            "agreement": agreement(before, after),
            "metric": [metric_of(case, before), metric_of(case, after)],
            "samples": len(before),
        }
    return line | {"data": seen}


HEADS = ("model", "loss", "need, MB", "activations, MB", "p50, to the original", "p95", "mean", "metric, held out",
         "same likeliest class: validation, held out, shifted", "what")  # fmt: skip


def row(line: dict[str, Any]) -> tuple[str, ...]:
    """A line as cells; what stands in brackets is of -O2 without."""
    if "failed" in line:
        return line["name"], f"{line['loss']:.1%}", *[""] * 7, line["failed"]
    need, activations, times = line["need_mb"], line["activations_mb"], line["latency_ms"]
    data = line["data"]
    before, after = data["held_out"]["metric"]
    plain, less = ({key: times[i][key] / times[0][key] for key in times[0]} for i in (1, 2))
    return (
        f"{line['name']} ({line['option']})",
        f"{line['loss']:.1%}",
        f"{need[0]:.1f} -> {need[2]:.1f} ({need[1]:.1f})",
        f"{activations[0]:.1f} -> {activations[2]:.1f} ({activations[1]:.1f})",
        f"{less['p50']:.2f} ({plain['p50']:.2f}) of {times[0]['p50']:.3g} ms",
        f"{less['p95']:.2f} ({plain['p95']:.2f})",
        f"{less['mean']:.2f} ({plain['mean']:.2f})",
        "" if before is None else f"{before:.4f} -> {after:.4f}",
        " / ".join(f"{data[k]['agreement']:.2%}" for k in ("validation", "held_out", "shifted")),
        "; ".join(line["did"] or line["warnings"]) or str(line["stats"]),
    )


def summary(lines: Sequence[dict[str, Any]]) -> Table:
    """The lines as a table."""
    table = Table(*HEADS)
    for line in lines:
        table.add_row(*row(line))
    return table


@click.command(help=__doc__)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--only", multiple=True, type=click.Choice(list(CASES)))
@click.option("--loss", "losses", multiple=True, type=float, default=(0.005, 0.02), show_default=True)
@click.option("--summary", "show", is_flag=True)
@click.option("--markdown", is_flag=True, help="Print the table for the documentation, without what was done.")
def main(file: Path, only: tuple[str, ...], losses: tuple[float, ...], show: bool, markdown: bool) -> None:
    """Run the cases that FILE does not have."""
    lines = [json.loads(text) for text in file.read_text().splitlines()] if file.exists() else []
    have = {(line["name"], line["loss"]) for line in lines}
    if not show and not markdown:
        for name in only or CASES:
            for loss in losses:
                if (name, loss) not in have:
                    with tempfile.TemporaryDirectory() as folder:
                        lines.append(one(name, loss, Path(folder)))
                    with file.open("a") as out:
                        out.write(json.dumps(lines[-1]) + "\n")
    if markdown:
        for cells in (HEADS, ["---"] * len(HEADS), *map(row, lines)):
            click.echo(f"| {' | '.join(cells[: len(HEADS) - 1])} |")
        return
    Console(width=250).print(summary(lines))


if __name__ == "__main__":
    main()
