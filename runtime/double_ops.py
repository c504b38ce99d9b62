"""Operators that onnxruntime has no float64 kernel for, written with operators that have one.

Used only to obtain reference numbers: exactness counts, speed and node count do not.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from memoptc.ir import ops
from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Op, Output, Value
from memoptc.ir.types import DType, TensorType


class NoDouble(Exception):
    """An operator has no float64 form here; the message names it and says why."""


Lowering = Callable[[Builder, Op], Sequence[Value | None]]


def lower(op: Op) -> bool:
    """Replace `op` where it needs it.

    Returns:
        Whether it was replaced.

    Raises:
        NoDouble: this form of the operator is not covered.
    """
    lowering = LOWERINGS.get(op.key)
    if lowering is None or not any(_is_double(r) for r in op.results):
        return False
    assert op.graph is not None
    for old, new in zip(op.results, lowering(Builder(op.graph, before=op), op), strict=False):
        if new is not None:
            new.type = new.type or old.type
            old.replace_by(new)
    op.erase()
    return True


def _is_double(value: Value) -> bool:
    return isinstance(value.type, TensorType) and value.type.dtype == DType.DOUBLE


def _f(number: float) -> npt.NDArray[np.float64]:
    return np.asarray(number, np.float64)


def _i(*numbers: int) -> npt.NDArray[np.int64]:
    return np.asarray(numbers, np.int64)


def _static(value: Value, op: Op) -> tuple[int, ...]:
    shape = value.type.static_shape if isinstance(value.type, TensorType) else None
    if shape is None:
        raise NoDouble(f"{op.op_type} {op.name!r} whose weight has no known shape")
    return shape


def _rank(value: Value, op: Op) -> int:
    rank = value.type.rank if isinstance(value.type, TensorType) else None
    if rank is None:
        raise NoDouble(f"{op.op_type} {op.name!r} on a tensor of unknown rank")
    return rank


# -- windows ------------------------------------------------------------------------------------------


class _Window:
    """Kernel, stride, dilation and padding of a convolution or pooling."""

    def __init__(self, op: Op, kernel: Sequence[int]) -> None:
        rank = len(kernel)
        self.kernel = tuple(kernel)
        self.strides = tuple(op.attrs.get("strides", (1,) * rank))
        self.dilations = tuple(op.attrs.get("dilations", (1,) * rank))
        self.span = tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))
        self.pads = tuple(op.attrs.get("pads", (0,) * 2 * rank))
        self.auto = _text(op, "auto_pad", "NOTSET")

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

    def pad(self, b: Builder, x: Value, extra: Sequence[int] = (), value: float = 0.0) -> Value:
        rank = len(self.kernel)
        ends = [p + e for p, e in zip(self.pads[rank:], extra or (0,) * rank, strict=True)]
        if not any(self.pads[:rank]) and not any(ends):
            return x
        padded: Value = b.Pad(x, _i(0, 0, *self.pads[:rank], 0, 0, *ends), _f(value))
        return padded

    def pieces(self, b: Builder, x: Value) -> list[tuple[tuple[int, ...], Value]]:
        """Give for each kernel place the elements of padded `x` that it meets, as [N, C, *out]."""
        found = []
        axes = _i(*range(2, 2 + len(self.kernel)))
        for place in itertools.product(*map(range, self.kernel)):
            starts = [p * d for p, d in zip(place, self.dilations, strict=True)]
            left = [s - 1 - a for s, a in zip(self.span, starts, strict=True)]
            ends = [-gap if gap else np.iinfo(np.int64).max for gap in left]
            whole = not any(starts) and not any(left) and set(self.strides) == {1}
            found.append((place, x if whole else b.Slice(x, _i(*starts), _i(*ends), axes, _i(*self.strides))))
        return found


def _spatial(op: Op) -> tuple[int, ...]:
    type_ = op.operands[0].type
    dims = type_.shape[2:] if isinstance(type_, TensorType) and type_.shape else ()
    extents = tuple(d for d in dims if isinstance(d, int))
    if not extents or len(extents) != len(dims):
        raise NoDouble(f"{op.op_type} {op.name!r} whose padding depends on symbolic extents")
    return extents


def _conv(b: Builder, op: Op) -> Sequence[Value]:
    x, w = op.operands[:2]
    shape = _static(w, op)
    window = _Window(op, shape[2:])
    window.resolve(op)
    group = op.attrs.get("group", 1)
    kernel = _kernel(b, w, shape, group)
    y = _convolve(b, window.pad(b, x), kernel, shape[0], shape[1], window, group)
    return [_add_bias(b, y, op.input(2), len(shape))]


def _kernel(
    b: Builder, w: Value, shape: tuple[int, ...], group: int, *, mirrored: bool = False
) -> Callable[[tuple[int, ...]], Value]:
    """Give the function that gives the [g, M/g, C/g] matrix of one kernel place.

    Mirrored, for a transposed convolution: the weight is [C, M/g, *kernel] and its places count from the end.
    """
    axes = _i(*range(2, len(shape)))

    def matrix(place: tuple[int, ...]) -> Value:
        if mirrored:
            place = tuple(k - 1 - p for k, p in zip(shape[2:], place, strict=True))
        flat = b.Squeeze(b.Slice(w, _i(*place), _i(*(p + 1 for p in place)), axes), axes)
        split = b.Reshape(flat, _i(group, shape[0] // group, shape[1]))
        result: Value = b.Transpose(split, perm=[0, 2, 1]) if mirrored else split
        return result

    return matrix


def _convolve(
    b: Builder, x: Value, kernel: Callable[[tuple[int, ...]], Value], m: int, c: int, window: _Window, group: int
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
            part = b.Mul(piece, b.Reshape(kernel(place), _i(1, m, *[1] * len(window.kernel))))
        else:
            out = b.Shape(piece) if out is None else out
            part = b.MatMul(kernel(place), b.Reshape(piece, _i(0, group, c, -1)))
        total = part if total is None else b.Add(total, part)
    if total is None:
        raise NoDouble("a convolution with an empty kernel")
    if out is not None:
        last = np.iinfo(np.int64).max
        batch, extents = b.Slice(out, _i(0), _i(1), _i(0)), b.Slice(out, _i(2), _i(last), _i(0))
        total = b.Reshape(total, b.Concat(batch, _i(m), extents, axis=0))
    return total


def _add_bias(b: Builder, y: Value, bias: Value | None, rank: int) -> Value:
    if bias is None:
        return y
    result: Value = b.Add(y, b.Reshape(bias, _i(1, -1, *[1] * (rank - 2))))
    return result


def _conv_transpose(b: Builder, op: Op) -> Sequence[Value]:
    x, w = op.operands[:2]
    shape = _static(w, op)
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
        x = b.Pad(x, _i(0, 0, *left, 0, 0, *right), _f(0.0))
    window.strides = (1,) * rank
    kernel = _kernel(b, w, shape, group, mirrored=True)
    y = _convolve(b, x, kernel, group * shape[1], shape[0] // group, window, group)
    return [_add_bias(b, y, op.input(2), rank + 2)]


def _insert_zeros(b: Builder, x: Value, axis: int, stride: int, rank: int) -> Value:
    if stride == 1:
        return x
    shape, last = b.Shape(x), np.iinfo(np.int64).max
    wide = b.Unsqueeze(x, _i(axis + 1))
    ends = [0] * (rank + 1)
    ends[axis + 1] = stride - 1
    wide = b.Pad(wide, _i(*[0] * (rank + 1), *ends), _f(0.0))
    extent = b.Mul(b.Slice(shape, _i(axis), _i(axis + 1), _i(0)), _i(stride))
    parts = [b.Slice(shape, _i(0), _i(axis), _i(0)), extent]
    if axis + 1 < rank:
        parts.append(b.Slice(shape, _i(axis + 1), _i(last), _i(0)))
    merged = b.Reshape(wide, b.Concat(*parts, axis=0))
    result: Value = b.Slice(merged, _i(0), _i(1 - stride), _i(axis))
    return result


def _average_pool(b: Builder, op: Op) -> Sequence[Value]:
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
    ones_shape = b.Concat(_i(1, 1), b.Slice(b.Shape(x), _i(2), _i(last), _i(0)), axis=0)
    ones = b.ConstantOfShape(ones_shape, value=b.const(np.ones(1)).tensor)
    if op.attrs.get("count_include_pad"):
        ones = window.pad(b, ones, value=1.0)
        if any(extra):
            ones = b.Pad(ones, _i(*[0] * (rank + 4), *extra), _f(0.0))
    else:
        ones = window.pad(b, ones, extra)
    total, count = (
        _sum(b, [piece for _, piece in window.pieces(b, tensor)]) for tensor in (window.pad(b, x, extra), ones)
    )
    return [b.Div(total, count)]


def _sum(b: Builder, values: Sequence[Value]) -> Value:
    total = values[0]
    for value in values[1:]:
        total = b.Add(total, value)
    return total


def _reduce(b: Builder, kind: str, x: Value, axes: Sequence[int]) -> Value:
    if (ops.opset_of(b.graph, "") or 0) >= 18:
        return b.op(kind, [x, _i(*axes)], {"keepdims": 1}).result
    return b.op(kind, [x], {"axes": tuple(axes), "keepdims": 1}).result


def _global_pool(kind: str) -> Lowering:
    return lambda b, op: [_reduce(b, kind, op.operand, range(2, _rank(op.operand, op)))]


def _instance_norm(b: Builder, op: Op) -> Sequence[Value]:
    x, scale, shift = op.operands
    rank = _rank(x, op)
    column = _i(1, -1, *[1] * (rank - 2))
    centred = b.Sub(x, _reduce(b, "ReduceMean", x, range(2, rank)))
    variance = _reduce(b, "ReduceMean", b.Mul(centred, centred), range(2, rank))
    unit = b.Div(centred, b.Sqrt(b.Add(variance, _f(op.attrs.get("epsilon", 1e-5)))))
    return [b.Add(b.Mul(unit, b.Reshape(scale, column)), b.Reshape(shift, column))]


# -- functions of one number --------------------------------------------------------------------------


def _erf_polynomial() -> npt.NDArray[np.float64]:
    """Coefficients, lowest first, of exp(z^2) erfc(z) for z in [0, 6] in u = (2 / (2 + z) - 5/8) / (3/8).

    The scaled complement is smooth in 2 / (2 + z) (Press et al., Numerical Recipes, 6.2.2); interpolated at
    Chebyshev points it is exact to about 1e-14. Beyond z = 6, erf(z) is 1 in float64.
    """

    u = np.cos(np.pi * (np.arange(27) + 0.5) / 27)
    z = 2 / (0.625 + 0.375 * u) - 2
    scaled = [math.erfc(v) * math.exp(v * v) for v in z.tolist()]
    series = np.polynomial.chebyshev.chebfit(u, scaled, 26)
    return np.asarray(np.polynomial.chebyshev.cheb2poly(series), np.float64)


def _erf_of(b: Builder, x: Value) -> Value:
    z = b.Min(b.Abs(x), _f(6.0))
    u = b.Div(b.Sub(b.Div(_f(2.0), b.Add(z, _f(2.0))), _f(0.625)), _f(0.375))
    coefficients = _erf_polynomial()
    total: Value = b.Add(b.Mul(u, _f(coefficients[-1])), _f(coefficients[-2]))
    for coefficient in coefficients[-3::-1]:
        total = b.Add(b.Mul(total, u), _f(coefficient))
    result: Value = b.Mul(b.Sign(x), b.Sub(_f(1.0), b.Mul(total, b.Exp(b.Neg(b.Mul(z, z))))))
    return result


def _gelu(b: Builder, op: Op) -> Sequence[Value]:
    x = op.operand
    if _text(op, "approximate", "none") == "tanh":
        cubic = b.Add(x, b.Mul(b.Mul(b.Mul(x, x), x), _f(0.044715)))
        inner = b.Tanh(b.Mul(cubic, _f(math.sqrt(2 / math.pi))))
    else:
        inner = _erf_of(b, b.Mul(x, _f(math.sqrt(0.5))))
    return [b.Mul(b.Mul(x, _f(0.5)), b.Add(inner, _f(1.0)))]


def _softplus_of(b: Builder, x: Value) -> Value:
    tail = b.Log(b.Add(b.Exp(b.Neg(b.Abs(x))), _f(1.0)))
    result: Value = b.Add(b.Max(x, _f(0.0)), tail)
    return result


def _rectifier(negative: Callable[[Builder, Op, Value], Value], gain: str = "") -> Lowering:
    """x for x > 0, else `negative(x)`, all times the attribute `gain`."""

    def lowering(b: Builder, op: Op) -> Sequence[Value]:
        x = op.operand
        y = b.Add(b.Max(x, _f(0.0)), negative(b, op, b.Min(x, _f(0.0))))
        return [b.Mul(y, _f(op.attrs.get(gain, 1.0507009873554805))) if gain else y]

    return lowering


def _bent(default: float) -> Callable[[Builder, Op, Value], Value]:
    def negative(b: Builder, op: Op, low: Value) -> Value:
        result: Value = b.Mul(b.Sub(b.Exp(low), _f(1.0)), _f(op.attrs.get("alpha", default)))
        return result

    return negative


def _hard_sigmoid_of(b: Builder, x: Value, alpha: float, beta: float) -> Value:
    line = b.Add(b.Mul(x, _f(alpha)), _f(beta))
    result: Value = b.Max(b.Min(line, _f(1.0)), _f(0.0))
    return result


def _resize(b: Builder, op: Op) -> Sequence[Value]:
    mode = _text(op, "mode", "nearest")
    if mode == "nearest":
        return [_resize_nearest(b, op)]
    where = _text(op, "coordinate_transformation_mode", "half_pixel")
    known = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
    stretched = _text(op, "keep_aspect_ratio_policy", "stretch") == "stretch"
    if mode != "linear" or where not in known or op.attrs.get("antialias") or not stretched:
        raise NoDouble(f"Resize {op.name!r} in mode {mode}, {where}")
    return [_resize_linear(b, op, where)]


def _text(op: Op, key: str, default: str) -> str:
    value = op.attrs.get(key, default)
    return value.decode() if isinstance(value, bytes) else str(value)


def _resize_nearest(b: Builder, op: Op) -> Value:
    """Nearest only copies: exact when a float64 is sent through as three float32 that add up to it."""
    rest = op.operand
    parts = []
    for _ in range(3):
        narrow = b.Cast(rest, to=int(DType.FLOAT))
        again = b.op(op.op_type, [narrow, *op.operands[1:]], dict(op.attrs)).result
        parts.append(b.Cast(again, to=int(DType.DOUBLE)))
        rest = b.Sub(rest, b.Cast(narrow, to=int(DType.DOUBLE)))
    return _sum(b, parts[::-1])


def _resize_linear(b: Builder, op: Op, where: str) -> Value:
    """Interpolate axis by axis between the two neighbours of each output's place in the input."""
    x = op.operand
    rank = _rank(x, op)
    axes = [axis % rank for axis in op.attrs.get("axes", range(rank))]
    scales, sizes = op.input(2), op.input(3)
    whole = b.Cast(b.Shape(x), to=int(DType.DOUBLE))
    for index, axis in enumerate(axes):
        extent = b.Gather(whole, np.asarray(axis, np.int64), axis=0)
        at = np.asarray(index, np.int64)
        if sizes is not None:
            out = b.Cast(b.Gather(sizes, at, axis=0), to=int(DType.DOUBLE))
            scale = b.Div(out, extent)
        else:
            scale = b.Cast(b.Gather(scales, at, axis=0), to=int(DType.DOUBLE))
            out = b.Floor(b.Mul(extent, scale))
        step = b.Range(_f(0.0), out, _f(1.0))
        if where == "align_corners":
            place = b.Mul(step, b.Div(b.Sub(extent, _f(1.0)), b.Max(b.Sub(out, _f(1.0)), _f(1.0))))
        elif where == "asymmetric":
            place = b.Div(step, scale)
        else:
            place = b.Sub(b.Div(b.Add(step, _f(0.5)), scale), _f(0.5))
            if where == "pytorch_half_pixel":
                place = b.Where(b.Greater(out, _f(1.0)), place, _f(0.0))
        last = b.Sub(extent, _f(1.0))
        place = b.Max(b.Min(place, last), _f(0.0))
        low = b.Floor(place)
        high = b.Min(b.Add(low, _f(1.0)), last)
        column = _i(-1, *[1] * (rank - 1 - axis))
        weight = b.Reshape(b.Sub(place, low), column)
        first, second = (b.Gather(x, b.Cast(index_, to=int(DType.INT64)), axis=axis) for index_ in (low, high))
        x = b.Add(b.Mul(first, b.Sub(_f(1.0), weight)), b.Mul(second, weight))
    return x


