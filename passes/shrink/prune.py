"""prune: remove the channels and hidden units that outputs need least, together with all that reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memoptc.ir.core import Graph, Op
from memoptc.ir.diagnostics import InputError
from memoptc.ir.tensors import nbytes
from memoptc.pass_base import Context, Pass
from memoptc.passes.precision._quantize.matrix import Floats, as_weight_of, energy, replace_constant, rows_of
from memoptc.passes.precision._quantize.operand_moments import in_groups, moments_of, why_not
from memoptc.passes.shrink._shrink.accuracy_search import Gate, Level, Levels
from memoptc.passes.shrink._shrink.units import Units, find_units, remove
from memoptc.runtime.accuracy import AccuracyTarget
from memoptc.runtime.blas import one_thread
from memoptc.runtime.moments import Moments

FORMS = ("units", "zeros")
PARTS = 8
"""Units go in so many parts; the last stays."""

DAMPINGS = (0.01, 0.3)
"""Parts of the mean diagonal that are added to it before X^T X is inverted. The second is tried where rows are few."""

FEW = 10
"""Rows per column that are few: what they say of others is not to be taken at its word."""

ROUNDS = 64
"""Times that units are looked at anew while all of them would go: of units that say the same, one has to stay."""

MULTIPLE = 4
"""Units are left in multiples of this, for the kernels' sake."""


