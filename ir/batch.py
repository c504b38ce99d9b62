"""Batch separability: whether every sample's outputs depend on that sample alone.

A batch may then be computed in several runs. The proof is one walk in program order. Each value is *shared* (it depends
on no sample), *sizes* (integers computed from extents, the number of samples among them), or it has one slice per
sample along one axis, the samples outermost where that axis counts other things, too. An op keeps that up where its
iteration space has the axis: no halo, no accumulation. Anything else ends the proof with a reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TypeAlias

from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.dims import Dim, KnownDim, Sym, product
from memoptc.ir.iteration import Axis, Form, iteration_space
from memoptc.ir.ops import EXTENTS, VIEWS, definition, is_pure
from memoptc.ir.tensors import ints
from memoptc.ir.types import DType


class _Kind(Enum):
    SHARED = "depends on no sample"
    SIZES = "integers computed from the number of samples"


@dataclass(frozen=True)
class _Numbers:
    """The number of the sample itself, along this axis of samples: good for looking something up in a batch.

    Args:
        axis: The axis of samples.
        first: Whether the numbers are the first of the indices that the last axis counts.
        plain: Whether they are still the numbers; else only the shape may be used.
    """

    axis: int
    first: bool = False
    plain: bool = True


_State: TypeAlias = _Kind | _Numbers | int
"""An `int` is the axis of samples."""


@dataclass(frozen=True)
class Batch:
    """The axis of samples of a model whose samples do not depend on each other.

    Args:
        symbol: Its extent.
        inputs: Input -> axis of samples; other inputs are the same for all.
        outputs: The same of outputs.
        reorders: An op whose kernel may add up in another order, or round otherwise, for another number of samples;
            `""` where every bit stays.
    """

    symbol: str
    inputs: dict[str, int]
    outputs: dict[str, int]
    reorders: str = ""


class NotSeparableError(Exception):
    """Samples are not known to be independent of each other; the message says why."""


def separable_batch(graph: Graph) -> Batch:
    """Prove that the samples of a batch do not depend on each other.

    Args:
        graph: A top graph, shapes inferred.

    Raises:
        NotSeparableError: it could not be proven; the text says at which op.
    """
    first: NotSeparableError | None = None
    for symbol in _candidates(graph):
        try:
            return _Proof(symbol).of(graph)
        except NotSeparableError as error:
            first = first or error
    raise first or NotSeparableError("no input has a symbolic first axis")


def _candidates(graph: Graph) -> list[str]:
    """Symbols that are the first axis of an input, those of most inputs first."""
    count: dict[str, int] = {}
    for value in graph.inputs:
        shape = value.shape
        if shape and isinstance(shape[0], Sym) and shape[0].name is not None:
            count[shape[0].name] = count.get(shape[0].name, 0) + 1
    return sorted(count, key=lambda name: (-count[name], name))


@dataclass
class _Proof:
    symbol: str
    states: dict[Value, _State] = field(default_factory=dict)
    contents: dict[Value, tuple[Dim, ...]] = field(default_factory=dict)
    reorders: str = ""

    def of(self, graph: Graph) -> Batch:
        """Follow the symbol from inputs to outputs; raise where some output depends on other samples."""
        inputs = {}
        for value in graph.inputs:
            axes = [i for i, d in enumerate(value.shape or ()) if self._counts(d)]
            if value.shape is None:
                raise NotSeparableError(f"input {value.name!r} has no known rank")
            if len(axes) > 1 or (axes and value.shape[axes[0]] != Sym(self.symbol)):
                raise NotSeparableError(f"input {value.name!r} has {self.symbol!r} in more than one extent")
            self.states[value] = axes[0] if axes else _Kind.SHARED
            if axes:
                inputs[value.name] = axes[0]
        for op in graph.ops:
            if op is graph.terminator:
                continue
            state = self._state(op)
            for index, result in enumerate(op.results):
                self.states[result] = state[index] if isinstance(state, tuple) else state
        outputs = {}
        for value, info in zip(graph.outputs, graph.outputs_info, strict=True):
            state = self.states[value]
            if not isinstance(state, int) or value.shape is None or value.shape[state] != Sym(self.symbol):
                raise NotSeparableError(f"output {value.name!r} has no axis that is {self.symbol!r}")
            outputs[info.name] = state
        return Batch(self.symbol, inputs, outputs, self.reorders)

    def _counts(self, dim: Dim) -> bool:
        return isinstance(dim, Sym) and self.symbol in dim.free

    def _state(self, op: Op) -> _State | tuple[_State, ...]:
        operands = [(i, v, self.states.get(v, _Kind.SHARED)) for i, v in enumerate(op.operands) if not v.is_absent]
        inner = [self.states.get(v, _Kind.SHARED) for r in op.regions.values() for v in r.captures()]
        if all(s is _Kind.SHARED for _, _, s in operands) and all(s is _Kind.SHARED for s in inner):
            if not is_pure(op):
                raise self._stopped(op, "gives something else in each run")
            return _Kind.SHARED
        if op.regions:
            raise self._stopped(op, "has subgraphs that depend on the samples or their number")
        if not is_pure(op):
            raise self._stopped(op, "gives something else in each run")
        if op.key in EXTENTS:
            return self._content(op)
        if any(isinstance(s, _Numbers) for _, _, s in operands):
            return self._of_numbers(op)
        if op.op_type in _RESHAPES and not op.domain and isinstance(operands[0][2], int):
            return self._reshaped(op, operands[0][2])
        if not any(isinstance(s, int) for _, _, s in operands):
            return self._of_sizes(op)
        return self._along(op, {i: s for i, _, s in operands})

    def _along(self, op: Op, states: dict[int, _State]) -> tuple[_State, ...]:
        """An op with operands that have samples: its space must have their axis."""
        for axis in iteration_space(op):
            if axis.join is None and axis.grain == 1 and None not in axis.results and self._fits(op, axis, states):
                floats = {v.dtype for v in op.results} & _FLOATS
                if definition(op).rounds_by_position or axis.reorders or floats - {DType.FLOAT}:
                    self.reorders = self.reorders or _named(op)
                return tuple(place for place in axis.results if place is not None)
        raise self._stopped(op, "is not known to compute each sample by itself")

    def _fits(self, op: Op, axis: Axis, states: dict[int, _State]) -> bool:
        for index, along in enumerate(axis.operands):
            state = states.get(index, _Kind.SHARED)
            if along is not None:
                if state != along.axis or not along.is_identity:
                    return False
            elif isinstance(state, int) or (state is _Kind.SIZES and axis.form is not Form.SHAPE):
                return False
        return True

    def _of_numbers(self, op: Op) -> _State:
        """An op that moves the samples' numbers about, or looks up by them."""
        states = [self.states.get(v, _Kind.SHARED) for v in op.operands]
        first, rank = states[0], len(op.results[0].shape or ())
        plain = not op.domain and isinstance(first, _Numbers) and first.plain
        rows = (op.operands[0].shape or ())[:1] == (Sym(self.symbol),)
        if op.is_a("GatherND") and states[0] == 0 and rows and not op.attrs.get("batch_dims", 0):
            where = states[1]
            if isinstance(where, _Numbers) and where.plain and where.first:
                return where.axis
        if plain and isinstance(first, _Numbers):
            if op.op_type in _RESHAPES and not first.first:
                return replace(first, axis=self._reshaped(op, first.axis))
            if op.op_type == "Expand" and rank == len(op.operands[0].shape or ()):
                return first
            others = all(s is _Kind.SHARED or s == first.axis for s in states[1:])
            last = op.is_a("Concat") and int(op.attrs.get("axis", 0)) % rank == rank - 1
            if last and others and (op.operands[0].shape or ())[-1:] == (1,) and not first.first:
                return replace(first, first=True)
        shape = op.results[0].shape or ()
        axes = [i for i, d in enumerate(shape) if self._counts(d)]
        if len(op.results) != 1 or None in shape or len(axes) != 1:
            raise self._stopped(op, "makes values out of the numbers of samples")
        return _Numbers(axes[0], plain=False)

    def _reshaped(self, op: Op, axis: int) -> int:
        """A reshape: samples stay outermost where the axes before them keep their product."""
        data, result = op.operands[0], op.results[0]
        before, after = data.shape, result.shape
        if before is None or after is None or None in before or None in after:
            raise self._stopped(op, "has extents that are not known")
        for later in op.operands[1:]:
            if isinstance(self.states.get(later), int):
                raise self._stopped(op, "takes its shape from values of samples")
        outer = _product(before[:axis])
        for place, extent in enumerate(after):
            if self._counts(extent):
                if _product(after[:place]) == outer and _divisible(extent, self.symbol):
                    return place
                break
        raise self._stopped(op, "mixes samples with another axis")

    def _of_sizes(self, op: Op) -> _State | tuple[_State, ...]:
        """An op that sees the number of samples, but no sample."""
        (result,) = op.results[:1]
        axes = [i for i, d in enumerate(result.shape or ()) if self._counts(d)]
        if result.shape is None or None in result.shape:
            raise self._stopped(op, "has extents that are not known")
        if not axes:
            return self._content(op)
        extent = result.shape[axes[0]]
        if op.is_a("Range") and extent == Sym(self.symbol) and self._from_zero(op):
            return _Numbers(0)
        repeats = op.op_type in ("ConstantOfShape", "Expand") and not op.domain
        if (repeats and self.states.get(op.operands[0]) is not _Kind.SIZES) or op.op_type == "ConstantOfShape":
            if len(axes) == 1 and isinstance(extent, Sym) and _divisible(extent, self.symbol):
                return axes[0]
        raise self._stopped(op, "makes values out of the number of samples")

    def _from_zero(self, op: Op) -> bool:
        start, _, step = (ints(v.tensor) for v in op.operands)
        return start == (0,) and step == (1,)

    def _content(self, op: Op) -> _State:
        """Integers computed from extents: shared where they are known and the number of samples is not among them."""
        found = _content_of(op, self.contents)
        if found is not None:
            self.contents[op.results[0]] = found
            if None not in found and not any(self._counts(d) for d in found):
                return _Kind.SHARED
        return _Kind.SIZES

    def _stopped(self, op: Op, why: str) -> NotSeparableError:
        return NotSeparableError(f"{_named(op)} {why}")


