"""Run a study: compile every change in a process of its own, measure all in turns, judge, write, resume."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shlex
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import onnxruntime

from memoptc.digest import data_files, digest
from memoptc.ir.diagnostics import InputError, MemoptcError
from memoptc.ir.files import TemporaryFolder, atomic_write
from memoptc.ir.onnx_io import read_onnx
from memoptc.option_fields import to_argv
from memoptc.options import Options
from memoptc.report.facts import stats_by_pass
from memoptc.report.study import FILES, render
from memoptc.runtime.compare import difference
from memoptc.runtime.measure import Measured, Need, measure, measure_need
from memoptc.runtime.measuring_process import InSession, Way
from memoptc.runtime.options import Feed, RunOptions
from memoptc.runtime.session import Session
from memoptc.runtime.slowdown import Slowdown
from memoptc.samples import Inputs
from memoptc.source import files_of, load
from memoptc.steps.reporting import environment
from memoptc.steps.run import IDLE
from memoptc.study.changes import Asked, Change, changes
from memoptc.study.elsewhere import Job, run_all
from memoptc.study.fault import failure_check
from memoptc.study.findings import Row, Study

Say = Callable[[str, float | None], None]

STUCK = 2.0
"""Times its time limit after which a compile is stopped: what nothing goes without may take longer."""


def study(model: Path, folder: Path, asked: Asked, say: Say = lambda _, __: None) -> Study:
    """Compare the untouched model with one change at a time and in sequence; write all of it into a folder.

    The folder appears when everything is in it. Until then the work lies in `FOLDER.partial`, by hashes of what it
    depends on: the same study, started again, goes on there.

    Args:
        model: The file.
        folder: What to write: `study.md`, `.json`, `.html`, and the models and reports of every change.
        asked: What to try, and how long to measure.
        say: Progress.

    Raises:
        InputError: the model or the data cannot be used, or the folder holds something else.
    """
    key = _key(model, asked)
    if folder.exists():
        return _finished(folder, key)
    tried = changes(asked)
    partial = folder.with_name(f"{folder.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    with TemporaryFolder("memoptc-study-") as scratch:
        source = load(model, Path(scratch))
        options = Options(
            calibration=asked.calibration,
            validation=asked.validation,
            dims=dict(asked.dims),
            jobs=asked.threads or None,
        )
        inputs = Inputs(source, options)
        feed = inputs.feed
        compiled: dict[tuple[str, ...], Row] = {}
        rows = [Row("control", "control", "onnxruntime", file_bytes=source.file_bytes)]
        _compile_missing(tried, model, partial, key, asked, say)
        for change in tried:
            rows.append(_row(change, model, partial, asked, compiled, source.file_bytes))
        say("measuring", 0.6)
        _measure(rows, source.path, feed, partial, asked, key)
        say("planting a fault", 0.97)
        found = Study(
            model={
                "name": model.name,
                "sha256": digest(files_of(source.graph, source.path)),
                "bytes": source.file_bytes,
            },
            deployment=asked.deployment or f"onnxruntime on CPU ({platform.machine()}, {os.cpu_count()} processors)",
            environment={**environment(options), "sizes": dict(inputs.dims)},
            command=_command(model, folder, asked),
            data={
                Path(d).name: digest([Path(d)])
                for d in (asked.calibration, asked.validation)
                if d and Path(d).is_file()
            },
            failure_check=failure_check(source.path, source.file_bytes, asked, Path(scratch)),
            rows=rows,
            slowdown=asked.slowdown,
            repeats=asked.repeats,
        )
    found.judge()
    for name in FILES:
        atomic_write(partial / name, render(found, name).encode())
    for spare in (*partial.glob("*.done"), *partial.glob("*.failure"), partial / "measured.json"):
        spare.unlink()
    atomic_write(partial / "key", key.encode())
    os.rename(partial, folder)
    return found


def _finished(folder: Path, key: str) -> Study:
    """Read a study that is complete.

    Raises:
        InputError: the folder holds something else.
    """
    try:
        if (folder / "key").read_text("utf-8") == key:
            content = json.loads((folder / "study.json").read_text("utf-8"))
            return Study(**{**content, "rows": [Row(**row) for row in content["rows"]]})
    except (OSError, ValueError, TypeError):
        pass
    raise InputError(
        f"{folder} is there already, and is not this study.", hint="Name another folder with -o, or remove it."
    )


def _key(model: Path, asked: Asked) -> str:
    """Hash everything that a study depends on."""
    from memoptc.version import __version__

    if not model.is_file():
        raise InputError(f"There is no file {model}.", hint="Name an .onnx file.")
    files = files_of(read_onnx(model, lazy=True), model)
    files += [*data_files(asked.calibration), *data_files(asked.validation)]
    if asked.cascade is not None:
        files += files_of(read_onnx(asked.cascade, lazy=True), asked.cascade)
    files += [path for plugin in asked.plugins if (path := Path(plugin)).is_file()]
    same = replace(asked, processes=1, cluster="")  # where compiles run changes no figure
    parts = json.dumps([__version__, environment(Options()), asdict(same)], sort_keys=True, default=str)
    return hashlib.sha256(parts.encode() + digest(files).encode()).hexdigest()


def _command(model: Path, folder: Path, asked: Asked) -> str:
    words = ["memoptc", "study", str(model), "-o", str(folder), *asked.common_arguments()]
    words += to_argv(replace(asked, only=(), processes=1, cluster=""))  # where compiles run changes no figure
    return shlex.join([*words, *(f"--only={name}" for name in asked.only)])


def _row(
    change: Change,
    model: Path,
    partial: Path,
    asked: Asked,
    compiled: dict[tuple[str, ...], Row],
    file_bytes: int,
) -> Row:
    """Compile a change; the same model in another runtime is compiled once."""
    runtime = "Session" if change.session else "onnxruntime"
    if change.arguments is None:
        return Row(change.name, change.kind, runtime, file_bytes=file_bytes)
    if change.arguments not in compiled:
        compiled[change.arguments] = _compiled(change, model, partial, asked)
    return replace(compiled[change.arguments], name=change.name, kind=change.kind, runtime=runtime)


def _compile_missing(tried: Sequence[Change], model: Path, partial: Path, key: str, asked: Asked, say: Say) -> None:
    """Compile what an interrupted study did not leave behind, each in a process of its own."""
    jobs: list[Job] = []
    first = {change.arguments: change for change in reversed(tried)}  # rows may differ by the runtime only
    for arguments, change in reversed(first.items()):
        output, report, mark = _files(change, partial)
        if arguments is not None and not (mark.exists() and mark.read_text("utf-8") == key and _lasts(mark)):
            jobs.append(Job([str(model), *arguments, *asked.shared()], output, report))

    ended = 0

    def done(job: Job, failure: str) -> None:
        nonlocal ended
        ended += 1
        atomic_write(job.output.with_suffix(".failure"), failure.encode())
        atomic_write(job.output.with_suffix(".done"), key.encode())
        say(f"compiled: {job.output.stem}", 0.6 * ended / len(jobs))

    say("compiling", 0.0)
    run_all(jobs, model, asked.processes, asked.cluster, STUCK * asked.time_limit, done)


def _lasts(mark: Path) -> bool:
    """False for a compile that ended by a fault or was killed: the study that goes on tries it again."""
    failure = mark.with_suffix(".failure").read_text("utf-8")
    return re.match(r"exit code (?![234]\b)", failure) is None


def _files(change: Change, partial: Path) -> tuple[Path, Path, Path]:
    """Give the files of a change: its model, its report, and the mark that it is done."""
    stem = "-".join(re.findall(r"\w+", change.name))
    return partial / f"{stem}.onnx", partial / f"{stem}.report.json", partial / f"{stem}.done"


def _compiled(change: Change, model: Path, partial: Path, asked: Asked) -> Row:
    """Read what came out of a compile."""
    assert change.arguments is not None
    output, report, mark = _files(change, partial)
    words = [str(model), *change.arguments, *asked.shared(), "-o", output.name]
    row = Row(change.name, change.kind, "onnxruntime", shlex.join(["memoptc", *words]))
    row.failure = mark.with_suffix(".failure").read_text("utf-8")
    if output.exists() and report.exists():
        row.file, row.sha256 = output.name, digest([output])
        _read(row, json.loads(report.read_text("utf-8")))
    elif not row.failure:
        row.failure = "nothing was written"
    return row


CHOSEN_BY_DATA = ("prune-tokens", "early-exit", "cascade", "feature-statistics")
"""Passes whose decisions are results that a reader of the table asks for."""


def _read(row: Row, report: dict[str, Any]) -> None:
    """Take a row's figures from the report of its compile."""
    proof = report["verification"]
    row.file_bytes = report["candidate"]["file_bytes"]
    row.checked = {k: proof.get(k) for k in ("inputs", "samples", "mode", "passed", "bit_exact")}
    numbers = [o for o in proof.get("outputs", []) if isinstance(o.get("max_abs"), int | float)]
    row.max_abs = max((o["max_abs"] for o in numbers), default=None)
    ratios = [o["sqnr_db"] for o in numbers if isinstance(o.get("sqnr_db"), int | float)]
    row.sqnr_db = min(ratios, default=None)
    row.accuracy = report["accuracy"] or None
    row.worst_example = proof.get("worst_sample")
    row.flipped = sorted({number for o in numbers for number in o.get("flipped", ())})
    row.unchanged = [w for w in report["warnings"] if IDLE in w]
    row.decided = [f"{d['what']} ({d['why']})" for d in report["decisions"] if d["step"] in CHOSEN_BY_DATA]
    did = stats_by_pass((p["name"], p["stats"]) for p in report["passes"])
    row.passes = {name: stats for name, stats in did.items() if stats}
    if proof.get("passed") is False and not row.failure:
        row.failure = f"outputs differ by more than allowed: {proof.get('worst') or 'see its report'}"


