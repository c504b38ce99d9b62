"""Recognise a decoder by its structure: caches, heads, positions, masks, vocabulary; names play no part.

A *cache* is an input of which an output is made by appending to it or writing into it: `Concat` along the steps,
`TensorScatter` or `ScatterND`, or an attention operator that takes the past and gives the present. Between the input
or the output and that operator may lie what only hands elements on, and the borders of an `If`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.decoder_facts import KEY, Cache, Decoder, Form, Part
from memoptc.ir.diagnostics import InputError
from memoptc.ir.dims import Dim, same
from memoptc.ir.facts import Tensor
from memoptc.ir.infer import infer_shapes
from memoptc.ir.tensors import ints, scalar
from memoptc.ir.types import DType

__all__ = ["KEY", "Appended", "Cache", "Decoder", "appended_inputs", "numbers_steps", "recognise", "recognised"]

_HAND_ON = frozenset(
    "Identity Cast CastLike Transpose Unsqueeze Squeeze Reshape Slice Split Gather Expand DequantizeLinear "
    "QuantizeLinear Dropout Flatten".split()
)
"""Operators whose first result holds elements of their first operand."""

_ATTENTION = {
    "com.microsoft::GroupQueryAttention": ((3, 1), (4, 2)),
    "com.microsoft::MultiHeadAttention": ((6, 1), (7, 2)),
    "com.microsoft::DecoderMaskedMultiHeadAttention": ((5, 1), (6, 2)),
    "com.microsoft::Attention": ((4, 1),),
    "Attention": ((4, 1), (5, 2)),
}
"""Attention with a past: operands that are appended to, and the results that give them back."""

_SCATTER = ("TensorScatter", "ScatterND", "ScatterElements")
_FAR = 4096
"""Values that one search looks at: more than any way from an input to what uses it, bounded for any graph."""


@dataclass(frozen=True)
class Appended:
    """An input that the graph appends to, and gives back.

    Args:
        input: The input.
        output: Number of the output, -1 where it is not given back.
        op: The operator that appends.
        operand: Which of its operands is appended to.
        result: Which of its results is the whole.
        axes: For each axis of that operand, the input's axis, `None` where that is not known.
        axis: The operand's axis that grows.
    """

    input: Value
    output: int
    op: Op
    operand: int
    result: int
    axes: tuple[int | None, ...]
    axis: int

    @property
    def input_axis(self) -> int | None:
        """The input's axis that grows."""
        return self.axes[self.axis]

    @property
    def form(self) -> Form:
        """Whether the whole is longer than the past, or a buffer of the same length."""
        return "fixed" if self.op.is_a(*_SCATTER) else "grown"


def appended_inputs(graph: Graph) -> list[Appended]:
    """Give every input of a graph that it appends to and gives back.

    Args:
        graph: A top graph whose types are inferred; ranks are needed, extents help.
    """
    found: list[Appended] = []
    for number, value in enumerate(graph.outputs):
        for op, result in _makers(value):
            found += [a for a in _appends(op, result, number) if a not in found]
    return found


def recognised(graph: Graph, *, inferred: bool = False) -> Decoder | None:
    """Give what is known of a decoder; `None` for anything else."""
    try:
        return recognise(graph, inferred=inferred)
    except InputError:
        return None


def recognise(graph: Graph, *, inferred: bool = False) -> Decoder:
    """Read off a graph what it takes to run it as a decoder.

    Args:
        graph: A model; it stays as it is.
        inferred: Whether its types are those that inference finds, so that no copy has to be made for them.

    Raises:
        InputError: it is none, or not one whose inputs all have a known purpose; the message names what is missing.
    """
    if not inferred:
        graph = graph.clone()
        infer_shapes(graph)
    return _Reader(graph).decoder()


