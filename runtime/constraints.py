"""Constraints of operators on the extents of graph inputs: equalities and bounds over its symbols.

Read off the operators: axes that are joined, multiplied or broadcast agree; an index lies inside its table. Where an
index is computed from extents (`Range`, `Shape`, sums of them), its bounds are affine in the symbols, too: a mask that
is read at `past + step` is at least that long.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.dims import Dim, KnownDim, Sym, free_symbols, is_nonnegative, maximum, product
from memoptc.ir.infer import Inference
from memoptc.ir.ops import BROADCAST, Family, facts, in_family, weight_layout
from memoptc.runtime.element_bounds import ElementBounds, plus

Kind = Literal["equal", "broadcast", "at most", "least"]


@dataclass(frozen=True)
class Requirement:
    """A constraint of one operator on two extents.

    Args:
        kind: `equal`; `broadcast`: equal, or one of them is 1; `at most`: the first is not larger; `least`: a result
            has the second as its extent, which is not smaller than the first, a number.
        left: The first extent.
        right: The second.
        op: The operator, as messages name it.
        trust: 0: it holds on every run; 1: wherever what is cut lies inside; 2: in a branch, or as the model states.
    """

    kind: Kind
    left: KnownDim
    right: KnownDim
    op: str
    trust: int = 0


def requirements(graph: Graph, shapes: Inference) -> list[Requirement]:
    """Give what the operators require, as the types of a graph say, and what else inference found in it."""
    return list(dict.fromkeys(_Reader(graph, shapes.elements).all()))


class _Reader:
    """Reads requirements off one graph whose types are inferred."""

    def __init__(self, graph: Graph, elements: Mapping[Value, tuple[Dim, ...]]) -> None:
        self.graph = graph
        self.bounds = ElementBounds(elements)
        self.least: set[tuple[int, KnownDim]] = set()

    def all(self) -> Iterator[Requirement]:
        for op in self.graph.walk():
            if op.is_const or op.op_type == "absent" or op.is_return:
                continue
            inside = op.graph is not self.graph
            for kind, left, right in self._of(op):
                if left is not None and right is not None and left != right:
                    if isinstance(left, int) and isinstance(right, int):
                        continue
                    computed = op.op_type == "Slice" and right not in (self._shape(op.operands[0]) or ())
                    yield Requirement(kind, left, right, op.name or op.key, 2 if inside else int(computed))
            yield from self._broadcasted(op)
            yield from self._least(op, 2 if inside else 0)
            self.bounds.add(op)
        for value, info in zip(self.graph.outputs, self.graph.outputs_info, strict=True):
            stated = info.shape
            for axis, (one, other) in enumerate(zip(self._shape(value) or (), stated or (), strict=False)):
                if isinstance(one, Sym) and isinstance(other, Sym) and one != other:
                    if self._is_mistaken(one, other, axis):
                        continue
                    yield Requirement("equal", one, other, f"output {info.name}", 2)

    def _is_mistaken(self, found: Sym, stated: Sym, axis: int) -> bool:
        """True if what is stated of an output's axis, which the inputs' axes alone decide, says nothing of them.

        Exporters make up names that no input has, one for several axes, and write those that they are given, also of
        axes that their user has mixed up: none but the first is as long as a batch.
        """
        shapes = [s for v in self.graph.inputs if (s := self._shape(v)) is not None]
        known = frozenset(name for shape in shapes for dim in shape for name in free_symbols(dim))
        if not free_symbols(found) <= known:
            return False
        batch = any(s[:1] == (stated,) for s in shapes) and not any(stated in s[1:] for s in shapes)
        return not free_symbols(stated) <= known or (batch and axis > 0)

    def _least(self, op: Op, trust: int) -> Iterator[Requirement]:
        """No extent is negative, and a window that does not fit once is refused, or gives nothing to compute with."""
        windowed = in_family(op, Family.CONVOLUTION, Family.POOL)
        for result in op.results:
            for axis, dim in enumerate(self._shape(result) or ()):
                least = int(windowed and axis >= 2)
                if isinstance(dim, Sym) and (least, dim) not in self.least and not is_nonnegative(dim - least):
                    self.least.add((least, dim))
                    yield Requirement("least", least, dim, op.name or op.key, trust)

    @staticmethod
    def _shape(value: Value | None) -> tuple[Dim, ...] | None:
        return None if value is None else value.shape

    def _shapes(self, op: Op) -> list[tuple[Dim, ...]]:
        found = [self._shape(v) for v in op.operands if not v.is_absent]
        return [s for s in found if s is not None]

    def _of(self, op: Op) -> Iterator[tuple[Kind, Dim, Dim]]:
        kind = op.op_type
        shapes = self._shapes(op)  # known ones: an index says nothing of which operand it is
        first, second = (self._shape(op.input(i)) for i in (0, 1))
        yield from self._equal(op)
        yield from self._channels(op)
        if op.domain == "com.microsoft":
            yield from self._contrib(op)
        elif op.domain:
            return
        elif kind in BROADCAST:
            yield from self._broadcast(*shapes)
        elif kind == "Concat" and len(shapes) == len(op.operands):
            axis = op.attrs.get("axis", 0)
            for other in shapes[1:]:
                for at, (a, b) in enumerate(zip(shapes[0], other, strict=False)):
                    if at != axis % max(1, len(other)):
                        yield "equal", a, b
        elif kind in ("MatMul", "Gemm") and first and second:
            inner = first[0 if op.attrs.get("transA") else -1]
            yield "equal", inner, second[-1 if op.attrs.get("transB") or len(second) == 1 else -2]
            yield from self._broadcast(first[:-2], second[:-2])
        elif kind == "Expand":
            yield from self._broadcast(*([] if first is None else [first]), self.bounds.elements(op.operands[1]) or ())
        elif kind == "Reshape" and first is not None:
            target = self.bounds.elements(op.operands[1])
            sizes = [d for d in (*first, *(target or ())) if isinstance(d, Sym) or (d is not None and d > 0)]
            if target and len(sizes) == len(first) + len(target):
                yield "equal", product(sizes[: len(first)]), product(sizes[len(first) :])
        elif kind in ("Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND", "TensorScatter"):
            yield from self._indexed(op)
        elif kind == "Slice" and len(op.operands) >= 3 and first is not None:
            yield from self._sliced(op, first)
        elif kind == "Attention" and len(op.operands) >= 3:
            yield from self._attention(op)
        elif kind == "Einsum" and len(shapes) == len(op.operands):
            yield from _einsum(op, shapes)

    def _equal(self, op: Op) -> Iterator[tuple[Kind, Dim, Dim]]:
        for pair in facts(op).equal_extents:
            a, b = (
                None if (shape := self._shape(op.input(operand))) is None or axis >= len(shape) else shape[axis]
                for operand, axis in pair
            )
            yield "equal", a, b

    def _channels(self, op: Op) -> Iterator[tuple[Kind, Dim, Dim]]:
        """Channels of data are as many as those of its weight, or as the numbers that each is scaled by."""
        layout = weight_layout(op)
        if layout is not None:
            data, weight = self._shape(op.input(layout.data)), self._shape(op.input(layout.weight))
            if data and weight and -len(data) <= layout.data_axis < len(data):
                channels = weight[layout.input_axis]
                # Of a weight in groups, its first axis has the channels of all groups.
                groups = layout.groups if layout.input_axis > layout.output_axis else 1
                yield "equal", data[layout.data_axis], None if channels is None else channels * groups
        known = facts(op)
        data = self._shape(op.input(0)) if known.affine else None
        for index in known.affine:
            numbers = self._shape(op.input(index))
            if data and numbers and len(numbers) == 1 and known.affine_axis < len(data):
                if known.affine_axis > 0:
                    yield "equal", data[known.affine_axis], numbers[0]
                else:  # one number may stand for all
                    yield from self._broadcast(data, numbers)

    @staticmethod
    def _broadcast(*shapes: tuple[Dim, ...]) -> Iterator[tuple[Kind, Dim, Dim]]:
        for at, one in enumerate(shapes):
            for other in shapes[at + 1 :]:
                for a, b in zip(reversed(one), reversed(other), strict=False):
                    if a != 1 and b != 1:
                        yield "broadcast", a, b

    def _broadcasted(self, op: Op) -> Iterator[Requirement]:
        """Of two extents of which one must be 1, the result has the larger, where inference cannot tell which."""
        shapes = self._shapes(op) if not op.domain and op.op_type in BROADCAST else []
        if len(shapes) != 2 or len(op.operands) != 2:
            return
        for dim, a, b in zip(*(reversed(s) for s in (self._shape(op.result) or (), *shapes)), strict=False):
            if isinstance(dim, Sym) and dim.name is not None and a is not None and b is not None and dim not in (a, b):
                yield Requirement("equal", dim, maximum(a, b), op.name or op.key, 2)

    def _indexed(self, op: Op) -> Iterator[tuple[Kind, Dim, Dim]]:
        data, indices = self._shape(op.operands[0]), self._shape(op.operands[1])
        updates = self._shape(op.input(2)) if op.op_type.startswith("Scatter") else None
        if data is None or indices is None:
            return
        found = self.bounds.of(op.operands[1])
        if op.op_type == "TensorScatter":
            axis = op.attrs.get("axis", -2)
            yield from (
                ("equal", a, b) for i, (a, b) in enumerate(zip(data, indices, strict=True)) if i != axis % len(data)
            )
            yield "at most", indices[axis], data[axis]
        elif op.op_type in ("GatherND", "ScatterND"):
            first = op.attrs.get("batch_dims", 0)
            yield from (("equal", a, b) for a, b in zip(data[:first], indices[:first], strict=True))
            extents = data[first:]
            each = found if len(found) > 1 else found * len(extents)
            for extent, bound in zip(extents, each, strict=False):
                yield "at most", plus(bound.high, 1), extent
            width = indices[-1] if indices else None
            if updates is not None and isinstance(width, int):
                yield from (("equal", a, b) for a, b in zip(updates, (*indices[:-1], *data[width:]), strict=False))
        else:
            axis = op.attrs.get("axis", 0)
            if found and -len(data) <= axis < len(data):
                high = found[0].high if len(found) == 1 else None
                yield "at most", plus(high, 1), data[axis]
            if updates is not None:
                yield from (("equal", a, b) for a, b in zip(updates, indices, strict=False))

    def _sliced(self, op: Op, data: tuple[Dim, ...]) -> Iterator[tuple[Kind, Dim, Dim]]:
        """Extent of a slice between computed ends: their distance, if they lie inside."""
        starts, ends = self.bounds.elements(op.operands[1]), self.bounds.elements(op.operands[2])
        axes = self.bounds.elements(op.operands[3]) if op.input(3) is not None else tuple(range(len(starts or ())))
        steps = self.bounds.elements(op.operands[4]) if op.input(4) is not None else (1,) * len(starts or ())
        result = self._shape(op.result)
        if not starts or not ends or not axes or result is None or None in axes:
            return
        cut = {axis % len(data) for axis in axes if isinstance(axis, int)}
        yield from (("equal", a, b) for at, (a, b) in enumerate(zip(result, data, strict=True)) if at not in cut)
        for start, end, axis, step in zip(starts, ends, axes, steps or (), strict=False):
            if step == 1 and isinstance(axis, int) and isinstance(end, Sym) and start is not None:
                if is_nonnegative(end) and is_nonnegative(start):
                    yield "equal", result[axis], end - start
                    yield "at most", end, data[axis]

    def _attention(self, op: Op) -> Iterator[tuple[Kind, Dim, Dim]]:
        """Attention of opset 23: what is added to the scores is as long as past and new keys together."""
        keys, past = self._shape(op.operands[1]), self._shape(op.input(4))
        mask = self._shape(op.input(3))
        if keys is None or len(keys) not in (3, 4):
            return
        total = plus(keys[-2], past[2] if past is not None and len(past) == 4 else 0)
        if mask:
            yield "broadcast", mask[-1], total
            yield "broadcast", mask[-2] if len(mask) > 1 else None, (self._shape(op.operands[0]) or (None,) * 3)[-2]
        if past is not None:
            yield "equal", past[0], keys[0]

    def _contrib(self, op: Op) -> Iterator[tuple[Kind, Dim, Dim]]:
        query = self._shape(op.operands[0]) if op.operands else None
        if query is None or len(query) < 3:
            return
        if op.op_type == "GroupQueryAttention" and len(op.operands) >= 7:
            past, total = self._shape(op.input(3)), self.bounds.elements(op.operands[6])
            bias = self._shape(op.input(10))
            long = plus(query[1], past[2]) if past is not None and len(past) == 4 else None
            yield "equal", query[0], past[0] if past is not None else None
            if total:
                yield "equal", total[0], long
            if bias is not None:
                yield "equal", bias[-1], long
            lengths = self._shape(op.input(5))
            yield "equal", query[0], lengths[0] if lengths else None
            yield from self._cached_heads(op, query[-1], past)
        elif op.op_type == "MultiHeadAttention":
            keys, bias, past = (self._shape(op.input(i)) for i in (1, 5, 6))
            if keys is not None and len(keys) == 3:
                yield "equal", query[0], keys[0]
                own = keys[1]
                long = plus(own, past[2]) if past is not None and len(past) == 4 else own
                if bias is not None:
                    yield "broadcast", bias[-1], long
                mask = self._shape(op.input(4))
                if mask is not None and len(mask) == 2:
                    yield "equal", mask[1], long

    def _cached_heads(self, op: Op, hidden: Dim, past: tuple[Dim, ...] | None) -> Iterator[tuple[Kind, Dim, Dim]]:
        """Heads and width of a cache of floats, as attributes and the queries (with keys and values behind) say."""
        heads, groups = op.attrs.get("num_heads"), op.attrs.get("kv_num_heads")
        if past is None or len(past) != 4 or not isinstance(heads, int) or not isinstance(groups, int):
            return
        yield "equal", past[1], groups
        packed = self._shape(op.input(1)) is None
        parts = heads + 2 * groups if packed else heads
        if isinstance(hidden, int) and op.operands[3].dtype == op.operands[0].dtype:
            yield "equal", past[3], hidden // parts


def _einsum(op: Op, shapes: list[tuple[Dim, ...]]) -> Iterator[tuple[Kind, Dim, Dim]]:
    equation = op.attrs.get("equation", "")
    text = equation.decode() if isinstance(equation, bytes) else str(equation)
    seen: dict[str, Dim] = {}
    for term, shape in zip(text.replace(" ", "").split("->")[0].split(","), shapes, strict=False):
        if "." in term or len(term) != len(shape):
            return
        for letter, dim in zip(term, shape, strict=True):
            if letter in seen:
                yield "broadcast", seen[letter], dim
            seen.setdefault(letter, dim)
