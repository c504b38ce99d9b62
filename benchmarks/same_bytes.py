"""Whether compiles give the same bytes: in two processes, and before and after a change.

    python benchmarks/same_bytes.py record OUT.json [--only NAME ...] [--level N ...] [--target T ...] [--keep FOLDER]
    python benchmarks/same_bytes.py compare BEFORE.json AFTER.json

`record` compiles each model of the zoo at each level and target with `--no-measure`, in two fresh processes: one with
another seed of Python's hashes, and in the opposite order, so that neither the order of sets nor what an earlier
compile left behind shows in the bytes. It notes digests of the files, counts of nodes and a digest of the weights, and
ends with exit code 1 where the two processes differ. `--once` leaves the second process out, for a version that is
only compared with. `compare` says for each compile whether two recordings differ, and in what: the outcome, the nodes,
the weights, names and attributes, or only the contract. To record another version, put its tree on PYTHONPATH.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from onnx import numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import zoo

LEVELS = (0, 1, 2, 3)
TARGETS = ("float32", "float16", "bfloat16", "int8", "uint8", "int4", "mixed")
SAMPLES = 4
"""Calibration samples: enough for every code path, few enough that a compile takes seconds."""


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for attribute in (a for node in graph.node for a in node.attribute):
        for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            yield from _graphs(inner)


def describe(path: Path) -> dict[str, Any]:
    """What is kept of a written model: digests of its files, its nodes by operator, a digest of its weights."""
    files = {
        file.name.removeprefix(path.name) or "model": _digest(file.read_bytes())
        for file in sorted(path.parent.glob(f"{path.name}*"))
    }
    model = onnx.load(path)
    graphs = list(_graphs(model.graph))
    weights = sorted(_digest(numpy_helper.to_array(w).tobytes()) for g in graphs for w in g.initializer)
    nodes = Counter(f"{n.domain}::{n.op_type}" if n.domain else n.op_type for g in graphs for n in g.node)
    return {"files": files, "nodes": dict(sorted(nodes.items())), "weights": _digest("".join(weights).encode())}


def compile_all(name: str, cases: list[tuple[int, str]], keep: Path | None) -> dict[str, Any]:
    """Compile a model of the zoo in each case, in this process."""
    from memoptc.api import compile_file
    from memoptc.ir.diagnostics import MemoptcError

    assert zoo.ZOO is not None
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        feeds, _ = zoo.ZOO.samples(name, SAMPLES)
        data = Path(scratch) / "data"
        data.mkdir()
        for index, feed in enumerate(feeds or []):
            np.savez(data / f"{index}.npz", **feed)
        for level, target in cases:
            key = f"{name} O{level} {target}"
            output = (keep or Path(scratch)) / f"{key.replace(' ', '.')}.onnx"
            asked = {"calibration": str(data)} if feeds and target != "float32" else {}
            try:
                compile_file(zoo.ZOO.path(name), output, level=level, target=target, measure=False, **asked)
                found[key] = describe(output)
            except MemoptcError as error:
                found[key] = {"error": f"{type(error).__name__}: {error.message}"}
    return found


def in_process(name: str, cases: list[tuple[int, str]], seed: int, keep: Path | None) -> dict[str, Any]:
    """`compile_all` in a fresh process with that seed of Python's hashes."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        command = [sys.executable, "-W", "ignore", __file__, "worker", name, json.dumps(cases), str(out)]
        command += [str(keep)] if keep else []
        done = subprocess.run(
            command, env={**os.environ, "PYTHONHASHSEED": str(seed)}, capture_output=True, text=True, check=False
        )
        if done.returncode:
            return {f"{name} O{level} {target}": {"error": done.stderr[-400:]} for level, target in cases}
        found: dict[str, Any] = json.loads(out.read_text())
        return found


def difference(before: dict[str, Any], after: dict[str, Any]) -> str:
    """In what two descriptions of a compile's outcome differ; empty where they are the same."""
    if before == after:
        return ""
    if "error" in before or "error" in after:
        return f"outcome: {before.get('error', 'written')} -> {after.get('error', 'written')}"
    if before["nodes"] != after["nodes"]:
        more, fewer = Counter(after["nodes"]), Counter(before["nodes"])
        changed = {key: more[key] - fewer[key] for key in sorted(more | fewer) if more[key] != fewer[key]}
        return "nodes: " + ", ".join(f"{key} {by:+d}" for key, by in changed.items())
    if before["weights"] != after["weights"]:
        return "weights"
    old, new = before["files"], after["files"]
    if [file for file in {**old, **new} if old.get(file) != new.get(file)] == [".session.json"]:
        return "contract"
    return "names, attributes or order"


@click.group()
def main() -> None:
    """Whether compiles give the same bytes."""


@main.command(hidden=True)
@click.argument("name")
@click.argument("cases")
@click.argument("out", type=Path)
@click.argument("keep", type=Path, required=False)
def worker(name: str, cases: str, out: Path, keep: Path | None) -> None:
    """One process of `record`."""
    out.write_text(json.dumps(compile_all(name, [(level, target) for level, target in json.loads(cases)], keep)))


@main.command()
@click.argument("out", type=Path)
@click.option("--only", multiple=True, help="Models; all of the zoo when not given.")
@click.option("--level", "levels", multiple=True, type=int, default=LEVELS)
@click.option("--target", "targets", multiple=True, default=TARGETS)
@click.option("--keep", type=Path, help="Folder for what was written, to look into differences.")
@click.option("--once", is_flag=True, help="Compile in one process only.")
def record(
    out: Path, only: tuple[str, ...], levels: tuple[int, ...], targets: tuple[str, ...], keep: Path | None, once: bool
) -> None:
    """Compile each model in two processes, and note what was written."""
    cases = list(itertools.product(levels, targets))
    found: dict[str, Any] = {}
    differences = 0
    if keep:
        keep.mkdir(parents=True, exist_ok=True)
    for name in only or zoo.NAMES:
        first = in_process(name, cases, 1, keep)
        second = first if once else in_process(name, cases[::-1], 2, None)
        for key, described in first.items():
            found[key] = described
            if differs := difference(described, second[key]):
                differences += 1
                click.echo(f"{key}: two processes differ in {differs}")
        click.echo(f"{name}: {len(first)} compiles, {sum('error' in d for d in first.values())} refused")
        out.write_text(json.dumps(found, indent=1))
    click.echo(f"{len(found)} compiles, {differences} differ between two processes")
    sys.exit(differences > 0)


@main.command()
@click.argument("before", type=Path)
@click.argument("after", type=Path)
def compare(before: Path, after: Path) -> None:
    """Say in what two recordings differ."""
    old, new = json.loads(before.read_text()), json.loads(after.read_text())
    kinds: Counter[str] = Counter()
    for key in sorted(old.keys() & new.keys()):
        differs = difference(old[key], new[key])
        kinds[differs.partition(":")[0] or "the same bytes"] += 1
        if differs:
            click.echo(f"{key}: {differs}")
    click.echo(", ".join(f"{count} {kind}" for kind, count in kinds.most_common()))


if __name__ == "__main__":
    main()
