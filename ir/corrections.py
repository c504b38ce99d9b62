"""Shape inference that promises nothing false: handlers that take the place of the engine's.

onnx-shape-inference 0.4 assumes where it does not know: of two symbols that broadcast it takes the first, though
either may be 1; a symbol cut to [0:6] it takes to be at least 6; Squeeze without axes it takes to leave symbols
alone, which may be 1, too. A shape that does not hold for every extent would make passes wrong. Windows and contents
have modules of their own.
"""

from __future__ import annotations

import importlib
import itertools
import math
import re
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import onnx_ir
import onnx_ir._symbolic_shapes as ir_symbols
import onnx_shape_inference._symbolic_shapes as engine_symbols
from onnx_shape_inference import _broadcast, _constraints, registry
from onnx_shape_inference._ops import _elementwise, _slice, _squeeze, _utils, _where

from memoptc.ir import content_shapes, contrib, experimental, known_elements, linear_extents, window_shapes
from memoptc.ir.dim_text import parse_dim
from memoptc.ir.dims import LONGEST_SHAPE, is_nonnegative

_Extent = int | onnx_ir.SymbolicDim


def install() -> None:
    """Put our handlers into the engine."""
    _broadcast._broadcast_dim = broadcast_extents
    for module in (ir_symbols, engine_symbols, _constraints):
        setattr(module, "sympy", _Sympy("sympy"))  # noqa: B010
    setattr(_constraints, "collect_symbol_names", _symbol_names)  # noqa: B010
    registry.register("", "ConstantOfShape", since_version=9)(_constant_of_shape)
    registry.register("", "Slice", since_version=1)(_infer_slice_by_attributes)
    registry.register("", "Slice", since_version=10)(_infer_slice)
    registry.register("", "Squeeze", since_version=1)(_infer_squeeze)
    registry.register("", "Equal", since_version=7)(_infer_equal)
    registry.register("", "Where", since_version=9)(_infer_where)
    registry.register("", "Mod", since_version=10)(_infer_mod)
    linear_extents.install()
    known_elements.install()
    window_shapes.install()
    content_shapes.install()
    contrib.install()
    experimental.install()


class _Sympy(ModuleType):
    """sympy, but for symbols that may be 0: the engine declares them positive, and then takes min(N, 1) to be 1."""

    def __getattr__(self, name: str) -> Any:
        return getattr(_SYMPY, name)

    @staticmethod
    def Symbol(name: str, **assumptions: bool) -> Any:
        """Make a symbol that stands for an extent."""
        if assumptions.pop("positive", False):
            assumptions["nonnegative"] = True
        return _SYMPY.Symbol(name, **assumptions)


_SYMPY: Any = importlib.import_module("sympy")
"""A dependency of the engine; executed when it is first used (`memoptc.ir.deferred`)."""


def _symbol_names(graph: onnx_ir.Graph) -> set[str]:
    """Give the names that stand in declared shapes: symbols, whose names the engine then leaves alone, and functions.

    Takes the place of the engine's own, which parses every extent with sympy to find them.
    """
    values: list[onnx_ir.Value | None] = [*graph.inputs, *graph.outputs, *graph.initializers.values()]
    inner: set[str] = set()
    for node in graph:
        values += [*node.inputs, *node.outputs]
        for attribute in node.attributes.values():
            if attribute.type == onnx_ir.AttributeType.GRAPH:
                inner |= _symbol_names(attribute.as_graph())
            elif attribute.type == onnx_ir.AttributeType.GRAPHS:
                inner = inner.union(*map(_symbol_names, attribute.as_graphs()))
    shapes = [value.shape for value in values if value is not None and value.shape is not None]
    texts = {e.value for shape in shapes for e in shape if isinstance(e, onnx_ir.SymbolicDim) and e.value is not None}
    return inner.union(*(_NAME.findall(text) for text in texts))


_NAME = re.compile(r"[^\W\d][\w.]*")


