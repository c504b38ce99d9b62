"""Stages against the whole model: the smallest memory limit of the kernel in which each runs, and the time of a run.

    python benchmarks/stages.py MODEL.onnx INPUTS.npz [--count 4] [--way whole --way one ...]

`whole` is the model with its weights in a file of their own, in stock onnxruntime; `one` has one stage in memory at a
time, `ahead` loads the next one meanwhile, `keep` keeps all. Each try is a fresh process in a control group, with the
files dropped from the page cache; limits include Python and libraries (a model of one node takes about 26 MB there).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import click
from rich.console import Console

from memoptc.ir.merge import merge_models
from memoptc.ir.stages import split
from memoptc.runtime.container import ControlGroup, control_group, drop_from_cache

WAYS = ("whole", "one", "ahead", "keep")
STEP = 4 << 20
PROGRAM = """
import sys, time
import numpy as np, onnxruntime as ort
way, path, file = sys.argv[1:]
feed = dict(np.load(file))
if way == "whole":
    options = ort.SessionOptions()
    options.enable_mem_pattern = False
    model = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
else:
    from memoptc.runtime.stages import Stages
    model = Stages(path, keep=way == "keep", ahead=way == "ahead")
times = []
for _ in range(3):
    start = time.perf_counter()
    model.run(None, feed)
    times.append(time.perf_counter() - start)
print(1e3 * sorted(times)[1])
"""


def tried(group: ControlGroup, limit: int | None, way: str, path: Path, inputs: Path) -> float | None:
    """Milliseconds of a run under a limit; `None` when it does not run."""
    group.limit(None)
    group.empty()
    drop_from_cache([f for f in (path.iterdir() if path.is_dir() else path.parent.iterdir()) if f.is_file()])
    group.limit(limit)
    command = [*group.command(), sys.executable, "-c", PROGRAM, way, str(path), str(inputs)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return None
    return float(done.stdout) if done.returncode == 0 else None


@click.command(help=__doc__)
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.argument("inputs", type=click.Path(path_type=Path, exists=True))
@click.option("--count", default=4, show_default=True)
@click.option("--way", "ways", multiple=True, type=click.Choice(WAYS), default=WAYS)
def main(model: Path, inputs: Path, count: int, ways: tuple[str, ...]) -> None:
    """Search the smallest limit for each way."""
    console = Console()
    with tempfile.TemporaryDirectory() as folder, control_group() as group:
        stages, whole = Path(folder) / "stages", Path(folder) / "whole"
        found = split(model, stages, count, {})
        merge_models([model], whole)
        console.print(f"weights by stage {found.weight_bytes}, handed over {found.crossing_bytes}")
        for way in ways:
            path = whole / model.name if way == "whole" else stages
            free = tried(group, None, way, path, inputs)
            low, high = 0, 2 * sum(f.stat().st_size for f in whole.iterdir()) + (256 << 20)
            while high - low > STEP:
                middle = (low + high) // 2
                low, high = (low, middle) if tried(group, middle, way, path, inputs) is not None else (middle, high)
            there = tried(group, high, way, path, inputs)
            console.print(f"{way}: runs in {high / 1e6:.0f} MB ({there} ms there, {free} ms without a limit)")


if __name__ == "__main__":
    main()
