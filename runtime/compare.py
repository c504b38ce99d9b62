"""Comparing outputs: differences of one pair of values, and their sums over a stream of samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

_CHUNK = 1 << 20  # elements compared at a time, so that big outputs need no big temporaries
FLIPS_KEPT = 100
"""Samples with another largest element that are kept by number."""
_SMALL = 1e-3  # elements smaller than this part of the largest count relative to that part in `max_rel`


@dataclass(frozen=True)
class Difference:
    """Distance of one value from its reference.

    Args:
        fault: Why the two cannot be compared at all (type, shape, NaN pattern), else `""`.
        exact: Whether every bit agrees (NaN equals NaN).
        max_abs: Largest difference.
        max_rel: Largest difference relative to the reference element, which counts as at least 1/1000 of the
            reference's largest magnitude.
        rms: Root mean square of the differences.
        scale: Largest magnitude in the reference.
        elements: Number of elements.
        mismatches: Number of elements that differ at all.
        dot, reference2, candidate2, error2: Sums of products and squares.
        top1: Rows with the same largest element, and rows, where the value looks like scores of classes.
        lossless: Whether the values are integers, booleans or strings.
    """

    fault: str = ""
    exact: bool = False
    max_abs: float = 0.0
    max_rel: float = 0.0
    rms: float = 0.0
    scale: float = 0.0
    elements: int = 0
    mismatches: int = 0
    dot: float = 0.0
    reference2: float = 0.0
    candidate2: float = 0.0
    error2: float = 0.0
    top1: tuple[int, int] = (0, 0)
    lossless: bool = False


def flatten(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Give the arrays inside an output: a sequence's as `name[0]`, a map's as `name{key}`."""
    if isinstance(value, list | tuple):
        yield f"{name}[]", np.asarray(len(value))
        for index, item in enumerate(value):
            yield from flatten(f"{name}[{index}]", item)
    elif isinstance(value, Mapping):
        for key in value:
            yield from flatten(f"{name}{{{key}}}", value[key])
    else:
        yield name, value


def difference(reference: Any, candidate: Any, *, bits: bool = True) -> Difference:
    """Compare two arrays (or `None`, for an optional without a value).

    Args:
        reference: What it should be.
        candidate: What it is.
        bits: Whether the element types must agree; else floats of any width are compared.
    """
    if reference is None or candidate is None:
        same = reference is None and candidate is None
        return Difference("" if same else "one has a value, the other has none", same)
    a, b = np.asarray(reference), np.asarray(candidate)
    if a.shape != b.shape:
        return Difference(f"shape {list(b.shape)} instead of {list(a.shape)}")
    if bits and a.dtype != b.dtype and not (a.dtype.kind in "OU" and b.dtype.kind in "OU"):
        return Difference(f"element type {b.dtype} instead of {a.dtype}")
    if not is_float(a):
        wrong = int(np.count_nonzero(np.asarray(a != b)))
        number = a.dtype.kind in "iu"
        gap = np.abs(a.astype(np.float64) - b.astype(np.float64)) if number and wrong else np.zeros(0)
        worst = float(gap.max(initial=0.0))
        return Difference("", wrong == 0, worst, elements=a.size, mismatches=wrong, lossless=True)
    return _float_difference(a, b)


def is_float(array: npt.NDArray[Any]) -> bool:
    """True if the elements are real or complex numbers with a fraction, ml_dtypes included."""
    return array.dtype.kind in "fc" or (array.dtype.kind == "V" and array.dtype.names is None)


