"""Pools under load: mixed shapes and models under a limit, sessions parked, files gone, processes killed.

    python benchmarks/pool_soak.py [--minutes 5] [--workers 2] [--limit 9MB]

Each worker is a process with a pool of three models that share most weights, and four threads that call them with
batches of 1 to 3,000 samples, one of them through `Pool.batched`. A call must end in the numbers of its own inputs,
in `MemoryLimit` where it is too large, or in `InputError` while the file of its model is gone: a worker takes one
away and puts it back, again and again. Every minute the oldest worker is killed (SIGKILL), and a new one takes its
place. Resident memory of the workers is taken twenty seconds after they begin and at their end; what they leave in
the temporary folder is counted.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from pool_models import feed, write
from soak import resident

from memoptc.ir.diagnostics import InputError
from memoptc.runtime import MemoryLimit, Pool, Session
from memoptc.runtime.admission import BatchAxis

BATCHES = (1, 2, 3, 5, 8, 21, 55, 144, 377, 900, 3000)
THREADS = 4
SETTLED = 20.0
"""Seconds after which a worker's memory is taken first."""


class Worker:
    """One process: its models, and what became of its calls."""

    def __init__(self, folder: Path, limit: str) -> None:
        self.paths = [write(folder, name, head) for head, name in enumerate("abc")]
        self.feeds = {n: feed(n) for n in BATCHES}  # made anew for each call, they would be what fills the heap
        self.right = {
            (p, n): Session(p, memory="stock").run(None, f)[0] for p in self.paths for n, f in self.feeds.items()
        }
        self.pool = Pool(limit, threads=1)
        self.sessions = {path: self.pool.open(path) for path in self.paths}
        axes = BatchAxis({"h0": 0}, {"h7": 0})
        self.batched = self.pool.batched(self.sessions[self.paths[0]], batch=axes)
        self.counts: Counter[str] = Counter()
        self.end = threading.Event()

    def call(self, path: Path, samples: int, *, batched: bool) -> str:
        """Call a model; say how that ended."""
        runner: Any = self.batched if batched else self.sessions[path]
        try:
            (found,) = runner.run(None, self.feeds[samples])
        except MemoryLimit:
            return "over the limit" if samples > BATCHES[-4] else "WRONGLY over the limit"
        except InputError:
            return "its file is gone" if path == self.paths[2] else "WRONGLY refused"
        close = np.allclose(found, self.right[path, samples], rtol=1e-4, atol=1e-5)
        return "right" if close else "WRONG numbers"

    def calls(self, seed: int) -> None:
        """Call until the end."""
        rng = random.Random(seed)
        while not self.end.is_set():
            batched = seed == 0
            path = self.paths[0] if batched else rng.choice(self.paths)
            outcome = self.call(path, rng.choice(BATCHES), batched=batched)
            self.counts[outcome] += 1

    def disturb(self) -> None:
        """Take the last model's weights away and put them back. Never cut short: pages that are mapped would end us."""
        data = self.paths[2].with_suffix(".data")
        away = data.with_suffix(".away")
        while not self.end.wait(0.5):
            data.rename(away)
            self.end.wait(0.5)
            away.rename(data)


def work(folder: Path, limit: str) -> None:
    """Run a worker until its input ends, telling of itself every second."""
    worker = Worker(folder, limit)
    threads = [threading.Thread(target=worker.calls, args=(seed,)) for seed in range(THREADS)]
    threads.append(threading.Thread(target=worker.disturb))
    for thread in threads:
        thread.start()
    begun, first = time.monotonic(), 0
    while os.getppid() != 1:
        time.sleep(1)
        if not first and time.monotonic() - begun > SETTLED:
            first = resident()
        told = {"counts": worker.counts, "first": first, "resident": resident(), "parked": worker.pool.parked}
        print(json.dumps(told), flush=True)


def start(folder: Path, limit: str, log: Path) -> subprocess.Popen[bytes]:
    """Start a worker."""
    folder.mkdir()
    command = [sys.executable, __file__, "--work", str(folder), "--limit", limit]
    with log.open("wb") as out:
        return subprocess.Popen(command, stdout=out, env=os.environ | {"TMPDIR": str(folder.parent / "tmp")})


@click.command(help=__doc__)
@click.option("--minutes", default=5.0, show_default=True)
@click.option("--workers", default=2, show_default=True)
@click.option("--limit", default="9MB", show_default=True, help="Of each pool.")
@click.option("--life", default=60.0, show_default=True, help="Seconds between two kills.")
@click.option("--work", "work_in", type=click.Path(path_type=Path), hidden=True)
def main(minutes: float, workers: int, limit: str, life: float, work_in: Path | None) -> None:
    """Run workers, kill them one after the other, and sum up."""
    if work_in is not None:
        work(work_in, limit)
        return
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "tmp").mkdir()
        live: list[subprocess.Popen[bytes]] = []
        logs: list[Path] = []
        end = time.monotonic() + 60 * minutes
        while time.monotonic() < end:
            while len(live) < workers:
                logs.append(root / f"{len(logs)}.log")
                live.append(start(root / str(len(logs)), limit, logs[-1]))
            time.sleep(min(life, max(0.0, end - time.monotonic())))
            ended = [p for p in live if p.poll() is not None]
            assert not ended, f"{len(ended)} workers ended by themselves"
            live.pop(0).send_signal(signal.SIGKILL)
        for process in live:
            process.kill()
            process.wait()
        counts: Counter[str] = Counter()
        growth, parked, curve = [], 0, []
        for log in logs:
            lines = [json.loads(t) for t in log.read_text().splitlines() if t.endswith("}")]
            if lines:
                counts.update(lines[-1]["counts"])
                parked += lines[-1]["parked"]
                growth += [lines[-1]["resident"] - lines[-1]["first"]] if lines[-1]["first"] else []
                curve = [round(line["resident"] / 1e6, 1) for line in lines[:: max(1, len(lines) // 10)]]
        left = sorted(path.name for path in (root / "tmp").iterdir())
    told = {"workers": len(logs), "calls": sum(counts.values()), "ends": counts, "parked": parked}
    told |= {
        "growth_MB": [round(g / 1e6, 2) for g in growth],
        "last_worker_MB": curve,
        "left_in_temporary_folder": left,
    }
    click.echo(json.dumps(told, indent=2))
    if any(kind.startswith("WRONG") for kind in counts):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
