"""Effort of a search: its costs in nominal seconds, which are the same on every machine."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from memoptc.ir.core import Op
from memoptc.passes.precision._migrate.sites import WEIGHTED
from memoptc.passes.precision._quantize.sensitivity import bytes_of, work_of

MULTIPLICATIONS = 1.5e10
"""Multiplications of a second: one thread that runs products in float."""

WRITTEN = 2e8
"""Bytes of weights of a second: hashed, written, loaded and packed."""

CODED = 2e7
"""Bytes of weights of a second that a recovery changes: scaled, observed anew and coded."""

LEAST, PER_BYTE = 20.0, 1e-7
"""Seconds that all looks of a search may take, and as many more for each byte of weights."""


@dataclass
class Effort:
    """Cost of the measurements of one search, and what is left for them.

    Args:
        run: Seconds of running one sample.
        nbytes: Of the weights in float.
        products: Of those among them that recoveries change.
        few: Samples of a quick look.
        many: Samples of calibration.
        spent: Seconds that are spent.
        most: Seconds that the compile has for it.
        factor: How many times as long all looks may take as usual.
    """

    run: float
    nbytes: int
    products: int
    few: int
    many: int
    spent: float = 0.0
    most: float = math.inf
    factor: float = 1.0

    @classmethod
    def of(cls, layers: Iterable[Op], dims: Mapping[str, int], few: int, many: int) -> Effort:
        """Estimate it from the layers of a graph, at the extents of a compile.

        Args:
            layers: Nodes with weights.
            dims: Extents of symbolic dimensions.
            few: Samples of a quick look.
            many: Samples of calibration.
        """
        found = list(layers)
        work = sum(work_of(op, dims) for op in found)
        products = sum(bytes_of(op) for op in found if op.op_type in WEIGHTED)
        return cls(work / MULTIPLICATIONS, sum(bytes_of(op) for op in found), products, max(few, 1), max(many, 1))

    @property
    def allowed(self) -> float:
        """Seconds for all looks."""
        return min(self.factor * (LEAST + PER_BYTE * self.nbytes), max(self.most, 0.0))

    def look(self, samples: int | None = None) -> float:
        """Seconds of a look at a copy with most weights in codes, on few samples unless told otherwise."""
        return self.run * (self.few if samples is None else samples) + self.nbytes / 3 / WRITTEN

    @property
    def variant(self) -> float:
        """Seconds of a graph with other weights: channels and ranges observed, everything coded."""
        return 3 * self.run * self.many + self.products / CODED

    def spend(self, seconds: float) -> None:
        """Note what is done now."""
        self.spent += seconds

    def affords(self, seconds: float, share: float) -> bool:
        """True if this much more stays within a part of what is allowed."""
        return self.spent + seconds <= share * self.allowed

    def looks(self, share: float, samples: int | None = None) -> int:
        """Number of measurements that stay within a part of what is allowed."""
        return max(int((share * self.allowed - self.spent) / self.look(samples)), 0)