_RESHAPES = VIEWS - {"Identity"}
_FLOATS = frozenset({DType.FLOAT, DType.DOUBLE, DType.FLOAT16, DType.BFLOAT16})


def _named(op: Op) -> str:
    name = op.name or (op.results[0].name if op.results else "")
    return f"{op.op_type} {name!r}"


def _product(dims: Sequence[Dim]) -> KnownDim:
    return product(d for d in dims if d is not None)


def _divisible(dim: Dim, symbol: str) -> bool:
    """True if an extent is the symbol times something."""
    return isinstance(dim, Sym) and all(symbol in monomial for monomial, _ in dim.terms)


def _content_of(op: Op, known: dict[Value, tuple[Dim, ...]]) -> tuple[Dim, ...] | None:
    """The integers that a value of rank 0 or 1 consists of, as far as they follow from extents."""

    def of(value: Value) -> tuple[Dim, ...] | None:
        if value in known:
            return known[value]
        return None if value.tensor is None or value.tensor.size > _LONGEST else ints(value.tensor)

    data = of(op.operands[0]) if op.op_type not in EXTENTS else op.operands[0].shape
    if data is None or op.domain:
        return None
    if op.op_type == "Shape":
        start, end = op.attrs.get("start", 0), op.attrs.get("end")
        return data[start:end]
    if op.op_type == "Size":
        return None if None in data else (_product(data),)
    if op.op_type in VIEWS | {"Cast"}:
        return data
    if op.op_type == "Concat":
        parts = [of(v) for v in op.operands]
        return None if any(p is None for p in parts) else tuple(d for p in parts for d in p or ())
    if op.op_type == "Gather":
        where = of(op.operands[1])
        if where is None or not all(isinstance(i, int) and -len(data) <= i < len(data) for i in where):
            return None
        return tuple(data[i] for i in where if isinstance(i, int))
    if op.op_type == "Slice" and len(op.operands) >= 3:
        starts, ends = of(op.operands[1]), of(op.operands[2])
        steps = of(op.operands[4]) if len(op.operands) > 4 and not op.operands[4].is_absent else (1,)
        if starts and ends and steps == (1,) and isinstance(starts[0], int) and isinstance(ends[0], int):
            return data[starts[0] : ends[0]]
    return None


_LONGEST = 64
"""Elements of a constant that is read as extents."""
