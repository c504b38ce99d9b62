"""cluster-weights: weights as indices into a table of few numbers, for small files of float models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memoptc.ir import ops
from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.diagnostics import InputError
from memoptc.ir.tensors import nbytes
from memoptc.ir.types import DType, TensorType
from memoptc.pass_base import Context, Pass
from memoptc.passes.precision._migrate.sites import WEIGHTED, shape_of
from memoptc.passes.precision._quantize.codebook import codebook, nearest
from memoptc.passes.precision._quantize.correct import output_axis
from memoptc.passes.precision._quantize.matrix import Floats, as_weight_of, energy, rows_of
from memoptc.passes.precision._quantize.operand_moments import in_groups, moments_of, why_not
from memoptc.passes.shrink._shrink.accuracy_search import Gate, Level, Levels
from memoptc.runtime.accuracy import AccuracyTarget
from memoptc.runtime.blas import one_thread
from memoptc.runtime.moments import Moments

PACKED_SINCE = 21
"""Opset from which Cast reads indices of 4 bits."""

MINIMUM_IR_VERSION = 10
"""IR version from which ONNX has tensors of 4 bits."""

SINCE = 6
"""Opset from which the types that a Cast goes to are numbers."""


class ClusterWeights(Pass):
    """Write weights as `Gather(table, Cast(indices))`, as far as the outputs on data allow.

    The table of each weight is its own, found by k-means in which a weight counts as much as what it meets. With
    `bits=4`, weights for which 16 numbers are too few get 256; before opset 21, which is the first with indices of 4
    bits, all of them do. Needs calibration data.

    What it is good for is the file. onnxruntime folds Cast and Gather while it loads: from then on the model computes
    as fast as before, with all weights in float32, and while loading it holds the indices as int32 beside them (for a
    weight of 33.6 MB: a file of 4.2 or 8.4 MB, a load peak of 115 or 124 MB instead of 74 MB, equal time and memory
    afterwards). Where memory counts, `quantize-weights` is better. Let it be the last pass that touches weights:
    `fold-constants` would undo it.

    Args:
        bits: 4 or 8: tables of 16 or 256 numbers.
        min_sqnr: Least signal to difference of every output, in decibels; `none` for any.
        max_loss: Largest accepted loss of the metric (top-1 accuracy of labelled data, or the user's own).
        smallest: Bytes below which a weight stays as it is.
        exclude: Names of constants to leave alone.
    """

    bits: int = 4
    min_sqnr: float | None = 20.0
    max_loss: float | None = None
    smallest: int = 8192
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise InputError(f"cluster-weights has no bits={self.bits!r}.", hint="There are: 4, 8.")

    @property
    def accuracy_target(self) -> AccuracyTarget:
        """The limits that the search keeps to."""
        return AccuracyTarget(self.min_sqnr, self.max_loss)

    def run(self, graph: Graph, context: Context) -> None:
        """Cluster weights of the top graph."""
        gate = Gate(self.name, graph, context, self.min_sqnr, self.max_loss)
        if (ops.opset_of(graph) or 0) < SINCE:
            context.stats[f"left: opset below {SINCE}"] += 1
            return
        packs = (ops.opset_of(graph) or 0) >= PACKED_SINCE
        sizes = (8, 4) if packs and self.bits == 4 else (8,)
        values = list(self._weights(graph))
        readers = [_readers(value, graph) for value in values]
        books: list[list[_Book]] = []
        with one_thread():
            for group in in_groups(readers):
                seen = moments_of(graph, [op for i in group for op in readers[i]], context)
                for i in group:
                    books.append([_book(values[i], bits, packs, readers[i], seen) for bits in sizes])
        curves = [[Level(book.noise, book.saved) for book in tried] for tried in books]

        def make(levels: Levels) -> Graph:
            copy = graph.clone()
            found = list(self._weights(copy))
            for site, level in levels.items():
                self._replace(copy, found[site], books[site][level])
            return copy

        chosen = gate.search(graph, curves, make)
        context.stats["clustered"] += len(chosen)
        context.stats["trials"] = gate.trials.count
        if not chosen:
            context.stats["left: outputs need all weights as they are"] += 1
            return
        saved = int(sum(curves[i][level].saved for i, level in chosen.items()))
        few = sum(len(books[i][level].table) <= 2**self.bits for i, level in chosen.items())
        what = f"{len(chosen)} of {len(books)} weights as indices, {few} of them into at most {2**self.bits} numbers"
        gate.decide(graph, f"{what}; onnxruntime decodes them while it loads", saved, context)

    def _weights(self, graph: Graph) -> Iterator[Value]:
        for op in graph.ops:
            tensor = op.result.tensor if op.is_const else None
            if tensor is None or tensor.dtype != DType.FLOAT or op.result.name in self.exclude:
                continue
            if nbytes(tensor) >= self.smallest and op.result.has_uses and not op.result.is_output:
                if np.isfinite(tensor.numpy()).all():
                    yield op.result

    def _replace(self, graph: Graph, value: Value, book: _Book) -> None:
        first = next((op for op in graph.ops if not op.is_const and op.op_type != "absent"), None)
        builder = Builder(graph, before=first)
        if book.indices.dtype != np.uint8:
            graph.info.ir_version = max(graph.info.ir_version, MINIMUM_IR_VERSION)
        indices = builder.const(book.indices, f"{value.name}_indices")
        table = builder.const(book.table, f"{value.name}_table")
        wide = builder.op(
            "Cast", [indices], {"to": int(DType.INT32)}, domain="", type=TensorType(DType.INT32, value.shape)
        ).result
        real = builder.op("Gather", [table, wide], {"axis": 0}, domain="", type=value.type).result
        for made in (wide, real):
            assert made.op is not None
            made.op.loc = made.op.loc.union(rule=self.name)
        value.replace_by(real)
        if value.op is not None:
            value.op.erase()


@dataclass(frozen=True)
class _Book:
    """A weight coded by a table of some size.

    Args:
        table: Its numbers, in order.
        indices: uint8, or 4 bits wide.
        noise: Noise to signal of what reads them on data kept aside, or of the weights where that is not known.
        saved: Bytes that go.
    """

    table: npt.NDArray[np.float32]
    indices: npt.NDArray[np.generic]
    noise: float
    saved: float


def _readers(value: Value, graph: Graph) -> list[Op]:
    """All that reads a weight, where all of it can be observed; else nothing."""
    found = []
    for op, index in value.uses:
        if index != 1 or op.key not in WEIGHTED or op.operand.tensor is not None or why_not(op, graph):
            return []
        if op.op_type != "Conv" and len(shape_of(value) or ()) != 2:
            return []
        found.append(op)
    return found


def _book(value: Value, bits: int, packs: bool, readers: Sequence[Op], seen: Mapping[Op, Moments]) -> _Book:
    tensor = value.tensor
    assert tensor is not None
    weights = np.asarray(tensor.numpy(), np.float32)
    known = [op for op in readers if op in seen and np.isfinite(seen[op].fit).all()]
    importance = np.zeros(weights.shape)
    for op in known:
        rows = rows_of(op)
        importance += as_weight_of(op, np.broadcast_to(np.maximum(np.diag(seen[op].fit), 0.0), rows.shape))
    heard = len(known) == len(readers) > 0 and bool(importance.any()) and bool(np.isfinite(importance).all())
    table = codebook(weights, 2**bits, importance if heard else None)
    indices = nearest(weights, table)
    coded = table[indices]
    if heard:
        noise = sum(_noise(op, weights - coded, seen[op].check) for op in known)
    else:
        signal = float(np.square(weights, dtype=np.float64).sum())
        noise = float(np.square(weights - coded, dtype=np.float64).sum()) / (signal or 1.0)
    half = packs and len(table) <= 16
    stored = weights.size / 2 if half else weights.size
    saved = 4.0 * weights.size - stored - table.nbytes
    return _Book(table, indices.astype(DType.UINT4.numpy()) if half else indices, noise, saved)


def _noise(op: Op, difference: npt.NDArray[np.float32], moments: Floats) -> float:
    """Noise to signal in an op's result."""
    rows = rows_of(op)
    first = np.moveaxis(difference.astype(np.float64), output_axis(op), 0)
    return energy(first.reshape(rows.shape), moments) / (energy(rows, moments) or 1.0)
