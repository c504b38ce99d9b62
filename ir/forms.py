"""Forms in which one program can be written: plain, or inside a branch that is always taken.

With default session options onnxruntime packs all activations of a run into one block, its memory pattern, which from
the second run on it allocates beside what the arena took for the first. It does so only where everything that a graph
reads is a tensor. A branch of an `If` that also reads an empty sequence keeps to the arena.

Before a run it also gives the buffer of a value that is no longer needed to a later one of the same shape, and so keeps
it through all that lies between: of two equal tiles far apart, or of the values on both sides of a resize. Where the
extents of a branch's inputs, and those that large tensors are reshaped to, follow from the length of that sequence, it
knows no shapes, and frees buffers instead.

The graph in memory is always the plain one: `wrap` is applied while writing, `unwrap` while reading.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from memoptc.ir import ops
from memoptc.ir.core import Graph, Op, Tensor, Value, clone_op
from memoptc.ir.facts import UNSTATED
from memoptc.ir.form_names import FormName
from memoptc.ir.ops.parameters import Setting
from memoptc.ir.tensors import from_array, nbytes
from memoptc.ir.types import DType, SequenceType, TensorType, Type

KEY = "memoptc.form"
"""Entry of a model's metadata that names the form of the file; absent where it is plain."""

MARKER = "memoptc_no_pattern"
"""Name of the node that makes the empty sequence."""

HIDDEN = "memoptc_hidden_extents"
"""How the names of nodes begin whose results are extents that onnxruntime cannot tell before the run."""

SEQUENCES = 11
"""Opset from which there are sequences."""

CAPTURED_FROM = 1 << 16
"""Bytes from which a weight may stay outside the branch."""

HIDDEN_FROM = 1 << 16
"""Bytes from which a tensor's extents are hidden where it is reshaped to constants."""

_BYTE = 8
_COUNT = TensorType(DType.INT64, ())
_SCAFFOLD = ("SequenceEmpty", "SequenceLength", "Equal", "const")


@dataclass(frozen=True)
class WritingForm:
    """Way in which a graph is written to a file.

    Args:
        name: `plain`; `branch`, the whole model inside a branch that is always taken; `captured`, the same with the
            weights of products and lookups outside of it, so that onnxruntime holds no second copy of them;
            `shapeless`, such a branch whose inputs come through a Reshape to computed extents, as large tensors do
            that are reshaped to constants.
        external: Weights lie in a file of their own beside the model, which onnxruntime maps; where they lay in the
            original, or do not fit into one protobuf message, when `None`.
        packed: They are in that file in the kernels' own layout, too (`memoptc.runtime.pack_ahead` adds it).
    """

    name: FormName = "plain"
    external: bool | None = None
    packed: bool = False


def reshaped_to_constants(graph: Graph) -> Iterator[tuple[Op, int]]:
    """Ops outside of branches and loops that bring large tensors to constant extents, with the operand for these."""
    for op in graph.ops:
        index = next((i for i, p in ops.facts(op).parameters.items() if isinstance(p, Setting) and p.as_result), None)
        if index is None or all(v.op is not None and v.op.is_const for v in op.operands):
            continue
        tensor, dtype = op.operands[index].tensor, op.result.dtype
        extents = [0] if tensor is None else tensor.numpy().ravel().tolist()
        if dtype is not None and min(extents, default=0) > 0:
            if math.prod(extents) * dtype.bitwidth // _BYTE >= HIDDEN_FROM:
                yield op, index


def obstacle(graph: Graph) -> str:
    """Say why a graph can be written plain only; `""` when nothing is in the way."""
    if (ops.opset_of(graph) or 0) < SEQUENCES:
        return f"opset below {SEQUENCES}"
    if any(v.tensor_type is None for v in graph.inputs):
        return "there is no pattern, since not all inputs are tensors"
    if graph.defaults:
        return "callers may replace weights"
    if any(v.shape is None for v in graph.outputs):
        return "outputs of unknown rank"
    if any(v.op is None or v.op.is_const for v in graph.outputs) or len(set(graph.outputs)) != len(graph.outputs):
        return "outputs that are not computed"
    return ""


def captured_weights(graph: Graph) -> list[Op]:
    """Weights that the form `captured` leaves outside of the branch."""
    return [op for op in graph.ops if op.is_const and _can_stay_outside(op)]


