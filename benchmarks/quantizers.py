"""Small numbers, side by side: memoptc against other quantizers of ONNX models, on the same data.

    python benchmarks/quantizers.py FILE.jsonl [--only NAME ...] [--tool TOOL ...] [--peers PYTHON] [--limit 300]
    python benchmarks/quantizers.py FILE.jsonl --summary > table.md

One line of JSON per model and tool is appended to FILE as it is known; what FILE has is not run again, so that it can
be run in parts, and killed. Every float model of the zoo that has real samples takes part. All tools calibrate on the
same samples (the first ones, at most half of those that there are); signal to difference against the original (of the
output that has the worst) and the task's figure are taken on the others, which no tool has seen. memoptc is called as
users call it, `-O2` with its gate on, so that its time holds verification and measuring; peers as their documentation
shows (`benchmarks/quantizer_tools.py`), with the interpreter `--peers`. Each runs in a process of its own and is ended
after `--limit` seconds. `took` is its time, `peak` its largest process; rows of ours carry their commit and the load.
Need and latency are those of fresh processes in onnxruntime with its own options on one thread, original and candidate
in turns.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime as ort

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import zoo

from memoptc.ir.diagnostics import MemoptcError
from memoptc.runtime.measure import measure
from memoptc.runtime.options import RunOptions

Feed = dict[str, Any]
Line = dict[str, Any]

OURS: dict[str, tuple[str, ...]] = {
    "float16": ("--target", "float16"),
    "int8": ("--target", "int8", "--calibration", "DATA"),
    "int8, no data": ("--target", "int8"),
    "mixed": ("--target", "mixed", "--calibration", "DATA"),
    "int4": ("--target", "int4", "--calibration", "DATA"),
    "int4, no data": ("--target", "int4"),
}
PEERS = Path(__file__).with_name("quantizer_tools.py")
LOWER = ("perplexity", "bits_per_char")
"""Figures of which less is better."""
FIGURE, DECIBEL, BYTES, NODES = 0.01, 0.5, 1.03, 16e3
"""What counts as alike: a part of the task's figure, decibels, ratio of files, or as many bytes of nodes."""


