"""Types and symbolic shapes: onnx-shape-inference over a mirror of the graph, merged with what is stated.

Inference starts from inputs and weights alone, so that a wrong `value_info` cannot mislead it. Where it
finds a dimension, that counts; where it finds none, what the model states does. It never fails: what stays
unknown stays unknown and is listed.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import onnx_ir
import onnx_shape_inference
from onnx_shape_inference import SYM_DATA_KEY, ShapeInferenceContext, registry

from memoptc.ir import ops
from memoptc.ir.control_flow import install, unstable_state
from memoptc.ir.convert import OnnxIrMirror
from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.dim_text import parse_dim
from memoptc.ir.dims import Dim, Sym, free_symbols, substitute
from memoptc.ir.types import (
    DType,
    OptionalType,
    SequenceType,
    SparseTensorType,
    TensorType,
    Type,
    is_shapeless,
)

LOOP_ROUNDS = 8
"""Runs of inference, each with weaker assumptions about what loops carry, before nothing is assumed of them."""

PIECES = "memoptc.tile"
"""Metadata of ops that compute a piece, or all pieces, of what other ops computed. Their extents follow from how the
whole was cut, which inference cannot see: where it finds none, what the model states of them holds."""

_ANONYMOUS = re.compile(r"_d\d+")


@dataclass
class Inference:
    """Results of shape inference.

    Args:
        unknown: Names of values whose type or rank is not known.
        conflicts: One line per value whose stated type contradicts the inferred one, which was taken.
        elements: Integer vectors whose elements are known at compile time, as dimensions; `None` elements
            are unknown.
        failure: Why inference stopped early, if it did.
    """

    unknown: list[str] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    elements: dict[Value, tuple[Dim, ...]] = field(default_factory=dict)
    failure: str = ""


def infer_shapes(graph: Graph, *, elements: bool = True) -> Inference:
    """Infer the types of all values, in regions too, and set them.

    Args:
        graph: The top graph; inputs and declared outputs keep their stated types.
        elements: Whether the elements of values that hold extents are asked for, too.
    """
    found = Inference()
    install()
    loops = list(graph.walk("Loop"))
    assumed: dict[Value, onnx_ir.Shape] = {}
    for number in itertools.count():
        twin = OnnxIrMirror(graph)
        _prepare(graph, twin, assumed)
        found.failure = _run(twin)
        unstable = _unstable(loops, twin, assumed)
        if not unstable or found.failure:
            break
        # Where states still change, one after the other, no extent of any of that loop is assumed; this ends.
        assumed |= unstable if number < LOOP_ROUNDS else _open_states(unstable, twin)
    names = _stable_names(graph, twin)
    for value in _defined(graph):
        mirror = twin.of.get(value)
        if mirror is None:
            continue
        inferred = _type_of(mirror, names)
        merged = _merge(value, inferred, found)
        if merged is not None and merged != value.type:
            value.type = merged
        if elements and (known := _elements(mirror, names)) is not None:
            found.elements[value] = known
    if found.failure:
        _one_by_one(graph)
    found.unknown = [v.name for v in _defined(graph) if not v.omitted and is_shapeless(v.type)]
    return found


def inferred(graph: Graph) -> tuple[Graph, Inference]:
    """Give a copy with inferred types, and what inference found; one per version of the graph, to be read only."""
    return graph.analysis(_inferred)


def _inferred(graph: Graph) -> tuple[Graph, Inference]:
    copy = graph.clone()
    return copy, infer_shapes(copy)


def _one_by_one(graph: Graph) -> None:
    """The engine gave up at some op; the others are inferred each by itself."""
    for op in graph.walk():
        if any(is_shapeless(r.type) for r in op.results):
            for result, type_ in zip(op.results, infer_op(op), strict=True):
                if type_ is not None and is_shapeless(result.type):
                    result.type = type_


def _prepare(graph: Graph, twin: OnnxIrMirror, assumed: Mapping[Value, onnx_ir.Shape]) -> None:
    """Types that inference cannot find by itself: of unknown operators, and of loops' state."""
    for op in graph.walk():
        if not ops.facts(op).known or op.domain == "ai.onnx.ml":
            _seed(op, twin)
        if op.op_type == "Loop" and not op.domain:
            # What a body states of its own inputs may hold in the first iteration only.
            for value in op.regions["body"].inputs[2:]:
                twin.value(value).shape = assumed.get(value)


