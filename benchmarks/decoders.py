"""A decoder before and after: need of prefill and decode, and tokens per second, interleaved with the original.

    python benchmarks/decoders.py MODEL.onnx [--option=--last-logits ...] [--size 256:0 --size 1:256 ...]

MODEL is any decoder whose cache grows (smollm2_135m of the collection, for instance). It is compiled as users do, with
`-O2` and the options given. Sizes are steps and past; one sequence. Needs are MB of a fresh process over what it had
before the model was opened, latencies medians in one process with both models loaded, on two threads.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from memoptc.ir.core import Graph
from memoptc.ir.onnx_io import read_onnx
from memoptc.runtime.evaluate import Evaluator, RunOptions
from memoptc.runtime.feeds import find_feeds
from memoptc.runtime.inputs import InputMaker
from memoptc.runtime.measure import measure_need

THREADS = 2


def feed_of(graph: Graph, evaluator: Evaluator, steps: int, past: int) -> dict[str, Any]:
    """Make up inputs for so many steps after so much past."""
    maker = InputMaker(graph)
    wanted = {"batch": 1, "sequence": steps, "past": past}
    dims = {
        n: wanted[kind] for n, (kind, _) in maker.classes.items() if kind in wanted and n not in maker.solution.values
    }
    return find_feeds(graph, evaluator, count=1, dims=dims)[0].feed


def medians(models: list[Evaluator], feed: dict[str, Any], seconds: float) -> list[float]:
    """Median seconds of a run, the models taking turns."""
    found: list[list[float]] = [[] for _ in models]
    started = time.perf_counter()
    while len(found[0]) < 4 or time.perf_counter() - started < seconds:
        for taken, model in zip(found, models, strict=True):
            before = time.perf_counter()
            model.run(feed)
            taken.append(time.perf_counter() - before)
    return [statistics.median(taken[1:]) for taken in found]


@click.command()
@click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--option", multiple=True, help="Option of the compile, such as --last-logits.")
@click.option("--size", multiple=True, default=("256:0", "2048:0", "1:256", "1:2048"), help="STEPS:PAST.")
@click.option("--seconds", default=10.0, help="For each latency.")
def main(model: Path, option: tuple[str, ...], size: tuple[str, ...], seconds: float) -> None:
    """Compile MODEL, and compare."""
    table = Table("steps", "past", "need", "", "ratio", "tokens/s", "", "ratio")
    with tempfile.TemporaryDirectory() as folder:
        after = Path(folder) / "after.onnx"
        command = [sys.executable, "-m", "memoptc", str(model), "-O2", "--no-measure", "-q", "-o", str(after), *option]
        started = time.perf_counter()
        subprocess.run(command, check=True)
        click.echo(f"compiled in {time.perf_counter() - started:.0f} s")
        graph = read_onnx(model)
        options = RunOptions(threads=THREADS)
        both = [Evaluator(path, options) for path in (model, after)]
        for steps, past in (tuple(map(int, s.split(":"))) for s in size):
            feed = feed_of(graph, both[0], steps, past)
            needs = [
                measure_need(path, feed, options=options, seconds=seconds).need_bytes / 1e6 for path in (model, after)
            ]
            rates = [steps / taken for taken in medians(both, feed, seconds)]
            cells = [f"{v:.1f}" for v in needs] + [f"{needs[1] / needs[0]:.2f}"]
            cells += [f"{v:.1f}" for v in rates] + [f"{rates[1] / rates[0]:.2f}"]
            table.add_row(str(steps), str(past), *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
