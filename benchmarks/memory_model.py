"""The memory model against what onnxruntime allocates, for every model in every size, raw and frozen.

    python benchmarks/memory_model.py [--only NAME ...] [--json FILE]

`raw`: the file as it is, onnxruntime's optimizer off; `frozen`: what its extended optimization leaves. Planned is the
peak that memoptc predicts without running, recorded what the allocator inside onnxruntime saw.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import zoo

from memoptc.ir.infer import infer_shapes
from memoptc.ir.onnx_io import read_onnx
from memoptc.runtime.configuration import AS_WRITTEN
from memoptc.runtime.freeze import optimize
from memoptc.runtime.profile import AS_PLANNED, bind_shapes, profile, record


def one(path: Path, feed: dict[str, Any]) -> dict[str, Any]:
    """Predict, then record."""
    graph = read_onnx(path)
    infer_shapes(graph)
    point = profile(graph, bind_shapes(graph, feed), configuration=AS_WRITTEN)
    found = record(path, feed, AS_PLANNED, runs=1)
    return {"planned": point.planned_peak_bytes, "recorded": found.run_peak_bytes, "at": point.at, "how": found.method}


@click.command(help=__doc__)
@click.option("--only", multiple=True, help="Models; all when not given.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write every figure as JSON.")
def main(only: tuple[str, ...], json_file: Path | None) -> None:
    """Run the benchmark."""
    if zoo.ZOO is None:
        raise click.ClickException("There is no zoo of models; set MEMOPTC_ZOO to its folder.")
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for name in only or zoo.NAMES:
            frozen = Path(folder) / f"{name}.onnx"
            optimize(zoo.ZOO.path(name), frozen)
            for variant in (None, *zoo.ZOO.meta(name).get("variants", {})):
                feed = zoo.ZOO.inputs(name, variant)
                for form, path in (("raw", Path(zoo.ZOO.path(name))), ("frozen", frozen)):
                    lines.append({"model": f"{name} {variant or ''}".strip(), "form": form, **one(path, feed)})
    table = Table("model", "form", "planned MB", "recorded MB", "ratio", "peak at")
    for line in lines:
        ratio = line["planned"] / max(line["recorded"], 1)
        table.add_row(
            line["model"], line["form"], f"{line['planned'] / 1e6:.3f}", f"{line['recorded'] / 1e6:.3f}",
            f"{ratio:.3f}", line["at"],
        )  # fmt: skip
    console = Console(width=150)
    console.print(table)
    for form in ("raw", "frozen"):
        off = [abs(li["planned"] / max(li["recorded"], 1) - 1) for li in lines if li["form"] == form]
        counts = [sum(o <= most for o in off) for most in (0.01, 0.05, 0.15)]
        console.print(f"{form}: of {len(off)}, within 1 %: {counts[0]}, 5 %: {counts[1]}, 15 %: {counts[2]}")
    if json_file:
        json_file.write_text(json.dumps(lines, indent=1))


if __name__ == "__main__":
    main()
