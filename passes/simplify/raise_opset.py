"""raise-opset: bring an old model to an opset that has the operators other passes need."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx.helper
import onnx.numpy_helper
import onnx.version_converter

from memoptc.ir import ops
from memoptc.ir.core import Graph, Op
from memoptc.ir.diagnostics import MemoptcError
from memoptc.ir.onnx_io import read_onnx, to_proto
from memoptc.pass_base import Context, Pass
from memoptc.runtime.same_outputs import outputs_differ

CLOSE = 1e-6
"""Largest difference, relative to an output's largest magnitude, that another kernel of the newer opset may make."""


class RaiseOpset(Pass):
    """Convert a model of an opset below `below` to opset `to`, with ONNX's own converter.

    The converter has faults, so the result is run against the model before, and dropped (with a warning) when
    a number differs. Integer convolutions need opset 10, quantization at run time 11.

    Args:
        to: Opset to convert to.
        below: Models of this opset or a later one stay as they are.
        needed: Whether to warn where it cannot be done.
    """

    to: int = 13
    below: int = 11
    needed: bool = True

    def run(self, graph: Graph, context: Context) -> None:
        """Convert, compare, take over."""
        version = ops.opset_of(graph)
        if version is None or version >= self.below:
            return
        why = ""
        try:
            if version < _SOFTMAX_BY_AXIS <= self.to:
                _refuse(graph)
            before = to_proto(graph)
            after = _converted(_of_last_axes(graph, before), self.to, version, {v.name for v in graph.inputs})
            why = outputs_differ(graph, before, after, CLOSE)
        except Exception as e:  # the converter raises whatever its C++ throws
            why = " ".join(str(e).split())[:200]
        if why:
            context.stats["left: not converted"] += 1
            if self.needed:
                context.warnings.append(f"The model stays at opset {version}, since converting it failed: {why}.")
            return
        graph.become(read_onnx(after))
        graph.info.opset_imports[""] = self.to
        graph.info.ir_version = max(graph.info.ir_version, 7)
        context.shapes(graph)
        context.stats["opsets raised"] += self.to - version


_BY_ROWS = ("Softmax", "LogSoftmax", "Hardmax")


def _refuse(graph: Graph) -> None:
    """Raise where the converter's result would not run for every extent that the model runs for."""
    for op in graph.walk(*_BY_ROWS):
        shape = op.operands[0].shape
        known = shape is not None and all(isinstance(d, int) and d > 0 for d in shape)
        if not _takes_last(op) and not known:
            raise MemoptcError(
                f"{op.op_type} {op.name!r} takes several axes for one, which later opsets only say by reshaping, which "
                "fails for extents of 0",
                hint="Leave raise-opset away.",
            )


def _takes_last(op: Op) -> bool:
    """True if a Softmax or its like takes the last axis alone."""
    shape = op.operands[0].shape
    return shape is not None and int(op.attrs.get("axis", 1)) in (-1, len(shape) - 1)


def _of_last_axes(graph: Graph, model: onnx.ModelProto) -> onnx.ModelProto:
    """Give a copy in which the last axis is -1: the converter knows fewer ranks, and would reshape."""
    last = {op.result.name for op in graph.walk(*_BY_ROWS) if _takes_last(op)}
    if not last:
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for inner in (copy.graph, *(body for _, body in _bodies(copy.graph))):
        for node in inner.node:
            if node.op_type in _BY_ROWS and node.output[0] in last:
                kept = [a for a in node.attribute if a.name != "axis"]
                del node.attribute[:]
                node.attribute.extend([*kept, onnx.helper.make_attribute("axis", -1)])
    return copy


_SOFTMAX_BY_AXIS = 13


def _converted(model: onnx.ModelProto, to: int, version: int, inputs: set[str]) -> onnx.ModelProto:
    raised = onnx.version_converter.convert_version(model, to)
    raised.ir_version = max(raised.ir_version, 7)
    # Types change between opsets (the mask of a Dropout): what was inferred before does not hold any more.
    del raised.graph.value_info[:]
    _restore_types(dict(_bodies(model.graph)), raised.graph)
    for value in [v for v in raised.graph.input if v.name not in inputs]:
        raised.graph.input.remove(value)
    if version < 11:
        # Up to opset 10 a Resize could work in one way only; the converter leaves that out.
        weights = {t.name: onnx.numpy_helper.to_array(t) for t in raised.graph.initializer}
        weights |= {
            node.output[0]: onnx.numpy_helper.to_array(node.attribute[0].t)
            for node in raised.graph.node
            if node.op_type == "Constant" and node.attribute[0].name == "value"
        }
        for node in raised.graph.node:
            if node.op_type == "Resize" and not any("coord" in a.name for a in node.attribute):
                scales = weights.get(node.input[_SCALES]) if len(node.input) > _SCALES else None
                mode = onnx.helper.make_attribute("coordinate_transformation_mode", "asymmetric")
                node.attribute.extend([mode, onnx.helper.make_attribute("nearest_mode", _rounding(node, scales))])
    return raised


def _bodies(graph: onnx.GraphProto) -> Iterator[tuple[tuple[str, ...], onnx.GraphProto]]:
    """Give each body of control flow with the results and the attribute that it belongs to."""
    for node in graph.node:
        for attr in node.attribute:
            if attr.HasField("g"):
                yield (attr.name, *node.output), attr.g
                yield from _bodies(attr.g)


def _restore_types(before: dict[tuple[str, ...], onnx.GraphProto], graph: onnx.GraphProto) -> None:
    """Say of the values of bodies what the model says.

    The converter adds shapes, and what a Loop collects in no trips at all has the shape that its body states.
    """
    for key, body in _bodies(graph):
        del body.value_info[:]
        stated = before.get(key)
        if stated is None:
            continue
        for old, new in zip((*stated.input, *stated.output), (*body.input, *body.output), strict=True):
            new.ClearField("type")
            if old.HasField("type"):
                new.type.CopyFrom(old.type)


_SCALES = 2
"""Where a Resize has its scales, from opset 11 on."""


def _rounding(node: onnx.NodeProto, scales: np.ndarray[Any, Any] | None) -> str:
    """Rounding of the Resize of opset 10 to the nearest: down along axes that grow, up along those that shrink."""
    if not any(a.name == "mode" and a.s != b"nearest" for a in node.attribute):
        if scales is None or (scales.min() < 1 < scales.max()):
            raise MemoptcError(
                f"Resize {node.name!r} rounds up along one axis and down along another, or as its scales say at run "
                "time, which later opsets cannot",
                hint="Leave raise-opset away.",
            )
        return "ceil" if scales.min() < 1 else "floor"
    return "floor"