def _measure(rows: Sequence[Row], original: Path, feed: Feed, partial: Path, asked: Asked, key: str) -> None:
    """Measure all rows against each other; a process that fails is a row that says so."""
    kept = partial / "measured.json"
    cases: list[tuple[Row, Path, Way]] = []
    needs: dict[str, list[Need]] = {}
    for row in rows:
        if row.file is not None or not row.command:
            cases.append((row, original if row.file is None else partial / row.file, _way(row, asked.threads)))
    if kept.exists():
        content = json.loads(kept.read_text("utf-8"))
        if content.pop("key") == key:
            for row, *_ in cases:
                for name, value in content.get(row.name, {}).items():
                    setattr(row, name, value)
            return
    for _ in range(asked.repeats):
        for row, path, way in cases:
            _need_again(needs, row, path, way, feed)
    cases = [case for case in cases if len(needs.get(case[0].name, ())) == asked.repeats]
    found = measure(
        [path for _, path, _ in cases],
        feed,
        options=[way for *_, way in cases],
        seconds=asked.seconds,
        needs=[needs[row.name][0] for row, *_ in cases],
    )
    for (row, path, _), measured in zip(cases, found, strict=True):
        _fill(row, needs[row.name], measured, found[0])
        if row.runtime == "Session":
            _compare_session(row, path, feed)
    names = (
        "checked",
        "max_abs",
        "need_bytes",
        "anonymous_bytes",
        "latency_ms",
        "slowdown",
        "throughput_per_s",
        "runs",
        "failure",
    )
    content = {row.name: {name: getattr(row, name) for name in names} for row in rows}
    atomic_write(kept, json.dumps({**content, "key": key}).encode())


