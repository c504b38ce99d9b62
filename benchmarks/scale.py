"""How memoptc scales: a graph of 50,000 nodes, and 3 GB of external weights.

    python benchmarks/scale.py [--only chain50k --only external3g] [--folder DIR] [--verify fast]

chain50k is read, verified and written; external3g is compiled by the command line at -O1. Each runs in a fresh
process; the time is its whole life, imports included. Memory is the highest anonymous resident memory of that
process (RssAnon of /proc/PID/status, sampled every 5 ms), which leaves out file-backed pages: mapped weights that
the kernel may drop at any time. Processes it starts, such as the one that verifies, are not counted.
Targets: chain50k under 20 s and 1.5 GB; external3g within 700 MB.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent))
import models

ROUND_TRIP = """
import json, sys, time
marks = [time.perf_counter()]
def mark(): marks.append(time.perf_counter())
from memoptc.ir.onnx_io import read_onnx, write_onnx
from memoptc.ir.verifier import verify
mark()
graph = read_onnx(sys.argv[1]); mark()
verify(graph); mark()
write_onnx(graph, sys.argv[2]); mark()
names = ["import", "read", "verify", "write"]
print(json.dumps({n: round(b - a, 2) for n, a, b in zip(names, marks, marks[1:])}))
"""
LIMITS = {"chain50k": (20.0, 1500.0), "chain50k -O1": (None, None), "external3g": (None, 700.0)}


def anonymous_mb(pid: int) -> float:
    """Anonymous resident memory of a process now; 0 when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    for line in status.splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    return 0.0


def run(command: list[str]) -> dict[str, Any]:
    """Run a command and watch it: seconds, highest anonymous memory, what it printed."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    highest = 0.0
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.005):
            highest = max(highest, anonymous_mb(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, errors = process.communicate()
    done.set()
    watcher.join()
    found = {"seconds": time.perf_counter() - start, "anonymous_mb": highest, "exit": process.returncode}
    return found | {"printed": output.strip()[-300:], "errors": errors.strip()[-600:] if process.returncode else ""}


def chain50k(folder: Path, *, compiled: bool) -> dict[str, Any]:
    """Read, verify and write the chain; or compile it."""
    source = folder / "chain50k.onnx"
    if not source.exists():
        models.chain50k(source)
    output = folder / "chain50k.out.onnx"
    if compiled:
        found = run(_compile(source, output, "off"))
    else:
        found = run([sys.executable, "-c", ROUND_TRIP, str(source), str(output)])
    output.unlink(missing_ok=True)
    return found


def external3g(folder: Path, verify: str) -> dict[str, Any]:
    """Compile the stack of dense layers at -O1."""
    source = folder / "external3g.onnx"
    if not source.exists():
        models.external3g(source)
    output = folder / "external3g.out.onnx"
    found = run(_compile(source, output, verify))
    if output.exists():
        found["written_mb"] = sum(f.stat().st_size for f in folder.glob("external3g.out.onnx*")) / 2**20
    for file in folder.glob("external3g.out.onnx*"):
        file.unlink()
    return found


def _compile(source: Path, output: Path, verify: str) -> list[str]:
    options = ["-O1", "--verify", verify, "--no-measure", "-q"]
    return [sys.executable, "-m", "memoptc", "compile", str(source), "-o", str(output), *options]


@click.command(help=__doc__)
@click.option("--only", multiple=True, type=click.Choice(list(LIMITS)), help="All when not given.")
@click.option("--folder", type=click.Path(path_type=Path), help="Keep the built models here.")
@click.option("--verify", default="off", type=click.Choice(["off", "fast", "full"]), show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path))
def main(only: tuple[str, ...], folder: Path | None, verify: str, json_file: Path | None) -> None:
    """Run the benchmark."""
    with tempfile.TemporaryDirectory() as scratch:
        where = folder or Path(scratch)
        where.mkdir(parents=True, exist_ok=True)
        cases = {
            "chain50k": lambda: chain50k(where, compiled=False),
            "chain50k -O1": lambda: chain50k(where, compiled=True),
            "external3g": lambda: external3g(where, verify),
        }
        lines = {name: case() for name, case in cases.items() if not only or name in only}
    table = Table("case", "seconds", "limit", "anonymous MB", "limit", "exit", "detail")
    for name, line in lines.items():
        limits = ["" if limit is None else f"{limit:g}" for limit in LIMITS[name]]
        figures = [f"{line['seconds']:.1f}", limits[0], f"{line['anonymous_mb']:.0f}", limits[1]]
        table.add_row(name, *figures, str(line["exit"]), line["errors"] or line["printed"])
    Console(width=160).print(table)
    if json_file:
        json_file.write_text(json.dumps(lines, indent=1))


if __name__ == "__main__":
    main()
