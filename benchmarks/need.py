"""What processes need before and after, whole: stock onnxruntime and `Session`, levels 1 to 3, over the zoo of models.

    python benchmarks/need.py FILE.jsonl [--only NAME ...] [--level 2 ...] [--big] [--container] [--target int8]
    python benchmarks/need.py FILE.jsonl --summary

One line of JSON per model, size, level and target is appended to FILE as it is known; what FILE has is not run again,
so that it can be run in parts. Models are compiled as users do, measured and held to the gate. Needs are MB of a
process over what it had before the model was opened; `base`, what a model of one node needs, is taken off before ratios
are formed: in `Session` what it needs there, which is less. A case is bound by activations where the original's runs
take at least 5 MB and twice its file, and bound by weights where these are more than half of its need.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
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
from memoptc.ir.diagnostics import MemoptcError
from memoptc.ir.onnx_io import read_onnx
from memoptc.runtime.container import Unavailable, smallest_container
from memoptc.runtime.measure import measure_need
from memoptc.runtime.measuring_process import InSession
from memoptc.runtime.memory.extents import bind_shapes
from memoptc.runtime.options import RunOptions

ACTIVATIONS = {2: (0.40, 0.25), 3: (0.33, 0.20)}
"""Targets by level, in stock and in `Session`: geometric means of need over base, activation-bound cases."""
WORST = 1.02
"""No case may need more than this times the original, in either."""
FLOOR = (1.25, 1.10)
"""Targets of weight-bound float32 cases: container over base against each weight once and the planned activations."""
ANONYMOUS, LATENCY = 0.2, 1.05
"""Of those, too: anonymous bytes in `Session`, and latency, against the original's in stock onnxruntime."""
INT8 = 0.5
"""Target of int8: need over base against float32's at the same level."""
LEAST_MB = 0.1
"""What is left above the base counts as this at least."""

Line = dict[str, Any]


def base(folder: Path, threads: int, containers: bool) -> Line:
    """Measure what a model of one node needs."""
    path = folder / "base.onnx"
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [8]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "base", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    feed, stock = {"x": np.zeros(8, np.float32)}, RunOptions(threads=threads)
    line: Line = {"base": True, "need_mb": measure_need(path, feed, options=stock).need_bytes / 1e6}
    line["session_mb"] = measure_need(path, feed, options=InSession(arguments={"threads": threads})).need_bytes / 1e6
    line["container_mb"] = smallest_container(path, feed, way=stock).limit_bytes / 1e6 if containers else None
    return line


def cases(only: Sequence[str], big: bool) -> Iterator[tuple[str, str | None]]:
    """Every model in every size."""
    assert zoo.ZOO is not None
    known = zoo.ZOO.names(big=True)
    if unknown := sorted(set(only) - set(known)):
        raise click.UsageError(f"No model of the zoo is called {', '.join(unknown)}. There are: {', '.join(known)}.")
    for name in only or zoo.ZOO.names(big=big):
        for variant in (None, *zoo.ZOO.meta(name).get("variants", {})):
            yield name, variant


def one(name: str, variant: str | None, level: int, target: str, threads: int, containers: bool, folder: Path) -> Line:
    """Compile one model in one size at one level; give what its report says."""
    assert zoo.ZOO is not None
    original, feed = Path(zoo.ZOO.path(name)), zoo.ZOO.inputs(name, variant)
    start = time.perf_counter()
    result = compile_file(
        original,
        folder / "out.onnx",
        level=level,
        target=target,
        validation=[feed],
        calibration=[feed] if target != "float32" else None,
        dims=bind_shapes(read_onnx(original), feed),
        verify="off",
        measure=True,
        container=containers,
        jobs=threads,
    )
    report = result.report
    before, after = report.control.measured, report.candidate.measured
    assert before is not None
    assert after is not None
    session = next(iter((report.candidate.session or {}).values()), {})
    weights, planned = report.control.weight_bytes, report.control.planned_peak_bytes or 0
    return {
        "model": name,
        "variant": variant or "",
        "level": level,
        "target": target,
        "need_mb": _mb(before["need_bytes"]["stock"], after["need_bytes"]["stock"], after["need_bytes"]["session"]),
        "anonymous_mb": _mb(
            before["anonymous_bytes"]["stock"], after["anonymous_bytes"]["stock"], after["anonymous_bytes"]["session"]
        ),
        "container_mb": _mb(before["container_bytes"], after["container_bytes"], session.get("container_bytes")),
        "ms": [before["latency_ms"]["p50"], after["latency_ms"]["p50"], (session.get("latency_ms") or {}).get("p50")],
        "slowdown": [after["slowdown"]["ratio"], (session.get("slowdown") or {}).get("ratio")],
        "predicted_mb": _mb(report.control.predicted_need_bytes, report.candidate.predicted_need_bytes),
        "floor_mb": (report.candidate.weight_bytes + (report.candidate.planned_peak_bytes or 0)) / 1e6,
        "activation_bound": before["run_peak_bytes"] >= max(5e6, 2 * original.stat().st_size),
        "weight_bound": weights > 0.5 * before["need_bytes"]["stock"],
        "planned_mb": planned / 1e6,
        "taken_back": [d.what for d in report.decisions if d.step == "taken back"],
        "verdict": report.verdict,
        "seconds": round(time.perf_counter() - start, 1),
    }


