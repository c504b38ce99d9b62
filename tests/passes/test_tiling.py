"""Random graphs of tileable operators, random regions of them in random tiles: the same numbers as before."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from numbers_of import NOT_EMPTY, UNOPTIMIZED
from tileable import ancestors, bound, dims, feed_of, tileable_graph
from tileable_moves import MOVES

from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Output, Value
from memoptc.ir.diagnostics import MemoptcError
from memoptc.ir.dims import free_symbols
from memoptc.ir.infer import infer_shapes
from memoptc.ir.iteration import Form
from memoptc.ir.onnx_io import to_proto
from memoptc.ir.parser import parse
from memoptc.ir.printer import print_graph
from memoptc.ir.verifier import verify
from memoptc.passes.memory._tile.emit import Emitter
from memoptc.passes.memory._tile.grid import DynamicGrid, NotTileableError, StaticGrid, TileGrid
from memoptc.passes.memory._tile.growth import Growth
from memoptc.passes.memory._tile.iteration_spaces import IterationSpaces
from memoptc.passes.memory._tile.marks import TILED
from memoptc.passes.memory._tile.reachability import Reachability
from memoptc.passes.memory._tile.region import Region
from memoptc.passes.simplify._simplify.control import simplify_control
from memoptc.runtime.compare import difference
from memoptc.runtime.evaluate import Evaluator
from memoptc.runtime.judge import TOLERANCES
from memoptc.runtime.options import STOCK

PLANNED = {"S": 48, "N": 40}
"""Extents that symbols are planned with."""
LARGEST = 1 << 24
"""Elements of a value at those extents above which a graph is not run."""
TRIES = 12
"""Regions tried per graph."""
SHARE = 3 * settings.default.max_examples // 2  # type: ignore[union-attr]
"""Cases of each of the two properties: 300 together in CI, 6,000 in the nightly form."""
NO_EMPTY = NOT_EMPTY | {"FusedConv", "InstanceNormalization", "MultiHeadAttention", "Resize"}
"""Kernels that end the process when an extent is 0."""
filters = settings(suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])


class Tiling:
    """What was done to a graph.

    Args:
        graph: A graph, which is changed.
        seed: Decides where and how it is cut.
    """

    def __init__(self, graph: Graph, seed: int) -> None:
        self.graph, self.random = graph, random.Random(seed)
        self.spaces = IterationSpaces()
        self.done: list[str] = []
        self.refused: list[str] = []
        self.joined: set[str] = set()
        """In which kinds of frames what kinds of accumulating ops were cut."""
        self.reordered: set[str] = set()
        """Names of outputs in which sums may have been added up in another order."""
        wanted = self.random.choice((1, 1, 2, 3))
        for _ in range(TRIES):
            if len(self.done) < wanted:
                self.tile()

    def tile(self) -> None:
        """Cut one region, if there is one."""
        region = self.region()
        if region is None:
            return
        count, overcompute = self.random.choice((2, 2, 3, 4, 5, 7)), self.random.random() < 0.5
        changed = {op for op in region.ops if region.axes[op].reorders}
        touched = [
            info.name
            for info, value in zip(self.graph.outputs_info, self.graph.outputs, strict=True)
            if changed & ancestors([value])
        ]
        before = print_graph(self.graph)
        try:
            grid = frame_of(region, count)
            if grid.count < 2:
                return
            made = Emitter(region, grid, extent, overcompute=overcompute, ordered=self.random.random() < 0.5).run()
        except NotTileableError as reason:
            self.refused.append(str(reason))
            assert print_graph(self.graph) == before, "a refusal leaves the graph as it was"
            return
        self.spaces = IterationSpaces()
        self.reordered.update(touched)
        kind = "static" if isinstance(grid, StaticGrid) else "dynamic"
        self.done.append(f"{kind}, {'overcompute' if overcompute else 'exact'}, {made.count} tiles of {len(changed)}")
        joins = {axis.join for axis in region.axes.values()} - {None}
        self.joined.update(f"{kind}: {join.name}" for join in joins if join is not None)
        if any(axis.form is Form.EXPONENTIALS for axis in region.axes.values()):
            self.joined.add(f"{kind}: softmax")

    def region(self) -> Region | None:
        """A connected part that can be cut, of several ops and with halos rather than not."""
        ops = [op for op in self.graph.ops if op.op_type not in ("const", "absent", "return")]
        axes = [(op, axis) for op in ops for axis in self.spaces.every(op)]
        sums = [(op, axis) for op in ops for axis in self.spaces.sums(op)]
        halos = [(op, axis) for op, axis in axes if axis.form is not Form.SAME]
        if sums and (not axes or self.random.random() < 0.4):
            seed, axis = self.random.choice(sums)
        elif axes:
            seed, axis = self.random.choice(halos if halos and self.random.random() < 0.6 else axes)
        else:
            return None
        place = ops.index(seed)
        first, last = 0, len(ops) - 1
        if self.random.random() < 0.4:
            first, last = self.random.randint(0, place), self.random.randint(place, last)
        region = Growth(seed, axis, self.spaces, Reachability(ops)).within(first, last)
        if region is None or region.rates is None or (len(region.ops) < 2 and self.random.random() < 0.8):
            return None
        return region


def extent(value: Value, axis: int) -> int:
    dim = dims(value)[axis] if dims(value) else None
    if dim is None:
        raise NotTileableError("an extent that is not known")
    return bound(dim, PLANNED)


def frame_of(region: Region, count: int) -> TileGrid:
    """Numbers where all extents are known, else shares of what comes at run time."""
    for op in region.ops:
        for operand, along in zip(op.operands, region.axes[op].operands, strict=True):
            if along is not None and not isinstance(dims(operand)[along.axis], int):
                return DynamicGrid(region, count)
    return StaticGrid(region, count, extent)


def bindings(graph: Graph, seed: int) -> list[Mapping[str, int]]:
    """Extents at run time: none, one, few, as many as planned, more than that, odd."""
    if not any(not isinstance(d, int) for v in graph.inputs for d in dims(v)):
        return [{}]
    rng = random.Random(seed)
    some = [{"S": rng.randint(2, 70), "N": rng.randint(1, 50)} for _ in range(4)]
    few = [{"S": 1, "N": 1}, {"S": 1, "N": 2}, {"S": 7, "N": 5}]
    none = [{"S": 0, "N": 0}, {"S": 0, "N": 3}]
    can_be_empty = not any(op.op_type in NO_EMPTY for op in graph.walk())
    return [b for b in (PLANNED, *few, *some, *none) if can_be_empty or not empty(graph, b)]


def empty(graph: Graph, binding: Mapping[str, int]) -> bool:
    """Whether some value has no elements."""
    values = [*graph.inputs, *(r for op in graph.ops for r in op.results)]
    return any(d is None or bound(d, binding) <= 0 for v in values for d in dims(v))


def agree(tiling: Tiling, name: str, expected: object, found: object, *, exact: bool) -> str:
    """Say what is wrong with an output; `""` if nothing is."""
    gap = difference(expected, found)
    if gap.fault or gap.exact:
        return gap.fault
    if (exact and name not in tiling.reordered) or gap.lossless:
        return f"{gap.mismatches} of {gap.elements} elements differ, by up to {gap.max_abs}"
    allowed = TOLERANCES[str(getattr(expected, "dtype", ""))] * max(gap.scale, 1.0)
    return "" if gap.max_abs <= allowed else f"differs by {gap.max_abs} at a magnitude of {gap.scale}"


def same_numbers(before: Graph, tiling: Tiling, seed: int) -> int:
    """Hold a graph against what became of it, as it is written and as onnxruntime optimizes it.

    Returns:
        How many runs counted: those in which the original gives what it says it gives. A few originals never do.
    """
    proto = to_proto(tiling.graph)
    try:
        old = Evaluator(to_proto(before), UNOPTIMIZED)
        Evaluator(to_proto(before), STOCK)
    except MemoptcError:
        return 0
    inner = with_reductions(before)
    runs = {"as written": Evaluator(proto, UNOPTIMIZED)}
    if not any(op.op_type == "DequantizeLinear" or op.attrs.get("ceil_mode") for op in before.walk()):
        # Users of DequantizeLinear become integer kernels; windows beyond the end confuse onnxruntime's inference.
        runs["optimized"] = Evaluator(proto, STOCK)
    counted = 0
    for number, binding in enumerate(bindings(before, seed)):
        feed = feed_of(before, binding, seed + number)
        try:
            expected = old.run(feed)
        except MemoptcError:
            continue
        if not as_declared(before, expected, binding):
            continue
        if empty(before, binding) and not as_declared(
            inner, Evaluator(to_proto(inner), UNOPTIMIZED).run(feed), binding
        ):
            continue
        counted += 1
        for how, run in runs.items():
            if how == "optimized" and empty(before, binding):
                continue  # some of what it puts in place of others gives anything then
            found = run.run(feed)
            assert list(found) == list(expected)
            for name, value in expected.items():
                fault = agree(tiling, name, value, found[name], exact=how == "as written")
                shapes = {k: v.shape for k, v in feed.items()}
                assert not fault, f"{name}, {how}, {shapes}: {fault}\n{print_graph(tiling.graph)}"
    return counted


def as_declared(graph: Graph, found: Mapping[str, Any], binding: Mapping[str, int]) -> bool:
    """Whether outputs have the shapes they should: onnxruntime's reductions forget to, when there is nothing."""
    return all(
        not dims(value)
        or found[info.name].shape == tuple(None if d is None else bound(d, binding) for d in dims(value))
        for info, value in zip(graph.outputs_info, graph.outputs, strict=True)
    )


