"""Feeds for the decoders of `decoders`, and how near their outputs must be."""

from __future__ import annotations

from typing import Any

import numpy as np
from decoders import Array, Style, decoder

CLOSE = 2e-6
"""Of an output's largest magnitude: float noise."""


def feed(style: Style, batch: int, steps: int, past: int, hidden: str = "", seed: int = 0) -> dict[str, Array]:
    """Inputs of a decoder; `hidden` is `left`, `right` or `all`: what padding hides of every sequence but the first."""
    rng = np.random.default_rng(seed)
    mask = np.ones((batch, past + steps), np.int64)
    if hidden == "left":
        mask[1:, : (past + steps + 1) // 2] = 0
    elif hidden == "right":
        mask[1:, (past + steps + 1) // 2 :] = 0
    elif hidden == "all":
        mask[-1:] = 0
    found: dict[str, Array] = {
        "input_ids": rng.integers(0, style.vocabulary, (batch, steps)),
        "attention_mask": mask,
        "position_ids": np.tile(np.arange(past, past + steps), (batch, 1)),
    }
    for value in decoder(style).graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name not in found:
            shape = [d.dim_value for d in dims]
            shape[-4], shape[-2] = batch, past
            found[value.name] = rng.standard_normal(shape).astype(np.float32)
    wanted = {value.name for value in decoder(style).graph.input}
    return {name: array for name, array in found.items() if name in wanted}


def close(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Outputs are the same but for float noise."""
    for name, a in first.items():
        b = second[name]
        assert a.shape == b.shape, name
        assert np.array_equal(np.isnan(a), np.isnan(b)), name
        scale = float(np.nanmax(np.abs(a), initial=1e-30))
        assert np.nanmax(np.abs(a - b), initial=0.0) <= CLOSE * scale, name


SHAPES = [(1, 7, 0), (1, 1, 9), (1, 6, 5), (3, 7, 0), (3, 1, 9), (3, 4, 5)]
"""Sequences, steps and past: prefill, decode, and several steps after a past, of one sequence and of three."""


MISSES = (
    "heads by turns", "mask before scale", "softmax over rows", "past behind", "rotary sign", "rotary halves differ",
    "norm of cubes", "epsilon outside", "scale by head", "softcap turned", "keys as values",
)  # fmt: skip
"""Attention, rotary embedding or a norm, but for one thing."""