class _Reader:
    """Reads one graph with inferred types."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.names = [info.name for info in graph.outputs_info]
        self.inputs = [v for v in graph.inputs if v not in graph.defaults and v.tensor_type is not None]
        self.appended = appended_inputs(graph)
        self.attention = _attentions(graph)

    def decoder(self) -> Decoder:
        own = list(self._own())
        if not own:
            raise _refused("no input is appended to along an axis of steps and given back (a cache of keys and values)")
        caches = own + list(self._read(own))
        of_caches = {c.past for c in caches}
        rest = [v for v in self.inputs if v.name not in of_caches]
        tables = {v: t for v in rest if _integer(v) and (t := _table(v)) is not None}
        logits, words, last = self._logits({c.present for c in caches}, tables)
        ids = self._ids(tables, words)
        heads = self._heads() or own[0].heads
        plain = Decoder(
            ids.name, logits, tables[ids], tuple(sorted(caches, key=self._number)), sum(self._layers(own)), heads,
            rotary=_is_rotary(self.graph), last_only=last, shared=self._shared(), grouped=self._grouped(),
            dtypes={v.name: _dtype(v) for v in rest},
        )  # fmt: skip
        return self._others([v for v in rest if v is not ids], plain, tables)

    def _number(self, cache: Cache) -> int:
        return next(i for i, v in enumerate(self.graph.inputs) if v.name == cache.past)

    @staticmethod
    def _layers(own: list[Cache]) -> Iterator[int]:
        keys = [c for c in own if c.part == "key"]
        yield from (c.layers for c in own if c.part == "both")
        yield from (c.layers for c in keys or (c for c in own if c.part == "value"))

    # -- caches --------------------------------------------------------------------------------------

    def _own(self) -> Iterator[Cache]:
        seen: dict[str, list[Appended]] = {}
        for one in self.appended:
            seen.setdefault(one.input.name, []).append(one)
        for name, uses in seen.items():
            parts = {p for one in uses if (p := _part_of(one))}
            first = uses[0]
            shape, batch, axis = _shape(first.input), first.axes[0], first.input_axis
            if not parts or batch is None or axis is None or shape is None:
                continue
            heads, width = _heads_of(first)
            if not heads or any(not isinstance(d, int) for i, d in enumerate(shape) if i not in (batch, axis)):
                continue
            part: Part = parts.pop() if len(parts) == 1 and len(shape) <= len(first.axes) else "both"
            yield Cache(name, self.names[first.output], part, first.form, _dtype(first.input),
                        tuple(d if isinstance(d, int) else -1 for d in shape), batch, axis, heads, width)  # fmt: skip

    def _read(self, own: list[Cache]) -> Iterator[Cache]:
        """Keys and values of an encoder: inputs that attention uses as they are."""
        taken = {c.past for c in own} | {a.input.name for a in self.appended}
        back = {v: n for n, value in enumerate(self.graph.outputs) for v, _ in _origins(value)}
        for value in self.inputs:
            shape = _shape(value)
            if value.name in taken or shape is None or len(shape) != 4 or _integer(value):
                continue
            part = _part(value)
            heads, width = shape[1], shape[3]
            if part and isinstance(heads, int) and isinstance(width, int):
                present = self.names[back[value]] if value in back else ""
                yield Cache(value.name, present, part, "read", _dtype(value),
                            tuple(d if isinstance(d, int) else -1 for d in shape), 0, 2, heads, width)  # fmt: skip

    def _shared(self) -> bool:
        """Whether every cache is used by one GroupQueryAttention alone, which may then write where it reads."""
        return bool(self.appended) and all(
            one.op.is_a("com.microsoft::GroupQueryAttention")
            and one.op.operands[one.operand] is one.input
            and one.input.single_use
            and self.graph.outputs[one.output] is one.op.results[one.result]
            for one in self.appended
        )

    def _grouped(self) -> bool:
        """Whether attention can only be computed by GroupQueryAttention: no other branch does it for other feeds."""
        kinds = {one.op.key for one in self.appended}
        return kinds == {"com.microsoft::GroupQueryAttention"}

    def _counted(self, mask: str) -> bool:
        """Whether a mask's ones are added up to the lengths of GroupQueryAttention."""
        lengths = [one.op.input(5) for one in self.appended if one.op.is_a("com.microsoft::GroupQueryAttention")]
        todo, seen = list(lengths), set(lengths)
        while todo and len(seen) < _FAR:
            value = todo.pop()
            if value is None:
                continue
            if value.op is None:
                if value.name == mask:
                    return True
                continue
            if value.op.is_a("Shape"):  # how long it is, not what it holds
                continue
            before = [v for v in value.op.operands if v not in seen]
            seen.update(before)
            todo += before
        return False

    # -- outputs and inputs --------------------------------------------------------------------------

    def _logits(self, presents: set[str], tables: dict[Value, int]) -> tuple[str, int, bool]:
        found = []
        for value, info in zip(self.graph.outputs, self.graph.outputs_info, strict=True):
            shape = _shape(value)
            if info.name in presents or not shape or len(shape) not in (2, 3) or _integer(value):
                continue
            words = shape[-1]
            stated = info.shape or shape
            one = len(shape) == 2 or 1 in (shape[1], stated[1] if len(stated) == 3 else None)
            if isinstance(words, int) and words > 1:
                found.append((words in tables.values(), words, info.name, one))
        if not found:
            raise _refused("no output scores a vocabulary, [batch, steps, words]")
        _, words, name, last = max(found, key=lambda f: f[:2])
        return name, words, last

    def _ids(self, tables: dict[Value, int], words: int) -> Value:
        if not tables:
            raise _refused("no input of integers looks rows up in a table of embeddings (token numbers)")
        return max(tables, key=lambda v: (tables[v] == words, tables[v]))

    def _heads(self) -> int:
        """Query heads of attention over the caches."""
        for one in self.appended:
            given = one.op.attrs.get("num_heads", one.op.attrs.get("q_num_heads"))
            if isinstance(given, int):
                return given
            if one.op.is_a("Attention"):
                shape = _shape(one.op.operands[0])
                return int(shape[1]) if shape and len(shape) == 4 and isinstance(shape[1], int) else 0
        for softmax in (s for s, own in self.attention.items() if own):
            for value in (softmax.result, *_multiplied(softmax)):
                shape = _shape(value) or ()
                extents = [d for d in shape[1:-2] if isinstance(d, int)]
                if extents and len(extents) == len(shape) - 3:
                    return int(np.prod(extents))
        return 0

    def _others(self, rest: list[Value], plain: Decoder, tables: dict[Value, int]) -> Decoder:
        """Give each remaining input its purpose."""
        names: dict[str, str] = {}
        context = []
        longest, rank = 0, 2
        for value in sorted(rest, key=lambda v: not v.has_uses):
            read = value.has_uses or not _integer(value)
            purpose = self._purpose(value, tables) if read else self._unread(value, plain.ids, names)
            if purpose == "context" or purpose in names:
                if _integer(value) and purpose in names:
                    raise _refused(f"the inputs {names[purpose]!r} and {value.name!r} look alike ({purpose})")
                context.append(value.name)
                continue
            if not purpose:
                raise _refused(f"what the input {value.name!r} is for is not known")
            names[purpose] = value.name
            if purpose == "positions":
                longest, rank = tables.get(value, 0), len(_shape(value) or ())
        return replace(
            plain, **names, context=tuple(context), max_length=longest, positions_rank=rank,  # type: ignore[arg-type]
            counted=self._counted(names.get("mask", "")),
        )  # fmt: skip

    def _purpose(self, value: Value, tables: dict[Value, int]) -> str:
        shape = _shape(value)
        if shape is None:
            return ""
        uses = list(_uses(value))
        for op, index in uses:
            if op.is_a("com.microsoft::GroupQueryAttention") and index in (5, 6) and len(shape) < 2:
                return "lengths" if index == 5 else "total"
            if op.op_type == "If" and index == 0:
                return "switch"
        if len(shape) in (1, 2) and _integer(value):
            if value in tables or numbers_steps(value) or _looks_up(value):
                return "positions"
        own = self._masked(value)
        if own is not None:
            return "mask" if own else "encoder_mask"
        if not _integer(value) and len(shape) == 3:
            return "context"
        if len(shape) == 2 and _dtype(value) in ("int64", "int32", "bool"):
            return "encoder_mask" if any(c.form == "read" for c in self._read([])) else "mask"
        return ""

    def _unread(self, value: Value, ids: str, known: dict[str, str]) -> str:
        """The purpose of an input that nothing reads: what it holds does not matter, only how many elements."""
        alike = any(v.name == ids and _shape(v) == _shape(value) for v in self.inputs)
        return "positions" if "positions" not in known and ("mask" in known or alike) else "mask"

    def _masked(self, mask: Value) -> bool | None:
        """Whether an input masks attention over the caches (or an encoder's states); `None` where it masks none."""
        found = set()
        for op in _reached(mask):
            if op.op_type == "Softmax" and op in self.attention:
                found.add(self.attention[op])
            elif op.key in _ATTENTION and any(op is one.op for one in self.appended):
                found.add(True)
        return (True in found) if found else None


