"""Recognise a decoder by its structure: caches, heads, positions, masks, vocabulary; names play no part.

A *cache* is an input of which an output is made by appending to it or writing into it: `Concat` along the steps,
`TensorScatter` or `ScatterND`, or an attention operator that takes the past and gives the present. Between the input
or the output and that operator may lie what only hands elements on, and the borders of an `If`. A *state* is an input
of constant size of which an output of that size is computed, as recurrent layers have.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from memoptc.ir.core import Graph, Value
from memoptc.ir.decoder_buffers import with_reused_buffers
from memoptc.ir.decoder_caches import (
    ATTENTION,
    Appended,
    appended_inputs,
    attentions,
    heads_of,
    part_handed_over,
    part_of,
    queries_of,
)
from memoptc.ir.decoder_facts import KEY, Cache, DecoderFacts, Part
from memoptc.ir.decoder_paths import (
    MOST_VALUES,
    dtype_name,
    is_integer,
    ops_within_reach,
    origins,
    shape_of,
    uses_behind,
)
from memoptc.ir.decoder_positions import is_rotary, looks_up, numbers_steps, rows_of_table, shares_positions
from memoptc.ir.decoder_states import state_inputs
from memoptc.ir.diagnostics import InputError
from memoptc.ir.dims import Dim
from memoptc.ir.infer import inferred as inferred_copy

__all__ = ["KEY", "Appended", "Cache", "DecoderFacts", "appended_inputs", "numbers_steps", "recognise", "recognised"]


def recognised(graph: Graph, *, inferred: bool = False) -> DecoderFacts | None:
    """Give what is known of a decoder; `None` for anything else."""
    try:
        return recognise(graph, inferred=inferred)
    except InputError:
        return None


def recognise(graph: Graph, *, inferred: bool = False) -> DecoderFacts:
    """Read off a graph what it takes to run it as a decoder.

    Args:
        graph: A model; it stays as it is.
        inferred: Whether its types are those that inference finds, so that no copy has to be made for them.

    Raises:
        InputError: it is none, or not one whose inputs all have a known purpose; the message names what is missing.
    """
    if not inferred:
        graph, _ = inferred_copy(graph)
    return _Reader(graph).decoder()


class _Reader:
    """Reads one graph with inferred types."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.names = [info.name for info in graph.outputs_info]
        self.inputs = [v for v in graph.inputs if v not in graph.defaults and v.tensor_type is not None]
        self.appended = appended_inputs(graph)
        self.attention = attentions(graph)

    def decoder(self) -> DecoderFacts:
        own = list(self._own())
        caches = own + list(self._read(own))
        caches += state_inputs(self.graph, {n for c in caches for n in (c.past, c.present)}, self._sequences())
        if all(c.form == "read" for c in caches):
            raise _refused("no input is appended to along an axis of steps and given back (a cache of keys and values)")
        of_caches = {c.past for c in caches}
        rest = [v for v in self.inputs if v.name not in of_caches]
        tables = {v: t for v in rest if is_integer(v) and (t := rows_of_table(v)) is not None}
        logits, words, last = self._logits({c.present for c in caches}, tables)
        ids = self._ids(tables, words)
        if (
            not own and tables[ids] != words
        ):  # states alone may be anything's: tokens go in, and scores of them come out
            raise _refused("no input is appended to, and no output scores the tokens that go in")
        heads = self._heads() or next((c.heads for c in own), 0)
        caches = with_reused_buffers(self.graph, caches)
        plain = DecoderFacts(
            ids.name, logits, tables[ids], tuple(sorted(caches, key=self._number)), sum(self._layers(own)), heads, True,
            rotary=is_rotary(self.graph), last_only=last, shared=self._shared(), grouped=self._grouped(),
            dtypes={v.name: dtype_name(v) for v in rest}, steps=_fixed_steps(ids),
        )  # fmt: skip
        return self._others([v for v in rest if v is not ids], plain, tables)

    def _sequences(self) -> Dim:
        """Extent of sequences, as the first input of integers that looks rows up has it."""
        ids = (v for v in self.inputs if is_integer(v) and rows_of_table(v) is not None)
        return next((shape[0] for v in ids if (shape := shape_of(v))), None)

    def _number(self, cache: Cache) -> int:
        return next(i for i, v in enumerate(self.graph.inputs) if v.name == cache.past)

    @staticmethod
    def _layers(own: list[Cache]) -> Iterator[int]:
        yield from (c.layers for c in own if c.part == "both")
        alone = ([c for c in own if c.part == part] for part in ("latent", "key", "value"))
        yield from (c.layers for c in next((caches for caches in alone if caches), []))

    # -- caches --------------------------------------------------------------------------------------

    def _own(self) -> Iterator[Cache]:
        seen: dict[str, list[Appended]] = {}
        for one in self.appended:
            seen.setdefault(one.input.name, []).append(one)
        for name, uses in seen.items():
            parts = {p for one in uses if (p := part_of(one))}
            first = uses[0]
            shape, batch, axis = shape_of(first.input), first.axes[0], first.input_axis
            if not parts or batch is None or axis is None or shape is None:
                continue
            heads, width = heads_of(first)
            if len(shape) == len(first.axes) and not isinstance(shape[-1], int) and axis != len(shape) - 1:
                shape = (*shape[:-1], width or None)  # open in the interface, and yet known to what appends
            if not heads or any(not isinstance(d, int) for i, d in enumerate(shape) if i not in (batch, axis)):
                continue
            part: Part = parts.pop() if len(parts) == 1 and len(shape) <= len(first.axes) else "both"
            yield Cache(name, self.names[first.output], part, first.form, dtype_name(first.input),
                        tuple(d if isinstance(d, int) else -1 for d in shape), batch, axis, heads, width)  # fmt: skip

    def _read(self, own: list[Cache]) -> Iterator[Cache]:
        """Keys and values of an encoder: inputs that attention uses as they are."""
        taken = {c.past for c in own} | {a.input.name for a in self.appended}
        back = {v: n for n, value in enumerate(self.graph.outputs) for v, _ in origins(value)}
        computed = self._computed({c.present for c in own})
        for value in self.inputs:
            shape = shape_of(value)
            if value.name in taken or shape is None or len(shape) != 4 or is_integer(value):
                continue
            part = part_handed_over(value)
            heads, width = shape[1], shape[3]
            if part and isinstance(heads, int) and isinstance(width, int):
                alike = computed.get((part, heads, width), [])
                present = self.names[back[value]] if value in back else next(iter(alike), "")
                if present in alike:
                    alike.remove(present)
                yield Cache(value.name, present, part, "read", dtype_name(value),
                            tuple(d if isinstance(d, int) else -1 for d in shape), 0, 2, heads, width)  # fmt: skip

    def _computed(self, presents: set[str]) -> dict[tuple[Part, int, int], list[str]]:
        """Outputs that a branch computes an encoder's keys or values for, by part, heads and width, in their order.

        A merged file gives them where there is no past; its other branch need not hand them back, and gives nothing.
        """
        found: dict[tuple[Part, int, int], list[str]] = {}
        for name, value in zip(self.names, self.graph.outputs, strict=True):
            if name in presents or value.op is None:
                continue
            for region in value.op.regions.values():
                if (made := _keys_or_values(region.outputs[value.index])) is not None:
                    found.setdefault(made, []).append(name)
                    break
        return found

    def _shared(self) -> bool:
        """True if every cache is used by one GroupQueryAttention alone, which may then write where it reads."""
        return bool(self.appended) and all(
            one.op.is_a("com.microsoft::GroupQueryAttention")
            and one.op.operands[one.operand] is one.input
            and one.input.single_use
            and self.graph.outputs[one.output] is one.op.results[one.result]
            for one in self.appended
        )

    def _grouped(self) -> bool:
        """True if attention can only be computed by GroupQueryAttention: no other branch does it for other feeds."""
        kinds = {one.op.key for one in self.appended}
        return kinds == {"com.microsoft::GroupQueryAttention"}

    def _counted(self, mask: str) -> bool:
        """True if a mask's ones are added up to the lengths of GroupQueryAttention."""
        lengths = [one.op.input(5) for one in self.appended if one.op.is_a("com.microsoft::GroupQueryAttention")]
        todo, seen = list(lengths), set(lengths)
        while todo and len(seen) < MOST_VALUES:
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
            shape = shape_of(value)
            if info.name in presents or not shape or len(shape) not in (2, 3) or is_integer(value):
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
                shape = shape_of(one.op.operands[0])
                return int(shape[1]) if shape and len(shape) == 4 and isinstance(shape[1], int) else 0
        for softmax in (s for s, own in self.attention.items() if own):
            for value in (softmax.result, *queries_of(softmax)):
                shape = shape_of(value) or ()
                extents = [d for d in shape[1:-2] if isinstance(d, int)]
                if extents and len(extents) == len(shape) - 3:
                    return int(np.prod(extents))
        return 0

    def _others(self, rest: list[Value], plain: DecoderFacts, tables: dict[Value, int]) -> DecoderFacts:
        """Give each remaining input its purpose."""
        names: dict[str, str] = {}
        context = []
        longest, rank = 0, 2
        for value in sorted(rest, key=lambda v: not v.has_uses):
            read = value.has_uses or not is_integer(value)
            purpose = self._purpose(value, tables) if read else self._unread(value, plain.ids, names)
            if purpose == "context" or purpose in names:
                if is_integer(value) and purpose in names:
                    raise _refused(f"the inputs {names[purpose]!r} and {value.name!r} look alike ({purpose})")
                context.append(value.name)
                continue
            if not purpose:
                raise _refused(f"what the input {value.name!r} is for is not known")
            names[purpose] = value.name
            if purpose == "positions":
                longest, rank = tables.get(value, 0), len(shape_of(value) or ())
        own = [
            v for v in self.inputs if v.name == names.get("mask") or (v.name == names.get("positions") and rank == 2)
        ]
        own += [v for v in self.inputs if v.name in {c.past for c in plain.states}]
        ids = next(v for v in self.inputs if v.name == plain.ids)
        return replace(
            plain, **names, context=tuple(context), max_length=longest, positions_rank=rank,  # type: ignore[arg-type]
            shared_positions=shares_positions(self.graph, ids, own),
            counted=self._counted(names.get("mask", "")),
        )  # fmt: skip

    def _purpose(self, value: Value, tables: dict[Value, int]) -> str:
        shape = shape_of(value)
        if shape is None:
            return ""
        uses = list(uses_behind(value))
        for op, index in uses:
            if op.is_a("com.microsoft::GroupQueryAttention") and index in (5, 6) and len(shape) < 2:
                return "lengths" if index == 5 else "total"
            if op.op_type == "If" and index == 0:
                return "switch"
        if len(shape) in (1, 2) and is_integer(value):
            if value in tables or numbers_steps(value) or looks_up(value):
                return "positions"
        own = self._masked(value)
        if own is not None:
            return "mask" if own else "encoder_mask"
        if not is_integer(value) and len(shape) == 3:
            return "context"
        if len(shape) == 2 and dtype_name(value) in ("int64", "int32", "bool"):
            return "encoder_mask" if any(c.form == "read" for c in self._read([])) else "mask"
        return ""

    def _unread(self, value: Value, ids: str, known: dict[str, str]) -> str:
        """The purpose of an input that nothing reads: what it holds does not matter, only how many elements."""
        alike = any(v.name == ids and shape_of(v) == shape_of(value) for v in self.inputs)
        return "positions" if "positions" not in known and ("mask" in known or alike) else "mask"

    def _masked(self, mask: Value) -> bool | None:
        """True if an input masks attention over the caches (or an encoder's states); `None` where it masks none."""
        found = set()
        for op in ops_within_reach(mask):
            if op.op_type == "Softmax" and op in self.attention:
                found.add(self.attention[op])
            elif op.key in ATTENTION and any(op is one.op for one in self.appended):
                found.add(True)
        return (True in found) if found else None


def _keys_or_values(value: Value) -> tuple[Part, int, int] | None:
    """Part, heads and width of what attention is given, too; `None` for anything else."""
    shape = shape_of(value)
    if shape is None or len(shape) != 4 or not isinstance(shape[1], int) or not isinstance(shape[3], int):
        return None
    part = part_handed_over(value)
    while part is None and value.op is not None and len(value.op.operands) == 1:  # a copy, given back
        value = value.op.operand
        part = part_handed_over(value)
    return None if part is None else (part, shape[1], shape[3])


def _fixed_steps(ids: Value) -> int:
    """Number of tokens that one run takes; 0 where it is open."""
    steps = (shape_of(ids) or (None,))[-1]
    return steps if isinstance(steps, int) else 0


def _refused(why: str) -> InputError:
    return InputError(
        f"This is no decoder that memoptc recognises: {why}.",
        hint="A decoder takes token numbers and a cache of keys and values, and gives scores and the grown cache.",
    )
