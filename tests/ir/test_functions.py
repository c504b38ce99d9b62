"""Bodies of a model's functions in place of their calls."""

import numpy as np
import onnx.parser

from memoptc.ir.functions import inlined
from memoptc.ir.onnx_io import read_onnx, weight_tensors
from memoptc.ir.verifier import verify

TEXT = """
<ir_version: 10, opset_import: ["" : 20, "local" : 1]>
g (float[2] x, bool b, float[2] d = {5, 6}) => (float[2] y)
<float[2] w = {1, 2}, float[0, 7] none = {}, string[1] words = {"a"}>
{
    s = local.Scaled (x, w)
    t = Add (s, d)
    n = Size (none)
    m = Identity (words)
    y = If (b) <
        then_branch = then () => (float[2] a) <float[2] v = {3, 4}> { a = local.Scaled (t, v) },
        else_branch = other () => (float[2] c) { c = Identity (t) }
    >
}
<domain: "local", opset_import: ["" : 20]>
Scaled (x, w) => (y)
{
    z = Mul (x, w)
    one = Constant <value = float[1] {1}> ()
    y = Add (z, one)
}
"""


def test_weights_are_those_of_the_graph_itself_in_branches_too() -> None:
    graph = read_onnx(onnx.parser.parse_model(TEXT))
    copy = inlined(graph)
    verify(copy)
    assert not [op for op in copy.walk() if op.domain]
    before, after = ({t.name: t for t in weight_tensors(g)} for g in (graph, copy))
    assert before.keys() == after.keys() >= {"w", "v", "none", "words"}
    assert all(after[name] is before[name] for name in ("w", "v", "none"))
    assert np.array_equal(after["words"].numpy(), before["words"].numpy())
    assert {v.name: t.numpy().tolist() for v, t in copy.defaults.items()} == {"d": [5.0, 6.0]}