def _mb(*counts: int | None) -> list[float | None]:
    return [None if c is None else round(c / 1e6, 3) for c in counts]


def geomean(values: Sequence[float]) -> float:
    """Geometric mean."""
    return math.exp(sum(math.log(v) for v in values) / len(values)) if values else float("nan")


def above(line: Line, key: str, index: int, bases: Sequence[float]) -> float | None:
    """A figure of the candidate over the original's, each above its base: that of the original, and that of the way."""
    before, after = line[key][0], line[key][index]
    if before is None or after is None:
        return None
    return max(after - bases[1], LEAST_MB) / max(before - bases[0], LEAST_MB)


def summary(lines: Sequence[Line], console: Console) -> None:
    """Print a table of all cases, and each target with what was reached."""
    bases = [line for line in lines if line.get("base")]
    failed = [
        f"{line['model']} {line['variant']} -O{line['level']} {line['target']}" for line in lines if "error" in line
    ]
    lines = [line for line in lines if "need_mb" in line and not line.get("base")]
    need = bases[-1]["need_mb"] if bases else 0.0
    in_session = bases[-1].get("session_mb", need) if bases else 0.0
    container = next((b["container_mb"] for b in reversed(bases) if b["container_mb"] is not None), None)
    limit = "not measured" if container is None else f"{container:.1f} MB"
    console.print(f"base: need {need:.1f} MB, in Session {in_session:.1f} MB, container {limit}")
    table = Table(title="need, MB: as it was, compiled, compiled in Session; container the same; latency ratios")
    for heading in ("case", "level", "bound", "need", "after", "Session", "container", "after", "Session", "latency"):
        table.add_column(heading, justify="left" if heading in ("case", "bound") else "right")
    table.add_column("taken back")
    for line in lines:
        bound = "activations" if line["activation_bound"] else "weights" if line["weight_bound"] else ""
        figures = [_cell(v) for key in ("need_mb", "container_mb") for v in line[key]]
        latency = " ".join(f"{v:.2f}" for v in line["slowdown"] if v is not None)
        target = "" if line["target"] == "float32" else f" {line['target']}"
        case = f"{line['model']} {line['variant']}"
        table.add_row(case, f"{line['level']}{target}", bound, *figures, latency, ", ".join(line["taken_back"]))
    console.print(table, markup=False)
    console.print(f"not compiled, and in none of the figures below: {len(failed)} {', '.join(failed)}")
    float32 = [line for line in lines if line["target"] == "float32"]
    for level, targets in ACTIVATIONS.items():
        there = [line for line in float32 if line["level"] == level and line["activation_bound"]]
        for index, (where, target) in enumerate(zip(("stock", "Session"), targets, strict=True), 1):
            what = f"-O{level}, activation-bound, {where}, need"
            _target(console, what, there, target, _over("need_mb", index, (need, need if index == 1 else in_session)))
    for index, where in ((1, "stock"), (2, "Session")):
        ratios = [(case["need_mb"][index] / case["need_mb"][0], case) for case in lines if case["need_mb"][index]]
        over = [f"{case['model']} {case['variant']} -O{case['level']} {r:.2f}" for r, case in ratios if r > WORST]
        console.print(f"above {WORST} of the original in {where}: {len(over)} of {len(ratios)} {', '.join(over)}")
    bound = [line for line in float32 if line["weight_bound"] and line["level"] >= 2]
    for index, (where, target) in enumerate(zip(("stock", "Session"), FLOOR, strict=True), 1):
        _target(console, f"weight-bound, {where}, container over the floor", bound, target, _floors(index, container))
    _target(console, "weight-bound, anonymous in Session", bound, ANONYMOUS, _over("anonymous_mb", 2, (0.0, 0.0)))
    _target(console, "weight-bound, latency", bound, LATENCY, lambda case: float(case["slowdown"][0]))
    plain = {(case["model"], case["variant"], case["level"]): case for case in float32}
    for line in lines:
        other = plain.get((line["model"], line["variant"], line["level"]))
        if line["target"] == "int8" and other is not None:
            ratio = max(line["need_mb"][1] - need, LEAST_MB) / max(other["need_mb"][1] - need, LEAST_MB)
            console.print(f"int8 over float32, {line['model']} {line['variant']}: {ratio:.2f} (target {INT8})")


