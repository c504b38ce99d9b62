"""Which axes of a result can be cut, and which cannot: what adds up, is computed, or is not known is left alone."""

from __future__ import annotations

import pytest

from memoptc.ir.infer import infer_shapes
from memoptc.ir.iteration import Along, Form, iteration_space
from memoptc.ir.parser import parse

IMAGE, ROWS = "%x: f32[2,4,8,9]", "%x: f32[2,3,4]"


def space_of(inputs: str, *lines: str) -> list[tuple[int | None, tuple[Along | None, ...], Form]]:
    """The axes of the op that makes %y: of its first result, of its operands, and the form."""
    body = "\n".join(lines)
    graph = parse(f"graph @g({inputs}) -> (f32[*]) {{\n{body}\nreturn %y\n}}")
    infer_shapes(graph)
    found = graph.outputs[0].op
    assert found is not None
    return [(axis.results[0], axis.operands, axis.form) for axis in iteration_space(found)]


LEFT_ALONE: dict[str, tuple[str, list[str], list[int]]] = {
    "softmax": (ROWS, ["%y = Softmax(%x) {axis=1}"], [0, 2]),
    "log softmax, counted from the end": (ROWS, ["%y = LogSoftmax(%x) {axis=-1}"], [0, 1]),
    "layer norm over two axes": (
        "%x: f32[2,3,4], %s: f32[3,4]", ["%y = LayerNormalization(%x, %s) {axis=1}"], [0],
    ),
    "reduction": (ROWS, ["%a = const() {value=[-2]} : i64[1]", "%y = ReduceSum(%x, %a) {keepdims=0}"], [0, 1]),
    "reduction of everything": (ROWS, ["%y = ReduceMax(%x)"], []),
    "reduction along computed axes": ("%x: f32[2,3,4], %a: i64[1]", ["%y = ReduceSum(%x, %a)"], []),
    "reduction of nothing": (ROWS, ["%y = ReduceSum(%x) {noop_with_empty_axes=1}"], []),
    "argmax": (ROWS, ["%y = ArgMax(%x) {axis=-1, keepdims=0}"], [0, 1]),
    "cumulative sum": (ROWS, ["%a = const() {value=1} : i64[]", "%y = CumSum(%x, %a)"], [0, 2]),
    "cumulative sum along a computed axis": ("%x: f32[2,3], %a: i64[]", ["%y = CumSum(%x, %a)"], []),
    "filters of groups": ("%x: f32[1,4,8,8], %w: f32[4,2,3,3]", ["%y = Conv(%x, %w) {group=2}"], [0, 2, 3]),
    "fused sum": (
        "%x: f32[1,4,8,8], %w: f32[4,4,1,1], %b: f32[4], %z: f32[1,4,8,8]",
        ['%y = com.microsoft::FusedConv(%x, %w, %b, %z) {activation="Relu"}'], [],
    ),
    "grouped transposed convolution": (
        "%x: f32[1,4,8,8], %w: f32[4,2,3,3]", ["%y = ConvTranspose(%x, %w) {group=2}"], [0],
    ),
    "transposed convolution with padding to be found": (
        "%x: f32[1,4,8,8], %w: f32[4,2,3,3]", ['%y = ConvTranspose(%x, %w) {auto_pad="SAME_UPPER"}'], [0, 1],
    ),
    "SAME padding of a symbolic extent": (
        "%x: f32[1,4,S,8], %w: f32[4,4,3,3]",
        ['%y = Conv(%x, %w) {auto_pad="SAME_UPPER", kernel_shape=[3,3]}'], [0, 1, 3],
    ),
    "average over a window beyond the end": (
        IMAGE, ["%y = AveragePool(%x) {kernel_shape=[2,2], ceil_mode=1, count_include_pad=1}"], [0, 1],
    ),
    "Lp pool": (IMAGE, ["%y = LpPool(%x) {kernel_shape=[2,2]}"], [0, 1]),
    "global pool": (IMAGE, ["%y = GlobalAveragePool(%x)"], [0, 1]),
    "resize that keeps the aspect ratio": (
        "%x: f32[1,1,2,10]",
        [
            "%s = const() {value=[1,1,6,21]} : i64[4]", "%none = absent()",
            '%y = Resize(%x, %none, %none, %s) {keep_aspect_ratio_policy="not_larger", mode="linear"} : f32[1,1,4,21]',
        ], [],
    ),
    "reflected padding": (
        IMAGE, ["%p = const() {value=[0,0,1,0,0,0,1,0]} : i64[8]", '%y = Pad(%x, %p) {mode="reflect"}'], [0, 1, 3],
    ),
    "negative padding": (
        ROWS, ["%p = const() {value=[0,-1,0,0,0,1]} : i64[6]", "%y = Pad(%x, %p)"], [0, 2],
    ),
    "computed padding": ("%x: f32[2,3], %p: i64[4]", ["%y = Pad(%x, %p)"], []),
    "corners aligned": (
        IMAGE, ["%e = absent()", "%s = const() {value=[1.0,1.0,2.0,2.0]} : f32[4]",
                '%y = Resize(%x, %e, %s) {mode="linear", coordinate_transformation_mode="align_corners"}'],
        [0, 1, 2, 3],
    ),
    "corners aligned, of extents that vary": (
        "%x: f32[2,3,H,W]", ["%e = absent()", "%s = const() {value=[1.0,1.0,2.0,2.0]} : f32[4]",
                '%y = Resize(%x, %e, %s) {mode="linear", coordinate_transformation_mode="align_corners"}'], [0, 1],
    ),
    "by a fraction": (
        IMAGE, ["%e = absent()", "%s = const() {value=[1.0,1.0,2.0,1.5]} : f32[4]",
                '%y = Resize(%x, %e, %s) {mode="nearest", coordinate_transformation_mode="asymmetric", '
                'nearest_mode="floor"}'], [0, 1, 2],
    ),
    "cubic": (
        IMAGE, ["%e = absent()", "%s = const() {value=[1.0,1.0,2.0,2.0]} : f32[4]",
                '%y = Resize(%x, %e, %s) {mode="cubic"}'], [],
    ),
    "antialiased": (
        IMAGE, ["%e = absent()", "%s = const() {value=[1.0,1.0,2.0,2.0]} : f32[4]",
                '%y = Resize(%x, %e, %s) {mode="linear", antialias=1}'], [],
    ),
    "slice": (
        ROWS, ["%s = const() {value=[1]} : i64[1]", "%e = const() {value=[3]} : i64[1]",
               "%a = const() {value=[-2]} : i64[1]", "%y = Slice(%x, %s, %e, %a)"], [0, 2],
    ),
    "slice along computed axes": (
        "%x: f32[2,3,4], %a: i64[1]", ["%s = const() {value=[1]} : i64[1]", "%e = const() {value=[3]} : i64[1]",
                                       "%y = Slice(%x, %s, %e, %a)"], [],
    ),
    "concatenation": ("%x: f32[2,3], %z: f32[2,4]", ["%y = Concat(%x, %z) {axis=-1}"], [0]),
    "rows of a table": ("%x: f32[9,4], %i: i64[2,3]", ["%y = Gather(%x, %i) {axis=0}"], [0, 1, 2]),
    "training": (
        "%x: f32[2,3], %s: f32[3], %b: f32[3], %m: f32[3], %v: f32[3]",
        ["%y, %n, %o = BatchNormalization(%x, %s, %b, %m, %v) {training_mode=1}"], [],
    ),
    "zero point per column": (
        "%x: u8[3,4], %w: i8[4,5], %z: i8[5]",
        ["%o = const() {value=3} : u8[]", "%y = MatMulInteger(%x, %w, %o, %z)"], [],
    ),
    "einsum with dots": (ROWS, ['%y = Einsum(%x) {equation="...a->...a"}'], []),
    "einsum of a diagonal": ("%x: f32[3,3]", ['%y = Einsum(%x) {equation="aa->a"}'], []),
    "group norm": (
        "%x: f32[2,4,8,9], %s: f32[4]", ["%y = GroupNormalization(%x, %s, %s) {num_groups=2}"], [0],
    ),
    "instance norm": ("%x: f32[2,4,8,9], %s: f32[4]", ["%y = InstanceNormalization(%x, %s, %s)"], [0, 1]),
    "broadcasting of an extent that may be 1": ("%x: f32[N,3], %z: f32[M,3]", ["%y = Add(%x, %z)"], [1]),
    "split of an axis": ("%x: f32[12,5]", ["%n = const() {value=[3,4,5]} : i64[3]", "%y = Reshape(%x, %n)"], [0, 2]),
    "merger of axes": (ROWS, ["%n = const() {value=[6,4]} : i64[2]", "%y = Reshape(%x, %n)"], [0, 1]),
    "reshape across axes": ("%x: f32[4,6]", ["%n = const() {value=[8,3]} : i64[2]", "%y = Reshape(%x, %n)"], [0]),
    "diagonal": (ROWS, ["%y = Trilu(%x)"], [0]),
    "positions": (ROWS, ["%y = NonZero(%x)"], []),
    "shape": (ROWS, ["%y = Shape(%x)"], []),
    "unknown": (ROWS, ["%y = some.where::Else(%x) : f32[2,3,4]"], []),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_axes(name: str) -> None:
    inputs, lines, expected = LEFT_ALONE[name]
    assert sorted({place for place, _, _ in space_of(inputs, *lines) if place is not None}) == expected


def test_halo_of_a_window() -> None:
    """Element i of the result needs the elements 2 * i - 1 ... 2 * i + 3 of the operand."""
    inputs = "%x: f32[1,1,40], %w: f32[1,1,3]"
    space = space_of(inputs, "%y = Conv(%x, %w) {dilations=[2], pads=[1,2], strides=[2]}")
    along = next(operands[0] for place, operands, _ in space if place == 2)
    assert along is not None
    assert (along.first(0), along.end(1)) == (-1, 4)
    assert (along.first(5), along.end(8)) == (9, 18)


def test_padding_behind_a_window_of_one_element_is_a_border() -> None:
    space = space_of("%x: f32[1,1,9], %w: f32[1,1,1]", "%y = Conv(%x, %w) {pads=[0,1]}")
    assert [form for place, _, form in space if place == 2] == [Form.PADS]


def test_pool_whose_indices_are_used() -> None:
    text = """graph @g(%x: f32[2,4,8,9]) -> (f32[*], i64[*]) {
      %p, %i = MaxPool(%x) {kernel_shape=[2,2]}
      return %p, %i
    }"""
    graph = parse(text)
    infer_shapes(graph)
    op = graph.outputs[0].op
    assert op is not None
    assert op.op_type == "MaxPool"
    assert iteration_space(op) == []


def test_branches_are_barriers() -> None:
    text = """graph @g(%x: f32[4], %c: bool[]) -> (f32[*]) {
      %y = If(%c)
        region then_branch() -> (f32[4]) {
          %a = Relu(%x)
          return %a
        }
        region else_branch() -> (f32[4]) {
          %b = Neg(%x)
          return %b
        }
      return %y
    }"""
    graph = parse(text)
    infer_shapes(graph)
    op = graph.outputs[0].op
    assert op is not None
    assert iteration_space(op) == []


def test_expand_repeats_along_numbers_and_follows_the_operand_elsewhere() -> None:
    """An extent of 1, one that is not known to be the operand's, and a symbol to repeat by are left alone."""
    to = "%s = const() {value=[3,2,1,5]} : i64[4]"
    space = space_of("%x: f32[2,1,1]", to, "%y = Expand(%x, %s)")
    assert [(axis, operands[0]) for axis, operands, _ in space] == [(0, None), (1, Along(0)), (2, None), (3, None)]
    assert {form for _, _, form in space} == {Form.SHAPE}
    sizes = "%n = Shape(%z)", "%y = Expand(%x, %n)"
    space = space_of("%x: f32[N,1], %z: f32[M,N,K]", *sizes)
    assert [(axis, operands[0]) for axis, operands, _ in space] == [(1, Along(0))]
    assert space_of("%x: f32[*], %z: f32[M,N,K]", *sizes) == []
