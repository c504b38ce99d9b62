"""Convolutions."""

from __future__ import annotations

from math import prod
from typing import Any

from memoptc.ir.core import Op, Value
from memoptc.ir.dims import same
from memoptc.ir.ops import double_windows
from memoptc.ir.ops.axis import SUMMED, Along, Axis, Form, Join, accumulated, axis_of_result, dtype_of, extents
from memoptc.ir.ops.definition import Family, IntegerKernel, Operator, ShapeOf, WeightLayout, also, define
from memoptc.ir.ops.sample import Rng, Sample, floats
from memoptc.ir.ops.schema import BLOCKED_DOMAIN, MICROSOFT
from memoptc.ir.ops.sizes import FLOAT, Sizes
from memoptc.ir.ops.windows import spatial_axes, window_of
from memoptc.ir.types import DType

FILTERS = 16
"""Filters that kernels compute side by side: onnxruntime pads fewer to as many (NCHWc layout; 8 without AVX-512)."""


def _conv(op: Op) -> list[Axis]:
    if op.domain and len(op.operands) > 3:
        return []  # a fused sum: its fourth operand has the result's shape
    x, w = extents(op, 0), extents(op, 1)
    if len(x) < 3 or len(w) != len(x):
        return []
    return [axis_of_result(op, 0, (0, Along(0))), *_filters(op, len(op.operands) > 2), *spatial_axes(op)]


def _filters(op: Op, biased: bool) -> list[Axis]:
    """Filters: all need the whole input, unless each channel is convolved by itself."""
    group = int(op.attrs.get("group", 1))
    cut = [(1, Along(0))] + ([(2, Along(0))] if biased and op.input(2) is not None else [])
    if group == 1:
        return [axis_of_result(op, 1, *cut, grain=FILTERS, reorders=True)]
    return []


def _terms(op: Op) -> list[Axis]:
    """Input channels, which every filter adds up; onnxruntime's kernels for one channel per group do not."""
    x, w = extents(op, 0), extents(op, 1)
    if int(op.attrs.get("group", 1)) != 1 or dtype_of(op, 0) not in SUMMED or len(w) != len(x) or len(x) < 3:
        return []
    return [accumulated(op, Join.SUM, (0, 1), (1, 1))] if same(x[1], w[1]) else []


def _integer_conv(op: Op) -> list[Axis]:
    x = extents(op, 0)
    scalar = all(not extents(op, i) or extents(op, i) == (1,) for i in (2, 3))
    # What lies in the padding is the zero point, whichever piece it borders on.
    return [axis_of_result(op, 0, (0, Along(0))), *spatial_axes(op)] if len(x) > 2 and scalar else []


def _transposed(op: Op) -> list[Axis]:
    x = extents(op, 0)
    if len(x) < 3 or op.attrs.get("output_shape") or int(op.attrs.get("group", 1)) != 1:
        return [axis_of_result(op, 0, (0, Along(0)))] if x else []
    biased = [(2, Along(0))] if op.input(2) is not None else []
    # Each filter adds up columns of its own.
    found = [axis_of_result(op, 0, (0, Along(0))), axis_of_result(op, 1, (1, Along(1)), *biased, reorders=True)]
    for spatial in range(len(x) - 2):
        window = window_of(op, spatial)
        mode = op.attrs.get("auto_pad", "NOTSET")
        if window is None or mode not in ("NOTSET", b"NOTSET", "VALID", b"VALID"):
            continue
        size, stride, dilation, before, _ = window
        reach = (size - 1) * dilation
        # Result p gets input i from tap p + before - i * stride in [0, reach].
        along = Along(2 + spatial, 1, stride, before - reach + stride - 1, before)
        found.append(axis_of_result(op, 2 + spatial, (0, along), form=Form.TRANSPOSED, reorders=True))
    return found


def _layout(op: Op) -> WeightLayout | None:
    rank = len(extents(op, 1))
    if rank < 3 or (op.domain and len(op.operands) > 3):
        return None
    output, summed = (1, 0) if op.op_type == "ConvTranspose" else (0, 1)
    return WeightLayout(
        1,
        output,
        summed,
        data_axis=1,
        result_axis=1,
        bias=2,
        groups=int(op.attrs.get("group", 1)),
        taps=tuple(range(2, rank)),
    )


