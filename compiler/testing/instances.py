"""Random graphs that the pattern of a rule fits: operators of the pattern, operands of random types that they take.

Operands are drawn from the bottom up, from what is known of the operator's other operands; what onnxruntime then
refuses is thrown away and drawn anew.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from memoptc.ir import ops
from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, ModelInfo, Output, Value
from memoptc.ir.diagnostics import MemoptcError
from memoptc.ir.dims import Sym
from memoptc.ir.ops import Family
from memoptc.ir.tensors import from_array
from memoptc.ir.types import DType, TensorType
from memoptc.ir.verifier import verify
from memoptc.rewrite.pattern import Any_, Const, Operand, OpPattern, Optional_, Rest
from memoptc.rewrite.rule import Rule

OPSET = 18
SHAPES = ((), (1,), (4,), (2, 3), (1, 4), (3, 1), (4, 4), (2, 3, 4), (2, 1, 4), (1, 2, 4, 6), (2, 4, 5, 5))
"""Of values that nothing decides about."""
PREFERRED = (DType.FLOAT,) * 6 + (DType.DOUBLE, DType.INT64, DType.INT32, DType.BOOL, DType.FLOAT16, DType.UINT8)
FILLERS = ("Relu", "Tanh", "Neg", "Abs")
"""Operators that stand for any."""


class _CannotDraw(Exception):
    """This draw leads nowhere."""


_Known: TypeAlias = tuple[int, Value]
"""The position of an operand, and the operand."""


@dataclass(frozen=True)
class Instance:
    """A graph with one place at which a pattern fits.

    Args:
        graph: Its outputs are what the rule replaces.
        extents: What its symbolic dimensions stand for.
    """

    graph: Graph
    extents: Mapping[str, int]


def instances(rule: Rule, seed: int = 0) -> Iterator[Instance | None]:
    """Draw graphs for a rule without end; `None` where a draw led nowhere.

    Args:
        rule: The rule.
        seed: The same seed gives the same graphs.
    """
    draw = 0
    while True:
        try:
            yield _Drawing(random.Random(f"{seed}:{rule.name}:{draw}")).instance(rule)
        except (_CannotDraw, MemoptcError, ValueError, TypeError):
            yield None
        draw += 1


class _Drawing:
    def __init__(self, r: random.Random) -> None:
        self.random = r
        self.rng = np.random.default_rng(r.getrandbits(32))
        self.graph = Graph("instance", ModelInfo(opset_imports={"": OPSET}))
        self.b = Builder(self.graph)
        self.ops: dict[OpPattern, tuple[Value, ...]] = {}
        self.results: dict[OpPattern, int] = {}
        self.bound: dict[str, Value | None] = {}
        self.dtype = r.choice(PREFERRED)

    def instance(self, rule: Rule) -> Instance:
        for root in rule.roots:
            self.count_results(root)
        results = [self.made(root)[root.index] for root in rule.roots]
        outputs = list(dict.fromkeys(results))
        self.graph.set_outputs(outputs, [Output(f"out{i}", v.type) for i, v in enumerate(outputs)])
        if verify(self.graph):
            raise _CannotDraw("onnx does not allow it")
        return Instance(self.graph, self.symbols())

    def symbols(self) -> dict[str, int]:
        """Give the first axis of the only input a name instead of an extent, now and then."""
        if len(self.graph.inputs) != 1 or self.random.random() > 0.3:
            return {}
        (value,) = self.graph.inputs
        if value.dtype is None or not value.shape or not isinstance(value.shape[0], int):
            return {}
        extent = value.shape[0]
        value.type = TensorType(value.dtype, (Sym("N"), *value.shape[1:]))
        for op in self.graph.ops:
            for result in op.results if not op.is_const else ():
                result.type = None
        return {"N": extent}

    def made(self, pattern: OpPattern, rank: int | None = None) -> tuple[Value, ...]:
        """Make the op of a pattern, operands first."""
        pattern = pattern.base
        if pattern in self.ops:
            return self.ops[pattern]
        key = self.random.choice(pattern.keys or FILLERS)
        domain, _, op_type = key.rpartition("::")
        schema = ops.schema(op_type, domain, OPSET if not domain else 1)
        family = ops.definition_of(key).family
        if family in (Family.CONVOLUTION, Family.POOL):
            rank = 4
        operands: list[Value | None] = [None] * len(pattern.operands)
        for index, operand in enumerate(pattern.operands):
            if isinstance(operand, OpPattern):
                operands[index] = self.made(operand, rank)[operand.index]
        operands = self.operands(pattern.operands, operands, _Slot(op_type, family, schema, rank))
        attrs = self.attributes(pattern, schema, family, operands)
        made = self.b.op(op_type, operands, attrs, domain=domain, outputs=self.results[pattern]).results
        self.ops[pattern] = made
        return made

    def count_results(self, pattern: OpPattern) -> None:
        """Note how many results of each op the patterns name."""
        base = pattern.base
        self.results[base] = max(self.results.get(base, 0), pattern.index + 1)
        for operand in base.operands:
            if isinstance(operand, OpPattern):
                self.count_results(operand)

    def operands(self, patterns: Sequence[Operand], made: list[Value | None], slot: _Slot) -> list[Value | None]:
        found: list[Value | None] = []
        for index, pattern in enumerate(patterns):
            known = [(i, v) for i, v in enumerate((*found, *made[index:])) if v is not None]
            match pattern:
                case OpPattern():
                    found.append(made[index])
                case Rest():
                    found += self.more(index, known, slot)
                case Optional_(name):
                    given = self.random.random() < 0.7
                    found.append(self.leaf(name, index, known, slot) if given else None)
                    self.bound.setdefault(name, found[-1])
                case Const(name, value):
                    found.append(self.constant(name, value, index, known, slot))
                case Any_(name):
                    found.append(self.leaf(name, index, known, slot))
        while found and found[-1] is None:
            found.pop()
        return found

    def more(self, index: int, known: list[_Known], slot: _Slot) -> list[Value | None]:
        least, most = (slot.schema.min_input, min(slot.schema.max_input, index + 3)) if slot.schema else (index, index)
        extra: list[Value] = []
        for at in range(index, self.random.randint(max(least, index), max(most, least, index))):
            extra.append(self.leaf("", at, [*known, *enumerate(extra, index)], slot))
        if not index and slot.schema is not None and slot.schema.max_input > 2 and extra:  # any number of operands
            extra = self.parts(extra)
        return list(extra)

    def parts(self, operands: list[Value]) -> list[Value]:
        """Operands of which now and then one is joined of others or filled, or which are all parts of one value."""
        first, choice = operands[0], self.random.random()
        shape, dtype = first.static_shape, first.dtype
        if not shape or dtype is None or choice > 0.6:
            return operands
        axis = self.random.randrange(len(shape))
        if choice < 0.2:
            return [*operands[1:], self.b.op("Concat", [first] * 2, {"axis": axis}).result]
        if choice < 0.4:
            filled = self.b.ConstantOfShape(np.asarray(shape, np.int64), value=from_array(np.ones(1, dtype.numpy())))
            return self.random.choice([[*operands, filled], [filled, *operands]])
        return list(self.b.op("Split", [first], {"axis": axis, "num_outputs": 2}, outputs=2).results)

    def leaf(self, name: str, index: int, known: list[_Known], slot: _Slot) -> Value:
        """An input or a weight; what has the name already where it has one."""
        if name and self.bound.get(name) is not None:
            value = self.bound[name]
            assert value is not None
            return value
        if slot.op_type == "Reshape" and index == 1:
            return self.b.const(np.asarray(self.target(known[0][1]), np.int64))
        type_ = self.type(index, known, slot)
        parameters = slot.family in (Family.CONVOLUTION, Family.NORMALIZATION, Family.MATMUL)
        weight = self.random.random() < (0.9 if index and parameters else 0.4)
        if weight or type_.dtype in (DType.STRING,) or slot.parameter(index):
            value = self.b.const(self.array(type_, slot, index))
        else:
            value = self.graph.add_input(name.strip("%_.") or f"in{len(self.graph.inputs)}", type_)
        if name:
            self.bound[name] = value
        return value

    def target(self, value: Value) -> tuple[int, ...]:
        """A shape for as many elements: that of another value, two axes merged, or the first one split as another's."""
        shape = value.static_shape
        if shape is None:
            raise _CannotDraw("an extent is not known")
        values = [*self.graph.inputs, *(r for op in self.graph.ops for r in op.results)]
        others = [s for v in values if (s := v.static_shape) is not None]
        shapes = [s for s in others if math.prod(s) == math.prod(shape)]
        leading = [s[:i] for s in others for i in range(2, len(s)) if shape and math.prod(s[:i]) == shape[0]]
        shapes += [(*lead, *shape[1:]) for lead in leading]
        merged = [(*shape[:i], shape[i] * shape[i + 1], *shape[i + 2 :]) for i in range(len(shape) - 1)]
        return self.random.choice([*shapes, *merged, (-1,)])

    def constant(self, name: str, content: float | None, index: int, known: list[_Known], slot: _Slot) -> Value:
        if name and self.bound.get(name) is not None:
            return self.leaf(name, index, known, slot)
        type_ = self.type(index, known, slot)
        array = self.array(type_, slot, index)
        if content is not None:
            shape = self.random.choice([(), (1,), array.shape])
            array = np.full(shape, content).astype(array.dtype)
        value = self.b.const(array)
        if name:
            self.bound[name] = value
        return value

    def type(self, index: int, known: list[_Known], slot: _Slot) -> TensorType:
        types = {i: v.tensor_type for i, v in known if v.tensor_type is not None}
        if any(t.static_shape is None for t in types.values()):
            raise _CannotDraw("an extent is not known")
        shapes = [t.static_shape or () for _, t in sorted(types.items())]
        return TensorType(self.element(index, types, slot), _shape(self.random, index, shapes, slot))

    def element(self, index: int, types: Mapping[int, TensorType], slot: _Slot) -> DType:
        allowed = slot.allowed(index)
        same = [t.dtype for i, t in types.items() if slot.alike(i, index)]
        if same:
            return same[0]
        if self.dtype in allowed:
            return self.dtype
        fitting = [d for d in PREFERRED if d in allowed]
        if not fitting:
            raise _CannotDraw("no element type")
        return self.random.choice(fitting)

    def array(self, type_: TensorType, slot: _Slot, index: int) -> npt.NDArray[Any]:
        shape, dtype = type_.static_shape or (), type_.dtype
        scales = slot.parameter(index) and not dtype.is_integer()
        if self.random.random() < (0.7 if scales else 0.3):  # many rules are for neutral elements
            return np.full(shape, self.random.choice((0, 1))).astype(dtype.numpy())
        if dtype == DType.BOOL:
            return np.asarray(self.rng.integers(0, 2, shape), np.bool_)
        if dtype.is_integer():
            return np.asarray(self.rng.integers(0, 3, shape), dtype.numpy())
        numbers = self.rng.standard_normal(shape)
        # A variance is not negative.
        return np.asarray(np.abs(numbers) + 0.1 if slot.op_type == "BatchNormalization" and index == 4 else numbers,
                          dtype.numpy())  # fmt: skip

    def attributes(
        self, pattern: OpPattern, schema: Any, family: Family | None, operands: Sequence[Value | None]
    ) -> dict[str, Any]:
        """Attributes that the pattern asks for, those that must be given, and some that may."""
        attrs: dict[str, Any] = {}
        shapes = [() if v is None else v.static_shape or () for v in operands]
        rank = len(shapes[0]) if shapes else 0
        for name, attribute in schema.attributes.items() if schema is not None else ():
            if attribute.required or self.random.random() < 0.4:
                value = self.drawn(attribute, family, shapes, rank)
                if value is not None:
                    attrs[name] = value
        for name, wanted in pattern.attrs.items():
            if not callable(wanted):
                attrs[name] = wanted
            else:
                attrs.pop(name, None)
                candidates = [None, 0, 1, -1, 2, rank - 1, tuple(range(rank)), tuple(reversed(range(rank))), 0.5, 1.0]
                fitting = [c for c in candidates if c != () and _accepts(wanted, c)]
                if fitting:
                    attrs[name] = self.random.choice(fitting)
        return attrs

    def drawn(self, attribute: Any, family: Family | None, shapes: Sequence[tuple[int, ...]], rank: int) -> Any:
        r, name, default = self.random, attribute.name, attribute.default_value.i
        kind = str(attribute.type).rpartition(".")[2]
        known: dict[str, Callable[[], Any]] = {
            "axis": lambda: r.randrange(-rank, rank) if rank else None,
            "axes": lambda: (r.randrange(rank),) if rank else None,
            "perm": lambda: tuple(r.sample(range(rank), rank)) or None,
            "to": lambda: int(r.choice((DType.FLOAT, DType.DOUBLE, DType.INT64, DType.BOOL))),
            "keepdims": lambda: r.randint(0, 1),
            "transA": lambda: None,
            "transB": lambda: None,
            "alpha": lambda: r.choice((0.25, 1.0)),
            "beta": lambda: r.choice((0.5, 1.0)),
            "epsilon": lambda: r.choice((1e-5, 1e-3)),
        }
        if name in known:
            return known[name]()
        if kind == "INT" and default in (0, 1):  # a switch
            return r.randint(0, 1)
        if family in (Family.CONVOLUTION, Family.POOL):
            window = (lambda: shapes[1][2:]) if family is Family.CONVOLUTION and len(shapes) > 1 else lambda: (2, 2)
            windows: dict[str, Callable[[], Any]] = {
                "kernel_shape": window,
                "strides": lambda: (r.randint(1, 2), r.randint(1, 2)),
                "pads": lambda: tuple(r.randint(0, 1) for _ in range(4)),
                "group": lambda: _groups(shapes),
            }
            return windows.get(name, lambda: None)()
        return None


