"""Compiles of a study in several processes, or on the workers of a Dask cluster; measuring stays on this machine.

Workers need memoptc, and nothing else of this machine: model and data go to them as bytes, stored once by their hash.
"""

from __future__ import annotations

import itertools
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memoptc.digest import data_files
from memoptc.ir.diagnostics import InputError
from memoptc.ir.onnx_io import read_onnx
from memoptc.runtime.child import environment, python
from memoptc.source import named_files

REPORT = "report.json"


@dataclass(frozen=True)
class Job:
    """One compile.

    Args:
        words: Of the command line, with the output's name behind `-o`.
        output: Where the model belongs; files beside it belong beside it.
        report: Where the report belongs.
    """

    words: Sequence[str]
    output: Path
    report: Path


def run_here(words: Sequence[str], most: float, folder: Path | None = None) -> str:
    """Run a compile in a process of its own; the reason when it fails."""
    command = python("-m", "memoptc", *words)
    how: dict[str, Any] = {"encoding": "utf-8", "errors": "replace", "cwd": folder, "env": environment()}
    try:
        done = subprocess.run(command, capture_output=True, timeout=most, check=False, **how)
    except subprocess.TimeoutExpired:
        return f"took more than {most:g} s"
    lines = [line for line in done.stderr.splitlines() if line.startswith("memoptc:")] or done.stderr.splitlines()[-1:]
    return "" if done.returncode == 0 else f"exit code {done.returncode}: {' '.join(lines).removeprefix('memoptc: ')}"


def arguments(words: Sequence[str], output: Path, report: Path) -> list[str]:
    """Give the words of a compile that writes there."""
    return [*words, "-o", str(output), "--report", str(report), "--keep-worst", "-q", "--config", "none"]


def run_all(
    jobs: Sequence[Job], model: Path, processes: int, cluster: str, most: float, done: Callable[[Job, str], None]
) -> None:
    """Run compiles at the same time.

    Args:
        jobs: The compiles.
        model: The model that all of them are of.
        processes: How many at a time on this machine.
        cluster: Address of a Dask scheduler instead; `""` for this machine.
        most: Seconds after which each is stopped.
        done: Called with each job, and why it failed (`""` when it did not), as it ends.

    Raises:
        InputError: the cluster cannot be reached, or Dask is not installed.
    """
    if cluster:
        _on_cluster(jobs, model, cluster, most, done)
        return
    pool = ThreadPoolExecutor(max(1, processes))
    try:
        found = pool.map(lambda job: run_here(arguments(job.words, job.output, job.report), most), jobs)
        for job, failure in zip(jobs, found, strict=True):
            done(job, failure)
    finally:
        pool.shutdown(cancel_futures=True)


def _on_cluster(jobs: Sequence[Job], model: Path, cluster: str, most: float, done: Callable[[Job, str], None]) -> None:
    try:
        from distributed import Client
    except ImportError:
        raise InputError(
            "A cluster needs Dask, which is not installed.", hint="pip install 'memoptc[cluster]'"
        ) from None
    try:
        client: Any = Client(cluster, timeout="10s")
    except (OSError, ValueError) as error:
        raise InputError(f"No Dask scheduler answers at {cluster}: {error}.", hint="Check --cluster.") from None
    with client:
        given, names = shipped([job.words for job in jobs], model)
        files = {name: client.scatter(file.read_bytes(), hash=True) for name, file in given.items()}
        futures = [
            client.submit(compile_there, words, files, job.output.name, most, pure=False)
            for job, words in zip(jobs, names, strict=True)
        ]
        for job, future in zip(jobs, futures, strict=True):
            made: dict[str, bytes] = {}
            try:
                failure, made = future.result()
            except Exception as error:  # the worker has gone, and Dask has tried others
                failure = f"the cluster gave nothing back: {type(error).__name__}: {error}"
            for name, content in made.items():
                (job.report if name == REPORT else job.output.with_name(name)).write_bytes(content)
            done(job, failure)


def shipped(words: Sequence[Sequence[str]], model: Path) -> tuple[dict[str, Path], list[list[str]]]:
    """Find the files that compiles read, and name them as they lie on a worker.

    Args:
        words: Of the command lines, the model's path first in each.
        model: The model.

    Returns:
        Each file by its name there, and the command lines with these names.
    """
    own = named_files(read_onnx(model, lazy=True), model)
    files = {f"0/{name}": file for name, file in own.items()}
    places: dict[str, str] = {}

    def place(word: str) -> str:
        path = Path(word)
        if word not in places and path.exists():
            places[word] = f"{len(places) + 1}/{path.resolve().name}"
            for file in data_files(word) or [path]:
                files[f"{places[word]}/{file.name}" if path.is_dir() else places[word]] = file
        return places.get(word, word)

    found = [
        [f"0/{model.name}", *(place(w) if flag in _FILES else w for flag, w in itertools.pairwise(line))]
        for line in words
    ]
    return files, found


_FILES = ("--calibration", "--validation", "--plugin")
"""Options of which a value may be a path."""


def compile_there(
    words: Sequence[str], files: Mapping[str, bytes], output: str, most: float
) -> tuple[str, dict[str, bytes]]:
    """Compile on a worker.

    Args:
        words: Of the command line; paths are names in `files`.
        files: Contents by name.
        output: Name of the model to write.
        most: Seconds after which it is stopped.

    Returns:
        Why it failed, and the files that it wrote by name; the report is called `report.json`.
    """
    with tempfile.TemporaryDirectory(prefix="memoptc-study-") as name:
        folder = Path(name)
        for file, content in files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(content)
        (folder / "made").mkdir()
        made = folder / "made"
        asked = arguments(words, Path("made") / output, Path("made") / REPORT)
        failure = run_here(asked, most, folder)
        return failure, {file.name: file.read_bytes() for file in made.iterdir()}
