"""Peaks of a model under different orders of its nodes, planned, and what can be proven of the best.

    python benchmarks/order.py [--only NAME ...] [--json FILE]

`file`: as written; `default`: onnxruntime's default order, as its profiler reports it (optimizer off); `networkx`: its
topological sort; `ours`: memoptc's, with a bound that no order can beat. Bytes are those of memoptc's memory model.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import networkx
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import zoo

from memoptc.ir.core import Graph, Op
from memoptc.ir.infer import infer_shapes
from memoptc.ir.onnx_io import read_onnx
from memoptc.runtime.executed import executed_order
from memoptc.runtime.memory.footprint import used_values
from memoptc.runtime.memory.liveness import liveness
from memoptc.runtime.memory.schedule import best_order
from memoptc.runtime.options import RunOptions
from memoptc.runtime.profile import bind_shapes


def peak(graph: Graph, dims: Mapping[str, int], order: list[Op] | None = None) -> int:
    """The peak of an order."""
    return max(liveness(graph, dims, order, fused=False).curve)


def default_order(graph: Graph, path: Path, feed: dict[str, Any]) -> list[Op] | None:
    """What onnxruntime runs by default; `None` where its names do not tell."""
    by_name = {op.name: op for op in graph.ops if op.name}
    ran = executed_order(path, feed, RunOptions(optimize=False))
    order = list(dict.fromkeys(by_name[n] for n in ran if n in by_name))
    steps = liveness(graph, {}).steps
    if len({op for op in steps if op.op_type != "return"} - set(order)):
        return None
    return [op for op in order if op in set(steps)]


def one(name: str, variant: str | None) -> dict[str, Any]:
    """Measure one model in one size."""
    assert zoo.ZOO is not None
    path, feed = Path(zoo.ZOO.path(name)), zoo.ZOO.inputs(name, variant)
    graph = read_onnx(path)
    infer_shapes(graph)
    dims = bind_shapes(graph, feed)
    start = time.perf_counter()
    found = best_order(graph, dims)
    seconds = time.perf_counter() - start
    theirs = default_order(graph, path, feed)
    in_graph = set(graph.ops)
    flow: networkx.DiGraph = networkx.DiGraph()
    flow.add_nodes_from(graph.ops)
    flow.add_edges_from((v.op, op) for op in graph.ops for v in used_values(op) if v.op in in_graph)
    sorted_ops = list(networkx.topological_sort(flow))
    return {
        "model": f"{name} {variant or ''}".strip(),
        "ops": len(liveness(graph, dims).steps),
        "file": found.given_bytes,
        "default": None if theirs is None else peak(graph, dims, theirs),
        "networkx": peak(graph, dims, sorted_ops),
        "ours": found.peak_bytes,
        "bound": found.bound_bytes,
        "proven": found.proven,
        "how": found.how,
        "looked": found.looked,
        "seconds": seconds,
    }


@click.command(help=__doc__)
@click.option("--only", multiple=True, help="Models; all when not given.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write every figure as JSON.")
def main(only: tuple[str, ...], json_file: Path | None) -> None:
    """Run the benchmark."""
    if zoo.ZOO is None:
        raise click.ClickException("There is no zoo of models; set MEMOPTC_ZOO to its folder.")
    lines = []
    for name in only or zoo.NAMES:
        for variant in (None, *zoo.ZOO.meta(name).get("variants", {})):
            lines.append(one(name, variant))
            print(json.dumps(lines[-1]), file=sys.stderr, flush=True)
    table = Table("model", "ops", "file", "default", "networkx", "ours", "bound", "proven", "how", "s")
    for line in lines:
        peaks = [f"{line[k] / 1e6:.3f}" if line[k] is not None else "" for k in ("file", "default", "networkx", "ours")]
        table.add_row(
            line["model"], str(line["ops"]), *peaks, f"{line['bound'] / 1e6:.3f}", "yes" if line["proven"] else "",
            line["how"], f"{line['seconds']:.1f}",
        )  # fmt: skip
    console = Console(width=160)
    console.print(table)
    console.print(f"proven optimal: {sum(li['proven'] for li in lines)} of {len(lines)}")
    if json_file:
        json_file.write_text(json.dumps(lines, indent=1))


if __name__ == "__main__":
    main()
