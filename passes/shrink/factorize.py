"""factorize: large products and convolutions as two thin ones, where data shows that a low rank is enough."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.tensors import nbytes
from memoptc.ir.types import DType, TensorType
from memoptc.pass_base import Context, Pass
from memoptc.passes.precision._migrate.sites import WEIGHTED
from memoptc.passes.precision._quantize.matrix import Floats, energy, rows_of
from memoptc.passes.precision._quantize.operand_moments import in_groups, moments_of, why_not
from memoptc.passes.shrink._shrink.accuracy_search import Gate, Level, Levels
from memoptc.runtime.accuracy import AccuracyTarget
from memoptc.runtime.blas import one_thread
from memoptc.runtime.moments import Moments

PARTS = 8
"""Ranks that are tried: so many parts of the one at which nothing is saved."""

WHOLE = 8
"""Ranks are multiples of this, for the kernels' sake."""

_LISTED = 8


class Factorize(Pass):
    """Write `x W` as `(x A) B` with few columns in between, as far as the outputs on data allow.

    A and B are the best of their rank for the products that the data leads to, not for W itself: B spans the
    principal axes of the results' second moments W^T (X^T X) W, and A projects W on them (Eckart and Young, 1936; with
    data as Hsu et al., "Language model compression with weighted low-rank factorization", 2022, and Chen et al.,
    "DRONE", 2021). Convolutions become one with few channels and one of 1 x 1. Bytes and multiplications fall by the
    same part. Which layers, and to which rank, follows from the noise on data kept aside, per byte that goes. Needs
    calibration data.

    Args:
        min_sqnr: Least signal to difference of every output, in decibels; `none` for any.
        max_loss: Largest accepted loss of the metric (top-1 accuracy of labelled data, or the user's own).
        smallest: Bytes below which a weight stays as it is.
        exclude: Node names or operators to leave alone.
    """

    min_sqnr: float | None = 20.0
    max_loss: float | None = None
    smallest: int = 16384
    exclude: tuple[str, ...] = ()

    @property
    def accuracy_target(self) -> AccuracyTarget:
        """The limits that the search keeps to."""
        return AccuracyTarget(self.min_sqnr, self.max_loss)

    def run(self, graph: Graph, context: Context) -> None:
        """Factorize weights of the top graph."""
        gate = Gate(self.name, graph, context, self.min_sqnr, self.max_loss)
        found = list(self._sites(graph))
        axes: dict[int, _Axes] = {}
        with one_thread():
            for group in in_groups([[op] for op in found]):
                seen = moments_of(graph, [found[i] for i in group], context)
                axes |= {i: _axes(found[i], seen[found[i]]) for i in group if found[i] in seen}
        curves = [axes[i].levels if i in axes else [] for i in range(len(found))]

        def make(levels: Levels) -> Graph:
            copy = graph.clone()
            sites = list(self._sites(copy))
            for site, level in levels.items():
                self._split(sites[site], axes[site], axes[site].ranks[level])
            return copy

        chosen = gate.search(graph, curves, make)
        context.stats["factorized"] += len(chosen)
        context.stats["trials"] = gate.trials.count
        if not chosen:
            context.stats["left: no rank is low enough"] += 1
            return
        saved = int(sum(curves[i][level].saved for i, level in chosen.items()))
        listed = [f"{axes[i].name}: {axes[i].ranks[level]} of {axes[i].full}" for i, level in chosen.items()]
        ranks = ", ".join(listed[:_LISTED]) + (", ..." if len(listed) > _LISTED else "")
        gate.decide(graph, f"{len(chosen)} of {len(found)} weights as two factors (ranks {ranks})", saved, context)

    def _sites(self, graph: Graph) -> Iterator[Op]:
        for op in graph.ops:
            weight = op.input(1) if op.key in WEIGHTED else None
            if weight is None or weight.tensor is None or op.operand.tensor is not None:
                continue
            if op.name in self.exclude or op.key in self.exclude or not weight.single_use:
                continue
            shape = weight.tensor.shape.numpy()
            known = weight.tensor.dtype == DType.FLOAT and (op.op_type == "Conv" or len(shape) == 2)
            if known and nbytes(weight.tensor) >= self.smallest and not why_not(op, graph):
                yield op

    def _split(self, op: Op, axes: _Axes, rank: int) -> None:
        """Replace an op by two."""
        assert op.graph is not None
        builder = Builder(op.graph, before=op, loc=op.loc.union(rule=self.name))
        weight, name = op.operands[1], op.operands[1].name
        into, out = axes.into[:, :rank], axes.out[:, :rank]
        type_ = _thin(op, rank)
        if op.op_type == "Conv":
            assert weight.tensor is not None
            kernel = weight.tensor.shape.numpy()[1:]
            first = builder.const(np.ascontiguousarray(into.T.reshape(rank, *kernel)), f"{name}_in")
            second = builder.const(out.reshape(*out.shape, *(1,) * (len(kernel) - 1)).copy(), f"{name}_out")
            thin = builder.op("Conv", [op.operand, first], dict(op.attrs), type=type_).result
            operands: list[Value | None] = [thin, second, op.input(2)]
            made = builder.op("Conv", operands, type=op.result.type)
        else:
            first = builder.const(np.ascontiguousarray(into), f"{name}_in")
            second = builder.const(np.ascontiguousarray(out.T), f"{name}_out")
            thin = builder.op("MatMul", [op.operand, first], type=type_).result
            attrs = {k: v for k, v in op.attrs.items() if k != "transB"}
            made = builder.op(op.op_type, [thin, second, op.input(2)], attrs, type=op.result.type)
        made.name = op.name
        op.replace_by(made.result)