# -- recurrence ---------------------------------------------------------------------------------------


_ACTIVATIONS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh")}


def _recurrent(b: Builder, op: Op) -> Sequence[Value | None]:
    """An LSTM or GRU as a Scan over time, one per direction."""
    direction = _text(op, "direction", "forward")
    reverses = {"forward": [0], "reverse": [1], "bidirectional": [0, 1]}[direction]
    named = tuple(a if isinstance(a, str) else a.decode() for a in op.attrs.get("activations", ()))
    odd = any(op.attrs.get(key) for key in ("activation_alpha", "activation_beta", "clip", "layout"))
    odd = odd or named not in ((), _ACTIVATIONS[op.op_type] * len(reverses))
    if odd or op.input(7) is not None or op.attrs.get("input_forget"):
        raise NoDouble(f"{op.op_type} {op.name!r} with peepholes, clipping or other activations")
    ends = [_one_way(b, op, number, reverse) for number, reverse in enumerate(reverses)]
    steps, *lasts = zip(*ends, strict=True)
    return [_join(b, steps, 1), *(_join(b, last, 0) for last in lasts)]


def _join(b: Builder, parts: Sequence[Value], axis: int) -> Value:
    parts = [b.Unsqueeze(part, _i(axis)) for part in parts]
    result: Value = b.Concat(*parts, axis=axis)
    return result