def broadcast_extents(a: _Extent, b: _Extent) -> _Extent | None:
    """Give the extent that two broadcast to: unknown where either may be the one; `None` where they clash."""
    if isinstance(a, int) and isinstance(b, int):
        return a if a == b or b == 1 else b if a == 1 else None
    if isinstance(a, int) or isinstance(b, int):
        known, other = (a, b) if isinstance(a, int) else (b, a)
        # A number other than 1 stays: the other extent is that, or 1.
        return other if known == 1 else known
    if a.value == b.value and a.value is not None:
        return a
    for whole, part in ((a, b), (b, a)):
        if whole.value is not None and _is_cut(part.value or "", whole.value):
            return whole
    if a.value is None or b.value is None:  # two that nobody knows are not the same two elsewhere
        return onnx_ir.SymbolicDim(f"_d{next(_NUMBERS)}")
    return onnx_ir.SymbolicDim(_either(*sorted((a.value, b.value))))


def _is_cut(part: str, whole: str) -> bool:
    """True if `part` is `min(n, whole)` with n at least 2: up to n they agree, beyond it they do not broadcast."""
    found = _MIN.fullmatch(part.replace(" ", ""))
    if found is None:
        return False
    plain = whole.replace(" ", "")
    return any(n.isdigit() and int(n) >= 2 and e == plain for n, e in (found.groups(), reversed(found.groups())))


_MIN = re.compile(r"[Mm]in\(([^,]+),([^,]+)\)")


@cache
def _either(a: str, b: str) -> str:
    """Name what two symbols broadcast to, as the engine names its own; the same two give the same."""
    return f"_d{next(_NUMBERS)}"


_NUMBERS = itertools.count(1_000_000)


def _constant_of_shape(context: Any, node: onnx_ir.Node) -> None:
    value = node.attributes.get("value")
    dtype = value.as_tensor().dtype if value is not None else onnx_ir.DataType.FLOAT
    target = node.inputs[0]
    shape: onnx_ir.Shape | None = None
    constant = onnx_ir.convenience.get_const_tensor(target) if target is not None else None
    if constant is not None:
        shape = onnx_ir.Shape([int(extent) for extent in constant.numpy().reshape(-1)])
    elif target is not None:
        known = context.get_symbolic_value(target)
        if known is not None:
            shape = onnx_ir.Shape(list(known))
        elif target.shape is not None and len(target.shape) == 1 and isinstance(target.shape[0], int):
            rank = target.shape[0]
            shape = onnx_ir.Shape([context.new_symbolic_dim() for _ in range(rank)]) if rank <= LONGEST_SHAPE else None
    context.set_shape_and_dtype(node.outputs[0], shape, dtype)
    if shape is not None and len(shape) == 1 and isinstance(shape[0], int) and shape[0] <= _SMALL:
        element = value.as_tensor().numpy().item() if value is not None else 0.0
        if isinstance(element, int):
            context.set_symbolic_value(node.outputs[0], [element] * shape[0])


def _infer_equal(context: Any, node: onnx_ir.Node) -> None:
    """Compare elements that are known: exporters ask of every extent of a target whether it is -1."""
    _elementwise._infer_comparison(context, node)
    known = [_elements(context, v) for v in node.inputs]
    if known[0] is not None and known[1] is not None and len(known[0]) == len(known[1]):
        same = [_is_same(context, a, b) for a, b in zip(*known, strict=True)]
        context.set_symbolic_value(node.outputs[0], [context.new_symbolic_dim() if e is None else int(e) for e in same])


