"""Errors of coding each weight by itself, as noise to signal, and the share of them that reaches the outputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from memoptc.ir.types import DType
from memoptc.passes.precision._quantize.blocks import encode, error_of
from memoptc.passes.precision._quantize.numerics import weight_codes
from memoptc.passes.precision._quantize.tables import make_table
from memoptc.passes.precision._quantize.weight_format import WeightFormat, near_divisor
from memoptc.passes.precision._quantize.weight_operands import CONVOLUTIONS, Weight, WeightUse
from memoptc.runtime.quality import FAILED


def names_of(weights: Sequence[Weight]) -> list[str]:
    """Name weights after the first node that reads each; equal names are numbered."""
    seen: Counter[str] = Counter()
    found = []
    for weight in weights:
        op = weight.sites[0].op
        name = op.name or f"{op.op_type}_{op.result.name}"
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return found


def is_table(site: WeightUse, plan: WeightFormat) -> bool:
    """True if a weight is stored as codes into a table of numbers, which is decoded while the model is loaded."""
    return plan.decode == "load" and site.decoded


def coding_errors(weight: Weight, plan: WeightFormat) -> tuple[float, float]:
    """Noise-to-signal ratios of a weight's quantization, in blocks of 4 bits and per channel in 8: squared sums."""
    site, content = weight.sites[0], weight.numpy()
    if is_table(site, plan):
        found = [make_table(content, bits, plan.opset) for bits in (4, 8)]
        return (found[0].noise / (found[0].signal or 1.0), found[1].noise / (found[1].signal or 1.0))
    if site.op.op_type in CONVOLUTIONS:
        length = int(np.prod(content.shape[1:]))
        rows, axis = content.reshape(-1, near_divisor(length, plan.block)), 0
        block = rows.shape[1]
    else:
        rows, axis, block = np.ascontiguousarray(content if site.columns else content.T), 1 - site.columns, plan.block
    signal, coarse = error_of(rows, encode(rows, plan.bits, block, symmetric=False, search=plan.bits == 2))
    codes = weight_codes(content, axis, DType.INT8)
    real = codes.codes * codes.scales.reshape([-1 if i == axis else 1 for i in range(content.ndim)])
    fine = float(np.square(content - real, dtype=np.float64).sum())
    return (coarse / signal, fine / signal) if signal else (0.0, 0.0)


def reaching_shares(pairs: Sequence[tuple[float, Mapping[str, float]]]) -> dict[str, float]:
    """Share of a weight's own error that reaches each output: the median of those measured, else all."""
    used = [(error, noise) for error, noise in pairs if error > 0 and noise and FAILED not in noise]
    if not used:
        return {"weights": 1.0}
    return {key: float(np.median([noise[key] / error for error, noise in used])) for key in used[0][1]}
