"""Inputs for commands that run a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def made_up(model: Path, dims: dict[str, int], seed: int = 0) -> dict[str, Any]:
    """Make inputs up that a model runs with.

    Args:
        model: Its path.
        dims: Extents of symbolic dimensions.
        seed: Of the values.

    Raises:
        InputError: the model cannot be read, or no inputs are found that it runs with.
    """
    from memoptc.ir.infer import infer_shapes
    from memoptc.ir.onnx_io import read_onnx
    from memoptc.runtime.profile import make_feed

    graph = read_onnx(model)
    infer_shapes(graph)
    return make_feed(graph, model, dims, seed)