@dataclass(frozen=True)
class _Axes:
    """A weight in the basis of the principal axes of its results.

    Args:
        name: Of the op.
        into: The first factor for every axis, float32 `[columns, axes]`, the axis of most energy first.
        out: The axes, float32 `[results, axes]`.
        full: Rank of the weight as it is.
        ranks: Ranks that save bytes.
        levels: What each of them costs and saves.
    """

    name: str
    into: npt.NDArray[np.float32]
    out: npt.NDArray[np.float32]
    full: int
    ranks: list[int]
    levels: list[Level]


def _axes(op: Op, moments: Moments) -> _Axes:
    """Find principal axes, and what is lost without the last of them."""
    rows = rows_of(op)
    results, columns = rows.shape
    most = results * columns / (results + columns)
    ranks = sorted({max(int(most * part / PARTS / WHOLE), 1) * WHOLE for part in range(1, PARTS)})
    ranks = [rank for rank in ranks if rank * (results + columns) < results * columns]
    usable = np.isfinite(moments.fit).all() and np.isfinite(moments.check).all() and np.trace(moments.check) > 0
    if not usable or not ranks:
        return _Axes(op.name, np.zeros((0, 0), np.float32), np.zeros((0, 0), np.float32), min(rows.shape), [], [])
    out = principal_axes(rows, moments.fit)[:, : ranks[-1]]
    into = rows.T @ out
    whole, levels = energy(rows, moments.check), []
    for rank in ranks:
        lost = energy(rows - out[:, :rank] @ into[:, :rank].T, moments.check)
        levels.append(Level(lost / whole if whole else 0.0, 4.0 * (rows.size - rank * (results + columns))))
    return _Axes(op.name, into.astype(np.float32), out.astype(np.float32), min(rows.shape), ranks, levels)


def principal_axes(rows: Floats, moments: Floats) -> Floats:
    """Give orthonormal axes of the results, those of most energy first, `[results, min(results, columns)]`.

    Args:
        rows: Weights, `[results, columns]`.
        moments: X^T X of what the columns meet.
    """
    results, columns = rows.shape
    if results <= columns:
        return np.asarray(np.linalg.eigh(rows @ moments @ rows.T)[1][:, ::-1], np.float64)
    # the smaller matrix of the two: rows S, with S S the moments
    values, vectors = np.linalg.eigh(moments)
    wide = rows @ (vectors * np.sqrt(np.maximum(values, 0.0)) @ vectors.T)
    # QR makes axes without any energy orthonormal, too
    turned = wide @ np.linalg.eigh(wide.T @ wide)[1][:, ::-1]
    return np.asarray(np.linalg.qr(turned)[0], np.float64)


def _thin(op: Op, rank: int) -> TensorType | None:
    """Type of what lies between."""
    type_ = op.result.tensor_type
    if type_ is None or type_.shape is None:
        return None
    shape = list(type_.shape)
    shape[1 if op.op_type == "Conv" else -1] = rank
    return type_.with_shape(tuple(shape))