def with_reductions(graph: Graph) -> Graph:
    """A graph that also gives what its reductions give."""
    every = graph.clone()
    shown = [op.result for op in every.ops if op.op_type.startswith("Reduce")]
    infos = [Output(f"reduced{i}", v.type) for i, v in enumerate(shown)]
    every.set_outputs([*every.outputs, *shown], [*every.outputs_info, *infos])
    return every


def types_hold(graph: Graph, seed: int) -> None:
    """What types the tiles' results say is what comes out, those of tiles in branches included."""
    every = graph.clone()
    for op in list(every.walk("If")):
        if TILED in op.metadata:
            op.set_operand(0, Builder(every, before=op).const(np.asarray(True)))
    simplify_control(every, Counter())
    made = [op for op in every.ops if TILED in op.metadata and not op.is_const]
    shown = [r for op in made for r in op.results if not r.omitted and dims(r)]
    every.set_outputs(shown, [Output(f"shown{i}", v.type) for i, v in enumerate(shown)])
    found = Evaluator(to_proto(every), UNOPTIMIZED).run(feed_of(graph, PLANNED, seed))
    for value, real in zip(shown, found.values(), strict=True):
        said = tuple(None if d is None else bound(d, PLANNED) for d in dims(value))
        assert len(said) == real.ndim, f"%{value.name}: {said}, really {real.shape}"
        assert all(a in (None, b) for a, b in zip(said, real.shape, strict=True)), (
            f"%{value.name}: {said}, really {real.shape}"
        )


