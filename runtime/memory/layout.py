"""A graph as onnxruntime lays it out: convolutions in blocks of channels, with copies where other operators read them.

On x86-64 float convolutions and what goes with them run on tensors whose channels come in blocks
(core/optimizer/nchwc_transformer.cc): channels are rounded up to the block, an operand that lies otherwise is copied
first, and so is a result that another kind of operator reads. `as_laid_out` makes these copies ops of a copy of the
graph.
"""

from __future__ import annotations

from collections.abc import Iterator

from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.dims import Dim, same
from memoptc.ir.facts import OBSERVED
from memoptc.ir.ops import BLOCKED_DOMAIN, Blocked, definition
from memoptc.ir.ops.resize import has_blocked_kernel
from memoptc.ir.types import DType, TensorType, Type

BLOCK = 16
"""Channels in a block, with AVX-512; 8 without."""
ALIGNED = 4
"""A convolution whose channels are no multiple of this stays as it is."""


def as_laid_out(graph: Graph) -> Graph:
    """Give a copy of a top graph with the copies between layouts as ops; the graph itself where nothing changes."""
    if not any(is_blocked(op) for op in graph.walk()):
        return graph
    copy = graph.clone()
    for each in list(_graphs(copy)):
        if any(is_blocked(op) for op in each.ops):
            _Layout(each, fuse_around_convolutions(each)).run()
    return copy


def _graphs(graph: Graph) -> Iterator[Graph]:
    yield graph
    for op in graph.ops:
        for region in op.regions.values():
            yield from _graphs(region)


def is_blocked(op: Op) -> bool:
    """True if a convolution runs on blocks of channels: its weight is a constant of the graph that it stands in."""
    if op.op_type != "Conv" or op.domain or op.operands[1].tensor is None:
        return False
    weight = op.operands[1]
    if weight.op is not None and weight.op.graph is not op.graph:
        return False
    shape = weight.static_shape if weight.dtype == DType.FLOAT else None
    if shape is None or len(shape) != 4:
        return False
    if int(op.attrs.get("group", 1)) == 1:
        return shape[1] < BLOCK or shape[1] % ALIGNED == 0
    depthwise = shape[1] == 1 and shape[0] == int(op.attrs["group"])
    return shape[0] % ALIGNED == 0 and (depthwise or shape[1] % BLOCK == 0)


def leaves_blocks(value: Value) -> bool:
    """True if nothing reads a value in blocks of channels, neither itself nor behind operators of one operand."""
    todo, seen = [value], {value}
    while todo:
        for user in todo.pop().users:
            if is_blocked(user) or _joins_channels(user):
                return False
            if user.is_return or definition(user).blocked is None:
                continue
            if len(user.operands) > 1 or len(user.results) > 1:
                return False
            if user.result not in seen:
                seen.add(user.result)
                todo.append(user.result)
    return True


def fuse_around_convolutions(graph: Graph) -> set[Op]:
    """Do away with what onnxruntime fuses: a normalization or an activation after its convolution, x * Sigmoid(x).

    Returns:
        Convolutions that have an activation now.
    """
    activated: set[Op] = set()
    for op in list(graph.ops):
        if op.is_a("BatchNormalization") or definition(op).joins_convolution or definition(op).joins_blocked:
            before = op.operands[0].op
            alone = op.results[0].has_uses and not any(r.has_uses for r in op.results[1:])  # not in training
            constants = all(v.is_absent or (v.op is not None and v.op.is_const) for v in op.operands[1:])
            if not (before is not None and before.is_a("Conv") and op.operands[0].single_use and alone and constants):
                continue
            if is_blocked(before) or not definition(op).joins_blocked:
                if not op.is_a("BatchNormalization"):
                    activated.add(before)
                op.results[0].replace_by(op.operands[0])
                op.erase()
        elif op.is_a("Mul") and len(op.operands) == 2:
            _fuse_gated(graph, op, activated)
    return activated


def _fuse_gated(graph: Graph, op: Op, activated: set[Op]) -> None:
    """Do away with x * Sigmoid(x), and with x * HardSigmoid(x) of a HardSwish."""
    for index in (0, 1):
        gate = op.operands[index].op
        if gate is None or not gate.is_a("Sigmoid", "HardSigmoid") or gate.operands[0] is not op.operands[1 - index]:
            continue
        if not gate.result.single_use:
            return
        x, before = gate.operands[0], gate.operands[0].op
        if gate.is_a("Sigmoid"):
            made = Builder(graph, op).op("QuickGelu", [x], domain="com.microsoft", type=op.result.type).result
            _as_observed(made, op.result)
        elif _is_sixth(gate) and before is not None and is_blocked(before) and len(list(x.users)) == 2:
            made = x
            activated.add(before)
        else:
            return
        op.result.replace_by(made)
        op.erase()
        gate.erase()
        return


def _is_sixth(op: Op) -> bool:
    """True if a HardSigmoid is the one of HardSwish."""
    return abs(float(op.attrs.get("alpha", 0.2)) - 1 / 6) < _SAME_FACTOR and float(op.attrs.get("beta", 0.5)) == 0.5