@dataclass(frozen=True)
class _Slot:
    """Slot of an operand in the pattern: its operator, and the rank that operators above ask for."""

    op_type: str
    family: Family | None
    schema: Any
    rank: int | None

    def formal(self, index: int) -> Any:
        if self.schema is None or not self.schema.inputs:
            return None
        return self.schema.inputs[min(index, len(self.schema.inputs) - 1)]

    def allowed(self, index: int) -> frozenset[DType]:
        """Element types that the schema allows."""
        formal = self.formal(index)
        if formal is None:
            return frozenset(PREFERRED)
        found = {_DTYPES.get(t) for t in formal.types}
        return frozenset(d for d in found if d is not None)

    def alike(self, one: int, other: int) -> bool:
        """True if two operands have the same element type."""
        a, b = self.formal(one), self.formal(other)
        return a is None or b is None or bool(a.type_str == b.type_str)

    def parameter(self, index: int) -> bool:
        """True if the operand says what the operator does: its elements are then constants."""
        formal = self.formal(index)
        if index == 0 or formal is None:
            return False
        return set(formal.types) <= {"tensor(int64)", "tensor(int32)"} or formal.type_str == "tensor(float)"


_DTYPES = {f"tensor({d.name.lower()})": d for d in DType}
"""How schemas spell element types."""


