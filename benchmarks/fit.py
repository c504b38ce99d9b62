"""Tiled models against stock onnxruntime on the originals, in fresh processes; the peers on the same models beside.

    python benchmarks/fit.py [--only NAME ...] [--level 2 --level 3] [--no-peers] [--tune] [--threads 2] [--json FILE]

Run peak: highest resident memory during four runs over the loaded model (MB). `default`: stock onnxruntime with default
session options; `arena`, `planned`: `memoptc.runtime.Session`. Ratios are to stock onnxruntime on the original. Each
model is compiled for the extents of the case. Only cases that are activation-bound count: the original's peak is at
least 5 MB and twice the file.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import zoo

from memoptc.api import compile_file
from memoptc.ir.diagnostics import MemoptcError
from memoptc.ir.onnx_io import read_onnx
from memoptc.runtime.contract import contract_path
from memoptc.runtime.measure import measure
from memoptc.runtime.measured_contract import make_contract
from memoptc.runtime.measuring_process import InSession, Way
from memoptc.runtime.memory.extents import bind_shapes
from memoptc.runtime.options import RunOptions

SLOWDOWN = {2: None, 3: 1.3}
PEERS = {
    "onnxslim": "import onnxslim; onnxslim.slim({source!r}, {output!r})",
    "onnxsim": "import onnx, onnxsim; m, ok = onnxsim.simplify(onnx.load({source!r})); onnx.save(m, {output!r})",
    "transformers": "from onnxruntime.transformers.optimizer import optimize_model; "
    "optimize_model({source!r}).save_model_to_file({output!r})",
}
"""Other tools, each run in a process of its own."""


def cases(only: tuple[str, ...]) -> Iterator[tuple[str, str | None]]:
    """Every model in every size."""
    assert zoo.ZOO is not None
    for name in only or zoo.NAMES:
        for variant in (None, *zoo.ZOO.meta(name).get("variants", {})):
            yield name, variant


def is_bound(original: Path, feed: dict[str, Any], threads: int) -> bool:
    """Whether activations, not weights, make the peak."""
    (stock,) = measure([original], feed, options=RunOptions(threads=threads), seconds=0.1)
    return stock.run_peak_bytes >= max(5e6, 2 * original.stat().st_size)


def error(original: Path, candidate: Path, feed: dict[str, Any], threads: int) -> float:
    """Largest error of an output, over its scale."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    worst = 0.0
    found = [onnxruntime.InferenceSession(str(p), options).run(None, feed) for p in (original, candidate)]
    for a, b in zip(*found, strict=True):
        if np.asarray(a).size and np.asarray(a).dtype.kind == "f":
            a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
            worst = max(worst, float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-9)))
        elif not np.array_equal(a, b):
            worst = max(worst, 1.0)
    return worst


def one(
    name: str,
    variant: str | None,
    levels: tuple[int, ...],
    peers: bool,
    tune: bool,
    threads: int,
    seconds: float,
    folder: Path,
) -> dict[str, Any] | None:
    """Measure one model in one size; `None` when it is not bound by activations."""
    assert zoo.ZOO is not None
    feed = zoo.ZOO.inputs(name, variant)
    original = Path(zoo.ZOO.path(name))
    if not is_bound(original, feed, threads):
        return None
    dims = bind_shapes(read_onnx(original), feed)
    subjects: list[tuple[str, Path, Way]] = [("stock", original, RunOptions(threads=threads))]
    line: dict[str, Any] = {"model": name, "variant": variant or "", "error": {}, "compile_s": {}, "planned_mb": {}}
    for level in levels:
        path = folder / f"{name}.{level}.onnx"
        start = time.perf_counter()
        result = compile_file(
            original,
            path,
            level=level,
            dims=dims,
            max_slowdown=SLOWDOWN.get(level),
            tune=tune,
            verify="off",
            jobs=threads,
        )
        line["compile_s"][f"O{level}"] = time.perf_counter() - start
        line["planned_mb"][f"O{level}"] = (result.report.candidate.planned_peak_bytes or 0) / 1e6
        line["planned_mb"]["stock"] = (result.report.control.planned_peak_bytes or 0) / 1e6
        line["error"][f"O{level}"] = error(original, path, feed, threads)
        make_contract(path, feed, threads=threads).save(contract_path(path))
        subjects.append((f"O{level} default", path, RunOptions(threads=threads)))
        for tier in ("arena", "planned"):
            subjects.append((f"O{level} {tier}", path, InSession(tier)))
    for peer, code in PEERS.items() if peers else ():
        path = folder / f"{name}.{peer}.onnx"
        command = [sys.executable, "-c", code.format(source=str(original), output=str(path))]
        done = subprocess.run(command, capture_output=True, timeout=600, check=False, cwd=folder)
        if done.returncode == 0 and path.exists():
            subjects.append((peer, path, RunOptions(threads=threads)))
    found = measure([p for _, p, _ in subjects], feed, options=[w for _, _, w in subjects], seconds=seconds)
    line["run_peak_mb"] = {k: m.run_peak_bytes / 1e6 for (k, _, _), m in zip(subjects, found, strict=True)}
    line["ms"] = {k: m.latency_ms["p50"] for (k, _, _), m in zip(subjects, found, strict=True)}
    return line