# -- appending ---------------------------------------------------------------------------------------


def _makers(value: Value) -> Iterator[tuple[Op, int]]:
    """The ops, seen from an output through what only hands elements on, that may append."""
    todo, seen = [value], {value}
    while todo and len(seen) < _FAR:
        value = todo.pop()
        op = value.op
        if op is None:
            continue
        if op.op_type == "If" or _handed_on(op) is not None or _is_stack(op):
            before = _sources(op, value.index)
        else:
            yield op, value.index
            before = []
        todo += [v for v in before if v not in seen]
        seen.update(before)


def _sources(op: Op, index: int) -> list[Value]:
    if op.op_type == "If":
        return [region.outputs[index] for region in op.regions.values() if index < len(region.outputs)]
    handed = _handed_on(op)
    return [op.operands[handed]] if handed is not None else list(op.operands)


def _handed_on(op: Op) -> int | None:
    """Which operand's elements the first result holds; `None` where an op computes others."""
    if op.domain:
        return None
    if op.op_type in _HAND_ON or (op.op_type == "Concat" and len(op.operands) == 1):
        return 0
    # what an exporter puts behind Softmax, for rows that hide all keys: Where(IsNaN(x), 0, x)
    guarded = op.op_type == "Where" and op.operands[0].op is not None and op.operands[0].op.is_a("IsNaN")
    return 2 if guarded and op.operands[0].op.operand is op.operands[2] else None  # type: ignore[union-attr]


