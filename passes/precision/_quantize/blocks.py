"""Weights in small blocks, each with a scale of its own: codes, the search for good scales, and packing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

SMALLEST = 1e-30
"""Blocks whose largest magnitude lies below this count as zero: their squares and scales would be subnormal."""

SHRINKS = {
    2: tuple(1.0 - i / 20 for i in range(14)),
    4: tuple(1.0 - i / 24 for i in range(12)),
    8: (1.0,),
}
"""By bits: parts of a block's range to try. Clipping pays where few bits make rounding dear: beyond half of the range
in 4 bits, it never won on trained weights; in 8 bits it gains 0.03 dB."""

POLISHES = 3
"""Rounds of least squares after the search; errors stop falling after two or three."""

_CHUNK = 1 << 21
"""Weights that the search holds in memory at once (it needs about eight floats for each)."""


@dataclass(frozen=True)
class Blocks:
    """A matrix in codes: `real[r, c] = scales[r, c // block] * (codes[r, c] - zeros[r, c // block])`.

    Args:
        codes: uint8 of shape (rows, blocks * block), each below 2^bits; behind the last column stands the code of 0.
        scales: float32 of shape (rows, blocks), never 0; negative ones occur.
        zeros: uint8 of shape (rows, blocks): the code of 0.
        bits: 2, 4 or 8.
        block: Columns that share a scale.
        columns: Columns that are meant; the last block may reach beyond them.
        symmetric: Whether every zero is `2^(bits - 1)`, and need not be stored.
    """

    codes: Bytes
    scales: Float32
    zeros: Bytes
    bits: int
    block: int
    columns: int
    symmetric: bool

    def decoded(self) -> Float32:
        """Give the weights as a runtime computes them: float32 of shape (rows, columns)."""
        return self.decoded_rows(slice(None))

    def decoded_rows(self, part: slice) -> Float32:
        """Give some rows of them."""
        scales, zeros = self.scales[part], self.zeros[part]
        codes = self.codes[part].reshape(*scales.shape, self.block).astype(np.float32)
        real = (codes - zeros[..., None]) * scales[..., None]
        return np.ascontiguousarray(real.reshape(len(scales), -1)[:, : self.columns])

    def packed(self) -> Bytes:
        """Give the codes as bytes of shape (rows, blocks, block * bits / 8), lowest bits of a byte first."""
        rows, count = self.scales.shape
        return pack(self.codes, self.bits).reshape(rows, count, self.block * self.bits // 8)

    def packed_zeros(self) -> Bytes:
        """Give the zeros as bytes of shape (rows, ceil(blocks * bits / 8))."""
        return pack(self.zeros, self.bits)


def pack(codes: Bytes, bits: int) -> Bytes:
    """Pack codes along the last axis, lowest bits of a byte first; what lacks of the last byte is filled with 0."""
    if bits == 8:
        return codes
    each = 8 // bits
    if rest := -codes.shape[-1] % each:
        codes = np.concatenate([codes, np.zeros((*codes.shape[:-1], rest), np.uint8)], axis=-1)
    packed = codes[..., ::each].copy()
    for i in range(1, each):
        packed |= codes[..., i::each] << (bits * i)
    return packed


def encode(
    weight: Float32,
    bits: int,
    block: int,
    *,
    symmetric: bool,
    search: bool = True,
    importance: npt.NDArray[np.floating] | None = None,
) -> Blocks:
    """Code a matrix block by block, along its columns.

    Plain rounding maps the range of a block onto all codes. The search also tries narrower ranges, which clip the
    few largest weights and round all others finer, and takes the one with the least squared error; then scale and
    codes are improved in turn: for given codes q the best scale is <w, q> / <q, q> (least squares), for a given
    scale the best codes are the nearest. No step makes an error larger, so the result is never worse than plain
    rounding. The middle code stands for 0 in the symmetric form, which has one code more on one side: the sign of
    the scale says on which.

    With the importance of columns, squares are weighted by it: the mean square of what a column is multiplied with
    makes the sum the expected error of the product, if columns are uncorrelated. (Lin et al., "AWQ", 2023, show that
    a small part of the channels decides; llama.cpp's importance matrix, 2024, weights its search so.)

    Args:
        weight: Finite float32 of shape (rows, columns).
        bits: 2, 4 or 8.
        block: Columns that share a scale; the last block of a row may be shorter, and is filled with zeros.
        symmetric: Whether 0 has the same code in every block.
        search: Look for good scales, or round plainly.
        importance: Weight of each column's squared error, `[columns]`, not negative; alike where not given.
    """
    rows, columns = weight.shape
    count = -(-columns // block)
    padded = weight
    if columns != count * block:
        padded = np.zeros((rows, count * block), np.float32)
        padded[:, :columns] = weight
    flat = padded.reshape(-1, block)
    codes = np.empty(flat.shape, np.uint8)
    scales = np.empty(len(flat), np.float32)
    zeros = np.empty(len(flat), np.uint8)
    step = max(1, _CHUNK // block)
    counted = None if importance is None else _by_block(importance, count, block)
    for start in range(0, len(flat), step):
        part = slice(start, start + step)
        part_counted = None if counted is None else counted[np.arange(start, start + len(flat[part])) % count]
        codes[part], scales[part], zeros[part] = _encode(flat[part], bits, symmetric, search, part_counted)
    shape = (rows, count)
    return Blocks(codes.reshape(rows, -1), scales.reshape(shape), zeros.reshape(shape), bits, block, columns, symmetric)


_LEAST = 1e-4
"""Of the mean importance: what a column that was silent in the data counts all the same."""


def _by_block(importance: npt.NDArray[np.floating], count: int, block: int) -> Float32:
    """Importance of columns as `[blocks, block]`, 1 in the mean; padding counts for nothing."""
    spread = np.zeros(count * block, np.float64)
    mean = float(importance.mean())
    spread[: len(importance)] = np.maximum(importance / mean, _LEAST) if mean > 0 else 1.0
    return spread.reshape(count, block).astype(np.float32)


def _encode(
    w: Float32, bits: int, symmetric: bool, search: bool, counted: Float32 | None = None
) -> tuple[Bytes, Float32, Bytes]:
    """Code blocks of shape (blocks, block), each in units of its largest magnitude, so that no square overflows."""
    magnitude = np.abs(w).max(axis=1)
    empty = magnitude < SMALLEST
    magnitude = np.where(empty, np.float32(1.0), magnitude).astype(np.float32)
    unit = np.where(empty[:, None], np.float32(0.0), w / magnitude[:, None])
    best = _Best(unit, bits, counted)
    shrinks = SHRINKS[bits] if search else (1.0,)
    if symmetric:
        middle = np.full(len(w), 2 ** (bits - 1), np.float32)
        extreme = np.take_along_axis(unit, np.abs(unit).argmax(axis=1)[:, None], axis=1)[:, 0]
        extreme = np.where(empty, np.float32(1.0), extreme)
        for shrink in shrinks:
            best.offer(-extreme * np.float32(shrink / 2 ** (bits - 1)), middle)
            best.offer(extreme * np.float32(shrink / (2 ** (bits - 1) - 1)), middle)
    else:
        low, high = np.minimum(unit.min(axis=1), 0), np.maximum(unit.max(axis=1), 0)
        width = np.where(empty, np.float32(1.0), high - low)
        for shrink in shrinks:
            scale = (width * np.float32(shrink / best.top)).astype(np.float32)
            center = np.rint(np.float32(best.top / 2) - (low + high) / 2 / scale)
            best.offer(scale, np.clip(center, 0, best.top).astype(np.float32))
        scale, zero = best.scale, best.zero
        for shift in (-1, 1) if search else ():
            best.offer(scale, np.clip(zero + shift, 0, best.top).astype(np.float32))
    if search:
        for _ in range(POLISHES):
            best.polish()
    scales = (best.scale * magnitude).astype(np.float32)
    scales = np.where(empty | (scales == 0), np.float32(1.0), scales)
    zeros = best.zero.astype(np.uint8)
    codes = np.where(empty[:, None], zeros[:, None], best.codes())
    return codes.astype(np.uint8), scales.astype(np.float32), zeros


class _Best:
    """The best scale and zero so far, for each block; `counted` weights squared errors, alike where it is `None`."""

    def __init__(self, w: Float32, bits: int, counted: Float32 | None = None) -> None:
        self.w, self.counted = w, counted
        self.top = 2**bits - 1
        self.error = np.full(len(w), np.inf, np.float32)
        self.scale = np.ones(len(w), np.float32)
        self.zero = np.zeros(len(w), np.float32)

    def offer(self, scale: Float32, zero: Float32) -> None:
        """Take these where their error is smaller."""
        error = self._levels(scale, zero)
        error *= scale[:, None]
        error -= self.w
        squares = self._sum(error, error)
        better = squares < self.error
        self.error = np.where(better, squares, self.error)
        self.scale = np.where(better, scale, self.scale)
        self.zero = np.where(better, zero, self.zero)

    def polish(self) -> None:
        """The best scale for the codes that the best scale so far gives."""
        levels = self._levels(self.scale, self.zero)
        squares = self._sum(levels, levels)
        usable = squares > 0
        scale = self._sum(levels, self.w) / np.where(usable, squares, np.float32(1.0))
        self.offer(np.where(usable & (scale != 0), scale, self.scale).astype(np.float32), self.zero)

    def _sum(self, a: Float32, b: Float32) -> Float32:
        """Sum of products over each block, each times what its column counts."""
        found: Float32 = np.einsum("ij,ij->i", a if self.counted is None else a * self.counted, b)
        return found

    def codes(self) -> Float32:
        """The codes, as floats."""
        return self._levels(self.scale, self.zero) + self.zero[:, None]

    def _levels(self, scale: Float32, zero: Float32) -> Float32:
        """Codes less the code of 0."""
        levels: Float32 = self.w / scale[:, None]
        np.rint(levels, out=levels)
        low, high = -zero[:, None], self.top - zero[:, None]
        np.maximum(levels, low, out=levels)
        np.minimum(levels, high, out=levels)
        return levels


def error_of(weight: Float32, blocks: Blocks) -> tuple[float, float]:
    """Give the squared magnitude of the weights and of what coding changed."""
    signal = noise = 0.0
    step = max(1, _CHUNK // max(weight.shape[1], 1))
    for start in range(0, len(weight), step):
        part = slice(start, start + step)
        signal += float(np.square(weight[part], dtype=np.float64).sum())
        noise += float(np.square(weight[part] - blocks.decoded_rows(part), dtype=np.float64).sum())
    return signal, noise