def check(graph: Graph, seed: int) -> None:
    """Tile a graph at random; what comes out is well-formed and gives the same."""
    infer_shapes(graph)
    symbols = {s for op in graph.ops for r in op.results for d in dims(r) for s in free_symbols(d)}
    assume(symbols <= set(PLANNED))  # an extent that only the run knows cannot be foretold here
    values = [r for op in graph.ops for r in op.results]
    assume(all(prod(bound(d, PLANNED) for d in dims(v) if d is not None) <= LARGEST for v in values))
    before = graph.clone()
    known = {fault.rule for fault in verify(before)}
    tiling = Tiling(graph, seed)
    for reason in tiling.refused:
        event(f"refused: {reason}")
    assume(tiling.done)
    for done in (*tiling.done, *tiling.joined):
        event(done)
    verify(graph, tolerated=known)
    if not any(op.op_type == "SimplifiedLayerNormalization" for op in graph.walk()):  # not ONNX's
        onnx.checker.check_model(to_proto(graph))
    assume(same_numbers(before, tiling, seed))
    types_hold(graph, seed)


seeds, sizes = st.integers(0, 2**32 - 1), st.integers(1, 12)


@settings(filters, max_examples=SHARE)
@given(seed=seeds, size=sizes)
def test_static(seed: int, size: int) -> None:
    graph = tileable_graph(seed, size, MOVES)
    check(graph, seed)