def _is_stack(op: Op) -> bool:
    """Whether a Concat puts several caches side by side, rather than steps behind a past."""
    return op.is_a("Concat") and not any(_origins(op.operands[0]))


def _appends(op: Op, result: int, output: int) -> Iterator[Appended]:
    for operand, axis in _grown(op, result):
        for value, axes in _origins(op.operands[operand]):
            if _is_state(value):
                yield Appended(value, output, op, operand, result, axes, axis)


def _grown(op: Op, result: int) -> Iterator[tuple[int, int]]:
    """The operand that an op appends to to make a result, and its axis that grows."""
    rank = len(_shape(op.results[result]) or ())
    if op.is_a("Concat") and len(op.operands) == 2 and rank >= 3 and _constant(op.operands[1]) is None:
        yield 0, op.attrs.get("axis", 0) % rank
    elif op.is_a("TensorScatter"):
        yield 0, op.attrs.get("axis", -2) % max(rank, 1)
    elif op.is_a("ScatterElements", "ScatterND") and rank >= 3:
        yield 0, _scattered_axis(op, rank)
    for operand, given in _ATTENTION.get(op.key, ()):
        if given == result and op.input(operand) is not None:
            yield operand, 3 if op.key == "com.microsoft::Attention" else 2


def _scattered_axis(op: Op, rank: int) -> int:
    """The axis that a scatter writes steps along: that of the updates which is not as long as the buffer's."""
    if op.is_a("ScatterElements"):
        return int(op.attrs.get("axis", 0)) % rank
    data, new = _shape(op.operands[0]) or (), _shape(op.operands[2]) or ()
    if len(data) == len(new):
        differing = [i for i, (a, b) in enumerate(zip(data, new, strict=True)) if i and not same(a, b)]
        if len(differing) == 1:
            return differing[0]
    return rank - 2