def _need_again(needs: dict[str, list[Need]], row: Row, path: Path, way: Way, feed: Feed) -> None:
    try:
        needs.setdefault(row.name, []).append(measure_need(path, feed, options=way))
    except MemoptcError as problem:
        row.failure = row.failure or problem.message
        if row.kind == "control":
            raise


def _compare_session(row: Row, path: Path, feed: Feed) -> None:
    """Run a model in `Session` and in onnxruntime as it comes: what differs there, no compile has compared."""
    with Session(path) as session:
        ours = session.run(None, feed)
    theirs = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feed)
    gaps = [difference(a, b) for a, b in zip(theirs, ours, strict=True)]
    same = all(gap.exact for gap in gaps)
    if not row.command:  # the original itself: this is all that its outputs are judged by
        row.checked = {"inputs": "measuring", "samples": 1, "passed": same, "bit_exact": same}
        row.max_abs = max((gap.max_abs for gap in gaps), default=None)
    else:
        row.checked = {**row.checked, "bit_exact": same and bool(row.checked.get("bit_exact")), "session_exact": same}


def _fill(row: Row, needs: Sequence[Need], measured: Measured, control: Measured) -> None:
    sizes = [need.need_bytes for need in needs]
    row.need_bytes = {"median": round(statistics.median(sizes)), "least": min(sizes), "most": max(sizes)}
    row.anonymous_bytes = needs[0].anonymous_bytes
    row.latency_ms = measured.latency_ms
    row.slowdown = vars(Slowdown.of(control.turns_ms, measured.turns_ms)).copy()
    row.throughput_per_s, row.runs = measured.throughput_per_s, measured.runs


def _way(row: Row, threads: int) -> Way:
    if row.runtime == "Session":
        return InSession(None, {"threads": threads} if threads else {})
    return RunOptions(threads=threads)
