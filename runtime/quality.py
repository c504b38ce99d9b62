"""Accuracy of a coarser model: signal to difference against the original, and a metric of its outputs."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from memoptc.ir.files import TemporaryFolder
from memoptc.runtime.compare import difference, flatten
from memoptc.runtime.data import Sample
from memoptc.runtime.evaluate import Evaluator, ModelSource
from memoptc.runtime.loss_bound import PairedHits
from memoptc.runtime.metric import Metric, Outcome, hits_of, top1
from memoptc.runtime.options import RunOptions
from memoptc.runtime.spool import trim

FEW = 16
"""Samples on which candidates are compared with each other."""

MOST = 2000
"""Samples on which a candidate is examined before it is taken; of more, evenly spaced ones."""


ROOM = 32 << 20
"""Bytes that those few may have with their outputs; the one that exceeds them is the last."""

IN_MEMORY = 1 << 20
"""Bytes of outputs of one sample above which they are kept on disk."""

ON_DISK = 4 << 30
"""Bytes of outputs that are kept there at most; samples beyond run again."""

_PIECE = 1 << 20
"""Elements that are compared at once."""


FAILED = ""
"""Stands for the outputs of a candidate that onnxruntime does not run."""


@dataclass(frozen=True)
class Quality:
    """Measured differences of outputs.

    Args:
        noise: Per output, energy of the difference over that of the original; infinite for NaN, Inf and other shapes.
        samples: On how many samples.
        metric: The metric's value, where there is one.
        hits: Labelled rows that either model alone has right, where the metric is top-1 accuracy.
    """

    noise: dict[str, float]
    samples: int
    metric: float | None = None
    hits: PairedHits | None = None

    def to_json(self) -> dict[str, Any]:
        """Give it as plain data."""
        return dict(vars(self))

    @staticmethod
    def from_json(plain: Mapping[str, Any]) -> Quality:
        """Read what `to_json` gave."""
        hits = plain.get("hits")
        return Quality(**{**plain, "hits": None if hits is None else PairedHits(*hits)})

    @property
    def sqnr_db(self) -> float:
        """Signal to difference of the worst output, in decibels."""
        return decibels(max(self.noise.values(), default=0.0))

    @property
    def mean_db(self) -> float:
        """Mean over outputs of their signal to difference, each counted up to 150 dB."""
        return float(np.mean([min(decibels(n), 150.0) for n in self.noise.values()])) if self.noise else 150.0


def decibels(noise: float) -> float:
    """Give a ratio of noise to signal as signal to noise in decibels."""
    if noise <= 0:
        return math.inf
    return -10 * math.log10(noise) if math.isfinite(noise) else -math.inf


class _Reference:
    """Outputs of the original, each sample run once: small ones in memory, the others on disk.

    Args:
        model: The original; a path is read again when a sample comes that was not run yet.
    """

    def __init__(self, model: ModelSource) -> None:
        self._model = model
        self._session: Evaluator | None = None
        self._known: dict[int, dict[str, Any] | Path] = {}
        self._folder: TemporaryFolder | None = None
        self._room = ON_DISK
        self.runs = 0
        """How often the original has run."""

    def of(self, index: int, sample: Sample) -> dict[str, Any]:
        """Give the outputs for the sample of this number."""
        known = self._known.get(index)
        if known is None:
            self._session = self._session or Evaluator(self._model, RunOptions(), label="the original")
            outputs = self._session.run(sample.feed)
            self.runs += 1
            self._keep(index, outputs)
            return outputs
        if isinstance(known, Path):
            with open(known, "rb") as file:
                found: dict[str, Any] = pickle.load(file)
                return found
        return known

    def _keep(self, index: int, outputs: dict[str, Any]) -> None:
        size = sum(_nbytes(v) for v in outputs.values())
        if size <= IN_MEMORY:
            self._known[index] = outputs
            return
        self._room -= size
        if self._room < 0:
            return
        self._folder = self._folder or TemporaryFolder()
        path = self._known[index] = Path(self._folder.name) / f"{index}.outputs"
        with open(path, "wb") as file:
            pickle.dump(outputs, file, protocol=5)

    def release_session(self) -> None:
        """Release the original's session; it is opened again for a sample that was not run yet."""
        if self._session is not None:
            self._session = None
            trim(collect=False)


