"""Ranges of a model's tensors over calibration data, streamed: one sample in memory, however many there are.

Pass one adds `ReduceMin`, `ReduceMax` and `Size` behind every tensor, so that onnxruntime itself sees each
activation while it is alive and hands out three numbers. Percentiles need a second pass, in which activations come
out in batches of a bounded size and go into histograms whose bounds are exact since pass one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx

from memoptc.ir.diagnostics import InputError
from memoptc.runtime.data import Data, DataSource
from memoptc.runtime.evaluate import Evaluator, ModelSource, RunOptions

BINS = 2048
"""Histogram bins: a percentile is then known to 1/2048 of the tensor's full range."""

BATCH_BYTES = 128 << 20
"""Bytes of activations that one run of the second pass hands out at most (one tensor may be larger)."""

_PREFIX = "memoptc.calibrate"


@dataclass(frozen=True)
class Histogram:
    """Counts of a tensor's elements.

    Args:
        low: Left edge of the first bin.
        high: Right edge of the last bin.
        counts: int64, one per bin of equal width.
    """

    low: float
    high: float
    counts: npt.NDArray[np.int64]

    def quantile(self, part: float) -> float:
        """Give the value below which `part` (0 ... 1) of the elements lie, interpolated inside its bin."""
        total = self.counts.sum()
        if not total or self.high <= self.low:
            return self.low
        edges = np.linspace(self.low, self.high, len(self.counts) + 1)
        below = np.concatenate([[0], np.cumsum(self.counts)]) / total
        return float(np.interp(part, below, edges))


@dataclass(frozen=True)
class Range:
    """The range of one tensor.

    Args:
        min: Smallest value that is to be represented.
        max: Largest value that is to be represented.
        count: Elements seen.
        histogram: Their distribution, where the method needed one.
    """

    min: float
    max: float
    count: int
    histogram: Histogram | None = None


Observer: TypeAlias = Callable[[Histogram, float], tuple[float, float]]


def _percentile(histogram: Histogram, percentile: float) -> tuple[float, float]:
    """Leave the same part of the elements outside at either end: 99.99 leaves 0.01 % above and 0.01 % below."""
    part = percentile / 100
    return histogram.quantile(1 - part), histogram.quantile(part)


def _least_error(histogram: Histogram, percentile: float) -> tuple[float, float]:
    """Clip where the mean squared error of an 8-bit code is least: rounding inside against clipping outside.

    Ends are tried at 1/50 steps of the range that holds 0, one after the other, twice (coordinate descent;
    the error has one valley in each end). Inside, rounding costs scale^2 / 12 (Widrow and Kollar,
    "Quantization Noise", 2008); outside, each element costs its distance to the end.
    """
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    edges = np.linspace(histogram.low, histogram.high, len(histogram.counts) + 1)
    centers, counts = (edges[:-1] + edges[1:]) / 2, histogram.counts.astype(np.float64)

    def error(a: float, b: float) -> float:
        inside = (b - a) ** 2 / 255**2 / 12 * counts.sum()
        beyond = np.maximum(centers - b, 0.0) + np.maximum(a - centers, 0.0)
        return float(inside + (counts * beyond**2).sum())

    best = (low, high)
    for _ in range(2):
        tries = [(best[0], high * part / 50) for part in range(1, 51)]
        best = min(tries, key=lambda ends: error(*ends))
        tries = [(low * part / 50, best[1]) for part in range(1, 51)]
        best = min(tries, key=lambda ends: error(*ends))
    return best


OBSERVERS: dict[str, Observer] = {"percentile": _percentile, "mse": _least_error}
"""Method -> function from a tensor's histogram (and the percentile) to its range. `minmax` needs no histogram."""


