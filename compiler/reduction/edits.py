"""Edits of a model's protobuf, each of which makes it smaller; none checks that what comes out runs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import AttributeProto, helper, numpy_helper


@dataclass
class KnownTypes:
    """Types of a model's values, as far as they are known.

    Args:
        infos: Types by name.
        constants: Small integers that a run gave, by name.
    """

    infos: Mapping[str, onnx.ValueInfoProto] = field(default_factory=dict)
    constants: Mapping[str, onnx.TensorProto] = field(default_factory=dict)


def copy_of(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give a copy."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Give the graphs among a node's attributes."""
    for attr in node.attribute:
        if attr.type == AttributeProto.GRAPH:
            yield attr.g
        yield from attr.graphs


def graphs_of(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """Give all graphs, outer ones first."""
    waiting = [model.graph]
    while waiting:
        graph = waiting.pop()
        yield graph
        waiting.extend(g for node in graph.node for g in subgraphs(node))


def used_by(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """Names that nodes use from their own graph or further out."""
    found: set[str] = set()
    for node in nodes:
        found.update(name for name in node.input if name)
        for graph in subgraphs(node):
            inner = {i.name for i in graph.input} | {t.name for t in graph.initializer}
            inner |= {o for n in graph.node for o in n.output}
            found |= (used_by(graph.node) | {o.name for o in graph.output}) - inner
    return found


def clean(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """Drop, in place, what no output needs; `None` when there is no output left."""
    graph = model.graph
    if not graph.output:
        return None
    needed = {o.name for o in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed |= used_by([node])
    if len(kept) < len(graph.node):
        replace_all(graph.node, kept[::-1])
    replace_all(graph.initializer, [t for t in graph.initializer if t.name in needed])
    replace_all(graph.sparse_initializer, [t for t in graph.sparse_initializer if t.values.name in needed])
    replace_all(graph.input, [i for i in graph.input if i.name in needed])
    called: set[tuple[str, str]] = set()
    waiting = [node for g in graphs_of(model) for node in g.node]
    while waiting:
        node = waiting.pop()
        for function in model.functions:
            key = (function.domain, function.name)
            if key == (node.domain, node.op_type) and key not in called:
                called.add(key)
                waiting.extend(function.node)
    replace_all(model.functions, [f for f in model.functions if (f.domain, f.name) in called])
    return model


def replace_all(field_: object, items: Sequence[object]) -> None:
    """Put other items into a repeated field."""
    if len(items) < len(field_):  # type: ignore[arg-type]
        kept = [type(item).FromString(item.SerializeToString()) for item in items]  # type: ignore[attr-defined]
        del field_[:]  # type: ignore[attr-defined]
        field_.extend(kept)  # type: ignore[attr-defined]


def keep_nodes(model: onnx.ModelProto, kept: Collection[int], types: KnownTypes) -> onnx.ModelProto | None:
    """Keep some nodes of the main graph. What they used of others become inputs, what others used of them, outputs.

    Returns:
        The smaller model; `None` where a type that an input needs is not known, or nothing would be left.
    """
    copy = copy_of(model)
    graph = copy.graph
    gone = [node for i, node in enumerate(graph.node) if i not in kept]
    left = [node for i, node in enumerate(graph.node) if i in kept]
    made = {o for node in left for o in node.output if o}
    used = used_by(left)
    lost = (used_by(gone) & made) - used
    known = {i.name for i in graph.input} | {t.name for t in graph.initializer}
    known |= {t.values.name for t in graph.sparse_initializer}
    outputs = [o for o in graph.output if o.name in made]
    given = {o.name for o in outputs}
    outputs += [types.infos.get(n) or helper.make_empty_tensor_value_info(n) for n in sorted(lost - given)]
    replacements = sorted(used & {o for node in gone for o in node.output})
    replace_all(graph.node, left)
    set_outputs(graph, outputs)
    return clean(copy) if all(_supply(graph, n, types) for n in replacements if n not in known) else None


def set_outputs(graph: onnx.GraphProto, outputs: Iterable[onnx.ValueInfoProto]) -> None:
    """Declare other outputs."""
    kept = [onnx.ValueInfoProto.FromString(o.SerializeToString()) for o in outputs]
    del graph.output[:]
    graph.output.extend(kept)


def _supply(graph: onnx.GraphProto, name: str, types: KnownTypes) -> bool:
    """Give a value that nothing makes any more: as a constant where it is a small one, else as an input."""
    if name in types.constants:
        graph.initializer.append(types.constants[name])
        return True
    info = types.infos.get(name)
    if info is None:
        return False
    graph.input.append(info)
    return True


def bypass(model: onnx.ModelProto, index: int, operand: int, types: KnownTypes) -> onnx.ModelProto | None:
    """Give a node's operand to all that use its first result, where both have one type."""
    node = model.graph.node[index]
    source, result = node.input[operand], node.output[0]
    one, two = types.infos.get(source), types.infos.get(result)
    if one is None or two is None or not _one_type(one, two) or len([o for o in node.output if o]) > 1:
        return None
    copy = copy_of(model)
    graph = copy.graph
    made = {o for n in graph.node for o in n.output}
    outputs = [o.name for o in graph.output]
    if result in outputs:
        if source not in made:
            return None
        kept = [o for o in graph.output if o.name != result]
        set_outputs(graph, kept if source in outputs else [*kept, one])
    del graph.node[index]
    rename_uses(graph, {result: source})
    return clean(copy)


def _one_type(a: onnx.ValueInfoProto, b: onnx.ValueInfoProto) -> bool:
    return bool(a.type.SerializeToString(deterministic=True) == b.type.SerializeToString(deterministic=True))


def rename_uses(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Let nodes, and those of subgraphs, use other values."""
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = names.get(name, name)
        for inner in subgraphs(node):
            rename_uses(inner, names)
            for output in inner.output:
                output.name = names.get(output.name, output.name)


def inline_branch(model: onnx.ModelProto, index: int, branch: str) -> onnx.ModelProto | None:
    """Put a branch of an If in its place."""
    copy = copy_of(model)
    graph = copy.graph
    node = graph.node[index]
    inner = next(a.g for a in node.attribute if a.name == branch)
    names = {o.name: given for o, given in zip(inner.output, node.output, strict=False) if given}
    body = list(inner.node)
    for n in body:
        for i, name in enumerate(n.output):
            n.output[i] = names.get(name, name)
    made = {o for n in body for o in n.output}
    rename_uses(inner, names)
    passed = [
        helper.make_node("Identity", [o], [given]) for o, given in ((o, g) for o, g in names.items() if g not in made)
    ]
    graph.initializer.extend(inner.initializer)
    new = [*graph.node[:index], *body, *passed, *graph.node[index + 1 :]]
    new = [onnx.NodeProto.FromString(n.SerializeToString()) for n in new]
    del graph.node[:]
    graph.node.extend(new)
    return clean(copy)


def keep_body_nodes(
    model: onnx.ModelProto, which: int, kept: Collection[int], types: KnownTypes
) -> onnx.ModelProto | None:
    """Keep some nodes of a subgraph, by its number in `graphs_of`; what they used of others comes from outside."""
    copy = copy_of(model)
    graph = list(graphs_of(copy))[which]
    gone = {o for i, node in enumerate(graph.node) if i not in kept for o in node.output if o}
    if gone & {o.name for o in graph.output}:
        return None
    left = [node for i, node in enumerate(graph.node) if i in kept]
    missing = sorted(gone & used_by(left))
    replace_all(graph.node, left)
    return clean(copy) if all(_supply(copy.graph, name, types) for name in missing) else None


def set_extent(model: onnx.ModelProto, extent: int, other: int) -> onnx.ModelProto:
    """Write a smaller extent wherever an extent stands: inputs, weights, lists of integers, attributes."""
    copy = copy_of(model)

    def new(n: int) -> int:
        return other if n == extent else n

    for graph in graphs_of(copy):
        for info in (*graph.input, *graph.output, *graph.value_info):
            for dim in info.type.tensor_type.shape.dim:
                if dim.HasField("dim_value"):
                    dim.dim_value = new(dim.dim_value)
        for tensor in graph.initializer:
            _shrink_tensor(tensor, extent, other)
        for node in graph.node:
            for attr in node.attribute:
                if attr.type == AttributeProto.INT:
                    attr.i = new(attr.i)
                elif attr.type == AttributeProto.INTS:
                    for i, n in enumerate(attr.ints):
                        attr.ints[i] = new(n)
                elif attr.type == AttributeProto.TENSOR:
                    _shrink_tensor(attr.t, extent, other)
    return copy


def _shrink_tensor(tensor: onnx.TensorProto, extent: int, other: int) -> None:
    if extent not in tensor.dims and tensor.data_type not in (onnx.TensorProto.INT64, onnx.TensorProto.INT32):
        return
    array = numpy_helper.to_array(tensor)
    smaller = array[tuple(slice(other if n == extent else n) for n in array.shape)]
    if smaller.ndim <= 1 and smaller.dtype.kind == "i" and max(extent, other) <= np.iinfo(smaller.dtype).max:
        smaller = np.where(smaller == extent, np.asarray(other, smaller.dtype), smaller)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(smaller).reshape(smaller.shape), tensor.name))


def flatten_weight(model: onnx.ModelProto, index: int) -> onnx.ModelProto:
    """Make all numbers of a float weight 1."""
    copy = copy_of(model)
    tensor = copy.graph.initializer[index]
    array = np.ones(tuple(tensor.dims), helper.tensor_dtype_to_np_dtype(tensor.data_type))
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return copy


def drop_attribute(model: onnx.ModelProto, index: int, attribute: int) -> onnx.ModelProto:
    """Leave an attribute of a node of the main graph to its default."""
    copy = copy_of(model)
    del copy.graph.node[index].attribute[attribute]
    return copy


def drop_notes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop what says nothing about what is computed: names of nodes, documentation, inferred types, metadata."""
    copy = copy_of(model)
    for name in ("producer_name", "producer_version", "domain", "doc_string", "metadata_props", "model_version"):
        copy.ClearField(name)
    for graph in graphs_of(copy):
        for name in ("doc_string", "value_info", "metadata_props", "quantization_annotation"):
            graph.ClearField(name)
        for node in graph.node:
            for name in ("doc_string", "name", "metadata_props"):
                node.ClearField(name)
    return copy
