"""Sensitivity: the output error of quantizing each layer alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np

from memoptc.ir.core import Op, Tensor
from memoptc.ir.mapped import release
from memoptc.ir.ops import layout_of
from memoptc.ir.tensors import nbytes
from memoptc.passes.precision._migrate.sites import WEIGHTED
from memoptc.passes.precision._quantize.calibrated import CalibratedGraph
from memoptc.passes.precision._quantize.candidates import CandidateEvaluator
from memoptc.passes.precision._quantize.correct import output_axis
from memoptc.passes.precision._quantize.layer_precision import LayerPrecision
from memoptc.passes.precision._quantize.remaining_time import Pace
from memoptc.passes.precision._quantize.settings import Setting
from memoptc.passes.precision._quantize.tradeoff import (
    Layer,
)
from memoptc.runtime.calibrate import Range
from memoptc.runtime.observers import squared_error
from memoptc.runtime.quality import FAILED

EXACT = 32
"""Layers whose effect on the output is measured; that of the others follows from their own error."""

SAMPLES = 4
"""On how many samples."""

_BLOCK = 32
"""Weights that share a scale in 4 bits."""

_OUTLIERS = 1e-3
"""Part of the elements, those of largest magnitude, that do not count as signal."""

_PIECE = 1 << 20
"""Weights that are looked at together."""

_FAINT = 0.01
"""Layers with less than this part of the loudest one's noise are not looked at twice."""


def sensitivities(
    variant: CalibratedGraph,
    setting: Setting,
    layers: Mapping[str, Op],
    evaluator: CandidateEvaluator,
    exact: int = EXACT,
) -> list[Layer]:
    """Measure each layer alone, the noisiest by their own error first and exactly, then estimate the others.

    Args:
        variant: The calibrated graph.
        setting: How it is quantized.
        layers: By name, as they are in another copy of the graph.
        evaluator: Runs copies.
        exact: How many layers are measured.
    """
    own = _own_noise(variant, layers)
    ranked = list(layers)
    if len(layers) > exact:
        ranked.sort(key=lambda name: -max(own.get(name, {FAILED: math.inf}).values()))
    chosen, rest = ranked[:exact], ranked[exact:]
    everywhere = dict.fromkeys(layers, LayerPrecision.FLOAT)

    def alone(name: str, state: LayerPrecision) -> dict[str, float]:
        return evaluator.quick(variant.quantized(setting, {**everywhere, name: state}), SAMPLES).noise

    found: dict[str, dict[LayerPrecision, dict[str, float]]] = {name: {} for name in layers}
    pace = Pace(len(chosen))
    for number, name in enumerate(chosen):
        variant.context.say(f"each layer alone, {pace.at(number)}")
        for state in _measured(name, layers[name], variant):
            found[name][state] = alone(name, state)
    loud = _FAINT * max((max(n.values(), default=0.0) for f in found.values() for n in f.values()), default=0.0)
    for name in chosen:
        if layers[name].op_type in WEIGHTED and LayerPrecision.INT8 in found[name]:
            noise = found[name][LayerPrecision.INT8]
            heard = max(noise.values(), default=0.0) >= loud
            found[name][LayerPrecision.INT8_WEIGHTS] = (
                alone(name, LayerPrecision.INT8_WEIGHTS) if heard else _part(noise, own.get(name, {}))
            )
    measured = [(own.get(n, {}).get(state, 0.0), noise) for n in chosen for state, noise in found[n].items()]
    for name in rest:
        for state in _possible(name, layers[name], variant):
            found[name][state] = _scaled(own.get(name, {}).get(state, 0.0), measured)
    return [
        Layer(name, op.op_type, bytes_of(op), work_of(op, variant.context.dims), found[name], name in set(chosen))
        for name, op in layers.items()
    ]


def _measured(name: str, op: Op, variant: CalibratedGraph) -> list[LayerPrecision]:
    """States of a layer that are looked at in any case."""
    states = [LayerPrecision.INT8] if name not in variant.codes.weight_only else [LayerPrecision.INT8_WEIGHTS]
    return [*states, LayerPrecision.INT4_WEIGHTS] if name in variant.codes.narrow else states


def _possible(name: str, op: Op, variant: CalibratedGraph) -> list[LayerPrecision]:
    states = _measured(name, op, variant)
    return (
        [*states, LayerPrecision.INT8_WEIGHTS]
        if op.op_type in WEIGHTED and LayerPrecision.INT8_WEIGHTS not in states
        else states
    )


def _own_noise(variant: CalibratedGraph, layers: Mapping[str, Op]) -> dict[str, dict[LayerPrecision, float]]:
    """Layer -> state -> noise to signal expected in its own result, from what calibration saw and the weights alone.

    Rounding is uniform within a step (Widrow and Kollar, 2008). A product hands on noise as it hands on its signal, as
    long as neither prefers a direction; the signal is what all but one in a thousand elements hold, since the energy
    of a few outliers would hide what their range does to all others.
    """
    found: dict[str, dict[LayerPrecision, float]] = {}
    heavy = {op.name: op for op in variant.choice.heavy}
    for name, layer in layers.items():
        weights = heavy[name].operands[1].tensor if name in heavy else _weight_in(layer)
        if weights is None:
            continue
        axis = output_axis(heavy[name]) if name in heavy else 0
        found[name] = _rounding_noise(weights, axis)
        if name in variant.codes.wide:  # blocks of 8 bits have steps as much finer as those of 4 have more of them
            found[name][LayerPrecision.INT8_WEIGHTS] = min(
                found[name][LayerPrecision.INT8_WEIGHTS], found[name][LayerPrecision.INT4_WEIGHTS] * (15 / 255) ** 2
            )
        seen = variant.ranges.get(heavy[name].operand) if name in heavy else None
        found[name][LayerPrecision.INT8] = found[name][LayerPrecision.INT8_WEIGHTS] + (
            0.0 if seen is None else _activation_noise(seen)
        )
    return found


