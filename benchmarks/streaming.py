"""Weights that stream, against the kernel's blind paging, in control groups: time of a run by memory limit.

    python benchmarks/streaming.py MODEL.onnx [--limit 150MB ...] [--dim past=256 ... | --inputs FILE.npz] [--runs 8]
    python benchmarks/streaming.py --generate 3GB --limit 400MB

MODEL has its weights in a file of their own (`memoptc --external always`). For each limit, fresh processes run it by
turns in two ways, the page cache dropped before each: `Session(packing=False)`, whose mapped weights the kernel pages
in and out as it likes, and `Session(weights="streamed")`, whose `weight_limit` is the limit without what the process
takes besides (its memory that cannot be evicted, measured before, and 40 MiB). Given are medians of a run's time, their
ratio, and beside it the ideal: bytes that are not pinned over the disk's speed, measured before each pair.
`anonymous` is the most that a
streaming process held of memory that cannot be evicted. `--generate` makes a float32 encoder of that size.
"""

from __future__ import annotations

import json
import mmap
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from onnx import TensorProto, helper
from rich.console import Console
from rich.table import Table

from memoptc.ir.files import TemporaryFolder
from memoptc.ir.onnx_io import read_onnx
from memoptc.runtime.container import ControlGroup, control_group, drop_from_cache, model_files
from memoptc.runtime.inputs import InputMaker
from memoptc.runtime.npz import load_feed, save_feed
from memoptc.runtime.sizes import parse_bytes

SPARE = 40 << 20
"""Bytes of a limit that are left to pages of libraries, and to the kernel, which charges in batches."""
THREADS = 2


def worker(model: str, inputs: str, weight_limit: int, runs: int) -> dict[str, Any]:
    """Run in this process; give each run's seconds and the most anonymous bytes meanwhile."""
    from memoptc.runtime.session import Session

    feed = load_feed(Path(inputs))
    given: dict[str, Any] = (
        {"weights": "streamed", "weight_limit": weight_limit} if weight_limit else {"packing": False}
    )
    session = Session(model, threads=THREADS, memory="arena", **given)
    most, over = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not over.wait(0.02):
            with open("/proc/self/status") as status:
                most = max(most, next(int(line.split()[1]) << 10 for line in status if line.startswith("RssAnon")))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    seconds = []
    for _ in range(runs):
        started = time.perf_counter()
        session.run(None, feed)
        seconds.append(time.perf_counter() - started)
    over.set()
    watcher.join()
    traffic = session.traffic
    told = (
        {} if traffic is None else {"pinned": traffic.pinned_bytes, "read": traffic.bytes, "held": traffic.peak_bytes}
    )
    return {"seconds": seconds, "anonymous": most, "pinned": 0, **told}


def start(group: ControlGroup, limit: int | None, model: Path, arguments: list[str]) -> dict[str, Any] | None:
    """Run a worker in the group; `None` when it was killed."""
    drop_from_cache(model_files(model))
    group.limit(None)
    group.empty()
    group.limit(limit)
    command = [*group.command(), sys.executable, __file__, "--worker", str(model), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        sys.stderr.write(done.stderr[-2000:])
        return None
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"peak": group.peak_bytes()}


def disk_speed(files: list[Path]) -> float:
    """Bytes a second of a thread that reads the largest file once, past the page cache."""
    file = max(files, key=lambda f: f.stat().st_size)
    step = 1 << 20
    buffer, size = mmap.mmap(-1, step), file.stat().st_size // step * step
    descriptor = os.open(file, os.O_RDONLY | os.O_DIRECT)
    started = time.perf_counter()
    for at in range(0, size, step):
        os.preadv(descriptor, [buffer], at)
    took = time.perf_counter() - started
    os.close(descriptor)
    return size / took


