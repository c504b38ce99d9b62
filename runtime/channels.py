"""Statistics of single channels of tensors, over calibration data and in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from memoptc.ir.diagnostics import InputError
from memoptc.runtime.calibrate import BUDGET, groups, note_infinite, sizes
from memoptc.runtime.data import Data, DataSource
from memoptc.runtime.evaluate import ModelSource
from memoptc.runtime.probe import PREFIX, Probe, copies

Floats = npt.NDArray[np.float64]


@dataclass
class Channels:
    """Statistics of a tensor per channel.

    Args:
        low: Smallest element, float64 `[channels]`.
        high: Largest element, float64 `[channels]`.
        total: Sum, float64 `[channels]`.
        squares: Sum of squares, float64 `[channels]`.
        count: Elements of one channel.
    """

    low: Floats = field(default_factory=lambda: np.zeros(0))
    high: Floats = field(default_factory=lambda: np.zeros(0))
    total: Floats = field(default_factory=lambda: np.zeros(0))
    squares: Floats = field(default_factory=lambda: np.zeros(0))
    count: int = 0

    @property
    def mean(self) -> Floats:
        """Mean of each channel."""
        return self.total / max(self.count, 1)

    @property
    def mean_square(self) -> Floats:
        """Mean square of each channel."""
        return self.squares / max(self.count, 1)

    def add(self, array: npt.NDArray[np.generic], axis: int) -> bool:
        """Take in a tensor of any rank that has `axis`; gives whether all elements are finite."""
        moved = np.moveaxis(np.asarray(array, np.float32), axis, 0)
        rows = moved.reshape(len(moved), -1) if moved.size else np.zeros((len(moved), 0), np.float32)
        if not rows.size:
            return True
        low, high = rows.min(1).astype(np.float64), rows.max(1).astype(np.float64)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            return False
        total = rows.sum(1, dtype=np.float64)
        squares = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
        if self.count:
            low, high = np.minimum(low, self.low), np.maximum(high, self.high)
            total, squares = total + self.total, squares + self.squares
        self.low, self.high, self.total, self.squares = low, high, total, squares
        self.count += rows.shape[1]
        return True


def channel_statistics(
    model: ModelSource,
    tensors: Mapping[str, int],
    data: DataSource | Data,
    *,
    threads: int = 1,
    folder: str | os.PathLike[str] | None = None,
    budget: int = BUDGET,
    infinite: dict[str, str] | None = None,
) -> dict[str, Channels]:
    """Observe tensors of the main graph channel by channel.

    Args:
        model: The model; external data is looked for beside the file or in `folder`.
        tensors: Tensor name -> channel axis (may count from the end).
        data: Samples.
        threads: Threads of onnxruntime.
        folder: Where external data lies when `model` is no path.
        budget: Bytes of activations that one run hands out at most; a larger tensor comes out alone.
        infinite: As for `calibrate`.

    Returns:
        Tensor name -> what was seen. Tensors that were empty in every sample are left out.

    Raises:
        InputError: unknown tensor, wrong data, NaN or Inf in a tensor, channels whose number differs between
            samples, or the model does not run.
    """
    probe = Probe(model, folder, threads)
    probe.require(tensors)
    if not tensors:
        return {}
    samples = data if isinstance(data, Data) else probe.data(data)
    found: dict[str, Channels] = {}
    for group in groups(list(tensors), sizes(probe, list(tensors), samples), budget):
        found |= _observe(probe, {name: tensors[name] for name in group}, samples, infinite)
    return {name: found[name] for name in tensors if name in found and found[name].count}


def _observe(
    probe: Probe, tensors: Mapping[str, int], samples: Data, infinite: dict[str, str] | None
) -> Iterator[tuple[str, Channels]]:
    names = list(tensors)
    evaluator = probe.load(copies(names), [f"{PREFIX}.{i}.copy" for i in range(len(names))])
    seen = {name: Channels() for name in names}
    for sample in samples:
        found = evaluator.run(sample.feed)
        for index, name in enumerate(names):
            array = found.pop(f"{PREFIX}.{index}.copy")
            have = len(seen[name].low)
            if have and array.size and array.shape[tensors[name]] != have:
                raise InputError(
                    f"{sample.where}: the tensor {name!r} has {array.shape[tensors[name]]} channels, before it had "
                    f"{have}.",
                    hint="Leave the pass out that looks at channels, or take such samples out of the data.",
                )
            if not seen[name].add(array, tensors[name]):
                note_infinite(sample.where, name, infinite)
    yield from ((name, channels) for name, channels in seen.items() if infinite is None or name not in infinite)
