"""Nodes that are left of each model of the zoo: memoptc beside tools that fuse and remove nodes.

    python benchmarks/fusions.py [--only NAME ...] [--tool NAME ...] [--seconds 60] [--markdown FILE]

Ours is the pipeline of -O2 without what makes memory smaller (tiles add nodes), frozen the same with --freeze-runtime,
which writes down what onnxruntime's optimizer makes of it when it loads. onnxslim and onnxsim run as their
commands do; `transformers` is onnxruntime's offline optimizer (model_type "bert", opt_level 0), `onnxscript` its
optimizer and then its rewriter. Nodes inside branches and loops count, constants do not. Each runs in a process of its
own. `pip install '.[peers,test]' onnxscript` first; what is not installed is left out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click
import onnx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import zoo

ROOT = Path(__file__).resolve().parent.parent


def ours(source: str, *, freeze: bool = False) -> onnx.ModelProto:
    """The pipeline of -O2 without passes of the folder `memory`."""
    import memoptc
    import memoptc.api

    memory = {path.stem.replace("_", "-") for path in (ROOT / "passes/memory").glob("[a-z]*.py")}
    running = {name.strip() for name in _names(str(memoptc.api.pipeline_for(memoptc.api.Options())))}
    skipped = tuple(sorted((memory | {"drop-notes"}) & running))
    options = {"skip_passes": skipped, "verify": "off", "form": "plain", "force": True, "freeze_runtime": freeze}
    return memoptc.compile(onnx.load(source), **options).model


def _names(pipeline: str) -> list[str]:
    depth, found = 0, ""
    for mark in pipeline:  # options of passes hold commas, too
        depth += (mark == "{") - (mark == "}")
        found += mark if depth == 0 and mark not in "()*}" else "" if mark != "," else ","
    return found.split(",")


def frozen(source: str) -> onnx.ModelProto:
    """Ours, as onnxruntime runs it at its level `extended`."""
    return ours(source, freeze=True)


def onnxslim(source: str) -> onnx.ModelProto:
    """As the command `onnxslim IN OUT`."""
    from onnxslim import slim

    return slim(source)


def onnxsim(source: str) -> onnx.ModelProto:
    """As the command `onnxsim IN OUT`."""
    from onnxsim import simplify

    return simplify(onnx.load(source))[0]


def transformers(source: str) -> onnx.ModelProto:
    """onnxruntime's offline optimizer of transformers, Python fusions only."""
    from onnxruntime.transformers.optimizer import optimize_model

    return optimize_model(source, model_type="bert", opt_level=0).model


def onnxscript(source: str) -> onnx.ModelProto:
    """The optimizer, then the rewriter with its default rules."""
    import onnxscript.optimizer
    import onnxscript.rewriter

    return onnxscript.rewriter.rewrite(onnxscript.optimizer.optimize(onnx.load(source)))


TOOLS = {f.__name__: f for f in (ours, frozen, onnxslim, onnxsim, transformers, onnxscript)}


def operators(model: onnx.ModelProto) -> Counter[str]:
    """Count the operators of a model, bodies and functions included, constants not."""

    def walk(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.NodeProto]:
        for node in graph.node:
            yield node
            for attribute in node.attribute:
                for body in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                    yield from walk(body)

    bodies = (model.graph, *model.functions)
    return Counter(node.op_type for body in bodies for node in walk(body) if node.op_type != "Constant")


def counted(tool: str, path: Path, seconds: float) -> Counter[str] | str:
    """Run a tool in a process of its own; the operators that it leaves, or why there are none."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "operators.json"
        words = [sys.executable, __file__, "--worker", tool, str(path), "--out", str(out)]
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=seconds, env=os.environ, check=False)
        except subprocess.TimeoutExpired:
            return "time"
        if not out.exists():
            return (done.stderr.strip().splitlines() or ["ended"])[-1][:60]
        return Counter(json.loads(out.read_text()))


@click.command()
@click.option("--only", multiple=True, help="Models of the zoo.")
@click.option("--tool", "tools", multiple=True, type=click.Choice(list(TOOLS)), help="These tools only.")
@click.option("--seconds", default=60.0, help="That a tool may take.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write the table here.")
@click.option("--worker", nargs=2, hidden=True)
@click.option("--out", type=click.Path(path_type=Path), hidden=True)
def main(
    only: tuple[str, ...],
    tools: tuple[str, ...],
    seconds: float,
    markdown: Path | None,
    worker: tuple[str, str],
    out: Path,
) -> None:
    """Print a row for each model."""
    if worker:
        out.write_text(json.dumps(operators(TOOLS[worker[0]](worker[1]))))
        return
    assert zoo.ZOO is not None, "set MEMOPTC_ZOO to the folder of models"
    rows = []
    for name in only or zoo.ZOO.names():
        path = Path(zoo.ZOO.path(name))
        before = operators(onnx.load(path, load_external_data=False))
        found = {tool: counted(tool, path, seconds) for tool in tools or TOOLS}
        cells = [str(v.total()) if isinstance(v, Counter) else "-" for v in found.values()]
        rows.append(f"| {name} | {before.total()} | {' | '.join(cells)} |")
        click.echo(rows[-1])
        mine = found.get("ours")
        for tool, theirs in found.items():
            if isinstance(theirs, Counter) and isinstance(mine, Counter) and theirs.total() < mine.total():
                more = {op: (mine[op], theirs[op]) for op in mine | theirs if mine[op] != theirs[op]}
                click.echo(f"    fewer by {tool}: {more}", err=True)
            elif not isinstance(theirs, Counter):
                click.echo(f"    {tool}: {theirs}", err=True)
    if markdown is not None:
        head = f"| model | before | {' | '.join(tools or TOOLS)} |\n|{'---|' * (len(tools or TOOLS) + 2)}\n"
        markdown.write_text(head + "\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
