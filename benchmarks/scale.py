"""Scale: a 50,000-node graph, and a model with 3 GB of external weights.

    python benchmarks/scale.py [chain50k] [external3g]

Targets: chain50k is read, verified and written in under 20 s and under 1.5 GB; external3g compiles at -O1 with
at most 700 MB of resident memory in the compiler's process. Memory is the highest resident memory that is not
backed by a file (`RssAnon + RssShmem` of the process, sampled every 5 ms); verification and measuring run in
processes of their own and are not counted.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import click
from models import BUILDERS

WORK = {
    "chain50k": """
from memoptc.ir.onnx_io import read_onnx, write_onnx
from memoptc.ir.verifier import verify
marks = []
def mark(name, start=[time.perf_counter()]):
    now = time.perf_counter(); marks.append((name, round(now - start[0], 2))); start[0] = now
graph = read_onnx(source); mark("read")
verify(graph); mark("verify")
write_onnx(graph, output); mark("write")
print(json.dumps({"seconds": dict(marks), "nodes": len(graph)}))
""",
    "chain50k -O1": """
from memoptc.api import compile_file
start = time.perf_counter()
result = compile_file(source, output, level=1, verify="fast", measure=False)
r = result.report
print(json.dumps({"seconds": round(time.perf_counter() - start, 1), "nodes": [r.control.nodes, r.candidate.nodes],
                  "verified": r.verification["passed"], "passes": {p.name: p.seconds for p in r.passes}}))
""",
    "external3g": """
from memoptc.api import compile_file
start = time.perf_counter()
result = compile_file(source, output, level=1, verify="fast", measure=False)
r = result.report
print(json.dumps({"seconds": round(time.perf_counter() - start, 1), "nodes": [r.control.nodes, r.candidate.nodes],
                  "file_bytes": [r.control.file_bytes, r.candidate.file_bytes], "verified": r.verification["passed"],
                  "bit_exact": r.verification["bit_exact"]}))
""",
}


def anonymous_bytes(pid: int) -> int:
    """Resident bytes of a process that no file backs."""
    total = 0
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(("RssAnon", "RssShmem")):
            total += int(line.split()[1]) * 1024
    return total


def run(name: str, source: Path, output: Path) -> dict[str, object]:
    """Run one job in a fresh process and watch its memory."""
    code = f"import json, sys, time\nsource, output = sys.argv[1:]\n{WORK[name]}"
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code, str(source), str(output)], stdout=subprocess.PIPE, text=True
    )
    peak = 0

    def watch() -> None:
        nonlocal peak
        while process.poll() is None:
            try:
                peak = max(peak, anonymous_bytes(process.pid))
            except OSError:
                return
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    text, _ = process.communicate()
    watcher.join()
    if process.returncode:
        raise click.ClickException(f"{name} failed")
    return {"job": name, "peak_mb": round(peak / 1e6), **json.loads(text.splitlines()[-1])}


@click.command(help=__doc__)
@click.argument("names", nargs=-1, type=click.Choice(list(BUILDERS)))
def main(names: tuple[str, ...]) -> None:
    """Run the benchmark."""
    with tempfile.TemporaryDirectory() as folder:
        for name in names or tuple(BUILDERS):
            source = Path(folder) / f"{name}.onnx"
            BUILDERS[name](source)
            for job in WORK:
                if job.split()[0] == name:
                    print(json.dumps(run(job, source, Path(folder) / f"{name}.out.onnx")), flush=True)


if __name__ == "__main__":
    main()
