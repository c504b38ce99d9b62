"""Operands that say what an operator does, and what suits them: indices, lengths, masks, shapes, axes, counts.

Whoever makes up inputs of a model needs to know what an input may hold that reaches such an operand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from memoptc.ir.core import Op


@dataclass(frozen=True, slots=True)
class Index:
    """Indices into another operand along one of its axes.

    Args:
        table: That operand.
        axis: The attribute that says the axis, which is 0 without it.
    """

    table: int = 0
    axis: str = "axis"


@dataclass(frozen=True, slots=True)
class IndexRows:
    """Rows of indices into operand 0, one for each axis behind the first `batch_dims`."""


@dataclass(frozen=True, slots=True)
class Below:
    """Numbers from 0 on, below the one that another operand holds."""

    bound: int


@dataclass(frozen=True, slots=True)
class Length:
    """Lengths along an axis of operand 0, which `axis` gives."""

    axis: Callable[[Op], int]


@dataclass(frozen=True, slots=True)
class Mask:
    """Truth values, whatever their type."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A shape, axes, counts: numbers of which some suit every instance.

    Args:
        values: Suiting numbers, the best first; as many of them are taken as there are elements.
        as_result: The extents of the result suit best, where they are known.
        as_operand: The extents of operand 0 do.
    """

    values: tuple[int | float, ...]
    as_result: bool = False
    as_operand: bool = False


@dataclass(frozen=True, slots=True)
class RecurrentState:
    """What a recurrent operator begins with: directions and a batch in some order, then hidden units."""


Parameter: TypeAlias = Index | IndexRows | Below | Length | Mask | RecurrentState | Setting
