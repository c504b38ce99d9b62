"""Predicted bytes, nodes and time of accumulating partial results of tiles."""

from __future__ import annotations

from math import log, prod

from memoptc.ir.core import Op
from memoptc.ir.iteration import Axis, Join
from memoptc.ir.ops import Family, in_family
from memoptc.passes.memory._tile.accumulation import is_weighted
from memoptc.passes.memory._tile.costs import BANDWIDTH, Costs
from memoptc.passes.memory._tile.grid import Interval
from memoptc.passes.memory._tile.region import Region
from memoptc.runtime.memory.footprint import aligned

NODES = {Join.PLACE: 6, Join.MEAN: 2}
"""Nodes that join a part of an accumulated result to those before it; of other kinds, one."""
WEIGHTING = 14
"""Nodes more where it is weighed by a softmax of which there are parts only."""
CONTROL_DEPENDENCE = 4
"""Nodes that make a tile wait for the one before it."""
ENDING = 3
"""Nodes more for each of several ends that it waits for."""
CROWD = 1 << 18
"""Bytes of results of tiles that may wait until they are added up, in onnxruntime's default order."""
SORTED = 1e-7
"""Seconds to take something in among the first so far."""


def part_bytes(op: Op, axis: Axis, interval: Interval, costs: Costs) -> int:
    """Bytes that are alive while a tile's part of an accumulated result is made and joined."""
    made = sum(aligned(costs.nbytes(r)) for r in op.results)
    along = axis.operands[0]
    if axis.join is Join.PLACE and along is not None:
        # A copy of the operand, with a number before it.
        whole = max(1, costs.extent(op.operands[0], along.axis))
        made += aligned(costs.nbytes(op.operands[0]) * _length(interval) // whole)
    return made


def joining(op: Op, region: Region, interval: Interval, costs: Costs) -> tuple[float, int]:
    """Seconds, and nodes, that a tile's part of an accumulated result takes to be joined."""
    axis = region.axes[op]
    assert axis.join is not None
    moved, nodes = 3 * part_bytes(op, axis, interval, costs), NODES.get(axis.join, 1)
    if in_family(op, Family.CONVOLUTION):
        moved += 2 * sum(costs.nbytes(r) for r in op.results)  # out of the layout in which it was computed
    if is_weighted(op, region.axes):
        moved, nodes = moved * 2, nodes + WEIGHTING
    seconds = moved / BANDWIDTH
    along = axis.operands[0]
    if axis.join is Join.TOP and along is not None:
        # What is among the first so far, and does not stay there, is often so where a tile begins.
        shape = costs.shape(op.results[0])
        seconds += SORTED * prod(shape) * log(1 + _length(interval) / max(1, shape[along.axis]))
    return seconds, nodes


def must_wait(region: Region, count: int, costs: Costs) -> int:
    """Nodes per tile that keep onnxruntime's default order from computing all tiles before it joins any; or none."""
    if count < 3:
        return 0
    ends = len({v.op for v in region.outputs})
    parts = sum(costs.nbytes(v) for v in region.outputs if v not in region.cut)
    # Of several ends, one may be computed for all tiles before another, and what they share waits.
    return CONTROL_DEPENDENCE + ENDING * ends if ends > 1 or parts * count > CROWD else 0


def _length(interval: Interval) -> int:
    assert isinstance(interval.lo, int)
    assert isinstance(interval.hi, int)
    return interval.hi - interval.lo
