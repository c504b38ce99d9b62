"""8-bit integers, side by side: memoptc against other quantizers of ONNX models.

    python benchmarks/quantization.py [--only NAME ...] [--seconds 1.0] [--calibration 32] > table.md

Every float model of the zoo that has real samples. All tools calibrate on the same samples (the first ones, at most
half of those that there are); signal to difference against the original (of the worst output), cosine and the task
figure are measured on the others, or on all where there are labels. Memory and latency are measured in fresh processes
on one thread with onnxruntime's own options, runs of all candidates in turns (`memoptc.runtime.measure`): the load peak
over the interpreter, the run peak over the loaded model.

onnxruntime's static form has its own pre-processing (`quant_pre_process`) and default settings; onnxsim's static and
weight-only forms are simplified afterwards, which takes the float weights out; NNCF (`nncf.quantize`, its default
preset) and Intel's quantizer for ONNX (`onnx-neural-compressor`, static; neural-compressor itself has no ONNX front end
in version 3) are called on the model as it is. Tools that are not installed are left out, and named above the table.
Models that a tool leaves in float (over nine tenths of the bytes) do not count in the means against it. The table is
Markdown, on stdout; what fails is told in its place.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime as ort

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import zoo

from memoptc.api import compile_file
from memoptc.runtime.measure import measure
from memoptc.runtime.options import RunOptions

Feed = dict[str, Any]


class Reader:
    """Samples in the form that onnxruntime's calibration takes."""

    def __init__(self, feeds: list[Feed]) -> None:
        self.feeds = feeds
        self.rewind()

    def get_next(self) -> Feed | None:
        """Give the next sample."""
        return next(self._rest, None)

    def rewind(self) -> None:
        """Begin again."""
        self._rest = iter(self.feeds)


def session(path: Path) -> ort.InferenceSession:
    """Load with default optimizations on one thread."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def static(source: Path, output: Path, feeds: list[Feed], folder: Path) -> None:
    """onnxruntime's static form; without pre-processing where that fails."""
    from onnxruntime.quantization import quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = folder / "prepared.onnx"
    try:
        quant_pre_process(str(source), str(prepared))
    except Exception:  # symbolic shape inference gives up on some models
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    quantize_static(str(prepared), str(output), Reader(feeds))


def dynamic(source: Path, output: Path, feeds: list[Feed], folder: Path) -> None:
    """onnxruntime's dynamic form."""
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(str(source), str(output))


def ours(source: Path, output: Path, feeds: list[Feed], folder: Path) -> None:
    """memoptc's default pipeline."""
    compile_file(source, output, target="int8", calibration=feeds, verify="off", force=True)


def onnxsim_static(source: Path, output: Path, feeds: list[Feed], folder: Path) -> None:
    """onnxsim's static form."""
    import onnxsim

    onnx.save(onnxsim.simplify(onnxsim.quantize_static(str(source), calibration_data=feeds))[0], output)


def onnxsim_weights(source: Path, output: Path, feeds: list[Feed], folder: Path) -> None:
    """onnxsim's form with weights in codes only."""
    import onnxsim

    onnx.save(onnxsim.simplify(onnxsim.quantize_weight_only(str(source)))[0], output)


def nncf(source: Path, output: Path, feeds: list[Feed], folder: Path) -> None:
    """NNCF's static form."""
    import nncf

    onnx.save(nncf.quantize(onnx.load(source), nncf.Dataset(feeds), subset_size=len(feeds)), output)


def intel(source: Path, output: Path, feeds: list[Feed], folder: Path) -> None:
    """Intel's static form, in one file."""
    from onnx_neural_compressor import data_reader
    from onnx_neural_compressor.quantization import config, quantize

    class Given(Reader, data_reader.CalibrationDataReader):
        """The same samples, as an instance of what is asked for."""

    quantize(str(source), str(folder / "parts.onnx"), config.StaticQuantConfig(calibration_data_reader=Given(feeds)))
    onnx.save(onnx.load(folder / "parts.onnx"), output)


