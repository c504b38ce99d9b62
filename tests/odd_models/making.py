"""What odd models are made of: text, and weights drawn from a seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

Made = tuple[onnx.ModelProto, list[dict[str, Any]]]
"""A model, and feeds for it."""


def rng(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def text(body: str, opset: int = 18, ir: int = 9, extra: str = "", **weights: Any) -> onnx.ModelProto:
    imports = f'["" : {opset}{extra}]'
    model = onnx.parser.parse_model(f"<ir_version: {ir}, opset_import: {imports}> {body}")
    for name, array in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return model