def _weight_in(op: Op) -> Tensor | None:
    """The largest constant that an op reads, through a Transpose, too."""
    read = [v.op.operand if v.op is not None and v.op.is_a("Transpose") else v for v in op.operands]
    return max((v.tensor for v in read if v.tensor is not None), key=nbytes, default=None)


def _rounding_noise(tensor: Tensor, axis: int) -> dict[LayerPrecision, float]:
    """Noise-to-signal ratios of a weight's rounding: by channels of 8 bits, and by blocks of 4."""
    content = np.asarray(tensor.numpy())
    rows = (
        np.moveaxis(content, axis, 0).reshape(content.shape[axis], -1) if content.ndim > 1 else content.reshape(1, -1)
    )
    signal = fine = coarse = 0.0
    step = max(1, _PIECE // max(rows.shape[1], 1))
    for start in range(0, len(rows), step):
        part = np.ascontiguousarray(rows[start : start + step], np.float32)
        signal += float(np.einsum("ij,ij->", part, part, dtype=np.float64))
        largest = np.maximum(part.max(1), -part.min(1)).astype(np.float64)
        fine += float(np.square(largest / 127).sum()) * part.shape[1] / 12
        whole = part[:, : part.shape[1] // _BLOCK * _BLOCK].reshape(len(part), -1, _BLOCK)
        if whole.size:
            width = (whole.max(2) - whole.min(2)).astype(np.float64)
            coarse += float(np.square(width / 15).sum()) * part.shape[1] / whole.shape[1] / 12
    release(tensor)
    if signal <= 0:
        return {LayerPrecision.INT8_WEIGHTS: 0.0, LayerPrecision.INT4_WEIGHTS: 0.0}
    return {LayerPrecision.INT8_WEIGHTS: fine / signal, LayerPrecision.INT4_WEIGHTS: coarse / signal}


def _activation_noise(seen: Range) -> float:
    """Noise-to-signal ratio of an activation in 8 bits, the signal without its outliers."""
    if seen.histogram is None or not seen.count:
        return 0.0
    histogram = seen.histogram
    centers = (histogram.edges[:-1] + histogram.edges[1:]) / 2
    magnitudes, counts = np.abs(centers), histogram.counts.astype(np.float64)
    order = np.argsort(magnitudes, kind="stable")
    kept = order[np.cumsum(counts[order]) <= (1 - _OUTLIERS) * counts.sum()]
    signal = float((counts[kept] * np.square(centers[kept])).sum()) / max(float(counts[kept].sum()), 1.0)
    noise = squared_error(histogram, seen.extremes, seen.min, seen.max) / seen.count
    return noise / signal if signal > 0 else math.inf if noise > 0 else 0.0


def _part(noise: Mapping[str, float], own: Mapping[LayerPrecision, float]) -> dict[str, float]:
    """Estimate a layer's noise from the weights' part of it, where that is not worth a measurement."""
    whole = own.get(LayerPrecision.INT8, 0.0)
    share = min(own.get(LayerPrecision.INT8_WEIGHTS, 0.0) / whole, 1.0) if math.isfinite(whole) and whole > 0 else 1.0
    return {key: n * share for key, n in noise.items()}


def _scaled(own: float, measured: Iterable[tuple[float, dict[str, float]]]) -> dict[str, float]:
    """Scale a layer's own noise to the outputs, by the median ratio of those that were measured."""
    pairs = [(n, found) for n, found in measured if n > 0 and found and FAILED not in found]
    if not pairs:
        return {}
    if not own:
        return dict.fromkeys(pairs[0][1], 0.0)
    return {key: own * float(np.median([found[key] / n for n, found in pairs])) for key in pairs[0][1]}


def bytes_of(op: Op) -> int:
    """Bytes of the constants that an op reads, through a Transpose, too."""
    read = [v.op.operand if v.op is not None and v.op.is_a("Transpose") else v for v in op.operands]
    return sum(nbytes(v.tensor) for v in read if v.tensor is not None)


def work_of(op: Op, dims: Mapping[str, int]) -> float:
    """Multiplications: each weight meets every place of the result once."""
    if op.op_type not in WEIGHTED:
        return 0.0
    tensor, result = op.operands[1].tensor, op.result.tensor_type
    if tensor is None:  # read through a Transpose: no integer kernel takes it, so all states work alike
        return 0.0
    shape = None if result is None else result.bind(dims).static_shape
    if shape is None:
        return float(tensor.size)
    outputs = tensor.shape.numpy()[layout_of(op).output_axis]
    return float(tensor.size) * float(np.prod(shape)) / max(outputs, 1)