def _is_same(context: Any, a: _Extent, b: _Extent) -> bool | None:
    """True if two elements are equal; `None` where that depends. Extents of shapes are not negative."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    if isinstance(a, int):
        a, b = b, a
    if isinstance(a, int) or not isinstance(b, int) or b >= 0 or a.value is None:
        return None
    if any(context.is_generated_symbol(name) for name in a.free_symbols()):
        return None  # may stand for an element that is no extent
    try:
        return False if is_nonnegative(parse_dim(a.value)) else None
    except ValueError:
        return None


def _infer_mod(context: Any, node: onnx_ir.Node) -> None:
    """Elements of a remainder of known integers: exporters count an axis from the end by it (`-1 mod 3`)."""
    _elementwise._infer_arithmetic(context, node)
    known = [_integers(context, v) for v in node.inputs]
    if known[0] is None or known[1] is None or not all(known[1]):
        return
    if len(known[0]) == len(known[1]):
        fmod = node.attributes.get("fmod")
        of = (lambda a, b: int(math.fmod(a, b))) if fmod is not None and fmod.as_int() else (lambda a, b: a % b)
        context.set_symbolic_value(node.outputs[0], [of(a, b) for a, b in zip(*known, strict=True)])


def _infer_where(context: Any, node: onnx_ir.Node) -> None:
    """Choose among known extents where the condition is known, too: the engine knows only what both sides agree on."""
    _where.infer_where(context, node)
    condition, a, b = (_elements(context, v) for v in node.inputs)
    if condition is None or a is None or b is None or not len(condition) == len(a) == len(b):
        return
    agreed = context.get_symbolic_value(node.outputs[0]) or [context.new_symbolic_dim() for _ in a]
    choices = zip(condition, a, b, agreed, strict=True)
    chosen = [(x if c else y) if isinstance(c, int) else both for c, x, y, both in choices]
    context.set_symbolic_value(node.outputs[0], chosen)


def _elements(context: Any, value: onnx_ir.Value | None) -> list[_Extent] | None:
    """Elements of a small integer tensor, as far as they are known."""
    known: list[_Extent] | None = context.get_symbolic_value(value) if value is not None else None
    if known is None and value is not None:
        constant = onnx_ir.convenience.get_const_tensor(value)
        whole = constant is not None and (constant.dtype.is_integer() or constant.dtype == onnx_ir.DataType.BOOL)
        if constant is not None and whole and constant.size <= _SMALL and len(constant.shape) <= 1:
            known = [int(e) for e in constant.numpy().reshape(-1)]
    return known


def _integers(context: Any, value: onnx_ir.Value | None) -> list[int] | None:
    """Elements of a small integer tensor where all are known."""
    known = _elements(context, value)
    return None if known is None or not all(isinstance(e, int) for e in known) else known  # type: ignore[return-value]


_SMALL = 16
"""Elements up to which a constant may describe a shape."""


def _infer_slice(context: Any, node: onnx_ir.Node) -> None:
    _slice.infer_slice(context, node)
    data, (result, *_) = node.inputs[0], node.outputs
    known_elements.forget(context, result)  # found without a look at axes, nor at steps that are computed
    if data is None or data.shape is None or result.shape is None:
        return
    known = [_utils.get_known_dim_values(context, v) for v in node.inputs[1:]]
    given = [v is not None for v in node.inputs[1:]]
    computed = [k is None or not all(isinstance(e, int) for e in k) for k in known]
    if any(c and g for c, g in zip(computed[2:], given[2:], strict=True)):
        unknown = onnx_ir.Shape([context.new_symbolic_dim() for _ in data.shape])
        result.shape = unknown
        return
    starts, ends, axes, steps = (known + [None] * 2)[:4]
    if starts is None or ends is None:
        result.shape = _unsliced_extents(data.shape, axes, result.shape)
        return
    dims = list(result.shape.dims)
    axes = axes if axes is not None else list(range(len(starts)))
    steps = steps if steps is not None else [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        numbers = isinstance(start, int) and isinstance(end, int) and isinstance(step, int) and isinstance(axis, int)
        extent = data.shape[axis] if isinstance(axis, int) else None
        if numbers and isinstance(extent, int):
            dims[axis] = len(_sliced_indices(extent, start, end, step))
        elif numbers and isinstance(extent, onnx_ir.SymbolicDim) and step > 0 and start >= 0 and end >= 0:
            dims[axis] = _cut(context, extent, start, end, step)
        elif numbers and step > 0 and start >= 0 and end <= -_FAR:
            dims[axis] = 0  # before the beginning, though the engine takes this end, too, for none
        elif numbers and step < 0 and -1 > start:
            dims[axis] = context.new_symbolic_dim()
    result.shape = onnx_ir.Shape(dims)
    _infer_cut_elements(context, node, starts, ends, steps)


def _unsliced_extents(data: onnx_ir.Shape, axes: Any, found: onnx_ir.Shape) -> onnx_ir.Shape:
    """Extents of a Slice whose ends are not known: axes that it does not name keep those of its operand."""
    if axes is None or len(found) != len(data):
        return found
    cut = {axis % len(data) for axis in axes}
    return onnx_ir.Shape([f if i in cut else d for i, (d, f) in enumerate(zip(data, found, strict=True))])


def _infer_slice_by_attributes(context: Any, node: onnx_ir.Node) -> None:
    """A Slice of opset 1 to 9, by the same with its attributes as operands."""
    names = [name for name in ("starts", "ends", "axes") if name in node.attributes]
    operands = [
        onnx_ir.Value(name=name, const_value=onnx_ir.tensor(np.array(node.attributes[name].as_ints(), np.int64)))
        for name in names
    ]
    newer = onnx_ir.Node("", "Slice", [node.inputs[0], *operands], version=10)
    _infer_slice(context, newer)
    result, found = node.outputs[0], newer.outputs[0]
    context.set_shape_and_dtype(result, found.shape, found.dtype)
    elements = context.get_symbolic_value(found)
    if elements is not None:
        context.set_symbolic_value(result, elements)
    newer.replace_input_with(0, None)  # or the operand would have a use that no graph has


def _sliced_indices(extent: int, start: int, end: int, step: int) -> range:
    """Indices of an axis that a Slice takes, clamped as onnxruntime does; backwards, none lies before the first."""
    low, high = (0, extent) if step > 0 else (-1, extent - 1)
    if step < 0 and end in _NO_END:
        end = low - extent  # counted from the end: onnxruntime goes on to the first element
    start, end = (n + extent if n < 0 else n for n in (start, end))
    start = min(max(start, 0), high) if extent else 0
    return range(start, min(max(end, low), high), step) if extent else range(0)


_NO_END = (2**31 - 1, 2**63 - 1)
"""Ends that stand for none, whichever way a slice goes."""

_FAR = 2**31 - 1
"""From here on an end means "to the end"."""


def _cut(context: Any, extent: onnx_ir.SymbolicDim, start: int, end: int, step: int) -> _Extent:
    """Length of [start:end:step] of an extent that is not known."""
    if end >= _FAR and start == 0 and step == 1:
        return extent
    if extent.value is None:
        return context.new_symbolic_dim()  # type: ignore[no-any-return]
    reached = extent if end >= _FAR else _utils.min_dim(extent, end)
    count = _utils.ceil_div_dim(reached - start, step) if reached is not None else None
    length: _Extent | None = _utils.max_dim(0, count) if count is not None and start else count
    return length if length is not None else context.new_symbolic_dim()


def _infer_cut_elements(context: Any, node: onnx_ir.Node, starts: Any, ends: Any, steps: Any) -> None:
    """Infer the elements of a vector that is sliced; the engine errs for negative steps."""
    data = node.inputs[0]
    elements = context.get_symbolic_value(data)
    if elements is None or len(starts) != 1 or data is None or data.shape is None or len(data.shape) != 1:
        return
    if all(isinstance(n, int) for n in (starts[0], ends[0], steps[0])):
        chosen = [elements[i] for i in _sliced_indices(len(elements), starts[0], ends[0], steps[0])]
        context.set_symbolic_value(node.outputs[0], chosen)


def _infer_squeeze(context: Any, node: onnx_ir.Node) -> None:
    data = node.inputs[0]
    _squeeze.infer_squeeze(context, node)
    if data is None or data.shape is None:
        return
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    content = None if axes is None else onnx_ir.convenience.get_const_tensor(axes)
    attribute = node.attributes.get("axes")
    named = bool(content.size) if content is not None else attribute is not None and bool(attribute.as_ints())
    computed = axes is not None and content is None
    if computed or (not named and any(not isinstance(d, int) for d in data.shape)):
        # How many axes are left depends on extents, or on numbers, that nobody knows.
        node.outputs[0].shape = None
    elif not named:  # onnxruntime takes an empty list for none, and squeezes all
        node.outputs[0].shape = onnx_ir.Shape([d for d in data.shape if d != 1])
