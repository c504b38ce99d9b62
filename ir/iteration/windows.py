"""Convolutions, pools and resizes: results that need a neighbourhood."""

from __future__ import annotations

from math import gcd

from memoptc.ir.core import Op
from memoptc.ir.iteration.axis import Along, Axis, Form, Space, extents, given, shape
from memoptc.ir.ops import default_of
from memoptc.ir.tensors import ints


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
        total = (result - 1) * stride + (size - 1) * dilation + 1 - there
        if total < 0 and op.op_type not in ("Conv", "FusedConv"):
            return None  # onnxruntime's pools skip elements at both ends then, as if padded by less than nothing
        total = max(0, total)
        small, large = total // 2, total - total // 2
        before, after = (small, large) if mode == "SAME_UPPER" else (large, small)
    elif mode == "VALID":
        before = after = 0
    return size, stride, dilation, before, after


def _spatial(op: Op) -> list[Axis]:
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


FILTERS = 16
"""Filters that kernels compute side by side: onnxruntime pads fewer to as many (NCHWc layout; 8 without AVX-512)."""


def _conv(op: Op) -> list[Axis]:
    if op.domain and len(op.operands) > 3:
        return []  # a fused sum: its fourth operand has the result's shape
    x, w = extents(op, 0), extents(op, 1)
    if len(x) < 3 or len(w) != len(x):
        return []
    return [given(op, 0, (0, Along(0))), *_filters(op, len(op.operands) > 2), *_spatial(op)]


def _filters(op: Op, biased: bool) -> list[Axis]:
    """Filters: all need the whole input, unless each channel is convolved by itself."""
    group = int(op.attrs.get("group", 1))
    cut = [(1, Along(0))] + ([(2, Along(0))] if biased and op.input(2) is not None else [])
    if group == 1:
        return [given(op, 1, *cut, grain=FILTERS, reorders=True)]
    return []


def _integer_conv(op: Op) -> list[Axis]:
    x = extents(op, 0)
    scalar = all(not extents(op, i) or extents(op, i) == (1,) for i in (2, 3))
    # What lies in the padding is the zero point, whichever piece it borders on.
    return [given(op, 0, (0, Along(0))), *_spatial(op)] if len(x) > 2 and scalar else []


def _pool(op: Op) -> list[Axis]:
    x = extents(op, 0)
    if len(x) < 3 or any(r.has_uses for r in op.results[1:]):
        return []
    if op.op_type == "MaxPool" and op.attrs.get("storage_order"):
        return []
    if op.op_type == "AveragePool" and op.attrs.get("ceil_mode") and op.attrs.get("count_include_pad"):
        return [given(op, i, (0, Along(i))) for i in (0, 1)]
    return [*(given(op, i, (0, Along(i))) for i in (0, 1)), *_spatial(op)]


def _global_pool(op: Op) -> list[Axis]:
    return [given(op, i, (0, Along(i))) for i in (0, 1)]


def _transposed(op: Op) -> list[Axis]:
    x = extents(op, 0)
    if len(x) < 3 or op.attrs.get("output_shape") or int(op.attrs.get("group", 1)) != 1:
        return [given(op, 0, (0, Along(0)))] if x else []
    found = [given(op, 0, (0, Along(0)))]
    for spatial in range(len(x) - 2):
        window = window_of(op, spatial)
        mode = op.attrs.get("auto_pad", "NOTSET")
        if window is None or mode not in ("NOTSET", b"NOTSET", "VALID", b"VALID"):
            continue
        size, stride, dilation, before, _ = window
        reach = (size - 1) * dilation
        # Result p gets input i from tap p + before - i * stride in [0, reach].
        along = Along(2 + spatial, 1, stride, before - reach + stride - 1, before)
        found.append(given(op, 2 + spatial, (0, along), form=Form.TRANSPOSED, reorders=True))
    return found


