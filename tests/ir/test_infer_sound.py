"""What shape inference says holds at run time, for every extent: 0 and 1, too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graphs import graphs
from hypothesis import given
from numbers_of import NOT_EMPTY, hard_feeds

from memoptc.ir.core import Graph, Output, Value
from memoptc.ir.diagnostics import MemoptcError
from memoptc.ir.dims import Dim, free_symbols, substitute
from memoptc.ir.infer import infer_shapes
from memoptc.ir.onnx_io import to_proto
from memoptc.ir.parser import parse
from memoptc.ir.types import TensorType
from memoptc.runtime.evaluate import Evaluator
from memoptc.runtime.options import RunOptions


def assert_sound(graph: Graph) -> int:
    """Run with every value as an output; no type and no known element may be contradicted."""
    for op in graph.walk():
        for result in op.results:
            if not op.is_const and not op.regions:
                result.type = None
    found = infer_shapes(graph)
    values = [r for op in graph.ops for r in op.results if not (op.is_const or r.is_absent or r.omitted)]
    if not values:
        return 0
    graph.set_outputs(values, [Output(f"out{i}") for i in range(len(values))])
    stated = [_tensor(v) for v in values]
    for value in values:
        value.type = TensorType(_tensor(value).dtype, None)
    evaluator = Evaluator(to_proto(graph), RunOptions(optimize=False))
    runs = 0
    for feed in hard_feeds(graph, empty=not any(op.op_type in NOT_EMPTY for op in graph.walk())):
        extents = {
            symbol: array.shape[axis]
            for value, array in ((v, feed[v.name]) for v in graph.inputs)
            for axis, dim in enumerate(_tensor(value).shape or ())
            for symbol in free_symbols(dim)
        }
        try:
            arrays = list(evaluator.run(feed).values())
        except MemoptcError:
            continue
        runs += 1
        for value, type_, array in zip(values, stated, arrays, strict=True):
            _check(value, type_.shape, array.shape, extents)
            if value in found.elements:
                _check(value, found.elements[value], tuple(np.asarray(array).reshape(-1).tolist()), extents)
    return runs


def _tensor(value: Value) -> TensorType:
    assert isinstance(value.type, TensorType), value
    return value.type


def _check(value: Value, said: tuple[Dim, ...] | None, true: tuple[Any, ...], extents: dict[str, int]) -> None:
    if said is None:
        return
    assert len(said) == len(true), f"%{value.name}: {said} but {true}"
    for dim, number in zip(said, true, strict=True):
        # Other symbols stand for extents that only the run knows.
        if dim is not None and free_symbols(dim) <= extents.keys():
            assert substitute(dim, extents) == number, f"%{value.name}: {said} at {extents} but {true}"


@given(graph=graphs(12))
def test_inference_holds_on_random_graphs(graph: Graph) -> None:
    assert_sound(graph)


SIGNATURE = "graph @g(%x: f32[N,M], %y: f32[M,N], %z: f32[N,4], %w: f32[4]) -> (f32[*]) {\n"
LINES = {
    "broadcast": "%r = Add(%x, %y)",
    "broadcast one": "%r = Add(%z, %w)",
    "variadic": "%r = Max(%x, %y, %x)",
    "where": "%c = Less(%x, %y)\n%r = Where(%c, %y, %x)",
    "concat": "%r = Concat(%x, %x) {axis=1}",
    "flatten": "%r = Flatten(%x) {axis=1}",
    "shape arithmetic": "%s = Shape(%x)\n%t = Shape(%y)\n%a = Sub(%s, %t)\n%b = Mul(%a, %t)\n%r = Max(%b, %s)",
    "halves": "%two = const() {value=[2]} : i64[1]\n%s = Shape(%x)\n%r = Div(%s, %two)",
    "negative halves": "%two = const() {value=[-2]} : i64[1]\n%s = Shape(%x)\n%a = Neg(%s)\n%r = Div(%s, %two)",
    "expand": "%s = Shape(%y)\n%r = Expand(%x, %s)",
    "reshape": "%m = const() {value=[0,-1]} : i64[2]\n%r = Reshape(%x, %m)",
    "reshape to symbols": "%s = Shape(%y)\n%r = Reshape(%x, %s)",
    "split": "%r, %q = Split(%x) {axis=0, num_outputs=2}",
    "range": "%a = const() {value=0} : i64[]\n%d = const() {value=2} : i64[]\n%n = Size(%x)\n%r = Range(%a, %n, %d)",
    "tile": "%s = Shape(%y)\n%r = Tile(%x, %s)",
    "top": "%k = const() {value=[1]} : i64[1]\n%r, %q = TopK(%x, %k) {axis=1}",
    "nonzero": "%a = NonZero(%x)\n%r = Transpose(%a)",
    "pad": "%p = const() {value=[0,1,2,0]} : i64[4]\n%r = Pad(%x, %p)",
    "crop": "%p = const() {value=[0,-1,0,0]} : i64[4]\n%r = Pad(%x, %p)",
    "einsum": '%r = Einsum(%x, %y) {equation="ij,jk->ik"}',
    "matmul": "%r = MatMul(%x, %y)",
    "slice back": "%a = const() {value=[-1]} : i64[1]\n"
    "%b = const() {value=[-9]} : i64[1]\n%r = Slice(%x, %a, %b, %a, %a)",
    "slice last": "%a = const() {value=[-2]} : i64[1]\n%b = const() {value=[99]} : i64[1]\n%r = Slice(%x, %a, %b, %a)",
    "slice but last": "%a = const() {value=[0]} : i64[1]\n"
    "%b = const() {value=[-2]} : i64[1]\n%r = Slice(%x, %a, %b, %a)",
    "slice from second": "%a = const() {value=[1]} : i64[1]\n%b = const() {value=[9999999999]} : i64[1]\n"
    "%r = Slice(%x, %a, %b, %a)",
    "slice that is long enough": "%p = const() {value=[3,0,0,0]} : i64[4]\n%y1 = Pad(%x, %p)\n"
    "%a = const() {value=[1]} : i64[1]\n%b = const() {value=[3]} : i64[1]\n%z0 = const() {value=[0]} : i64[1]\n"
    "%r = Slice(%y1, %a, %b, %z0)",
    "every second": "%a = const() {value=[0]} : i64[1]\n%b = const() {value=[5]} : i64[1]\n"
    "%two = const() {value=[2]} : i64[1]\n%r = Slice(%x, %a, %b, %a, %two)",
    "slice of a shape": "%s = Shape(%x)\n%a = const() {value=[-1]} : i64[1]\n%b = const() {value=[-9]} : i64[1]\n"
    "%z0 = const() {value=[0]} : i64[1]\n%r = Slice(%s, %a, %b, %z0, %a)",
    "shape from the end": "%r = Shape(%x) {start=-1}",
    "gather": "%i = const() {value=[-1,0]} : i64[2]\n%s = Shape(%x)\n%r = Gather(%s, %i)",
    "cast": "%s = Shape(%x)\n%f = Cast(%s) {to=1}\n%h = const() {value=0.5} : f32[]\n%g = Mul(%f, %h)\n"
    "%r = Cast(%g) {to=7}",
    "quotient of floats": "%two = const() {value=[2]} : i64[1]\n%t = Cast(%two) {to=1}\n%s = Shape(%x)\n"
    "%f = Cast(%s) {to=1}\n%q = Div(%f, %t)\n%g = Mul(%q, %t)\n%r = Cast(%g) {to=7}",
    "modulo": "%two = const() {value=[2]} : i64[1]\n%s = Shape(%x)\n%a = Neg(%s)\n%r = Mod(%a, %two)",
    "equal": "%s = Shape(%x)\n%t = Shape(%y)\n%e = Equal(%s, %t)\n%r = Where(%e, %s, %t)",
    "extents that are not -1": "%s = Shape(%x)\n%n = const() {value=[-1,-1]} : i64[2]\n%e = Equal(%s, %n)\n"
    "%o = const() {value=[1,1]} : i64[2]\n%r = Where(%e, %o, %s)",
    "differences that may be -1": "%s = Shape(%x)\n%t = Shape(%y)\n%d = Sub(%s, %t)\n"
    "%n = const() {value=[-1,-1]} : i64[2]\n%e = Equal(%d, %n)\n%r = Where(%e, %s, %t)",
    "truth of an extent": "%s = Shape(%x)\n%b = Cast(%s) {to=9}\n%r = Cast(%b) {to=7}",
    "extent in a byte": "%s = Shape(%x)\n%b = Cast(%s) {to=2}\n%one = const() {value=[1]} : u8[1]\n"
    "%d = Sub(%b, %one)\n%r = Cast(%d) {to=7}",
    "extents that cancel out": "%s = Shape(%x)\n%n = Sub(%s, %s)\n%r = Reshape(%x, %n)",
    "extents less than nothing": "%s = Shape(%x)\n%n = Neg(%s)\n%z0 = const() {value=[0]} : i64[1]\n"
    "%m = Gather(%n, %z0)\n%r = Reshape(%x, %m)",
    "extents less one": "%s = Shape(%x)\n%one = const() {value=[1]} : i64[1]\n%z0 = const() {value=[0]} : i64[1]\n"
    "%n = Gather(%s, %z0)\n%d = Sub(%n, %one)\n%t = Concat(%d, %one) {axis=0}\n%r = Reshape(%x, %t)",
    "table of sums": "%s = Shape(%x)\n%c = const() {value=[2,1]} : i64[2]\n%t = Reshape(%s, %c)\n%u = Add(%t, %s)\n"
    "%f = const() {value=[-1]} : i64[1]\n%v = Reshape(%u, %f)\n%w1 = Concat(%v, %s) {axis=0}\n%r = Abs(%w1)",
    "rows of a table": "%s = Shape(%x)\n%two = const() {value=[2,2]} : i64[2]\n%d = Concat(%s, %s) {axis=0}\n"
    "%t = Reshape(%d, %two)\n%i = const() {value=0} : i64[]\n%r = Gather(%t, %i)",
    "steps that are computed": "%s = Shape(%x)\n%a = const() {value=[0]} : i64[1]\n%e = const() {value=[2]} : i64[1]\n"
    "%t = Size(%w)\n%u = Unsqueeze(%t, %a)\n%q = Abs(%u)\n%r = Slice(%s, %a, %e, %a, %q)",
    "back to the largest number": "%s = Shape(%x)\n%a = const() {value=[-1]} : i64[1]\n"
    "%b = const() {value=[9223372036854775807]} : i64[1]\n%z0 = const() {value=[0]} : i64[1]\n"
    "%r = Slice(%s, %a, %b, %z0, %a)",
    "up to the least number": "%a = const() {value=[0]} : i64[1]\n"
    "%b = const() {value=[-9223372036854775808]} : i64[1]\n%r = Slice(%x, %a, %b, %a)",
    "resize": "%u = const() {value=[1.0,1.5]} : f32[2]\n%none = absent()\n%r = Resize(%x, %none, %u)",
    "reduce": "%one = const() {value=[1]} : i64[1]\n%r = ReduceMax(%x, %one) {keepdims=0}",
    "unsqueeze": "%one = const() {value=[-1]} : i64[1]\n%r = Unsqueeze(%x, %one)",
    "squeeze": "%a = const() {value=[0]} : i64[1]\n%b = const() {value=[1]} : i64[1]\n%c = Slice(%x, %a, %b, %a)\n"
    "%r = Squeeze(%c)",
    "squeeze by an empty list": "%one = const() {value=[1]} : i64[1]\n%c = Unsqueeze(%w, %one)\n"
    "%no = const() {value=[]} : i64[0]\n%r = Squeeze(%c, %no)",
    "eye": "%r = EyeLike(%x)",
    "one hot": "%d = const() {value=[4]} : i64[1]\n%v = const() {value=[0.0,1.0]} : f32[2]\n%s = Shape(%x)\n"
    "%r = OneHot(%s, %d, %v)",
    "features of a vector": "%i = ArgMax(%z) {axis=1}\n%r = ai.onnx.ml::ArrayFeatureExtractor(%w, %i)",
    "features by a table": "%i = const() {value=[0,3]} : i64[2,1]\n"
    "%r = ai.onnx.ml::ArrayFeatureExtractor(%z, %i)",
    "prelu": "%r = PRelu(%z, %w)",
    "pool": "%a = const() {value=[0,1]} : i64[2]\n%u = Unsqueeze(%x, %a)\n"
    "%r = MaxPool(%u) {kernel_shape=[2,2], strides=[2,2], ceil_mode=1, pads=[1,1,0,0]}",
    "pool behind the end": "%a = const() {value=[0,1]} : i64[2]\n%u = Unsqueeze(%x, %a)\n"
    "%r = MaxPool(%u) {kernel_shape=[1,2], strides=[3,3], ceil_mode=1}",
    "pool in the padding behind": "%a = const() {value=[0,1]} : i64[2]\n%u = Unsqueeze(%x, %a)\n"
    "%r = AveragePool(%u) {kernel_shape=[2,3], strides=[2,3], ceil_mode=1, pads=[0,1,1,2]}",
    "pool with holes": "%a = const() {value=[0,1]} : i64[2]\n%u = Unsqueeze(%x, %a)\n"
    "%r = MaxPool(%u) {kernel_shape=[2,2], strides=[3,4], dilations=[2,1], ceil_mode=1, pads=[1,0,1,1]}",
    "pool without padding": "%a = const() {value=[0,1]} : i64[2]\n%u = Unsqueeze(%x, %a)\n"
    "%r = MaxPool(%u) {kernel_shape=[1,1], strides=[2,3], ceil_mode=1, auto_pad=\"VALID\"}",
    "norm pool": "%a = const() {value=[0,1]} : i64[2]\n%u = Unsqueeze(%x, %a)\n"
    "%r = LpPool(%u) {kernel_shape=[1,2], strides=[2,3], ceil_mode=1, pads=[0,0,0,1]}",
}  # fmt: skip


@pytest.mark.parametrize("name", LINES)
def test_inference_holds_for(name: str) -> None:
    assert assert_sound(parse(f"{SIGNATURE}{LINES[name]}\n return %r\n}}")) > 0


def test_an_extent_is_never_the_minus_one_that_exporters_ask_for() -> None:
    """Expand as TorchScript writes it: Where(Equal(shape, -1), 1, shape)."""
    text = f"{SIGNATURE}{LINES['extents that are not -1']}\n%q = ConstantOfShape(%r)\n return %q\n}}"
    graph = parse(text)
    infer_shapes(graph)
    assert graph.outputs[0].shape == graph.inputs[0].shape


def test_states_that_grow_one_after_another_get_no_shape() -> None:
    """Each round of inference finds one more state of the chain to grow."""
    count = 12
    states = ", ".join(f"%s{i}: f32[1]" for i in range(count))
    returned = ", ".join(["%go", "%grown", *(f"%s{i}" for i in range(count - 1))])
    results = ", ".join(f"%r{i}" for i in range(count))
    text = f"""graph @g(%x: f32[1], %n: i64[], %c: bool[]) -> ({", ".join(["f32[?]"] * count)}) {{
      {results} = Loop(%n, %c{", %x" * count})
        region body(%k: i64[], %on: bool[], {states}) -> (bool[]{", f32[?]" * count}) {{
          %go = Identity(%on)
          %grown = Concat(%s0, %x) {{axis=0}}
          return {returned}
        }}
      return {results}
    }}"""
    graph = parse(text)
    infer_shapes(graph)
    shapes = [value.shape for value in graph.outputs]
    assert not any(isinstance(shape[0], int) for shape in shapes if shape)


def test_anonymous_extents_of_names_that_look_alike_differ() -> None:
    graph = parse("""graph @g(%x: f32[4], %z: f32[4], %w: f32[n_d1]) -> (i64[1,?], i64[1,?], i64[1,?]) {
      %"n.1" = NonZero(%x)
      %"n_1" = NonZero(%z)
      %n = NonZero(%w)
      return %"n.1", %"n_1", %n
    }""")
    infer_shapes(graph)
    assert len({value.shape[1] for value in graph.outputs} | {graph.inputs[2].shape[0]}) == 4


@pytest.mark.parametrize(("starts", "ends"), [("[0]", "[-1]"), ("[1]", "[9223372036854775807]"), ("[-2]", "[2]")])
def test_a_slice_by_attributes_is_inferred_as_one_by_operands(starts: str, ends: str) -> None:
    """As exporters up to opset 9 write it, of extents, too."""
    body = f"""%r = Slice(%x) {{starts={starts}, ends={ends}, axes=[1]}}
      %s = Shape(%x)
      %n = Slice(%s) {{starts={starts}, ends={ends}}}
      %q = ConstantOfShape(%n)"""
    signature = SIGNATURE.replace("(f32[*])", "(f32[*], i64[*], f32[*])")
    header = 'model {ir_version=8, opset={""=9}}'
    graph = parse(f"{header}\n\n{signature}{body}\n return %r, %n, %q\n}}")
    assert assert_sound(graph) > 0
    infer_shapes(graph)
    assert all(value.shape is not None for value in graph.outputs)


def test_batches_behind_the_rows_of_a_product_are_not_taken_for_rows() -> None:
    text = """graph @g(%x: f32[A,B,3], %y: f32[B,3,5]) -> (f32[*]) {
      %r = com.microsoft::FusedMatMul(%x, %y) {transBatchA=1}
      return %r
    }"""
    graph = parse(text)
    infer_shapes(graph)
    (shape,) = (value.shape for value in graph.outputs)
    assert shape is not None
    assert len(shape) == 3
    assert not {"A", "B"} & {name for dim in shape for name in free_symbols(dim)}


def test_axes_that_a_slice_of_unknown_ends_does_not_name_keep_their_extents() -> None:
    graph = parse("""graph @g(%x: f32[N,C,5], %from: i64[1]) -> (f32[*]) {
      %ends = const() {value=[9223372036854775807]} : i64[1]
      %axes = const() {value=[-2]} : i64[1]
      %r = Slice(%x, %from, %ends, %axes)
      return %r
    }""")
    infer_shapes(graph)
    n, c, five = graph.outputs[0].shape or ()
    assert (n, five) == (graph.inputs[0].shape[0], 5)  # type: ignore[index]
    assert c != graph.inputs[0].shape[1]  # type: ignore[index]
