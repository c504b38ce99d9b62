"""Arena and time per allocation problem: memoptc's allocator, in compiled and plain code, beside others.

    python benchmarks/allocator.py [CSV_OR_FOLDER ...] [--repeat 3] [--solver-seconds 10] [--minimalloc BINARY]
                                   [--recorded] [--json FILE]

Problems: minimalloc's 11 "challenging" ones (A to K, capacity 1,048,576) where their folder is found, or the given
files, their capacity in names like K.1048576.csv; generated ones of up to 50,000 buffers; and every model of the zoo
in every size as memoptc's memory model sees it, with --recorded also as onnxruntime's allocator was asked. Others:
TensorFlow Lite's greedy by size, first fit in order of execution, OR-tools' CP-SAT alone with NoOverlap2D, and
minimalloc's own program where its path is given. Columns are arena over floor and seconds (median of the repeats);
`-` means that nothing within the capacity was found. Prints Markdown.
"""

from __future__ import annotations

import functools
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import zoo

from memoptc.ir.infer import infer_shapes
from memoptc.ir.onnx_io import read_onnx
from memoptc.runtime.memory import exact
from memoptc.runtime.memory.allocate import MOST_PAIRS, allocate
from memoptc.runtime.memory.liveness import liveness
from memoptc.runtime.memory.overlap import Overlaps
from memoptc.runtime.memory.placement import first_fit
from memoptc.runtime.memory.plan import Plan, check
from memoptc.runtime.memory.problem import Buffer, Problem, read_csv, write_csv
from memoptc.runtime.native.session import NativeSession
from memoptc.runtime.options import RunOptions
from memoptc.runtime.profile import bind_shapes

MINIMALLOC = zoo.FOLDER.parent / "bench" / "minimalloc"

Offsets = Sequence[int] | None


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


def files(paths: Sequence[Path]) -> Iterator[tuple[str, Problem]]:
    """Problems from CSV files; without a capacity in the name, the floor is it."""
    for path in paths:
        for file in sorted(path.glob("*.csv")) if path.is_dir() else [path]:
            problem, capacity = read_csv(file.read_text()), file.name.split(".")[-2]
            yield (
                file.name.split(".")[0],
                Problem(problem.buffers, int(capacity) if capacity.isdigit() else problem.floor),
            )


def generated() -> Iterator[tuple[str, Problem]]:
    """Problems made up from a seed."""
    for count in (500, 5_000, 50_000):
        yield f"network {count}", network(count, 5_000, 0)
        yield f"network {count}, short lives", network(count, 40, 1)
    for count in (500, 50_000):
        yield f"uniform {count}", uniform(count, 0)


def real(recorded: bool) -> Iterator[tuple[str, Problem]]:
    """The zoo, in every size."""
    for name in zoo.NAMES:
        assert zoo.ZOO is not None
        for variant in (None, *zoo.ZOO.meta(name).get("variants", {})):
            title = f"{name} {variant or ''}".strip()
            path, feed = zoo.ZOO.path(name), zoo.ZOO.inputs(name, variant)
            graph = read_onnx(path)
            infer_shapes(graph)
            yield title, liveness(graph, bind_shapes(graph, feed)).problem
            if recorded:
                session = NativeSession(path, RunOptions(threads=1, mem_pattern=False))
                session.run(feed)
                yield f"{title}, recorded", session.record(feed)[1].problem()


def greedy(problem: Problem, key: Callable[[Buffer], int]) -> Offsets:
    """First fit in some order."""
    overlaps = Overlaps(problem)
    if overlaps.pairs > MOST_PAIRS:
        return None
    return first_fit(
        problem.buffers, overlaps, sorted(range(len(problem.buffers)), key=lambda i: key(problem.buffers[i]))
    )


def cp_sat(problem: Problem, seconds: float) -> Offsets:
    """CP-SAT alone: one NoOverlap2D within the capacity."""
    try:
        from ortools.sat.python import cp_model
    except ImportError:
        return None
    model = cp_model.CpModel()
    capacity = problem.capacity or problem.naive_sum
    starts = [model.new_int_var(0, capacity - b.size, "") for b in problem.buffers]
    lives = [model.new_fixed_size_interval_var(b.first, b.last - b.first + 1, "") for b in problem.buffers]
    places = [model.new_fixed_size_interval_var(x, b.size, "") for x, b in zip(starts, problem.buffers, strict=True)]
    model.add_no_overlap_2d(lives, places)
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = seconds
    solver.parameters.num_workers = 1
    if solver.solve(model) not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None
    return [solver.value(x) for x in starts]


def minimalloc(problem: Problem, binary: Path, seconds: float) -> Offsets:
    """Google's program."""
    with tempfile.TemporaryDirectory() as folder:
        asked, answer = Path(folder, "asked.csv"), Path(folder, "answer.csv")
        asked.write_text(write_csv(Problem(problem.buffers)))
        options = [f"--capacity={problem.capacity}", f"--input={asked}", f"--output={answer}"]
        try:
            subprocess.run([binary, *options], check=True, capture_output=True, timeout=seconds)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            return None
        placed = {b.name: b.offset for b in read_csv(answer.read_text()).buffers}
    return [placed[b.name] or 0 for b in problem.buffers]