def encoder(path: Path, size: int) -> None:
    """Write a float32 encoder (width 2048, 16 heads) whose weights take about `size` bytes."""
    width, heads, inner = 2048, 16, 8192
    layer = 4 * (4 * width * width + 2 * width * inner)
    rng = np.random.default_rng(0)
    noise = (rng.standard_normal(1 << 20) * 0.02).astype(np.float32)
    weights: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []
    data = path.with_name(f"{path.name}.data")
    with open(data, "wb") as out:

        def weight(name: str, *shape: int) -> str:
            count, offset = int(np.prod(shape)), out.tell()
            start = len(weights) * 7919 % len(noise)
            row = np.roll(noise, start)
            for at in range(0, count, len(row)):
                out.write(row[: count - at].tobytes())
            proto = onnx.TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
            proto.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", data.name), ("offset", offset), ("length", 4 * count)):
                proto.external_data.add(key=key, value=str(value))
            weights.append(proto)
            return name

        def node(kind: str, *inputs: str, **attributes: Any) -> str:
            name = f"h{len(nodes)}"
            nodes.append(helper.make_node(kind, inputs, [name], **attributes))
            return name

        ints = [("split", [0, 0, heads, width // heads]), ("join", [0, 0, width])]
        small = [helper.make_tensor(n, TensorProto.INT64, [len(v)], v) for n, v in ints]
        small += [helper.make_tensor("scale", TensorProto.FLOAT, [], [(width // heads) ** -0.5])]
        small += [helper.make_tensor("one", TensorProto.FLOAT, [width], [1.0] * width)]
        x = "x"
        for i in range(-(-size // layer)):
            n = node("LayerNormalization", x, "one")
            q, k, v = (
                node("Transpose", node("Reshape", node("MatMul", n, weight(f"{w}{i}", width, width)), "split"), perm=p)
                for w, p in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3]))
            )
            scores = node("Softmax", node("Mul", node("MatMul", q, k), "scale"))
            mixed = node("Reshape", node("Transpose", node("MatMul", scores, v), perm=[0, 2, 1, 3]), "join")
            x = node("Add", x, node("MatMul", mixed, weight(f"o{i}", width, width)))
            n = node("LayerNormalization", x, "one")
            x = node(
                "Add",
                x,
                node(
                    "MatMul",
                    node("Relu", node("MatMul", n, weight(f"a{i}", width, inner))),
                    weight(f"b{i}", inner, width),
                ),
            )
        out.flush()
        os.fsync(out.fileno())
    nodes[-1].output[0] = "y"
    ports = [helper.make_tensor_value_info(p, TensorProto.FLOAT, ["batch", "sequence", width]) for p in ("x", "y")]
    graph = helper.make_graph(nodes, "encoder", ports[:1], ports[1:], [*weights, *small])
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


@click.command(help=__doc__)
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.option("--generate", help="Size of an encoder to make.")
@click.option("--limit", "limits", multiple=True, default=("150MB", "300MB", "450MB"), show_default=True)
@click.option("--dim", "dims", multiple=True, help="NAME=EXTENT of the inputs.")
@click.option("--inputs", "given", type=click.Path(path_type=Path), help="Inputs, .npz; made up when not given.")
@click.option("--runs", default=8, show_default=True)
@click.option("--rounds", default=2, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Write the figures to this file, one JSON line per limit.")
def main(
    model: Path | None,
    generate: str | None,
    limits: tuple[str, ...],
    dims: tuple[str, ...],
    given: Path | None,
    runs: int,
    rounds: int,
    out: Path | None,
) -> None:
    """Print one line per limit."""
    table = Table(
        "limit MB", "weight limit", "pinned", "anonymous", "blind ms", "streamed ms", "ratio", "ideal ms", "disk MB/s"
    )
    with TemporaryFolder() as folder, control_group() as group:
        if generate:
            model = Path(folder) / "encoder.onnx"
            encoder(model, parse_bytes(generate))
        assert model is not None, "name a model, or --generate one"
        inputs = given or Path(folder) / "inputs.npz"
        if given is None:
            maker = InputMaker(read_onnx(model), {n: int(e) for n, e in (d.split("=") for d in dims)})
            save_feed(inputs, maker.make({}))
        weights = sum(f.stat().st_size for f in model_files(model) if f.suffix != ".json")
        free = start(group, None, model, [str(inputs), str(32 << 20), "3"])
        assert free is not None, "it does not stream"
        besides = free["anonymous"] - free["held"]
        for limit in (parse_bytes(text) for text in limits):
            room = (limit - besides - SPARE) // (2 << 20) * (2 << 20)
            blind: list[float] = []
            streamed: list[float] = []
            ideal: list[float] = []
            last: dict[str, Any] = {}
            for _ in range(rounds):
                speed = disk_speed(model_files(model))
                for way, found in ((0, blind), (room, streamed)):
                    one = start(group, limit, model, [str(inputs), str(way), str(runs)])
                    if one is not None:
                        found += one["seconds"][2:]
                        last = one
                ideal.append(max(0, weights - last.get("pinned", 0)) / speed)
            b, s = (statistics.median(x) if x else float("nan") for x in (blind, streamed))
            row = {
                "limit": limit, "weight_limit": room, "pinned": last.get("pinned"), "anonymous": last.get("anonymous"),
                "blind_ms": 1e3 * b, "streamed_ms": 1e3 * s, "ratio": s / b, "ideal_ms": 1e3 * statistics.median(ideal),
                "disk": weights / statistics.median(ideal) if last.get("pinned") == 0 else speed,
            }  # fmt: skip
            table.add_row(
                *(f"{(v or 0) / 1e6:.0f}" for v in list(row.values())[:4]),
                f"{1e3 * b:.0f}",
                f"{1e3 * s:.0f}",
                f"{s / b:.2f}",
                f"{row['ideal_ms']:.0f}",
                f"{speed / 1e6:.0f}",
            )
            if out:
                with open(out, "a") as lines:
                    lines.write(json.dumps(row) + "\n")
    Console(width=140).print(table)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        print(json.dumps(worker(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))))
    else:
        main()
