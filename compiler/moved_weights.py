"""Weights that passes made lie in a file while a compile goes on: the system can have their memory back."""

from __future__ import annotations

import contextlib
from pathlib import Path

from memoptc.ir.core import Graph
from memoptc.ir.mapped import is_mapped, move_to_file, release
from memoptc.ir.tensors import MadeTensor
from memoptc.manager import Instrument
from memoptc.pass_base import Pass
from memoptc.report.model import PassRecord

LEAST = 1 << 20
"""Bytes of a weight from which it is moved."""
FROM = 1 << 26
"""Bytes of such weights together from which it is done."""


class MoveWeights(Instrument):
    """Moves large weights that a pass left in memory into a file, and gives back what was read of those moved before.

    Programs that snapshots keep share these weights, or hold others of an earlier stage: without it each stage that
    rewrites all weights costs their size once more.

    Args:
        folder: Where files are made.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def after(self, index: int, pass_: Pass, graph: Graph, record: PassRecord) -> None:
        """Move what a pass made."""
        values = {id(t): t for op in graph.walk("const") if isinstance(t := op.attrs.get("value"), MadeTensor)}
        large = [t for t in values.values() if t.nbytes >= LEAST]
        held = [t for t in large if not is_mapped(t)]
        if sum(t.nbytes for t in held) >= FROM:
            with contextlib.suppress(OSError):  # no room in the folder: they stay
                move_to_file(held, self._folder)
        for tensor in large:
            release(tensor)
