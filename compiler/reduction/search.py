"""Greedy search for a smaller model that still fails: chunks of nodes first, then ever finer parts."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from memoptc.ir.diagnostics import InputError
from memoptc.ir.files import TemporaryFolder, atomic_write, refuse_overwriting
from memoptc.reduction import edits
from memoptc.reduction.check import Check, CompileCheck, Trials
from memoptc.reduction.edits import KnownTypes

Size = tuple[int, int, int, int]
Progress = Callable[[str], None]
LARGEST = (1 << 31) - 1


@dataclass(frozen=True)
class Reduction:
    """A reduced model.

    Args:
        model: The smallest one that still fails.
        failure: How the whole one fails.
        nodes: Nodes before and after, those of subgraphs included.
        trials: Models tried.
        complete: Whether nothing more could be removed; `False` when time ended the search.
    """

    model: onnx.ModelProto
    failure: str
    nodes: tuple[int, int]
    trials: int
    complete: bool

    def to_json(self) -> dict[str, Any]:
        """Give what a report says of it; the model is a file."""
        return {name: value for name, value in vars(self).items() if name != "model"}


def reduce_file(
    source: Path, output: Path, check: Check, *, seconds: float = float("inf"), progress: Progress = lambda text: None
) -> Reduction:
    """Reduce a file into another; `output` appears whole or not at all, as ONNX or, for a name in `.mir`, as text.

    Args:
        source: The model; weights beside it are read.
        output: Where the smallest model goes.
        check: What counts as the failure.
        seconds: When to stop looking for a smaller one.
        progress: Told what is left, now and then.

    Raises:
        InputError: the model cannot be read, does not show the failure, or is larger than a protobuf.
    """
    refuse_overwriting(output, [source])
    try:
        model = onnx.load(source)
    except Exception as error:  # whatever protobuf and onnx raise
        raise InputError(f"{source} cannot be read: {error}.", hint="memoptc reduces .onnx files.") from None
    if model.ByteSize() > LARGEST:
        raise InputError("The model has more than 2 GB of weights.", hint="Cut it in parts first.")
    found = reduce_model(model, check, seconds=seconds, progress=progress)
    if output.suffix == ".mir":
        from memoptc.ir.mir import write_mir
        from memoptc.ir.onnx_io import read_onnx

        write_mir(read_onnx(found.model), output)
    else:
        atomic_write(output, found.model.SerializeToString(deterministic=True))
    return found


def reduce_model(
    model: onnx.ModelProto,
    check: Check,
    *,
    seconds: float = float("inf"),
    progress: Progress = lambda text: None,
) -> Reduction:
    """Give the smallest model found that still fails.

    Every step makes (nodes, elements, different numbers, bytes) smaller in this order, so the search ends.

    Args:
        model: The failing model, weights inside; it stays untouched.
        check: What counts as the failure.
        seconds: When to stop looking for a smaller one.
        progress: Told what is left, now and then.

    Raises:
        InputError: the model does not show the failure.
    """
    with TemporaryFolder() as folder:
        search = _Search(model, check, Path(folder), time.monotonic() + seconds, progress)
        try:
            return search.run()
        finally:
            search.trials.close()


class _OutOfTime(Exception):
    pass


class _Search:
    def __init__(self, model: onnx.ModelProto, check: Check, folder: Path, end: float, progress: Progress) -> None:
        self.best, self.check, self.end, self.progress = model, check, end, progress
        self.path = folder / "model.onnx"
        self.folder = folder
        self.count = 0
        self.size = size_of(model)
        self.types = KnownTypes()
        self.tried: set[bytes] = set()
        self.trials = check.trials if isinstance(check, CompileCheck) else Trials(folder)

    def run(self) -> Reduction:
        before = self.size[0]
        failure = self._first()
        complete = True
        try:
            self._try(edits.drop_notes(self.best))
            while True:
                size = self.size
                self._learn_types()
                self._nodes()
                self._outputs()
                self._bodies()
                self._bypasses()
                self._extents()
                self._weights()
                self._attributes()
                if self.size == size:
                    break
        except _OutOfTime:
            complete = False
        return Reduction(self.best, failure, (before, self.size[0]), self.count, complete)

    def _first(self) -> str:
        self.path.write_bytes(self.best.SerializeToString())
        failure = self.check.first(self.path)
        self.count += 1
        if not failure:
            raise InputError(
                "The model does not show the failure with these options, so there is nothing to reduce.",
                hint="Give the level, target, passes and extents (--dim) with which it failed.",
            )
        self.progress(f"{self.size[0]} node{'s' * (self.size[0] != 1)}: {failure}")
        return failure

    def _try(self, candidate: onnx.ModelProto | None) -> bool:
        """Take a smaller model that still fails."""
        if candidate is None or (size := size_of(candidate)) >= self.size:
            return False
        data = candidate.SerializeToString(deterministic=True)
        if data in self.tried:
            return False
        if len(data) < _REMEMBERED:
            self.tried.add(data)
        if time.monotonic() > self.end:
            raise _OutOfTime
        self.path.write_bytes(data)
        self.count += 1
        if not self.check.fails(self.path):
            return False
        self.best, self.size = candidate, size
        self.progress(f"{size[0]} node{'s' * (size[0] != 1)}, {len(data):,} bytes after {self.count} trials")
        return True

    def _learn_types(self) -> None:
        """Types of all values of what is left, learned in a process of its own."""
        self.path.write_bytes(self.best.SerializeToString())
        answer = self.folder / "types.pb"
        answer.unlink(missing_ok=True)
        self.trials.ask({"model": str(self.path), "types": str(answer)})
        infos, constants = dict(self.types.infos), dict(self.types.constants)
        if answer.exists():
            graph = onnx.GraphProto.FromString(answer.read_bytes())
            infos |= {i.name: i for i in graph.value_info}
            constants |= {t.name: t for t in graph.initializer}
        infos |= {i.name: i for i in (*self.best.graph.input, *self.best.graph.output) if i.HasField("type")}
        self.types = KnownTypes(infos, constants)

    def _chunks(self, count: Callable[[], int], keep: Callable[[Collection[int]], onnx.ModelProto | None]) -> None:
        """Remove halves, quarters, ... and at last single ones."""
        chunk = max(count() // 2, 1)
        while True:
            start = 0
            while start < (total := count()):
                kept = [i for i in range(total) if not start <= i < start + chunk]
                if not kept or not self._try(keep(set(kept))):
                    start += chunk
            if chunk == 1:
                return
            chunk = max(chunk // 2, 1)

    def _nodes(self) -> None:
        self._chunks(lambda: len(self.best.graph.node), lambda kept: edits.keep_nodes(self.best, kept, self.types))

    def _outputs(self) -> None:
        def keep(kept: Collection[int]) -> onnx.ModelProto | None:
            copy = edits.copy_of(self.best)
            edits.set_outputs(copy.graph, [o for i, o in enumerate(self.best.graph.output) if i in kept])
            return edits.clean(copy)

        self._chunks(lambda: len(self.best.graph.output), keep)

    def _bodies(self) -> None:
        """Branches in place of an If; then nodes of bodies."""
        if self.best.functions:
            self._try(_inlined(self.best))
        index = 0
        while index < len(self.best.graph.node):
            node = self.best.graph.node[index]
            branches = ("then_branch", "else_branch") if node.op_type == "If" else ()
            if not any(self._try(edits.inline_branch(self.best, index, b)) for b in branches):
                index += 1
        which = 1
        while which < sum(1 for _ in edits.graphs_of(self.best)):
            self._chunks(lambda n=which: len(_graph(self.best, n).node), lambda kept, n=which: self._body(n, kept))  # type: ignore[misc]
            which += 1

    def _body(self, which: int, kept: Collection[int]) -> onnx.ModelProto | None:
        return edits.keep_body_nodes(self.best, which, kept, self.types)

    def _bypasses(self) -> None:
        index = 0
        while index < len(self.best.graph.node):
            operands = range(len(self.best.graph.node[index].input))
            if not any(self._try(edits.bypass(self.best, index, i, self.types)) for i in operands):
                index += 1

    def _extents(self) -> None:
        for extent in sorted(_extents_of(self.best), reverse=True):
            for other in dict.fromkeys((1, 2, 3, extent // 4, extent // 2)):
                if 0 < other < extent and self._try(edits.set_extent(self.best, extent, other)):
                    break

    def _weights(self) -> None:
        for index, tensor in enumerate(self.best.graph.initializer):
            if tensor.data_type in _FLOATS:
                self._try(edits.flatten_weight(self.best, index))

    def _attributes(self) -> None:
        for index in range(len(self.best.graph.node)):
            for attribute in reversed(range(len(self.best.graph.node[index].attribute))):
                self._try(edits.drop_attribute(self.best, index, attribute))


_REMEMBERED = 1 << 20
"""Bytes of models up to which they are not tried twice."""

_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)


def size_of(model: onnx.ModelProto) -> Size:
    """Give nodes, elements of weights and inputs, different numbers in weights, and bytes."""
    nodes = elements = different = 0
    for graph in edits.graphs_of(model):
        nodes += len(graph.node)
        for info in graph.input:
            elements += sum(d.dim_value for d in info.type.tensor_type.shape.dim)
        for tensor in graph.initializer:
            elements += int(np.prod(tensor.dims, dtype=np.int64))
            different += _different(tensor)
    nodes += sum(len(f.node) for f in model.functions)
    return nodes, elements, different, model.ByteSize()


def _different(tensor: onnx.TensorProto) -> int:
    if tensor.data_type not in _FLOATS or np.prod(tensor.dims) > _COUNTED:
        return int(np.prod(tensor.dims, dtype=np.int64))
    return len(np.unique(numpy_helper.to_array(tensor)))


_COUNTED = 1 << 16
"""Elements of a weight up to which it is looked at: larger ones are made smaller first."""


def _graph(model: onnx.ModelProto, which: int) -> onnx.GraphProto:
    return list(edits.graphs_of(model))[which]


def _extents_of(model: onnx.ModelProto) -> set[int]:
    found = {d.dim_value for i in model.graph.input for d in i.type.tensor_type.shape.dim}
    found |= {d for t in model.graph.initializer for d in t.dims}
    return {n for n in found if n > 1}


def _inlined(model: onnx.ModelProto) -> onnx.ModelProto | None:
    import onnx.inliner

    try:
        return edits.clean(onnx.inliner.inline_local_functions(edits.copy_of(model)))
    except Exception:  # whatever its C++ throws
        return None