def _run(twin: OnnxIrMirror) -> str:
    with _quiet():
        try:
            onnx_shape_inference.infer_symbolic_shapes(twin.model, warn_on_missing=False, adopt_declared_symbols=False)
        except Exception as e:
            return f"{type(e).__name__}: {e}"
    return ""


def _unstable(
    loops: list[Op], twin: OnnxIrMirror, assumed: Mapping[Value, onnx_ir.Shape]
) -> dict[Value, onnx_ir.Shape]:
    """Loop state whose assumed shape does not hold in each iteration, with a weaker one."""
    found: dict[Value, onnx_ir.Shape] = {}
    for op in loops:
        node = twin.of[op.results[0]].producer() if op.results else None
        if node is None:
            continue
        for index, shape in unstable_state(node).items():
            value = op.regions["body"].inputs[index]
            weaker = any(not isinstance(d, int) and d.value is None for d in shape.dims)
            if weaker and (value not in assumed or _unknown(shape) > _unknown(assumed[value])):
                found[value] = shape
    return found


def _open_states(unstable: Iterable[Value], twin: OnnxIrMirror) -> dict[Value, onnx_ir.Shape]:
    """Shapes of unknown extents for all state of the loops that some values are state of."""
    shapes = {state: twin.of[state].shape for value in unstable for state in value.graph.inputs[2:]}
    return {state: onnx_ir.Shape([None] * len(shape)) for state, shape in shapes.items() if shape is not None}


def _unknown(shape: onnx_ir.Shape) -> int:
    return sum(not isinstance(d, int) and d.value is None for d in shape.dims)


def infer_op(op: Op) -> tuple[Type | None, ...]:
    """Infer the result types of one op from its operands; `None` for what cannot be inferred."""
    unknown: tuple[Type | None, ...] = (None,) * len(op.results)
    if op.graph is None or op.graph.root.model is None:
        return unknown
    install()
    version = ops.opset_of(op.graph, op.domain)
    function = registry.get(op.domain, op.op_type, version=version or 1)
    if function is None or op.regions:
        return unknown
    mirrors: dict[Value, onnx_ir.Value] = {}
    twin = object.__new__(OnnxIrMirror)
    twin.of = mirrors
    for value in op.operands:
        if not value.is_absent:
            twin.value(value, typed=True)
    try:
        with _quiet():
            node = twin.node(op)
            function(ShapeInferenceContext(dict(op.graph.info.opset_imports)), node)
    except Exception:
        return unknown
    return tuple(_type_of(mirrors[r], {}) for r in op.results)


def _seed(op: Op, twin: OnnxIrMirror) -> None:
    """Results of operators that inference does not know keep the types that the model states."""
    from memoptc.ir.convert import onnx_ir_shape, onnx_ir_type

    for result in op.results:
        mirror = twin.of.get(result)
        if mirror is not None and result.type is not None and result.tensor is None:
            mirror.type, mirror.shape = onnx_ir_type(result.type), onnx_ir_shape(result.type)


def _defined(graph: Graph) -> Iterator[Value]:
    """Every value that inference may set: results, and inputs of regions."""
    for op in graph.ops:
        if not op.is_const and op.op_type not in ("absent", "sparse_const"):
            for region in op.regions.values():
                yield from region.inputs
                yield from _defined(region)
            yield from op.results


def _stable_names(graph: Graph, twin: OnnxIrMirror) -> dict[str, Dim]:
    """Name each anonymous dimension after the first value that has it as an extent.

    The engine numbers them anew in each run, so that its own names would make different dimensions of two
    runs look equal.
    """
    names: dict[str, Dim] = {}
    bases = {value: re.sub(r"\W", "_", value.name) for value in _defined(graph)}
    count = Counter(bases.values())
    taken = {name for value in graph.inputs for dim in value.shape or () if isinstance(dim, Sym) for name in dim.free}
    for value in _defined(graph):
        mirror = twin.of.get(value)
        if mirror is None or mirror.shape is None:
            continue
        for axis, dim in enumerate(mirror.shape):
            text = None if isinstance(dim, int) else dim.value
            if text is not None and _ANONYMOUS.fullmatch(text) and text not in names:
                stated = _stated(value, axis)
                if stated is not None:
                    names[text] = stated
                    continue
                base = bases[value]
                name = f"{base if base[:1].isalpha() else 'v' + base}_d{axis}"
                if count[base] > 1 or name in taken:
                    # Not a number that counts: the name has to be the same in a graph where the other value is gone.
                    name = f"v_{value.name.encode().hex()}_d{axis}"
                names[text] = Sym(name)
    return names