_ADDS_UP = 4
"""Operands of a convolution that adds its result to the last of them."""
_SAME_FACTOR = 1e-5
"""How far a factor in float32 may be off its fraction."""


class _Layout:
    def __init__(self, graph: Graph, activated: set[Op]) -> None:
        self.graph = graph
        self.activated = activated
        self.blocked: set[Value] = set()
        self.unpadded: dict[Value, Type | None] = {}
        self.plain: dict[Value, Value] = {}
        self.inputs: dict[Value, Value] = {}

    def run(self) -> None:
        """Go through the ops in order."""
        for op in list(self.graph.ops):
            if is_blocked(op):
                self._convolution(op)
            elif self._stays_blocked(op):
                if not (op.is_a("Add") and self._adds(op)):
                    self._mark(op.results[0])
            elif any(v in self.blocked for v in op.operands):
                for index, value in enumerate(op.operands):
                    if value in self.blocked:
                        op.set_operand(index, self._reordered(value, op))
        end = self.graph.terminator
        for index, value in enumerate(end.operands):
            if value in self.blocked:
                end.set_operand(index, self._reordered(value, end))

    def _convolution(self, op: Op) -> None:
        b = Builder(self.graph, op)
        operands = list(op.operands)
        data, shape = operands[0], operands[1].type.shape  # type: ignore[union-attr]
        assert shape is not None
        narrow = int(op.attrs.get("group", 1)) == 1 and isinstance(shape[1], int) and shape[1] < BLOCK
        if data not in self.blocked and not narrow:
            if data not in self.inputs:
                type_ = _padded(data)
                self.inputs[data] = b.op("ReorderInput", [data], domain=BLOCKED_DOMAIN, type=type_).result
                _as_observed(self.inputs[data], data)
            operands[0] = self.inputs[data]
        made = b.op("Conv", operands, dict(op.attrs), domain=BLOCKED_DOMAIN, type=op.result.type).result
        if op in self.activated and made.op is not None:
            self.activated.add(made.op)
        self._replace(op, made)

    def _replace(self, op: Op, made: Value) -> None:
        _as_observed(made, op.result)
        op.result.replace_by(made)
        op.erase()
        self._mark(made)

    def _adds(self, op: Op) -> bool:
        """Let a convolution add up what an Add would; say whether one can."""
        for value, other in (op.operands, op.operands[::-1]):
            before = value.op
            if before is None or before.op_type != "Conv" or before in self.activated or not value.single_use:
                continue
            if len(before.operands) < _ADDS_UP:
                b = Builder(self.graph, op)
                operands = [*before.operands, *[None] * (_ADDS_UP - 1 - len(before.operands)), other]
                type_ = self.unpadded[value]
                made = b.op("Conv", operands, dict(before.attrs), domain=BLOCKED_DOMAIN, type=type_).result
                self._replace(op, made)
                before.erase()
                return True
        return False

    def _mark(self, value: Value) -> None:
        self.blocked.add(value)
        self.unpadded[value] = value.type
        value.type = _padded(value)

    def _stays_blocked(self, op: Op) -> bool:
        if op.domain not in ("", "com.microsoft") or not op.operands or op.operands[0] not in self.blocked:
            return False
        if not has_blocked_kernel(op):
            return False
        tensors = [v for v in op.operands if not v.is_absent]
        match definition(op).blocked:
            case Blocked.ALWAYS:
                return True
            case Blocked.ONE_RESULT:
                return len(op.results) == 1
            case Blocked.ALL_ALIKE:
                return all(v in self.blocked and _same_shape(v, tensors[0]) for v in tensors)
        return _joins_channels(op) and all(v in self.blocked and not _channels(v) % BLOCK for v in tensors)

    def _reordered(self, value: Value, user: Op) -> Value:
        if value not in self.plain:
            b = Builder(self.graph, user)
            self.plain[value] = b.op("ReorderOutput", [value], domain=BLOCKED_DOMAIN, type=self.unpadded[value]).result
            _as_observed(self.plain[value], value)
        return self.plain[value]


def _as_observed(made: Value, value: Value) -> None:
    """Keep the bytes that runs showed of a value for the one made of it; those up to whole blocks are left out."""
    if OBSERVED in value.metadata:
        made.metadata[OBSERVED] = value.metadata[OBSERVED]


def _joins_channels(op: Op) -> bool:
    return op.op_type == "Concat" and op.attrs.get("axis") == 1


def _channels(value: Value) -> int:
    shape = value.shape
    channels: Dim = shape[1] if shape is not None and len(shape) > 1 else None
    return channels if isinstance(channels, int) else 1


def _padded(value: Value) -> TensorType | None:
    type_ = value.tensor_type
    if type_ is None or type_.shape is None or len(type_.shape) < 2:
        return type_
    channels = type_.shape[1]
    if not isinstance(channels, int):
        return type_
    return type_.with_shape((type_.shape[0], -(-channels // BLOCK) * BLOCK, *type_.shape[2:]))


def _same_shape(a: Value, b: Value) -> bool:
    if a.shape is None or b.shape is None:
        return False
    return all(same(x, y) for x, y in zip(a.shape, b.shape, strict=False))
