"""Local functions are inlined with their attributes, nested ones too, and numbers stay."""

from __future__ import annotations

import numpy as np
import onnx.parser

import memoptc
from memoptc.runtime.evaluate import Evaluator
from memoptc.runtime.options import RunOptions

MODEL = """
<ir_version: 9, opset_import: ["" : 18, "local" : 1]>
agraph (float[N, 4] x) => (float[N, 4] y)
{
   t = local.twice <slope: float = 0.5> (x)
   y = local.scale <slope: float = 0.25> (t)
}
<domain: "local", opset_import: ["" : 18]>
scale <slope> (a) => (b)
{
   b = LeakyRelu <alpha: float = @slope> (a)
}
<domain: "local", opset_import: ["" : 18, "local" : 1]>
twice <slope> (a) => (b)
{
   m = local.scale <slope: float = @slope> (a)
   b = local.scale <slope: float = @slope> (m)
}
"""


def test_functions_with_attributes_are_inlined_and_no_bit_changes() -> None:
    model = onnx.parser.parse_model(MODEL)
    result = memoptc.compile(model, level=1, verify="off")
    assert not result.model.functions
    assert [n.op_type for n in result.model.graph.node] == ["LeakyRelu"] * 3
    x = np.linspace(-3, 3, 12, dtype=np.float32).reshape(3, 4)
    plain = RunOptions(optimize=False)
    before, after = (Evaluator(m, plain).run({"x": x})["y"] for m in (model, result.model))
    assert before.tobytes() == after.tobytes()


def test_level_0_keeps_them() -> None:
    model = onnx.parser.parse_model(MODEL)
    kept = memoptc.compile(model, level=0, verify="off").model
    assert {f.name for f in kept.functions} == {"scale", "twice"}
