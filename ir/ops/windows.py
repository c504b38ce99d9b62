"""Sliding windows: kernel, stride, dilation and padding, and the spatial axes that they make."""

from __future__ import annotations

from memoptc.ir.core import Op
from memoptc.ir.ops.axis import Along, Axis, Form, extents, shape


def window_of(op: Op, spatial: int) -> tuple[int, int, int, int, int] | None:
    """Kernel, stride, dilation, padding before and after along a spatial axis, or `None` when not known.

    `SAME` padding is worked out where the extents are known.
    """
    rank = len(extents(op, 0)) - 2
    kernel = op.attrs.get("kernel_shape")
    if kernel is None and op.op_type in ("Conv", "FusedConv", "ConvTranspose"):
        weights = extents(op, 1)[2:]
        kernel = weights if all(isinstance(d, int) for d in weights) else None
    if kernel is None or len(kernel) != rank:
        return None
    size = int(kernel[spatial])
    stride = int(op.attrs.get("strides", (1,) * rank)[spatial])
    dilation = int(op.attrs.get("dilations", (1,) * rank)[spatial])
    pads = op.attrs.get("pads", (0,) * (2 * rank))
    before, after = int(pads[spatial]), int(pads[spatial + rank])
    mode = op.attrs.get("auto_pad", "NOTSET")
    mode = mode.decode() if isinstance(mode, bytes) else mode
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        there, result = extents(op, 0)[2 + spatial], (shape(op.results[0]) or ())[2 + spatial]
        if not isinstance(there, int) or not isinstance(result, int) or op.op_type == "ConvTranspose":
            return None
        if dilation > 1 and op.op_type not in ("Conv", "FusedConv"):
            return None  # padding that onnxruntime's pools find without the holes
        total = (result - 1) * stride + (size - 1) * dilation + 1 - there
        if total < 0 and op.op_type not in ("Conv", "FusedConv"):
            return None  # onnxruntime's pools skip elements at both ends then, as if padded by less than nothing
        total = max(0, total)
        small, large = total // 2, total - total // 2
        before, after = (small, large) if mode == "SAME_UPPER" else (large, small)
    elif mode == "VALID":
        before = after = 0
    return size, stride, dilation, before, after


def spatial_axes(op: Op) -> list[Axis]:
    """The spatial axes of a convolution or pool, with the halo that each needs."""
    found = []
    for spatial in range(len(extents(op, 0)) - 2):
        window = window_of(op, spatial)
        if window is None or (shape(op.results[0]) or ()) == ():
            continue
        size, stride, dilation, before, after = window
        along = Along(2 + spatial, stride, 1, -before, (size - 1) * dilation - before)
        plain = along.is_identity and not after
        found.append(
            Axis(
                (2 + spatial, *(None,) * (len(op.results) - 1)),
                (along, *(None,) * (len(op.operands) - 1)),
                Form.SAME if plain else Form.PADS,
                reorders=not plain or op.op_type != "MaxPool",
            )
        )
    return found
