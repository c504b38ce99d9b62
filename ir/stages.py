"""Cuts of a model into stages: at values of few bytes, the weights of the parts about equal."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from memoptc.ir import protos
from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.diagnostics import InputError
from memoptc.ir.files import TemporaryFolder
from memoptc.ir.infer import infer_shapes
from memoptc.ir.onnx_data import ExternalData
from memoptc.ir.onnx_order import used_names
from memoptc.ir.onnx_read import read_onnx
from memoptc.ir.onnx_write import EXTERNAL_THRESHOLD, proto_with_weights, weight_tensors
from memoptc.ir.ops import is_removable
from memoptc.ir.tensors import nbytes
from memoptc.ir.types import DType, Type

MANIFEST = "stages.json"
"""Names the stages of a folder in order."""

WEIGHTS = "weights.data"

SLACK = 0.5
"""How far from equal shares of the weights a cut may lie, in shares of one stage."""

_UNKNOWN = 64
"""Extent that a symbol without a binding counts as."""

_UNSIZED = 1 << 30
"""Bytes that a tensor of unknown rank counts as."""

_NEVER = 1 << 50
"""Cost of a value that cannot be handed over: no tensor, of unknown type, or of numbers that numpy alone has not."""


@dataclass(frozen=True)
class Cut:
    """Stages that a model was cut into.

    Args:
        stages: Name of the first result that each op gives, by stage.
        weight_bytes: Weights that each stage reads.
        crossing_bytes: What is handed over behind each stage but the last.
    """

    stages: tuple[tuple[str, ...], ...]
    weight_bytes: tuple[int, ...]
    crossing_bytes: tuple[int, ...]


def cut(graph: Graph, count: int, dims: Mapping[str, int]) -> Cut:
    """Cut a graph into stages of about equal weights, each cut the minimum cut over bytes that lies near enough.

    Of the weights left, a stage takes an equal share, or half a share less or more: between these the cut goes where
    fewest bytes cross (maximum flow; networkx). Inputs may be read by every stage.

    Args:
        graph: The top graph, types inferred.
        count: How many stages.
        dims: Extents of symbolic axes.

    Raises:
        InputError: there is nothing to cut between.
    """
    ops = [op for op in graph.ops if not op.is_const and op.op_type != "absent"]
    weights = [sum(nbytes(w.attrs["value"]) for w in _weights(op)) for op in ops]
    parts: list[list[Op]] = []
    left = list(range(len(ops)))
    crossing = []
    for stages_left in range(count, 1, -1):
        share, done, before, after = sum(weights[i] for i in left) / stages_left or 1, 0.0, set(), set()
        for i in left:
            least, done = done, done + weights[i] / share
            before |= {i} if least < 1 - SLACK else set()
            after |= {i} if done > 1 + SLACK and i not in before else set()
        after |= set(left[-1:]) if not after else set()
        if len(left) < 2 or before & after:
            break
        taken, price = _minimum_cut(ops, left, before, after, dims)
        if price >= _NEVER:
            break
        parts.append([ops[i] for i in left if i in taken])
        crossing.append(price)
        left = [i for i in left if i not in taken]
    parts.append([ops[i] for i in left])
    if len(parts) < 2:
        raise InputError("The model has nothing to cut between.", hint="It runs as one file.")
    stage_weights = [{w for op in part for w in _weights(op)} for part in parts]
    return Cut(
        tuple(tuple(next((r.name for r in op.results if not r.omitted), "") for op in part) for part in parts),
        tuple(sum(nbytes(w.attrs["value"]) for w in each) for each in stage_weights),
        tuple(crossing),
    )


def _minimum_cut(
    ops: Sequence[Op], left: Sequence[int], before: set[int], after: set[int], dims: Mapping[str, int]
) -> tuple[set[int], int]:
    """The ops before a cut, and the bytes that cross it."""
    import networkx as nx  # a sixth of a second, for those who ask for it

    flow: Any = nx.DiGraph()
    at = {ops[i]: i for i in left}
    for i in left:
        if i in before:
            flow.add_edge("start", i)
        if i in after:
            flow.add_edge(i, "end")
        for value in _computed(ops[i]):
            producer = at.get(value.op) if value.op is not None else None
            if producer is None or producer == i:
                continue
            # One price for all users: from the producer to the value, and on from there without limit. Back without
            # limit as well, since nothing may be read before it is made.
            flow.add_edge(producer, value, capacity=_bytes(value, dims))
            flow.add_edge(value, i)
            flow.add_edge(i, producer)
    price, (near, _) = nx.minimum_cut(flow, "start", "end")
    return {i for i in left if i in near}, int(price)


def _used(op: Op) -> Iterator[Value]:
    yield from op.operands
    for region in op.regions.values():
        yield from region.captures()


def _computed(op: Op) -> Iterator[Value]:
    return (v for v in _used(op) if v.op is not None and not v.op.is_const and v.op.op_type != "absent")


def _weights(op: Op) -> Iterator[Op]:
    for value in dict.fromkeys(_used(op)):
        if value.op is not None and value.op.is_const:
            yield value.op
    for region in op.regions.values():
        yield from (inner for inner in region.walk("const"))


def _bytes(value: Value, dims: Mapping[str, int]) -> int:
    """Bytes of a value at some extents."""
    type_ = value.tensor_type
    if type_ is None or type_.dtype == DType.UNDEFINED or np.dtype(type_.dtype.numpy()).isbuiltin != 1:
        return _NEVER
    size = type_.nbytes
    if size is None:
        return _UNSIZED
    return size if isinstance(size, int) else max(0, size.evaluate({n: dims.get(n, _UNKNOWN) for n in size.free}))


def split(path: Path, folder: Path, count: int, dims: Mapping[str, int]) -> Cut:
    """Write a model as stages in a folder: `stage0.onnx`, ..., one file of weights, and `stages.json`.

    Every stage is a model of its own, for any onnxruntime: its inputs are those inputs of the model and outputs of
    earlier stages that it reads, by name. The folder appears when everything is in it.

    Args:
        path: The model.
        folder: What to make.
        count: How many stages.
        dims: Extents of symbolic axes, to count bytes at.

    Raises:
        InputError: the model cannot be read or cut, or the folder is there already.
    """
    if folder.exists():
        raise InputError(f"{folder} is there already.", hint="Name a folder to make, or remove it.")
    graph = read_onnx(path)
    _drop_unused(graph)
    infer_shapes(graph)
    found = cut(graph, count, dims)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryFolder("memoptc-stages-", folder.parent) as scratch:
        inner = Path(scratch) / folder.name
        inner.mkdir()
        data = ExternalData(inner / WEIGHTS, weight_tensors(graph))
        try:
            proto = proto_with_weights(graph, data, EXTERNAL_THRESHOLD)
        finally:
            data.close()
        stages = _stages(graph, proto, found)
        for number, stage in enumerate(stages):
            (inner / f"stage{number}.onnx").write_bytes(stage.SerializeToString(deterministic=True))
        manifest = {
            "stages": [f"stage{number}.onnx" for number in range(len(stages))],
            "inputs": [value.name for value in proto.graph.input],
            "outputs": [output.name for output in proto.graph.output],
        }
        (inner / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
        os.rename(inner, folder)
    return found


def _drop_unused(graph: Graph) -> None:
    """Drop what no output needs: onnxruntime loads no stage without outputs."""
    for op in reversed(list(graph.ops)):
        if not op.is_const and is_removable(op) and not any(r.has_uses for r in op.results):
            op.erase()


def _stages(graph: Graph, proto: onnx.ModelProto, found: Cut) -> list[onnx.ModelProto]:
    """The model's nodes, each in the proto of its stage."""
    stage_of = {name: number for number, names in enumerate(found.stages) for name in names}
    maker: dict[str, int] = {}
    nodes: list[list[onnx.NodeProto]] = [[] for _ in found.stages]
    for node in proto.graph.node:
        names = [name for name in node.output if name]
        # An Identity that the writer adds for an output goes where its operand is made.
        number = stage_of.get(names[0], max((maker.get(name, 0) for name in node.input), default=0))
        nodes[number].append(node)
        maker |= dict.fromkeys(names, number)
    inputs = {value.name: value for value in proto.graph.input}
    outputs = {value.name: value for value in proto.graph.output}
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    sparse = {tensor.values.name: tensor for tensor in proto.graph.sparse_initializer}
    types = {r.name: r.type for op in graph.ops for r in op.results}
    reads = [set().union(*map(used_names, each)) if each else set() for each in nodes]

    def provide(stage: onnx.ModelProto, name: str) -> None:
        """Give a stage a weight or an input of the model."""
        if name in weights:
            stage.graph.initializer.append(weights[name])
        elif name in sparse:
            stage.graph.sparse_initializer.append(sparse[name])
        if name in inputs:
            stage.graph.input.append(inputs[name])

    found_stages = []
    for number, each in enumerate(nodes):
        stage = onnx.ModelProto()
        stage.CopyFrom(_without_graph(proto))
        stage.graph.name = f"{proto.graph.name}_{number}"
        stage.graph.node.extend(each)
        made = [name for node in each for name in node.output if name]
        for name in sorted(reads[number] - set(made)):
            provide(stage, name)
            if name not in inputs and name in maker:
                stage.graph.input.append(_port(name, types[name]))
        later = set().union(*reads[number + 1 :])
        for name in made:
            if name in outputs:
                stage.graph.output.append(outputs[name])
            elif name in later:
                stage.graph.output.append(_port(name, types[name]))
        for output in proto.graph.output:  # one that is an input or a weight
            if number == 0 and output.name not in maker:
                stage.graph.output.append(output)
                if output.name not in reads[0]:
                    provide(stage, output.name)
        found_stages.append(stage)
    return found_stages


def _without_graph(proto: onnx.ModelProto) -> onnx.ModelProto:
    bare = onnx.ModelProto(ir_version=proto.ir_version, producer_name=proto.producer_name)
    bare.opset_import.extend(proto.opset_import)
    bare.functions.extend(proto.functions)
    return bare


def _port(name: str, type_: Type | None) -> onnx.ValueInfoProto:
    """An input or output of a stage; symbolic extents as they are called in the model, where that is a plain name."""
    port = onnx.ValueInfoProto(name=name)
    assert type_ is not None
    protos.write_type(type_, port.type)
    for dim in port.type.tensor_type.shape.dim:
        if dim.dim_param and not dim.dim_param.isidentifier():
            dim.ClearField("dim_param")
    return port
