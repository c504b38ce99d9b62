"""Iteration spaces: which part of each operand a part of an operator's result needs.

An operator's space is a list of axes along which its results can be computed piece by piece. For each, `Axis` says
where it lies in every result, and `Along` which interval of an operand's axis an interval of it needs: the same one
for element-wise operators, a wider one for windows (the *halo*), a scaled one where a reshape splits or merges axes.
An operand without an `Along` is needed whole. An axis that is not listed (a softmax's own) cannot be
cut, and an operator that has no entry has no axes: it is a barrier, never an error.

Along an axis that a result does not have, because the operator adds up along it, or takes the largest, pieces give
partial results; `accumulations` lists those axes, and `Join` says how what the pieces give becomes the whole.

What makes a piece's operator differ from the whole one is the axis's `form`; `memoptc.passes` has the code that makes
it. Shapes must be inferred; extents may be symbolic. The spaces themselves stand in the operators' definitions
(`memoptc.ir.ops`).
"""

from __future__ import annotations

from memoptc.ir.core import Op
from memoptc.ir.ops import definition, is_pure
from memoptc.ir.ops.attention import weights_axis
from memoptc.ir.ops.axis import Along, Axis, Form, Join

__all__ = ["Along", "Axis", "Form", "Join", "accumulations", "iteration_space", "weights_axis"]


def iteration_space(op: Op) -> list[Axis]:
    """Give the axes along which an op's results can be computed piece by piece; none for a barrier.

    What is random, such as a Dropout in training, is a barrier: a piece would draw other numbers than the whole.

    Args:
        op: An op whose operands' and results' types are known.
    """
    space = definition(op).space
    return [] if space is None or op.regions or not op.results or not is_pure(op) else space(op)


def accumulations(op: Op) -> list[Axis]:
    """Give the axes that an op accumulates along, and along which it can be computed piece by piece nevertheless.

    Args:
        op: An op whose operands' and results' types are known.
    """
    found = definition(op).accumulates
    return [] if found is None or op.regions or not op.results else found(op)
