"""Operations whose result is their operand."""

from __future__ import annotations

import numpy as np

from memoptc.ir.builder import Builder
from memoptc.ir.core import Op, Value
from memoptc.ir.dims import same
from memoptc.ir.tensors import scalar
from memoptc.ir.types import DType
from memoptc.passes.simplify._simplify.facts import (
    axes_of,
    forward,
    known_ints,
    opset,
    require,
    require_plain_view,
    same_shape,
    same_type,
    shape_of,
    tensor_type,
)
from memoptc.rewrite import NoMatch, Rule, op, rest, rewrite

FLOATS = (DType.FLOAT, DType.DOUBLE, DType.FLOAT16, DType.BFLOAT16)
_LARGE = 1 << 31


@rewrite(op.Identity("x", bind="node"))
def identity(b: Builder, x: Value, node: Op) -> Value:
    require(x.type is None or node.result.type is None or type(x.type) is type(node.result.type), "other type")
    return forward(x, node.result)


@rewrite(op.Cast("x", bind="node"))
def cast_to_same(b: Builder, x: Value, node: Op) -> Value:
    require(int(tensor_type(x).dtype) == node.attrs.get("to"), "changes the type")
    return forward(x, node.result)


@rewrite(op.CastLike("x", "like", bind="node"))
def cast_like_same(b: Builder, x: Value, like: Value, node: Op) -> Value:
    if tensor_type(x).dtype != tensor_type(like).dtype:
        rounding = {name: node.attrs.get(name) for name in ("saturate", "round_mode")}
        return b.Cast(x, to=int(tensor_type(like).dtype), **rounding)  # type: ignore[no-any-return]
    return forward(x, node.result)


@rewrite(op.any("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Tile")("x", rest("_others"), bind="node"))
def same_shape_again(b: Builder, x: Value, node: Op) -> Value:
    if node.op_type == "Tile":
        require(all(r == 1 for r in known_ints(node.input(1))), "repeats")
        return forward(x, node.result)
    require_plain_view(node)
    require(same_shape(x, node.result), "changes the shape")
    return forward(x, node.result)


@rewrite(op.Transpose("x", bind="node"))
def identity_transpose(b: Builder, x: Value, node: Op) -> Value:
    rank = len(shape_of(x))
    perm = node.attrs.get("perm", tuple(reversed(range(rank))))
    require(tuple(perm) == tuple(range(rank)), "moves axes")
    return forward(x, node.result)


@rewrite(op.Pad("x", rest("_others"), bind="node"))
def zero_pad(b: Builder, x: Value, node: Op) -> Value:
    pads = node.attrs.get("pads", node.attrs.get("paddings"))
    pads = tuple(pads) if pads is not None else known_ints(node.input(1))
    require(not any(pads), "pads")
    return forward(x, node.result)


@rewrite(op.Slice("x", rest("_others"), bind="node"))
def slice_of_everything(b: Builder, x: Value, node: Op) -> Value:
    if opset(node) < 10:
        starts, ends = tuple(node.attrs["starts"]), tuple(node.attrs["ends"])
        axes, steps = tuple(node.attrs.get("axes", range(len(starts)))), (1,) * len(starts)
    else:
        starts, ends = known_ints(node.input(1)), known_ints(node.input(2))
        axes = known_ints(node.input(3)) if node.input(3) else tuple(range(len(starts)))
        steps = known_ints(node.input(4)) if node.input(4) else (1,) * len(starts)
    shape = shape_of(x)
    require(len(starts) == len(ends) == len(axes) == len(steps), "has no axis for every cut")  # which fails in a run
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        extent = shape[axis]
        whole = end >= _LARGE - 1 or (isinstance(extent, int) and end >= extent)
        require(step == 1 and start == 0 and whole, "cuts something off")
    return forward(x, node.result)


@rewrite(op.any("Concat", "Sum", "Max", "Min", "Mean")("x", bind="node"))
def of_one_operand(b: Builder, x: Value, node: Op) -> Value:
    return forward(x, node.result)


@rewrite(op.Split("x", rest("_sizes"), bind="node"))
def split_into_one(b: Builder, x: Value, node: Op) -> Value:
    require(len(node.results) == 1, "splits")
    require(same_shape(x, node.result), "may cut something off")
    return forward(x, node.result)


@rewrite(op.Dropout("x", rest("_others"), bind="node"))
def dropout_in_inference(b: Builder, x: Value, node: Op) -> Value:
    require(node.output(1) is None or not node.results[1].has_uses, "the mask is used")
    if opset(node) >= 12:
        training = node.input(2)
        require(training is None or scalar(training.tensor) == 0, "may be training")
    elif opset(node) < 7:
        require(bool(node.attrs.get("is_test", 0)), "may be training")
    return forward(x, node.result)


@rewrite(op.Resize("x", rest("_others"), bind="node"))
def resize_to_same(b: Builder, x: Value, node: Op) -> Value:
    scales = node.input(2) if opset(node) >= 11 else node.input(1)
    require(scales is not None and scales.tensor is not None and scales.tensor.size > 0, "scales not constant")
    assert scales is not None
    assert scales.tensor is not None
    require(bool((scales.tensor.numpy() == 1).all()), "scales")
    exact = node.attrs.get("coordinate_transformation_mode", "half_pixel") in ("half_pixel", "asymmetric")
    # Interpolation multiplies a neighbour by 0, which is not 0 when that is infinite.
    require(exact and node.attrs.get("mode", "nearest") in ("nearest", b"nearest"), "other mode")
    require(same_shape(x, node.result), "shape unknown")
    return forward(x, node.result)