def ratio(line: dict[str, Any], what: str, key: str) -> float | None:
    """A figure over stock's."""
    found = line[what].get(key)
    return None if found is None else max(found, 0.01) / max(line[what]["stock"], 0.01)


def geomean(values: list[float]) -> float:
    """Geometric mean."""
    return math.exp(sum(math.log(v) for v in values) / len(values)) if values else float("nan")


def summary(lines: list[dict[str, Any]], console: Console) -> None:
    """Print one line per case, and the means."""
    keys = list(dict.fromkeys(k for line in lines for k in line["run_peak_mb"] if k != "stock"))
    table = Table(title="run peak: MB of stock, then ratios to it, latency ratio in brackets; worst error at -O levels")
    for heading in ("case", "stock", *keys, "error", "compile s"):
        table.add_column(heading, justify="left" if heading == "case" else "right")
    for line in lines:
        cells = []
        for key in keys:
            memory, ms = ratio(line, "run_peak_mb", key), ratio(line, "ms", key)
            cells.append("-" if memory is None else f"{memory:.2f} [{ms:.2f}]")
        table.add_row(
            f"{line['model']} {line['variant']}",
            f"{line['run_peak_mb']['stock']:.1f}",
            *cells,
            f"{max(line['error'].values(), default=0):.0e}",
            " ".join(f"{s:.1f}" for s in line["compile_s"].values()),
        )
    console.print(table, markup=False)
    for key in keys:
        there = [line for line in lines if key in line["run_peak_mb"]]
        memory = [r for line in there if (r := ratio(line, "run_peak_mb", key)) is not None]
        times = [r for line in there if (r := ratio(line, "ms", key)) is not None]
        worst = max(zip(memory, there, strict=True), key=lambda e: e[0])
        slowest = max(zip(times, there, strict=True), key=lambda e: e[0])
        console.print(
            f"{key} ({len(there)} cases): memory {geomean(memory):.3f}, worst {worst[0]:.2f} ({worst[1]['model']} "
            f"{worst[1]['variant']}); latency {geomean(times):.3f}, worst {slowest[0]:.2f} ({slowest[1]['model']} "
            f"{slowest[1]['variant']})",
            markup=False,
        )


@click.command(help=__doc__)
@click.option("--only", multiple=True, help="Models; all when not given.")
@click.option("--level", "levels", multiple=True, type=int, default=(2, 3), show_default=True)
@click.option("--peers/--no-peers", default=True, show_default=True)
@click.option("--tune", is_flag=True, help="Compile with --tune.")
@click.option("--threads", default=2, show_default=True)
@click.option("--seconds", default=8.0, show_default=True, help="Timed runs per case.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write every figure as JSON.")
def main(
    only: tuple[str, ...],
    levels: tuple[int, ...],
    peers: bool,
    tune: bool,
    threads: int,
    seconds: float,
    json_file: Path | None,
) -> None:
    """Run the benchmark."""
    if zoo.ZOO is None:
        raise click.ClickException("There is no zoo of models; set MEMOPTC_ZOO to its folder.")
    lines = []
    for name, variant in cases(only):
        with tempfile.TemporaryDirectory() as folder:
            try:
                line = one(name, variant, levels, peers, tune, threads, seconds, Path(folder))
                if line is not None:
                    lines.append(line)
                    print(json.dumps(line), file=sys.stderr, flush=True)
            except MemoptcError as problem:
                print(f"{name} {variant or ''}: {problem}", file=sys.stderr, flush=True)
    if lines:
        summary(lines, Console(width=240))
    if json_file:
        json_file.write_text(json.dumps(lines, indent=1))


if __name__ == "__main__":
    main()
