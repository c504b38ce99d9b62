"""Factors per channel that make 8-bit codes of a tensor and of the weights that read it most accurate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memoptc.ir.core import Op
from memoptc.ir.ops import layout_of
from memoptc.runtime.channels import Channels

Floats = npt.NDArray[np.float64]

SHARES = (0.25, 0.5, 0.75, 1.0)
"""How much of the spread between channels moves from activations into weights."""

_TINY = float(np.finfo(np.float32).tiny)

_PIECE = 1 << 20
"""Weights that are looked at together."""

LARGEST = 12
"""Factors lie between 2^-12 and 2^12 of each other: a channel that was silent in the data may speak later."""


@dataclass(frozen=True)
class Reader:
    """Weights as seen from their input channels.

    Args:
        energy: Sum of squares of all weights that read a channel, `[channels]`.
        largest: Largest magnitude of the weights per output and input channel of a group, `[groups, outputs, inputs]`.
        taps: Weights per pair of channels.
    """

    energy: Floats
    largest: Floats
    taps: int

    @classmethod
    def of(cls, op: Op) -> Reader:
        """Look at a Conv, Gemm or MatMul with constant weights."""
        tensor = op.operands[1].tensor
        assert tensor is not None
        weight, layout = np.asarray(tensor.numpy()), layout_of(op)
        weight = np.moveaxis(weight, layout.output_axis, 0)
        outputs, inputs = weight.shape[0] // layout.groups, weight.shape[1]
        taps = weight.size // max(weight.shape[0] * inputs, 1)
        energy, largest = np.zeros((layout.groups, inputs)), np.empty((layout.groups, outputs, inputs))
        step = max(1, _PIECE // max(inputs * taps, 1))
        for group in range(layout.groups):
            for start in range(0, outputs, step):  # a copy of the whole in float64 takes twice its bytes
                end = min(start + step, outputs)
                rows = weight[group * outputs + start : group * outputs + end].astype(np.float64)
                parts = np.abs(rows, out=rows).reshape(end - start, inputs, -1)
                largest[group, start:end] = parts.max(2, initial=0.0)
                energy[group] += np.einsum("oit,oit->i", parts, parts)
        return cls(energy.reshape(-1), largest, taps)

    def noise(self, seen: Channels, factors: Floats) -> float:
        """Noise to signal ratio of the products, both sides on 8 bits (rounding is uniform: Widrow and Kollar, 2008).

        Args:
            seen: The tensor before the move.
            factors: What its channels are divided by.
        """
        low, high = min(float((seen.low / factors).min()), 0.0), max(float((seen.high / factors).max()), 0.0)
        step = (high - low) / 255
        codes = step**2 * float((factors**2 * self.energy).sum())
        groups, _, inputs = self.largest.shape
        scaled = self.largest * factors.reshape(groups, 1, inputs)
        steps = scaled.max(2) / 127
        power = (seen.mean_square / factors**2).reshape(groups, inputs).sum(1) * self.taps
        rounded = float((np.square(steps).sum(1) * power).sum())
        signal = float((self.energy * seen.mean_square).sum())
        return (codes + rounded) / 12 / signal if signal > 0 else 0.0


def best_factors(pairs: list[tuple[Reader, Channels]]) -> tuple[Floats, float]:
    """Give factors, all powers of two, and by how much they lower the noise (1 when none helps).

    Tried are `a^p / w^(1-p)` for several p, a the largest magnitude of a channel and w that of the weights that
    read it (Xiao et al., "SmoothQuant", 2022, where p is 0.5; Nagel et al., "Data-Free Quantization", 2019, for
    p = 0.5 between convolutions), and caps: only outliers move. What counts is the noise expected in the products.

    Args:
        pairs: Weights that read the same channels, each with what was seen of the tensor that it reads.
    """
    reach = np.max([np.maximum(np.abs(seen.low), np.abs(seen.high)) for _, seen in pairs], axis=0)
    weights = np.max([r.largest.max(1).reshape(-1) / max(r.largest.max(), _TINY) for r, _ in pairs], axis=0)
    best = np.ones(len(reach))
    before = least = sum(r.noise(seen, best) for r, seen in pairs)
    if before <= 0 or not ((reach > 0) & (weights > 0)).any():
        return best, 1.0
    for exponents in (*_shared(reach, weights), *_capped(reach)):
        factors = 2.0 ** np.clip(exponents, -LARGEST, LARGEST)
        if (noise := sum(r.noise(seen, factors) for r, seen in pairs)) < least:
            best, least = factors, noise
    return best, before / least if least > 0 else 1.0


def _shared(reach: Floats, weights: Floats) -> Iterator[Floats]:
    """Parts of the spread between channels move, all of them; the largest channel keeps its range."""
    alive = (reach > 0) & (weights > 0)
    for share in SHARES:
        exponents = np.zeros(len(reach))
        exponents[alive] = share * np.log2(reach[alive]) - (1 - share) * np.log2(weights[alive])
        exponents[alive] -= exponents[alive][np.argmax(reach[alive])]
        yield np.round(exponents)


def _capped(reach: Floats) -> Iterator[Floats]:
    """Only channels beyond a cap move, down to it, in half steps of an octave; the others stay as they are."""
    logs = np.log2(np.maximum(reach, _TINY))
    for below in range(1, 16):
        yield np.ceil(np.maximum(logs - (logs.max() - below / 2), 0.0))
