"""The ops behind a value that compute per token, and what has to change in them when some tokens are gone."""

from __future__ import annotations

from dataclasses import dataclass, field

from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.dims import Dim, same
from memoptc.ir.iteration import Axis, Form, accumulations, iteration_space
from memoptc.ir.ops import definition, facts, is_pure
from memoptc.ir.ops.axis import everywhere
from memoptc.ir.tensors import ints
from memoptc.passes.simplify._simplify.slice_ranges import bounds

Use = tuple[Op, int]
"""An op, and which of its operands."""

MOST_LEADING = 8
"""Tokens at the front that may be read by themselves and stay for that: class, distillation and register tokens."""

PASSED_BY = "a hidden state goes past it"
"""Why tokens cannot go inside of a layer: they can behind it."""

SHAPE_OPERAND = 1
"""Where Reshape and Expand have the extents of their result."""


@dataclass
class TokenRegion:
    """Operators that compute per token behind `value`.

    Args:
        value: Hidden state `[batch, tokens, width]`; tokens are dropped from it.
        extent: Its number of tokens.
        carried: Values with one slice per token, and their axes of tokens (attention scores have two).
        ops: Those that give them, in order.
        attention: Of those, softmaxes along an axis.
        sides: Operands that come from elsewhere and have a slice per token, such as masks, with the axes of tokens.
        shapes: Operands that say the extents of a result, with the elements that are the number of tokens.
        returned: Uses that need all tokens again, and the value `[batch, tokens, width]` that is given back to them.
        measured: Shapes of values with a slice per token; what they are used for expects the extents of all tokens.
        leading: So many tokens at the front are read by themselves, as the class token is: they stay, in their places.
    """

    value: Value
    extent: Dim
    carried: dict[Value, tuple[int, ...]] = field(default_factory=dict)
    ops: list[Op] = field(default_factory=list)
    attention: list[Op] = field(default_factory=list)
    sides: dict[Use, tuple[int, ...]] = field(default_factory=dict)
    shapes: dict[Use, tuple[int, ...]] = field(default_factory=dict)
    returned: list[Use] = field(default_factory=list)
    measured: list[Op] = field(default_factory=list)
    leading: int = 0

    def most_gone(self, *, merged: bool) -> int | None:
        """Tokens that can be dropped or merged beside the leading ones; `None` if their number is not known."""
        if not isinstance(self.extent, int):
            return None
        if not merged:
            return self.extent - self.leading
        sources, targets = (self.extent + 1) // 2 - (self.leading + 1) // 2, self.extent // 2 - self.leading // 2
        return sources if targets > 0 else 0


def token_region(graph: Graph, value: Value) -> TokenRegion | str:
    """Follow the tokens of a hidden state to all that is computed from them.

    Takes one walk over the graph. An op that needs all tokens, or of which that is not known, gets them back where the
    hidden state that it reads still has one row per token; a graph output, too.

    Args:
        graph: The top graph, types inferred.
        value: `[batch, tokens, width]`, the result of an op of the graph.

    Returns:
        The region, or why tokens cannot go there.
    """
    shape = value.shape
    if shape is None or len(shape) != 3 or None in shape or value.op is None:
        return "its shape is not known"
    found = TokenRegion(value, shape[1], {value: (1,)})
    readers = _readers(value)
    op = value.op.next
    while op is not None:
        if op in readers:
            reason = _follow(op, found)
            if reason:
                return reason
            for result in op.results:
                if result in found.carried:
                    readers |= _readers(result)
        op = op.next
    end = graph.terminator
    found.returned += [(end, i) for i, v in enumerate(end.operands) if v in found.carried]
    if len(found.carried) == 1:
        return "nothing behind it computes per token"
    return _give_back(found)


def _readers(value: Value) -> set[Op]:
    """The ops of the value's own graph that read it, themselves or in their regions."""
    found = set()
    for op in value.users:
        while op.graph is not value.graph:
            parent = op.graph.parent if op.graph is not None else None
            if parent is None:
                break
            op = parent
        found.add(op)
    return found


def _follow(op: Op, region: TokenRegion) -> str:
    """Take an op into the region, or let it have all tokens; says why neither is possible."""
    wanted = {(i, axis) for i, v in enumerate(op.operands) for axis in region.carried.get(v, ())}
    if not wanted:
        return f"{op.op_type} {op.name} has a subgraph that reads tokens"
    if definition(op).reads_extents and op.result.shape is not None and len(op.result.shape) == 1:
        region.measured.append(op)
        return ""
    leading = _takes_leading(op, region)
    if leading:
        region.leading = max(region.leading, leading)
        return ""
    through = _through(op, wanted, region)
    if isinstance(through, str):
        return through
    if through is None:
        region.returned += [(op, i) for i, v in enumerate(op.operands) if v in region.carried]
        return ""
    region.ops.append(op)
    region.attention += [op] if _own_axis(op) else []
    region.carried |= through
    return ""


def _takes_leading(op: Op, region: TokenRegion) -> int:
    """The number of tokens at the front among which are all that an op reads; 0 if it reads others, too.

    Of a number that only a run decides, token 0 alone: among fewer than leading ones none could go.
    """
    axes = region.carried.get(op.operands[0])
    if axes is None or len(axes) != 1:
        return 0
    if op.is_a("Gather"):
        axis = int(op.attrs.get("axis", 0)) % len(op.operands[0].shape or (0,))
        indices = ints(op.operands[1].tensor)
        if axis != axes[0] or not indices or min(indices) < 0:
            return 0
        end = max(indices) + 1
    else:
        start, end = (bounds(op) or {}).get(axes[0], (-1, -1))
        if not 0 <= start < end or len(bounds(op) or {}) != 1:
            return 0
    return end if end == 1 or (isinstance(region.extent, int) and end <= min(MOST_LEADING, region.extent)) else 0


