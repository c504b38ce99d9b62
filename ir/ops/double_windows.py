"""Convolutions and average pooling in float64, as sums over the places of the window."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from memoptc.ir.core import Op, Value
from memoptc.ir.ops.double import NoDouble, OpBuilder, add_all, f64, i64, static_shape, text_attr


class _Window:
    """Kernel, stride, dilation and padding of a convolution or pooling."""

    def __init__(self, op: Op, kernel: Sequence[int]) -> None:
        rank = len(kernel)
        self.kernel = tuple(kernel)
        self.strides = tuple(op.attrs.get("strides", (1,) * rank))
        self.dilations = tuple(op.attrs.get("dilations", (1,) * rank))
        self.span = tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))
        self.pads = tuple(op.attrs.get("pads", (0,) * 2 * rank))
        self.auto = text_attr(op, "auto_pad", "NOTSET")

    def resolve(self, op: Op) -> None:
        """Compute the padding that `auto_pad` stands for."""
        if self.auto == "VALID":
            self.pads = (0,) * 2 * len(self.kernel)
        elif self.auto.startswith("SAME"):
            begins, ends = [], []
            for axis, (span, stride) in enumerate(zip(self.span, self.strides, strict=True)):
                total = span - 1
                if stride > 1:
                    extent = _spatial(op)[axis]
                    total = max(0, (-(-extent // stride) - 1) * stride + span - extent)
                begins.append(total // 2 if self.auto == "SAME_UPPER" else total - total // 2)
                ends.append(total - begins[-1])
            self.pads = (*begins, *ends)

    def pad(self, b: OpBuilder, x: Value, extra: Sequence[int] = (), value: float = 0.0) -> Value:
        rank = len(self.kernel)
        ends = [p + e for p, e in zip(self.pads[rank:], extra or (0,) * rank, strict=True)]
        if not any(self.pads[:rank]) and not any(ends):
            return x
        padded: Value = b.Pad(x, i64(0, 0, *self.pads[:rank], 0, 0, *ends), f64(value))
        return padded

    def pieces(self, b: OpBuilder, x: Value) -> list[tuple[tuple[int, ...], Value]]:
        """Give for each kernel place the elements of padded `x` that it meets, as [N, C, *out]."""
        found = []
        axes = i64(*range(2, 2 + len(self.kernel)))
        for place in itertools.product(*map(range, self.kernel)):
            starts = [p * d for p, d in zip(place, self.dilations, strict=True)]
            left = [s - 1 - a for s, a in zip(self.span, starts, strict=True)]
            ends = [-gap if gap else np.iinfo(np.int64).max for gap in left]
            whole = not any(starts) and not any(left) and set(self.strides) == {1}
            found.append((place, x if whole else b.Slice(x, i64(*starts), i64(*ends), axes, i64(*self.strides))))
        return found


def _spatial(op: Op) -> tuple[int, ...]:
    dims = (op.operand.shape or ())[2:]
    extents = tuple(d for d in dims if isinstance(d, int))
    if not extents or len(extents) != len(dims):
        raise NoDouble(f"{op.op_type} {op.name!r} whose padding depends on symbolic extents")
    return extents


def conv(b: OpBuilder, op: Op) -> Sequence[Value]:
    """Conv."""
    x, w = op.operands[:2]
    shape = static_shape(w, op)
    window = _Window(op, shape[2:])
    window.resolve(op)
    group = op.attrs.get("group", 1)
    kernel = _kernel(b, w, shape, group)
    y = _convolve(b, window.pad(b, x), kernel, shape[0], shape[1], window, group)
    return [_add_bias(b, y, op.input(2), len(shape))]


def _kernel(
    b: OpBuilder, w: Value, shape: tuple[int, ...], group: int, *, mirrored: bool = False
) -> Callable[[tuple[int, ...]], Value]:
    """Give the function that gives the [g, M/g, C/g] matrix of one kernel place.

    Mirrored, for a transposed convolution: the weight is [C, M/g, *kernel] and its places count from the end.
    """
    axes = i64(*range(2, len(shape)))

    def matrix(place: tuple[int, ...]) -> Value:
        if mirrored:
            place = tuple(k - 1 - p for k, p in zip(shape[2:], place, strict=True))
        flat = b.Squeeze(b.Slice(w, i64(*place), i64(*(p + 1 for p in place)), axes), axes)
        split = b.Reshape(flat, i64(group, shape[0] // group, shape[1]))
        result: Value = b.Transpose(split, perm=[0, 2, 1]) if mirrored else split
        return result

    return matrix


def _convolve(
    b: OpBuilder, x: Value, kernel: Callable[[tuple[int, ...]], Value], m: int, c: int, window: _Window, group: int
) -> Value:
    """Sum over the kernel's places of (matrix of the place) x (elements it meets).

    Args:
        b: Where to build.
        x: Padded input, [N, g * c, *extents].
        kernel: Place -> its [g, m/g, c] matrix.
        m: Output channels.
        c: Input channels per group.
        window: The kernel's geometry.
        group: Number of groups g.
    """
    total: Value | None = None
    out: Value | None = None
    for place, piece in window.pieces(b, x):
        if c == 1 and m == group:
            part = b.Mul(piece, b.Reshape(kernel(place), i64(1, m, *[1] * len(window.kernel))))
        else:
            out = b.Shape(piece) if out is None else out
            part = b.MatMul(kernel(place), b.Reshape(piece, i64(0, group, c, -1)))
        total = part if total is None else b.Add(total, part)
    if total is None:
        raise NoDouble("a convolution with an empty kernel")
    if out is not None:
        last = np.iinfo(np.int64).max
        batch, extents = b.Slice(out, i64(0), i64(1), i64(0)), b.Slice(out, i64(2), i64(last), i64(0))
        total = b.Reshape(total, b.Concat(batch, i64(m), extents, axis=0))
    return total


def _add_bias(b: OpBuilder, y: Value, bias: Value | None, rank: int) -> Value:
    if bias is None:
        return y
    result: Value = b.Add(y, b.Reshape(bias, i64(1, -1, *[1] * (rank - 2))))
    return result


def conv_transpose(b: OpBuilder, op: Op) -> Sequence[Value]:
    """ConvTranspose."""
    x, w = op.operands[:2]
    shape = static_shape(w, op)
    group = op.attrs.get("group", 1)
    window = _Window(op, shape[2:])
    rank = len(window.kernel)
    extra = tuple(op.attrs.get("output_padding", (0,) * rank))
    begins, ends = list(window.pads[:rank]), list(window.pads[rank:])
    wanted = op.attrs.get("output_shape")
    if wanted or window.auto.startswith("SAME"):
        for axis in range(rank):
            stride, span = window.strides[axis], window.span[axis]
            if wanted:
                total = stride * (_spatial(op)[axis] - 1) + extra[axis] + span - wanted[axis - rank]
            else:
                total = extra[axis] + span - stride
            begins[axis] = total // 2 if window.auto == "SAME_UPPER" else total - total // 2
            ends[axis] = total - begins[axis]
    for axis, stride in enumerate(window.strides):
        x = _insert_zeros(b, x, 2 + axis, stride, rank + 2)
    # the transposed convolution is a convolution of the spread-out input with the mirrored kernel
    left = [s - 1 - p for s, p in zip(window.span, begins, strict=True)]
    right = [s - 1 - p + e for s, p, e in zip(window.span, ends, extra, strict=True)]
    if any(left) or any(right):
        x = b.Pad(x, i64(0, 0, *left, 0, 0, *right), f64(0.0))
    window.strides = (1,) * rank
    kernel = _kernel(b, w, shape, group, mirrored=True)
    y = _convolve(b, x, kernel, group * shape[1], shape[0] // group, window, group)
    return [_add_bias(b, y, op.input(2), rank + 2)]


def _insert_zeros(b: OpBuilder, x: Value, axis: int, stride: int, rank: int) -> Value:
    if stride == 1:
        return x
    shape, last = b.Shape(x), np.iinfo(np.int64).max
    wide = b.Unsqueeze(x, i64(axis + 1))
    ends = [0] * (rank + 1)
    ends[axis + 1] = stride - 1
    wide = b.Pad(wide, i64(*[0] * (rank + 1), *ends), f64(0.0))
    extent = b.Mul(b.Slice(shape, i64(axis), i64(axis + 1), i64(0)), i64(stride))
    parts = [b.Slice(shape, i64(0), i64(axis), i64(0)), extent]
    if axis + 1 < rank:
        parts.append(b.Slice(shape, i64(axis + 1), i64(last), i64(0)))
    merged = b.Reshape(wide, b.Concat(*parts, axis=0))
    result: Value = b.Slice(merged, i64(0), i64(1 - stride), i64(axis))
    return result


def average_pool(b: OpBuilder, op: Op) -> Sequence[Value]:
    """AveragePool."""
    x = op.operand
    window = _Window(op, op.attrs["kernel_shape"])
    window.resolve(op)
    rank = len(window.kernel)
    extra = [0] * rank
    if op.attrs.get("ceil_mode"):
        for axis, extent in enumerate(_spatial(op)):
            begin, end = window.pads[axis], window.pads[axis + rank]
            stride = window.strides[axis]
            out = -(-(extent + begin + end - window.span[axis]) // stride) + 1
            if (out - 1) * stride >= extent + begin:
                out -= 1
            extra[axis] = (out - 1) * stride + window.span[axis] - extent - begin - end
    last = np.iinfo(np.int64).max
    ones_shape = b.Concat(i64(1, 1), b.Slice(b.Shape(x), i64(2), i64(last), i64(0)), axis=0)
    ones = b.ConstantOfShape(ones_shape, value=b.const(np.ones(1)).tensor)
    if op.attrs.get("count_include_pad"):
        ones = window.pad(b, ones, value=1.0)
        if any(extra):
            ones = b.Pad(ones, i64(*[0] * (rank + 4), *extra), f64(0.0))
    else:
        ones = window.pad(b, ones, extra)
    total, count = (
        add_all(b, [piece for _, piece in window.pieces(b, tensor)]) for tensor in (window.pad(b, x, extra), ones)
    )
    return [b.Div(total, count)]
