"""What kernels need besides operands and results: scratch that onnxruntime's CPU kernels allocate while they run.

Each formula was found by recording what a kernel allocates for varied shapes (onnxruntime 1.31, x86-64; see
`memoptc.runtime.native`) and is held against the recorder by the tests. Where the code behind it is known, the entry
names its file in onnxruntime. Operators that are not in the table need nothing worth counting, or have no kernel that
was looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from memoptc.ir.core import Op, Value
from memoptc.ir.dims import Dim
from memoptc.ir.ops import opset_of
from memoptc.ir.types import DType
from memoptc.runtime.memory.integer import fused_pairs

Workspace = Callable[[Op], int]
"""Bytes that an op's kernel needs besides its operands and results, during its step."""

_FLOAT = 4
_SEGMENT = 64 * 1024
"""Bytes per thread in which a convolution expands its operand (MLAS_CONV_WORKING_BUFFER_SIZE_PER_THREAD)."""
_THREAD_COMPLEXITY = 64 * 1024
"""Multiplications that are worth a thread (MLAS_SGEMM_THREAD_COMPLEXITY)."""
_POINTER = 8


def no_workspace(op: Op) -> int:
    """Kernels need nothing: tensors alone are counted."""
    return 0


@dataclass(frozen=True, eq=False)
class KernelWorkspace:
    """The model of onnxruntime's kernels for given extents; see `kernel_workspace`."""

    dims: Mapping[str, int]
    threads: int
    fused: bool

    @property
    def key(self) -> tuple[int, bool]:
        """Models with equal keys and extents give equal answers."""
        return self.threads, self.fused

    def __call__(self, op: Op) -> int:
        """Bytes that an op's kernel needs; 0 where shapes leave it open."""
        formula = _TABLE.get((op.domain, op.op_type))
        if self.fused and not op.domain and op.op_type in _ON_CODES and _runs_on_codes(op):
            formula = _ON_CODES[op.op_type]
        if formula is None:
            return 0
        try:
            return formula(_Sizes(op, self.dims, self.threads))
        except _UnknownError:
            return 0


def kernel_workspace(dims: Mapping[str, int], threads: int = 1, *, fused: bool = True) -> KernelWorkspace:
    """Give the model of onnxruntime's kernels for given extents.

    Args:
        dims: Extents of symbolic dimensions, completed (see `extents`). A kernel whose shapes they leave open
            counts as needing nothing.
        threads: Intra-op threads.
        fused: Whether quantize and dequantize pairs are fused into integer kernels, which need scratch of their own.
    """
    return KernelWorkspace(dims, threads, fused)


def _runs_on_codes(op: Op) -> bool:
    return op.graph is not None and op in op.graph.analysis(fused_pairs).kernels


class _UnknownError(Exception):
    """A shape is not known."""


@dataclass(frozen=True)
class _Sizes:
    """Shapes and sizes of an op's values as numbers."""

    op: Op
    dims: Mapping[str, int]
    threads: int

    def shape(self, value: Value) -> tuple[int, ...]:
        if value.shape is None:
            raise _UnknownError
        return tuple(_extent(d, self.dims) for d in value.shape)

    def operand(self, index: int) -> tuple[int, ...]:
        return self.shape(self.op.operands[index])

    def has(self, index: int) -> bool:
        return len(self.op.operands) > index and not self.op.operands[index].is_absent

    @property
    def result(self) -> tuple[int, ...]:
        return self.shape(self.op.results[0])

    def nbytes(self, value: Value) -> int:
        return prod(self.shape(value)) * width(value)

    @property
    def result_bytes(self) -> int:
        return self.nbytes(self.op.results[0])

    def operand_bytes(self, index: int) -> int:
        return self.nbytes(self.op.operands[index])


def _extent(dim: Dim, dims: Mapping[str, int]) -> int:
    if isinstance(dim, int):
        return dim
    if dim is None:
        raise _UnknownError
    try:
        return dim.evaluate(dims)
    except KeyError:
        raise _UnknownError from None


