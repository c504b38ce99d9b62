"""Peak resident memory of a compile, all its processes together, against the target.

    python benchmarks/compile_memory.py [--only NAME ...] [--level 2] [--json FILE] [MODEL.onnx ...]

Each model is compiled by the command line in a fresh process, with and without measuring. Every 20 ms the memory of
the process and its children is added up as the kernel tells it (`Pss`: pages that several processes hold count once).
`anonymous` is the highest sum of what cannot be evicted. The target is 400 MB, the weights once, and what runs of the
original take over the loaded model, as measured in the same compile; where measuring is off the model's own figure is
taken from the measured compile. `bert_base` is made up with random weights. Results are kept in `--json`, whose lines
are not measured again. Linux only.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
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

MODELS = ("digits_cnn", "photo_sr_x2", "unet_dynamic", "minilm_l6", "squeezenet_fp32", "bert_base", "smollm2_135m")
FIXED = 400e6
"""Bytes that the target grants beside weights and runs."""
_INTERVAL = 0.02


class Watch:
    """Memory of a process and its descendants while it runs.

    Args:
        root: Its id.
    """

    def __init__(self, root: int) -> None:
        self.root = root
        self.peak = self.anonymous = 0
        self.at_peak: dict[str, int] = {}
        self.each: Counter[str] = Counter()
        self.timeline: list[tuple[float, dict[str, int]]] = []

    def sample(self, moment: float) -> None:
        """Take one sample."""
        found: Counter[str] = Counter()
        anonymous = 0
        for process in self._tree():
            pss, alone = _pss(process)
            found[_role(process)] += pss
            anonymous += alone
        self.anonymous = max(self.anonymous, anonymous)
        for role, size in found.items():
            self.each[role] = max(self.each[role], size)
        if found.total() > self.peak:
            self.peak, self.at_peak = found.total(), dict(found)
        self.timeline.append((moment, dict(found)))

    def _tree(self) -> list[int]:
        todo, found = [self.root], []
        while todo:
            process = todo.pop()
            found.append(process)
            try:
                for task in os.listdir(f"/proc/{process}/task"):
                    todo += map(int, Path(f"/proc/{process}/task/{task}/children").read_text().split())
            except OSError:
                continue
        return found


def _pss(process: int) -> tuple[int, int]:
    """Proportional resident bytes, and the anonymous ones among them; 0 when the process is gone."""
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return 0, 0
    found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in text.splitlines()[1:]}
    return found.get("Pss", 0), found.get("Pss_Anon", 0)


def _role(process: int) -> str:
    try:
        words = Path(f"/proc/{process}/cmdline").read_bytes().decode().split("\0")
    except OSError:
        return "gone"
    module = words[words.index("-m") + 1] if "-m" in words else next((w for w in words[1:] if w.endswith(".py")), "")
    name = Path(module).stem if module.endswith(".py") else module.rpartition(".")[2]
    return name if module.startswith("memoptc.") or module.endswith(".py") else "memoptc"


def compile_watched(
    model: Path, level: int, *more: str, timeline: bool = False, longest: float = 3600.0
) -> dict[str, Any]:
    """Compile a model by the command line; give peaks in bytes, seconds, and what the report measured."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [str(Path(sys.executable).with_name("memoptc")), "compile", str(model), f"-O{level}", *more]
        command += ["-o", str(Path(folder) / "out.onnx"), "--report", str(report)]
        started = time.perf_counter()
        with open(Path(folder) / "errors", "w+", encoding="utf-8") as errors:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True)
            watch = Watch(process.pid)
            try:
                while process.poll() is None and time.perf_counter() - started < longest:
                    watch.sample(time.perf_counter() - started)
                    time.sleep(_INTERVAL)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            errors.seek(0)
            last = (errors.read().strip().splitlines() or [""])[-1]
        found: dict[str, Any] = {
            "peak": watch.peak,
            "anonymous": watch.anonymous,
            "at_peak": watch.at_peak,
            "each": dict(watch.each),
            "seconds": time.perf_counter() - started,
            "code": process.returncode,
            "message": last if process.returncode else "",
        }
        if timeline:
            found["timeline"] = watch.timeline
        if report.exists():
            control = json.loads(report.read_text())["control"]
            found["weights"] = control["weight_bytes"]
            found["runs"] = (control["measured"] or {}).get("run_peak_bytes")
    return found