def _floors(index: int, base_mb: float | None) -> Callable[[Line], float | None]:
    def over(line: Line) -> float | None:
        found = line["container_mb"][index]
        return None if found is None or base_mb is None else max(found - base_mb, LEAST_MB) / float(line["floor_mb"])

    return over


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _over(key: str, index: int, bases: Sequence[float]) -> Callable[[Line], float | None]:
    return lambda line: above(line, key, index, bases)


def _target(
    console: Console, what: str, lines: Sequence[Line], target: float, figure: Callable[[Line], float | None]
) -> None:
    found = [(value, line) for line in lines if (value := figure(line)) is not None]
    if not found:
        return
    mean = geomean([value for value, _ in found])
    worst, where = max(found, key=lambda e: e[0])
    state = "met" if mean <= target else "NOT met"
    console.print(
        f"{what}: {mean:.3f} over {len(found)} cases, target {target}: {state}; worst {worst:.2f} "
        f"({where['model']} {where['variant']} -O{where['level']})"
    )


def read(file: Path) -> list[Line]:
    """Read what is known."""
    return [json.loads(text) for text in file.read_text().splitlines()] if file.exists() else []


@click.command(help=__doc__)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--only", multiple=True, help="Models; all when not given.")
@click.option("--level", "levels", multiple=True, type=int, default=(1, 2, 3), show_default=True)
@click.option("--target", "targets", multiple=True, default=("float32",), show_default=True)
@click.option("--big", is_flag=True, help="The large models, too.")
@click.option("--container/--no-container", default=False, show_default=True, help="Find smallest containers (slow).")
@click.option("--threads", default=2, show_default=True)
@click.option("--summary", "only_summary", is_flag=True, help="Print what FILE has, and run nothing.")
def main(
    file: Path,
    only: tuple[str, ...],
    levels: tuple[int, ...],
    targets: tuple[str, ...],
    big: bool,
    container: bool,
    threads: int,
    only_summary: bool,
) -> None:
    """Run the benchmark."""
    if zoo.ZOO is None:
        raise click.ClickException("There is no zoo of models; set MEMOPTC_ZOO to its folder.")
    lines = read(file)
    todo = [(*c, level, target) for c in cases(only, big) for level in levels for target in targets]
    with tempfile.TemporaryDirectory() as folder, file.open("a") as out:

        def keep(line: Line) -> None:
            lines.append(line)
            out.write(json.dumps(line) + "\n")
            out.flush()

        if not only_summary and not any(line.get("base") and (line["container_mb"] or not container) for line in lines):
            try:
                keep(base(Path(folder), threads, container))
            except Unavailable as problem:
                raise click.ClickException(f"{problem}; run with --no-container") from None
        known = {tuple(line[k] for k in ("model", "variant", "level", "target")) for line in lines if "model" in line}
        for name, variant, level, target in [] if only_summary else todo:
            key = (name, variant or "", level, target)
            if key in known:
                continue
            try:
                line = one(name, variant, level, target, threads, container, Path(folder))
                print(f"{name} {variant or ''} -O{level}: {line['verdict']} ({line['seconds']} s)", flush=True)
            except MemoptcError as problem:
                line = dict(zip(("model", "variant", "level", "target"), key, strict=True)) | {"error": str(problem)}
                print(f"{name} {variant or ''} -O{level}: {problem}", flush=True)
            keep(line)
    summary(lines, Console(width=220))


if __name__ == "__main__":
    main()