def _can_stay_outside(weight: Op) -> bool:
    if weight.attrs["value"].dtype == DType.STRING or nbytes(weight.attrs["value"]) < CAPTURED_FROM:
        return False
    for user in weight.result.users:
        index = ops.facts(user).captured
        if index is None or user.graph is not weight.graph or user.operands[index] is not weight.result:
            return False
    return True


def wrap(graph: Graph, *, captured: bool = False, shapeless: bool = False) -> Graph:
    """Give a copy that runs inside a branch that is always taken; its `obstacle` must be `""`.

    Args:
        graph: Stays as it is.
        captured: Leave `captured_weights` outside of the branch.
        shapeless: Hide extents from the branch, and state no types inside of it but ranks.
    """
    outer = Graph(graph.name, graph.model)
    outer.doc, outer.metadata = graph.doc, dict(graph.metadata)
    mapping: dict[Value, Value] = {}
    for value in graph.inputs:
        mapping[value] = copy = outer.add_input(value.name, value.type)
        copy.doc, copy.metadata = value.doc, dict(value.metadata)
    outside = set(captured_weights(graph)) if captured else set()
    for op in graph.ops:
        if op in outside:
            outer.append(clone_op(op, mapping))
    empty = _add(outer, "SequenceEmpty", [], SequenceType(TensorType(DType.FLOAT, None)), MARKER)
    zero = outer.const(from_array(np.asarray(0, np.int64)), "zero")
    length = _add(outer, "SequenceLength", [empty], _COUNT)
    taken = _add(outer, "Equal", [length, zero], TensorType(DType.BOOL, ()))
    then = Graph("model")
    if shapeless:
        then.metadata[UNSTATED] = "types"
        for index, value in enumerate(graph.inputs):
            mapping[value] = _of_hidden_extents(then, mapping[value], length, f"{HIDDEN}_{index}")
    for op in graph.ops:
        if op not in outside:
            then.append(clone_op(op, mapping))
    if shapeless:
        for number, (op, index) in enumerate(list(reshaped_to_constants(then))):
            target = op.operands[index]
            made = then.insert_before(op, Op("Add", [target, length], [target.type], name=f"{HIDDEN}_of_{number}"))
            op.set_operand(index, made.result)
    then.set_outputs([mapping[v] for v in graph.outputs])
    _show(then, empty)
    outputs = list(then.outputs)
    _also_give_length(then, outputs, empty)
    never = Graph("never")
    _also_give_length(never, [never.const(_nothing(v), f"no_{v.name}") for v in outputs], empty)
    made = Op("If", [taken], [*(v.type for v in outputs), _COUNT])
    made.set_region("then_branch", then)
    made.set_region("else_branch", never)
    outer.append(made)
    outer.set_outputs(made.results[:-1], list(graph.outputs_info))
    return outer


def unwrap(graph: Graph) -> bool:
    """Undo `wrap`, in place; say whether there was anything to undo."""
    made = graph.outputs[0].op if graph.outputs else None
    if made is None or not is_guard(made) or tuple(graph.outputs) != made.results[:-1]:
        return False
    equal = made.operand.op
    assert equal is not None
    length = equal.operands[0].op
    assert length is not None
    empty = length.operand
    region = made.take_region("then_branch")
    names = [v.name for v in made.results[:-1]]
    _hide(region, empty)
    _show_extents(region, length.result)
    counted = region.outputs[-1].op
    inline(made, region, tuple(region.outputs))
    for value, name in zip(graph.outputs, names, strict=True):
        value.name = name
    for op in (counted, equal, length, empty.op, *(v.op for v in equal.operands)):
        if op is not None and op.graph is not None and op.is_a(*_SCAFFOLD) and not any(r.has_uses for r in op.results):
            op.erase()
    return True


def is_guard(op: Op) -> bool:
    """True if an op is the `If` that `wrap` makes: its condition compares the length of an empty sequence with 0."""
    if not op.is_a("If"):
        return False
    equal = op.operand.op
    if equal is None or not equal.is_a("Equal"):
        return False
    length, zero = equal.operands
    counts = length.op
    if counts is None or not counts.is_a("SequenceLength") or zero.tensor is None or np.any(zero.tensor.numpy()):
        return False
    return counts.operand.op is not None and counts.operand.op.is_a("SequenceEmpty")


