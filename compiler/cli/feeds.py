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


def given(model: Path, inputs: Path) -> dict[str, Any]:
    """Read inputs from a file, without labels that stand beside them.

    Raises:
        InputError: it cannot be read, or has arrays that are no inputs of the model.
    """
    from memoptc.ir.diagnostics import InputError
    from memoptc.ir.onnx_io import read_onnx
    from memoptc.runtime.data import LABEL_KEYS
    from memoptc.runtime.npz import load_feed

    feed = load_feed(inputs)
    names = [value.name for value in read_onnx(model).inputs]
    unknown = [name for name in feed if name not in names and name not in LABEL_KEYS]
    if unknown:
        raise InputError(
            f"{inputs}: {unknown[0]!r} is not an input of the model.",
            hint=f"The model's inputs are {', '.join(names)}.",
        )
    return {name: value for name, value in feed.items() if name in names}
