"""Roles of inputs in a model: index, mask, length, shape, image, or just a number.

An input is followed forwards through operators that hand its elements on (casts, reshapes, slices, sums with
a constant, subgraph and function borders) to the operators that restrict it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from memoptc.ir.core import AttrRef, Graph, Op, Value
from memoptc.ir.decoder import appended_inputs, numbers_steps, recognised
from memoptc.ir.dims import Dim, KnownDim, Sym
from memoptc.ir.ops import MOVES, VIEWS, Family, definition, in_family
from memoptc.ir.ops.parameters import Below, Index, IndexRows, Length, Mask, Parameter, Setting
from memoptc.ir.types import DType

_CARRY_FIRST = MOVES | frozenset(
    "Cast CastLike Pad Relu Abs ReduceMax ReduceMin ReduceSum CumSum TopK OptionalGetElement".split()
)
_CARRY_ANY = frozenset(["Concat", "SequenceConstruct", "Max", "Min", "Sum"])
_POSITIONS = re.compile(r"(^|[^a-z])pos(ition)?(s|_?ids)?($|[^a-z])", re.IGNORECASE)
_LIMIT = 4096  # steps followed per input: enough for any real preprocessing, bounded for any graph


@dataclass
class Role:
    """Values that an input may take.

    Args:
        extents: The input indexes tables with these extents.
        compared: Constants it is compared with.
        lengths: It counts elements along axes of these extents.
        mask: It is used as 0 or 1.
        fixed: Values that suit an input that is a shape, an axis, a count, best first; each is spread over
            (or cut to) the input's shape.
        bytes_range: Arithmetic right at the input suggests 0 ... 255 rather than 0 ... 1.
        words: Strings the model knows.
        positions: It numbers the steps of a sequence.
        exact: Extents that it has to state, as the operator that takes it needs them.
        counted: It is a mask whose ones are added up to a length.
        past_axes: Axes along which the graph appends to it: a cache of earlier steps.
    """

    extents: list[Dim] = field(default_factory=list)
    compared: list[float] = field(default_factory=list)
    lengths: list[Dim] = field(default_factory=list)
    mask: bool = False
    fixed: list[tuple[int | float, ...]] = field(default_factory=list)
    bytes_range: bool = False
    words: list[str] = field(default_factory=list)
    positions: bool = False
    exact: list[KnownDim] = field(default_factory=list)
    counted: bool = False
    past_axes: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class _Place:
    """A value that holds `scale * input + shift`, elementwise.

    Args:
        value: The value.
        scale: Factor, 1 where none is known.
        shift: Summand.
        near: Whether nothing but casts lie between.
        summed: Whether elements were added up on the way.
    """

    value: Value
    scale: float = 1.0
    shift: float = 0.0
    near: bool = True
    summed: bool = False

    @property
    def is_plain(self) -> bool:
        """True if it holds the input's own numbers."""
        return (self.scale, self.shift) == (1.0, 0.0)


def find_roles(graph: Graph) -> dict[str, Role]:
    """Say what the model does with each of its inputs.

    Returns:
        Input name -> role.
    """
    found = {value.name: _follow(value, graph) for value in graph.inputs}
    caches = appended_inputs(graph)
    for one in caches:
        if one.form == "grown" and one.input_axis is not None:
            found[one.input.name].past_axes.add(one.input_axis)
    decoder = recognised(graph, inferred=True) if caches else None
    for value in graph.inputs:
        role = found[value.name]
        integers = value.is_integer
        if decoder is not None:
            role.positions = value.name == decoder.positions
            role.mask = role.mask or value.name == decoder.mask
        else:  # without a cache, only a name tells positions from other numbers that index a table
            turned = not role.lengths and numbers_steps(value)  # what steps are compared with is no number of a step
            role.positions = integers and (_POSITIONS.search(value.name) is not None or turned)
    return found


def _follow(start: Value, graph: Graph) -> Role:
    role = Role()
    todo, seen = [_Place(start)], {start}
    for _ in range(_LIMIT):
        if not todo:
            break
        place = todo.pop()
        for op, index in place.value.uses:
            _restrict(role, op, index, place)
            for after in _onward(op, index, place, graph):
                if after.value not in seen:
                    seen.add(after.value)
                    todo.append(after)
    return role


