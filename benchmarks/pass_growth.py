"""How the time of every pass grows with the graph: processor seconds at n, 2n and 4n ops per shape, and the exponent.

    python benchmarks/pass_growth.py [--only PASS ...] [--shape NAME ...] [--ops 2000] [--levels 7] [--all]

Shapes are those of tests/growing.py: long, wide, deep, and with many ways from end to end. A pass whose time is c * n^e
has exponent e; 1 is linear. Lines below an exponent of 1.2, or below 0.05 s at 4n, are left out without --all. The last
tables take single passes to 50,000 ops, 5,000 branches and 300 functions.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import growing

from memoptc.ir.core import Graph
from memoptc.pass_base import Context
from memoptc.registry import find, names
from memoptc.testing import run_pass

DATA = frozenset(
    (
        "cascade cluster-weights early-exit equalize factorize feature-statistics mix-weights prune "
        "quantize-io quantize-search smooth split-outliers"
    ).split()
)
"""Passes that want samples, or codes that come from them."""
LARGE = {"chain": 50_000, "residual": 50_000, "wide": 50_000, "branches": 25_000, "functions": 1_200}
"""Ops of the last tables; a branch of `branches` is five, a function of `functions` four."""
SLOW = 60.0
"""Seconds beyond which a pass is not tried on a larger graph."""


def seconds(name: str, graph: Graph) -> float:
    """Processor time of a pass on a graph, shapes known before."""
    context = Context(dims={"N": 8})
    context.shapes(graph)
    pass_, start = find(name)(), time.process_time()
    run_pass(pass_, graph, context)
    return time.process_time() - start


@click.command(help=__doc__)
@click.option("--only", multiple=True, metavar="PASS")
@click.option("--shape", "shapes", multiple=True, metavar="NAME")
@click.option("--ops", default=2000, help="Ops of the smallest graph.")
@click.option("--levels", default=7, help="Levels of the least nested graph.")
@click.option("--all", "everything", is_flag=True, help="Show linear and fast ones, too.")
@click.option("--large/--no-large", default=True, help="Also the large graphs.")
def main(only: tuple[str, ...], shapes: tuple[str, ...], ops: int, levels: int, everything: bool, large: bool) -> None:
    """Run the benchmark."""
    console = Console(width=120)
    passes = only or tuple(n for n in names() if n not in DATA)
    table = Table("shape", "pass", "n", "seconds at n", "2n", "4n", "exponent", title="Growth of passes")
    for shape in shapes or growing.SHAPES:
        start = ops if shape in growing.FLAT else levels
        for name in passes:
            found: list[tuple[float, float]] = []
            for n in (start, 2 * start, 4 * start):
                found.append((n, seconds(name, growing.SHAPES[shape](n))))
                if found[-1][1] > SLOW:
                    break
            grows = growing.exponent(found) if len(found) > 1 else float("nan")
            if everything or len(found) < 3 or (grows > 1.2 and found[-1][1] > 0.05):
                times = [f"{s:.3f}" for _, s in found] + [f"over {SLOW:.0f} s before"] * (3 - len(found))
                table.add_row(shape, name, str(start), *times, f"{grows:.2f}")
    console.print(table)
    for shape, n in LARGE.items() if large else ():
        if shapes and shape not in shapes:
            continue
        table = Table("pass", "seconds", title=f"{shape}: {n:,} ops")
        for name in passes:
            table.add_row(name, f"{seconds(name, growing.SHAPES[shape](n)):.2f}")
        console.print(table)


if __name__ == "__main__":
    main()