def _stated(value: Value, axis: int) -> Dim:
    """Extents that the model states of a tile, or of what runs in a branch that computes tiles."""
    op = value.op
    while op is not None and PIECES not in op.metadata:
        op = op.graph.parent if op.graph is not None else None
    if op is None:
        return None
    shape = value.shape
    return shape[axis] if shape is not None and axis < len(shape) else None


def _read(text: str | int | None, names: dict[str, Dim]) -> Dim:
    if text is None or isinstance(text, int):
        return text if text is None or text >= 0 else None
    if _ANONYMOUS.fullmatch(text):  # nearly all, where the elements of long vectors are followed
        dim = names.get(text)
        return None if isinstance(dim, int) and dim < 0 else dim
    try:
        dim = parse_dim(text)
    except ValueError:
        return None
    anonymous = [s for s in free_symbols(dim) if _ANONYMOUS.fullmatch(s)]
    if any(names.get(s) is None for s in anonymous):
        return None
    known = {s: d for s in anonymous if (d := names[s]) is not None}
    dim = substitute(dim, known) if known else dim
    return None if isinstance(dim, int) and dim < 0 else dim


def _type_of(mirror: onnx_ir.Value, names: dict[str, Dim]) -> Type | None:
    shape = None
    if mirror.shape is not None:
        shape = tuple(_read(d if isinstance(d, int) else d.value, names) for d in mirror.shape)
    return _combine(mirror.type, shape)


def _combine(type_: onnx_ir.TypeProtocol | None, shape: tuple[Dim, ...] | None) -> Type | None:
    match type_:
        case onnx_ir.TensorType() | onnx_ir.SparseTensorType() if type_.dtype is None:
            return None  # of what a local function gives, say
        case onnx_ir.TensorType():
            return TensorType(DType(type_.dtype), shape)
        case onnx_ir.SparseTensorType():
            return SparseTensorType(DType(type_.dtype), shape)
        case onnx_ir.SequenceType():
            elem = _combine(type_.elem_type, shape)
            return None if elem is None else SequenceType(elem)
        case onnx_ir.OptionalType():
            elem = _combine(type_.elem_type, shape)
            return None if elem is None else OptionalType(elem)
        case _:
            return None


def _merge(value: Value, inferred: Type | None, found: Inference) -> Type | None:
    stated = value.type
    if inferred is None or stated is None:
        return inferred if stated is None else stated
    if not isinstance(inferred, TensorType) or not isinstance(stated, TensorType):
        return inferred if type(inferred) is type(stated) and _depth(inferred) else stated
    dtype = inferred.dtype if inferred.dtype != DType.UNDEFINED else stated.dtype
    if inferred.shape is None:
        return TensorType(dtype, stated.shape, stated.denotation, stated.axis_denotations)
    shape = inferred.shape
    if stated.shape is not None and len(stated.shape) != len(shape):
        found.conflicts.append(f"{value.name}: stated rank {len(stated.shape)}, inferred {len(shape)}")
    elif stated.shape is not None:
        for a, b in zip(shape, stated.shape, strict=True):
            if isinstance(a, int) and isinstance(b, int) and a != b:
                found.conflicts.append(f"{value.name}: stated {stated.shape}, inferred {shape}")
                break
        shape = tuple(b if a is None else a for a, b in zip(shape, stated.shape, strict=True))
    return TensorType(dtype, shape, stated.denotation, stated.axis_denotations)


def _depth(type_: Type) -> bool:
    return not isinstance(type_, SequenceType | OptionalType) or type_.elem is not None


def _elements(mirror: onnx_ir.Value, names: dict[str, Dim]) -> tuple[Dim, ...] | None:
    text = mirror.metadata_props.get(SYM_DATA_KEY) if mirror._metadata_props else None
    if text is None:
        return None
    try:
        items = json.loads(text)
    except ValueError:
        return None
    if not isinstance(items, list):
        return None
    return tuple(i if isinstance(i, int) else _read(i, names) for i in items)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The engine logs what it cannot infer; our report lists that."""
    loggers = [logging.getLogger(n) for n in ("onnx_shape_inference", "onnx_ir")]
    levels = [log.level for log in loggers]
    for log in loggers:
        log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for log, level in zip(loggers, levels, strict=True):
            log.setLevel(level)
