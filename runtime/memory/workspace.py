"""Workspace of kernels besides operands and results: scratch that onnxruntime's CPU kernels allocate while they run.

The formulas stand in the operators' definitions (`memoptc.ir.ops`). Each was found by recording what a kernel allocates
for varied shapes (onnxruntime 1.31, x86-64; see `memoptc.runtime.native`) and is held against the recorder by the
tests; where the code behind it is known, it names its file in onnxruntime.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from memoptc.ir.core import Op
from memoptc.ir.ops import definition
from memoptc.ir.ops.sizes import Sizes, UnknownExtentError
from memoptc.runtime.memory.integer import fused_pairs

Workspace = Callable[[Op], int]
"""Bytes that an op's kernel needs besides its operands and results, during its step."""


def no_workspace(op: Op) -> int:
    """Kernels need nothing: tensors alone are counted."""
    return 0


@dataclass(frozen=True, eq=False)
class KernelWorkspace:
    """The model of onnxruntime's kernels for given extents; see `kernel_workspace`."""

    dims: Mapping[str, int]
    threads: int
    fused: bool

    @property
    def key(self) -> tuple[int, bool]:
        """Models with equal keys and extents give equal answers."""
        return self.threads, self.fused

    def __call__(self, op: Op) -> int:
        """Bytes that an op's kernel needs; 0 where shapes leave it open."""
        known = definition(op)
        formula, gives_codes = known.workspace, False
        if self.fused and known.integer_workspace is not None and op.graph is not None:
            pairs = op.graph.analysis(fused_pairs)
            if op in pairs.kernels:
                formula, gives_codes = known.integer_workspace, op.result in pairs.coded
        if formula is None:
            return 0
        try:
            return formula(Sizes(op, self.dims, self.threads, gives_codes))
        except UnknownExtentError:
            return 0


def kernel_workspace(dims: Mapping[str, int], threads: int = 1, *, fused: bool = True) -> KernelWorkspace:
    """Give the model of onnxruntime's kernels for given extents.

    Args:
        dims: Extents of symbolic dimensions, completed (see `extents`). A kernel whose shapes they leave open
            counts as needing nothing.
        threads: Intra-op threads.
        fused: Whether quantize and dequantize pairs are fused into integer kernels, which need scratch of their own.
    """
    return KernelWorkspace(dims, threads, fused)
