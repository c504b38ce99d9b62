"""Second moments of what products and convolutions read: X^T X over calibration data, in bounded memory."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from memoptc.runtime.calibrate import BUDGET, groups, sizes
from memoptc.runtime.data import Data, DataSource, Sample
from memoptc.runtime.evaluate import ModelSource
from memoptc.runtime.probe import PREFIX, Probe, copies

Floats = npt.NDArray[np.float64]

ROOM = 32 << 20
"""Bytes of windows that are laid out at once; of more, evenly spaced ones are taken."""

ASIDE = 4
"""Of so many samples one is kept to check with; where there are fewer, of so many runs of rows."""


@dataclass(frozen=True)
class Window:
    """Window that a convolution reads for one element of its result: channels first, then the places of its kernel.

    Args:
        kernel: Extents of the kernel.
        strides: Steps between windows.
        dilations: Steps within a window.
        pads: Zeros before each axis, then behind each.
        auto_pad: "SAME_UPPER" or "SAME_LOWER" where pads follow from the extents; else "".
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    auto_pad: str = ""

    def rows(self, array: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Lay out windows of `[batch, channels, *extents]` as rows `[windows, channels * kernel]`."""
        axes = tuple(range(2, array.ndim))
        reach = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]
        padded = np.pad(array, [(0, 0), (0, 0), *self._pads(array.shape[2:], reach)])
        if any(extent < r for extent, r in zip(padded.shape[2:], reach, strict=True)):
            return np.zeros((0, array.shape[1] * math.prod(self.kernel)), np.float32)
        view = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=axes)
        places = tuple(slice(None, None, s) for s in self.strides)
        view = view[(slice(None), slice(None), *places, *(slice(None, None, d) for d in self.dilations))]
        count = len(axes)
        moved = np.moveaxis(view, 1, 1 + count)
        one = 4 * math.prod(moved.shape[1 + count :])
        step = max(1, math.ceil(math.prod(moved.shape[: 1 + count]) * one / ROOM))
        index = np.unravel_index(np.arange(0, math.prod(moved.shape[: 1 + count]), step), moved.shape[: 1 + count])
        found: npt.NDArray[np.float32] = moved[index].reshape(len(index[0]), -1)
        return found

    def _pads(self, extents: Iterable[int], reach: list[int]) -> list[tuple[int, int]]:
        if not self.auto_pad:
            half = len(self.pads) // 2
            return list(zip(self.pads[:half], self.pads[half:], strict=True))
        found = []
        for extent, stride, r in zip(extents, self.strides, reach, strict=True):
            total = max((math.ceil(extent / stride) - 1) * stride + r - extent, 0)
            less, more = total // 2, total - total // 2
            found.append((less, more) if self.auto_pad == "SAME_UPPER" else (more, less))
        return found


@dataclass(frozen=True)
class Reading:
    """Way in which one tensor is read: as rows of channels, or as windows.

    Args:
        tensor: Its name.
        window: For a convolution; `None` for products, which read rows of the last axis.
    """

    tensor: str
    window: Window | None = None

    def rows(self, array: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        """Lay out a tensor as rows that weights are multiplied with."""
        floats = np.asarray(array, np.float32)
        if self.window is not None:
            return self.window.rows(floats)
        return floats.reshape(-1, floats.shape[-1])


@dataclass
class Moments:
    """Sums of products of each pair of columns.

    Args:
        fit: Over most rows, `[columns, columns]`.
        check: Over the others, which nothing is fitted to.
        rows: How many rows there were.
    """

    fit: Floats
    check: Floats
    rows: int = 0

    def add(self, other: Moments) -> Moments:
        """Give the moments of both."""
        return Moments(self.fit + other.fit, self.check + other.check, self.rows + other.rows)


class Aside:
    """The samples that second moments keep aside: every fourth; all of them where there are fewer than four.

    Args:
        data: All samples.
    """

    def __init__(self, data: Iterable[Sample]) -> None:
        self._data = data

    def __iter__(self) -> Iterator[Sample]:
        whole = enough(self._data)
        return (s for i, s in enumerate(self._data) if not whole or i % ASIDE == ASIDE - 1)


def enough(data: Iterable[Sample]) -> bool:
    """True if there are enough samples to keep whole ones aside."""
    return sum(1 for _ in islice(data, ASIDE)) == ASIDE


class _Sum:
    """Takes in rows; a quarter goes to the side: whole samples where there are some, else runs of rows.

    Args:
        whole: Whether every fourth sample is kept aside.
        dtype: Of the sums.
    """

    def __init__(self, whole: bool, dtype: npt.DTypeLike) -> None:
        self.found: Moments | None = None
        self._whole, self._run, self._dtype = whole, 1, dtype

    def add(self, rows: npt.NDArray[np.float32], index: int) -> None:
        if not rows.size:
            return
        if self.found is None:
            width = rows.shape[1]
            self.found = Moments(np.zeros((width, width), self._dtype), np.zeros((width, width), self._dtype))
            self._run = max(1, len(rows) // ASIDE)
        at = np.full(len(rows), index) if self._whole else (self.found.rows + np.arange(len(rows))) // self._run
        aside = at % ASIDE == ASIDE - 1
        for part, total in ((rows[~aside], self.found.fit), (rows[aside], self.found.check)):
            if len(part):
                with np.errstate(over="ignore"):  # rounding looks whether they are finite
                    total += part.T @ part
        self.found.rows += len(rows)


def second_moments(
    model: ModelSource,
    readings: Iterable[Reading],
    data: DataSource | Data,
    *,
    threads: int = 1,
    folder: str | os.PathLike[str] | None = None,
    budget: int = BUDGET,
    dtype: npt.DTypeLike = np.float64,
) -> dict[Reading, Moments]:
    """Observe how columns of what weights are multiplied with go together.

    Holds two square matrices per reading beside one sample: callers ask for as many readings as they have room for.

    Args:
        model: The model; external data is looked for beside the file or in `folder`.
        readings: Tensors of the main graph, and how they are read.
        data: Samples.
        threads: Threads of onnxruntime.
        folder: Where external data lies when `model` is no path.
        budget: Bytes of activations that one run hands out at most; a larger tensor comes out alone.
        dtype: Of the sums; float32 where they are damped anyway.

    Returns:
        Reading -> moments. Tensors that were empty in every sample, or held NaN or Inf, are left out.

    Raises:
        InputError: unknown tensor, wrong data, or the model does not run.
    """
    wanted = list(dict.fromkeys(readings))
    names = list(dict.fromkeys(r.tensor for r in wanted))
    probe = Probe(model, folder, threads)
    probe.require(names)
    if not names:
        return {}
    samples = data if isinstance(data, Data) else probe.data(data)
    found: dict[Reading, Moments] = {}
    for group in groups(names, sizes(probe, names, samples), budget):
        found |= dict(_observe(probe, group, [r for r in wanted if r.tensor in group], samples, dtype))
    return found


def _observe(
    probe: Probe, names: list[str], readings: list[Reading], samples: Data, dtype: npt.DTypeLike
) -> Iterator[tuple[Reading, Moments]]:
    evaluator = probe.load(copies(names), [f"{PREFIX}.{i}.copy" for i in range(len(names))])
    whole = enough(samples)
    spoilt: set[str] = set()
    sums = {reading: _Sum(whole, dtype) for reading in readings}
    for number, sample in enumerate(samples):
        found = evaluator.run(sample.feed)
        for index, name in enumerate(names):
            array = found.pop(f"{PREFIX}.{index}.copy")
            if not np.isfinite(array).all():
                spoilt.add(name)
            for reading in readings:
                if reading.tensor == name and name not in spoilt:
                    sums[reading].add(reading.rows(array), number)
    for reading, total in sums.items():
        if total.found is not None and reading.tensor not in spoilt:
            yield reading, total.found
