"""Loading: weights inline, beside the model, and beside the model in the kernels' own layout; alone and shared.

    python benchmarks/load.py [MODEL] [--width 2048] [--layers 12]

Without a model a stack of dense layers is made. Each line is a fresh process with stock onnxruntime: highest resident
memory while loading, resident memory once loaded and after a run, over the interpreter with onnxruntime imported (MB);
seconds to the first result. `private` is what a second process that loads the same file adds to the machine: the
pages that it shares with nobody (Linux: smaps_rollup).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

from memoptc.ir.forms import WritingForm
from memoptc.ir.onnx_io import read_onnx, write_onnx
from memoptc.runtime.freeze import optimize, write_packed
from memoptc.runtime.profile import make_feed

_WORKER = """
import json, sys, time
import numpy as np, onnxruntime as ort
from memoptc.runtime.worker import PeakMeter
feed = dict(np.load(sys.argv[2]))
options = ort.SessionOptions()
options.log_severity_level = 4
options.enable_mem_pattern = options.enable_mem_reuse = False
if sys.argv[3] == "frozen":
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
meter = PeakMeter()
base, start = meter.start(), time.perf_counter()
session = ort.InferenceSession(sys.argv[1], options)
peak = meter.stop()
loaded = meter.start(trim=False)
session.run(None, feed)
seconds = time.perf_counter() - start
ran = meter.stop()
private = 0
try:
    for line in open("/proc/self/smaps_rollup"):
        private += int(line.split()[1]) * 1024 if line.startswith("Private") else 0
except OSError:
    private = -1
found = {"load_peak": peak - base, "loaded": loaded - base, "ran": ran - base, "seconds": seconds, "private": private}
print(json.dumps(found), flush=True)
sys.stdin.readline()
"""


def dense(path: Path, layers: int, width: int) -> None:
    """Write a stack of dense layers, weights inside the file."""
    rng = np.random.default_rng(0)
    nodes, weights = [], []
    for i in range(layers):
        content = rng.standard_normal((width, width), np.float32) / np.float32(np.sqrt(width))
        weights.append(numpy_helper.from_array(content, f"w{i}"))
        nodes.append(helper.make_node("MatMul", [f"t{i}" if i else "x", f"w{i}"], [f"m{i}"], name=f"dense{i}"))
        nodes.append(helper.make_node("Tanh", [f"m{i}"], [f"t{i + 1}" if i < layers - 1 else "y"], name=f"tanh{i}"))
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", width]) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "dense", ports[:1], ports[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


def measure(model: Path, feed: Path, kind: str) -> dict[str, float]:
    """Load and run in a fresh process, then in a second one while the first still lives."""
    found = []
    workers = []
    for _ in range(2):
        command = [sys.executable, "-c", _WORKER, str(model), str(feed), kind]
        workers.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        assert workers[-1].stdout is not None
        found.append(json.loads(workers[-1].stdout.readline()))
    for worker in workers:
        worker.communicate("\n")
    return found[0] | {"private": found[1]["private"]}


@click.command(help=__doc__)
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.option("--width", default=2048, show_default=True)
@click.option("--layers", default=12, show_default=True)
def main(model: Path | None, width: int, layers: int) -> None:
    """Run the benchmark."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if model is None:
            model = folder / "model.onnx"
            dense(model, layers, width)
        graph = read_onnx(model)
        feed = folder / "feed.npz"
        np.savez(feed, **make_feed(graph, model, {}))
        for sub in ("external", "frozen", "packed"):
            (folder / sub).mkdir()
        write_onnx(graph, folder / "external" / "model.onnx", WritingForm(external=True))
        optimize(model, folder / "frozen" / "model.onnx")
        write_packed(folder / "frozen" / "model.onnx", folder / "packed" / "model.onnx")
        table = Table("weights", "file MB", "load peak", "loaded", "after a run", "first result s", "2nd process adds")
        for label, path, kind in (
            ("inline", model, "stock"),
            ("external", folder / "external" / "model.onnx", "stock"),
            ("external, frozen and pre-packed", folder / "packed" / "model.onnx", "frozen"),
        ):
            found = measure(path, feed, kind)
            data = path.with_name(path.name + ".data")
            size = path.stat().st_size + (data.stat().st_size if data.exists() else 0)
            figures = [f"{found[k] / 1e6:.0f}" for k in ("load_peak", "loaded", "ran")]
            shared = f"{found['private'] / 1e6:.0f}" if found["private"] >= 0 else ""
            table.add_row(label, f"{size / 1e6:.0f}", *figures, f"{found['seconds']:.2f}", shared)
        Console(width=130).print(table)


if __name__ == "__main__":
    main()
