"""Every model of the zoo through memoptc: -O1, -O2 and -O2 --target int8, side by side with the original.

    python benchmarks/zoo.py [--only NAME ...] [--config o1 --config o2 --config int8] [--json FILE]

One line per model and configuration: verified or not, size, latency, run peak, task figure before and after.
Figures come from memoptc's own report, whose measurements run in fresh processes, control and candidate
interleaved. `-O1` must be bit-exact with onnxruntime's optimizer off; the line says so.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime as ort
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import zoo

from memoptc.api import compile_file
from memoptc.ir.diagnostics import MemoptcError

CONFIGS = {
    "o1": {"level": 1},
    "o2": {"level": 2},
    "int8": {"level": 2, "target": "int8"},
}
CALIBRATION_SAMPLES = 64


def save_feeds(feeds: list[dict[str, Any]], folder: Path) -> Path:
    """Write feeds as a folder of .npz files, the form that --calibration takes."""
    folder.mkdir()
    for index, feed in enumerate(feeds):
        np.savez(folder / f"{index:05d}.npz", **feed)
    return folder


def task_figure(name: str, path: Path) -> float | None:
    """The model's own accuracy (top-1, Spearman, PSNR, bits per character), all of its samples."""
    assert zoo.ZOO is not None
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    quality = zoo.ZOO.quality(name, lambda feed: session.run(None, feed))
    return None if quality is None else next(iter(quality.values()))


def one(name: str, config: str, folder: Path, *, measure: bool) -> dict[str, Any]:
    """Compile one model in one configuration and give its line."""
    assert zoo.ZOO is not None
    line: dict[str, Any] = {"model": name, "config": config}
    source, output = zoo.ZOO.path(name), folder / f"{name}.{config}.onnx"
    feeds, _ = zoo.ZOO.samples(name, CALIBRATION_SAMPLES)
    real = bool(feeds)
    data = save_feeds(feeds or [zoo.ZOO.inputs(name)], folder / f"{name}.{config}.data")
    if config == "int8" and name.endswith("_qdq"):
        return line | {"outcome": "skipped: quantized already"}
    options: dict[str, Any] = dict(CONFIGS[config])
    options |= {"calibration": str(data)} if config == "int8" and real else {}
    start = time.perf_counter()
    try:
        result = compile_file(source, output, validation=str(data), measure=measure, force=True, **options)
    except MemoptcError as e:
        return line | {"outcome": f"exit {e.exit_code}: {e.message}", "seconds": time.perf_counter() - start}
    except Exception as e:
        traceback.print_exc()
        return line | {"outcome": f"fault: {type(e).__name__}: {e}", "seconds": time.perf_counter() - start}
    report = result.report.to_json()
    proof, before, after = report["verification"], report["control"], report["candidate"]
    line |= {
        "outcome": "passed" if proof["passed"] else "FAILED",
        "bit_exact": proof.get("bit_exact"),
        "seconds": time.perf_counter() - start,
        "nodes": [before["nodes"], after["nodes"]],
        "file_bytes": [before["file_bytes"], after["file_bytes"]],
        "planned_peak_bytes": [before["planned_peak_bytes"], after["planned_peak_bytes"]],
        "sqnr_db": min((o["sqnr_db"] for o in proof["outputs"] if isinstance(o["sqnr_db"], float)), default=None),
        "task": [task_figure(name, source), task_figure(name, output)],
        "calibrated": config == "int8" and real,
        "dynamic_kept": dynamic_axes(source) == dynamic_axes(output),
    }
    if measure:
        line["run_peak_bytes"] = [s["measured"]["run_peak_bytes"] for s in (before, after)]
        line["load_peak_bytes"] = [s["measured"]["load_peak_bytes"] for s in (before, after)]
        line["p50_ms"] = [s["measured"]["latency_ms"]["p50"] for s in (before, after)]
    return line


def dynamic_axes(path: Path) -> list[Any]:
    """Names, types and extents of inputs and outputs as onnxruntime reports them."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [(p.name, p.type, p.shape) for p in (*session.get_inputs(), *session.get_outputs())]


def ratio(pair: list[float | None] | None) -> str:
    """After over before."""
    if not pair or pair[0] is None or pair[1] is None or not pair[0]:
        return ""
    return f"{pair[1] / pair[0]:.2f}"


def table(lines: list[dict[str, Any]]) -> Table:
    """One line per model and configuration."""
    result = Table(title="memoptc against the untouched model; ratios are after / before")
    headings = "model config outcome bits nodes size planned_peak run_peak load_peak p50 SQNR_dB task seconds".split()
    for heading in headings:
        result.add_column(heading, justify="left" if heading in ("model", "config", "outcome") else "right")
    for line in lines:
        before, after = line.get("task") or (None, None)
        nodes, sqnr = line.get("nodes"), line.get("sqnr_db")
        result.add_row(
            line["model"],
            line["config"] + ("" if line["config"] != "int8" or line.get("calibrated") else " data-free"),
            line["outcome"] + ("" if line.get("dynamic_kept", True) else ", AXES CHANGED"),
            {True: "same", False: "differ", None: ""}[line.get("bit_exact")],
            f"{nodes[0]}→{nodes[1]}" if nodes else "",
            ratio(line.get("file_bytes")),
            ratio(line.get("planned_peak_bytes")),
            ratio(line.get("run_peak_bytes")),
            ratio(line.get("load_peak_bytes")),
            ratio(line.get("p50_ms")),
            f"{sqnr:.1f}" if sqnr is not None else "",
            f"{before:.4f}→{after:.4f}" if before is not None and after is not None else "",
            f"{line.get('seconds', 0):.1f}",
        )
    return result


@click.command(help=__doc__)
@click.option("--only", multiple=True, help="Models; all when not given.")
@click.option("--config", "configs", multiple=True, type=click.Choice(list(CONFIGS)), help="All when not given.")
@click.option("--measure/--no-measure", default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write every figure as JSON.")
def main(only: tuple[str, ...], configs: tuple[str, ...], measure: bool, json_file: Path | None) -> None:
    """Run the benchmark."""
    if zoo.ZOO is None:
        raise click.ClickException("There is no zoo of models; set MEMOPTC_ZOO to its folder.")
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for name in only or zoo.NAMES:
            for config in configs or CONFIGS:
                lines.append(one(name, config, Path(folder), measure=measure))
                print(json.dumps(lines[-1]), file=sys.stderr, flush=True)
    Console(width=200).print(table(lines))
    if json_file:
        json_file.write_text(json.dumps(lines, indent=1))


if __name__ == "__main__":
    main()
