"""Arena against floor and time, per problem: memoptc's allocator beside simple ones.

    python benchmarks/allocator.py [FOLDER_OR_CSV ...] [--effort 3000000] [--json FILE]

Problems: minimalloc's 11 "challenging" ones (A to K, capacity 1,048,576) where their folder is found, generated
ones of up to 50,000 buffers, and every model of the zoo at the extents its inputs suggest. Simple allocators:
greedy by size as TensorFlow Lite has it, first fit in order of execution, and a best-fit heap over time.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import zoo

from memoptc.ir.infer import infer_shapes
from memoptc.ir.onnx_io import read_onnx
from memoptc.runtime.inputs import InputMaker
from memoptc.runtime.memory.allocate import EFFORT, MOST_PAIRS, allocate
from memoptc.runtime.memory.liveness import liveness
from memoptc.runtime.memory.overlap import Overlaps
from memoptc.runtime.memory.placement import by_time, first_fit
from memoptc.runtime.memory.problem import Buffer, Problem, read_csv

MINIMALLOC = zoo.FOLDER.parent / "bench" / "minimalloc"
CAPACITY = 1_048_576


def network(count: int, longest: int, seed: int) -> Problem:
    """Buffers as a network has them: most die at the next step, some live long, one in ten is large."""
    rng = random.Random(seed)
    buffers = []
    for step in range(count):
        life = 1 if rng.random() < 0.7 else min(int(rng.paretovariate(1.1)), longest)
        size = 64 * rng.randint(1, 4096) * (1 if rng.random() < 0.9 else 8)
        buffers.append(Buffer(str(step), size, step, min(count - 1, step + life), 64))
    return Problem(tuple(buffers))


def uniform(count: int, seed: int) -> Problem:
    """Births and deaths anywhere: a third of all pairs meet."""
    rng = random.Random(seed)
    spans = [sorted((rng.randint(0, count), rng.randint(0, count))) for _ in range(count)]
    return Problem(tuple(Buffer(str(i), 64 * rng.randint(1, 9999), a, b, 64) for i, (a, b) in enumerate(spans)))


def generated() -> Iterator[tuple[str, Problem]]:
    """Problems made up from a seed."""
    for count in (500, 5_000, 50_000):
        yield f"network {count}", network(count, 5_000, 0)
        yield f"network {count}, dense", network(count, 40, 1)
    for count in (500, 50_000):
        yield f"uniform {count}", uniform(count, 0)


def real() -> Iterator[tuple[str, Problem]]:
    """The zoo."""
    for name in zoo.NAMES:
        graph = read_onnx(zoo.ZOO.path(name))  # type: ignore[union-attr]
        infer_shapes(graph)
        dims = next(InputMaker(graph, {}).bindings(), {})
        yield name, liveness(graph, dims).problem


def one(name: str, problem: Problem, effort: int) -> dict[str, Any]:
    """Arena over floor and seconds, for every allocator."""
    start = time.perf_counter()
    plan = allocate(problem, effort=effort)
    seconds = time.perf_counter() - start
    floor = max(plan.floor, 1)
    line: dict[str, Any] = {"name": name, "buffers": len(problem.buffers), "floor": floor, "arena": plan.arena_bytes}
    line |= {"ours": plan.arena_bytes / floor, "seconds": seconds, "algorithm": plan.algorithm}
    if problem.capacity:
        line["capacity"] = plan.arena_bytes / problem.capacity
    overlaps = Overlaps(problem)
    everyone = range(len(problem.buffers))
    if overlaps.pairs <= MOST_PAIRS:
        by_size = sorted(everyone, key=lambda i: (-problem.buffers[i].size, i))
        by_start = sorted(everyone, key=lambda i: (problem.buffers[i].first, i))
        line["greedy by size"] = _over(first_fit(problem.buffers, overlaps, by_size), problem)
        line["execution order"] = _over(first_fit(problem.buffers, overlaps, by_start), problem)
    line["heap"] = _over(by_time(problem.buffers), problem)
    return line


def _over(offsets: list[int], problem: Problem) -> float:
    arena = max((o + b.size for o, b in zip(offsets, problem.buffers, strict=True)), default=0)
    return arena / max(problem.floor, 1)


@click.command(help=__doc__)
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path, exists=True))
@click.option("--effort", default=EFFORT, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path))
def main(paths: tuple[Path, ...], effort: int, json_file: Path | None) -> None:
    """Run the benchmark."""
    files = [f for p in paths or (MINIMALLOC,) for f in (sorted(p.glob("*.csv")) if p.is_dir() else [p]) if f.exists()]
    problems = [(f.name.split(".")[0], read_csv(f.read_text(), CAPACITY)) for f in files]
    lines = [one(name, problem, effort) for name, problem in problems]
    if not paths:
        lines += [one(name, problem, effort) for name, problem in (*generated(), *real())]
    columns = ("ours", "greedy by size", "execution order", "heap")
    table = Table("problem", "buffers", *columns, "of capacity", "seconds", "by", title="arena / floor")
    for line in lines:
        figures = ["" if c not in line else f"{line[c]:.3f}" for c in columns]
        capacity = f"{line['capacity']:.3f}" if "capacity" in line else ""
        table.add_row(
            line["name"], str(line["buffers"]), *figures, capacity, f"{line['seconds']:.2f}", line["algorithm"]
        )
    Console(width=150).print(table)
    if json_file:
        json_file.write_text(json.dumps(lines, indent=1))


if __name__ == "__main__":
    main()
