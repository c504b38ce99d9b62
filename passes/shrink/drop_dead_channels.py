"""drop-dead-channels: channels that are zero, or that meet zero weights only, go out of the weights around them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from memoptc.ir.core import Graph, Op
from memoptc.ir.tensors import scalar
from memoptc.pass_base import Context, Pass
from memoptc.passes.shrink._shrink.units import POOLS, Cut, Units, find_units, remove

BLOCKS = (16, 8, 4)
"""Channels that kernels compute side by side: as many stay as a multiple of the first that divides them all now."""

_KEEPS_ZERO = POOLS | frozenset(
    "Abs Celu Dropout Elu Erf Flatten Gelu HardSwish Identity LeakyRelu Mish Neg Relu Reshape Selu Softsign Sqrt Tanh "
    "ThresholdedRelu".split()
)


class DropDeadChannels(Pass):
    """Remove the channels and hidden units without which every finite output stays the same.

    They are left by pruning and by training: a filter of zeros without a bias, whose zeros reach all readers through
    operators that keep them, or a channel that all its readers multiply with zero. Where they lie between products and
    convolutions (see `prune`), filters, biases and the readers' weights lose them. Outputs may differ by float noise,
    and where an input is not finite: zero times infinity is no number.
    """

    def run(self, graph: Graph, context: Context) -> None:
        """Look at all units again after removals, what they read may be dead now: ever fewer channels are left."""
        changed = True
        while changed:
            changed = False
            for units in find_units(graph, frozenset()):
                kept = _kept(units)
                if len(kept) < units.count:
                    context.stats["channels"] += units.count - len(kept)
                    remove(graph, units, kept, self.name)
                    changed = True


def _kept(units: Units) -> npt.NDArray[np.int64]:
    """The units that stay: all that are alive, and dead ones up to a whole block."""
    every = np.arange(units.count)
    filters = units.cuts[0]
    dead = np.zeros(units.count, np.bool_)
    bias = units.source.input(2)
    shared = bias is not None and bias.tensor is not None and bias.tensor.size == 1 and bool(bias.tensor.numpy().any())
    if not shared and _starts_with_zero(filters).any() and _keeps_zero(units):
        dead |= _is_zero(filters, units.count)
        for cut in units.cuts[1:]:
            if cut.op is units.source:
                dead &= _is_zero(cut, units.count)
    ends = [cut for cut in units.cuts if cut.op in units.readers and cut.index == 1]
    if all(_starts_with_zero(cut).any() for cut in ends):
        dead |= np.logical_and.reduce([_is_zero(cut, units.count) for cut in ends])
    block = next((b for b in BLOCKS if units.count % b == 0), 1)
    stay = -(-max(int((~dead).sum()), 1) // block) * block
    more = every[dead][: stay - int((~dead).sum())]
    return np.sort(np.concatenate([every[~dead], more]))


def _array(cut: Cut, count: int) -> npt.NDArray[np.generic]:
    """The constant as one row per unit."""
    tensor = cut.op.operands[cut.index].tensor
    assert tensor is not None
    array = np.moveaxis(tensor.numpy(), cut.axis, 0)
    return array.reshape(count, -1)


def _starts_with_zero(cut: Cut) -> npt.NDArray[np.bool_]:
    """A glance at one number per unit, before all are read."""
    tensor = cut.op.operands[cut.index].tensor
    assert tensor is not None
    array = np.moveaxis(tensor.numpy(), cut.axis, 0)[:: cut.each]
    while array.ndim > 1:
        array = array[..., 0]
    return np.asarray(array == 0)


def _is_zero(cut: Cut, count: int) -> npt.NDArray[np.bool_]:
    return np.asarray((_array(cut, count) == 0).all(axis=1))


def _keeps_zero(units: Units) -> bool:
    """True if every operator between the units and their readers gives zero for zero."""
    between = {user for value in units.values for user in value.users if user not in units.readers}
    return all(_maps_zero(op) for op in between)


def _maps_zero(op: Op) -> bool:
    if op.op_type in _KEEPS_ZERO:
        return True
    if op.op_type == "Clip":
        low, high = (
            scalar(v.tensor) if (v := op.input(i)) is not None else op.attrs.get(n) for i, n in ((1, "min"), (2, "max"))
        )
        absent = [op.input(i) is None for i in (1, 2)]
        return (low is not None or absent[0]) and (high is not None or absent[1]) and (low or 0) <= 0 <= (high or 0)
    if op.op_type in ("Mul", "PRelu"):
        # A slope of zero gives what is positive, not zero.
        known = op.operands[1].tensor is not None or op.op_type == "PRelu"
        factor = op.operands[1 if known else 0].tensor
        return factor is not None and bool(np.isfinite(np.asarray(factor.numpy(), np.float64)).all())
    if op.op_type == "Conv":
        return op.input(2) is None
    return False
