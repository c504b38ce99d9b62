"""Shape inference where contents or ranks decide: handlers that take the place of the engine's.

The engine takes a Split by sizes that nobody knows for one into equal parts, counts all that a Compress lets through,
behind the end of the axis, too, gives values of unknown rank the rank of a flattened one, and does not broadcast where
onnxruntime does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import onnx_ir
from onnx_shape_inference import _broadcast, registry
from onnx_shape_inference._ops import (
    _arg,
    _concat,
    _data_dependent,
    _einsum,
    _expand,
    _matmul,
    _microsoft,
    _pad,
    _reduce,
    _reshape,
    _split,
    _utils,
)

from memoptc.ir import known_elements
from memoptc.ir.dim_text import parse_dim
from memoptc.ir.dims import LONGEST_SHAPE, is_nonnegative, product

Extent = int | onnx_ir.SymbolicDim


def install() -> None:
    """Put the handlers into the engine."""
    registry.register("", "Concat", since_version=4)(_infer_concat)
    registry.register("com.microsoft", "QLinearConcat", since_version=1)(_infer_concat_of_codes)
    registry.register("", "Expand", since_version=8)(_infer_expand)
    registry.register("", "Pad", since_version=11)(_infer_pad)
    registry.register("", "MatMul", since_version=1)(_multiplied(_matmul.infer_matmul))
    registry.register("", "MatMulInteger", since_version=10)(_multiplied(_matmul.infer_matmul_integer))
    registry.register("com.microsoft", "FusedMatMul", since_version=1)(_multiplied(_infer_fused_matmul))
    registry.register("", "Split", since_version=2)(_infer_split)
    registry.register("", "Compress", since_version=9)(_infer_compress)
    registry.register("", "NonZero", since_version=9)(_infer_non_zero)
    registry.register("", "Unique", since_version=11)(_infer_unique)
    registry.register("", "PRelu", since_version=1)(_infer_prelu)
    registry.register("", "Einsum", since_version=12)(_infer_einsum)
    registry.register("", "Reshape", since_version=5)(_infer_reshape)
    registry.register("", "MelWeightMatrix", since_version=17)(_infer_mel_weights)
    registry.register("ai.onnx.ml", "ArrayFeatureExtractor", since_version=1)(_infer_features)
    for name in _REDUCTIONS:
        registry.register("", f"Reduce{name}", since_version=1)(_of_nothing(_reduce.infer_reduce))
    for name in ("ArgMax", "ArgMin"):
        registry.register("", name, since_version=1)(_of_nothing(_arg.infer_argmax_argmin))


_REDUCTIONS = ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")


def _of_nothing(infer: Callable[[Any, onnx_ir.Node], None]) -> Callable[[Any, onnx_ir.Node], None]:
    """onnxruntime overlooks axes that are counted from the end where the operand is empty.

    Here that counts only where the operand is known to be empty: a symbol that may be 0 is taken to be reduced as ONNX
    says, since otherwise no sum over a last axis would have a rank.
    """

    def of_nothing(context: Any, node: onnx_ir.Node) -> None:
        infer(context, node)
        data = node.inputs[0]
        if data is not None and data.shape is not None and any(d == 0 for d in data.shape):
            node.outputs[0].shape = None

    return of_nothing


def _infer_concat(context: Any, node: onnx_ir.Node) -> None:
    """onnxruntime lets empty operands differ along other axes: those of the others count."""
    total = _length_of_vectors(node)
    if total is not None and total > LONGEST_SHAPE:
        first = node.inputs[0]
        context.set_shape_and_dtype(node.outputs[0], onnx_ir.Shape([total]), None if first is None else first.dtype)
        return
    _concat.infer_concat(context, node)
    _let_empty_differ(context, node, list(node.inputs))


def _length_of_vectors(node: onnx_ir.Node) -> int | None:
    """Give the length of joined vectors; `None` where operands are none, or of unknown lengths."""
    total = 0
    for value in node.inputs:
        if value is None or value.shape is None or len(value.shape) != 1 or not isinstance(value.shape[0], int):
            return None
        total += value.shape[0]
    return total


def _infer_concat_of_codes(context: Any, node: onnx_ir.Node) -> None:
    _microsoft.infer_qlinear_concat(context, node)
    _let_empty_differ(context, node, list(node.inputs[2::3]))


def _let_empty_differ(context: Any, node: onnx_ir.Node, parts: list[onnx_ir.Value | None]) -> None:
    shapes = [v.shape for v in parts if v is not None and v.shape is not None]
    result = node.outputs[0]
    if result.shape is None or len(shapes) != len(parts) or len(shapes) < 2:
        return
    axis = node.attributes["axis"].as_int() % len(result.shape)
    full = [s for s in shapes if all(isinstance(d, int) and d > 0 for d in s)]
    dims = list(result.shape)
    for i in range(len(dims)):
        if i != axis and any(not _same(s[i], shapes[0][i]) for s in shapes[1:]):
            dims[i] = full[0][i] if full else context.new_symbolic_dim()
    result.shape = onnx_ir.Shape(dims)


def _is_too_long(target: onnx_ir.Value | None) -> bool:
    """True if a target shape has more extents than any shape has."""
    if target is None or target.shape is None or len(target.shape) != 1:
        return False
    return isinstance(target.shape[0], int) and target.shape[0] > LONGEST_SHAPE


def _same(a: Extent, b: Extent) -> bool:
    return a == b and (isinstance(a, int) or a.value is not None)


def _infer_expand(context: Any, node: onnx_ir.Node) -> None:
    if _is_too_long(node.inputs[1]):
        context.set_shape_and_dtype(node.outputs[0], None, node.inputs[0].dtype if node.inputs[0] else None)
        return
    _expand.infer_expand(context, node)
    if node.inputs[0] is None or node.inputs[0].shape is None:
        node.outputs[0].shape = None


_AXES = 3
"""Where a Pad says which axes it is about."""


def _infer_pad(context: Any, node: onnx_ir.Node) -> None:
    _pad.infer_pad_v11(context, node)
    axes, result = node.inputs[_AXES] if len(node.inputs) > _AXES else None, node.outputs[0]
    if axes is not None and onnx_ir.convenience.get_const_tensor(axes) is None and result.shape is not None:
        result.shape = onnx_ir.Shape([context.new_symbolic_dim() for _ in result.shape])


def _multiplied(infer: Callable[[Any, onnx_ir.Node], None]) -> Callable[[Any, onnx_ir.Node], None]:
    """Of matrices without elements, onnxruntime does not check that batches broadcast."""

    def multiplied(context: Any, node: onnx_ir.Node) -> None:
        infer(context, node)
        a, b, result = node.inputs[0], node.inputs[1], node.outputs[0]
        if a is None or b is None or a.shape is None or b.shape is None or result.shape is None:
            return
        if min(len(a.shape), len(b.shape)) < 3 or all(isinstance(d, int) and d for d in b.shape[-2:]):
            return
        dims, count = list(result.shape), len(result.shape) - 2
        for i in range(1, min(len(a.shape), len(b.shape)) - 1):
            one, two = a.shape[-2 - i], b.shape[-2 - i]
            if not _same(one, two):
                dims[count - i] = context.new_symbolic_dim()
        result.shape = onnx_ir.Shape(dims)

    return multiplied


def _infer_fused_matmul(context: Any, node: onnx_ir.Node) -> None:
    """Of operands whose batches lie behind their rows, the engine takes the rows for a batch."""
    flags = (node.attributes.get(name) for name in ("transBatchA", "transBatchB"))
    if not any(flag is not None and flag.as_int() for flag in flags):
        _microsoft.infer_fused_matmul(context, node)
        return
    a, b = node.inputs[:2]
    if a is None or b is None:
        return
    ranks = None if a.shape is None or b.shape is None else (len(a.shape), len(b.shape))
    shape = None if ranks is None else onnx_ir.Shape([context.new_symbolic_dim() for _ in range(max(ranks))])
    context.set_shape_and_dtype(node.outputs[0], shape, a.dtype)


def _infer_split(context: Any, node: onnx_ir.Node) -> None:
    _split.infer_split(context, node)
    data, sizes = node.inputs[0], node.inputs[1] if len(node.inputs) > 1 else None
    if sizes is None or data is None or data.shape is None or onnx_ir.convenience.get_const_tensor(sizes) is not None:
        return
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    known = context.get_symbolic_value(sizes)
    if known is not None and len(known) != len(node.outputs):
        known = None
    for i, result in enumerate(node.outputs):
        dims = list(data.shape)
        dims[axis] = known[i] if known is not None else context.new_symbolic_dim()
        result.shape = onnx_ir.Shape(dims)
        known_elements.forget(context, result)


def _infer_compress(context: Any, node: onnx_ir.Node) -> None:
    data, condition = node.inputs[0], node.inputs[1]
    if data is None:
        return
    constant = onnx_ir.convenience.get_const_tensor(condition) if condition is not None else None
    flags = None if constant is None else constant.numpy().reshape(-1).astype(bool)
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else None
    shape = None
    if data.shape is not None:
        dims = list(data.shape)
        along = _utils.dim_product(dims) if axis is None else dims[axis]
        count = _count_selected(context, flags, along)
        if axis is None:
            dims = [count]
        else:
            dims[axis] = count
        shape = onnx_ir.Shape(dims)
    elif axis is None:
        shape = onnx_ir.Shape([context.new_symbolic_dim()])
    context.set_shape_and_dtype(node.outputs[0], shape, data.dtype)


def _count_selected(context: Any, flags: Any, extent: Extent) -> Extent:
    """Number of set flags among the first `extent`; those behind the end do not count."""
    if flags is not None and not flags.any():
        return 0
    if flags is None or not isinstance(extent, int):
        return context.new_symbolic_dim()  # type: ignore[no-any-return]
    return int(np.count_nonzero(flags[:extent]))


def _infer_non_zero(context: Any, node: onnx_ir.Node) -> None:
    _data_dependent.infer_non_zero(context, node)
    data, result = node.inputs[0], node.outputs[0]
    if data is not None and data.shape is not None and not len(data.shape) and result.shape is not None:
        # Of a scalar, onnxruntime gives one row.
        result.shape = onnx_ir.Shape([1, result.shape[1]])


def _infer_unique(context: Any, node: onnx_ir.Node) -> None:
    _data_dependent.infer_unique(context, node)
    data = node.inputs[0]
    if data is None or "axis" not in node.attributes or onnx_ir.convenience.get_const_tensor(data) is not None:
        return
    axis, result = node.attributes["axis"].as_int(), node.outputs[0]
    if data.shape is None:
        result.shape = None
        return
    dims = list(data.shape)
    dims[axis] = result.shape[0] if result.shape is not None else context.new_symbolic_dim()
    result.shape = onnx_ir.Shape(dims)


def _infer_prelu(context: Any, node: onnx_ir.Node) -> None:
    """The slope broadcasts, and onnxruntime broadcasts both ways."""
    data, slope = node.inputs[0], node.inputs[1]
    if data is not None and slope is not None:
        context.set_shape_and_dtype(node.outputs[0], _broadcast.broadcast_shapes(data.shape, slope.shape), data.dtype)


def _infer_einsum(context: Any, node: onnx_ir.Node) -> None:
    """Extents of 1 broadcast, also where two operands share a letter."""
    _einsum.infer_einsum(context, node)
    result, shapes = node.outputs[0], [v.shape if v is not None else None for v in node.inputs]
    if result.shape is None or any(s is None for s in shapes):
        return
    terms, arrow, right = node.attributes["equation"].as_string().replace(" ", "").partition("->")
    extents: dict[str, list[Extent]] = {}
    for term, shape in zip(terms.split(","), shapes, strict=True):
        assert shape is not None
        letters = term.replace("...", "." * (len(shape) - len(term.replace("...", ""))))
        for letter, extent in zip(letters, shape, strict=True):
            extents.setdefault(letter, []).append(extent)
    if not arrow:
        right = "".join(sorted(c for c in extents if c != "." and terms.count(c) == 1))
        right = ("..." if "..." in terms else "") + right
    dots = len(result.shape) - len(right.replace("...", ""))
    letters = right.replace("...", "." * dots)
    result.shape = onnx_ir.Shape(
        [d if c == "." else _broadcast_all(context, extents[c]) for c, d in zip(letters, result.shape, strict=True)]
    )


def _broadcast_all(context: Any, extents: list[Extent]) -> Extent:
    def both(a: Extent | None, b: Extent) -> Extent | None:
        return None if a is None else _broadcast._broadcast_dim(a, b)

    first: Extent | None = extents[0]
    found = reduce(both, extents[1:], first)
    return found if found is not None else context.new_symbolic_dim()


def _infer_reshape(context: Any, node: onnx_ir.Node) -> None:
    """A target extent of 0 stands for the operand's: a symbol is taken only where the operand has it, too.

    Where it is 0, so is then the operand, and what comes out is empty in any case.
    """
    if _is_too_long(node.inputs[1]):
        context.set_shape_and_dtype(node.outputs[0], None, node.inputs[0].dtype if node.inputs[0] else None)
        return
    _reshape.infer_reshape(context, node)
    data, target, result = node.inputs[0], node.inputs[1], node.outputs[0]
    if result.shape is not None:  # an extent that was divided out may be a number, spelled as a symbol
        spelled = [
            d if isinstance(d, int) or not (d.value or "").isdigit() else int(str(d.value)) for d in result.shape
        ]
        result.shape = onnx_ir.Shape(spelled)
    if data is None or data.shape is None or target is None or result.shape is None:
        return
    if "allowzero" in node.attributes and node.attributes["allowzero"].as_int():
        return
    known = context.get_symbolic_value(target)
    if known is None:
        return
    own = [d for d in data.shape if not isinstance(d, int)]
    if any(d.value is None or d.value.startswith("_d") for d in own):
        return
    names = set().union(*(d.free_symbols() for d in own))
    dims = list(result.shape)
    for i, extent in enumerate(known):
        if isinstance(extent, int) or (i < len(data.shape) and data.shape[i] == extent):
            continue
        if not set(extent.free_symbols()) <= names or not _is_extent(extent, data.shape):
            dims = [context.new_symbolic_dim() if not isinstance(d, int) else d for d in dims]
            break
    result.shape = onnx_ir.Shape(dims)


def _is_extent(extent: onnx_ir.SymbolicDim, shape: onnx_ir.Shape) -> bool:
    """True if a computed element of a target is an extent, never the -1 that asks for one: a product of the operand's
    own extents, or not negative whatever its symbols stand for."""
    try:
        wanted = parse_dim(str(extent.value))
        own = [parse_dim(str(d)) for d in shape]
    except ValueError:
        return False
    runs = (own[i:j] for i in range(len(own)) for j in range(i + 1, len(own) + 1))
    return is_nonnegative(wanted) or any(product(run) == wanted for run in runs)


def _infer_mel_weights(context: Any, node: onnx_ir.Node) -> None:
    """Half of the spectrum's bins, and one, by the bands."""
    bands, length = (_utils.get_known_scalar(context, v) for v in node.inputs[:2])
    given = node.attributes.get("output_datatype")
    rows = length // 2 + 1 if isinstance(length, int) else context.new_symbolic_dim()
    columns = bands if isinstance(bands, int) else context.new_symbolic_dim()
    dtype = onnx_ir.DataType(given.as_int()) if given is not None else onnx_ir.DataType.FLOAT
    context.set_shape_and_dtype(node.outputs[0], onnx_ir.Shape([rows, columns]), dtype)


def _infer_features(context: Any, node: onnx_ir.Node) -> None:
    """All indices count, whatever their rank, and a vector is one row of features; the engine says otherwise."""
    x, y = node.inputs
    if x is None or y is None:
        return
    shape = None
    if x.shape is not None and y.shape is not None and x.shape.rank():
        known = math.prod(e for e in y.shape.dims if isinstance(e, int))
        symbols = [e for e in y.shape.dims if not isinstance(e, int)]
        count = known if not symbols else symbols[0] if known == 1 and len(symbols) == 1 else None
        shape = onnx_ir.Shape([*(x.shape.dims[:-1] or [1]), count])
    context.set_shape_and_dtype(node.outputs[0], shape, x.dtype)