def width(value: Value) -> int:
    """Bytes of one element, 1 for those smaller than a byte."""
    if value.dtype is None or value.dtype in (DType.UNDEFINED, DType.STRING):
        raise _UnknownError
    return max(1, value.dtype.bitwidth // 8)


def _convolution(s: _Sizes) -> int:
    """MlasConvPrepare (mlas/lib/convolve.cpp)."""
    x, w, y = s.operand(0), s.operand(1), s.result
    group = int(s.op.attrs.get("group", 1))
    pixels, filters, depth = prod(y[2:]), w[0] // group, prod(w[1:])
    plain = all(i == 1 for i in s.op.attrs.get("strides", ())) and not any(s.op.attrs.get("pads", ()))
    if plain and prod(w[2:]) == 1 and x[2:] == y[2:]:
        return 0
    if filters > pixels:
        return _FLOAT * pixels * depth
    threads = min(s.threads, filters * pixels * depth // _THREAD_COMPLEXITY + 1)
    if x[0] * group > 1:
        threads = max(threads, min(s.threads, x[0] * group))
    return threads * _SEGMENT


def _transposed_convolution(s: _Sizes) -> int:
    """The columns of one image and group (core/providers/cpu/nn/conv_transpose.cc)."""
    x, w = s.operand(0), s.operand(1)
    return _FLOAT * prod(w[1:]) * prod(x[2:])


def _integer_convolution(s: _Sizes) -> int:
    """Columns of one image (core/providers/cpu/quantization/conv_integer.cc)."""
    return prod(s.operand(1)[1:]) * prod(s.result[2:])


def _fused_convolution(s: _Sizes) -> int:
    """A convolution that is fused with its codes: onnxruntime transposes the whole batch around a QLinearConv."""
    x, w, y = s.operand(0), s.operand(1), s.result
    images = x[0]
    alone = _columns_of_codes(s, 1, x[1], prod(y[2:]))
    return images * (x[1] * prod(x[2:]) + w[0] * prod(y[2:])) + alone


def _quantized_convolution(s: _Sizes) -> int:
    """Channels-last copies of one image, and columns of it (core/providers/cpu/quantization/qlinearconv.cc)."""
    x, w, y = s.operand(0), s.operand(3), s.result
    last = bool(s.op.attrs.get("channels_last", 0))
    channels, pixels_in = (x[-1], prod(x[1:-1])) if last else (x[1], prod(x[2:]))
    pixels = prod(y[1:-1]) if last else prod(y[2:])
    copies = 0 if last else channels * pixels_in + w[0] * pixels
    return copies + _columns_of_codes(s, 3, channels, pixels)


def _columns_of_codes(s: _Sizes, weight: int, channels: int, pixels: int) -> int:
    """Pointers to windows where a kernel requantizes at once (MlasConvSymPackWSize), else columns and sums in int32.

    Such kernels take unsigned activations, signed weights, and channels in multiples (x86-64).
    """
    w = s.operand(weight)
    group = int(s.op.attrs.get("group", 1))
    window = prod(w[2:])
    depthwise = group > 1 and w[1] == 1 and w[0] == channels
    types = _codes_dtype(s.op.operands[0]), _codes_dtype(s.op.operands[weight])
    if types != (DType.UINT8, DType.INT8) or not (w[0] % 16 == 0 and (depthwise or (group == 1 and channels % 4 == 0))):
        return 4 * w[0] * pixels + pixels * window * (_POINTER if depthwise else w[1])
    pointwise = window == 1 and all(i == 1 for i in s.op.attrs.get("strides", ()))
    plain = pointwise and not any(s.op.attrs.get("pads", ()))
    return 0 if plain else s.operand(0)[0] * pixels * window * _POINTER


def _codes_dtype(value: Value) -> DType | None:
    """Element type of a value's codes: its own, or what it is decoded from."""
    if value.op is not None and value.op.op_type == "DequantizeLinear":
        value = value.op.operands[0]
    return value.dtype


def _directions(s: _Sizes) -> tuple[int, int, int, int, int, int]:
    sequence, batch, width_in = s.operand(0)
    if s.op.attrs.get("layout", 0):
        sequence, batch = batch, sequence
    direction = s.op.attrs.get("direction", "forward")
    hidden = s.operand(2)[2]
    backwards = 0 if direction == "forward" else _FLOAT * sequence * batch * (width_in + hidden)
    return 2 if direction == "bidirectional" else 1, sequence, batch, width_in, hidden, backwards


def _lstm(s: _Sizes) -> int:
    """UniDirectionalLstm::AllocateBuffers (core/providers/cpu/rnn/uni_directional_lstm.cc)."""
    count, sequence, batch, _, hidden, backwards = _directions(s)
    bias = 4 * hidden if s.has(3) else 0
    each = 2 * hidden + 3 * batch * hidden + 4 * sequence * batch * hidden + bias + batch
    return _FLOAT * each * count + backwards


def _gru(s: _Sizes) -> int:
    """UniDirectionalGru (core/providers/cpu/rnn/deep_cpu_gru.cc)."""
    count, sequence, batch, _, hidden, backwards = _directions(s)
    after = bool(s.op.attrs.get("linear_before_reset", 0))
    rows = 2 + after + ((3 + after) if s.has(3) else 0)
    each = rows * batch * hidden + 3 * sequence * batch * hidden
    return _FLOAT * (each * count + batch) + backwards


def _rnn(s: _Sizes) -> int:
    """One product for all steps of a direction (core/providers/cpu/rnn/rnn.cc)."""
    _, sequence, batch, _, hidden, _ = _directions(s)
    return _FLOAT * sequence * batch * hidden


def _select(s: _Sizes) -> int:
    """Both choices, spread over the condition (core/providers/cpu/tensor/where_op.cc)."""
    condition = s.operand(0)
    each = [prod(_spread(condition, s.operand(i))) for i in (1, 2)]
    return sum(each) * width(s.op.results[0])


def _spread(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...]:
    rank = max(len(a), len(b))
    padded = ((1,) * (rank - len(a)) + tuple(a), (1,) * (rank - len(b)) + tuple(b))
    return tuple(y if x == 1 else x for x, y in zip(*padded, strict=True))


def _variadic(s: _Sizes) -> int:
    """One running result per operand after the second, two alive at once (math/element_wise_ops.cc)."""
    return s.result_bytes * min(2, max(0, len(s.op.operands) - 2))


def _along_inner_axis(s: _Sizes) -> int:
    """An axis that is not the last one is moved there, and back (math/softmax.cc, opset 13)."""
    rank = len(s.result)
    axis = int(s.op.attrs.get("axis", -1)) % max(rank, 1)
    recent = s.op.graph is not None and (opset_of(s.op.graph) or 0) >= 13
    return 2 * s.result_bytes if rank and axis != rank - 1 and recent else 0


def _response(s: _Sizes) -> int:
    """Scales of all, squares of one image with a margin of channels (nn/lrn.cc)."""
    shape = s.result
    return s.result_bytes + _FLOAT * (shape[1] + int(s.op.attrs["size"]) - 1) * prod(shape[2:])


def _resize(s: _Sizes) -> int:
    """Positions and weights per line and column (tensor/upsample.cc)."""
    if s.op.attrs.get("mode") != "linear" or s.op.attrs.get("antialias"):
        return 0
    changed = [b for a, b in zip(s.operand(0), s.result, strict=True) if a != b]
    return {2: 16, 3: 24}.get(len(changed), 0) * sum(changed)


def _one_result(s: _Sizes) -> int:
    return s.result_bytes


def _two_results(s: _Sizes) -> int:
    return 2 * s.result_bytes


def _sums(s: _Sizes) -> int:
    """Sums in int32, requantized at the end (quantization/quant_gemm.cc, qlinear_matmul.cc)."""
    return 4 * prod(s.result) if width(s.op.results[0]) == 1 else 0


def _fused_product(s: _Sizes) -> int:
    """Sums in int32; a kernel that gives floats writes them where they belong."""
    return 4 * prod(s.result) if s.op.result.has_uses and _ends_in_codes(s.op) else 0


def _ends_in_codes(op: Op) -> bool:
    return op.graph is not None and op.result in op.graph.analysis(fused_pairs).coded


def _codes(s: _Sizes) -> int:
    """The first operand's codes (quantization/dynamic_quantize_matmul.cc)."""
    return prod(s.operand(0))


def _as_floats(s: _Sizes) -> int:
    """The first operand as float (quantization/qlinear_pool.cc)."""
    return _FLOAT * prod(s.operand(0))


def _product_of_many(s: _Sizes) -> int:
    """Operands brought into the order of a batched product, and the result back (cpu_providers_shared einsum_utils)."""
    terms, arrow, kept = s.op.attrs["equation"].replace(" ", "").partition("->")
    labels = list(dict.fromkeys(terms.replace(",", "")))
    pair = terms.split(",")
    if len(pair) != 2 or not arrow or "." in labels:
        return sum(s.operand_bytes(i) for i in range(1, len(pair))) + s.result_bytes
    extents = [dict(zip(term, s.operand(i), strict=True)) for i, term in enumerate(pair)]
    wide = [{x for x, n in e.items() if n > 1} for e in extents]
    summed = [x for x in labels if x not in kept]
    both = [x for x in labels if x in kept and x in wide[0] and x in wide[1]]
    left = [x for x in labels if x in kept and x in wide[0] and x not in wide[1]]
    right = [x for x in labels if x in kept and x not in both and x not in left]
    orders = ([*both, *left, *summed, *right], [*both, *summed, *right, *left])
    copied = 0
    for index, term in enumerate(pair):
        once = [*term] != [x for x in labels if x in term]
        copied += s.operand_bytes(index) * (once + (orders[index] != labels))
    return copied + s.result_bytes * (1 + ([x for x in orders[0] if x in kept] != [*kept]))


def _scores(s: _Sizes) -> int:
    """All scores of all heads (llm/attention.cc, without a flash kernel)."""
    query, key = s.operand(0), s.operand(1)
    element = width(s.op.operands[0])
    if len(query) == 4:
        return element * query[0] * query[1] * query[2] * key[2]
    heads = int(s.op.attrs["q_num_heads"])
    copies = sum(s.operand_bytes(i) for i in range(3))
    return element * query[0] * heads * query[1] * key[1] + copies


def _packed_attention(s: _Sizes) -> int:
    """Queries, keys and values, all scores, and the result with heads outside (contrib_ops/cpu/bert/attention.cc)."""
    batch, length, _ = s.operand(0)
    hidden = s.result[-1]
    heads = int(s.op.attrs["num_heads"])
    return _FLOAT * (4 * batch * length * hidden + batch * heads * length * length + length)


def _multi_head(s: _Sizes) -> int:
    """Heads are brought outside; a flash kernel, where nothing is masked, then keeps tiles of the scores instead of all
    (contrib_ops/cpu/bert/multihead_attention.cc). It is not for keys and values that have their heads outside."""
    batch, length, hidden = s.operand(0)
    key = s.operand(1) if s.has(1) else (batch, length, hidden)
    heads, outside = int(s.op.attrs["num_heads"]), len(key) == 4
    keys, width_out = key[2 if outside else 1], s.result[-1]
    each, out = hidden // heads, width_out // heads
    copies = _FLOAT * batch * (length * hidden + (0 if outside else keys * (hidden + width_out)))
    if outside or s.op.attrs.get("unidirectional") or any(s.has(i) for i in (4, 5, 6, 7)) or len(s.op.results) > 1:
        causal = batch * length * keys if s.op.attrs.get("unidirectional") else 0
        return copies + _FLOAT * causal + _FLOAT * (batch * heads * length * keys + batch * length * width_out)
    columns = max(1, _SECOND_CACHE // (4 * _FLOAT * (each + out)))
    rows = min(columns, each + out, length)
    return copies + s.threads * _FLOAT * rows * (2 + min(columns, keys) + out)


_SECOND_CACHE = 1 << 20
"""Bytes of a core's second-level cache, which a flash kernel reads from the machine; plans take the usual."""


_ON_CODES: dict[str, Callable[[_Sizes], int]] = {
    "Conv": _fused_convolution,
    "MatMul": _fused_product,
    "Gemm": _fused_product,
    "AveragePool": _as_floats,
    "GlobalAveragePool": _as_floats,
}
"""Operators written on floats between codes, which run as one integer kernel."""

_TABLE: dict[tuple[str, str], Callable[[_Sizes], int]] = {
    ("", "Conv"): _convolution,
    ("", "ConvInteger"): _integer_convolution,
    ("", "ConvTranspose"): _transposed_convolution,
    ("", "QLinearConv"): _quantized_convolution,
    ("", "QLinearMatMul"): _sums,
    ("", "LSTM"): _lstm,
    ("", "GRU"): _gru,
    ("", "RNN"): _rnn,
    ("", "Where"): _select,
    ("", "Max"): _variadic,
    ("", "Min"): _variadic,
    ("", "Sum"): _variadic,
    ("", "Mean"): _variadic,
    ("", "Softmax"): _along_inner_axis,
    ("", "LogSoftmax"): _along_inner_axis,
    ("", "Hardmax"): _along_inner_axis,
    ("", "LRN"): _response,
    ("", "Resize"): _resize,
    ("", "Upsample"): _resize,
    ("", "Einsum"): _product_of_many,
    ("", "Attention"): _scores,
    ("", "HardSwish"): _one_result,
    ("", "Mish"): _one_result,
    ("", "Swish"): _one_result,
    ("", "GroupNormalization"): _two_results,
    ("", "MeanVarianceNormalization"): _two_results,
    ("com.microsoft", "FusedConv"): _convolution,
    ("com.microsoft", "QLinearConv"): _quantized_convolution,
    ("com.microsoft", "QGemm"): _sums,
    ("com.microsoft", "QLinearAveragePool"): _as_floats,
    ("com.microsoft", "DynamicQuantizeMatMul"): _codes,
    ("com.microsoft", "BiasGelu"): _one_result,
    ("com.microsoft", "FastGelu"): _one_result,
    ("com.microsoft", "Attention"): _packed_attention,
    ("com.microsoft", "MultiHeadAttention"): _multi_head,
}
