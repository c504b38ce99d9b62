"""Rewriting: a rule is the pattern that decorates the function which replaces it.

@rewrite(op.Relu(op.Conv("x", "w", bind="conv")))
def conv_relu(b: Builder, x: Value, w: Value, conv: Op) -> Value:
    if conv.attrs.get("group", 1) != 1:
        raise NoMatch("grouped Conv")
    return b.FusedConv(x, w, activation="Relu", **conv.attrs)

class FuseConvRelu(RulePass):
    rules = (conv_relu,)
"""

from memoptc.rewrite.driver import RulePass, apply_rules
from memoptc.rewrite.limit import counted, limit_rewrites
from memoptc.rewrite.pattern import NoMatch, OpPattern, const, op, opt, rest
from memoptc.rewrite.predicates import predicate
from memoptc.rewrite.rule import Rule, rewrite

__all__ = [
    "NoMatch",
    "OpPattern",
    "Rule",
    "RulePass",
    "apply_rules",
    "const",
    "counted",
    "limit_rewrites",
    "op",
    "opt",
    "predicate",
    "rest",
    "rewrite",
]
