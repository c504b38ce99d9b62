"""Stock onnxruntime against `memoptc.runtime.Session`, on the unchanged model and on -O1, in fresh processes.

    python benchmarks/activation_memory.py [--only NAME ...] [--threads 2] [--seconds 4] [--json FILE]

Run peak: highest resident memory during four runs over the loaded model (MB), and what onnxruntime's allocator saw
(recorder). Latency in turns, medians. `bits`: outputs are those of stock onnxruntime on the same file, bit for bit.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import zoo

from memoptc.api import compile_file
from memoptc.ir.diagnostics import MemoptcError
from memoptc.runtime.measure import measure
from memoptc.runtime.measured_contract import make_contract
from memoptc.runtime.measuring_process import InSession, Way
from memoptc.runtime.native.session import NativeSession
from memoptc.runtime.options import RunOptions
from memoptc.runtime.session import Session


def cases(only: tuple[str, ...]) -> Iterator[tuple[str, str | None]]:
    """Every model in every size."""
    assert zoo.ZOO is not None
    for name in only or zoo.NAMES:
        yield name, None
        for variant in zoo.ZOO.meta(name).get("variants", {}):
            yield name, variant


def same_bits(path: Path, feed: dict[str, Any], way: str, threads: int) -> bool:
    """Whether three runs in a session give the bits that stock onnxruntime gives."""
    with Session(path, memory="stock", threads=threads) as stock:
        expected = stock.run(None, feed)
    with Session(path, memory=way, threads=threads) as session:  # type: ignore[arg-type]
        return all(
            np.asarray(a).tobytes() == np.asarray(b).tobytes()
            for _ in range(3)
            for a, b in zip(expected, session.run(None, feed), strict=True)
        )


def recorded(path: Path, feed: dict[str, Any], threads: int) -> dict[str, float]:
    """What onnxruntime's allocator is asked for: stock at its second run, and planned."""
    stock = NativeSession(path, RunOptions(threads=threads))
    stock.run(feed)
    _, trace = stock.record(feed)
    with Session(path, memory="planned", threads=threads) as session:
        outputs = session.run(None, feed)
        plan = session.plans[0]
    return {
        "stock": trace.peak_bytes / 1e6,
        "planned": (plan.arena_bytes + sum(np.asarray(o).nbytes for o in outputs)) / 1e6,
    }


def one(name: str, variant: str | None, optimized: Path, threads: int, seconds: float) -> dict[str, Any]:
    """Measure one model in one size."""
    assert zoo.ZOO is not None
    feed = zoo.ZOO.inputs(name, variant)
    original = Path(zoo.ZOO.path(name))
    subjects: list[tuple[Path, Way]] = []
    for model in (original, optimized):
        # The contract is the same for both tiers: the order with the smaller recorded peak, and an arena for it.
        contract = optimized.with_name(f"{model.stem}.{threads}.session.json")
        make_contract(model, feed, threads=threads).save(contract)
        subjects.append((model, RunOptions(threads=threads)))
        for tier in ("arena", "planned"):
            subjects.append((model, InSession(tier, {"contract": str(contract)})))
    found = measure([p for p, _ in subjects], feed, options=[w for _, w in subjects], seconds=seconds)
    keys = ["stock", "arena", "planned", "o1 stock", "o1 arena", "o1 planned"]
    line: dict[str, Any] = {"model": name, "variant": variant or ""}
    line["run_peak_mb"] = {k: m.run_peak_bytes / 1e6 for k, m in zip(keys, found, strict=True)}
    line["ms"] = {k: m.latency_ms["p50"] for k, m in zip(keys, found, strict=True)}
    line["recorded_mb"] = {"original": recorded(original, feed, threads), "o1": recorded(optimized, feed, threads)}
    line["bits"] = {
        f"{label} {way}": same_bits(path, feed, way, threads)
        for label, path in (("original", original), ("o1", optimized))
        for way in ("arena", "planned")
    }
    return line


def geomean(values: list[float]) -> float:
    """Geometric mean."""
    return math.exp(sum(math.log(v) for v in values) / len(values)) if values else float("nan")


def summary(lines: list[dict[str, Any]], console: Console) -> None:
    """Print one line per case, and the means."""
    table = Table(title="run peak over the loaded model: MB of stock, then ratios to it; latency ratios; bits")
    keys = ["arena", "planned", "o1 stock", "o1 arena", "o1 planned"]
    for heading in ("model", "stock", *keys, "rec. planned", *(f"ms {k}" for k in keys), "bits"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for line in lines:
        peak, ms, rec = line["run_peak_mb"], line["ms"], line["recorded_mb"]["original"]
        table.add_row(
            f"{line['model']} {line['variant']}",
            f"{peak['stock']:.1f}",
            *(f"{peak[k] / max(peak['stock'], 1e-9):.2f}" for k in keys),
            f"{rec['planned'] / max(rec['stock'], 1e-9):.2f}",
            *(f"{ms[k] / ms['stock']:.2f}" for k in keys),
            "same" if all(line["bits"].values()) else "DIFFER",
        )
    console.print(table)
    # A run that touches less than this is mostly the first pages of onnxruntime's own code.
    large = [li for li in lines if li["run_peak_mb"]["stock"] >= 2]
    for label, chosen in (("all", lines), ("stock >= 2 MB", large)):
        for key in keys:
            memory = geomean(
                [max(li["run_peak_mb"][key], 0.05) / max(li["run_peak_mb"]["stock"], 0.05) for li in chosen]
            )
            latency = geomean([li["ms"][key] / li["ms"]["stock"] for li in chosen])
            worst = max(chosen, key=lambda li: li["run_peak_mb"][key] / max(li["run_peak_mb"]["stock"], 0.05))
            ratio = worst["run_peak_mb"][key] / max(worst["run_peak_mb"]["stock"], 0.05)
            console.print(
                f"{label} ({len(chosen)}): {key}: memory {memory:.3f}, latency {latency:.3f}, "
                f"worst memory {ratio:.2f} ({worst['model']} {worst['variant']})"
            )
    slow = [li for li in lines if li["ms"]["stock"] >= 1]
    for key in keys:
        console.print(
            f"latency, stock >= 1 ms ({len(slow)}): {key}: {geomean([share(li, 'ms', key) for li in slow]):.3f}"
        )


def share(line: dict[str, Any], what: str, key: str) -> float:
    """A figure over stock's."""
    return float(max(line[what][key], 1e-3) / max(line[what]["stock"], 1e-3))


@click.command(help=__doc__)
@click.option("--only", multiple=True, help="Models; all when not given.")
@click.option("--threads", default=2, show_default=True)
@click.option("--seconds", default=4.0, show_default=True, help="Timed runs per case.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write every figure as JSON.")
def main(only: tuple[str, ...], threads: int, seconds: float, json_file: Path | None) -> None:
    """Run the benchmark."""
    if zoo.ZOO is None:
        raise click.ClickException("There is no zoo of models; set MEMOPTC_ZOO to its folder.")
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        optimized: dict[str, Path] = {}
        for name, variant in cases(only):
            try:
                if name not in optimized:
                    optimized[name] = Path(folder) / f"{name}.onnx"
                    compile_file(zoo.ZOO.path(name), optimized[name], level=1)
                lines.append(one(name, variant, optimized[name], threads, seconds))
                print(json.dumps(lines[-1]), file=sys.stderr, flush=True)
            except MemoptcError as error:
                print(f"{name} {variant or ''}: {error}", file=sys.stderr, flush=True)
    summary(lines, Console(width=220))
    if json_file:
        json_file.write_text(json.dumps(lines, indent=1))


if __name__ == "__main__":
    main()
