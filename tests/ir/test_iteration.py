"""Iteration spaces, against what onnxruntime computes: a part of a result needs no more than the space says."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings
from numbers_of import UNOPTIMIZED
from sampled import SAMPLED, built, drawn
from tileable import Feed, Maker, dims, feed_of
from tileable_moves import MOVES

from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, ModelInfo, Op, Output, Value
from memoptc.ir.diagnostics import MemoptcError
from memoptc.ir.dims import Sym
from memoptc.ir.iteration import Axis, Form, iteration_space
from memoptc.ir.onnx_io import to_proto
from memoptc.ir.ops import TABLE
from memoptc.ir.types import TensorType
from memoptc.runtime.compare import difference
from memoptc.runtime.evaluate import Evaluator
from memoptc.runtime.judge import TOLERANCES

Array = npt.NDArray[Any]
BINDING = {"S": 11, "N": 6}
CASES = settings.default.max_examples // 5  # type: ignore[union-attr]
"""Cases per operator: 20 in CI, 400 in the nightly form."""
WITHOUT_OPERANDS = {"ConstantOfShape"}
OPERATORS = sorted({*MOVES, *(name for name in SAMPLED if TABLE[name].space)} - {"Attend"})
"""Moves that are one operator (attention is several), and operators whose definition makes instances."""


class Single:
    """One op with random attributes, and numbers for its operands.

    Args:
        op: The op.
        feed: Numbers for the inputs of its graph.
        seed: Decides which parts are looked at.

    Raises:
        MemoptcError: onnxruntime does not run the operator with these attributes.
    """

    def __init__(self, op: Op, feed: Feed, seed: int) -> None:
        self.op, self.feed = op, feed
        self.random, self.rng = random.Random(seed), np.random.default_rng(seed)
        self.space = iteration_space(op)
        self.given: dict[int, Array] = {}
        assert op.graph is not None
        self._operands(op.graph)
        self.session = self._session(op.graph)

    def _operands(self, graph: Graph) -> None:
        """What comes to the op: what is made before it, and constants that are cut."""
        fixed = {v for v in self.op.operands if v.is_absent or v.tensor is not None}
        computed = [i for i, v in enumerate(self.op.operands) if v not in fixed]
        outputs = [self.op.operands[i] for i in computed]
        if not computed:
            return
        graph.set_outputs(outputs, [Output(f"operand{i}", v.type) for i, v in zip(computed, outputs, strict=True)])
        found = Evaluator(to_proto(graph), UNOPTIMIZED).run(self.feed)
        self.given = {i: np.asarray(found[f"operand{i}"]) for i in computed}
        for i, value in enumerate(self.op.operands):
            if value.tensor is not None and any(axis.operands[i] is not None for axis in self.space):
                self.given[i] = np.asarray(value.tensor.numpy())

    def _session(self, graph: Graph) -> Evaluator:
        alone = Graph("alone", ModelInfo(opset_imports=dict(graph.info.opset_imports)))
        b = Builder(alone)
        operands: list[Value | None] = []
        for i, value in enumerate(self.op.operands):
            if i in self.given:
                assert isinstance(value.type, TensorType)
                rank = self.given[i].ndim
                free = tuple(Sym(f"d{i}_{axis}") for axis in range(rank))
                operands.append(alone.add_input(f"operand{i}", TensorType(value.type.dtype, free)))
            else:
                operands.append(None if value.is_absent else b.const(value.tensor))  # type: ignore[arg-type]
        types = [TensorType(r.type.dtype, None) if isinstance(r.type, TensorType) else None for r in self.op.results]
        op = b.op(
            self.op.op_type, operands, dict(self.op.attrs),
            domain=self.op.domain, outputs=len(self.op.results), type=types,
        )  # fmt: skip
        alone.set_outputs(op.results, [Output(f"result{i}", t) for i, t in enumerate(types)])
        return Evaluator(to_proto(alone), UNOPTIMIZED)

    def run(self, operands: dict[int, Array]) -> list[Array]:
        """The op's results."""
        found = self.session.run({f"operand{i}": array for i, array in operands.items()})
        return [np.asarray(v) for v in found.values()]

    def interval(self, axis: Axis, extent: int) -> tuple[int, int]:
        """Some part of an axis, between multiples of its grain."""
        steps = -(-extent // axis.grain)
        lo = self.random.randrange(steps)
        hi = self.random.randint(lo + 1, steps)
        return lo * axis.grain, min(hi * axis.grain, extent)

    def part(self, axis: Axis, i: int, lo: int, hi: int) -> slice | None:
        """What an interval needs of an operand, inside of it; `None`: all."""
        along = axis.operands[i]
        if along is None:
            return None
        n = self.given[i].shape[along.axis]
        return slice(min(max(along.first(lo), 0), n), max(min(along.end(hi), n), 0))


def cut(array: Array, axis: int, part: slice) -> Array:
    return np.ascontiguousarray(array[(slice(None),) * axis + (part,)])


def otherwise(rng: np.random.Generator, array: Array, axis: int, part: slice) -> Array:
    """An array with other elements everywhere but in a part."""
    other = rng.permutation(array.reshape(-1)).reshape(array.shape)
    if array.dtype.kind == "f":
        other = np.asarray(other * 3 - 1, array.dtype)
    keep = (slice(None),) * axis + (part,)
    other[keep] = array[keep]
    return other


def moved(name: str, seed: int) -> tuple[Op, Feed] | None:
    """An operator applied by its move, some extents of every third being symbols."""
    move = MOVES[name]
    maker = Maker(zlib.crc32(name.encode()) + seed, symbols=seed % 3 == 2, opset=move.opset)
    value = maker.start(maker.r.choice(move.ranks))
    if maker.r.random() < 0.5:
        maker.pool.append(maker.input(*dims(value)))
    made = maker.apply(move, value)
    ops = [op for op in maker.graph.ops if op.key == name]
    return (ops[-1], feed_of(maker.graph, BINDING)) if made is not None and ops else None


def singles(name: str) -> Iterator[Single]:
    for seed in range(CASES):
        found = moved(name, seed) if name in MOVES else built(name, drawn(name, seed))
        if found is not None:
            try:
                yield Single(*found, seed)
            except MemoptcError:
                assert name in MOVES, "a sample in a definition is valid"


@pytest.mark.parametrize("name", OPERATORS)
def test_a_part_needs_what_the_space_says(name: str) -> None:
    """Whatever else the operands hold, the part of the results is the same, bit for bit."""
    looked = 0
    for single in singles(name):
        full = single.run(single.given)
        for axis in single.space:
            place = next(a for a in axis.results if a is not None)
            result = next(r for r, a in zip(full, axis.results, strict=True) if a is not None)
            lo, hi = single.interval(axis, result.shape[place])
            changed = {}
            for i, array in single.given.items():
                along, part = axis.operands[i] if i < len(axis.operands) else None, single.part(axis, i, lo, hi)
                changed[i] = array if along is None or part is None else otherwise(single.rng, array, along.axis, part)
            found = single.run(changed)
            looked += any(changed[i] is not array for i, array in single.given.items())
            for before, after, at in zip(full, found, axis.results, strict=True):
                if at is not None:
                    a, b = cut(before, at, slice(lo, hi)), cut(after, at, slice(lo, hi))
                    assert a.tobytes() == b.tobytes(), f"{single.op}, {axis}, [{lo}, {hi})"
    assert looked or name in WITHOUT_OPERANDS


@pytest.mark.parametrize("name", OPERATORS)
def test_the_operator_on_the_parts_gives_the_part(name: str) -> None:
    """Where a piece's operator is the whole's: run on the parts, it gives the part."""
    for single in singles(name):
        full = single.run(single.given)
        for axis in single.space:
            if axis.form is not Form.SAME:
                continue
            at = next(a for a in axis.results if a is not None)
            result = next(r for r, a in zip(full, axis.results, strict=True) if a is not None)
            lo, hi = single.interval(axis, result.shape[at])
            parts = {}
            for i, array in single.given.items():
                along, part = axis.operands[i], single.part(axis, i, lo, hi)
                parts[i] = array if along is None or part is None else cut(array, along.axis, part)
            for before, after, place in zip(full, single.run(parts), axis.results, strict=True):
                if place is not None:
                    gap = difference(cut(before, place, slice(lo, hi)), after)
                    assert not gap.fault, f"{single.op}, {axis}, [{lo}, {hi}): {gap.fault}"
                    close = gap.max_abs <= TOLERANCES.get(str(after.dtype), 0.0) * max(gap.scale, 1.0)
                    assert gap.exact or (axis.reorders and close), f"{single.op}, {axis}, [{lo}, {hi}): {gap}"


def test_every_operator_of_the_tables_is_tried() -> None:
    assert {key for key, operator in TABLE.items() if operator.space and not operator.elementwise} <= set(OPERATORS)
