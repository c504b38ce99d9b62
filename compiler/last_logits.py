"""--last-logits: the scores of a vocabulary for the last step only, which is all that generating needs.

The outputs become [batch, 1, vocabulary]. That changes the interface, so it is asked for, and written into the model's
metadata; the control gets the same Slice, so that results are compared with the original's last row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph
from memoptc.ir.diagnostics import InputError
from memoptc.ir.dims import same
from memoptc.ir.infer import infer_shapes
from memoptc.ir.ops import opset_of
from memoptc.runtime.roles import find_roles

KEY = "memoptc.last_logits"
"""Entry of the model's metadata: names of the outputs that hold the last step only, separated by spaces."""

_BOUNDS = {"starts": -1, "ends": np.iinfo(np.int64).max, "axes": 1}
_OLDEST = 10
"""The opset from which on a Slice takes its bounds as operands."""


def logits_of(graph: Graph) -> list[str]:
    """Name the outputs that score a vocabulary for each step: [batch, steps, words].

    They are as wide as the table that the ids index, or, where none is, have one row for each id.

    Raises:
        InputError: there is none, or the opset is too old.
    """
    if (opset_of(graph) or 0) < _OLDEST:
        raise InputError("--last-logits needs a model of opset 10 or newer.", hint="Raise its opset, or leave it out.")
    typed = graph.clone()
    infer_shapes(typed)
    roles = find_roles(typed)
    words, steps = set(), []
    for value in typed.inputs:
        extents = roles[value.name].extents
        if value.tensor_type is None or not extents or roles[value.name].positions:
            continue
        words |= {extent for extent in extents if isinstance(extent, int)}
        if value.shape is not None and len(value.shape) == 2:
            steps.append(value.shape[1])
    wide, long = [], []
    for value, info in zip(typed.outputs, typed.outputs_info, strict=True):
        shape = value.shape
        if shape is None or len(shape) != 3:
            continue
        if value.is_floating_point and isinstance(shape[2], int):
            wide += [info.name] if shape[2] in words else []
            long += [info.name] if any(same(shape[1], s) for s in steps) else []
    if not wide and not long:
        raise InputError(
            "--last-logits: no output is [batch, steps, vocabulary] with as many steps or words as the ids have.",
            hint="Leave it out.",
        )
    return wide or long


def keep_last(graph: Graph, names: Sequence[str]) -> None:
    """Take the last row of these outputs, and say so in the metadata."""
    outputs, infos = list(graph.outputs), list(graph.outputs_info)
    b = Builder(graph)
    for index, info in enumerate(infos):
        if info.name in names:
            bounds = [np.asarray([number], np.int64) for number in _BOUNDS.values()]
            outputs[index] = b.Slice(outputs[index], *bounds)
            if info.tensor_type is not None and info.shape is not None:
                info.type = info.tensor_type.with_shape((info.shape[0], 1, info.shape[2]))
    graph.set_outputs(outputs, infos)
    graph.info.metadata[KEY] = " ".join(names)


def keep_last_of(model: onnx.ModelProto, names: Sequence[str]) -> None:
    """Do the same to a model as ONNX holds it, and nothing else."""
    taken = {n for node in model.graph.node for n in (*node.input, *node.output)}
    taken |= {i.name for i in (*model.graph.input, *model.graph.initializer)}

    def fresh(name: str) -> str:
        while name in taken:
            name += "_"
        taken.add(name)
        return name

    bounds = [fresh(f"last_step_{name}") for name in _BOUNDS]
    for name, number in zip(bounds, _BOUNDS.values(), strict=True):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray([number], np.int64), name))
    for info in model.graph.output:
        if info.name not in names:
            continue
        whole = fresh(f"{info.name}_all_steps")
        for node in model.graph.node:
            node.output[:] = [whole if n == info.name else n for n in node.output]
            _rename(node, info.name, whole)
        model.graph.node.append(helper.make_node("Slice", [whole, *bounds], [info.name]))
        if len(info.type.tensor_type.shape.dim) == 3:
            info.type.tensor_type.shape.dim[1].dim_value = 1


def _rename(node: onnx.NodeProto, name: str, to: str) -> None:
    node.input[:] = [to if n == name else n for n in node.input]
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                _rename(inner, name, to)
