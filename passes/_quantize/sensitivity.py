"""What quantizing each layer alone does to the model's output."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from memoptc.ir.core import Op
from memoptc.ir.tensors import nbytes
from memoptc.ir.types import TensorType
from memoptc.passes._migrate.factors import Reader
from memoptc.passes._migrate.sites import WEIGHTED
from memoptc.passes._quantize.trial import Setting, Trials, Variant

EXACT = 32
"""Layers whose effect on the output is measured; that of the others follows from their own error."""

SAMPLES = 4
"""On how many samples."""

_FAINT = 0.01
"""Layers with less than this part of the loudest one's noise are not looked at twice."""


@dataclass(frozen=True)
class Layer:
    """One product, convolution or table.

    Args:
        name: Of the node.
        op_type: Its operator.
        nbytes: Of its weights in float.
        work: Multiplications of one run, where extents are known.
        noise: Noise to signal per output with this layer alone on integers.
        weights: The same with its weights alone on integers; where that was not looked at, the same figures.
        measured: Whether that was measured, or estimated from the layer's own error.
    """

    name: str
    op_type: str
    nbytes: int
    work: float
    noise: dict[str, float]
    weights: dict[str, float]
    measured: bool

    @property
    def worst(self) -> float:
        """Noise to signal at the output that suffers most."""
        return max(self.noise.values(), default=0.0)


def sensitivities(variant: Variant, setting: Setting, layers: Mapping[str, Op], trials: Trials) -> list[Layer]:
    """Measure each layer alone, the noisiest by their own error first and exactly, then estimate the others.

    Args:
        variant: The calibrated graph.
        setting: How it is quantized.
        layers: By name, as they are in another copy of the graph.
        trials: Runs copies.
    """
    own = _own_noise(variant, layers)
    ranked = sorted(layers, key=lambda name: -own[name])
    exact, rest = ranked[:EXACT], ranked[EXACT:]
    noise, weights = {}, {}
    for name in exact:
        others = [n for n in layers if n != name]
        noise[name] = trials.quick(variant.quantized(setting, others), SAMPLES).noise
    loud = _FAINT * max(max(found.values(), default=0.0) for found in noise.values())
    for name in exact:
        weights[name] = noise[name]
        if layers[name].op_type in WEIGHTED and max(noise[name].values(), default=0.0) >= loud:
            others = [n for n in layers if n != name]
            weights[name] = trials.quick(variant.quantized(setting, others, [name]), SAMPLES).noise
    for name in rest:
        for found in (noise, weights):
            found[name] = _scaled(own[name], [(own[n], found[n]) for n in exact])
    order = {name: i for i, name in enumerate(layers)}
    return [
        Layer(
            name,
            layers[name].op_type,
            _bytes(layers[name]),
            _work(layers[name], variant.context.dims),
            noise[name],
            weights[name],
            name in exact,
        )
        for name in sorted(layers, key=order.__getitem__)
    ]


def _own_noise(variant: Variant, layers: Mapping[str, Op]) -> dict[str, float]:
    """Noise to signal expected in each layer's own result, from one pass over the data."""
    found = dict.fromkeys(layers, 0.0)
    if len(layers) <= EXACT:
        return found
    for op in variant.choice.heavy:
        seen = variant.channels.get(op.operand)
        if op.name in found and seen is not None:
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
    return sum(nbytes(v.tensor) for v in op.operands if v.tensor is not None)


def _work(op: Op, dims: Mapping[str, int]) -> float:
    """Multiplications: each weight meets every place of the result once."""
    if op.op_type not in WEIGHTED:
        return 0.0
    tensor, result = op.operands[1].tensor, op.result.type
    assert tensor is not None
    shape = result.bind(dims).static_shape if isinstance(result, TensorType) else None
    if shape is None:
        return float(tensor.size)
    outputs = tensor.shape.numpy()[0 if op.op_type == "Conv" or op.attrs.get("transB", 0) else 1]
    return float(tensor.size) * float(np.prod(shape)) / max(outputs, 1)