class Prune(Pass):
    """Remove what the outputs need least, as far as the outputs on data allow.

    Units of a product or convolution are removed where only products and convolutions read them, behind elementwise
    operators, pooling, normalization by constants and depthwise convolutions: the model really gets smaller and
    faster. Those go first without which the readers' results, on the data, change least once their other weights have
    made up for them (least squares over X^T X: Hassibi and Stork, "Optimal Brain Surgeon", 1993; layer by layer as
    Frantar and Alistarh, "Optimal Brain Compression", 2022, in blocks of a unit). Needs calibration data.

    With `form="zeros"` single weights become zero instead, those with the least magnitude times that of what they
    meet (Sun et al., "Wanda", 2023). onnxruntime computes with zeros as with all other numbers: neither time nor
    memory is saved (products of 4 and 64 rows with 1024 x 4096 weights, 90 % of them zero, took 1.03 and 1.00 of the
    time), and the file gets smaller only for those who compress it.

    Args:
        min_sqnr: Least signal to difference of every output, in decibels; `none` for any.
        max_loss: Largest accepted loss of the metric (top-1 accuracy of labelled data, or the user's own).
        form: "units", or "zeros" for single weights.
        most: Largest part of the units of a layer, or of its weights, that goes.
        exclude: Node names or operators to leave alone.
    """

    min_sqnr: float | None = 20.0
    max_loss: float | None = None
    form: str = "units"
    most: float = 0.875
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise InputError(f"prune has no form={self.form!r}.", hint=f"There are: {', '.join(FORMS)}.")
        if not 0 < self.most < 1:
            raise InputError(f"prune has no most={self.most!r}.", hint="A number between 0 and 1 was expected.")

    @property
    def accuracy_target(self) -> AccuracyTarget:
        """The limits that the search keeps to."""
        return AccuracyTarget(self.min_sqnr, self.max_loss)

    def run(self, graph: Graph, context: Context) -> None:
        """Prune the top graph."""
        gate = Gate(self.name, graph, context, self.min_sqnr, self.max_loss)
        excluded = frozenset(self.exclude)
        found = [units for units in find_units(graph, excluded) if self._observable(units, graph)]
        if not found:
            context.stats["left: no units that can go"] += 1
            return
        with one_thread():
            if self.form == "zeros":
                self._zeros(graph, found, gate, context)
            else:
                self._units(graph, found, gate, context)
        context.stats["trials"] = gate.trials.count

    @staticmethod
    def _observable(units: Units, graph: Graph) -> bool:
        return all(not why_not(op, graph) for op in units.readers)

    def _units(self, graph: Graph, found: Sequence[Units], gate: Gate, context: Context) -> None:
        ways: list[list[_PrunedUnits]] = [[] for _ in found]
        for group in in_groups([list(units.readers) for units in found]):
            seen = moments_of(graph, [op for i in group for op in found[i].readers], context)
            for i in group:
                if all(op in seen for op in found[i].readers):
                    ways[i] = _best_ways(found[i], seen, self.most)
        bytes_of = [sum(nbytes(t) for c in u.cuts if (t := c.op.operands[c.index].tensor)) for u in found]
        curves = [
            [Level(way.noise, bytes_of[i] * (1 - len(way.kept) / found[i].count)) for way in ways[i]]
            for i in range(len(found))
        ]

        def make(levels: Levels) -> Graph:
            copy = graph.clone()
            fresh = list(find_units(copy, frozenset(self.exclude)))
            fresh = [units for units in fresh if self._observable(units, copy)]
            for site, level in levels.items():
                way = ways[site][level]
                for op, matrix in zip(fresh[site].readers, way.matrices, strict=True):
                    replace_constant(copy, op, 1, as_weight_of(op, matrix), self.name)
            # Weights of all readers first: a reader may lose units of its own, too.
            for site, level in levels.items():
                remove(copy, fresh[site], ways[site][level].kept, self.name)
            return copy

        chosen = gate.search(graph, curves, make)
        gone = sum(found[i].count - len(ways[i][level].kept) for i, level in chosen.items())
        context.stats["units removed"] += gone
        saved = int(sum(curves[i][level].saved for i, level in chosen.items()))
        if chosen:
            whole = sum(units.count for units in found)
            gate.decide(
                graph, f"{gone} of {whole} units removed in {len(chosen)} of {len(found)} layers", saved, context
            )
        else:
            context.stats["left: outputs need all units"] += 1

    def _zeros(self, graph: Graph, found: Sequence[Units], gate: Gate, context: Context) -> None:
        ops = list(dict.fromkeys(op for units in found for op in units.readers))
        masks: list[list[npt.NDArray[np.bool_]]] = []
        curves: list[list[Level]] = []
        for group in in_groups([[op] for op in ops]):
            seen = moments_of(graph, [ops[i] for i in group], context)
            for i in group:
                masks.append([])
                curves.append([])
                if ops[i] not in seen:
                    continue
                rows, moments = rows_of(ops[i]), seen[ops[i]].fit
                score = np.abs(rows) * np.sqrt(np.maximum(np.diag(moments), 0.0))
                order = np.argsort(score, axis=1, kind="stable")
                signal = energy(rows, moments)
                for part in range(1, PARTS):
                    count = int(self.most * rows.shape[1] * part / (PARTS - 1))
                    mask = np.ones(rows.shape, np.bool_)
                    np.put_along_axis(mask, order[:, :count], False, axis=1)
                    masks[-1].append(mask)
                    noise = energy(rows * ~mask, moments) / signal if signal else 0.0
                    curves[-1].append(Level(noise, float(4 * (~mask).sum())))
        names = {i: op.result.name for i, op in enumerate(ops)}

        def make(levels: Levels) -> Graph:
            copy = graph.clone()
            by_name = {op.result.name: op for op in copy.ops if op.results}
            for site, level in levels.items():
                op = by_name[names[site]]
                replace_constant(copy, op, 1, as_weight_of(op, rows_of(op) * masks[site][level]), self.name)
            return copy

        chosen = gate.search(graph, curves, make)
        zeros = int(sum((~masks[i][level]).sum() for i, level in chosen.items()))
        context.stats["weights zeroed"] += zeros
        if chosen:
            whole = int(sum(m[0].size for m in masks if m))
            what = f"{zeros} of {whole} weights are zero; onnxruntime is neither faster nor smaller for it"
            gate.decide(graph, what, 0, context)


@dataclass(frozen=True)
class _PrunedUnits:
    """Some units gone.

    Args:
        kept: Indices of those that stay, sorted.
        matrices: The readers' weights, float32 `[results, columns]`, zero for units that are gone.
        noise: Noise to signal of the readers' results on data kept aside, all readers together.
    """

    kept: npt.NDArray[np.int64]
    matrices: list[npt.NDArray[np.float32]]
    noise: float


