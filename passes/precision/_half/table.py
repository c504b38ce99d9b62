"""Narrow float formats, and what onnxruntime's CPU does with them: data, no code.

Read off onnxruntime 1.31.1's own list of kernels on x86-64; a test asks the installed one. Where a version lacks a
kernel of these, it puts Casts around the op, which costs time and no correctness.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from memoptc.ir.types import DType


@dataclass(frozen=True)
class Format:
    """A float format narrower than float32.

    Args:
        dtype: Element type.
        largest: Largest finite magnitude.
        opset: Standard operators from which on it can be stored and decoded.
        least_decibels: What a weight must keep over its own rounding; a weight of normal numbers keeps about 73 dB in
            float16, 55 in bfloat16 and 31 in float8, one below the smallest normal number far less.
        kernels: Operators with a kernel for it on the device, and the first opset of that kernel.
    """

    dtype: DType
    largest: float
    opset: int
    least_decibels: float
    kernels: Mapping[str, int] = field(default_factory=dict)


FORMATS = {
    "float16": Format(DType.FLOAT16, 65504.0, 6, 60.0),
    "bfloat16": Format(DType.BFLOAT16, 3.3895313892515355e38, 13, 45.0),
    "float8": Format(DType.FLOAT8E4M3FN, 448.0, 19, 20.0),
}
"""float8 is E4M3FN (no infinities); it is only stored, with scales, and never computed with."""