def _origins(value: Value) -> Iterator[tuple[Value, tuple[int | None, ...]]]:
    """The inputs whose elements a value holds, and for each of its axes the input's."""
    shape = _shape(value)
    todo: list[tuple[Value, tuple[int | None, ...]]] = [(value, tuple(range(len(shape or ()))))]
    seen = {value}
    while todo and len(seen) < _FAR:
        value, axes = todo.pop()
        op = value.op
        if op is None:
            if value.graph.parent is None:
                yield value, axes
            continue
        if op.op_type == "If":
            before = [(v, axes) for v in _sources(op, value.index)]
        elif (index := _handed_on(op)) is not None:
            before = [(op.operands[index], _before(op, axes) if index == 0 else axes)]
        else:
            continue
        todo += [(v, a) for v, a in before if v not in seen]
        seen.update(v for v, _ in before)


def _before(op: Op, axes: tuple[int | None, ...]) -> tuple[int | None, ...]:
    """Axes of a result as axes of the operand."""
    result, operand = _shape(op.result), _shape(op.operands[0])
    if result is None or operand is None:
        return (None,) * len(axes)
    mine = _operand_axes(op, len(operand), operand, result)
    return tuple(None if a is None or a >= len(mine) else mine[a] for a in axes)


def _operand_axes(op: Op, rank: int, operand: tuple[Dim, ...], result: tuple[Dim, ...]) -> list[int | None]:
    """For each axis of a result, that of the first operand."""
    same_axes: list[int | None] = list(range(rank))
    if op.op_type == "Transpose":
        return list(op.attrs.get("perm", tuple(reversed(range(rank)))))
    if op.op_type == "Gather":
        at = op.attrs.get("axis", 0) % max(rank, 1)
        new = len(_shape(op.operands[1]) or ())
        return [*same_axes[:at], *((None,) * new if new != 1 else (at,)), *same_axes[at + 1 :]]
    given = op.attrs.get("axes") or (ints(_constant(op.operands[1])) if len(op.operands) > 1 else None)
    if op.op_type == "Unsqueeze" and given is not None:
        named = {int(a) % len(result) for a in given}
        rest = iter(same_axes)
        return [None if i in named else next(rest, None) for i in range(len(result))]
    if op.op_type == "Squeeze" and given is not None:
        named = {int(a) % rank for a in given}
        return [i for i in range(rank) if i not in named]
    if op.op_type in ("Reshape", "Flatten", "Expand", "Squeeze", "Unsqueeze"):
        front = 0
        while front < min(rank, len(result)) and same(operand[front], result[front]):
            front += 1
        back = 0
        while back < min(rank, len(result)) - front and same(operand[rank - 1 - back], result[len(result) - 1 - back]):
            back += 1
        middle: list[int | None] = [None] * (len(result) - front - back)
        if op.op_type == "Expand" and len(result) == rank:
            return same_axes
        return [*same_axes[:front], *middle, *same_axes[rank - back :]]
    return same_axes


# -- attention ---------------------------------------------------------------------------------------


def _attentions(graph: Graph) -> dict[Op, bool]:
    """Every Softmax that weighs values, and whether those are values that steps are appended to."""
    found: dict[Op, bool] = {}
    for softmax in graph.walk("Softmax"):
        for op, index in _uses(softmax.result):
            if op.op_type in ("MatMul", "Einsum") and len(op.operands) == 2:
                found[softmax] = _leads_back(op.operands[1 - index], lambda o: bool(list(_grown(o, 0))))
    return found


def _multiplied(softmax: Op) -> Iterator[Value]:
    """The queries whose products with keys are the scores, as far as they can be found: past scales and masks."""
    todo, seen = [softmax.operand], {softmax.operand}
    while todo and len(seen) < _NEARBY:
        op = todo.pop().op
        if op is not None and op.is_a("MatMul"):
            yield op.operand
        elif op is not None and not op.domain and (op.op_type in _ELEMENTWISE or op.op_type in _HAND_ON):
            todo += [v for v in op.operands if v not in seen]
            seen.update(op.operands)


def _leads_back(value: Value, wanted: object) -> bool:
    """Whether a value holds elements that such an op makes."""
    return any(wanted(op) for op, _ in _makers(value))  # type: ignore[operator]