def _onward(op: Op, index: int, place: _Place, graph: Graph) -> Iterator[_Place]:
    """Give the values that hold the same elements after `op`."""
    carries = (op.op_type in _CARRY_FIRST and index == 0) or op.op_type in _CARRY_ANY
    if op.domain == "" and (carries or (op.op_type == "Where" and index > 0)):
        near = place.near and op.op_type in ("Cast", "Identity", "Transpose")
        summed = place.summed or op.op_type in ("ReduceSum", "CumSum")
        for result in op.results[:1] if op.op_type == "TopK" else op.results:
            yield _Place(result, place.scale, place.shift, near, summed)
    elif op.domain == "" and op.op_type in ("Add", "Sub", "Mul", "Div") and len(op.operands) == 2:
        number = _scalar(op.operands[1 - index])
        scale, shift = place.scale, place.shift
        if number is None:
            return
        if op.op_type == "Add":
            yield _Place(op.result, scale, shift + number, False, place.summed)
        elif op.op_type == "Sub":
            sign = 1 if index == 0 else -1
            yield _Place(op.result, sign * scale, sign * (shift - number), False, place.summed)
        elif op.op_type == "Mul" and number:
            yield _Place(op.result, scale * number, shift * number, False, place.summed)
        elif op.op_type == "Div" and number and index == 0:
            yield _Place(op.result, scale / number, shift / number, False, place.summed)
    elif op.domain == "" and op.op_type in ("Loop", "Scan"):
        body = op.regions["body"]
        if index < len(body.inputs) and (op.op_type == "Scan" or index >= 2):
            yield _Place(body.inputs[index], place.scale, place.shift, False, place.summed)
    elif op.is_return and op.graph is not None and op.graph.parent is not None:
        owner = op.graph.parent
        at = index - 1 if owner.op_type == "Loop" else index
        if 0 <= at < len(owner.results):
            yield _Place(owner.results[at], place.scale, place.shift, False, place.summed)
    else:
        function = graph.info.functions.get((op.domain, op.op_type, op.overload)) if graph.model else None
        if function is not None and index < len(function.body.inputs):
            yield _Place(function.body.inputs[index], place.scale, place.shift, False, place.summed)


def _restrict(role: Role, op: Op, index: int, place: _Place) -> None:
    """Note what `op` says about its operand `index`."""
    if any(isinstance(attr, AttrRef) for attr in op.attrs.values()):
        return  # in the body of a function: every call says it anew
    parameter = definition(op).parameters.get(index)
    if parameter is not None:
        _take(role, op, parameter, place)
    elif in_family(op, Family.COMPARISON) and len(op.operands) == 2:
        _compared(role, op, index, place)
    elif op.op_type == "Cast" and DType(op.attrs.get("to", 0)) == DType.BOOL:
        role.mask = True
    elif op.op_type == "Sub" and index == 1 and place.is_plain and _scalar(op.operands[0]) == 1.0:
        role.mask = True
    elif op.op_type in ("Sub", "Mul", "Div", "Add", "BatchNormalization") and place.near:
        _number_range(role, op, index)
    elif op.op_type == "GroupQueryAttention":
        _attention(role, op, index, place)
    for key in _VOCABULARIES & op.attrs.keys():
        role.words.extend(w if isinstance(w, str) else w.decode() for w in op.attrs[key])


_VOCABULARIES = {"keys_strings", "pool_strings", "cats_strings"}
"""Attributes that list the strings an operator knows."""


def _take(role: Role, op: Op, parameter: Parameter, place: _Place) -> None:
    """Note what an operand that says what its operator does may hold."""
    match parameter:
        case Index(table, axis):
            value = op.input(table)
            if value is not None:
                _bound(role, _extent(value, op.attrs.get(axis, 0)), place)
        case IndexRows():
            _bound_tuple(role, op, place)
        case Below(bound):
            depth = _scalar(op.operands[bound])
            _bound(role, None if depth is None else int(depth), place)
        case Length(axis_of):
            role.lengths.append(_extent(op.operands[0], axis_of(op)))
        case Mask():
            role.mask = True
        case Setting():
            role.fixed.extend(_settings(op, parameter))