def calibrate(
    model: ModelSource,
    tensors: Iterable[str],
    data: DataSource | Data,
    method: str = "minmax",
    *,
    percentile: float = 99.99,
    threads: int = 1,
    folder: str | os.PathLike[str] | None = None,
) -> dict[str, Range]:
    """Find the ranges of tensors of the main graph.

    Args:
        model: The model; external data is looked for beside the file or in `folder`.
        tensors: Names of float tensors: activations or inputs. Weights and outputs are allowed, too.
        data: Samples.
        method: `minmax`, or one of `OBSERVERS`.
        percentile: For `percentile`: in percent, above 50.
        threads: Threads of onnxruntime.
        folder: Where external data lies when `model` is no path.

    Returns:
        Tensor name -> range. Tensors that were empty in every sample are left out.

    Raises:
        InputError: unknown method or tensor, wrong data, NaN or Inf in a tensor, or the model does not run.
    """
    if method != "minmax" and method not in OBSERVERS:
        raise InputError(f"{method!r} is no method.", hint=f"Methods: minmax, {', '.join(OBSERVERS)}.")
    if not 50 < percentile <= 100:
        raise InputError(f"The percentile is {percentile}; a number above 50 and up to 100 was expected.")
    names = list(dict.fromkeys(tensors))
    probe = _Probe(model, folder, threads)
    samples = data if isinstance(data, Data) else probe.data(data)
    ranges, sizes = _extremes(probe, names, samples)
    if method == "minmax":
        return ranges
    observer = OBSERVERS[method]
    found = {}
    for batch in _batches(ranges, sizes):
        for name, histogram in _histograms(probe, batch, ranges, samples).items():
            low, high = observer(histogram, percentile)
            found[name] = Range(low, high, ranges[name].count, histogram)
    return {name: found[name] for name in ranges}


class _Probe:
    """A model whose inner tensors can be made outputs."""

    def __init__(self, model: ModelSource, folder: str | os.PathLike[str] | None, threads: int) -> None:
        self.threads = threads
        self.folder = folder
        if isinstance(model, onnx.ModelProto):
            self.proto = onnx.ModelProto()
            self.proto.CopyFrom(model)
        elif isinstance(model, bytes):
            self.proto = onnx.load_from_string(model)
        else:
            self.proto = onnx.load(os.fspath(model), load_external_data=False)
            self.folder = Path(os.path.abspath(os.fspath(model))).parent
        self.outputs = [output.name for output in self.proto.graph.output]
        self.opset = next((o.version for o in self.proto.opset_import if o.domain in ("", "ai.onnx")), 1)

    def data(self, source: DataSource) -> Data:
        """Open data for this model."""
        from memoptc.ir.onnx_io import read_onnx

        graph = read_onnx(self.proto, Path(self.folder or ""))
        return Data(source, {v.name: v.type for v in graph.inputs}, (v.name for v in graph.defaults))

    def known(self) -> set[str]:
        """Names of all tensors of the main graph."""
        graph = self.proto.graph
        names = {i.name for i in graph.input} | {t.name for t in graph.initializer}
        return names | {name for node in graph.node for name in node.output if name}

    def load(self, extra: Sequence[onnx.NodeProto], outputs: Sequence[str]) -> Evaluator:
        """Load the model with nodes put in behind the producers of what they read, and with these outputs.

        Run in the file's order, unoptimized: a probe then runs right after the tensor it looks at is made, and
        keeps none alive longer.
        """
        model = onnx.ModelProto()
        model.CopyFrom(self.proto)
        graph = model.graph
        waiting: dict[str, list[onnx.NodeProto]] = {}
        made_here = {name for node in extra for name in node.output}
        for node in extra:
            waiting.setdefault(next(n for n in node.input if n), []).append(node)
        nodes: list[onnx.NodeProto] = []

        def release(name: str) -> None:
            for node in waiting.pop(name, []):
                nodes.append(node)
                for output in node.output:
                    release(output)

        first = [n for n in waiting if n not in made_here]
        produced = {name for node in graph.node for name in node.output}
        for name in first:
            if name not in produced:
                release(name)
        for node in graph.node:
            nodes.append(node)
            for name in node.output:
                release(name)
        ordered = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(ordered)
        kept = {output.name: output for output in graph.output}
        chosen = [kept.get(name) or onnx.ValueInfoProto(name=name) for name in outputs]
        chosen = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in chosen]
        del graph.output[:]
        graph.output.extend(chosen)
        options = RunOptions(optimize=False, threads=self.threads, file_order=True)
        return Evaluator(model, options, folder=self.folder, label="the model under calibration")


def magnitudes(
    model: ModelSource,
    tensors: Iterable[str],
    data: DataSource | Data,
    *,
    threads: int = 1,
    folder: str | os.PathLike[str] | None = None,
) -> dict[str, float]:
    """Find the largest magnitude of tensors of the main graph.

    Args:
        model: The model, as for `calibrate`.
        tensors: Names of float tensors.
        data: Samples.
        threads: Threads of onnxruntime.
        folder: Where external data lies when `model` is no path.

    Returns:
        Tensor name -> largest magnitude, infinite where NaN or Inf was seen. Tensors that were empty in every sample
        are left out.

    Raises:
        InputError: unknown tensor, wrong data, or the model does not run.
    """
    probe = _Probe(model, folder, threads)
    samples = data if isinstance(data, Data) else probe.data(data)
    ranges, _ = _extremes(probe, list(dict.fromkeys(tensors)), samples, finite=False)
    return {name: max(abs(r.min), abs(r.max)) for name, r in ranges.items()}


