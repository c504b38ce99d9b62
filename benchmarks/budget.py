"""Budgets of the whole process, from the original's need down to refusal: what was asked, what it needs, by what means.

    python benchmarks/budget.py FILE.jsonl [--only NAME ...] [--share 0.8 ...] [--container]
    python benchmarks/budget.py FILE.jsonl --summary

Each model is compiled with `--memory-budget` at shares of what the original needs in stock onnxruntime, measured. Need
is measured anew, in a fresh process that is not the compile's, in the way of running that the compile names; with
`--container` the result also loads and runs in a control group of the budget, of what a model of one node needs in one
(its Python, its libraries), and of the inputs, which need does not count: the caller holds them. An overrun is a need
above the budget. One line of JSON per budget is appended to FILE.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from onnx import TensorProto, helper
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import zoo

from memoptc.api import compile_file
from memoptc.ir.diagnostics import BudgetError, MemoptcError
from memoptc.runtime.container import Unavailable, limiter, smallest_container
from memoptc.runtime.measure import measure_need
from memoptc.runtime.measuring_process import InSession, Way
from memoptc.runtime.options import RunOptions

MODELS = {
    "squeezenet_fp32": None,
    "minilm_l6": None,
    "charlm": "b8x512",
    "unet_dynamic": None,
    "fsmn_vad": "60s",
    "silero_vad": None,
    "super_resolution_x3": None,
    "yunet_n_dynamic": "640",
    "photo_sr_x2": None,
    "digits_vit": "batch256",
}
"""Models with the sizes that they are run at: pictures, an encoder, a decoder, a U-net, speech."""

SHARES = (1.0, 0.8, 0.65, 0.5, 0.35, 0.2)
UNUSED, FAST = 0.15, 1.05
"""Part of a budget that may be left unused, at half of the models; ratio of latencies up to which that loses nothing:
what makes a model smaller at equal speed is done whatever the budget."""

Line = dict[str, Any]


def one_node(folder: Path) -> Path:
    """A model of one node."""
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [8]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "base", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "one.onnx")
    return folder / "one.onnx"


def dims_of(name: str, feed: dict[str, Any]) -> dict[str, int]:
    """The extents of symbolic axes in a feed."""
    assert zoo.ZOO is not None
    model = onnx.load(zoo.ZOO.path(name), load_external_data=False)
    return {
        d.dim_param: int(extent)
        for value in model.graph.input
        if value.name in feed
        for d, extent in zip(value.type.tensor_type.shape.dim, np.shape(feed[value.name]), strict=False)
        if d.dim_param.isidentifier()
    }


def means(report: Any) -> list[str]:
    """Passes that did something for memory, and where weights lie."""
    named = ("fit", "tile", "order", "narrow", "widen-late", "scale-early", "split-products", "split-sums",
             "fuse-attention", "fuse-cached-attention", "share-weights", "freeze-runtime")  # fmt: skip
    return [p.name for p in report.passes if p.name in named and p.stats]


def one(name: str, share: float, original: int, folder: Path, containers: bool) -> Line:
    """Compile for one budget."""
    assert zoo.ZOO is not None
    feed = zoo.ZOO.inputs(name, MODELS[name])
    budget = int(original * share)
    line: Line = {"name": name, "share": share, "budget": budget, "original": original}
    start = time.perf_counter()
    try:
        result = compile_file(
            zoo.ZOO.path(name),
            folder / "out.onnx",
            level=2,
            dims=dims_of(name, feed),
            memory_budget=budget,
            measure=True,
        )
    except BudgetError as refused:
        return line | {"refused": f"{refused.message} {refused.hint or ''}", "seconds": time.perf_counter() - start}
    except MemoptcError as problem:
        return line | {"failed": problem.message, "seconds": time.perf_counter() - start}
    line["seconds"] = time.perf_counter() - start
    measured = result.report.candidate.measured or {}
    line["latency_ms"] = (measured.get("latency_ms") or {}).get("p50")
    line["verdict"], line["means"] = result.verdict, means(result.report)
    ways: dict[str, Way] = {"stock": RunOptions(), "session": InSession(None, {})}
    line["need"] = {k: measure_need(folder / "out.onnx", feed, options=w).need_bytes for k, w in ways.items()}
    kept = min(line["need"], key=lambda k: line["need"][k])
    line["way"] = kept
    sessions = result.report.candidate.session or {}
    timed = measured if kept == "stock" or not sessions else next(iter(sessions.values()))
    line["slowdown"] = timed.get("slowdown")
    if containers:
        try:
            base = smallest_container(one_node(folder), {"x": feed_of_one()}, way=ways[kept], seconds=20).limit_bytes
            with limiter(folder / "out.onnx", feed, ways[kept]) as tries:
                tries.free()
                limit = base + budget + sum(np.asarray(value).nbytes for value in feed.values())
                trial = tries.run(limit)
            line["container"] = {"limit": limit, "fits": trial.fits, "why": trial.why}
        except Unavailable as missing:
            line["container"] = {"unavailable": missing.message}
    return line


def feed_of_one() -> Any:
    """Its input."""
    return np.zeros(8, np.float32)


def summary(lines: Sequence[Line]) -> tuple[Table, str]:
    """The lines as a table, and what they come to."""
    table = Table("model", "budget MB", "share", "need MB (stock / Session)", "used", "container", "times", "means")
    over, kept, idle, failed, killed = 0, 0, 0, 0, 0
    tightest: dict[str, float] = {}
    for line in lines:
        row = [line["name"], f"{line['budget'] / 1e6:.1f}", f"{line['share']:.0%}"]
        failed += "failed" in line
        killed += not line.get("container", {}).get("fits", True)
        if "need" not in line:
            table.add_row(*row, "", "", "", "", line.get("refused") or f"FAILED {line['failed']}")
            continue
        need = min(line["need"].values())
        left, slowdown = 1 - need / line["budget"], line["slowdown"]
        over, kept = over + (left < 0), kept + 1
        idle += left > UNUSED and slowdown is not None and slowdown["low"] > FAST
        tightest[line["name"]] = min(tightest.get(line["name"], 1.0), left)
        box = line.get("container", {})
        fits = "" if not box else box.get("unavailable") or ("runs" if box["fits"] else box["why"])
        table.add_row(
            *row,
            f"{line['need']['stock'] / 1e6:.1f} / {line['need']['session'] / 1e6:.1f}",
            f"{1 - left:.0%}",
            fits,
            "" if slowdown is None else f"{slowdown['ratio']:.2f}",
            ", ".join(line["means"]),
        )
    tight = sum(left <= UNUSED for left in tightest.values())
    words = f"{over} overruns in {kept} budgets, {killed} killed in their container, {failed} compiles failed; "
    words += f"at most {UNUSED:.0%} left unused at the tightest budget of {tight} of {len(tightest)} models; "
    words += f"more than that, by a model slower than {FAST:g} times the original, at {idle}"
    return table, words


@click.command(help=__doc__)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--only", multiple=True, type=click.Choice(list(MODELS)))
@click.option("--share", "shares", multiple=True, type=float, default=SHARES, show_default=True)
@click.option("--container", "containers", is_flag=True, help="Also run in a control group of the budget.")
@click.option("--summary", "show", is_flag=True)
def main(file: Path, only: tuple[str, ...], shares: tuple[float, ...], containers: bool, show: bool) -> None:
    """Run the budgets that FILE does not have; a model is done when one was refused."""
    assert zoo.ZOO is not None
    lines: list[Line] = [json.loads(text) for text in file.read_text().splitlines()] if file.exists() else []
    for name in () if show else only or MODELS:
        mine = [line for line in lines if line["name"] == name]
        have = {line["share"] for line in mine}
        original = mine[0]["original"] if mine else None
        for share in sorted(shares, reverse=True):
            if share in have or any("refused" in line for line in mine):
                continue
            if original is None:
                original = measure_need(zoo.ZOO.path(name), zoo.ZOO.inputs(name, MODELS[name])).need_bytes
            with tempfile.TemporaryDirectory() as folder:
                mine.append(one(name, share, original, Path(folder), containers))
            lines.append(mine[-1])
            with file.open("a") as out:
                out.write(json.dumps(lines[-1]) + "\n")
    table, words = summary(lines)
    console = Console(width=200)
    console.print(table)
    console.print(words)


if __name__ == "__main__":
    main()
