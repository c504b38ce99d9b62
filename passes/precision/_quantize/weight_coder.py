"""Codes of weights: searched, rounded by data, and kept for all copies of a graph that read the same weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from memoptc.ir.types import DType
from memoptc.passes.precision._quantize.blocks import Blocks, encode, error_of
from memoptc.passes.precision._quantize.numerics import Codes, weight_codes
from memoptc.passes.precision._quantize.rounding import Dampings, Rounded, error_aside, nearer, round_blocks
from memoptc.passes.precision._quantize.tables import Table, make_table
from memoptc.passes.precision._quantize.weight_format import WeightFormat, near_divisor
from memoptc.passes.precision._quantize.weight_operands import CONVOLUTIONS, Weight, WeightUse
from memoptc.runtime.moments import Moments

WINDOW = 2
"""What stands for `WeightUse.columns` of convolutions."""


class CodeKey(NamedTuple):
    """One way to read one weight in blocks.

    Args:
        tensor: Identity of the tensor.
        columns: `WeightUse.columns`, or `WINDOW`.
        factor: What it is multiplied by.
    """

    tensor: int
    columns: int
    factor: float


class CodedMatrix(NamedTuple):
    """A weight in blocks.

    Args:
        blocks: The codes.
        signal: Squared magnitude of the weight.
        noise: Squared magnitude of what coding changed.
    """

    blocks: Blocks
    signal: float
    noise: float


Memo: TypeAlias = dict[CodeKey, CodedMatrix]


@dataclass
class WeightCoder:
    """Gives the codes of one weight after the other.

    Args:
        format: Of the codes.
        signal: Squared magnitude of all weights coded so far.
        noise: Squared magnitude of what coding changed.
        rounded: What rounding by data gained, for each matrix where moments were at hand.
        memo: Codes to use and to add to, for many copies of one graph; `None` keeps them for one weight only.
        tables: The same for tables, by the tensor's identity and bits of an index.
        dampings: What rounding earlier weights has shown.
    """

    format: WeightFormat
    signal: float = 0.0
    noise: float = 0.0
    rounded: list[Rounded] = field(default_factory=list)
    memo: Memo | None = None
    tables: dict[tuple[int, int], Table] | None = None
    dampings: Dampings = field(default_factory=Dampings)
    _moments: Mapping[int, Moments] = field(default_factory=dict)
    _codes: Memo = field(default_factory=dict)
    _counted: set[tuple[int, ...] | CodeKey] = field(default_factory=set)

    def begin(self, moments: Mapping[int, Moments]) -> None:
        """Begin with another weight.

        Args:
            moments: X^T X of what its columns meet, by `WeightUse.columns` (`WINDOW` for convolutions).
        """
        self._moments = moments
        if self.memo is None:
            self._codes.clear()
        else:
            self._codes = self.memo

    def matrix(self, weight: Weight, columns: int, factor: float) -> Blocks:
        """The weight as a matrix whose rows are the sums' results."""
        key = CodeKey(id(weight.value.tensor), columns, factor)
        if key not in self._codes:
            content = weight.numpy() if factor == 1.0 else weight.numpy() * np.float32(factor)
            rows = np.ascontiguousarray(content if columns == 1 else content.T)
            self._codes[key] = self._encode(rows, rows, self.format.block, columns)
        return self._known(key)

    def window(self, weight: Weight) -> Blocks:
        """The weight of a convolution in rows of one block each."""
        content = weight.numpy()
        block = near_divisor(int(np.prod(content.shape[1:])), self.format.block)
        key = CodeKey(id(weight.value.tensor), WINDOW, 1.0)
        if key not in self._codes:
            results = content.reshape(len(content), -1)
            self._codes[key] = self._encode(content.reshape(-1, block), results, block, WINDOW)
        return self._known(key)

    def channels(self, content: npt.NDArray[np.float32], axis: int) -> Codes:
        """A weight in int8 with a scale per channel."""
        found = weight_codes(content, axis, DType.INT8)
        spread = found.scales.reshape([-1 if i == axis else 1 for i in range(content.ndim)])
        self.signal += float(np.square(content, dtype=np.float64).sum())
        self.noise += float(np.square(content - found.codes * spread, dtype=np.float64).sum())
        return found

    def table(self, weight: Weight, site: WeightUse, bits: int) -> Table:
        """A weight in indices of few numbers."""
        known = {} if self.tables is None else self.tables
        key = (id(weight.value.tensor), bits)
        if key not in known:
            seen = self._moments.get(WINDOW) if site.op.op_type in CONVOLUTIONS else None
            known[key] = self._table(weight.numpy(), bits, seen)
        if key not in self._counted:
            self._counted.add(key)
            self.signal += known[key].signal
            self.noise += known[key].noise
        return known[key]

    def _table(self, content: npt.NDArray[np.float32], bits: int, seen: Moments | None) -> Table:
        """A table by what the weights meet, where that errs less on what was kept aside than one that knows nothing."""
        plain = make_table(content, bits, self.format.opset)
        if seen is None:
            return plain
        other = make_table(content, bits, self.format.opset, np.diag(seen.fit))
        rows = content.reshape(-1, len(seen.fit))

        def error(table: Table) -> float:
            decoded = table.decoded().reshape(rows.shape)
            return error_aside(rows, lambda part: decoded[part], seen)

        return other if error(other) < error(plain) else plain

    def _known(self, key: CodeKey) -> Blocks:
        found = self._codes[key]
        if key not in self._counted:
            self._counted.add(key)
            self.signal += found.signal
            self.noise += found.noise
        return found.blocks

    def _encode(
        self, rows: npt.NDArray[np.float32], results: npt.NDArray[np.float32], block: int, columns: int
    ) -> CodedMatrix:
        """Code rows of blocks; `results` are the same weights, in rows of one result each."""
        form = self.format
        blocks = encode(rows, form.bits, block, symmetric=form.symmetric, search=form.search)
        if columns in self._moments:
            moments = self._moments[columns]
            if form.search and rows is results:
                known = np.diag(moments.fit)
                other = encode(rows, form.bits, block, symmetric=form.symmetric, importance=known)
                blocks = nearer(rows, blocks, other, moments)
            blocks, gained = round_blocks(results, blocks, moments, self.dampings)
            self.rounded.append(gained)
        return CodedMatrix(blocks, *error_of(rows, blocks))