def data_of(name: str, most: int) -> tuple[list[Feed], list[Feed], Sequence[Any] | None]:
    """Give the samples to calibrate on, and those to judge on with their labels."""
    assert zoo.ZOO is not None
    feeds, labels = zoo.ZOO.samples(name)
    count = max(1, min(most, len(feeds) // 2)) // 2 * 2 or 1  # pairs of sentences stay together
    rest = feeds[count:] or feeds
    return feeds[:count], rest, None if labels is None else labels[-len(rest) :]


def figure_of(name: str, model: ort.InferenceSession, feeds: list[Feed], labels: Sequence[Any] | None) -> Line:
    """The task's figure on some samples, as `{name: value}`; empty where the model has none."""
    assert zoo.ZOO is not None
    whole = zoo.ZOO.samples
    try:
        zoo.ZOO.samples = lambda name, limit=None: (feeds, labels)
        found = zoo.ZOO.quality(name, lambda feed: model.run(None, feed))
    finally:
        zoo.ZOO.samples = whole
    return {} if found is None else dict([next(iter(found.items()))])


def session(path: Path) -> ort.InferenceSession:
    """Load in default options, on one thread."""
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def decibels(original: ort.InferenceSession, other: ort.InferenceSession, feeds: list[Feed]) -> float:
    """Signal to difference of the float output that has the worst; NaN where none has any signal."""
    sums: dict[int, list[float]] = {}
    for feed in feeds:
        for index, (a, b) in enumerate(zip(original.run(None, feed), other.run(None, feed), strict=True)):
            if not isinstance(a, np.ndarray) or a.dtype.kind != "f":
                continue
            if a.shape != b.shape or not np.isfinite(b).all():
                return -math.inf
            total = sums.setdefault(index, [0.0, 0.0])
            total[0] += float(np.square(a, dtype=np.float64).sum())
            total[1] += float(np.square(np.subtract(a, b, dtype=np.float64)).sum())
    return min((10 * math.log10(s / e) if e else math.inf for s, e in sums.values() if s), default=math.nan)


def size_of(path: Path) -> int:
    """Bytes of a model and its external data."""
    return sum(f.stat().st_size for f in path.parent.glob(f"{path.name}*") if f.suffix in (".onnx", ".data"))


def is_float(path: Path) -> bool:
    """Whether a model has no codes yet."""
    model = onnx.load(path, load_external_data=False)
    return not any(node.op_type == "DequantizeLinear" for node in model.graph.node)


def run_limited(command: Sequence[str], folder: Path, limit: float) -> Line:
    """Run a process with all that it starts; give its time, its peak, and why it failed, if so."""
    with (folder / "log").open("w+") as log:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)
        done = 0
        try:
            while not done and time.perf_counter() - start < limit:
                time.sleep(0.05)
                done, status, usage = os.wait4(process.pid, os.WNOHANG)
        finally:  # when this process is ended, too
            if not done:
                os.killpg(process.pid, signal.SIGKILL)
                os.wait4(process.pid, 0)
        took = time.perf_counter() - start
        if not done:
            return {"fault": f"not done in {limit:.0f} s"}
        process.returncode = os.waitstatus_to_exitcode(status)
        line: Line = {"took_s": round(took, 2), "peak_mb": round(usage.ru_maxrss * 1024 / 1e6)}
        if process.returncode:
            log.seek(0)
            said = [text.strip() for text in log.read().splitlines() if text.strip()]
            told = next((text for text in said if text.startswith("Error")), said[-1] if said else "")
            line["fault"] = f"exit code {process.returncode}: {told[:200]}"
        return line


def one(name: str, tool: str, peers: str, folder: Path, limit: float, seconds: float, calibration: int) -> Line:
    """Quantize one model with one tool, and measure."""
    assert zoo.ZOO is not None
    source, output = Path(zoo.ZOO.path(name)), folder / f"{name}.small.onnx"
    first, rest, labels = data_of(name, calibration)
    data = folder / "data"
    data.mkdir()
    for index, feed in enumerate(first):
        np.savez(data / f"{index:04d}.npz", **feed)
    if tool in OURS:
        asked = [str(data) if word == "DATA" else word for word in OURS[tool]]
        command = [sys.executable, "-m", "memoptc", str(source), "-O2", "-q", "-o", str(output), *asked]
    else:
        command = [peers, str(PEERS), tool, str(source), str(output), str(data)]
    line = {"model": name, "tool": tool, **conditions(tool), **run_limited(command, folder, limit)}
    if "fault" in line:
        return line
    before = session(source)
    try:
        after = session(output)
        line["sqnr_db"] = round(decibels(before, after, rest[:64]), 2)
    except Exception as e:
        told = " ".join(str(e).replace(f"{folder}/", "").split())
        return line | {"fault": f"does not run: {told[:200]}"}
    line["before"], line["after"] = (figure_of(name, loaded, rest, labels) for loaded in (before, after))
    line["bytes"], line["bytes_before"] = size_of(output), size_of(source)
    del before, after
    found = measure([source, output], rest[0], options=RunOptions(threads=1), seconds=seconds)
    line["need_mb"], line["need_before_mb"] = (round(m.need_bytes / 1e6, 2) for m in reversed(found))
    line["ms"], line["ms_before"] = (round(m.latency_ms["p50"], 4) for m in reversed(found))
    return line


def conditions(tool: str) -> Line:
    """What a figure depends on beside model and tool: the commit, of ours, and how many processes wanted a core."""
    found: Line = {"load": round(os.getloadavg()[0], 1), "cores": os.cpu_count()}
    if tool in OURS:
        asked = ["git", "-C", str(Path(__file__).resolve().parent), "describe", "--always", "--dirty"]
        said = subprocess.run(asked, capture_output=True, text=True, check=False)
        found["commit"] = said.stdout.strip() or "unknown"
    return found


def tools_here(peers: str) -> list[str]:
    """All of ours, and the peers that an interpreter has."""
    listed = subprocess.run([peers, str(PEERS)], capture_output=True, text=True, check=True)
    return [*OURS, *listed.stdout.splitlines()]


def lines_of(file: Path) -> list[Line]:
    """What is known: the last line of each model and tool."""
    if not file.exists():
        return []
    lines = [json.loads(text) for text in file.read_text().splitlines()]
    return list({(line["model"], line["tool"]): line for line in lines}.values())


def gain(line: Line) -> float:
    """How good an accuracy is, more being better: the task's figure if there is one, else decibels."""
    for key, value in line["after"].items():
        return -value if key in LOWER else value
    found: float = line["sqnr_db"]
    return found


def margin(line: Line) -> float:
    """By how much accuracies may differ and count as alike."""
    return FIGURE * abs(gain(line)) if line["after"] else DECIBEL


def beaten(lines: Sequence[Line]) -> Iterator[str]:
    """Peers of one model that nothing of ours reaches, in accuracy at no more bytes or in bytes at all.

    What has more noise than signal is no form of the model.
    """
    ours = [line for line in lines if line["tool"] in OURS and "fault" not in line]
    for peer in lines:
        if peer["tool"] in OURS or "fault" in peer or peer["sqnr_db"] <= 0:
            continue
        if peer["bytes"] > 0.9 * peer["bytes_before"]:
            continue
        fitting = [line for line in ours if line["bytes"] <= max(BYTES * peer["bytes"], peer["bytes"] + NODES)]
        if not fitting:
            part = peer["bytes"] / peer["bytes_before"]
            yield f"{peer['model']}: {peer['tool']} makes {part:.3f} of the file ({shown(peer)}), none of ours does"
        elif max(map(gain, fitting)) < gain(peer) - margin(peer):
            best = max(fitting, key=gain)
            yield (
                f"{peer['model']}: {peer['tool']} is more exact ({shown(peer)}) than {best['tool']} ({shown(best)}), "
                f"at {peer['bytes'] / best['bytes']:.2f} of its bytes"
            )


def slowest(lines: Sequence[Line]) -> Iterator[str]:
    """Forms of ours that run slower, or need more, than the original."""
    for line in lines:
        if line["tool"] in OURS and "fault" not in line:
            slower, larger = line["ms"] / line["ms_before"], line["need_mb"] / line["need_before_mb"]
            if slower > 1.1:
                yield f"{line['model']}: {line['tool']} takes {slower:.2f} times the original's time"
            if larger > 1.02:
                yield f"{line['model']}: {line['tool']} needs {larger:.2f} times the original's memory"


def shown(line: Line) -> str:
    """An accuracy as text."""
    for key, value in line["after"].items():
        return f"{key} {value:.4g}"
    return f"{line['sqnr_db']:.1f} dB"


def original_row(name: str, line: Line | None) -> str:
    """The row of a model as it is; its figures stand in the lines of tools whose results were measured."""
    if line is None:
        return f"| **{name}** | float32 | | | | | | | |"
    accuracy = "".join(f"{key} {value:.4f}" for key, value in line["before"].items())
    return (
        f"| **{name}** | float32 | {accuracy} | | {line['bytes_before'] / 1e6:.2f} MB "
        f"| {line['need_before_mb']:.1f} | {line['ms_before']:.3g} | | |"
    )


def marks_of(lines: Sequence[Line]) -> dict[str, str]:
    """A mark for each commit that rows of ours were measured on."""
    commits = dict.fromkeys(line["commit"] for line in lines if "commit" in line)
    return dict(zip(commits, "¹²³⁴⁵⁶⁷⁸⁹", strict=False))


def explained(lines: Sequence[Line]) -> Iterator[str]:
    """Say what the marks mean, and under which load latencies and times were taken."""
    for commit, mark in marks_of(lines).items():
        loads = [line["load"] for line in lines if line.get("commit") == commit and "load" in line]
        cores = max(line.get("cores", 0) for line in lines if line.get("commit") == commit)
        under = f", with {min(loads):.0f} to {max(loads):.0f} processes wanting one of {cores} cores" if loads else ""
        yield f"{mark} {commit}{under}"


def table(lines: Sequence[Line]) -> Iterator[str]:
    """Give the lines of one table of Markdown, by model."""
    marks = marks_of(lines)
    yield "| model | tool | accuracy | SQNR dB | file | need MB | p50 ms | took s | peak MB |"
    yield "|---|---|---|---:|---:|---:|---:|---:|---:|"
    measured = {line["model"]: line for line in lines if "ms_before" in line}
    seen = set()
    for line in lines:
        if line["model"] not in seen:
            seen.add(line["model"])
            yield original_row(line["model"], measured.get(line["model"]))
        tool = f"{line['tool']} {marks.get(line.get('commit', ''), '')}".strip()
        cost = f"{line.get('took_s', 0):.1f} | {line.get('peak_mb', 0)}" if "took_s" in line else " | "
        if "fault" in line:
            yield f"| | {tool} | {line['fault'].replace('|', '/')[:70]} | | | | | {cost} |"
            continue
        accuracy = "".join(f"{value:.4f}" for value in line["after"].values())
        yield (
            f"| | {tool} | {accuracy} | {line['sqnr_db']:.1f} | {line['bytes'] / line['bytes_before']:.3f} "
            f"| {line['need_mb'] / line['need_before_mb']:.2f} | {line['ms'] / line['ms_before']:.2f} | {cost} |"
        )


def summary(lines: Sequence[Line]) -> Iterator[str]:
    """Give the document: the table, who wins where, and what is slower than the original."""
    by_model: dict[str, list[Line]] = {}
    known = [*OURS, *dict.fromkeys(line["tool"] for line in lines if line["tool"] not in OURS)]
    for line in sorted(lines, key=lambda line: (line["model"], known.index(line["tool"]))):
        by_model.setdefault(line["model"], []).append(line)
    yield from table([line for found in by_model.values() for line in found])
    yield "\nOurs on commit " + "; ".join(explained(lines)) + "."
    for title, judge in (("A peer wins", beaten), ("Worse than the original", slowest)):
        told = [text for found in by_model.values() for text in judge(found)]
        yield f"\n**{title}**: {len(told)}\n"
        yield from (f"* {text}" for text in told)


@click.command(help=__doc__)
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--only", multiple=True, help="Models; all of the zoo when not given.")
@click.option("--tool", multiple=True, help="Tools; all that are installed when not given.")
@click.option("--peers", default=sys.executable, help="Interpreter that has the peers.")
@click.option("--limit", default=300.0, show_default=True, help="Seconds after which a tool is ended.")
@click.option("--seconds", default=2.0, show_default=True, help="How long latency is measured.")
@click.option("--calibration", default=32, show_default=True, help="Samples to calibrate on, at most.")
@click.option("--summary", "only_summary", is_flag=True, help="Print what FILE has.")
def main(
    file: Path,
    only: tuple[str, ...],
    tool: tuple[str, ...],
    peers: str,
    limit: float,
    seconds: float,
    calibration: int,
    only_summary: bool,
) -> None:
    """Run what FILE lacks, or print it."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    if only_summary:
        click.echo("\n".join(summary(lines_of(file))))
        return
    if zoo.ZOO is None:
        raise click.ClickException("There is no zoo of models; set MEMOPTC_ZOO to its folder.")
    known: Mapping[tuple[str, str], Line] = {(line["model"], line["tool"]): line for line in lines_of(file)}
    for name in only or zoo.NAMES:
        if not zoo.ZOO.samples(name, 1)[0] or not is_float(Path(zoo.ZOO.path(name))):
            continue
        for each in tool or tools_here(peers):
            if (name, each) in known:
                continue
            with tempfile.TemporaryDirectory() as folder:
                try:
                    line = one(name, each, peers, Path(folder), limit, seconds, calibration)
                except MemoptcError as e:
                    line = {"model": name, "tool": each, "fault": f"not measured: {e}"[:200]}
            with file.open("a") as out:
                out.write(json.dumps(line) + "\n")
            click.echo(f"{name} {each}: {line.get('fault') or shown(line)}", err=True)


if __name__ == "__main__":
    main()