def _extremes(
    probe: _Probe, names: Sequence[str], samples: Data, *, finite: bool = True
) -> tuple[dict[str, Range], dict[str, int]]:
    """Pass one: exact smallest and largest values, and the number of elements in the largest sample.

    NaN and Inf are refused, or (with `finite=False`) give an infinite range.
    """
    unknown = [name for name in names if name not in probe.known()]
    if unknown:
        raise InputError(f"The model has no tensor {unknown[0]!r} in its main graph.")
    if not names:
        return {}, {}
    extra: list[onnx.NodeProto] = []
    for index, name in enumerate(names):
        extra += _reductions(f"{_PREFIX}.{index}", name)
    kinds = ("min", "max", "sum", "size")
    outputs = [f"{_PREFIX}.{index}.{kind}" for index in range(len(names)) for kind in kinds]
    evaluator = probe.load(extra, outputs)
    low, high = np.full(len(names), np.inf), np.full(len(names), -np.inf)
    count, largest = np.zeros(len(names), np.int64), np.zeros(len(names), np.int64)
    for sample in samples:
        found = evaluator.run(sample.feed)
        for index, name in enumerate(names):
            size = int(found[f"{_PREFIX}.{index}.size"])
            if not size:
                continue
            least, most, total = (float(found[f"{_PREFIX}.{index}.{kind}"]) for kind in kinds[:3])
            # a NaN may not show in minimum and maximum, but it does in the sum (which may overflow, to Inf)
            odd = not (np.isfinite(least) and np.isfinite(most)) or bool(np.isnan(total))
            if odd and not finite:
                least, most = -np.inf, np.inf
            elif odd:
                raise InputError(
                    f"{sample.where}: the tensor {name!r} holds NaN or Inf.",
                    hint="Take such samples out of the data, or leave the tensor out.",
                )
            low[index], high[index] = min(low[index], least), max(high[index], most)
            count[index] += size
            largest[index] = max(largest[index], size)
    ranges = {n: Range(float(low[i]), float(high[i]), int(count[i])) for i, n in enumerate(names) if count[i]}
    return ranges, {n: int(largest[i]) for i, n in enumerate(names)}


def _reductions(prefix: str, name: str) -> Iterator[onnx.NodeProto]:
    # as float32: reductions exist for it at every opset, and no format to calibrate is finer
    make = onnx.helper.make_node
    yield make("Cast", [name], [f"{prefix}.f"], to=onnx.TensorProto.FLOAT)
    yield make("Size", [f"{prefix}.f"], [f"{prefix}.size"])
    yield make("ReduceMin", [f"{prefix}.f"], [f"{prefix}.min"], keepdims=0)
    yield make("ReduceMax", [f"{prefix}.f"], [f"{prefix}.max"], keepdims=0)
    yield make("ReduceSum", [f"{prefix}.f"], [f"{prefix}.sum"], keepdims=0)


def _batches(ranges: Mapping[str, Range], sizes: Mapping[str, int]) -> Iterator[list[str]]:
    batch: list[str] = []
    total = 0
    for name in ranges:
        nbytes = 4 * sizes[name]
        if batch and total + nbytes > BATCH_BYTES:
            yield batch
            batch, total = [], 0
        batch.append(name)
        total += nbytes
    if batch:
        yield batch


def _histograms(
    probe: _Probe, names: Sequence[str], ranges: Mapping[str, Range], samples: Data
) -> dict[str, Histogram]:
    """Pass two, for one batch of tensors."""
    copies = [
        onnx.helper.make_node("Cast", [name], [f"{_PREFIX}.{i}.copy"], to=onnx.TensorProto.FLOAT)
        for i, name in enumerate(names)
    ]
    evaluator = probe.load(copies, [f"{_PREFIX}.{i}.copy" for i in range(len(names))])
    counts = {name: np.zeros(BINS, np.int64) for name in names}
    for sample in samples:
        found = evaluator.run(sample.feed)
        for index, name in enumerate(names):
            array = found.pop(f"{_PREFIX}.{index}.copy")
            known = ranges[name]
            if known.max > known.min:
                counts[name] += np.histogram(array, BINS, (known.min, known.max))[0]
            else:
                counts[name][0] += array.size
    return {name: Histogram(ranges[name].min, ranges[name].max, counts[name]) for name in names}
