"""Our own arena interpreter: a plan proven by running in it, node by node, with freed bytes poisoned.

Every activation exists only as bytes of one block at its planned offset. Each node runs alone in onnxruntime; what it
gives is written to its place, and what it reads must still be, byte for byte, what was written there. It is slow, and
made for tests: a plan under which a run gives the right bits here is a plan that holds.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from memoptc.ir.core import Graph, ModelInfo, Op, Value, clone_op
from memoptc.ir.diagnostics import InputError, InternalError
from memoptc.ir.onnx_io import to_proto
from memoptc.ir.types import DType, TensorType, Type
from memoptc.runtime.evaluate import Evaluator
from memoptc.runtime.memory.allocate import allocate
from memoptc.runtime.memory.extents import bind_shapes
from memoptc.runtime.memory.liveness import Liveness, label, liveness
from memoptc.runtime.memory.plan import Plan
from memoptc.runtime.memory.problem import Buffer, Problem
from memoptc.runtime.memory.workspace import no_workspace
from memoptc.runtime.options import Feed, RunOptions

GUARD = 64
"""Bytes behind each buffer that nobody may touch."""

_POISON = 0xA5


class ArenaFault(InternalError):
    """A plan does not hold: the message names the node and the value."""


@dataclass
class ArenaReport:
    """Memory of one run in the arena.

    Args:
        steps: Nodes that were run.
        arena_bytes: Size of the block, guard zones included.
        floor_bytes: Most bytes alive at once, without guard zones.
        outside: Values that lay outside, since their size is not known or they are no tensors of whole bytes.
    """

    steps: int
    arena_bytes: int
    floor_bytes: int
    outside: list[str] = field(default_factory=list)


def run_in_arena(graph: Graph, feed: Feed, *, plan: Plan | None = None) -> tuple[dict[str, Any], ArenaReport]:
    """Run a graph in its planned arena.

    Args:
        graph: A top graph, shapes inferred.
        feed: A value per input; those with a default may be left out.
        plan: Offsets for the buffers of `arena_problem(graph, feed)`; made here when not given.

    Returns:
        Output name -> value, bit for bit what onnxruntime gives with its optimizer off; and the report.

    Raises:
        ArenaFault: a value was overwritten while it was needed, used after it was freed, or larger than planned.
        InputError: onnxruntime cannot run a node, or an input is missing.
    """
    found, problem = arena_problem(graph, feed)
    plan = plan or allocate(problem)
    if len(plan.offsets) != len(found.storages):
        raise InputError("The plan is for another graph or other sizes.", hint="Plan `arena_problem(graph, feed)`.")
    return _Run(graph, feed, found, plan).run()


def arena_problem(graph: Graph, feed: Feed) -> tuple[Liveness, Problem]:
    """Give what a run keeps alive, and its buffers with a guard zone behind each."""
    found = liveness(graph, bind_shapes(graph, feed), workspace=no_workspace, fused=False)
    buffers = [
        Buffer(f"{i}:{s.name}", s.size + GUARD, s.first, s.last, found.alignment) for i, s in enumerate(found.storages)
    ]
    return found, Problem(tuple(buffers))


class _Run:
    def __init__(self, graph: Graph, feed: Feed, found: Liveness, plan: Plan) -> None:
        self.graph, self.found, self.plan = graph, found, plan
        self.block = np.full(max(plan.arena_bytes, 1), _POISON, np.uint8)
        self.home: dict[Value, int] = {}
        for index, storage in enumerate(found.storages):
            for value in storage.values:
                self.home.setdefault(value, index)
        self.born: dict[int, list[int]] = {}
        for index, storage in enumerate(found.storages):
            self.born.setdefault(storage.first, []).append(index)
        self.living: list[int] = []
        self.shapes: dict[Value, tuple[int, ...]] = {}
        self.sums: dict[int, int] = {}
        self.outside: dict[Value, Any] = {}
        self.owners: dict[int, set[Value]] = {}
        for value in graph.inputs:
            if value.name in feed:
                self.outside[value] = feed[value.name]
            elif value in graph.defaults:
                self.outside[value] = graph.defaults[value].numpy()
            else:
                raise InputError(f"There is no value for the input {value.name!r}.")

    def run(self) -> tuple[dict[str, Any], ArenaReport]:
        inputs = set(self.outside)
        for op in self.graph.walk("Constant"):
            if not op.domain and op.graph is self.graph:
                self.outside |= _Single(op, {}).run({})
        inputs |= set(self.outside)
        for step, op in enumerate(self.found.steps):
            if op.graph is not None and op is op.graph.terminator:
                continue
            self._execute(op)
            self._free(step, op)
        outputs = {}
        for value, info in zip(self.graph.outputs, self.graph.outputs_info, strict=True):
            found = self._read(value, "the end")
            outputs[info.name or value.name] = found.copy() if isinstance(found, np.ndarray) else found
        floor = max(self.found.curve, default=0)
        # Views of inputs and weights take no bytes of the arena, and are not worth a word.
        unknown = set(self.found.unknown)
        names = [v.name for v in self.outside if v not in inputs and (v.name in unknown or not _is_whole(v))]
        return outputs, ArenaReport(len(self.found.steps), self.plan.arena_bytes, floor, names)

    def _execute(self, op: Op) -> None:
        single = _Single(op, self.outside)
        given = {name: self._read(value, label(op)) for name, value in single.inputs.items()}
        results = single.run(given)
        for value in op.results:
            if not value.omitted:
                self._write(value, results[value], op)

    def _read(self, value: Value, reader: str) -> Any:
        if value in self.outside:
            return self.outside[value]
        if value.tensor is not None:
            return value.tensor.numpy()
        index = self.home.get(value)
        if index is None:
            return np.empty(self.shapes[value], _dtype(value))
        if value not in self.owners.get(index, ()):
            raise ArenaFault(f"{reader} uses {value.name!r}, whose bytes were freed or given to another value")
        if zlib.crc32(self._bytes(index).data) != self.sums[index]:
            raise ArenaFault(f"{reader} uses {value.name!r}, which another buffer has overwritten")
        shape, dtype = self.shapes[value], _dtype(value)
        count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        return self._bytes(index)[:count].view(dtype).reshape(shape)

    def _bytes(self, index: int) -> npt.NDArray[np.uint8]:
        start = self.plan.offsets[index]
        return self.block[start : start + self.found.storages[index].size]

    def _write(self, value: Value, result: Any, op: Op) -> None:
        if not isinstance(result, np.ndarray) or not _is_whole(value):
            self.outside[value] = result
            return
        self.shapes[value] = result.shape
        index = self.home.get(value)
        if index is None:
            if result.nbytes:
                self.outside[value] = result
            return
        flat = np.asarray(result, order="C").reshape(-1).view(np.uint8)
        place = self._bytes(index)
        if flat.nbytes > place.nbytes:
            raise ArenaFault(f"{label(op)} gives {flat.nbytes} bytes for {value.name!r}; {place.nbytes} are planned")
        if self.sums.get(index) is not None and np.array_equal(place[: flat.nbytes], flat):
            self.owners[index].add(value)  # a view: the bytes are there
        else:
            place[: flat.nbytes] = flat
            self.owners[index] = {value}
        self.sums[index] = zlib.crc32(place.data)

    def _free(self, step: int, op: Op) -> None:
        self.living += self.born.get(step, ())
        for index in self.living:
            storage = self.found.storages[index]
            start = self.plan.offsets[index] + storage.size
            zone = self.block[start : start + GUARD]
            if self.plan.problem.buffers[index].size > storage.size and not (zone == _POISON).all():
                raise ArenaFault(f"after {label(op)} the guard zone behind {storage.name!r} is overwritten")
            if storage.last == step and step < len(self.found.steps) - 1:
                self._bytes(index)[:] = _POISON
                self.owners.pop(index, None)
                self.sums.pop(index, None)
        self.living = [i for i in self.living if self.found.storages[i].last > step]


def _dtype(value: Value) -> np.dtype[Any]:
    assert value.dtype is not None
    return value.dtype.numpy()


def _is_whole(value: Value) -> bool:
    """True if the value is a tensor of known element type, each element whole bytes."""
    if value.dtype is None or value.dtype in (DType.STRING, DType.UNDEFINED):
        return False
    return value.dtype.bitwidth >= 8


class _Single:
    """One op as a model of its own: constants stay constants, since kernels treat them differently.

    Args:
        op: The op.
        seen: Values of which the graph does not say what they are.
    """

    def __init__(self, op: Op, seen: Mapping[Value, Any]) -> None:
        graph = op.graph
        assert graph is not None
        info = graph.info
        self.op = op
        alone = Graph(
            "node",
            ModelInfo(
                ir_version=info.ir_version, opset_imports=dict(info.opset_imports), functions=dict(info.functions)
            ),
        )
        self.inputs: dict[str, Value] = {}
        mapping: dict[Value, Value] = {}
        used = dict.fromkeys((*op.operands, *(v for r in op.regions.values() for v in r.captures())))
        for value in used:
            if value.is_absent:
                mapping[value] = alone.absent()
            elif value.op is not None and value.op.op_type == "Constant" and not value.op.domain:
                alone.append(clone_op(value.op, mapping))
            elif value.tensor is not None:
                mapping[value] = alone.const(value.tensor, value.name)
            else:
                name = f"in{len(self.inputs)}"
                mapping[value] = alone.add_input(name, _without_shape(value, seen.get(value)))
                self.inputs[name] = value
        copy = clone_op(op, mapping)
        alone.append(copy)
        self.results = [
            (mine, theirs) for mine, theirs in zip(op.results, copy.results, strict=True) if not mine.omitted
        ]
        for _, theirs in self.results:
            theirs.type = _without_shape(theirs)
        alone.set_outputs([theirs for _, theirs in self.results])
        self.proto = to_proto(alone)

    def run(self, given: Mapping[str, Any]) -> dict[Value, Any]:
        """Run the op.

        Raises:
            InputError: onnxruntime cannot.
        """
        evaluator = Evaluator(self.proto, RunOptions(optimize=False), label=label(self.op))
        found = list(evaluator.run(dict(given)).values())
        return {mine: value for (mine, _), value in zip(self.results, found, strict=True)}


def _without_shape(value: Value, seen: Any = None) -> Type | None:
    """Element type of a value, of unknown shape; for a value without a type, that of an array it held in a run."""
    if value.type is None and isinstance(seen, np.ndarray):
        return TensorType(DType.from_numpy(seen.dtype), None)
    return TensorType(value.dtype, None) if value.dtype is not None else value.type
