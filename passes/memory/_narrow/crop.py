"""A Slice behind a transposed convolution: what it cuts off becomes padding, which is never computed."""

from __future__ import annotations

from memoptc.ir.builder import Builder
from memoptc.ir.core import Op
from memoptc.ir.ops.windows import window_of
from memoptc.passes.simplify._simplify.slice_ranges import ENDLESS, bounds


def fold_slice_into_pads(op: Op) -> bool:
    """Fold a Slice behind a ConvTranspose into its `pads`; gives whether that was done.

    The pads of a transposed convolution cut its result off at both ends, and output_padding adds at the far one
    before that, so a further cut adds to the pads. It must leave the result of an image of one element at least
    empty, since less is an error.
    """
    maker, cut = op.operands[0].op, bounds(op)
    if cut is None or maker is None or not maker.is_a("ConvTranspose") or not op.operands[0].single_use:
        return False
    whole = op.operands[0].shape
    mode = maker.attrs.get("auto_pad", "NOTSET")
    if maker.graph is not op.graph or whole is None or "output_shape" in maker.attrs:
        return False
    if mode not in ("NOTSET", b"NOTSET", "VALID", b"VALID"):
        return False
    rank = len(whole) - 2
    pads = [0] * (2 * rank)
    for axis, (start, end) in cut.items():
        window, extent = window_of(maker, axis - 2) if axis >= 2 else None, whole[axis]
        if window is None:
            return False
        if isinstance(extent, int):
            start, end = (x + extent if x < 0 else x for x in (start, end))
            if not 0 <= start <= end:
                return False
            end = min(end, extent) - extent
        elif start < 0 or 0 <= end < ENDLESS:
            return False
        pads[axis - 2], pads[axis - 2 + rank] = start, -min(end, 0)
        size, _, dilation, before, after = window
        more = int(maker.attrs.get("output_padding", (0,) * rank)[axis - 2])
        if (size - 1) * dilation + 1 + more - before - after - start + min(end, 0) <= 0:
            return False
    own = (0,) * (2 * rank) if mode in ("VALID", b"VALID") else maker.attrs.get("pads", (0,) * (2 * rank))
    assert op.graph is not None
    b = Builder(op.graph, before=op, loc=op.loc.union(maker.loc, rule="narrow"))
    attrs = {k: v for k, v in maker.attrs.items() if k != "auto_pad"}
    attrs["pads"] = tuple(int(x) + y for x, y in zip(own, pads, strict=True))
    made = b.op("ConvTranspose", maker.operands, attrs, type=op.result.type)
    made.name = maker.name
    op.replace_by(made.result)
    maker.erase()
    return True