def _one_way(b: Builder, op: Op, number: int, reverse: int) -> list[Value]:
    """Give all steps [T, N, H], then the last state(s) [N, H] of direction `number`."""

    def pick(value: Value | None) -> Value | None:
        return None if value is None else b.Gather(value, np.asarray(number, np.int64), axis=0)

    x, lengths = op.operand, op.input(4)
    lstm, hidden = op.op_type == "LSTM", op.attrs["hidden_size"]
    rows = (4 if lstm else 3) * hidden
    shape = b.Shape(x)
    weights = [b.Transpose(pick(matrix), perm=[1, 0]) for matrix in op.operands[1:3]]
    bias = pick(op.input(3)) or b.const(np.zeros(2 * rows))
    weights += b.Split(bias, _i(rows, rows), axis=0, _outputs=2)
    zeros = b.Expand(_f(0.0), b.Concat(b.Slice(shape, _i(1), _i(2), _i(0)), _i(hidden), axis=0))
    starts = [pick(op.input(k)) or zeros for k in ((5, 6) if lstm else (5,))]
    fed = [x]
    if lengths is not None:  # steps past the end of a sequence leave its state alone and give 0
        steps = b.Range(_i(0)[0], b.Gather(shape, _i(0)[0], axis=0), _i(1)[0])
        alive = b.Less(b.Unsqueeze(steps, _i(1)), b.Unsqueeze(b.Cast(lengths, to=int(DType.INT64)), _i(0)))
        fed.append(b.Unsqueeze(alive, _i(2)))
    body = Graph("step")
    attrs = {
        "num_scan_inputs": len(fed),
        "scan_input_directions": (reverse,) * len(fed),
        "scan_output_directions": (reverse,),
    }
    double = TensorType(DType.DOUBLE, (None, hidden))  # onnxruntime's Scan wants the rank of every result
    scan = Op(
        "Scan",
        [*starts, *fed],
        [*[double] * len(starts), TensorType(DType.DOUBLE, (None, None, hidden))],
        attrs,
        {"body": body},
    )
    b.graph.insert_before(op, scan)
    held = [body.add_input(body.fresh_name(f"state{k}"), double) for k in range(len(starts))]
    part = body.add_input(body.fresh_name("x_t"), TensorType(DType.DOUBLE, (None, None)))
    step = Builder(body)
    last = bool(op.attrs.get("linear_before_reset", 0))
    new = _lstm_step(step, part, held, weights, hidden) if lstm else [
        _gru_step(step, part, held[0], weights, hidden, reset_last=last)
    ]  # fmt: skip
    seen = step.Identity(new[0])
    if lengths is not None:
        on = body.add_input(body.fresh_name("alive"), TensorType(DType.BOOL))
        new = [step.Where(on, value, old) for value, old in zip(new, held, strict=True)]
        seen = step.Where(on, seen, _f(0.0))
    body.set_outputs([*new, seen], [Output(value.name, double) for value in (*new, seen)])
    return [scan.results[-1], *scan.results[:-1]]