@settings(filters, max_examples=SHARE)
@given(seed=seeds, size=sizes)
def test_dynamic(seed: int, size: int) -> None:
    check(tileable_graph(seed, size, MOVES, symbols=True), seed)


def test_growing_again_in_a_smaller_stretch_gives_what_growing_there_does() -> None:
    """What was reached without a choice is taken from the larger stretch instead."""
    rng, taken = random.Random(3), 0
    for seed in range(12):
        graph = tileable_graph(seed, 12, MOVES)
        infer_shapes(graph)
        ops = [op for op in graph.ops if op.op_type not in ("const", "absent", "return")]
        spaces, reach = IterationSpaces(), Reachability(ops)
        for op, axis in [(o, a) for o in ops for a in spaces.every(o)][::3]:
            place, once = ops.index(op), Growth(op, axis, spaces, reach)
            once.within(0, len(ops) - 1)
            for _ in range(4):
                first, last = rng.randint(0, place), rng.randint(place, len(ops) - 1)
                again = Growth(op, axis, spaces, reach).within(first, last)
                found = once.within(first, last)
                taken += found is not None
                assert (found and found.axes) == (again and again.axes)
    assert taken > 100


@pytest.mark.parametrize("symbols", [False, True], ids=["static", "dynamic"])
def test_most_graphs_are_tiled(symbols: bool) -> None:
    """The properties above look at something."""
    tilings = []
    for seed in range(60):
        graph = tileable_graph(seed, 6, MOVES, symbols=symbols)
        infer_shapes(graph)
        tilings.append(Tiling(graph, seed))
    tiled = [t for t in tilings if t.done]
    assert len(tiled) >= 40
    kinds = {kind.split(" tiles")[0][:-3] for t in tiled for kind in t.done}
    assert kinds >= {"static, exact", "static, overcompute"} | (
        {"dynamic, exact", "dynamic, overcompute"} if symbols else set()
    )
    assert len({join for t in tiled for join in t.joined}) >= 4


OLDER = """model {{ir_version=4, opset={{""={opset}}}}}
graph @g(%x: f32[3,4,12,9]) -> (f32[3,2,12], f32[3,2,30,18]) {{
  %w = const() {{value=[{weights}]}} : f32[2,4,3,3]
  %a = Conv(%x, %w) {{kernel_shape=[3,3], pads=[1,1,1,1]}}
  %b = Softmax(%a) {{axis=2}}
  %c = Slice(%b) {{axes=[3], starts=[1], ends=[8]}}
  %d = ReduceMax(%c) {{axes=[3], keepdims=1}}
  %e = Squeeze(%d) {{axes=[3]}}
  %f = Pad(%b) {{pads=[0,0,2,0,0,0,1,0]}}
  %g = Upsample(%f, %s) {{mode="nearest"}}
  return %e, %g
}}"""


@pytest.mark.parametrize("seed", range(12))
def test_older_opset(seed: int) -> None:
    """Attributes instead of operands, and a softmax over all axes from one on."""
    weights = ",".join(str((i * 7 % 13 - 6) / 8) for i in range(72))
    scales = "  %s = const() {value=[1.0,1.0,2.0,2.0]} : f32[4]\n  %a ="
    graph = parse(OLDER.format(opset=9, weights=weights).replace("  %a =", scales))
    infer_shapes(graph)
    before = graph.clone()
    tiling = Tiling(graph, seed)
    if not tiling.done:  # regions are drawn, and some draws are of what cannot be tiled
        tiling = Tiling(graph, seed + 100)
    assert tiling.done
    verify(graph)
    onnx.checker.check_model(to_proto(graph))
    assert same_numbers(before, tiling, seed) == 1
    types_hold(graph, seed)