def bert_base(path: Path, layers: int = 12, width: int = 768, vocabulary: int = 30522, heads: int = 12) -> Path:
    """Write an encoder of the size of BERT-base, with random weights beside it; `tokens: i64[batch, sequence]`."""
    rng = np.random.default_rng(0)
    inner, per_head = 4 * width, width // heads
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []
    data = path.with_name(f"{path.name}.data")
    with open(data, "wb") as file:

        def weight(name: str, *shape: int, ones: bool = False) -> str:
            content = rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(shape[0]))
            content = np.ones(shape, np.float32) if ones else content
            tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
            tensor.data_location = TensorProto.EXTERNAL
            offset = file.tell()
            file.write(content.tobytes())
            file.write(b"\0" * (-file.tell() % 4096))
            for key, value in (("location", data.name), ("offset", offset), ("length", content.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
            weights.append(tensor)
            return name

        def node(op: str, *inputs: str, to: str, **attributes: Any) -> str:
            nodes.append(helper.make_node(op, list(inputs), [to], name=to, **attributes))
            return to

        def dense(x: str, name: str, rows: int, columns: int) -> str:
            product = node("MatMul", x, weight(f"{name}.w", rows, columns), to=f"{name}.product")
            return node("Add", product, weight(f"{name}.b", columns), to=name)

        def normal(x: str, name: str) -> str:
            scale, shift = weight(f"{name}.scale", width, ones=True), weight(f"{name}.shift", width)
            return node("LayerNormalization", x, scale, shift, to=name, axis=-1)

        def number(name: str, *values: int) -> str:
            weights.append(helper.make_tensor(name, TensorProto.INT64, [len(values)], values))
            return name

        split, joined = number("split", 0, 0, heads, per_head), number("joined", 0, 0, width)
        weights.append(helper.make_tensor("scale", TensorProto.FLOAT, [], [per_head**-0.5]))
        weights.append(helper.make_tensor("half", TensorProto.FLOAT, [], [0.5]))
        weights.append(helper.make_tensor("one", TensorProto.FLOAT, [], [1.0]))
        weights.append(helper.make_tensor("root", TensorProto.FLOAT, [], [2.0**0.5]))
        x = node("Gather", weight("words", vocabulary, width), "tokens", to="embedded")
        length = node("Shape", "tokens", to="length", start=1, end=2)
        table = weight("positions", 512, width)
        positions = node("Slice", table, number("zero", 0), length, number("first_axis", 0), to="used")
        x = normal(node("Add", x, positions, to="placed"), "embedding")
        for i in range(layers):
            parts = {}
            for kind, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
                whole = dense(x, f"l{i}.{kind}", width, width)
                parts[kind] = node("Reshape", whole, split, to=f"l{i}.{kind}.split")
                parts[kind] = node("Transpose", parts[kind], to=f"l{i}.{kind}.heads", perm=order)
            scores = node("MatMul", parts["q"], parts["k"], to=f"l{i}.scores")
            scores = node("Mul", scores, "scale", to=f"l{i}.scaled")
            scores = node("Softmax", scores, to=f"l{i}.softmax", axis=-1)
            mixed = node("MatMul", scores, parts["v"], to=f"l{i}.mixed")
            mixed = node("Transpose", mixed, to=f"l{i}.back", perm=[0, 2, 1, 3])
            mixed = dense(node("Reshape", mixed, joined, to=f"l{i}.joined"), f"l{i}.out", width, width)
            x = normal(node("Add", x, mixed, to=f"l{i}.sum1"), f"l{i}.norm1")
            wide = dense(x, f"l{i}.up", width, inner)
            bent = node("Erf", node("Div", wide, "root", to=f"l{i}.over"), to=f"l{i}.erf")
            bent = node("Mul", wide, node("Add", bent, "one", to=f"l{i}.plus"), to=f"l{i}.times")
            bent = node("Mul", bent, "half", to=f"l{i}.gelu")
            x = normal(node("Add", x, dense(bent, f"l{i}.down", inner, width), to=f"l{i}.sum2"), f"l{i}.norm2")
    graph = helper.make_graph(
        nodes,
        "bert_base",
        [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["batch", "sequence", width])],
        weights,
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def _path(name: str, folder: Path) -> Path:
    if name.endswith(".onnx"):
        return Path(name)
    if name == "bert_base":
        path = folder / "bert_base.onnx"
        return path if path.exists() else bert_base(path)
    if zoo.ZOO is None:
        raise click.ClickException("There is no zoo of models; set MEMOPTC_ZOO to its folder.")
    found: Path = zoo.ZOO.path(name)
    return found


@click.command(help=__doc__)
@click.argument("models", nargs=-1)
@click.option("--only", multiple=True, help="Models to take; all when not given.")
@click.option("--level", multiple=True, type=int, default=(1, 2), show_default=True)
@click.option("--measure/--no-measure", default=None, help="Both when not given.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Keep results here, and go on from them.")
@click.option("--longest", default=3600.0, show_default=True, help="Seconds after which a compile is ended.")
@click.option("--timeline", is_flag=True, help="Keep every sample, too.")
def main(
    models: tuple[str, ...],
    only: tuple[str, ...],
    level: tuple[int, ...],
    measure: bool | None,
    json_file: Path | None,
    longest: float,
    timeline: bool,
) -> None:
    """Run the benchmark."""
    known: dict[str, Any] = json.loads(json_file.read_text()) if json_file and json_file.exists() else {}
    table = Table(title="peak of a compile, all processes together (MB)")
    for column in ("model", "options", "peak", "anonymous", "target", "met", "seconds", "at the peak"):
        table.add_column(column, justify="left" if column in ("model", "options") else "right")
    ways = [w for w, use in (((), measure is not False), (("--no-measure",), measure is not True)) if use]
    with tempfile.TemporaryDirectory() as folder:
        for name in models or only or MODELS:
            runs: int | None = None
            for one in level:
                for way in ways:
                    options = " ".join([f"-O{one}", *way])
                    key = f"{name} {options}"
                    if key not in known:
                        path = _path(name, Path(folder))
                        known[key] = compile_watched(path, one, *way, timeline=timeline, longest=longest)
                        if json_file:
                            json_file.write_text(json.dumps(known, indent=1))
                    line = known[key]
                    runs = line.get("runs") or runs
                    target = None if runs is None else FIXED + line.get("weights", 0) + runs
                    parts = ", ".join(f"{k} {v / 1e6:.0f}" for k, v in line["at_peak"].items())
                    table.add_row(
                        Path(name).stem,
                        options,
                        f"{line['peak'] / 1e6:.0f}",
                        f"{line['anonymous'] / 1e6:.0f}",
                        "?" if target is None else f"{target / 1e6:.0f}",
                        "?" if target is None else "yes" if line["peak"] <= target else "no",
                        f"{line['seconds']:.0f}",
                        parts if not line["code"] else f"code {line['code']}: {line['message'][:60]}",
                    )
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
