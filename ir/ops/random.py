"""Operators that give other values each time: never merged, folded or recomputed; removable when unused."""

from __future__ import annotations

from memoptc.ir.ops.definition import Operator, also, define

OPERATORS: tuple[Operator, ...] = define(
    "Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike", pure=False
)
OPERATORS = also(OPERATORS, "Multinomial", unchecked_ranks=True)