class Examiner:
    """Holds models against an original on data.

    Args:
        original: The model that is right; a file has to stay where it is.
        data: Samples, to be walked again and again.
        metric: What to measure beside signal to difference, if anything.
        few: How many samples are kept in memory, for quick looks.
        most: How many samples a full examination takes.

    Raises:
        InputError: the original does not run on the data.
    """

    def __init__(
        self,
        original: ModelSource,
        data: Iterable[Sample],
        metric: Metric | None = None,
        few: int = FEW,
        most: int = MOST,
    ) -> None:
        self._original = _Reference(original)
        self._metric = metric
        self._data, self._most, self._total = data, most, 0
        self._few: list[tuple[int, Sample]] = []
        kept, room = self._evenly_spaced(few), ROOM
        for index, sample in kept:
            outputs = self._original.of(index, sample)
            self._few.append((index, sample))
            room -= sum(_nbytes(v) for values in (sample.feed, outputs) for v in values.values())
            if room <= 0:
                break
        self.metric = None if metric is None else self._measure(metric)
        self._original.release_session()

    @property
    def quick_is_full(self) -> bool:
        """True if a quick look takes all samples, and there is no metric that a full one would measure."""
        return self._metric is None and len(self._few) == self._total

    @property
    def samples(self) -> tuple[int, int]:
        """Number of samples of a quick look and of a full one."""
        return len(self._few), sum(1 for _ in range(0, self._total, self._step))

    @property
    def _step(self) -> int:
        return max(1, math.ceil(self._total / self._most))

    def _evenly_spaced(self, most: int) -> list[tuple[int, Sample]]:
        """At most so many samples with their numbers, evenly spaced: every one, then every second, every fourth."""
        kept: list[tuple[int, Sample]] = []
        step = 1
        for index, sample in zip(count(), self._data, strict=False):
            self._total = index + 1
            if index % step:
                continue
            if len(kept) == most:
                kept, step = kept[::2], 2 * step
                if index % step:
                    continue
            kept.append((index, sample))
        return kept

    def _samples(self) -> Iterator[tuple[int, Sample]]:
        return ((i, s) for i, s in zip(count(), self._data, strict=False) if i % self._step == 0)

    def quick(self, candidate: ModelSource, most: int | None = None) -> Quality:
        """Compare outputs on few samples."""
        evaluator = Evaluator(candidate, RunOptions(), label="the candidate")
        kept = self._few if most is None else self._few[:most]
        sums: dict[str, list[float]] = {}
        for index, sample in kept:
            _add(sums, self._original.of(index, sample), evaluator.run(sample.feed))
        return Quality(_ratios(sums), len(kept))

    def first(self, candidate: ModelSource, most: int) -> Quality:
        """Compare outputs on so many of the first samples."""
        evaluator = Evaluator(candidate, RunOptions(), label="the candidate")
        sums: dict[str, list[float]] = {}
        samples = 0
        for index, sample in zip(range(most), self._data, strict=False):
            _add(sums, self._original.of(index, sample), evaluator.run(sample.feed))
            samples += 1
        return Quality(_ratios(sums), samples)

    def full(self, candidate: ModelSource, failed: Callable[[PairedHits], bool] | None = None) -> Quality:
        """Compare outputs on all samples (of more than `most`, evenly spaced ones), and measure the metric.

        Args:
            candidate: What is examined.
            failed: Of top-1, asked after each sample: whether so many rows are lost that the others need no look.
        """
        if self.quick_is_full:
            return self.quick(candidate)
        self._run_original()
        evaluator = Evaluator(candidate, RunOptions(), label="the candidate")
        sums: dict[str, list[float]] = {}
        samples, hits = 0, PairedHits(0, 0, 0)

        def walk() -> Iterator[Outcome]:
            nonlocal samples, hits
            for index, sample in self._samples():
                got, wanted = evaluator.run(sample.feed), self._original.of(index, sample)
                _add(sums, wanted, got)
                samples += 1
                if self._metric is top1:
                    hits += PairedHits.of(hits_of(wanted, sample.label), hits_of(got, sample.label))
                yield Outcome(sample.feed, got, sample.label)
                if failed is not None and hits.rows and failed(hits):
                    return

        outcomes = walk()
        value = None if self._metric is None else float(self._metric(outcomes))
        for _ in outcomes:  # a metric may stop early
            pass
        return Quality(_ratios(sums), samples, value, hits if hits.rows else None)

    def _run_original(self) -> None:
        """Run the original where it has not, so that it and a candidate are not in memory together."""
        for index, sample in self._samples():
            self._original.of(index, sample)
        self._original.release_session()

    def _measure(self, metric: Metric) -> float:
        return float(metric(Outcome(s.feed, self._original.of(i, s), s.label) for i, s in self._samples()))


def _add(sums: dict[str, list[float]], wanted: Mapping[str, Any], got: Mapping[str, Any]) -> None:
    for name in wanted:
        found = dict(flatten(name, got[name]))
        for key, value in flatten(name, wanted[name]):
            other = found.get(key)
            total = sums.setdefault(key, [0.0, 0.0])
            if _plain(value) and _plain(other) and value.shape == other.shape:
                error, signal = _energies(value.reshape(-1), other.reshape(-1))
                total[0], total[1] = total[0] + error, total[1] + signal
                continue
            one = difference(value, other)
            if one.fault:
                total[0] = math.inf
            elif one.lossless:
                total[0], total[1] = total[0] + one.mismatches, total[1] + one.elements
            else:
                total[0], total[1] = total[0] + one.error2, total[1] + one.reference2


def _energies(value: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> tuple[float, float]:
    """Squared magnitude of a difference and of its first part, piece by piece: copies in float64 are twice as large."""
    error = signal = 0.0
    for start in range(0, value.size, _PIECE):
        one, two = value[start : start + _PIECE], other[start : start + _PIECE]
        # not by BLAS, whose threads cost more than such sums
        error += float(np.square(np.subtract(one, two, dtype=np.float64)).sum())
        signal += float(np.square(one, dtype=np.float64).sum())
    return error, signal


def _nbytes(value: Any) -> int:
    return value.nbytes if isinstance(value, np.ndarray) else 0


def _plain(value: Any) -> TypeGuard[npt.NDArray[np.float32]]:
    return isinstance(value, np.ndarray) and value.dtype == np.float32 and bool(np.isfinite(value).all())


def _ratios(sums: Mapping[str, list[float]]) -> dict[str, float]:
    """Noise over signal; infinite where the energies of both are too large for a number."""
    ratios = {k: 0.0 if not error else error / signal if signal else math.inf for k, (error, signal) in sums.items()}
    return {k: math.inf if math.isnan(ratio) else ratio for k, ratio in ratios.items()}
