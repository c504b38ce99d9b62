"""Attributes and operands of a tile's operator, where they differ from those of the whole (see `Form`).

The pads of a convolution at an inner border, the target of a Reshape, the sizes of a Resize, the number of heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from memoptc.ir.core import Op, Value
from memoptc.ir.dims import same
from memoptc.ir.iteration import Axis, Form
from memoptc.ir.ops import opset_of
from memoptc.ir.ops.axis import shape
from memoptc.ir.ops.resize import factor_of, interpolation, pad_amounts
from memoptc.ir.ops.windows import window_of
from memoptc.ir.tensors import ints
from memoptc.passes.memory._tile.building import TileBuilder
from memoptc.passes.memory._tile.grid import AffineBound, Interval, NotTileableError, OperandTile, StaticGrid, TileGrid
from memoptc.passes.memory._tile.propagation import TileWork


@dataclass
class TileOp:
    """One op of one tile.

    Args:
        op: The op of the whole.
        axis: Along which axis it is cut.
        work: What it does.
        operands: The parts it gets.
        grid: How the region is cut.
        emitter: Makes constants.
    """

    op: Op
    axis: Axis
    work: TileWork
    operands: tuple[Value, ...]
    grid: TileGrid
    emitter: TileBuilder

    @property
    def interval(self) -> Interval:
        """Interval of the op's axis that the tile computes."""
        return self.work.interval

    @property
    def need(self) -> OperandTile:
        """Interval of the first operand that the tile reads."""
        need = self.work.needs[0]
        assert need is not None
        return need

    @property
    def result_axis(self) -> int:
        """Tiled axis of the first result."""
        assert self.axis.results[0] is not None
        return self.axis.results[0]

    @property
    def static(self) -> bool:
        """True if extents are numbers."""
        return isinstance(self.grid, StaticGrid)


Made = tuple[Mapping[str, Any], list[Value]]


def _same(p: TileOp) -> Made:
    return p.op.attrs, list(p.operands)


def _pads(p: TileOp) -> Made:
    """Padding stays where a tile borders on it."""
    need = p.need
    spatial = p.result_axis - 2
    rank = len(shape(p.op.operands[0]) or ()) - 2
    windows = [window_of(p.op, i) for i in range(rank)]
    if any(w is None for w in windows):
        raise NotTileableError(f"{p.op.op_type} whose padding is not known")
    before = [w[3] for w in windows if w is not None]
    after = [w[4] for w in windows if w is not None]
    kernel = [w[0] for w in windows if w is not None]
    before[spatial] = before[spatial] if need.before is None else need.before
    after[spatial] = after[spatial] if need.after is None else need.after
    attrs = dict(p.op.attrs)
    attrs.pop("auto_pad", None)
    attrs["pads"] = (*before, *after)
    if p.op.op_type in ("MaxPool", "AveragePool"):
        if p.static and attrs.get("ceil_mode") and p.interval.hi == p.emitter.extent(p.op.results[0], p.result_axis):
            after[spatial] = windows[spatial][4]  # type: ignore[index]
            attrs["pads"] = (*before, *after)
        if before[spatial] >= kernel[spatial] or after[spatial] >= kernel[spatial]:
            raise NotTileableError("a pool whose window would lie in the padding")
        if after[spatial] > windows[spatial][4]:  # type: ignore[index]
            # As padding it would count in an average.
            raise NotTileableError("a pool whose window reaches beyond the padding")
    return attrs, list(p.operands)


def _shape(p: TileOp) -> Made:
    """The target with the tile's extent in place of the whole's."""
    dims = list(shape(p.op.results[0]) or ())
    length = p.grid.length(p.interval)
    along = p.axis.operands[0]
    if length is not None and all(isinstance(d, int) for i, d in enumerate(dims) if i != p.result_axis):
        dims[p.result_axis] = length
        return _with_target(p, [int(d) for d in dims])  # type: ignore[arg-type]
    copies = along is not None and along.axis == p.result_axis and along.is_identity
    if p.op.op_type == "Expand":
        entry = 1 if along is not None else length
    elif p.op.op_type == "Reshape":
        entry = 0 if copies else length if length is not None else -1
    else:
        entry = length
    if entry is None:
        raise NotTileableError(f"{p.op.op_type} to an extent that is known at run time only")
    return _patched(p, entry)


