"""Compile inside a program: a model in memory goes in, one comes out and runs in stock onnxruntime.

The model enlarges photographs of any size. Level 1 changes no bit of the output, and the same compiled model still
takes every size.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime

import memoptc

MODELS = Path(__file__).parent / "models"


def outputs(model: onnx.ModelProto, image: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    # The runtime's own optimizer may sum in another order; without it, equal means equal.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": image})[0]


def main() -> None:
    exported = onnx.load(MODELS / "photo_sr_x2.onnx")
    result = memoptc.compile(exported, level=1, dims={"height": 96, "width": 96})
    compiled = result.model
    assert isinstance(compiled, onnx.ModelProto)

    photo = np.load(MODELS / "photo_validation.npz")["image"][:1]
    for image in (photo, photo[:, :, 7:70, :33]):
        before, after = outputs(exported, image), outputs(compiled, image)
        assert np.array_equal(before, after)
        print(f"{image.shape[2]}x{image.shape[3]} -> {after.shape[2]}x{after.shape[3]}, every bit the same")
    print(f"planned for 96x96: {result.plan.arena_bytes} bytes, floor {result.plan.floor}")


if __name__ == "__main__":
    main()