def _lstm_step(b: Builder, x: Value, held: Sequence[Value], weights: Sequence[Value], hidden: int) -> list[Value]:
    """One step; the gates lie in the order i, o, f, c."""
    w, r, wb, rb = weights
    sums = b.Add(b.Add(b.MatMul(x, w), wb), b.Add(b.MatMul(held[0], r), rb))
    i, o, f, c = b.Split(sums, _i(*[hidden] * 4), axis=1, _outputs=4)
    cell = b.Add(b.Mul(b.Sigmoid(f), held[1]), b.Mul(b.Sigmoid(i), b.Tanh(c)))
    return [b.Mul(b.Sigmoid(o), b.Tanh(cell)), cell]


def _gru_step(b: Builder, x: Value, h: Value, weights: Sequence[Value], hidden: int, *, reset_last: bool) -> Value:
    """One step; the gates lie in the order z, r, h."""
    w, r, wb, rb = weights
    thirds = _i(*[hidden] * 3)
    xz, xr, xh = b.Split(b.Add(b.MatMul(x, w), wb), thirds, axis=1, _outputs=3)
    rz, rr, rh = b.Split(r, thirds, axis=1, _outputs=3)
    bz, br, bh = b.Split(rb, thirds, axis=0, _outputs=3)
    z = b.Sigmoid(b.Add(xz, b.Add(b.MatMul(h, rz), bz)))
    reset = b.Sigmoid(b.Add(xr, b.Add(b.MatMul(h, rr), br)))
    if reset_last:
        back = b.Mul(reset, b.Add(b.MatMul(h, rh), bh))
    else:
        back = b.Add(b.MatMul(b.Mul(reset, h), rh), bh)
    new: Value = b.Add(b.Mul(b.Sub(_f(1.0), z), b.Tanh(b.Add(xh, back))), b.Mul(z, h))
    return new


