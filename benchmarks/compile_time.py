"""memoptc -O1 against onnxslim and onnxsim on the same models: time, memory of the tool, nodes and bytes left.

    python benchmarks/compile_time.py [--only NAME ...] [--repeat 3]

Each tool runs in a fresh process, in turn on one model before the next model comes; time is the median of
the repeats from the start of the call to the file being written; importing the tool's modules is not counted
but shown, and the last lines give the ratio with it, too;
memory is the highest resident memory of the process over what it had after its imports. memoptc runs with
`--verify off`, since the others do not verify.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import zoo

WORKER = """
import json, resource, sys, time
tool, source, output = sys.argv[1:]
start = time.perf_counter()
if tool == "memoptc":
    from memoptc.steps import run
    from memoptc.api import compile_file
    from memoptc.options import Options
    run.pipeline(Options(level=1), False)  # loads the passes' modules, as the others load theirs
    work = lambda: compile_file(source, output, level=1, verify="off", measure=False)
elif tool == "onnxslim":
    import onnxslim
    work = lambda: onnxslim.slim(source, output)
else:
    import onnx, onnxsim
    def work():
        model, ok = onnxsim.simplify(onnx.load(source))
        onnx.save(model, output)
imports = time.perf_counter() - start
baseline = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
work()
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
import onnx, os
def count(graph):
    inner = [g for n in graph.node for a in n.attribute for g in ([a.g] if a.HasField("g") else list(a.graphs))]
    return len([n for n in graph.node if n.op_type != "Constant"]) + sum(map(count, inner))
model = onnx.load(output, load_external_data=False)
data = output + ".data"
size = os.path.getsize(output) + (os.path.getsize(data) if os.path.exists(data) else 0)
print(json.dumps({"seconds": seconds, "imports": imports, "peak_mb": (peak - baseline) / 1024,
                  "nodes": count(model.graph), "bytes": size}))
"""
TOOLS = ("memoptc", "onnxslim", "onnxsim")


def run(tool: str, source: Path, folder: Path) -> dict[str, Any]:
    """One run in a fresh process."""
    command = [sys.executable, "-W", "ignore", "-c", WORKER, tool, str(source), str(folder / f"{tool}.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1][:80] if done.stderr.strip() else "failed"}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def total(line: dict[str, float]) -> float:
    """Seconds with imports."""
    return line["seconds"] + line["imports"]


def geometric_mean(values: list[float]) -> float:
    """The n-th root of the product."""
    return statistics.geometric_mean(values) if values else float("nan")


@click.command(help=__doc__)
@click.option("--only", multiple=True)
@click.option("--repeat", default=3, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path))
def main(only: tuple[str, ...], repeat: int, json_file: Path | None) -> None:
    """Run the benchmark."""
    if zoo.ZOO is None:
        raise click.ClickException("There is no zoo of models; set MEMOPTC_ZOO to its folder.")
    table = Table(title="seconds / MB of the tool / nodes left / bytes left relative to the original")
    table.add_column("model")
    for tool in TOOLS:
        table.add_column(tool, justify="right")
    lines: list[dict[str, Any]] = []
    for name in only or zoo.NAMES:
        source = zoo.ZOO.path(name)
        with tempfile.TemporaryDirectory() as folder:
            runs: dict[str, list[dict[str, Any]]] = {t: [] for t in TOOLS}
            for _ in range(repeat):
                for tool in TOOLS:
                    runs[tool].append(run(tool, source, Path(folder)))
        line: dict[str, Any] = {"model": name}
        cells = []
        for tool in TOOLS:
            good = [r for r in runs[tool] if "error" not in r]
            if len(good) < repeat:
                line[tool] = {"error": next(r["error"] for r in runs[tool] if "error" in r)}
                cells.append(line[tool]["error"][:30])
                continue
            line[tool] = {k: statistics.median(r[k] for r in good) for k in good[0]}
            r = line[tool]
            share = r["bytes"] / source.stat().st_size
            cells.append(f"{r['seconds']:.2f} / {r['peak_mb']:.0f} / {r['nodes']:.0f} / {share:.2f}")
        table.add_row(name, *cells)
        lines.append(line)
        print(json.dumps(line), file=sys.stderr, flush=True)
    console = Console(width=160)
    console.print(table)
    for other in TOOLS[1:]:
        both = [x for x in lines if "error" not in x["memoptc"] and "error" not in x[other]]
        ratio = geometric_mean([x["memoptc"]["seconds"] / x[other]["seconds"] for x in both])
        memory = geometric_mean([max(x["memoptc"]["peak_mb"], 1) / max(x[other]["peak_mb"], 1) for x in both])
        whole = geometric_mean([total(x["memoptc"]) / total(x[other]) for x in both])
        console.print(
            f"memoptc / {other}, geometric mean over {len(both)}: time {ratio:.2f} (with imports {whole:.2f}), "
            f"memory {memory:.2f}"
        )
    for x in lines:
        rivals = [x[t]["nodes"] for t in TOOLS[1:] if "error" not in x[t]]
        if rivals and "error" not in x["memoptc"] and x["memoptc"]["nodes"] > 1.02 * min(rivals):
            console.print(f"more nodes left: {x['model']} {x['memoptc']['nodes']:.0f} against {min(rivals):.0f}")
    if json_file:
        json_file.write_text(json.dumps(lines, indent=1))


if __name__ == "__main__":
    main()
