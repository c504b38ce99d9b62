"""Borders of tiles that once went wrong, each in the smallest graph that shows it."""

from __future__ import annotations

import numpy as np
import pytest
from numbers_of import UNOPTIMIZED
from tileable import bound, dims, feed_of

from memoptc.ir.core import Graph, Value
from memoptc.ir.infer import infer_shapes
from memoptc.ir.onnx_io import to_proto
from memoptc.ir.parser import parse
from memoptc.ir.printer import print_graph
from memoptc.ir.verifier import verify
from memoptc.passes.memory._tile.emit import Emitter
from memoptc.passes.memory._tile.grid import DynamicGrid, NotTileableError, StaticGrid, TileGrid
from memoptc.passes.memory._tile.growth import Growth
from memoptc.passes.memory._tile.iteration_spaces import IterationSpaces
from memoptc.passes.memory._tile.reachability import Reachability
from memoptc.passes.memory._tile.region import Region
from memoptc.runtime.evaluate import Evaluator

PLANNED = {"S": 40, "H": 12}
each_way = pytest.mark.parametrize("overcompute", [False, True], ids=["exact", "overcompute"])


def typed(text: str) -> Graph:
    graph = parse(text)
    infer_shapes(graph)
    return graph


def extent(value: Value, axis: int) -> int:
    dim = dims(value)[axis]
    assert dim is not None
    return bound(dim, PLANNED)


def region_of(graph: Graph, op_type: str, axis: int) -> Region:
    """All that can be cut together with the first op of a type along an axis of its result."""
    ops = [op for op in graph.ops if op.op_type not in ("const", "absent", "return")]
    seed = next(op for op in ops if op.op_type == op_type)
    spaces = IterationSpaces()
    along = next(a for a in spaces[seed] if a.results[0] == axis)
    region = Growth(seed, along, spaces, Reachability(ops)).within(0, len(ops) - 1)
    assert region is not None
    return region


def check(text: str, op_type: str, axis: int, count: int, extents: list[int], *, overcompute: bool) -> None:
    """Cut, and compare for every extent of S."""
    before, graph = typed(text), typed(text)
    region = region_of(graph, op_type, axis)
    dynamic = any(not isinstance(dims(v)[region.cut[v]], int) for v in region.cut)
    grid: TileGrid = DynamicGrid(region, count) if dynamic else StaticGrid(region, count, extent)
    made = Emitter(region, grid, extent, overcompute=overcompute).run()
    assert made.count == count
    verify(graph)
    old, new = Evaluator(to_proto(before), UNOPTIMIZED), Evaluator(to_proto(graph), UNOPTIMIZED)
    for size in extents:
        feed = feed_of(before, {"S": size})
        for a, b in zip(old.run(feed).values(), new.run(feed).values(), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=f"S={size}")


@each_way
def test_padding_behind_a_window_of_one_element(overcompute: bool) -> None:
    """The result is one longer than the operand, at the end of the last tile only."""
    text = """graph @g(%x: f32[1,1,11]) -> (f32[*]) {
      %w = const() {value=[2.0]} : f32[1,1,1]
      %a = Relu(%x)
      %y = Conv(%a, %w) {kernel_shape=[1], pads=[0,1]}
      return %y
    }"""
    check(text, "Conv", 2, 4, [11], overcompute=overcompute)


@each_way
def test_same_padding_by_less_than_nothing(overcompute: bool) -> None:
    """onnxruntime's pools shift windows that leave elements over: such an axis is neither cut nor padded anew."""
    text = """graph @g(%x: f32[2,3,7,9]) -> (f32[*]) {
      %a = Neg(%x)
      %y = AveragePool(%a) {auto_pad="SAME_UPPER", kernel_shape=[4,1], strides=[1,3]}
      return %y
    }"""
    check(text, "AveragePool", 1, 3, [7], overcompute=overcompute)
    with pytest.raises((StopIteration, NotTileableError)):
        check(text, "AveragePool", 2, 2, [7], overcompute=overcompute)


@each_way
def test_an_output_that_ends_before_the_others(overcompute: bool) -> None:
    """The last tile must hold an element of the shorter one, too: shares of one element are too short."""
    text = """graph @g(%x: f32[1,1,S]) -> (f32[*], f32[*]) {
      %w = const() {value=[2.0,1.0,0.5]} : f32[1,1,3]
      %a = Relu(%x)
      %y = Conv(%a, %w) {kernel_shape=[3]}
      return %y, %a
    }"""
    check(text, "Conv", 2, 5, [3, *range(4, 32), 40, 41], overcompute=overcompute)


@each_way
def test_a_first_piece_that_would_lie_in_the_padding(overcompute: bool) -> None:
    """A pool of no channels at all is refused."""
    text = """graph @g(%x: f32[2,S,3,3]) -> (f32[*]) {
      %n = const() {value=[0,3,0,0,0,1,0,0]} : i64[8]
      %a = GlobalAveragePool(%x)
      %y = Pad(%a, %n)
      return %y
    }"""
    check(text, "Pad", 1, 5, [*range(1, 32), 40, 41], overcompute=overcompute)


def test_a_refusal_leaves_every_op_where_it_was() -> None:
    """What stands between the region's ops is not moved when its tiles turn out to be impossible."""
    text = """graph @g(%x: f32[1,1,H,24], %z: f32[4]) -> (f32[*], f32[*]) {
      %w = const() {value=[1.0,2.0,3.0,4.0,5.0,6.0,7.0,8.0,9.0]} : f32[1,1,3,3]
      %a = Relu(%x)
      %u = Neg(%z)
      %y = Conv(%a, %w) {auto_pad="SAME_UPPER", kernel_shape=[3,3]}
      return %y, %u
    }"""
    graph = typed(text)
    before = print_graph(graph)
    region = region_of(graph, "Conv", 3)
    emitter = Emitter(region, StaticGrid(region, 3, extent), extent)
    with pytest.raises(NotTileableError):
        emitter.run()
    verify(graph)
    assert print_graph(graph) == before


def test_a_scale_computed_from_what_is_cut_keeps_its_quantization_out() -> None:
    text = """graph @g(%x: f32[8,4]) -> (f32[*]) {
      %small = const() {value=0.01} : f32[]
      %a = Relu(%x)
      %b = Sigmoid(%a)
      %most = ReduceMax(%a) {keepdims=0}
      %scale = Add(%most, %small)
      %q = QuantizeLinear(%b, %scale)
      %y = DequantizeLinear(%q, %scale)
      return %y
    }"""
    assert [op.op_type for op in region_of(typed(text), "Relu", 0).ops] == ["Relu", "Sigmoid"]
    check(text, "Relu", 0, 2, [8], overcompute=False)