def _resize(op: Op) -> list[Axis]:
    """Nearest and linear, by whole factors up; every axis that keeps its extent."""
    x, y = extents(op, 0), shape(op.results[0]) or ()
    if len(x) != len(y) or op.attrs.get("axes") or op.attrs.get("antialias"):
        return []
    found = []
    mode = str(default_of(op, "mode") or "nearest")
    where = str(default_of(op, "coordinate_transformation_mode") or "asymmetric")
    if where == "tf_crop_and_resize":
        return []
    factors = [factor_of(op, axis) for axis in range(len(x))]
    for axis, factor in enumerate(factors):
        if factor is None:
            continue
        if factor == 1:
            if mode != "cubic" or all(f == 1 for f in factors):
                found.append(given(op, axis, (0, Along(axis)), form=Form.RESIZE, reorders=mode != "nearest"))
        elif mode == "nearest" and _repeats(op, where, factor):
            found.append(given(op, axis, (0, Along(axis, 1, factor)), form=Form.RESIZE, grain=factor))
        elif mode in ("linear", "bilinear") and where == "half_pixel":
            along = Along(axis, 2, 2 * factor, 1 - factor, 1 + factor)
            found.append(given(op, axis, (0, along), form=Form.RESIZE, reorders=True))
        elif mode in ("linear", "bilinear") and where == "asymmetric":
            found.append(given(op, axis, (0, Along(axis, 1, factor, 0, factor)), form=Form.RESIZE, reorders=True))
    return found


def _repeats(op: Op, where: str, factor: int) -> bool:
    """Whether each element of the operand is repeated `factor` times, no more at one end than the other."""
    rounding = str(
        default_of(op, "nearest_mode") or "floor" if op.op_type == "Upsample" else default_of(op, "nearest_mode")
    )
    if where == "asymmetric":
        return rounding == "floor" or op.op_type == "Upsample"
    return where in ("half_pixel", "pytorch_half_pixel") and rounding in ("round_prefer_floor", "round_prefer_ceil")


def factor_of(op: Op, axis: int) -> int | None:
    """By what whole number an axis is scaled, where that holds for every extent."""
    x, y = extents(op, 0)[axis], (shape(op.results[0]) or ())[axis]
    scales = op.input(1 if op.op_type == "Upsample" or len(op.operands) == 2 else 2)
    if scales is not None and scales.tensor is not None and scales.tensor.size:
        scale = float(scales.tensor.numpy().reshape(-1)[axis])
        return int(scale) if scale == int(scale) and scale >= 1 else None
    if "scales" in op.attrs:
        scale = float(op.attrs["scales"][axis])
        return int(scale) if scale == int(scale) and scale >= 1 else None
    if x is None or y is None:
        return None
    if isinstance(x, int) and isinstance(y, int):
        return y // x if x and y % x == 0 and y else None
    for factor in (1, 2, 3, 4, 8):
        if x * factor == y:
            return factor
    return None


def _depth_to_space(op: Op) -> list[Axis]:
    block = int(op.attrs["blocksize"])
    spatial = [given(op, i, (0, Along(i, 1, block)), grain=block) for i in (2, 3)]
    return [given(op, 0, (0, Along(0))), *spatial]


def _space_to_depth(op: Op) -> list[Axis]:
    block = int(op.attrs["blocksize"])
    return [given(op, 0, (0, Along(0))), *(given(op, i, (0, Along(i, block, 1, 0, block - 1))) for i in (2, 3))]


def _pad(op: Op) -> list[Axis]:
    """Axes that are not padded, and those padded with a constant."""
    x = extents(op, 0)
    rank = len(x)
    amounts = pad_amounts(op, rank)
    if amounts is None or op.input(3) is not None:
        return []
    mode = op.attrs.get("mode", "constant")
    constant = mode in ("constant", b"constant")
    found = []
    for axis in range(rank):
        before, after = amounts[axis], amounts[axis + rank]
        if not before and not after:
            found.append(given(op, axis, (0, Along(axis))))
        elif constant and before >= 0 and after >= 0:
            found.append(given(op, axis, (0, Along(axis, 1, 1, -before, -before)), form=Form.PADDED))
    return found


def pad_amounts(op: Op, rank: int) -> tuple[int, ...] | None:
    """What a Pad adds, `None` when that is computed."""
    if "pads" in op.attrs or "paddings" in op.attrs:
        return tuple(op.attrs.get("pads", op.attrs.get("paddings")))
    amounts = op.input(1)
    known = ints(amounts.tensor) if amounts is not None and amounts.tensor is not None else None
    return known if known is not None and len(known) == 2 * rank else None


def common_grain(a: int, b: int) -> int:
    """The least common multiple."""
    return a * b // gcd(a, b)


WINDOWS: dict[str, Space] = {
    "Conv": _conv,
    "com.microsoft::FusedConv": _conv,
    "ConvInteger": _integer_conv,
    "ConvTranspose": _transposed,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "LpPool": _global_pool,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "GlobalLpPool": _global_pool,
    "Resize": _resize,
    "Upsample": _resize,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Pad": _pad,
}