def _accepts(test: Callable[[Any], bool], value: Any) -> bool:
    try:
        return bool(test(value))
    except (TypeError, ValueError, IndexError):
        return False


def _groups(shapes: Sequence[tuple[int, ...]]) -> int | None:
    """The group that a convolution's weight fits: its input channels over what the weight has."""
    if len(shapes) < 2 or len(shapes[0]) < 2 or len(shapes[1]) < 2 or not shapes[1][1]:
        return None
    return shapes[0][1] // shapes[1][1]


def _shape(r: random.Random, index: int, known: Sequence[tuple[int, ...]], slot: _Slot) -> tuple[int, ...]:
    """A shape for operand `index`, from those of the operands before it."""
    first = known[0] if known else None
    if slot.parameter(index):
        lengths = [len(first or ()), 2 * len(first or ()), 1, 0, *(s[0] for s in known[1:] if len(s) == 1)]
        return (r.choice(lengths),)
    if slot.family is Family.CONVOLUTION and first is not None:
        if len(first) != 4:
            raise _CannotDraw("an image has four axes")
        if index == 1:
            return (r.choice((2, 4)), r.choice((first[1], 1)), r.randint(1, 3), r.randint(1, 3))
        return (known[1][0],) if len(known) > 1 and known[1] else (1,)
    if slot.family is Family.MATMUL and first:
        width = first[-1]
        if index == 1:
            return r.choice(((width, 3), (width, 1), (width, width)))
        return r.choice(((1,), (known[1][-1],))) if len(known) > 1 and known[1] else (1,)
    if slot.family is Family.NORMALIZATION and first:
        per_channel = slot.op_type in ("BatchNormalization", "InstanceNormalization", "GroupNormalization")
        return (first[min(1, len(first) - 1)] if per_channel else first[-1],)
    if first is None:
        shapes = [s for s in SHAPES if slot.rank is None or len(s) == slot.rank]
        if slot.family in (Family.MATMUL, Family.NORMALIZATION):
            shapes = [s for s in shapes if len(s) >= 2] or shapes
        return r.choice(shapes)
    # The same, or one that repeats along some axes or lacks leading ones.
    kept = tuple(d if r.random() < 0.7 else 1 for d in first)
    return r.choice((first, kept, first[r.randint(0, len(first)) :], ()))


__all__ = ["Instance", "instances"]
