"""Ranges of a model's tensors over calibration data: one sample in memory, however many there are.

For `minmax`, `ReduceMin`, `ReduceMax` and `Size` stand behind every tensor, so that onnxruntime itself sees each
activation while it is alive and hands out a few numbers. The other methods need distributions: elements come out, and
go into histograms that join their cells as the range grows (`memoptc.runtime.histogram`). Where not all of them fit
into a bounded size, evenly spaced ones of the largest tensors do instead, so that one pass over the data is enough; the
extremes are exact all the same. What comes out does not depend on the order of the samples.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from memoptc.ir.diagnostics import InputError
from memoptc.runtime.checkpoint import Checkpoint
from memoptc.runtime.data import Data, DataSource, Sample
from memoptc.runtime.evaluate import ModelSource
from memoptc.runtime.histogram import Accumulator, Histogram
from memoptc.runtime.observers import OBSERVERS, covered_range
from memoptc.runtime.probe import PREFIX, Probe, copies

BUDGET = 128 << 20
"""Bytes of activations that one run hands out at most (one tensor may be larger)."""

FEWEST = 1 << 14
"""Elements of a tensor of one sample that its distribution is known from, if it has as many."""

_STRIDED_OPSET = 10
"""The first opset whose Slice takes every n-th element."""

DOUBLINGS = 2.0
"""How often as many samples as were seen shall double and stay in range."""

WIDEST = 0.5
"""Part of an end by which it is widened at most."""

_ENDS = ("min", "max", "sum")
_KINDS = (*_ENDS, "size")


@dataclass(frozen=True)
class Range:
    """The range of one tensor.

    Args:
        min: Smallest value that is to be represented.
        max: Largest value that is to be represented.
        count: Elements counted.
        histogram: Their distribution, where the method needed one.
        method: What chose `min` and `max`.
        extremes: Smallest and largest value seen.
        growth: By how much each end moved outwards when samples became twice as many; see `Accumulator.growth`.
    """

    min: float
    max: float
    count: int
    histogram: Histogram | None = None
    method: str = "minmax"
    extremes: tuple[float, float] = (0.0, 0.0)
    growth: tuple[float, float] = (0.0, 0.0)

    def with_headroom(self, ends: tuple[float, float]) -> tuple[float, float]:
        """Widen a range for samples that were not seen.

        What lies beyond the range of an 8-bit code errs by all that it lies beyond, so that a few such samples hold
        most of the error of a model calibrated on few. Ends go on growing as they did, for `DOUBLINGS`, clipped ones
        in proportion; those that all samples reach equally stay.

        Args:
            ends: Smallest and largest value to be represented.
        """
        return tuple(  # type: ignore[return-value]
            end * (1 + min(DOUBLINGS * grown / abs(reached), WIDEST)) if reached else end
            for end, grown, reached in zip(ends, self.growth, self.extremes, strict=True)
        )


def calibrate(
    model: ModelSource,
    tensors: Iterable[str],
    data: DataSource | Data,
    method: str = "minmax",
    *,
    percentile: float = 99.99,
    threads: int = 1,
    folder: str | os.PathLike[str] | None = None,
    budget: int = BUDGET,
    checkpoint: str | os.PathLike[str] | None = None,
    infinite: dict[str, str] | None = None,
) -> dict[str, Range]:
    """Find the ranges of tensors of the main graph.

    Args:
        model: The model; external data is looked for beside the file or in `folder`.
        tensors: Names of float tensors: activations or inputs. Weights and outputs are allowed, too.
        data: Samples.
        method: `minmax`, `percentile`, `entropy`, `mse`, or `auto`: for each tensor the
            range whose 8-bit code has the least error on what was seen (see `memoptc.runtime.observers`).
        percentile: For `percentile` and `auto`: in percent, above 50.
        threads: Threads of onnxruntime.
        folder: Where external data lies when `model` is no path.
        budget: Bytes of activations that one run hands out at most, but for `FEWEST` elements of each tensor.
        checkpoint: A folder for a file with what was seen so far. A later call with the same model, tensors and data
            goes on from there, and finds the same ranges.
        infinite: Gets the tensors that hold NaN or Inf, with the sample that showed it first; they are left out of the
            result. When `None`, they are refused.

    Returns:
        Tensor name -> range. Tensors that were empty in every sample are left out.

    Raises:
        InputError: unknown method or tensor, wrong data, NaN or Inf in a tensor, the model does not run, or the
            checkpoint is of other data.
    """
    if method != "auto" and method not in OBSERVERS:
        raise InputError(f"{method!r} is no method.", hint=f"Methods: auto, {', '.join(OBSERVERS)}.")
    if not 50 < percentile <= 100:
        raise InputError(f"The percentile is {percentile}; a number above 50 and up to 100 was expected.")
    names = list(dict.fromkeys(tensors))
    probe = Probe(model, folder, threads)
    probe.require(names)
    if not names:
        return {}
    samples = data if isinstance(data, Data) else probe.data(data)
    strides = {} if method == "minmax" else _strides(sizes(probe, names, samples), budget, probe.opset)
    kept = None
    if checkpoint is not None:
        what = [probe.fingerprint, "minmax" if method == "minmax" else "histograms", names, strides]
        kept = Checkpoint(Path(checkpoint), what)
    if method == "minmax":
        seen = _extremes(probe, names, samples, kept, infinite=infinite)
    else:
        seen = _distributions(probe, names, samples, strides, kept, infinite)
    for name in names:
        if not seen[name].finite:  # a call that was resumed has not met all of them itself
            note_infinite("an earlier sample", name, infinite)
    return {name: _range_of(seen[name], method, percentile) for name in names if seen[name].count and seen[name].finite}


def _strides(elements: Mapping[str, int], budget: int, opset: int) -> dict[str, int]:
    """Of which tensors every how many elements come out, so that all together need at most so many bytes.

    The largest tensors are thinned out to one size. Strides are primes that the size is no multiple of: an even walk
    over rows or channels would meet the same ones again and again.
    """
    if opset < _STRIDED_OPSET:
        return {}
    left = budget // 4
    most = max(elements.values(), default=0)
    for number, size in enumerate(sorted(elements.values())):
        share = left // (len(elements) - number)
        if size > share:
            most = max(share, FEWEST)
            break
        left -= size
    return {name: _prime(-(-size // most), size) for name, size in elements.items() if size > most}


def _prime(least: int, size: int) -> int:
    """The smallest prime from `least` on that does not divide `size`."""
    while size % least == 0 or any(least % d == 0 for d in range(2, math.isqrt(least) + 1)):
        least += 1
    return least


def _range_of(seen: Accumulator, method: str, percentile: float) -> Range:
    """Choose the range of one tensor from its extremes, or from its distribution."""
    extremes = (seen.low, seen.high)
    if method == "minmax":
        return Range(*extremes, seen.count, None, "minmax", extremes, seen.growth())
    histogram = seen.histogram()
    (low, high), chosen = covered_range(histogram, extremes, method, percentile)
    return Range(low, high, seen.count, histogram, chosen, extremes, seen.growth())


def _walk(
    samples: Data, names: Sequence[str], kept: Checkpoint | None, seen: dict[str, Accumulator]
) -> Iterator[Sample]:
    """Walk the samples that were not seen yet, with `seen` as it was after those that were."""
    seen |= {name: Accumulator() for name in names}
    if kept is None:
        yield from samples
        return
    done = kept.load(seen)
    walk = iter(samples)
    for sample in islice(walk, done):
        kept.check(sample)
    if done:
        kept.same(samples.name)
    if kept.finished():
        return
    for sample in walk:
        yield sample
        kept.check(sample)
        kept.save(seen)
    kept.save(seen, last=True)


def sizes(probe: Probe, names: Sequence[str], samples: Data) -> dict[str, int]:
    """Elements of each tensor in the largest sample: one run for each set of input shapes in the data."""
    extra = [onnx.helper.make_node("Size", [name], [f"{PREFIX}.{i}.size"]) for i, name in enumerate(names)]
    evaluator = probe.load(extra, [f"{PREFIX}.{i}.size" for i in range(len(names))])
    largest = dict.fromkeys(names, 0)
    known = set()
    for sample in samples:
        shapes = tuple((name, _extent(value)) for name, value in sorted(sample.feed.items()))
        if shapes in known:
            continue
        known.add(shapes)
        found = evaluator.run(sample.feed).values()
        largest = {name: max(largest[name], int(size)) for name, size in zip(names, found, strict=True)}
    return largest


def _extent(value: Any) -> Any:
    return np.shape(value) if isinstance(value, np.ndarray) else id(value)


def groups(names: Sequence[str], elements: Mapping[str, int], budget: int) -> Iterator[list[str]]:
    """Part tensors into groups whose float32 elements together need at most `budget` bytes, or that are single."""
    group: list[str] = []
    total = 0
    for name in names:
        nbytes = 4 * elements[name]
        if group and total + nbytes > budget:
            yield group
            group, total = [], 0
        group.append(name)
        total += nbytes
    if group:
        yield group


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
    names = list(dict.fromkeys(tensors))
    probe = Probe(model, folder, threads)
    probe.require(names)
    samples = data if isinstance(data, Data) else probe.data(data)
    seen = _extremes(probe, names, samples, None, finite=False)
    return {name: max(abs(seen[name].low), abs(seen[name].high)) for name in names if seen[name].count}


def _extremes(
    probe: Probe,
    names: Sequence[str],
    samples: Data,
    kept: Checkpoint | None,
    *,
    finite: bool = True,
    infinite: dict[str, str] | None = None,
) -> dict[str, Accumulator]:
    """Exact smallest and largest values, and how many there are.

    NaN and Inf are refused or noted, or (with `finite=False`) give an infinite range.
    """
    extra: list[onnx.NodeProto] = []
    for index, name in enumerate(names):
        extra += _reductions(f"{PREFIX}.{index}", name)
        extra.append(onnx.helper.make_node("Size", [f"{PREFIX}.{index}.f"], [f"{PREFIX}.{index}.size"]))
    evaluator = probe.load(extra, [f"{PREFIX}.{index}.{kind}" for index in range(len(names)) for kind in _KINDS])
    seen: dict[str, Accumulator] = {}
    for sample in _walk(samples, names, kept, seen):
        found = evaluator.run(sample.feed)
        for index, name in enumerate(names):
            least, most, total, size = (float(found[f"{PREFIX}.{index}.{kind}"]) for kind in _KINDS)
            if not size:
                continue
            # a NaN may not show in minimum and maximum, but it does in the sum (which may overflow, to Inf)
            if not (np.isfinite(least) and np.isfinite(most)) or np.isnan(total):
                if finite:
                    note_infinite(sample.where, name, infinite)
                least, most = -np.inf, np.inf
            was = seen[name]
            was.low, was.high, was.count = min(was.low, least), max(was.high, most), was.count + int(size)
            was.note(least, most)
    return seen


def _reductions(prefix: str, name: str) -> Iterator[onnx.NodeProto]:
    # as float32: reductions exist for it at every opset, and no format to calibrate is finer
    make = onnx.helper.make_node
    yield make("Cast", [name], [f"{prefix}.f"], to=onnx.TensorProto.FLOAT)
    yield make("ReduceMin", [f"{prefix}.f"], [f"{prefix}.min"], keepdims=0)
    yield make("ReduceMax", [f"{prefix}.f"], [f"{prefix}.max"], keepdims=0)
    yield make("ReduceSum", [f"{prefix}.f"], [f"{prefix}.sum"], keepdims=0)


def _distributions(
    probe: Probe,
    names: Sequence[str],
    samples: Data,
    strides: Mapping[str, int],
    kept: Checkpoint | None,
    infinite: dict[str, str] | None = None,
) -> dict[str, Accumulator]:
    """Histograms of tensors, of evenly spaced elements where there is a stride, with exact extremes."""
    extra: list[onnx.NodeProto] = []
    outputs: list[str] = []
    for index, (name, copy) in enumerate(zip(names, copies(names), strict=True)):
        prefix = f"{PREFIX}.{index}"
        extra += _thinned(prefix, name, strides[name]) if name in strides else [copy]
        outputs += [f"{prefix}.{kind}" for kind in (("copy", *_ENDS) if name in strides else ("copy",))]
    evaluator = probe.load(extra, outputs)
    seen: dict[str, Accumulator] = {}
    for sample in _walk(samples, names, kept, seen):
        found = evaluator.run(sample.feed)
        for index, name in enumerate(names):
            prefix = f"{PREFIX}.{index}"
            ends = [float(found[f"{prefix}.{kind}"]) for kind in _ENDS] if name in strides else None
            if not seen[name].add(found.pop(f"{prefix}.copy"), ends):
                note_infinite(sample.where, name, infinite)
    return seen


def _thinned(prefix: str, name: str, stride: int) -> Iterator[onnx.NodeProto]:
    """Every n-th element of a tensor, with its extremes and, as these may hide a NaN, its sum."""
    make = onnx.helper.make_node
    yield from _reductions(prefix, name)
    for key, value in (("all", -1), ("from", 0), ("to", np.iinfo(np.int64).max), ("axis", 0), ("by", stride)):
        yield make("Constant", [], [f"{prefix}.{key}"], value=onnx.numpy_helper.from_array(np.array([value])))
    yield make("Reshape", [f"{prefix}.f", f"{prefix}.all"], [f"{prefix}.flat"])
    yield make("Slice", [f"{prefix}.{key}" for key in ("flat", "from", "to", "axis", "by")], [f"{prefix}.copy"])


def note_infinite(where: str, name: str, infinite: dict[str, str] | None) -> None:
    """Note a tensor that cannot be observed, with the sample that showed it; inputs are finite in any case.

    Raises:
        InputError: there is nowhere to note it.
    """
    if infinite is None:
        raise InputError(
            f"{where}: the tensor {name!r} holds NaN or Inf.",
            hint="Take such samples out of the data, or leave the tensor out.",
        )
    infinite.setdefault(name, where)
