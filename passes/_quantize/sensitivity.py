"""What quantizing each layer alone does to the model's output."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np

from memoptc.ir.core import Op
from memoptc.ir.ops import layout_of
from memoptc.ir.tensors import nbytes
from memoptc.ir.types import TensorType
from memoptc.passes._migrate.factors import Reader
from memoptc.passes._migrate.sites import WEIGHTED
from memoptc.passes._quantize.tradeoff import BLOCKS, FLOAT, INTEGER, WEIGHTS, Layer
from memoptc.passes._quantize.trial import Setting, Trials, Variant

EXACT = 32
"""Layers whose effect on the output is measured; that of the others follows from their own error."""

SAMPLES = 4
"""On how many samples."""

_FAINT = 0.01
"""Layers with less than this part of the loudest one's noise are not looked at twice."""


def sensitivities(variant: Variant, setting: Setting, layers: Mapping[str, Op], trials: Trials) -> list[Layer]:
    """Measure each layer alone, the noisiest by their own error first and exactly, then estimate the others.

    Args:
        variant: The calibrated graph.
        setting: How it is quantized.
        layers: By name, as they are in another copy of the graph.
        trials: Runs copies.
    """
    own = _own_noise(variant, layers)
    ranked = sorted(layers, key=lambda name: -own.get(name, math.inf))
    exact, rest = ranked[:EXACT], ranked[EXACT:]
    everywhere = dict.fromkeys(layers, FLOAT)

    def alone(name: str, state: str) -> dict[str, float]:
        return trials.quick(variant.quantized(setting, {**everywhere, name: state}), SAMPLES).noise

    found: dict[str, dict[str, dict[str, float]]] = {name: {} for name in layers}
    for name in exact:
        for state in _measured(name, layers[name], variant):
            found[name][state] = alone(name, state)
    loud = _FAINT * max((max(n.values(), default=0.0) for f in found.values() for n in f.values()), default=0.0)
    for name in exact:
        if layers[name].op_type in WEIGHTED and INTEGER in found[name]:
            noise = found[name][INTEGER]
            heard = max(noise.values(), default=0.0) >= loud
            found[name][WEIGHTS] = alone(name, WEIGHTS) if heard else noise
    for name in rest:
        for state in _possible(name, layers[name], variant):
            # blocks err by their weights only, much alike in all layers
            sizes = {n: own.get(n, 0.0) if state != BLOCKS else 1.0 for n in layers}
            found[name][state] = _scaled(sizes[name], [(sizes[n], found[n][state]) for n in exact if state in found[n]])
    return [
        Layer(name, op.op_type, _bytes(op), work_of(op, variant.context.dims), found[name], measured=name in set(exact))
        for name, op in layers.items()
    ]


def _measured(name: str, op: Op, variant: Variant) -> list[str]:
    """States of a layer that are looked at in any case."""
    states = [INTEGER] if name not in variant.codes.apart else [WEIGHTS]
    return [*states, BLOCKS] if name in variant.codes.narrow else states


def _possible(name: str, op: Op, variant: Variant) -> list[str]:
    states = _measured(name, op, variant)
    return [*states, WEIGHTS] if op.op_type in WEIGHTED and WEIGHTS not in states else states


def _own_noise(variant: Variant, layers: Mapping[str, Op]) -> dict[str, float]:
    """Noise to signal expected in each layer's own result, from one pass over the data, where that is known."""
    found: dict[str, float] = {}
    if len(layers) <= EXACT:
        return found
    for op in variant.choice.heavy:
        seen = variant.channels.get(op.operand)
        if op.name in layers and seen is not None:
            reader = Reader.of(op)
            if len(reader.energy) == len(seen.low):
                found[op.name] = reader.noise(seen, np.ones(len(seen.low)))
    return found


def _scaled(own: float, measured: Iterable[tuple[float, dict[str, float]]]) -> dict[str, float]:
    """What reaches the outputs of a layer's own noise: as of the middle one of those that were measured."""
    pairs = [(n, found) for n, found in measured if n > 0 and found]
    if not pairs:
        return {}
    return {key: own * float(np.median([found[key] / n for n, found in pairs])) for key in pairs[0][1]}


def _bytes(op: Op) -> int:
    read = [v.op.operand if v.op is not None and v.op.is_a("Transpose") else v for v in op.operands]
    return sum(nbytes(v.tensor) for v in read if v.tensor is not None)


def work_of(op: Op, dims: Mapping[str, int]) -> float:
    """Multiplications: each weight meets every place of the result once."""
    if op.op_type not in WEIGHTED:
        return 0.0
    tensor, result = op.operands[1].tensor, op.result.type
    if tensor is None:  # read through a Transpose: no integer kernel takes it, so all states work alike
        return 0.0
    shape = result.bind(dims).static_shape if isinstance(result, TensorType) else None
    if shape is None:
        return float(tensor.size)
    outputs = tensor.shape.numpy()[layout_of(op).output_axis]
    return float(tensor.size) * float(np.prod(shape)) / max(outputs, 1)