def _through(op: Op, wanted: set[tuple[int, int]], region: TokenRegion) -> dict[Value, tuple[int, ...]] | str | None:
    """The op's results that have a slice per token; `None` when it needs all tokens, or nothing is known of it."""
    if op.regions or op.is_return or not is_pure(op):
        return None
    covered: set[tuple[int, int]] = set()
    results: dict[Value, set[int]] = {}
    sides: dict[Use, set[int]] = {}
    shapes: dict[Use, set[int]] = {}
    for axis in (*iteration_space(op), *accumulations(op), *_own_axis(op)):
        cuts = {(i, along.axis) for i, along in enumerate(axis.operands) if along is not None}
        if not cuts & wanted:
            continue
        if axis.form is Form.EXPONENTIALS:
            continue
        if axis.form not in (Form.SAME, Form.SHAPE) or not _one_to_one(op, axis, region):
            return None
        covered |= cuts & wanted
        for index, place in cuts - wanted:
            sides.setdefault((op, index), set()).add(place)
        for result, at in zip(op.results, axis.results, strict=True):
            if at is not None:
                results.setdefault(result, set()).add(at)
                if axis.form is Form.SHAPE:
                    shapes.setdefault((op, SHAPE_OPERAND), set()).add(at)
    if covered != wanted:
        return None
    for _, index in sides:
        side = op.operands[index]
        if facts(op).arity is None:
            return f"{op.op_type} {op.name} reads tokens that come another way"
        if side.shape == region.value.shape and side.tensor is None:
            return PASSED_BY
        if not _same_batch(op, side, region):
            return f"{op.op_type} {op.name} reads tokens of another batch (with a batch of 1, --freeze, there is none)"
    region.sides |= {use: tuple(sorted(axes)) for use, axes in sides.items()}
    region.shapes |= {use: tuple(sorted(places)) for use, places in shapes.items()}
    return {result: tuple(sorted(axes)) for result, axes in results.items()}


def _same_batch(op: Op, side: Value, region: TokenRegion) -> bool:
    """True if rows of an operand are those of the hidden state, or one for all: heads may stand in the batch, too.

    What is one for all is spread over the batch of the hidden state, which then has to be that of the result.
    """
    result, shape = op.results[0].shape or (), side.shape or ()
    batch = (region.value.shape or (None,))[0]
    if len(shape) < len(result) or shape[0] == 1:
        return batch == 1 or not result or result[0] is None or same(result[0], batch)
    return same(shape[0], batch)


def _own_axis(op: Op) -> list[Axis]:
    """The axis that a softmax divides by its sum along: among fewer tokens it is one again."""
    shape = op.operands[0].shape if op.is_a("Softmax", "LogSoftmax") else None
    return [] if not shape else [everywhere(op, int(op.attrs.get("axis", -1)) % len(shape))]


def _one_to_one(op: Op, axis: Axis, region: TokenRegion) -> bool:
    """True if each token of the operands belongs to the same one of the results."""
    if axis.grain != 1 or any(along is not None and not along.is_identity for along in axis.operands):
        return False
    places = [(op.operands[i], along.axis) for i, along in enumerate(axis.operands) if along is not None]
    places += [(r, at) for r, at in zip(op.results, axis.results, strict=True) if at is not None]
    return all(v.shape is not None and same(v.shape[at], region.extent) for v, at in places)


def _give_back(region: TokenRegion) -> TokenRegion | str:
    """Move the uses that need all tokens up to a hidden state that has a row for each of them.

    What computes per token between that and a use, such as a projection to another width, gets all tokens, too.
    """
    inside = set(region.ops)
    kept: dict[Use, None] = {}
    todo = list(region.returned)
    whole: set[Op] = set()
    """Ops that get all tokens, so that their results have them, too."""
    returned = set(todo)
    while todo:
        use = todo.pop()
        value = use[0].operands[use[1]]
        maker = value.op
        tokens = [] if maker is None else [i for i, v in enumerate(maker.operands) if v in region.carried]
        alone = maker in inside and len(tokens) == 1
        uses = [u for r in maker.results for u in r.uses] if maker is not None else []
        if alone and maker is not None and all(u in returned or u[0] in region.measured for u in uses):
            up = (maker, tokens[0])
            hidden = maker.operands[tokens[0]].shape == region.value.shape or value.shape != region.value.shape
            if hidden and value is not region.value:
                whole.add(maker)
                returned.add(up)
                todo.append(up)
                kept = {u: None for u in kept if u[0].operands[u[1]] not in maker.results}
                continue
        kept[use] = None
    for op, index in kept:
        value = op.operands[index]
        if region.carried[value] != (1,) or value.shape != region.value.shape or value.type != region.value.type:
            return f"{op.op_type} {op.name} needs all tokens, of which there are no hidden states of the same width"
    region.ops = [op for op in region.ops if op not in whole]
    gone = {r for op in whole for r in op.results}
    region.carried = {v: axes for v, axes in region.carried.items() if v not in gone}
    region.sides = {use: axes for use, axes in region.sides.items() if use[0] not in whole}
    region.shapes = {use: at for use, at in region.shapes.items() if use[0] not in whole}
    region.returned = [use for use in kept if use[0].operands[use[1]] is not region.value]
    region.measured = [op for op in region.measured if op.operand in region.carried and op.operand is not region.value]
    if not region.ops:
        return "nothing behind it computes per token"
    return region
