"""Weights as indices into a table of few numbers: onnxruntime decodes them while it loads, and runs as before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memoptc.ir.builder import Builder
from memoptc.ir.core import Value
from memoptc.ir.types import DType, TensorType, Type
from memoptc.passes.precision._quantize.blocks import pack
from memoptc.passes.precision._quantize.codebook import codebook, nearest

PACKED_SINCE = 21
"""Opset from which Cast reads indices of 4 bits; before it, a byte is the index of a pair of numbers."""

_PAIRS = 2048
"""Elements from which a table of all 256 pairs of 16 numbers takes less than it saves."""


@dataclass(frozen=True)
class Table:
    """A weight in indices.

    Args:
        numbers: float32: at most 16 or 256, in order; or 256 pairs of 16, `[256, 2]`.
        indices: uint8 or uint4, of the weight's shape; of pairs, `[elements / 2]`.
        shape: That of the weight.
        signal: Squared magnitude of the weight.
        noise: Squared magnitude of what coding changed.
    """

    numbers: npt.NDArray[np.float32]
    indices: npt.NDArray[np.generic]
    shape: tuple[int, ...]
    signal: float
    noise: float

    def decoded(self) -> npt.NDArray[np.float32]:
        """The weight as it is read."""
        if self.numbers.ndim == 1:
            return self.numbers[np.asarray(self.indices).astype(np.uint8)].reshape(self.shape)
        return self.numbers[np.asarray(self.indices)].reshape(self.shape)


def make_table(
    content: npt.NDArray[np.float32], bits: int, opset: int, importance: npt.NDArray[np.float64] | None = None
) -> Table:
    """Code a weight.

    Args:
        content: Finite, of any shape.
        bits: 4 or 8, of an index.
        opset: Version of the standard operators.
        importance: Mean square of what each column of `[rows, columns]` is multiplied with, where that is known.
    """
    pairs = opset < PACKED_SINCE
    few = bits == 4 and not (pairs and (content.size % 2 or content.size < _PAIRS))
    known = importance is not None and bool(np.isfinite(importance).all()) and bool((importance > 0).any())
    spread = np.maximum(importance, 0.0) if known and importance is not None else None
    if spread is not None:
        spread = np.broadcast_to(spread, (content.size // len(spread), len(spread))).reshape(content.shape)
    numbers = codebook(content, 16 if few else 256, spread)
    indices = nearest(content, numbers)
    noise = float(np.square(content - numbers[indices], dtype=np.float64).sum())
    signal = float(np.square(content, dtype=np.float64).sum())
    coded: npt.NDArray[np.generic] = indices
    if few and pairs:
        full = np.concatenate([numbers, np.full(16 - len(numbers), numbers[-1])])
        numbers = np.stack([np.tile(full, 16), np.repeat(full, 16)], axis=1)
        coded = pack(indices.reshape(-1), 4)
    elif few:
        coded = indices.astype(DType.UINT4.numpy())
    return Table(numbers, coded, content.shape, signal, noise)


def read_table(builder: Builder, numbers: Value, indices: Value, shape: Value | None, type_: Type | None) -> Value:
    """Decode: `Gather(numbers, Cast(indices))`, and a Reshape of pairs, all of which onnxruntime folds.

    Args:
        builder: Where.
        numbers: Of the table.
        indices: Of the table.
        shape: That of the weight, as a constant, for pairs.
        type_: That of the weight.
    """
    wide = TensorType(DType.INT32, indices.shape)
    index = builder.op("Cast", [indices], {"to": int(DType.INT32)}, domain="", type=wide).result
    if shape is None:
        return builder.op("Gather", [numbers, index], {"axis": 0}, domain="", type=type_).result
    picked = TensorType(DType.FLOAT, (*(indices.shape or ()), 2))
    pairs = builder.op("Gather", [numbers, index], {"axis": 0}, domain="", type=picked).result
    return builder.op("Reshape", [pairs, shape], domain="", type=type_).result