LOWERINGS: dict[str, Lowering] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_pool("ReduceMean"),
    "GlobalMaxPool": _global_pool("ReduceMax"),
    "InstanceNormalization": _instance_norm,
    "Erf": lambda b, op: [_erf_of(b, op.operand)],
    "Gelu": _gelu,
    "LeakyRelu": _rectifier(lambda b, op, low: b.Mul(low, _f(op.attrs.get("alpha", 0.01)))),
    "PRelu": _rectifier(lambda b, op, low: b.Mul(low, op.operands[1])),
    "Elu": _rectifier(_bent(1.0)),
    "Selu": _rectifier(_bent(1.6732632423543772), "gamma"),
    "Softplus": lambda b, op: [_softplus_of(b, op.operand)],
    "Softsign": lambda b, op: [b.Div(op.operand, b.Add(b.Abs(op.operand), _f(1.0)))],
    "Mish": lambda b, op: [b.Mul(op.operand, b.Tanh(_softplus_of(b, op.operand)))],
    "HardSigmoid": lambda b, op: [
        _hard_sigmoid_of(b, op.operand, op.attrs.get("alpha", 0.2), op.attrs.get("beta", 0.5))
    ],
    "HardSwish": lambda b, op: [b.Mul(op.operand, _hard_sigmoid_of(b, op.operand, 1 / 6, 0.5))],
    "Resize": _resize,
    "LSTM": _recurrent,
    "GRU": _recurrent,
}