def _settings(op: Op, parameter: Setting) -> Iterator[tuple[int | float, ...]]:
    """Values that suit a setting, surest first."""
    like = op.result if parameter.as_result and op.results else op.operand if parameter.as_operand else None
    if like is not None and like.static_shape is not None:
        yield like.static_shape
    yield parameter.values


def _attention(role: Role, op: Op, index: int, place: _Place) -> None:
    if index in (5, 6):
        past, steps = op.input(3), _extent(op.operands[0], 1)
        earlier = _extent(past, 2) if past is not None else 0
        if place.summed:
            role.counted = role.mask = True
        elif steps is not None and earlier is not None and abs(place.scale) == 1.0:
            role.exact.append((steps + earlier - (index == 5) - int(place.shift)) * int(place.scale))


def _bound(role: Role, extent: Dim, place: _Place) -> None:
    """Bound the input so that `scale * input + shift` stays inside `[0, extent)`."""
    if extent is None:
        role.extents.append(1)
    elif place.is_plain or not isinstance(extent, int):
        role.extents.append(extent)
    else:
        last = (extent - 1 - place.shift) / place.scale
        role.extents.append(max(1, int(last) + 1))


def _bound_tuple(role: Role, op: Op, place: _Place) -> None:
    data, indices = op.operands[0].shape, op.operands[1].shape
    first = op.attrs.get("batch_dims", 0)
    if data and indices:
        width = indices[-1]
        count = width if isinstance(width, int) else len(data) - first
        for extent in data[first : first + count]:
            _bound(role, extent, place)
    else:
        role.extents.append(1)


def _compared(role: Role, op: Op, index: int, place: _Place) -> None:
    other = op.operands[1 - index]
    constant = _constant(other)
    if constant is None:
        if op.op_type != "Equal":
            role.lengths.append(_extent(other, -1))
    elif constant.dtype.kind in "biuf":
        for number in np.unique(constant)[:8].tolist():
            back = (float(number) - place.shift) / place.scale
            role.compared.append(back)


def _number_range(role: Role, op: Op, index: int) -> None:
    """Guess an image's scale from the first arithmetic on it, such as `(x - 127) / 128` or `x * 0.0039`."""
    if op.op_type == "BatchNormalization":
        mean = _constant(op.operands[3]) if len(op.operands) > 3 else None
        large = mean is not None and mean.size > 0 and float(np.abs(mean).max()) > 16
    else:
        other = _constant(op.operands[1 - index]) if len(op.operands) == 2 else None
        size = 0.0 if other is None or not other.size or other.dtype.kind not in "iuf" else np.abs(other).max()
        large = 0 < float(size) < 1 / 64 if op.op_type == "Mul" else float(size) > 16
    role.bytes_range = role.bytes_range or large


def _extent(value: Value, axis: int) -> Dim:
    shape = value.shape or ()
    if -len(shape) <= axis < len(shape):
        extent = shape[axis]
        return extent if isinstance(extent, int | Sym) else None
    return None


def _constant(value: Value) -> npt.NDArray[np.generic] | None:
    """Give a constant, looking through casts and reshapes of one; `None` for anything large or computed."""
    for _ in range(4):
        tensor = value.tensor
        if tensor is None and value.op is not None and value.op.is_a("Constant"):
            held = next(iter(value.op.attrs.values()), None)
            if isinstance(held, int | float | tuple):
                return np.asarray(held)
            tensor = held if value.op.attrs.get("value") is held else None
        if tensor is not None:
            if int(np.prod(tuple(tensor.shape.numpy()), dtype=np.int64)) > 4096:
                return None
            array: npt.NDArray[np.generic] = np.asarray(tensor.numpy())
            return array
        if value.op is None or value.op.op_type not in VIEWS | {"Cast"}:
            return None
        value = value.op.operands[0]
    return None


def _scalar(value: Value) -> float | None:
    constant = _constant(value)
    if constant is None or constant.size != 1 or constant.dtype.kind not in "biuf":
        return None
    return float(constant.reshape(-1)[0])
