"""Shape inference of If and Loop that holds for every branch and every iteration.

onnx-shape-inference 0.4 takes one branch's shape where the other's is unknown, and gives a loop's state the
shape that it has after the first iteration. Wrong shapes would make passes wrong, so these two handlers
take their place. Loop bodies are then checked by induction (`unstable_state`): if the state leaves the body with
the shape that it entered with, that shape holds in every iteration.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import onnx_ir
from onnx_shape_inference import registry

from memoptc.ir import corrections


@cache
def install() -> None:
    """Put our handlers into the engine's registry, once per process."""
    registry.collect()
    registry.register("", "If", since_version=1)(_infer_if)
    registry.register("", "Loop", since_version=1)(_infer_loop)
    corrections.install()


def _dims_match(a: int | onnx_ir.SymbolicDim, b: int | onnx_ir.SymbolicDim) -> bool:
    if isinstance(a, int) or isinstance(b, int):
        return isinstance(a, int) and isinstance(b, int) and a == b
    return a.value is not None and a.value == b.value


def _merged(context: Any, a: onnx_ir.Shape | None, b: onnx_ir.Shape | None) -> onnx_ir.Shape | None:
    if a is None or b is None or len(a) != len(b):
        return None
    pairs = zip(a.dims, b.dims, strict=True)
    return onnx_ir.Shape([x if _dims_match(x, y) else context.new_symbolic_dim() for x, y in pairs])


def _set(context: Any, output: onnx_ir.Value, type_: Any, shape: onnx_ir.Shape | None) -> None:
    if type_ is None:
        return
    if isinstance(type_, onnx_ir.TensorType):
        context.set_shape_and_dtype(output, shape, type_.dtype)
    else:
        context.set_type(output, type_)


def _infer_if(context: Any, node: onnx_ir.Node) -> None:
    names = ("then_branch", "then_branch") if _compares_nothing(node.inputs[0]) else ("then_branch", "else_branch")
    branches = [node.attributes[name].as_graph() for name in names]
    for index, output in enumerate(node.outputs):
        a, b = (branch.outputs[index] for branch in branches)
        if a.type is None or b.type is None or a.type != b.type:
            continue
        _set(context, output, a.type, _merged(context, a.shape, b.shape))


def _compares_nothing(condition: onnx_ir.Value | None) -> bool:
    """True if a condition compares the length of an empty sequence with 0: such a branch is always taken."""
    equal = condition.producer() if condition is not None else None
    if equal is None or equal.op_type != "Equal" or len(equal.inputs) != 2:
        return False
    length, zero = equal.inputs
    counts = length.producer() if length is not None else None
    made = (
        counts.inputs[0].producer() if counts is not None and counts.inputs and counts.inputs[0] is not None else None
    )
    return (
        counts is not None
        and counts.op_type == "SequenceLength"
        and made is not None
        and made.op_type == "SequenceEmpty"
        and zero is not None
        and zero.const_value is not None
        and not zero.const_value.numpy().any()
    )


def _infer_loop(context: Any, node: onnx_ir.Node) -> None:
    body = node.attributes["body"].as_graph()
    carried = len(node.inputs) - 2
    trips = None
    if node.inputs[0] is not None and _runs_to_the_end(node, body):
        known = context.get_symbolic_value(node.inputs[0])
        trips = known[0] if known is not None and len(known) == 1 else _number(node.inputs[0])
    collects = _runs_once(node)
    for index, output in enumerate(node.outputs):
        inner = body.outputs[index + 1]
        if index < carried:
            start = node.inputs[index + 2]
            if start is not None and start.type is not None and start.type == inner.type:
                _set(context, output, inner.type, _merged(context, start.shape, inner.shape))
        elif inner.type is not None:
            shape = None
            if inner.shape is not None and collects:
                first = trips if trips is not None else context.new_symbolic_dim()
                shape = onnx_ir.Shape([first, *inner.shape.dims])
            _set(context, output, inner.type, shape)


def _number(value: onnx_ir.Value | None) -> int | None:
    constant = None if value is None else onnx_ir.convenience.get_const_tensor(value)
    return int(constant.numpy().reshape(-1)[0]) if constant is not None and constant.size == 1 else None


def _runs_once(node: onnx_ir.Node) -> bool:
    """True if a Loop runs at least once, as far as one can see.

    Of no iterations, onnxruntime collects values of the rank that its own inference finds: of one axis where that finds
    none, and else with every extent 0 that it does not know.
    """
    trips, condition = node.inputs[0], node.inputs[1] if len(node.inputs) > 1 else None
    holds = condition is None or bool(_number(condition))
    count = _number(trips)
    return holds and (trips is None or (count is not None and count > 0))


def _runs_to_the_end(node: onnx_ir.Node, body: onnx_ir.Graph) -> bool:
    """True if the condition is true from the start and stays so, as far as one can see."""
    start, inside, after = node.inputs[1], body.inputs[1], body.outputs[0]
    holds = start is None or (start.const_value is not None and bool(start.const_value.numpy().all()))
    producer = after.producer()
    passed_on = after is inside or (
        producer is not None and producer.op_type == "Identity" and producer.inputs[0] is inside
    )
    constant = after.const_value is not None and bool(after.const_value.numpy().all())
    return holds and (passed_on or constant)


def unstable_state(node: onnx_ir.Node) -> dict[int, onnx_ir.Shape]:
    """Find the state of a Loop whose shape is not the same in each iteration.

    Args:
        node: A Loop, after inference.

    Returns:
        Index of the body's input -> the shape to assume instead: unknown where it does not hold.
    """
    body = node.attributes["body"].as_graph()
    found: dict[int, onnx_ir.Shape] = {}
    for index in range(2, len(node.inputs)):
        inside, after = body.inputs[index], body.outputs[index - 1]
        if inside.shape is None:
            continue
        if after.shape is None or len(after.shape) != len(inside.shape):
            found[index] = onnx_ir.Shape([None] * len(inside.shape))
            continue
        same = [_dims_match(a, b) for a, b in zip(inside.shape.dims, after.shape.dims, strict=True)]
        start = node.inputs[index]
        if start is not None and start.shape is not None and len(start.shape) == len(inside.shape):
            holds = [_dims_match(a, b) for a, b in zip(inside.shape.dims, start.shape.dims, strict=True)]
            same = [s and h for s, h in zip(same, holds, strict=True)]
        if not all(same):
            dims = [d if s else None for d, s in zip(inside.shape.dims, same, strict=True)]
            found[index] = onnx_ir.Shape(dims)
    return found