def _wide(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def _float_difference(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> Difference:
    flat_a, flat_b = a.reshape(-1), b.reshape(-1)
    scale, exact, mismatches = 0.0, True, 0
    max_abs = rel_large = dot = a2 = b2 = e2 = 0.0
    for start in range(0, flat_a.size, _CHUNK):
        x = np.abs(_wide(flat_a[start : start + _CHUNK]))
        scale = max(scale, float(x[np.isfinite(x)].max(initial=0.0)))
    floor = scale * _SMALL
    for start in range(0, flat_a.size, _CHUNK):
        x, y = _wide(flat_a[start : start + _CHUNK]), _wide(flat_b[start : start + _CHUNK])
        same = (x == y) & (np.signbit(x.real) == np.signbit(y.real)) | (np.isnan(x) & np.isnan(y))
        if same.all():
            x = x[np.isfinite(x)]
            square = float(np.vdot(x, x).real)
            dot, a2, b2 = dot + square, a2 + square, b2 + square
            continue
        exact = False
        mismatches += int(np.count_nonzero(~same))
        fx, fy = np.isfinite(x), np.isfinite(y)
        if (fx != fy).any() or not (same | (x == y))[~fx].all():
            at = start + int(np.flatnonzero((fx != fy) | ~(same | (x == y) | fx))[0])
            place = [int(i) for i in np.unravel_index(at, a.shape)]
            return Difference(f"{flat_b[at]} instead of {flat_a[at]} at {place}", scale=scale, elements=a.size)
        x, y = x[fx], y[fx]
        gap = np.abs(x - y)
        max_abs = max(max_abs, float(gap.max(initial=0.0)))
        if floor:
            rel_large = max(rel_large, float((gap / np.maximum(np.abs(x), floor)).max(initial=0.0)))
        dot += float(np.vdot(x, y).real)
        a2, b2 = a2 + float(np.vdot(x, x).real), b2 + float(np.vdot(y, y).real)
        e2 += float(np.vdot(gap, gap).real)
    if not floor and max_abs:
        rel_large = math.inf
    rms = math.sqrt(e2 / a.size) if a.size else 0.0
    return Difference(
        "", exact, max_abs, rel_large, rms, scale, a.size, mismatches, dot, a2, b2, e2, _top1(a, b)
    )  # fmt: skip


def _top1(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> tuple[int, int]:
    """Count rows of equal argmax, for [N, classes] and [N, positions, classes]."""
    if a.ndim not in (2, 3) or a.shape[-1] < 2 or not a.size or a.dtype.kind == "c":
        return 0, 0
    same = np.argmax(_wide(a), -1) == np.argmax(_wide(b), -1)
    return int(same.sum()), int(same.size)


@dataclass
class Totals:
    """Differences of one output, summed over samples."""

    name: str
    samples: int = 0
    exact: bool = True
    max_abs: float = 0.0
    max_rel: float = 0.0
    scale: float = 0.0
    elements: int = 0
    mismatches: int = 0
    lossless: bool = True
    faults: list[str] = field(default_factory=list)
    sums: list[float] = field(default_factory=lambda: [0.0] * 4)
    top1: tuple[int, int] = (0, 0)
    flipped: list[int] = field(default_factory=list)

    def add(self, found: Difference) -> None:
        """Take one more sample in."""
        self.samples += 1
        self.exact = self.exact and found.exact and not found.fault
        if found.fault:
            self.faults.append(found.fault)
            return
        self.max_abs, self.max_rel = max(self.max_abs, found.max_abs), max(self.max_rel, found.max_rel)
        self.scale = max(self.scale, found.scale)
        self.elements += found.elements
        self.mismatches += found.mismatches
        self.lossless = self.lossless and found.lossless
        parts = (found.dot, found.reference2, found.candidate2, found.error2)
        self.sums = [total + part for total, part in zip(self.sums, parts, strict=True)]
        self.top1 = self.top1[0] + found.top1[0], self.top1[1] + found.top1[1]
        if found.top1[0] < found.top1[1] and len(self.flipped) < FLIPS_KEPT:
            self.flipped.append(self.samples - 1)

    @property
    def cosine(self) -> float:
        """Cosine between all elements of all samples; 1 where both are zero."""
        dot, a2, b2, e2 = self.sums
        if e2 == 0.0:
            return 1.0
        return dot / math.sqrt(a2) / math.sqrt(b2) if a2 and b2 else 0.0

    @property
    def sqnr_db(self) -> float:
        """Signal to difference, in decibels; infinite for equal outputs."""
        _, a2, _, e2 = self.sums
        if e2 == 0.0:
            return math.inf
        return 10 * (math.log10(a2) - math.log10(e2)) if a2 else -math.inf

    @property
    def top1_agreement(self) -> float | None:
        """Part of the rows whose largest element is at the same place; `None` where nothing looks like scores."""
        return self.top1[0] / self.top1[1] if self.top1[1] else None

    @property
    def agreement(self) -> float:
        """Part of the elements that are equal."""
        return 1.0 - self.mismatches / self.elements if self.elements else 1.0

    def to_json(self) -> dict[str, Any]:
        """Give the report's form; what is not a finite number becomes `None`."""
        return {
            "name": self.name,
            "max_abs": _number(self.max_abs),
            "max_rel": _number(self.max_rel),
            "cosine": _number(self.cosine),
            "sqnr_db": _number(self.sqnr_db),
            "top1_agreement": self.top1_agreement,
            "flipped": list(self.flipped),
            "exact": self.exact,
        }


def deciles(found: Sequence[Difference]) -> list[float]:
    """Give the eleven deciles, least to largest, of the largest difference per sample, relative to its magnitude.

    Args:
        found: One difference per sample; those that cannot be compared, or are no numbers, do not count.
    """
    errors = sorted(d.max_abs / d.scale if d.scale else d.max_abs for d in found if not d.fault)
    return [errors[round(share * (len(errors) - 1) / 10)] for share in range(11)] if errors else []


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
