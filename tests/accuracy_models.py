"""Models and data that accuracy is tested on: a trained classifier, and a net with one layer that integers break."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "models"
CNN = EXAMPLES / "digits_cnn.onnx"
DATA = {
    "calibration": str(EXAMPLES / "digits_calibration.npz"),
    "validation": str(EXAMPLES / "digits_validation.npz"),
}
FLAGS = [f"--{key}={value}" for key, value in DATA.items()]


def failing_model(path: Path) -> Path:
    """Five products; the fourth reads rows whose sizes differ a thousandfold, and a normalization behind it evens them.

    No scale per tensor codes such rows, no factor per channel helps, and clipping breaks the large ones.
    """
    rng = np.random.default_rng(0)
    sizes = [(16, 32), (32, 32), (32, 32), (32, 32), (32, 8)]
    weights = {f"w{i}": rng.normal(size=s, scale=s[0] ** -0.5).astype(np.float32) for i, s in enumerate(sizes)}
    weights["gain"] = np.ones(32, np.float32)
    nodes = []
    value = "x"
    for i in range(5):
        nodes.append(helper.make_node("MatMul", [value, f"w{i}"], [f"p{i}"], name=f"product_{i}"))
        value = f"p{i}"
        if i == 2:
            nodes.append(helper.make_node("Mul", [value, "size"], ["sized"], name="outliers"))
            value = "sized"
        elif i == 3:
            nodes.append(helper.make_node("LayerNormalization", [value, "gain"], ["n"], name="norm"))
            value = "n"
        elif i < 4:
            nodes.append(helper.make_node("Tanh", [value], [f"t{i}"], name=f"tanh_{i}"))
            value = f"t{i}"
    ports = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 16]),
        helper.make_tensor_value_info("size", TensorProto.FLOAT, ["N", 1]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        ports,
        [helper.make_tensor_value_info("p4", TensorProto.FLOAT, ["N", 8])],
        [numpy_helper.from_array(v, k) for k, v in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def data_for(path: Path) -> Path:
    rng = np.random.default_rng(1)
    path.mkdir()
    for i in range(24):
        x = rng.normal(size=(16, 16)).astype(np.float32)
        np.savez(path / f"{i:02}.npz", x=x, size=(10.0 ** rng.uniform(-2, 3, (16, 1))).astype(np.float32))
    return path