def _best_ways(units: Units, seen: Mapping[Op, Moments], most: float) -> list[_PrunedUnits]:
    """Remove parts, with the damping that does best on data kept aside."""
    few = any(seen[op].rows < FEW * len(seen[op].fit) for op in units.readers)
    tried = [_ways(units, seen, most, damping) for damping in (DAMPINGS if few else DAMPINGS[:1])]
    return min(tried, key=lambda ways: sum(way.noise for way in ways))


def _ways(units: Units, seen: Mapping[Op, Moments], most: float, damping: float) -> list[_PrunedUnits]:
    """Remove one part after the other, the least needed first."""
    readers = [(rows_of(op), seen[op], each) for op, each in units.readers.items()]
    if not all(np.isfinite(m.fit).all() and np.trace(m.check) > 0 for _, m, _ in readers):
        return []
    damped = [m.fit + np.eye(len(m.fit)) * damping * float(np.diag(m.fit).mean()) for _, m, _ in readers]
    signals = [(energy(rows, m.fit), energy(rows, m.check)) for rows, m, _ in readers]
    if not all(a > 0 and b > 0 for a, b in signals):
        return []
    kept, found = np.arange(units.count), []
    weights = [rows for rows, _, _ in readers]
    for part in range(1, PARTS):
        goal = units.count - int(most * units.count * part / (PARTS - 1) / MULTIPLE) * MULTIPLE
        if goal >= len(kept) or goal < MULTIPLE:
            continue
        states = []
        for (_, _, each), weight, whole, (signal, _) in zip(readers, weights, damped, signals, strict=True):
            columns = _columns(kept, each)
            inverse = np.asarray(np.linalg.inv(whole[np.ix_(columns, columns)]), np.float64)
            states.append(_State(inverse, weight[:, columns], each, signal))
        while len(kept) > goal:
            score = sum((state.scores() for state in states), np.zeros(len(kept)))
            gone = np.argsort(score, kind="stable")[: min(max(1, units.count // ROUNDS), len(kept) - goal)]
            kept = np.delete(kept, gone)
            for state in states:
                state.remove(gone)
        weights, noise = [], 0.0
        for (rows, moments, each), whole, (_, signal) in zip(readers, damped, signals, strict=True):
            columns = _columns(kept, each)
            weight = np.zeros_like(rows)
            weight[:, columns] = np.linalg.solve(whole[np.ix_(columns, columns)], whole[columns] @ rows.T).T
            weights.append(weight)
            noise += energy(rows - weight, moments.check) / signal
        found.append(_PrunedUnits(kept, [w.astype(np.float32) for w in weights], noise / len(readers)))
    return found


class _State:
    """One reader while its units go, one after the other.

    Args:
        inverse: Inverse of X^T X of the columns that are left.
        weight: Weights of those columns, with all that went made up for.
        each: Columns per unit.
        signal: Energy of the reader's result.
    """

    def __init__(self, inverse: Floats, weight: Floats, each: int, signal: float) -> None:
        self.inverse, self.weight, self.each, self.signal = inverse, weight, each, signal

    def scores(self) -> Floats:
        """For each unit, the part of the result that goes with it when the others make up for it."""
        count = len(self.inverse) // self.each
        places = np.arange(count * self.each).reshape(count, self.each)
        blocks = np.linalg.inv(self.inverse[places[:, :, None], places[:, None, :]])
        weights = self.weight.reshape(-1, count, self.each)
        gram = np.einsum("nci,ncj->cij", weights, weights) if self.each > 1 else np.square(weights).sum(0)[..., None]
        found: Floats = (gram * blocks).sum((1, 2)) / self.signal
        return found

    def remove(self, units: npt.NDArray[np.int64]) -> None:
        """Take units out: columns of the inverse and the weights change as if they had never been there."""
        at = _columns(units, self.each)
        share = np.linalg.solve(self.inverse[np.ix_(at, at)], self.inverse[at])
        self.weight = np.delete(self.weight - self.weight[:, at] @ share, at, axis=1)
        self.inverse = np.delete(np.delete(self.inverse - self.inverse[:, at] @ share, at, axis=0), at, axis=1)


def _columns(kept: npt.NDArray[np.int64], each: int) -> npt.NDArray[np.int64]:
    found: npt.NDArray[np.int64] = (kept[:, None] * each + np.arange(each)).reshape(-1)
    return found
