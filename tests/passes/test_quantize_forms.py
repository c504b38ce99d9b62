"""Forms of products and convolutions that no kernel of codes takes as they are: right all the same, at each target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from memoptc.api import compile as compile_model
from memoptc.runtime.data import Sample
from memoptc.runtime.quality import Examiner

WIDTH = 64


def _node(kind: str, operands: list[str], **attrs: Any) -> onnx.NodeProto:
    return helper.make_node(kind, operands, ["y"], name="layer", **attrs)


FORMS: dict[str, tuple[onnx.NodeProto, list[int]]] = {
    "weight on the left": (_node("MatMul", ["w", "x"]), [WIDTH, WIDTH]),
    "Gemm with alpha and beta": (_node("Gemm", ["x", "w", "b"], alpha=0.5, beta=-2.0), [WIDTH, WIDTH]),
    "Gemm transposes its left side": (_node("Gemm", ["x", "w"], transA=1), [WIDTH, WIDTH]),
    "Gemm adds one number a row": (_node("Gemm", ["x", "w", "rows"]), [WIDTH, WIDTH]),
    "ConvTranspose": (_node("ConvTranspose", ["x", "k"], strides=[2, 2]), [1, WIDTH, 5, 5]),
    "convolution in groups": (_node("Conv", ["x", "d"], group=WIDTH, pads=[1, 1, 1, 1]), [1, WIDTH, 6, 6]),
    "nothing to sum up": (_node("MatMul", ["x", "none"]), [WIDTH, 0]),
    "stack of products": (_node("MatMul", ["x", "stack"]), [3, 8, WIDTH]),
}


@pytest.mark.parametrize("target", ["int8", "int4"])
@pytest.mark.parametrize("with_data", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_forms_without_kernels_stay_right(form: str, with_data: bool, target: str, tmp_path: Path) -> None:
    rng, (node, shape) = np.random.default_rng(2), FORMS[form]
    weights = {
        "w": rng.normal(size=(WIDTH, WIDTH)),
        "b": rng.normal(size=WIDTH),
        "rows": rng.normal(size=(WIDTH, 1)),
        "k": rng.normal(size=(WIDTH, 16, 3, 3)),
        "d": rng.normal(size=(WIDTH, 1, 3, 3)),
        "none": np.zeros((0, WIDTH)),
        "stack": rng.normal(size=(3, WIDTH, WIDTH)),
    }
    graph = helper.make_graph(
        [node],
        "form",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items() if k in node.input],
    )
    model = onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    )
    onnx.save(model, tmp_path / "m.onnx")
    feeds = [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(8)]
    given = {"calibration": feeds[:6]} if with_data else {}
    compile_model(tmp_path / "m.onnx", 2, target, measure=False, **given).save(tmp_path / "small.onnx")
    examiner = Examiner(tmp_path / "m.onnx", [Sample(feed, None, "unseen") for feed in feeds[6:]])
    assert examiner.full(tmp_path / "small.onnx").sqnr_db > (25.0 if target == "int8" else 12.0)