TOOLS: dict[str, tuple[str, Callable[[Path, Path, list[Feed], Path], None]]] = {
    "memoptc": ("memoptc", ours),
    "ort static": ("onnxruntime", static),
    "ort dynamic": ("onnxruntime", dynamic),
    "onnxsim static": ("onnxsim", onnxsim_static),
    "onnxsim weights": ("onnxsim", onnxsim_weights),
    "nncf": ("nncf", nncf),
    "intel": ("onnx_neural_compressor", intel),
}
"""What to compare, each with the package that it needs."""


def installed() -> list[str]:
    """The tools whose packages are here."""
    return [tool for tool, (package, _) in TOOLS.items() if importlib.util.find_spec(package) is not None]


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep the tools' own prints out of the table."""
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
        yield


def against(original: ort.InferenceSession, other: ort.InferenceSession, feeds: list[Feed]) -> tuple[float, float]:
    """Signal to difference in dB and cosine, each of the output that has the worst."""
    sums: dict[int, list[float]] = {}
    for feed in feeds:
        for index, (a, b) in enumerate(zip(original.run(None, feed), other.run(None, feed), strict=True)):
            if isinstance(a, np.ndarray) and a.dtype.kind == "f":
                if a.shape != b.shape or not np.isfinite(b).all():
                    return -math.inf, 0.0
                x, y = a.astype(np.float64), b.astype(np.float64)
                total = sums.setdefault(index, [0.0] * 4)
                parts = (np.square(x).sum(), np.square(x - y).sum(), (x * y).sum(), np.square(y).sum())
                sums[index] = [t + float(p) for t, p in zip(total, parts, strict=True)]
    used = [s for s in sums.values() if s[0]]
    if not used:
        return math.nan, math.nan
    decibels = [10 * math.log10(s[0] / s[1]) if s[1] else math.inf for s in used]
    return min(decibels), min(s[2] / math.sqrt(s[0] * s[3]) if s[3] else 0.0 for s in used)


def size_of(path: Path) -> int:
    """Bytes of a model and its external data."""
    return sum(f.stat().st_size for f in (path, path.with_name(path.name + ".data")) if f.exists())


def is_float(path: Path) -> bool:
    """Whether a model has float weights and no codes yet."""
    model = onnx.load(path, load_external_data=False)
    return not any(node.op_type == "DequantizeLinear" for node in model.graph.node)