def _patched(p: TileOp, entry: int) -> Made:
    index = 0 if p.op.op_type == "ConstantOfShape" else 1
    given = p.op.attrs.get("shape")
    target = p.op.input(index)
    known = given if given is not None else ints(target.tensor) if target is not None and target.tensor else None
    dims = shape(p.op.results[0]) or ()
    rank = len(dims)
    if known is not None:
        entries = [1] * (rank - len(known)) + [int(e) for e in known]
        if p.op.attrs.get("allowzero") and 0 in entries:
            raise NotTileableError("a reshape to nothing")
        # A -1 cannot be worked out where nothing is left, and a 0 may copy the tile's extent: what is known is said.
        entries = [d if e in (-1, 0) and isinstance(d, int) else e for e, d in zip(entries, dims, strict=True)]
        entries[p.result_axis] = entry
        along = p.axis.operands[0]
        if along is not None and along.axis != p.result_axis and entries[along.axis : along.axis + 1] == [0]:
            raise NotTileableError("a reshape that copies the extent which is cut")
        if entries.count(-1) > 1:
            raise NotTileableError("two extents of a reshape are known at run time only")
        return _without_zeros(_with_target(p, entries))
    if (opset_of(p.emitter.graph) or 13) < 9:
        raise NotTileableError("a reshape to a computed shape, of which nothing can be exchanged before opset 9")
    if entry == -1 or target is None or len(shape(target) or ()) != 1:
        raise NotTileableError("a reshape to a computed shape")
    if (shape(target) or ())[0] != rank:
        raise NotTileableError("a reshape to a computed shape of unknown rank")
    key = ("target", p.op, entry)
    shared = p.emitter.shared
    if key not in shared:
        mask = p.emitter.b.const(np.arange(rank) == p.result_axis, "axis")
        shared[key] = p.emitter.made("Where", [mask, p.emitter.ints([entry]), target])
    operands = list(p.operands)
    operands[index] = shared[key]
    return _without_zeros((p.op.attrs, operands))


def _without_zeros(made: Made) -> Made:
    """A 0 in the target copies an extent: of the tile's."""
    attrs, operands = made
    return {name: value for name, value in attrs.items() if name != "allowzero"}, operands


def _with_target(p: TileOp, entries: list[int]) -> Made:
    attrs = dict(p.op.attrs)
    if "shape" in attrs:
        return {**attrs, "shape": tuple(entries)}, list(p.operands)
    operands = list(p.operands)
    operands[0 if p.op.op_type == "ConstantOfShape" else 1] = p.emitter.ints(entries)
    return attrs, operands


def _resize(p: TileOp) -> Made:
    """By the same factors; what is given beyond the tile is cut off by who uses it."""
    operands = list(p.operands)
    if p.op.op_type == "Upsample" or p.op.input(3) is None:
        return p.op.attrs, operands
    factors = [factor_of(p.op, i) for i in range(len(shape(p.op.results[0]) or ()))]
    if any(f is None for f in factors):
        length = p.grid.length(p.interval)
        if length is None or any(not isinstance(d, int) for d in shape(p.op.results[0]) or (None,)):
            raise NotTileableError("a resize to computed sizes")
        sizes = [int(d) for d in shape(p.op.results[0]) or ()]  # type: ignore[arg-type]
        sizes[p.result_axis] = length
        operands[3] = p.emitter.ints(sizes)
        return p.op.attrs, operands
    scales = p.emitter.b.const(np.asarray(factors, np.float32), "scales")
    return p.op.attrs, [operands[0], operands[1], scales]


