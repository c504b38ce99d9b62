"""Samplers of control flow and sequences: a few nodes each."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from samplers.sample import Operand, Rng, Sample, Sampler, axis_of, extent, extents, floats, maybe, param, pick, whole

FLOAT, INT64, BOOL = int(TensorProto.FLOAT), int(TensorProto.INT64), int(TensorProto.BOOL)


def _info(name: str, dtype: int = FLOAT, shape: Any = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def _graph(nodes: list[onnx.NodeProto], inputs: list[Any], outputs: list[Any]) -> onnx.GraphProto:
    return helper.make_graph(nodes, "body", inputs, outputs)


def _step(r: Rng, source: str, result: str) -> onnx.NodeProto:
    """A node that may or may not change the shape."""
    way = int(r.integers(4))
    if way == 0:
        return helper.make_node("Relu", [source], [result])
    if way == 1:
        return helper.make_node("Concat", [source, source], [result], axis=0)
    if way == 2:
        return helper.make_node("Transpose", [source], [result])
    return helper.make_node("Add", [source, "b"], [result])


def branch(r: Rng) -> Sample:
    shape = extents(r, 2)
    other = tuple(1 if r.random() < 0.3 else e for e in shape)
    operands = {
        "c": Operand(np.asarray(r.random() < 0.5), weight=r.random() < 0.3),
        "a": Operand(floats(r, *shape)),
        "b": Operand(floats(r, *other)),
    }
    branches = [_graph([_step(r, "a", name)], [], [_info(name)]) for name in ("t", "e")]
    node = helper.make_node("If", ["c"], ["y"], then_branch=branches[0], else_branch=branches[1])
    return Sample([node, helper.make_node("Identity", ["y"], ["z"])][:1], operands)


def loop(r: Rng) -> Sample:
    """State, a captured value and two collections; no trips, unknown trips, early ends."""
    shape = extents(r, 2)
    trips = int(r.integers(0, 4))
    operands = {
        "n": Operand(np.asarray(trips, np.int64), weight=r.random() < 0.5),
        "go": Operand(np.asarray(r.random() < 0.8), weight=r.random() < 0.6),
        "a": Operand(floats(r, *shape)),
        "b": Operand(floats(r, *(1 if r.random() < 0.3 else e for e in shape))),
    }
    nodes = [_step(r, "s", "s1"), helper.make_node("Add", ["b", "b"], ["w"])]
    if r.random() < 0.7:
        nodes.append(helper.make_node("Identity", ["c0"], ["c1"]))
    else:
        nodes.append(helper.make_node("Constant", [], ["two"], value_int=1))
        nodes.append(helper.make_node("Less", ["i", "two"], ["c1"]))
    body = _graph(
        nodes,
        [_info("i", INT64, ()), _info("c0", BOOL, ()), _info("s")],
        [_info("c1", BOOL, ()), _info("s1"), _info("w"), _info("s")][: pick(r, 3, 3, 4)],
    )
    if len(body.output) == 4:
        body.node.append(helper.make_node("Neg", ["s"], ["s2"]))
        body.output[3].name = "s2"
    first = ["n", "go"]
    if r.random() < 0.3:
        first[1] = ""
        del operands["go"]
    made = [f"y{i}" for i in range(len(body.output) - 1)]
    return Sample([helper.make_node("Loop", [*first, "a"], made, body=body)], operands)


def scan(r: Rng) -> Sample:
    shape = (1 + extent(r), 1 + extent(r))
    operands = {"s0": Operand(floats(r, *shape[1:])), "x": Operand(floats(r, *shape))}
    nodes = [helper.make_node("Add", ["s", "e"], ["s1"]), helper.make_node("Concat", ["e", "s"], ["o"], axis=0)]
    body = _graph(nodes, [_info("s"), _info("e")], [_info("s1"), _info("o")])
    attrs: dict[str, Any] = {}
    if r.random() < 0.3:
        attrs["scan_output_axes"] = [pick(r, 1, -1)]
    if r.random() < 0.3:
        operands["x"] = Operand(floats(r, *shape[::-1]))
        attrs["scan_input_axes"] = [pick(r, 1, -1)]
    return Sample(
        [helper.make_node("Scan", ["s0", "x"], ["y0", "y1"], body=body, num_scan_inputs=1, **attrs)],
        operands,
        empty=False,
    )


def sequence(r: Rng) -> Sample:
    rank = int(r.integers(1, 4))
    shape, axis = list(extents(r, rank)), axis_of(r, rank)
    count = int(r.integers(1, 4))
    sizes = [1 + extent(r) for _ in range(count)]
    shape[axis] = sum(sizes)
    operands = {"x": Operand(floats(r, *shape))}
    way, inputs = int(r.integers(4)), ["x"]
    if way == 1:
        operands["s"] = param(*sizes)
        inputs.append("s")
    elif way == 2:
        operands["s"] = Operand(np.asarray(int(r.integers(1, 4)), np.int64), param=True)
        inputs.append("s")
    drop = maybe(r, int(r.integers(2))) if way in (0, 3) else None
    nodes = [
        helper.make_node("SplitToSequence", inputs, ["q"], axis=axis, **({} if drop is None else {"keepdims": drop}))
    ]
    operands["p"] = Operand(np.asarray(int(r.integers(-1, 1)), np.int64))
    nodes.append(helper.make_node("SequenceAt", ["q", "p"], ["e"]))
    nodes.append(helper.make_node("SequenceLength", ["q"], ["l"]))
    if drop == 0 and way in (0, 3):
        nodes.append(helper.make_node("ConcatFromSequence", ["q"], ["j"], axis=0, new_axis=1))
    else:
        nodes.append(helper.make_node("ConcatFromSequence", ["q"], ["j"], axis=axis))
    return Sample(nodes, operands)


def constructed(r: Rng) -> Sample:
    shape = extents(r, 2)
    parts = {f"x{i}": Operand(floats(r, *(shape if r.random() < 0.5 else extents(r, 2)))) for i in range(2)}
    operands = {**parts, "p": Operand(np.asarray(0, np.int64))}
    nodes = [helper.make_node("SequenceConstruct", list(parts), ["q"])]
    last = "q"
    if r.random() < 0.5:
        operands["n"] = Operand(floats(r, *extents(r, 2)))
        nodes.append(helper.make_node("SequenceInsert", ["q", "n", *(["p"] if r.random() < 0.5 else [])], ["q1"]))
        last = "q1"
    if r.random() < 0.3:
        nodes.append(helper.make_node("SequenceErase", [last, "p"], ["q2"]))
        last = "q2"
    nodes.append(helper.make_node("SequenceAt", [last, "p"], ["e"]))
    return Sample(nodes, operands)


def optional(r: Rng) -> Sample:
    operands = {"x": Operand(floats(r, *extents(r, 2)))}
    nodes = [helper.make_node("Optional", ["x"], ["o"])]
    nodes.append(helper.make_node("OptionalHasElement", ["o"], ["h"]))
    nodes.append(helper.make_node("OptionalGetElement", ["o"], ["y"]))
    return Sample(nodes, operands)


def mapped(r: Rng) -> Sample:
    operands = {"x": Operand(floats(r, 1 + extent(r), *extents(r, 1))), "p": Operand(np.asarray(0, np.int64))}
    body = _graph([helper.make_node("Transpose", ["e"], ["t"])], [_info("e")], [_info("t")])
    nodes = [
        helper.make_node("SplitToSequence", ["x"], ["q"], axis=0),
        helper.make_node("SequenceMap", ["q"], ["m"], body=body),
        helper.make_node("SequenceAt", ["m", "p"], ["y"]),
    ]
    return Sample(nodes, operands)


def shape_arithmetic(r: Rng) -> Sample:
    """Extents that are computed from others, and a Reshape or Expand by them."""
    shape = tuple(1 + extent(r) for _ in range(2))
    operands = {"x": Operand(floats(r, *shape)), "y": Operand(floats(r, *shape))}
    nodes = [helper.make_node("Shape", ["x"], ["sx"]), helper.make_node("Shape", ["y"], ["sy"])]
    last = "sx"
    for index in range(int(r.integers(1, 4))):
        op_type = pick(
            r, "Add", "Sub", "Mul", "Div", "Max", "Min", "Mod", "Where", "Cast", "Neg", "Abs", "Concat", "Ceil"
        )
        made = f"t{index}"
        if op_type == "Where":
            nodes.append(helper.make_node("Equal", [last, "sy"], [f"{made}c"]))
            nodes.append(helper.make_node("Where", [f"{made}c", last, "sy"], [made]))
        elif op_type in ("Cast", "Ceil"):
            nodes.append(helper.make_node("Cast", [last], [f"{made}f"], to=FLOAT))
            half = f"{made}h"
            operands[half] = Operand(np.asarray(pick(r, 0.5, 0.3, 1.5, -0.5, 2.0), np.float32), weight=True)
            nodes.append(helper.make_node("Mul", [f"{made}f", half], [f"{made}g"]))
            source = f"{made}g"
            if op_type == "Ceil":
                nodes.append(helper.make_node(pick(r, "Ceil", "Floor", "Round"), [source], [f"{made}r"]))
                source = f"{made}r"
            nodes.append(helper.make_node("Cast", [source], [made], to=INT64))
        elif op_type in ("Neg", "Abs"):
            nodes.append(helper.make_node(op_type, [last], [made]))
        elif op_type == "Concat":
            operands[f"{made}i"] = Operand(whole(r, -2, 2, 2), weight=True)
            nodes.append(helper.make_node("Gather", [last, f"{made}i"], [made], axis=0))
        else:
            other = "sy"
            if r.random() < 0.6:
                other = f"{made}k"
                operands[other] = Operand(np.asarray([pick(r, 1, 2, 3, -1, -2, 4)], np.int64), weight=True)
            nodes.append(helper.make_node(op_type, [last, other], [made]))
        last = made
    nodes.append(helper.make_node("Abs", [last], ["target"]))
    nodes.append(helper.make_node("ConstantOfShape", ["target"], ["z"]))
    nodes.append(helper.make_node(pick(r, "NonZero", "Relu"), ["z"], ["out"]))
    return Sample(nodes, operands)


SAMPLERS: tuple[Sampler, ...] = (
    branch,
    loop,
    loop,
    scan,
    sequence,
    constructed,
    optional,
    mapped,
    shape_arithmetic,
    shape_arithmetic,
)