def _multiplications(op: Op, shape_of: ShapeOf) -> float:
    weight = shape_of(op.operands[3 if op.op_type == "QLinearConv" else 1])
    return prod(shape_of(op.results[0])) * prod(weight[1:])


def _transposed_multiplications(op: Op, shape_of: ShapeOf) -> float:
    return prod(shape_of(op.operands[0])) * prod(shape_of(op.operands[1])[1:])


_SEGMENT = 64 * 1024
"""Bytes per thread in which a convolution expands its operand (MLAS_CONV_WORKING_BUFFER_SIZE_PER_THREAD)."""
_THREAD_COMPLEXITY = 64 * 1024
"""Multiplications that are worth a thread (MLAS_SGEMM_THREAD_COMPLEXITY)."""
_POINTER = 8


def _workspace(s: Sizes) -> int:
    """MlasConvPrepare (mlas/lib/convolve.cpp)."""
    x, w, y = s.operand(0), s.operand(1), s.result
    group = int(s.op.attrs.get("group", 1))
    pixels, filters, depth = prod(y[2:]), w[0] // group, prod(w[1:])
    plain = all(i == 1 for i in s.op.attrs.get("strides", ())) and not any(s.op.attrs.get("pads", ()))
    if plain and prod(w[2:]) == 1 and x[2:] == y[2:]:
        return 0
    if filters > pixels:
        return FLOAT * pixels * depth
    threads = min(s.threads, filters * pixels * depth // _THREAD_COMPLEXITY + 1)
    if x[0] * group > 1:
        threads = max(threads, min(s.threads, x[0] * group))
    return threads * _SEGMENT


def _transposed_workspace(s: Sizes) -> int:
    """The columns of one image and group (core/providers/cpu/nn/conv_transpose.cc)."""
    x, w = s.operand(0), s.operand(1)
    return FLOAT * prod(w[1:]) * prod(x[2:])


def _integer_workspace(s: Sizes) -> int:
    """Columns of one image (core/providers/cpu/quantization/conv_integer.cc)."""
    return prod(s.operand(1)[1:]) * prod(s.result[2:])


def _between_codes_workspace(s: Sizes) -> int:
    """A convolution that is fused with its codes: onnxruntime transposes the whole batch around a QLinearConv."""
    x, w, y = s.operand(0), s.operand(1), s.result
    images = x[0]
    alone = _columns_of_codes(s, 1, x[1], prod(y[2:]))
    return images * (x[1] * prod(x[2:]) + w[0] * prod(y[2:])) + alone


def _quantized_workspace(s: Sizes) -> int:
    """Channels-last copies of one image, and columns of it (core/providers/cpu/quantization/qlinearconv.cc)."""
    x, w, y = s.operand(0), s.operand(3), s.result
    last = bool(s.op.attrs.get("channels_last", 0))
    channels, pixels_in = (x[-1], prod(x[1:-1])) if last else (x[1], prod(x[2:]))
    pixels = prod(y[1:-1]) if last else prod(y[2:])
    copies = 0 if last else channels * pixels_in + w[0] * pixels
    return copies + _columns_of_codes(s, 3, channels, pixels)


def _columns_of_codes(s: Sizes, weight: int, channels: int, pixels: int) -> int:
    """Pointers to windows where a kernel requantizes at once (MlasConvSymPackWSize), else columns and sums in int32.

    Such kernels take unsigned activations, signed weights, and channels in multiples (x86-64). Of a convolution that is
    still one of floats, its codes are taken to be those.
    """
    w = s.operand(weight)
    group = int(s.op.attrs.get("group", 1))
    window = prod(w[2:])
    depthwise = group > 1 and w[1] == 1 and w[0] == channels
    types = _codes_dtype(s.op.operands[0]), _codes_dtype(s.op.operands[weight])
    fitting = types in ((DType.UINT8, DType.INT8), (DType.FLOAT, DType.FLOAT))
    if not fitting or not (w[0] % 16 == 0 and (depthwise or (group == 1 and channels % 4 == 0))):
        return 4 * w[0] * pixels + pixels * window * (_POINTER if depthwise else w[1])
    pointwise = window == 1 and all(i == 1 for i in s.op.attrs.get("strides", ()))
    plain = pointwise and not any(s.op.attrs.get("pads", ()))
    return 0 if plain else s.operand(0)[0] * pixels * window * _POINTER


def _codes_dtype(value: Value) -> DType | None:
    """Element type of a value's codes: its own, or what it is decoded from."""
    if value.op is not None and value.op.op_type == "DequantizeLinear":
        value = value.op.operands[0]
    return value.dtype


def _conv_sample(r: Rng) -> Sample:
    groups, each, out, rank = (int(d) for d in r.integers(1, 4, 4))
    image = [int(d) for d in r.integers(4, 9, min(rank, 2))]
    kernel = [int(d) for d in r.integers(1, 4, len(image))]
    attrs = {"group": groups, "strides": [int(d) for d in r.integers(1, 3, len(image))], "pads": [1] * 2 * len(image)}
    x, w = floats(r, int(r.integers(1, 3)), groups * each, *image), floats(r, groups * out, each, *kernel)
    return Sample((x, w, floats(r, groups * out)), attrs, frozenset({1, 2}))


def _transposed_sample(r: Rng) -> Sample:
    groups, each, out = (int(d) for d in r.integers(1, 4, 3))
    x, w = floats(r, 1, groups * each, 5, 4), floats(r, groups * each, out, *(int(d) for d in r.integers(1, 4, 2)))
    return Sample((x, w), {"group": groups, "strides": [int(d) for d in r.integers(1, 3, 2)]}, frozenset({1}))


_FACTS: dict[str, Any] = {"family": Family.CONVOLUTION, "packs_weights": True, "layout": _layout}

OPERATORS: tuple[Operator, ...] = (
    *define(
        "Conv",
        sample=_conv_sample,
        space=_conv,
        double=double_windows.conv,
        accumulates=_terms,
        multiplications=_multiplications,
        integer=IntegerKernel.ALL_OPERANDS,
        workspace=_workspace,
        integer_workspace=_between_codes_workspace,
        **_FACTS,
    ),
    *define(
        "FusedConv",
        MICROSOFT,
        types_like=("Conv", 11),
        space=_conv,
        multiplications=_multiplications,
        workspace=_workspace,
        **_FACTS,
    ),
    *define(
        "ConvTranspose",
        sample=_transposed_sample,
        space=_transposed,
        double=double_windows.conv_transpose,
        multiplications=_transposed_multiplications,
        workspace=_transposed_workspace,
        **_FACTS,
    ),
    *define(
        "ConvInteger",
        space=_integer_conv,
        multiplications=_multiplications,
        workspace=_integer_workspace,
        family=Family.CONVOLUTION,
    ),
    *define("QLinearConv", multiplications=_multiplications, workspace=_quantized_workspace, family=Family.CONVOLUTION),
    *define("QLinearConv", MICROSOFT, workspace=_quantized_workspace),
    *define("Conv", BLOCKED_DOMAIN, in_place=(3,)),  # its fourth operand is added
    *define("CausalConvWithState DeformConv"),
    *define("ConvTransposeWithDynamicPads NhwcConv NhwcFusedConv WordConvEmbedding", MICROSOFT),
)
OPERATORS = also(OPERATORS, "Conv ConvTranspose", ort_forgets_symbols=True)
OPERATORS = also(OPERATORS, "ConvTranspose ConvInteger", packed=(1,))
OPERATORS = also(OPERATORS, "QLinearConv", packed=(3,))
OPERATORS = also(OPERATORS, "QLinearConv", MICROSOFT, packed=(3,))
OPERATORS = also(OPERATORS, "ConvInteger QLinearConv", on_codes=True)
OPERATORS = also(OPERATORS, "QLinearConv", MICROSOFT, on_codes=True)
OPERATORS = also(OPERATORS, "Conv ConvInteger DeformConv QLinearConv", unchecked_ranks=True)
OPERATORS = also(OPERATORS, "DeformConv", equal_extents=(((0, 0), (2, 0)),))