def _interpolated(p: TileOp) -> Made:
    """Interpolate between places in the tile's operand, which tf_crop_and_resize takes as shares of its length.

    What lies outside of an operand has no value in that mode. So operands go on for an element more than any place
    needs, at borders by one like the last.
    """
    places = interpolation(p.op, p.result_axis)
    if places is None or not p.static:
        raise NotTileableError("an interpolation whose extents are known at run time only")
    lo, hi = _numbers(p.interval)
    start, end = _numbers(p.need.interval)
    before, after = p.need.before or 0, p.need.after or 0
    if end - start + before + after == hi - lo:
        after += 1  # a kernel copies what does not change its extent, wherever the places lie
    x, scales = _resized_elsewhere(p)
    rank = len(scales)
    if before or after:
        pads = [0] * (2 * rank)
        pads[p.result_axis], pads[p.result_axis + rank] = before, after
        x = p.emitter.made("Pad", [x, p.emitter.ints(pads)], {"mode": "edge"})
    start, length = start - before, end - start + before + after
    roi = [0.0] * rank + [1.0] * rank
    roi[p.result_axis] = float((places.source_coordinate(lo) - start) / (length - 1))
    roi[p.result_axis + rank] = float((places.source_coordinate(hi - 1) - start) / (length - 1))
    scales[p.result_axis] = _scale(length, hi - lo)
    made = [p.emitter.b.const(np.asarray(v, np.float32), n) for v, n in ((roi, "roi"), (scales, "scales"))]
    return {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize"}, [x, *made]


def _numbers(interval: Interval) -> tuple[int, int]:
    assert isinstance(interval.lo, int)
    assert isinstance(interval.hi, int)
    return interval.lo, interval.hi


def _scale(before: int, after: int) -> float:
    """A scale that gives exactly as many elements, rounded down, and is never 1, which a kernel takes as no change."""
    return (after + 0.5) / before


def _resized_elsewhere(p: TileOp) -> tuple[Value, list[float]]:
    """The tile's operand, and the scales of the axes that are not tiled.

    Corners that stay where they are do so in tf_crop_and_resize, too, while places are products that float32 holds.
    Every other axis that changes its extent does so before, as in the whole.
    """
    x, y = shape(p.op.operands[0]) or (), shape(p.op.results[0]) or ()
    scales = [1.0] * len(y)
    others = [i for i in range(len(y)) if i != p.result_axis and not same(x[i], y[i])]
    if not others:
        return p.operands[0], scales
    if p.op.attrs.get("coordinate_transformation_mode") in ("align_corners", b"align_corners"):
        known = {i: (a, b) for i in others if isinstance(a := x[i], int) and isinstance(b := y[i], int)}
        if len(known) == len(others) and all(b > 1 and (a - 1) * (b - 1) < 2**24 for a, b in known.values()):
            for i, (a, b) in known.items():
                scales[i] = _scale(a, b)
            return p.operands[0], scales
    operands = list(p.operands)
    if p.op.input(3) is None:
        tensor = p.op.operands[2].tensor
        assert tensor is not None
        given = np.array(tensor.numpy(), np.float32).reshape(-1)
        given[p.result_axis] = 1.0
        operands[2] = p.emitter.b.const(given, "scales")
    else:
        sizes = [*y]
        sizes[p.result_axis] = p.grid.length(p.need.interval)
        if not all(isinstance(d, int) for d in sizes):
            raise NotTileableError("a resize to computed sizes")
        operands[3] = p.emitter.ints([int(d) for d in sizes])  # type: ignore[arg-type]
    return p.emitter.made("Resize", operands, p.op.attrs), scales


def _transposed(p: TileOp) -> Made:
    """Crop what the taps of a ConvTranspose reach beyond the tile, by its padding."""
    need = p.need
    spatial = p.result_axis - 2
    rank = len(shape(p.op.operands[0]) or ()) - 2
    windows = [window_of(p.op, i) for i in range(rank)]
    window = windows[spatial]
    if window is None:
        raise NotTileableError("ConvTranspose whose padding is not known")
    size, stride, dilation, before, after = window
    more = list(p.op.attrs.get("output_padding", (0,) * rank))
    begin, end, extra = before, after, more[spatial]
    if p.interval.lo != 0 or need.interval.lo != 0:
        # Padding wider than a filter reaches crops the first elements' taps away: a tile does not read these elements.
        begin = _distance(p.interval.lo, need.interval.lo, stride) + before
    at_end = p.interval.hi is None or (
        p.static and need.after == 0 and p.interval.hi == p.emitter.extent(p.op.results[0], p.result_axis)
    )
    if at_end and p.static:
        at_end = need.interval.hi == p.emitter.extent(p.op.operands[0], p.result_axis)
    if not at_end:
        # Uncropped, the last tap ends (operands - 1) * stride + reach + 1 behind the first one's place.
        reach = (size - 1) * dilation
        extra = 0
        end = -_distance(p.interval.hi, need.interval.hi, stride) - before - stride + reach + 1
    if begin < 0 or end < 0:
        raise NotTileableError("a transposed convolution with gaps")
    pads = list(p.op.attrs.get("pads", (0,) * (2 * rank)))
    pads[spatial], pads[spatial + rank] = begin, end
    more[spatial] = extra
    attrs = dict(p.op.attrs)
    attrs.pop("auto_pad", None)
    attrs["pads"] = tuple(pads)
    if any(more):
        attrs["output_padding"] = tuple(more)
    else:
        attrs.pop("output_padding", None)
    return attrs, list(p.operands)


def _distance(a: int | AffineBound | None, b: int | AffineBound | None, stride: int) -> int:
    """`a - b * stride`, which the step must not be part of."""
    if isinstance(a, AffineBound) and isinstance(b, AffineBound) and a.a == b.a * stride:
        return a.b - b.b * stride
    if isinstance(a, int) and isinstance(b, int):
        return a - b * stride
    raise NotTileableError("steps that do not divide")


def _padded(p: TileOp) -> Made:
    need = p.need
    rank = len(shape(p.op.results[0]) or ())
    amounts = list(pad_amounts(p.op, rank) or ())
    if need.before is not None:
        amounts[p.result_axis] = need.before
    if need.after is not None:
        amounts[p.result_axis + rank] = need.after
    for name in ("pads", "paddings"):
        if name in p.op.attrs:
            return {**p.op.attrs, name: tuple(amounts)}, list(p.operands)
    operands = list(p.operands)
    operands[1] = p.emitter.ints(amounts)
    return p.op.attrs, operands


def _heads(p: TileOp) -> Made:
    """Whole heads: their number goes down with the extent, and a scale that follows from the width does not change."""
    length = p.grid.length(p.interval)
    if length is None or length % p.axis.grain:
        raise NotTileableError("a part of a head")
    return {**p.op.attrs, "num_heads": length // p.axis.grain}, list(p.operands)


FORMS: dict[Form, Callable[[TileOp], Made]] = {
    Form.SAME: _same,
    Form.PADS: _pads,
    Form.SHAPE: _shape,
    Form.RESIZE: _resize,
    Form.TRANSPOSED: _transposed,
    Form.PADDED: _padded,
    Form.INTERPOLATED: _interpolated,
    Form.HEADS: _heads,
}