def inline(op: Op, region: Graph, outputs: tuple[Value, ...]) -> None:
    """Put a region's ops where its owner stands, and its outputs in place of the owner's results."""
    region.terminator.set_operands(())
    for inner in list(region.ops):
        inner.move_before(op)
    for result, value in zip(op.results, outputs, strict=True):
        if value.type is None:
            value.type = result.type
        result.replace_by(value)
    op.erase()


def _of_hidden_extents(graph: Graph, value: Value, zero: Value, name: str) -> Value:
    """Reshape a tensor to extents that onnxruntime knows in a run only; itself where it has none, or elements
    of less than a byte, for which onnxruntime has no Shape.

    The rank is stated: from it and from weights follow numbers of channels, without which onnxruntime would copy what
    it pools out of its layout in blocks of channels, and back.
    """
    type_ = value.tensor_type
    if type_ is None or not value.rank or (type_.dtype != DType.STRING and type_.dtype.bitwidth < _BYTE):
        return value
    extents = TensorType(DType.INT64, (value.rank,))
    target = _add(graph, "Add", [_add(graph, "Shape", [value], extents), zero], extents, name)
    hidden = _add(graph, "Reshape", [value, target], type_)
    hidden.metadata[UNSTATED] = "extents"
    return hidden


def _show_extents(graph: Graph, zero: Value) -> None:
    """Undo `_of_hidden_extents`, and give back the constants that large tensors are reshaped to."""
    for user in list(zero.users):
        if user.graph is not graph or not user.name.startswith(HIDDEN):
            continue
        if user.operands[0].tensor is not None:
            user.result.replace_by(user.operands[0])
            user.erase()
            continue
        for made in list(user.result.users):
            made.result.replace_by(made.operands[0])
            made.erase()
        shape = user.operands[0].op
        user.erase()
        if shape is not None:
            shape.erase()


def _show(graph: Graph, empty: Value) -> None:
    """Let the branches inside read the sequence, too: their frames make patterns of their own."""
    for op in list(graph.ops):
        for region in op.regions.values():
            _show(region, empty)
        if op.is_a("If"):

            def outputs(region: Graph) -> None:
                _also_give_length(region, list(region.outputs), empty)

            _replace_if(op, [*op.results, None], outputs)


def _hide(graph: Graph, empty: Value) -> None:
    """Undo `_show`."""
    for op in list(graph.ops):
        for region in op.regions.values():
            _hide(region, empty)
        counts = list(_lengths(op, empty))
        if op.is_a("If") and len(counts) == len(op.regions) and not op.results[-1].has_uses:

            def outputs(region: Graph) -> None:
                region.set_outputs(region.outputs[:-1], list(region.outputs_info)[:-1])

            _replace_if(op, list(op.results[:-1]), outputs)
            for count in counts:
                count.erase()


def _lengths(op: Op, empty: Value) -> Iterator[Op]:
    for region in op.regions.values():
        last = region.outputs[-1].op if region.outputs else None
        if last is not None and last.is_a("SequenceLength") and last.operand is empty:
            yield last


def _replace_if(op: Op, results: list[Value | None], outputs: Callable[[Graph], None]) -> None:
    """Replace an If by one with other results (`None`: a length); `outputs` sets those of its branches."""
    more = Op(
        op.op_type,
        op.operands,
        [_COUNT if r is None else r.type for r in results],
        dict(op.attrs),
        result_names=["" if r is None else r.name for r in results],
        name=op.name,
        loc=op.loc,
    )
    more.doc, more.metadata = op.doc, dict(op.metadata)
    for name in list(op.regions):
        region = op.take_region(name)
        outputs(region)
        more.set_region(name, region)
    assert op.graph is not None
    op.graph.insert_before(op, more)
    for old, new in zip(results, more.results, strict=True):
        if old is not None:
            new.omitted, new.doc, new.metadata = old.omitted, old.doc, dict(old.metadata)
            name = old.name
            old.replace_by(new)
            new.name = name
    op.erase()


def _also_give_length(graph: Graph, outputs: list[Value], empty: Value) -> None:
    """Set the outputs, and one more that needs the sequence."""
    graph.set_outputs([*outputs, _add(graph, "SequenceLength", [empty], _COUNT)])


def _add(graph: Graph, op_type: str, operands: list[Value], type_: Type, name: str = "") -> Value:
    return graph.append(Op(op_type, operands, [type_], name=name)).result


def _nothing(value: Value) -> Tensor:
    assert value.dtype is not None
    assert value.rank is not None
    return from_array(np.zeros([0] * value.rank, value.dtype.numpy()), dtype=value.dtype)
