"""One session under load: many threads, many calls of mixed shapes, limits hit, calls cancelled, forks, a sudden exit.

    python benchmarks/soak.py [--tier stock ...] [--calls 10000] [--threads 8] [--json]

Each call is of one of five kinds: right inputs, inputs that need more than the memory limit, inputs that the model does
not take, a call cancelled before it starts, and one cancelled on its way. It must end in the numbers of its own inputs
or in the error of its own kind. Resident memory (MB, Linux) is taken after a fifth of the calls and at the end; a fork
runs the session in the child; the process then ends while its threads still call. Each tier is a fresh process.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime as ort
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from native_models import network

from memoptc.ir.diagnostics import InputError
from memoptc.runtime.session import MemoryLimit, Session

TIERS = ("stock", "arena", "planned")
WIDTH, TOO_MANY = 64, 20_000
BATCHES = (1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233)
LIMIT = 8 << 20
KINDS = ("right", "over the limit", "refused", "cancelled", "cancelled on its way")
SHARES = (80, 4, 6, 4, 6)
FEW = 0.2
"""Share of the calls after which resident memory is taken for the first time."""


def resident() -> int:
    """Resident bytes of this process; 0 where that is not known."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


class Soak:
    """Calls of one session, and what came out of them."""

    def __init__(self, tier: str, calls: int) -> None:
        self.tier, self.left = tier, calls
        limit = None if tier == "stock" else LIMIT
        self.session = Session(network(WIDTH), memory=tier, memory_limit=limit, threads=1)  # type: ignore[arg-type]
        self.feeds = {b: np.random.default_rng(b).standard_normal((b, WIDTH)).astype(np.float32) for b in BATCHES}
        stock = Session(network(WIDTH), memory="stock", threads=1)
        self.expected = {b: stock.run(None, {"x": x})[0] for b, x in self.feeds.items()}
        self.large = np.zeros((TOO_MANY, WIDTH), np.float32)
        self.outcomes: Counter[str] = Counter()
        self.faults: list[str] = []
        self.lock = threading.Lock()

    def work(self, seed: int) -> None:
        """Call until none is left."""
        draw = random.Random(seed)
        while True:
            with self.lock:
                if self.left <= 0:
                    return
                self.left -= 1
            kind = draw.choices(KINDS, SHARES)[0]
            outcome = self.call(kind, draw)
            with self.lock:
                self.outcomes[f"{kind}: {outcome}"] += 1
                if outcome.startswith("wrong"):
                    self.faults.append(f"{kind}: {outcome}")

    def call(self, kind: str, draw: random.Random) -> str:
        """Make one call; gives how it ended."""
        batch = draw.choice(BATCHES)
        feed, options = {"x": self.feeds[batch]}, None
        if kind == "over the limit" and self.tier != "stock":
            feed = {"x": self.large}
        elif kind == "refused":
            feed = draw.choice([{"z": self.feeds[batch]}, {"x": self.feeds[batch][:, :7]}])
        elif kind.startswith("cancelled") and self.tier != "planned":  # the C interface takes no run options
            options = ort.RunOptions()
            options.terminate = kind == "cancelled"
        timer = None
        if options is not None and not options.terminate:
            timer = threading.Timer(draw.random() * 0.001, setattr, (options, "terminate", True))
            timer.start()
        try:
            found = self.session.run(None, feed, options)[0]
        except MemoryLimit:
            return "raised" if kind == "over the limit" else "wrong: MemoryLimit"
        except InputError as e:
            cancelled = "erminat" in str(e)
            expected = cancelled if options is not None else kind == "refused" and not cancelled
            return "raised" if expected else f"wrong: {e}"
        finally:
            if timer is not None:
                timer.join()
        if kind == "refused" or (options is not None and kind == "cancelled") or len(feed["x"]) == TOO_MANY:
            return "wrong: no error"
        return "numbers" if np.array_equal(found, self.expected[batch]) else "wrong: numbers"

    def run(self, threads: int) -> None:
        """Call from many threads until none is left."""
        workers = [threading.Thread(target=self.work, args=(i,)) for i in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    def forked(self) -> int:
        """Run in a child of a fork; gives its exit code, 0 for right numbers."""
        child = os.fork()
        if child == 0:
            same = np.array_equal(self.session.run(None, {"x": self.feeds[5]})[0], self.expected[5])
            os._exit(0 if same else 1)
        for _ in range(3000):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        os.kill(child, 9)
        os.waitpid(child, 0)
        return -9


def soak(tier: str, calls: int, threads: int) -> dict[str, Any]:
    """Load one session."""
    load = Soak(tier, int(calls * FEW))
    load.run(threads)
    first, start = resident(), time.perf_counter()
    load.left = calls - int(calls * FEW)
    load.run(threads)
    seconds = time.perf_counter() - start
    found = {
        "tier": tier,
        "outcomes": dict(sorted(load.outcomes.items())),
        "faults": load.faults[:5],
        "wrong": len(load.faults),
        "resident_bytes": [first, resident()],
        "calls_per_second": calls * (1 - FEW) / seconds,
        "forks": [load.forked() for _ in range(3)] if hasattr(os, "fork") else [],
    }
    load.left = 1 << 40
    for seed in range(threads):
        threading.Thread(target=load.work, args=(seed,), daemon=True).start()
    time.sleep(0.2)
    return found


@click.command(help=__doc__)
@click.option("--tier", "tiers", multiple=True, type=click.Choice(TIERS))
@click.option("--calls", default=10_000)
@click.option("--threads", default=8)
@click.option("--json", "as_json", is_flag=True, help="One line per tier.")
@click.option("--worker", hidden=True)
def main(tiers: tuple[str, ...], calls: int, threads: int, as_json: bool, worker: str | None) -> None:
    """Run the benchmark."""
    if worker:
        print(json.dumps(soak(worker, calls, threads)), flush=True)
        return
    table = Table("tier", "calls/s", "resident MB", "wrong", "forks", "exit", "outcomes", title=f"{calls} calls")
    for tier in tiers or TIERS:
        command = [sys.executable, __file__, "--worker", tier, "--calls", str(calls), "--threads", str(threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not done.stdout:
            raise SystemExit(f"{tier}: exit {done.returncode}\n{done.stderr[-2000:]}")
        found = json.loads(done.stdout) | {"exit": done.returncode}
        if as_json:
            print(json.dumps(found))
        resident_mb = " to ".join(f"{b / 1e6:.1f}" for b in found["resident_bytes"])
        outcomes = ", ".join(f"{k} {v}" for k, v in found["outcomes"].items())
        row = (found["wrong"], found["forks"], found["exit"])
        table.add_row(tier, f"{found['calls_per_second']:.0f}", resident_mb, *map(str, row), outcomes)
    if not as_json:
        Console(width=160).print(table)


if __name__ == "__main__":
    main()
