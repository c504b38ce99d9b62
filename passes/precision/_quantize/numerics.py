"""Scales, zero points and rounded weights. All is computed in float64, some channels at a time, and rounded once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt

from memoptc.ir.types import DType

Floats = npt.NDArray[np.float64]
_SMALLEST = float(np.finfo(np.float32).tiny)
SMALLEST_CODED = 256 * _SMALLEST
"""Largest magnitude of a weight from which scales of its codes are normal numbers."""

_PIECE = 1 << 20
"""Weights that are coded at once."""


@dataclass(frozen=True)
class Scale:
    """Quantization of a whole tensor of activations: `real = scale * (code - zero_point)`."""

    scale: float
    zero_point: int
    dtype: DType = DType.UINT8


def activation_scale(low: float, high: float, dtype: DType = DType.UINT8) -> Scale:
    """Give the code of a range, widened to hold 0, so that 0 is coded exactly (padding, Relu).

    Args:
        low: Smallest value.
        high: Largest value.
        dtype: UINT8 or UINT16 for a code with a zero point, INT8 or INT16 for one around 0.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if dtype.is_signed():
        magnitude = float(np.float32(max(-low, high) / (2 ** (dtype.bitwidth - 1) - 1)))
        return Scale(magnitude if magnitude >= _SMALLEST else 1.0, 0, dtype)
    top = 2**dtype.bitwidth - 1
    scale = float(np.float32((high - low) / top))
    if scale < _SMALLEST:
        return Scale(1.0, 0, dtype)
    return Scale(scale, int(np.clip(np.round(-low / scale), 0, top)), dtype)


@dataclass(frozen=True)
class Codes:
    """Quantized weights.

    Args:
        codes: int8, or uint8 with 128 for zero.
        scales: float32, one per channel along `axis`, or a single one.
        zero_point: The code of 0.
        axis: Channel axis; `None` for one scale for all.
    """

    codes: npt.NDArray[np.int8] | npt.NDArray[np.uint8]
    scales: npt.NDArray[np.float32]
    zero_point: int
    axis: int | None

    @property
    def zero_points(self) -> npt.NDArray[np.generic]:
        """The zero point in the shape of the scales and the type of the codes."""
        return np.full(self.scales.shape, self.zero_point, self.codes.dtype)


CLIPPED = tuple(1.0 - step / 40 for step in range(17))
"""Parts of a channel's largest magnitude that a search tries as the largest code."""


def weight_codes(
    weight: npt.NDArray[np.generic], axis: int | None, dtype: DType, bits: int = 8, energy: Floats | None = None
) -> Codes:
    """Quantize weights symmetrically: the largest magnitude of a channel becomes the largest code.

    Args:
        weight: Float weights, all finite.
        axis: Channel axis, or `None` for one scale for all.
        dtype: INT8, or UINT8 (the same codes plus 128).
        bits: 8, or 7 for devices whose 8-bit products saturate (see `memoptc.runtime.devices`).
        energy: How much a squared error at each weight counts, broadcast to the weights. When given, each channel is
            clipped where its error is least instead.
    """
    top = 2 ** (bits - 1) - 1
    codes = np.empty(weight.shape, np.int8)
    if axis is None:
        magnitude = np.max(np.abs(np.asarray(weight, np.float64)), initial=0.0)
        scales = _scales(np.asarray(magnitude), top)
        _encode(weight.reshape(-1), codes.reshape(-1), scales, top)
    else:
        scales = np.empty(weight.shape[axis], np.float32)
        others = tuple(i for i in range(weight.ndim) if i != axis)
        spread = None if energy is None else np.broadcast_to(energy, weight.shape)
        for part in _channels(weight.shape, axis):
            at = (*[slice(None)] * axis, part)
            w = np.asarray(weight[at], np.float64)
            magnitude = np.max(np.abs(w), axis=others, initial=0.0)
            if spread is not None and others:
                magnitude = _clipped(w, magnitude, spread[at], top, axis)
            scales[part] = _scales(magnitude, top)
            _encode(w, codes[at], scales[part].reshape([-1 if i == axis else 1 for i in range(w.ndim)]), top)
    if dtype == DType.UINT8:
        return Codes((codes.view(np.uint8) ^ np.uint8(128)), scales, 128, axis)
    return Codes(codes, scales, 0, axis)


def _channels(shape: tuple[int, ...], axis: int) -> Iterator[slice]:
    """Runs of channels of at most `_PIECE` weights, or of one channel: a float64 copy of all takes twice the bytes."""
    step = max(1, _PIECE * shape[axis] // max(prod(shape), 1))
    for start in range(0, shape[axis], step):
        yield slice(start, min(start + step, shape[axis]))


def _scales(magnitude: Floats, top: int) -> npt.NDArray[np.float32]:
    """Scales that make the largest magnitude of a channel the largest code; 1 where all weights are 0."""
    scales = np.asarray(magnitude / top, np.float32)
    return np.where(scales < _SMALLEST, np.float32(1.0), scales).astype(np.float32)


def _encode(
    weight: npt.NDArray[np.generic], codes: npt.NDArray[np.int8], scales: npt.NDArray[np.float32], top: int
) -> None:
    """Write the codes of weights in place; scales are broadcast to them."""
    levels = weight / scales.astype(np.float64)
    np.rint(levels, out=levels)
    codes[...] = np.clip(levels, -top, top, out=levels)


def _clipped(w: Floats, magnitude: Floats, energy: Floats, top: int, axis: int) -> Floats:
    """Clipping of each channel for the least weighted squared error."""
    spread = [-1 if i == axis else 1 for i in range(w.ndim)]
    others = tuple(i for i in range(w.ndim) if i != axis)
    best, least = magnitude, np.full(magnitude.shape, np.inf)
    for part in CLIPPED:
        step = (np.maximum(part * magnitude, _SMALLEST) / top).reshape(spread)
        coded = np.clip(np.round(w / step), -top, top) * step
        error = (np.square(w - coded) * energy).sum(others)
        best, least = np.where(error < least, part * magnitude, best), np.minimum(error, least)
    return best


def bias_codes(bias: npt.NDArray[np.generic], scales: npt.NDArray[np.floating]) -> npt.NDArray[np.int32] | None:
    """Give a bias as int32 in units of (activation scale * weight scale); `None` when it does not fit."""
    exact = np.asarray(bias, np.float64) / np.asarray(scales, np.float64)
    if not np.isfinite(exact).all() or np.max(np.abs(exact), initial=0.0) >= 2**31 - 1:
        return None
    return np.round(exact).astype(np.int32)
