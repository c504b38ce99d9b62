"""fuse-activations: activations that exporters write in pieces become the one operator that ONNX has for them.

The pieces hold two or three tensors of the activation's size at once, the operator one.
"""

from __future__ import annotations

from memoptc.ir.builder import Builder
from memoptc.ir.core import Value
from memoptc.ir.types import DType
from memoptc.rewrite import NoMatch, RulePass, op, rewrite


def _only_float32(x: Value) -> None:
    """Decline other numbers.

    Without this, `pytest` finds two wrong rules: integers have an Abs and a Div, too, but no Softsign; and QuickGelu's
    alpha is a float32, which in float64 is not 1.702.
    """
    if x.dtype != DType.FLOAT:
        raise NoMatch("not float32")


@rewrite(op.Mul("x", op.Sigmoid(op.Mul("x", 1.702))))
def quick_gelu(b: Builder, x: Value) -> Value:
    """The sigmoid form of Gelu (Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016)."""
    _only_float32(x)
    return b.QuickGelu(x, alpha=1.702)


@rewrite(op.Mul("x", op.Tanh(op.Softplus("x"))))
def mish(b: Builder, x: Value) -> Value:
    """Misra, "Mish: A Self Regularized Non-Monotonic Activation Function", 2019."""
    _only_float32(x)
    return b.Mish(x)


@rewrite(op.Div("x", op.Add(op.Abs("x"), 1.0)))
def softsign(b: Builder, x: Value) -> Value:
    """x / (1 + |x|)."""
    _only_float32(x)
    return b.Softsign(x)


class FuseActivations(RulePass):
    """Make one operator of activations written in pieces: QuickGelu, Mish, Softsign."""

    rules = (quick_gelu, mish, softsign)