@rewrite(op.any("Mul", "Div")("x", "one", bind="node"))
def times_one(b: Builder, x: Value, one: Value, node: Op) -> Value:
    if node.op_type == "Div":
        require(one is node.operands[1], "divides the other way")
    require(scalar(one.tensor) == 1, "not one")
    require(same_type(x, node.result), "changes type or shape")
    return forward(x, node.result)


@rewrite(op.any("Add", "Sub")("x", "zero", bind="node"))
def plus_zero(b: Builder, x: Value, zero: Value, node: Op) -> Value:
    # x + 0.0 turns -0.0 into 0.0; x - 0.0 and x + -0.0 keep every float as it is.
    if node.op_type == "Sub":
        require(zero is node.operands[1], "subtracts the other way")
    require(scalar(zero.tensor) == 0, "not zero")
    if tensor_type(x).dtype in FLOATS:
        assert zero.tensor is not None
        negative = bool(_sign(zero))
        require(negative == (node.op_type == "Add"), "not exact for -0.0")
    require(same_type(x, node.result), "changes type or shape")
    return forward(x, node.result)


def _sign(value: Value) -> bool:
    assert value.tensor is not None
    return bool(np.signbit(value.tensor.numpy().reshape(-1)[0]))


@rewrite(op.Pow("x", "one", bind="node"))
def power_of_one(b: Builder, x: Value, one: Value, node: Op) -> Value:
    # onnxruntime computes powers in double, which holds no int64 beyond 2^53, and floats by a function of its own.
    dtype = tensor_type(x).dtype
    require(scalar(one.tensor) == 1 and dtype.is_integer() and dtype.bitwidth <= 32, "not exact")
    require(same_type(x, node.result), "changes type or shape")
    return forward(x, node.result)


@rewrite(op.Where("condition", "x", "y", bind="node"))
def where_always(b: Builder, condition: Value, x: Value, y: Value, node: Op) -> Value:
    # onnxruntime adds what is chosen to zeros, which makes 0.0 of -0.0.
    require(not tensor_type(x).dtype.is_floating_point(), "not exact for -0.0")
    if x is y:
        require(same_shape(x, node.result), "broadcasts")
        return forward(x, node.result)
    tensor = condition.tensor
    require(tensor is not None and 0 < tensor.size <= 1 << 20, "not a constant")
    assert tensor is not None
    truth = tensor.numpy()
    require(bool(truth.all()) or not bool(truth.any()), "mixed")
    chosen = x if bool(truth.all()) else y
    require(same_shape(chosen, node.result), "broadcasts")
    return forward(chosen, node.result)


@rewrite(op.any("Relu", "Abs", "Ceil", "Floor", "Round", "Sign")(op.any()(rest("_x"), bind="inner"), bind="outer"))
def idempotent(b: Builder, inner: Op, outer: Op) -> Value:
    require(inner.key == outer.key and outer.operands[0] is inner.result, "not the same twice")
    return inner.result


@rewrite(op.any("And", "Or")("x", "constant", bind="node"))
def neutral_logical_operand(b: Builder, x: Value, constant: Value, node: Op) -> Value:
    require(scalar(constant.tensor) == (node.op_type == "And"), "decides")
    require(same_type(x, node.result), "changes the shape")
    return forward(x, node.result)


@rewrite(op.Not(op.Not("x")))
def not_not(b: Builder, x: Value) -> Value:
    return x


@rewrite(op.any("ReduceSum", "ReduceMax", "ReduceMin", "ReduceMean", "ReduceProd")("x", rest("_axes"), bind="node"))
def noop_reduction(b: Builder, x: Value, node: Op) -> Value:
    axes = axes_of(node)
    if axes is None:
        require(bool(node.attrs.get("noop_with_empty_axes", 0)), "reduces everything")
        return forward(x, node.result)
    raise NoMatch("reduces")


@rewrite(op.Gather("x", "indices", bind="node"))
def gather_everything(b: Builder, x: Value, indices: Value, node: Op) -> Value:
    wanted = known_ints(indices)
    shape = shape_of(x)
    axis = node.attrs.get("axis", 0)
    require(bool(shape) and len(shape_of(indices)) == 1 and same(shape[axis], len(wanted)), "gathers some")
    require(wanted == tuple(range(len(wanted))), "gathers in another order")
    return forward(x, node.result)


@rewrite(op.SequenceLength(op.any("SequenceEmpty", "SequenceConstruct")(rest("elements"))))
def length_of_sequence(b: Builder, elements: tuple[Value, ...]) -> Value:
    return b.const(np.asarray(len(elements), np.int64))


RULES: tuple[Rule, ...] = (
    identity, cast_to_same, cast_like_same, same_shape_again, identity_transpose, zero_pad,
    slice_of_everything, of_one_operand, split_into_one, dropout_in_inference, resize_to_same, times_one,
    plus_zero, power_of_one, where_always, neutral_logical_operand,
    idempotent, not_not, noop_reduction, gather_everything,
    length_of_sequence,
)  # fmt: skip
