"""Extents and sizes of an op's values as numbers, which formulas of kernels' workspace are written in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from memoptc.ir.core import Op, Value
from memoptc.ir.dims import Dim
from memoptc.ir.types import DType

FLOAT = 4
"""Bytes of a float32."""


class UnknownExtentError(Exception):
    """A shape or an element type is not known."""


@dataclass(frozen=True)
class Sizes:
    """One op at given extents.

    Every answer raises `UnknownExtentError` where shapes leave it open.

    Args:
        op: The op.
        dims: Extents of symbolic dimensions.
        threads: Intra-op threads.
        gives_codes: Whether its result is quantized at once (asked of integer kernels only).
    """

    op: Op
    dims: Mapping[str, int]
    threads: int
    gives_codes: bool = False

    def shape(self, value: Value) -> tuple[int, ...]:
        """Extents of a value."""
        if value.shape is None:
            raise UnknownExtentError
        return tuple(_extent(d, self.dims) for d in value.shape)

    def operand(self, index: int) -> tuple[int, ...]:
        """Extents of an operand."""
        return self.shape(self.op.operands[index])

    def has(self, index: int) -> bool:
        """True if an operand is given."""
        return self.op.input(index) is not None

    @property
    def result(self) -> tuple[int, ...]:
        """Extents of the first result."""
        return self.shape(self.op.result)

    def nbytes(self, value: Value) -> int:
        """Bytes of a value."""
        return prod(self.shape(value)) * width(value)

    @property
    def result_bytes(self) -> int:
        """Bytes of the first result."""
        return self.nbytes(self.op.result)

    def operand_bytes(self, index: int) -> int:
        """Bytes of an operand."""
        return self.nbytes(self.op.operands[index])


def _extent(dim: Dim, dims: Mapping[str, int]) -> int:
    if isinstance(dim, int):
        return dim
    if dim is None:
        raise UnknownExtentError
    try:
        found = dim.evaluate(dims)
    except KeyError:
        raise UnknownExtentError from None
    if found < 0:  # extents at which the model does not run
        raise UnknownExtentError
    return found


def width(value: Value) -> int:
    """Bytes of one element, 1 for those smaller than a byte."""
    if value.dtype is None or value.dtype in (DType.UNDEFINED, DType.STRING):
        raise UnknownExtentError
    return max(1, value.dtype.bitwidth // 8)
