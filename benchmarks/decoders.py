"""A decoder before and after: need, container and tokens per second of prefill and decode, interleaved.

    python benchmarks/decoders.py MODEL.onnx [--option=--last-logits ...] [--size 256:0 --size 1:256 ...] [--container]

MODEL is any decoder whose cache grows (smollm2_135m of the collection, for instance). It is compiled as users do, with
`-O2` and the options given, or `--compiled FILE` names what was. Sizes are steps and past; one sequence. Needs are MB
of a fresh process over what it had before the model was opened, in stock onnxruntime and, as anonymous bytes, in
`Session`; latencies are medians in one process with both models loaded, on two threads. `--container` finds the
smallest memory limits, of which a one-node model's is taken off. `--long N` decodes N tokens one by one with the
compiled model, and compares the last scores with its prefill of all. `--packed-cache` lets `Session` map packed weights
from a folder, and finds its container, too.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from rich.console import Console
from rich.table import Table

from memoptc.ir.core import Graph
from memoptc.ir.onnx_io import read_onnx
from memoptc.runtime.container import smallest_container
from memoptc.runtime.decoding import Decoder
from memoptc.runtime.evaluate import Evaluator
from memoptc.runtime.feeds import find_feeds
from memoptc.runtime.inputs import InputMaker
from memoptc.runtime.measure import measure_need
from memoptc.runtime.measuring_process import InSession, Way
from memoptc.runtime.options import RunOptions
from memoptc.runtime.session import Session

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


def base_container(folder: Path) -> float:
    """MB of the smallest container of a model with one node."""
    make = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])], "one", [make("x", 1, [4])], [make("y", 1, [4])]
    )
    path = folder / "one.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9), path)
    return smallest_container(path, {"x": np.zeros(4, np.float32)}, seconds=60).limit_bytes / 1e6


def decode_long(model: Path, count: int) -> None:
    """Decode so many tokens one by one, and compare with a prefill of all."""
    with Decoder(model, threads=THREADS) as decoder:
        ids = np.random.default_rng(0).integers(0, decoder.facts.vocabulary, count)
        whole = decoder.prefill(ids)
        started = time.perf_counter()
        decoder.prefill(ids[:1])
        for token in ids[1:]:
            scores = decoder.step(token)
        rate = (count - 1) / (time.perf_counter() - started)
        error = float(np.abs(whole - scores).max() / np.abs(whole).max())
        same = int(whole.argmax()) == int(scores.argmax())
        click.echo(f"{count} tokens one by one: {rate:.1f} a second, {error:.1e} off its prefill, same best: {same}")


def compiled_with(model: Path, after: Path, option: tuple[str, ...]) -> None:
    """Compile, and say how long it took and how much memory the largest process had."""
    command = [sys.executable, "-m", "memoptc", str(model), "-O2", "--no-measure", "-q", "-o", str(after), *option]
    started = time.perf_counter()
    subprocess.run(command, check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6
    click.echo(f"compiled in {time.perf_counter() - started:.0f} s, largest process {peak:.0f} MB")


@click.command()
@click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--option", multiple=True, help="Option of the compile, such as --last-logits.")
@click.option("--compiled", type=click.Path(exists=True, path_type=Path), help="What was compiled before.")
@click.option("--size", multiple=True, default=("256:0", "2048:0", "1:256", "1:2048"), help="STEPS:PAST.")
@click.option("--seconds", default=10.0, help="For each latency.")
@click.option("--container", is_flag=True, help="Smallest memory limits, too, at the last size.")
@click.option("--packed-cache", type=click.Path(file_okay=False, path_type=Path), help="Session's; made if missing.")
@click.option("--long", "long_", default=0, help="Decode so many tokens one by one.")
def main(
    model: Path,
    option: tuple[str, ...],
    compiled: Path | None,
    size: tuple[str, ...],
    seconds: float,
    container: bool,
    packed_cache: Path | None,
    long_: int,
) -> None:
    """Compile MODEL, and compare."""
    table = Table("steps", "past", "need", "", "ratio", "anonymous", "in Session", "ratio", "tokens/s", "", "ratio")
    with tempfile.TemporaryDirectory() as folder:
        after = compiled or Path(folder) / "after.onnx"
        if compiled is None:
            compiled_with(model, after, option)
        graph = read_onnx(model)
        options = RunOptions(threads=THREADS)
        ours = InSession(arguments={"packed_cache": str(packed_cache), "threads": THREADS} if packed_cache else {})
        if packed_cache:
            Session(after, packed_cache=packed_cache).close()  # made once, and by another process than is measured
        weight = [
            sum(f.stat().st_size for f in (p, p.with_name(p.name + ".data")) if f.exists()) for p in (model, after)
        ]
        click.echo(f"files {weight[0] / 1e6:.1f} and {weight[1] / 1e6:.1f} MB, {weight[1] / weight[0]:.3f}")
        feed: dict[str, Any] = {}
        for steps, past in (tuple(map(int, s.split(":"))) for s in size):
            both: list[Evaluator] = [Evaluator(path, options) for path in (model, after)]
            feed = feed_of(graph, both[0], steps, past)
            rates = [steps / taken for taken in medians(both, feed, seconds)]
            del both
            needs = [measure_need(path, feed, options=options, seconds=seconds) for path in (model, after)]
            small = measure_need(after, feed, options=ours, seconds=seconds)
            cells: list[str] = []
            for pair in (
                [n.need_bytes / 1e6 for n in needs],
                [(n.anonymous_bytes or 0) / 1e6 for n in (needs[0], small)],
                rates,
            ):
                cells += [f"{v:.1f}" for v in pair] + [f"{pair[1] / pair[0]:.2f}"]
            table.add_row(str(steps), str(past), *cells)
        Console(width=120).print(table)
        if container:
            base = base_container(Path(folder))
            ways: list[tuple[Path, Way]] = [(model, options), (after, options), (after, ours)]
            found = [smallest_container(path, feed, way=way, seconds=150) for path, way in ways]
            sizes = [f.limit_bytes / 1e6 - base for f in found]
            of, stock, ours_ = sizes
            click.echo(
                f"containers above the base of {base:.0f} MB: {of:.0f}, {stock:.0f} and in Session {ours_:.0f} MB: "
                f"{stock / of:.2f} and {ours_ / of:.2f}"
            )
        if long_:
            decode_long(after, long_)


if __name__ == "__main__":
    main()
