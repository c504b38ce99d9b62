"""The rules of `fuse_activations.py`, written for onnxscript's rewriter, to be read side by side.

Run by itself it rewrites a model of the three patterns (needs `pip install onnxscript`).
"""

from __future__ import annotations

from typing import Any

import onnx.parser
from onnx_ir import DataType
from onnxscript.rewriter import pattern, rewrite


def only_float32(context: Any, x: Any, **_: Any) -> Any:
    if x.dtype != DataType.FLOAT:
        return pattern.MatchResult().fail("not float32", x)
    return True


def quick_gelu(op: Any, x: Any) -> Any:
    return op.Mul(x, op.Sigmoid(op.Mul(x, 1.702)))


def quick_gelu_replacement(op: Any, x: Any) -> Any:
    return op.QuickGelu(x, alpha=1.702, _domain="com.microsoft")


def mish(op: Any, x: Any) -> Any:
    return op.Mul(x, op.Tanh(op.Softplus(x)))


def mish_replacement(op: Any, x: Any) -> Any:
    return op.Mish(x)


def softsign(op: Any, x: Any) -> Any:
    return op.Div(x, op.Add(op.Abs(x), 1.0))


def softsign_replacement(op: Any, x: Any) -> Any:
    return op.Softsign(x)


rules = pattern.RewriteRuleSet(
    [
        pattern.RewriteRule(quick_gelu, quick_gelu_replacement, only_float32),
        pattern.RewriteRule(mish, mish_replacement, only_float32),
        pattern.RewriteRule(softsign, softsign_replacement, only_float32),
    ],
    commute=True,
)


if __name__ == "__main__":
    text = """<ir_version: 9, opset_import: ["" : 18]>
        activations (float[N,8] x) => (float[N,8] a, float[N,8] b, float[N,8] c) <float k={1.702}, float one={1.0}> {
            t = Mul(x, k)  s = Sigmoid(t)  a = Mul(x, s)
            u = Softplus(x)  v = Tanh(u)  b = Mul(v, x)
            w = Abs(x)  y = Add(w, one)  c = Div(x, y)
        }"""
    print(*(node.op_type for node in rewrite(onnx.parser.parse_model(text), rules).graph.node))