def one(name: str, folder: Path, seconds: float, calibration: int) -> dict[str, dict[str, Any]]:
    """Quantize one model with every tool, and measure."""
    assert zoo.ZOO is not None
    source = Path(zoo.ZOO.path(name))
    feeds, _ = zoo.ZOO.samples(name)
    # some sets hold a few samples only: then half of them calibrate
    first = feeds[: max(1, min(calibration, len(feeds) // 2))]
    rest = feeds[len(first) :][-64:] or feeds
    lines: dict[str, dict[str, Any]] = {"original": {"bytes": size_of(source)}}
    sessions, paths = {"original": session(source)}, {"original": source}
    for tool in installed():
        _, make = TOOLS[tool]
        place = folder / tool.replace(" ", "_")
        place.mkdir()
        output = place / f"{name}.onnx"
        start = time.perf_counter()
        try:
            with silence():
                make(source, output, first, place)
                sessions[tool] = session(output)
                sqnr, cosine = against(sessions["original"], sessions[tool], rest)
        except Exception as e:
            lines[tool] = {"fault": f"{type(e).__name__}: {' '.join(str(e).split())[:60]}"}
            sessions.pop(tool, None)
            continue
        paths[tool] = output
        lines[tool] = {"bytes": size_of(output), "sqnr": sqnr, "cosine": cosine, "took": time.perf_counter() - start}
    measured = measure(list(paths.values()), rest[0], options=RunOptions(), seconds=seconds * len(paths))
    for tool, found in zip(paths, measured, strict=True):
        lines[tool]["ms"] = found.latency_ms["p50"]
        lines[tool]["load"], lines[tool]["run"] = found.load_peak_bytes, found.run_peak_bytes
    for tool, loaded in sessions.items():
        quality = zoo.ZOO.quality(name, lambda feed, loaded=loaded: loaded.run(None, feed))
        lines[tool]["task"] = None if quality is None else next(iter(quality.items()))
    return lines


def show(name: str, lines: dict[str, dict[str, Any]]) -> None:
    """Print one model's rows."""
    base = lines["original"]
    for tool, line in lines.items():
        if "fault" in line:
            print(f"| {name} | {tool} | {line['fault']} | | | | | | | |", flush=True)
            continue
        task = "" if line.get("task") is None else f"{line['task'][0]} {line['task'][1]:.4f}"
        sqnr, cosine = (f"{line['sqnr']:.1f}", f"{line['cosine']:.5f}") if "sqnr" in line else ("", "")
        took = f"{line['took']:.1f}" if "took" in line else ""
        ratio = f"{line['bytes'] / base['bytes']:.3f}"
        print(
            f"| {name} | {tool} | {line['bytes'] / 1e3:.0f} ({ratio}) | {sqnr} | {cosine} | {task} "
            f"| {line['ms']:.3f} ({line['ms'] / base['ms']:.2f}) | {line['run'] / 1e6:.1f} | {line['load'] / 1e6:.1f} "
            f"| {took} |",
            flush=True,
        )


def summary(found: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Print means over the models that both tools can quantize."""
    print(
        "\n| memoptc against | models | SQNR gained, mean dB | size, geomean ratio | latency | run peak | load peak |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|")
    for peer in installed()[1:]:
        pairs = [
            (lines["memoptc"], lines[peer])
            for lines in found.values()
            if peer in lines and lines[peer].get("bytes", 0) < 0.9 * lines["original"]["bytes"]
            if all("sqnr" in lines.get(t, {}) and math.isfinite(lines[t]["sqnr"]) for t in ("memoptc", peer))
        ]
        if pairs:
            gain = statistics.fmean(a["sqnr"] - b["sqnr"] for a, b in pairs)
            sizes = statistics.geometric_mean(a["bytes"] / b["bytes"] for a, b in pairs)
            times = statistics.geometric_mean(a["ms"] / b["ms"] for a, b in pairs)
            runs, loads = (
                statistics.geometric_mean(max(a[key], 1) / max(b[key], 1) for a, b in pairs) for key in ("run", "load")
            )
            print(
                f"| {peer} | {len(pairs)} | {gain:+.1f} | {sizes:.3f} | {times:.2f} | {runs:.2f} | {loads:.2f} |",
                flush=True,
            )


@click.command(help=__doc__)
@click.option("--only", multiple=True, help="Models; all when not given.")
@click.option("--seconds", default=1.0, show_default=True, help="How long each candidate runs for its latency.")
@click.option("--calibration", default=32, show_default=True, help="Samples to calibrate on, at most.")
def main(only: tuple[str, ...], seconds: float, calibration: int) -> None:
    """Run the benchmark."""
    if zoo.ZOO is None:
        raise click.ClickException("There is no zoo of models; set MEMOPTC_ZOO to its folder.")
    logging.disable(logging.CRITICAL)
    missing = ", ".join(tool for tool in TOOLS if tool not in installed())
    print(
        f"onnxruntime {ort.__version__}; ratios are to the original"
        + (f"; not installed: {missing}" if missing else "")
    )
    print()
    print("| model | tool | kB | SQNR dB | cosine | task | p50 ms | run peak MB | load peak MB | took s |")
    print("|---|---|---:|---:|---:|---|---:|---:|---:|---:|")
    found = {}
    for name in only or zoo.NAMES:
        if not zoo.ZOO.samples(name, 1)[0] or not is_float(Path(zoo.ZOO.path(name))):
            continue
        # Some tools leave files in the current folder.
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            try:
                found[name] = one(name, Path(folder), seconds, calibration)
            except Exception as e:
                print(f"| {name} | | {type(e).__name__}: {' '.join(str(e).split())[:80]} | | | | | | | |", flush=True)
                continue
        show(name, found[name])
    summary(found)


if __name__ == "__main__":
    main()