def _part_of(one: Appended) -> Part | None:
    if one.op.key in _ATTENTION:
        if one.op.is_a("com.microsoft::Attention"):
            return "both"
        return "key" if one.operand == _ATTENTION[one.op.key][0][0] else "value"
    return _part(one.op.results[one.result])


def _part(value: Value) -> Part | None:
    """Whether a value is used as keys or as values of attention."""
    for op, index in _uses(value, scaled=True):
        if op.key in _ATTENTION and index in (1, 2):
            return "key" if index == 1 else "value"
        if op.op_type in ("MatMul", "Einsum") and len(op.operands) == 2:
            other = op.operands[1 - index]
            if any(o.op_type == "Softmax" for o, _ in _makers(other)):
                return "value"
            if any(o.op_type == "Softmax" for o in _reached(op.result)):
                return "key"
    return None


def _heads_of(one: Appended) -> tuple[int, int]:
    """Key/value heads and their width; 0 where they are not known."""
    shape = _shape(one.op.operands[one.operand]) or ()
    if len(shape) < 3:
        return 0, 0
    if one.op.is_a("com.microsoft::Attention"):
        shape = shape[1:]
        grown = 2
    else:
        grown = one.axis
    rest = [d for i, d in enumerate(shape) if i not in (0, grown)]
    if not rest or not all(isinstance(d, int) for d in rest):
        return 0, 0
    numbers = [int(d) for d in rest if isinstance(d, int)]
    return int(np.prod(numbers[:-1], dtype=np.int64)), numbers[-1]


# -- walks -------------------------------------------------------------------------------------------

_SCALED = ("Mul", "Div")
_ELEMENTWISE = frozenset(
    "Add Sub Mul Div Where And Or Not Xor Equal Less LessOrEqual Greater GreaterOrEqual Cast Neg Max Min Clip Pow Sqrt "
    "Tanh IsNaN Trilu Concat ReduceSum CumSum ReduceMax ConstantOfShape GatherND".split()
)


def _uses(value: Value, scaled: bool = False) -> Iterator[tuple[Op, int]]:
    """What uses a value, through what only hands elements on (and, if asked for, scales them)."""
    todo, seen = [value], {value}
    while todo and len(seen) < _FAR:
        for op, index in todo.pop().uses:
            if op.is_return:
                owner = op.graph.parent if op.graph is not None else None
                after = [] if owner is None or index >= len(owner.results) else [owner.results[index]]
            elif index == _handed_on(op):
                after = list(op.results)
                if op.op_type == "Cast":
                    yield op, index
            elif scaled and op.op_type in _SCALED and scalar(_constant(op.operands[1 - index])) is not None:
                after = [op.result]
            else:
                yield op, index
                continue
            todo += [v for v in after if v not in seen]
            seen.update(after)


def _reached(value: Value) -> Iterator[Op]:
    """The ops up to which a value is handed on, or computed with element by element."""
    todo, seen = [value], {value}
    while todo and len(seen) < _FAR:
        for op, index in todo.pop().uses:
            yield op
            if op.is_return:
                owner = op.graph.parent if op.graph is not None else None
                after = [] if owner is None or index >= len(owner.results) else [owner.results[index]]
            elif not op.domain and (op.op_type in _ELEMENTWISE or op.op_type in _HAND_ON):
                after = list(op.results)
            else:
                continue
            todo += [v for v in after if v not in seen]
            seen.update(after)


# -- inputs ------------------------------------------------------------------------------------------

_TO_TABLE = {"Gather": 0, "com.microsoft::GatherBlockQuantized": 0, "com.microsoft::EmbedLayerNormalization": 2}


_OFFSETS = 2
"""Numbers that may be added to an input before it is an index: OPT and BART keep the first rows for padding."""