def timed(find: Callable[[], Offsets], problem: Problem, repeat: int) -> dict[str, float]:
    """Arena over floor, and the median of the times; the arena is left out where nothing valid was found."""
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        offsets = find()
        seconds.append(time.perf_counter() - start)
    found = {"seconds": statistics.median(seconds)}
    if offsets is not None:
        plan = Plan(Problem(problem.buffers), tuple(offsets), "")
        check(plan)
        found |= {"arena": plan.arena_bytes, "ratio": plan.arena_bytes / max(problem.floor, 1)}
    return found


def one(name: str, problem: Problem, repeat: int, solver_seconds: float, binary: Path | None) -> dict[str, Any]:
    """All allocators on one problem."""
    line: dict[str, Any] = {"name": name, "buffers": len(problem.buffers), "floor": problem.floor}
    line["capacity"] = problem.capacity
    line["ours"] = timed(lambda: allocate(problem).offsets, problem, repeat)
    line["by size"] = timed(lambda: greedy(problem, lambda b: -b.size), problem, 1)
    line["by execution"] = timed(lambda: greedy(problem, lambda b: b.first), problem, 1)
    if problem.capacity is not None:
        compiled, exact.compiled = exact.compiled, functools.cache(lambda: None)
        line["plain"] = timed(lambda: allocate(problem).offsets, problem, repeat)
        exact.compiled = compiled
        if solver_seconds:
            line["CP-SAT"] = timed(lambda: cp_sat(problem, solver_seconds), problem, 1)
        if binary is not None:
            line["minimalloc"] = timed(lambda: minimalloc(problem, binary, 60), problem, repeat)
    return line


def table(lines: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    """Markdown: arena over floor and seconds per allocator; where there is a capacity, who keeps within it."""
    heads = ["problem", "buffers", "floor / capacity", *(f"{c}: arena / floor, s" for c in columns)]
    rows = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for line in lines:
        capacity = line["capacity"]
        row = [line["name"], f"{line['buffers']:,}", "" if capacity is None else f"{line['floor'] / capacity:.4f}"]
        for column in columns:
            found = line.get(column, {})
            ratio = f"{found['ratio']:.4f}" if "ratio" in found else "-"
            beyond = " (over)" if capacity is not None and found.get("arena", 0) > capacity else ""
            row.append(f"{ratio}{beyond}, {found['seconds']:.3f}" if found else "")
        rows.append(row)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


@click.command(help=__doc__)
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path, exists=True))
@click.option("--repeat", default=3, show_default=True)
@click.option("--solver-seconds", default=10.0, show_default=True, help="Time limit of CP-SAT; 0 leaves it out.")
@click.option("--minimalloc", "binary", type=click.Path(path_type=Path, exists=True))
@click.option("--recorded", is_flag=True, help="Also the zoo's problems as onnxruntime poses them.")
@click.option("--json", "json_file", type=click.Path(path_type=Path))
def main(
    paths: tuple[Path, ...],
    repeat: int,
    solver_seconds: float,
    binary: Path | None,
    recorded: bool,
    json_file: Path | None,
) -> None:
    """Run the benchmark."""
    start = time.perf_counter()
    print(f"Compiled code: {exact.compiled() is not None}.")
    row = Problem(tuple(Buffer(str(i), 2 + i % 3, i, i + 2) for i in range(12)))
    exact.Exact(row).decide(row.floor, 1_000)
    print(f"Ready after {time.perf_counter() - start:.1f} s.\n")
    hard = [one(n, p, repeat, solver_seconds, binary) for n, p in files(paths or [MINIMALLOC] * MINIMALLOC.exists())]
    others = ["by size", "by execution", *["CP-SAT"] * (solver_seconds > 0), *["minimalloc"] * (binary is not None)]
    print(table(hard, ["ours", "plain", *others]))
    for column in ("ours", "plain", *others):
        within = [line for line in hard if line[column].get("arena", line["capacity"] + 1) <= line["capacity"]]
        seconds = sum(line[column]["seconds"] for line in hard)
        print(f"\n{column}: {len(within)} of {len(hard)} within capacity, {seconds:.2f} s in all.", end="")
    print("\n")
    made = [] if paths else [one(n, p, repeat, 0, None) for n, p in generated()]
    zoo_lines = [] if paths else [one(n, p, repeat, 0, None) for n, p in real(recorded)]
    print(table([*made, *zoo_lines], ["ours", "by size", "by execution"]))
    if zoo_lines:
        for column in ("ours", "by size", "by execution"):
            ratios = [line[column]["ratio"] for line in zoo_lines]
            print(f"\n{column}: {ratios.count(1.0)} of {len(ratios)} models at the floor, ", end="")
            print(f"the worst {max(ratios) - 1:.1%} above it.", end="")
        print()
    if json_file:
        json_file.write_text(json.dumps([*hard, *made, *zoo_lines], indent=1))


if __name__ == "__main__":
    main()
