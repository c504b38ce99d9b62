"""The memory model's prediction of a process against fresh processes: every model, level and target.

usage: python benchmarks/need_model.py --out FILE.jsonl [--only NAME] [--levels as-is,1,2,3] [--targets float32,int8]

Each line of FILE is one way of one model at one size: predicted need in stock onnxruntime and in `Session`, what fresh
processes needed, the planned peak of activations and what the recorder inside onnxruntime saw. Lines that are there are
not made again, so a run that was cut off goes on. The table at the end counts how many predictions are how far off.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import zoo

from memoptc.ir.diagnostics import MemoptcError
from memoptc.ir.infer import infer_shapes
from memoptc.ir.onnx_io import read_onnx
from memoptc.runtime.configuration import AS_WRITTEN, planned_peak
from memoptc.runtime.contract import contract_path, load_contract
from memoptc.runtime.measure import measure_need
from memoptc.runtime.measuring_process import InSession
from memoptc.runtime.memory.extents import bind_shapes
from memoptc.runtime.memory.need import Configuration, SessionKind, predict_need
from memoptc.runtime.options import RunOptions
from memoptc.runtime.profile import record

COMPILE_SECONDS = 600
THREADS = 2


def configuration(path: Path, session: SessionKind, feed: Mapping[str, Any]) -> Configuration:
    """How a file is written: weights outside, a branch around the model, an arena sized for these inputs."""
    proto = onnx.load(path, load_external_data=False)
    form = next((p.value for p in proto.metadata_props if p.key == "memoptc.form"), "plain")
    contract = load_contract(contract_path(path))
    shapes = {name: tuple(value.shape) for name, value in feed.items()}
    sized = contract is not None and contract.arena_bytes > 0 and dict(contract.inputs) == shapes
    external = any(t.data_location == onnx.TensorProto.EXTERNAL for t in _tensors(proto.graph))
    return Configuration(
        session,
        external,
        branch=form != "plain",
        captured=form == "captured",
        shapeless=form == "shapeless",
        sized=sized,
        threads=THREADS,
    )


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _tensors(attribute.g)


def compiled(name: str, level: str, target: str, folder: Path) -> Path:
    """Compile a model without measuring; the result's path."""
    output = folder / f"{name}.onnx"
    command = [sys.executable, "-m", "memoptc", str(zoo.ZOO.path(name)), f"-O{level}", "--target", target]
    command += ["--no-measure", "--verify", "off", "-o", str(output)]
    if target == "int8":
        samples = folder / "samples.npz"
        np.savez(samples, **zoo.ZOO.inputs(name))
        command += ["--calibration", str(samples)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_SECONDS)
    if done.returncode:
        raise click.ClickException(" ".join(done.stderr.split())[-300:])
    return output


def rows(name: str, level: str, target: str, path: Path) -> Iterator[dict[str, Any]]:
    """Predict and measure one file at every size of its model."""
    graph = read_onnx(path)
    infer_shapes(graph)
    for variant in (None, *zoo.ZOO.meta(name).get("variants", {})):
        feed = zoo.ZOO.inputs(name, variant)
        dims = bind_shapes(graph, feed)
        line: dict[str, Any] = {"model": name, "variant": variant, "level": level, "target": target}
        sessions: tuple[tuple[SessionKind, Any], ...] = (
            ("stock", RunOptions(threads=THREADS)),
            ("arena", InSession(arguments={"threads": THREADS})),
        )
        for session, options in sessions:
            estimate = predict_need(graph, dims, configuration(path, session, feed))
            found = measure_need(path, feed, options=options, seconds=5)
            line[session] = {"predicted": estimate.to_json(), "need_bytes": found.need_bytes}
            line[session]["ratio"] = round(estimate.need_bytes / max(found.need_bytes, 1), 3)
        planned = planned_peak(graph, dims, AS_WRITTEN).peak_bytes
        recorded = record(path, feed, AS_WRITTEN.options, runs=1)
        line["activations"] = {"planned": planned, "recorded": recorded.run_peak_bytes, "how": recorded.method}
        yield line


def summarize(lines: list[dict[str, Any]]) -> Table:
    """Count how many predictions are how far off, by level and target."""
    table = Table(
        "level, target", "cases", "stock: ≤ 10 %", "≤ 25 %", "Session: ≤ 10 %", "≤ 25 %", "activations: ≤ 5 %"
    )
    ways = list(dict.fromkeys((li["level"], li["target"]) for li in lines))
    for way in [*ways, None]:
        chosen = [li for li in lines if way in (None, (li["level"], li["target"]))]
        cells = []
        for session in ("stock", "arena"):
            off = [abs(li[session]["ratio"] - 1) for li in chosen]
            cells += [f"{sum(o <= most for o in off) / max(len(off), 1):.0%}" for most in (0.10, 0.25)]
        points = [li["activations"] for li in chosen]
        near = sum(abs(a["planned"] - a["recorded"]) <= 0.05 * a["recorded"] + 1024 for a in points)
        cells.append(f"{near / max(len(points), 1):.0%}")
        table.add_row("all" if way is None else f"{way[0]}, {way[1]}", str(len(chosen)), *cells)
    return table


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="JSON lines, continued when it exists.")
@click.option("--only", multiple=True, help="Models; all when not given.")
@click.option("--levels", default="as-is,1,2,3", help="Levels, and as-is.")
@click.option("--targets", default="float32,int8,int4,float16", help="Targets of the levels.")
def main(out: Path, only: tuple[str, ...], levels: str, targets: str) -> None:
    """Run the benchmark."""
    if zoo.ZOO is None:
        raise click.ClickException("There is no zoo of models; set MEMOPTC_ZOO to its folder.")
    lines = [json.loads(li) for li in out.read_text().splitlines()] if out.exists() else []
    done = {(li["model"], li["level"], li["target"]) for li in lines}
    for level in levels.split(","):
        for target in targets.split(",") if level != "as-is" else ["float32"]:
            for name in only or zoo.NAMES:
                if (name, level, target) in done:
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    try:
                        source = Path(zoo.ZOO.path(name))
                        path = source if level == "as-is" else compiled(name, level, target, Path(folder))
                        made = list(rows(name, level, target, path))
                    except (MemoptcError, click.ClickException, subprocess.TimeoutExpired) as error:
                        click.echo(f"{name} {level} {target}: {error}", err=True)
                        continue
                lines += made
                with out.open("a") as file:
                    file.writelines(json.dumps(li) + "\n" for li in made)
                for li in made:
                    text = ", ".join(
                        f"{s} {li[s]['need_bytes'] / 1e6:.1f} MB x{li[s]['ratio']}" for s in ("stock", "arena")
                    )
                    click.echo(f"{name} {li['variant'] or ''} {level} {target}: {text}", err=True)
    Console(width=140).print(summarize(lines))


if __name__ == "__main__":
    main()