def _table(value: Value, depth: int = 0) -> int | None:
    """Rows of the largest table of vectors that an input indexes, less what is added to it."""
    rows = []
    for op, index in _uses(value):
        table = op.input(_TO_TABLE[op.key]) if op.key in _TO_TABLE else None
        if op.is_a("Add") and (offset := scalar(_constant(op.operands[1 - index]))) is not None:
            later = _table(op.result, depth + 1) if depth < _OFFSETS else None
            rows += [later - int(offset)] if later is not None and _integer(value) else []
            continue
        if table is None or index != (0 if op.key == "com.microsoft::EmbedLayerNormalization" else 1):
            continue
        shape = _shape(table)
        axis = op.attrs.get("axis", op.attrs.get("gather_axis", 0))
        ranks = (2, 3) if op.domain else (2,)  # codes may have an axis of blocks
        if shape and len(shape) in ranks and isinstance(shape[0], int) and axis == 0:
            if _is_fixed(table):
                rows.append(shape[0])
    return max(rows, default=None)


def _is_fixed(value: Value) -> bool:
    """Whether a value is a weight, stored as it is or in codes."""
    for _ in range(8):
        if _constant(value) is not None:
            return True
        if value.op is None or not value.op.operands:
            return False
        value = value.op.operands[0]
    return False


def numbers_steps(value: Value) -> bool:
    """Whether an input numbers steps: it is turned into angles, gives places to write to, or is compared with keys."""
    for op, index in _uses(value):
        if op.op_type == "RotaryEmbedding" and index == (1 if op.domain else 3):
            return True
        if op.is_a("com.microsoft::GroupQueryAttention") and index == 9:
            return True
        if op.is_a(*_SCATTER) and index > 0:
            return True
        if op.op_type in ("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Sub") and len(op.operands) == 2:
            if any(o.op_type == "Range" for o, _ in _makers(op.operands[1 - index])):
                return True
    return _turned_into_angles(value)


def _looks_up(value: Value) -> bool:
    """Whether an input indexes a weight. Beside the ids of a decoder, that are positions; ids do so, too."""
    lookups = ("Gather", "GatherND", "GatherElements")
    return any(op.is_a(*lookups) and index == 1 and _is_fixed(op.operands[0]) for op, index in _uses(value))


_INTO_ANGLES = frozenset(
    "Cast Unsqueeze Squeeze Reshape Expand Transpose Mul MatMul Einsum Concat Slice Identity".split()
)
_NEARBY = 64


def _turned_into_angles(start: Value) -> bool:
    """Whether an input is multiplied into angles whose sine or cosine is taken."""
    todo, seen = [start], {start}
    while todo and len(seen) < _NEARBY:
        for op in todo.pop().users:
            if op.is_a("Cos", "Sin"):
                return True
            if op.op_type in _INTO_ANGLES and not op.domain:
                todo += [r for r in op.results if r not in seen]
                seen.update(op.results)
    return False


def _is_rotary(graph: Graph) -> bool:
    """Whether halves or pairs of queries and keys are turned."""
    for op in graph.walk():
        if op.op_type == "RotaryEmbedding" or op.attrs.get("do_rotary") == 1:
            return True
        if op.is_a("Concat") and len(op.operands) == 2:
            first, _ = next(_makers(op.operands[0]), (None, 0))
            if first is not None and first.is_a("Neg"):
                return True
    return False


def _is_state(value: Value) -> bool:
    """Whether an input may hold keys or values."""
    shape = _shape(value)
    return shape is not None and len(shape) >= 3 and _dtype(value) in _STATES


_STATES = ("float32", "float16", "bfloat16", "float64", "int8", "uint8")


def _shape(value: Value | None) -> tuple[Dim, ...] | None:
    return None if value is None else value.shape


def _dtype(value: Value) -> str:
    return str(value.dtype.numpy().name) if value.dtype else ""


def _constant(value: Value) -> Tensor | None:
    """What a value holds that is a weight, or made by a Constant, as TorchScript writes all its numbers."""
    made = value.op is not None and value.op.is_a("Constant")
    held: Tensor | None = value.op.attrs.get("value") if made and value.op is not None else value.tensor
    return held


def _integer(value: Value) -> bool:
    return value.dtype in (DType.INT32, DType.INT64)


def _refused(why: str) -> InputError:
    return InputError(
        f"This is no decoder that memoptc recognises: {why}.",
        hint="A decoder takes token numbers and a cache of keys and values, and gives scores and the grown cache.",
    )
