"""How far tiling reaches on large inputs: `memoptc.runtime.Session` on -O3 against stock onnxruntime on the original.

    python benchmarks/reach.py [--only NAME ...] [--threads 2] [--json FILE]

attention4k and attention16k: scaled dot-product attention, 8 heads of 64, that many tokens, one symbolic dimension (16k
runs under a limit of 256 MB; stock onnxruntime needs over 8 GB and runs only with --stock-16k). sr4: a residual
super-resolution network, times 4, on 256 x 256. unet, mobilenet: the zoo's at 1024 x 1024, where it is. The last two
columns: the peak over stock's, and the latency over stock's.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from growth import attention
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import zoo

from memoptc.api import compile_file
from memoptc.runtime.contract import contract_path
from memoptc.runtime.measure import measure
from memoptc.runtime.measured_contract import make_contract
from memoptc.runtime.measuring_process import InSession, Way
from memoptc.runtime.options import RunOptions


@dataclass(frozen=True)
class Case:
    """A model at a size.

    Args:
        make: Gives the model's file, made in a folder, or `None` where it is not there.
        feed: Inputs.
        goal: Largest peak over stock's.
        latency: Largest latency over stock's.
        limit: Bytes that a run is held to.
    """

    make: Callable[[Path], Path | None]
    feed: Callable[[], dict[str, Any]]
    goal: float
    latency: float = 1.3
    limit: int | None = None


def attend(folder: Path) -> Path:
    """Attention over any number of tokens."""
    attention(folder / "attention.onnx", heads=8, depth=64)
    return folder / "attention.onnx"


def tokens(count: int) -> Callable[[], dict[str, Any]]:
    """Queries, keys and values."""

    def feed() -> dict[str, Any]:
        random = np.random.default_rng(0)
        return {n: random.standard_normal((1, 8, count, 64), dtype=np.float32) for n in "qkv"}

    return feed


def super_resolution(folder: Path, channels: int = 64, blocks: int = 8) -> Path:
    """A residual network in the manner of EDSR ("Enhanced Deep Residual Networks for Single Image Super-Resolution",
    Lim et al. 2017), random weights."""
    random = np.random.default_rng(0)
    nodes, weights = [], []

    def conv(x: str, inputs: int, outputs: int) -> str:
        name = f"conv{len(weights)}"
        scale = 0.5 * (inputs * 9) ** -0.5
        array = (random.standard_normal((outputs, inputs, 3, 3)) * scale).astype(np.float32)
        weights.append(numpy_helper.from_array(array, f"{name}_w"))
        nodes.append(helper.make_node("Conv", [x, f"{name}_w"], [name], name=name, pads=[1, 1, 1, 1]))
        return name

    def op(op_type: str, *operands: str, **attrs: Any) -> str:
        name = f"{op_type.lower()}{len(nodes)}"
        nodes.append(helper.make_node(op_type, list(operands), [name], name=name, **attrs))
        return name

    x = head = conv("image", 3, channels)
    for _ in range(blocks):
        x = op("Add", x, conv(op("Relu", conv(x, channels, channels)), channels, channels))
    x = op("Add", conv(x, channels, channels), head)
    for _ in range(2):
        x = op("DepthToSpace", conv(x, channels, 4 * channels), blocksize=2, mode="CRD")
    nodes.append(helper.make_node("Identity", [conv(x, channels, 3)], ["y"]))
    ports = [
        helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 256, 256]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 1024, 1024]),
    ]
    graph = helper.make_graph(nodes, "super_resolution", ports[:1], ports[1:], weights)
    path = folder / "sr4.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def from_zoo(name: str) -> Callable[[Path], Path | None]:
    """A model of the zoo."""
    return lambda _: None if zoo.ZOO is None else Path(zoo.ZOO.path(name))


def image(name: str, size: int) -> Callable[[], dict[str, Any]]:
    """One random image."""
    return lambda: {name: np.random.default_rng(0).random((1, 3, size, size), dtype=np.float32)}


CASES = {
    "attention4k": Case(attend, tokens(4096), 1 / 25, 1.1),
    "attention16k": Case(attend, tokens(16384), 1 / 25, 1.1, limit=256_000_000),
    "sr4": Case(super_resolution, image("image", 256), 1 / 10),
    "unet": Case(from_zoo("unet_dynamic"), image("image", 1024), 1 / 12),
    "mobilenet": Case(from_zoo("mobilenet_v2_1024"), image("image", 1024), 1 / 20),
}


def one(name: str, case: Case, folder: Path, threads: int, seconds: float, stock: bool) -> dict[str, Any] | None:
    """Measure one case; `None` when its model is not there."""
    original = case.make(folder)
    if original is None:
        return None
    feed = case.feed()
    model = onnx.load(original, load_external_data=False)
    dims = {
        d.dim_param: int(extent)
        for port in model.graph.input
        if port.name in feed
        for d, extent in zip(port.type.tensor_type.shape.dim, feed[port.name].shape, strict=True)
        if d.dim_param
    }
    path = folder / f"{name}.O3.onnx"
    start = time.perf_counter()
    budget = None if case.limit is None else f"activations={int(case.limit * 0.75)}"
    slowdown = None if case.limit else case.latency
    result = compile_file(
        original, path, level=3, dims=dims, max_slowdown=slowdown, memory_budget=budget, verify="off", jobs=threads
    )
    line: dict[str, Any] = {"case": name, "compile_s": time.perf_counter() - start, "goal": case.goal}
    line["planned_mb"] = {
        "stock": (result.report.control.planned_peak_bytes or 0) / 1e6,
        "O3": (result.report.candidate.planned_peak_bytes or 0) / 1e6,
    }
    subjects: list[tuple[str, Path, Way]] = [("stock", original, RunOptions(threads=threads))] if stock else []
    limits = {} if case.limit is None else {"memory_limit": case.limit}
    make_contract(path, feed, threads=threads).save(contract_path(path))
    subjects.append(("default", path, RunOptions(threads=threads)))
    subjects += [(tier, path, InSession(tier, limits)) for tier in ("arena", "planned")]
    found = measure([p for _, p, _ in subjects], feed, options=[w for _, _, w in subjects], seconds=seconds)
    line["run_peak_mb"] = {k: m.run_peak_bytes / 1e6 for (k, _, _), m in zip(subjects, found, strict=True)}
    line["ms"] = {k: m.latency_ms["p50"] for (k, _, _), m in zip(subjects, found, strict=True)}
    return line


@click.command(help=__doc__)
@click.option("--only", multiple=True, type=click.Choice(list(CASES)), help="Cases; all when not given.")
@click.option("--threads", default=2, show_default=True)
@click.option("--seconds", default=8.0, show_default=True, help="Timed runs per case.")
@click.option("--stock-16k", is_flag=True, help="Run stock onnxruntime on 16,384 tokens, too: 9 GB.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write every figure as JSON.")
def main(only: tuple[str, ...], threads: int, seconds: float, stock_16k: bool, json_file: Path | None) -> None:
    """Run the benchmark."""
    table = Table("case", "planned MB", "peak MB stock", "default", "arena", "planned", "ratio", "latency", "goal")
    lines = []
    for name in only or CASES:
        with tempfile.TemporaryDirectory() as folder:
            stock = stock_16k or CASES[name].limit is None
            line = one(name, CASES[name], Path(folder), threads, seconds, stock)
        if line is None:
            continue
        lines.append(line)
        print(json.dumps(line), file=sys.stderr, flush=True)
        peak, ms, planned = line["run_peak_mb"], line["ms"], line["planned_mb"]
        best = min(("arena", "planned"), key=peak.__getitem__)
        table.add_row(
            name,
            f"{planned['stock']:.1f} -> {planned['O3']:.1f}",
            f"{peak['stock']:.1f}" if stock else "-",
            *(f"{peak[k]:.1f}" for k in ("default", "arena", "planned")),
            f"1/{peak['stock'] / peak[best]:.1f}" if stock else "-",
            f"{ms[best] / ms['stock']:.2f}" if stock else f"{ms[best]:.0f} ms",
            f"1/{1 / line['goal']:.0f}",
        )
    Console(width=140).print(table)
    if json_file:
        json_file.write_text(json.dumps(lines, indent=1))


if __name__ == "__main__":
    main()
