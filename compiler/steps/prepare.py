"""The graph that passes start from, with frozen extents, constant weights and inferred types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from memoptc.compilation import Compilation
from memoptc.ir.core import Graph
from memoptc.ir.diagnostics import InputError
from memoptc.ir.dims import substitute
from memoptc.ir.infer import Inference, infer_shapes
from memoptc.last_logits import keep_last, logits_of


@dataclass
class Prepared:
    """The graph that passes start from.

    Args:
        graph: A copy of the original with frozen extents, constant weights, and types.
        shapes: What shape inference found in it.
        warnings: What the user must know.
    """

    graph: Graph
    shapes: Inference
    warnings: list[str]


def prepare(compilation: Compilation) -> Prepared:
    """Make the graph that passes start from; the original stays as it is.

    Raises:
        InputError: an extent to freeze is of no dimension, or the scores to keep the last of cannot be told.
    """
    options, data = compilation.options, compilation.data
    graph, warnings = compilation.source.graph.clone(), []
    for name in options.freeze:
        if name not in data.dims:
            raise InputError(f"There is no dimension {name!r} to freeze.", hint=f"There are: {', '.join(data.dims)}.")
    if options.freeze:
        _freeze(graph, options.freeze)
    if options.level >= 1 and graph.defaults:
        warnings.append(
            f"{len(graph.defaults)} weights are also listed as inputs, so a caller could replace them at run time; "
            "they are now constants (-O0 keeps them as they are)."
        )
        _fix_defaults(graph)
    if options.last_logits:
        logits = logits_of(graph)
        keep_last(graph, logits)
        warnings.append(f"{', '.join(logits)}: the last step only, [batch, 1, words], as asked for.")
    found = infer_shapes(graph)
    if found.unknown:
        names = ", ".join(found.unknown[:5]) + (", ..." if len(found.unknown) > 5 else "")
        warnings.append(f"{len(found.unknown)} values have no known shape: {names}.")
    for conflict in found.conflicts[:5]:
        warnings.append(f"The model states a wrong shape for {conflict}; the inferred one counts.")
    if found.failure:
        warnings.append(f"Shape inference stopped early ({found.failure}); what it found is used.")
    observed = data.observe(graph)
    if observed:
        warnings.append(observed)
    return Prepared(graph, found, warnings)


def _freeze(graph: Graph, extents: Mapping[str, int]) -> None:
    for value in graph.inputs:
        if value.tensor_type is not None:
            value.type = value.tensor_type.bind(extents)
    for output in graph.outputs_info:
        if output.tensor_type is not None and output.shape is not None:
            shape = tuple(d if d is None else substitute(d, extents) for d in output.shape)
            output.type = output.tensor_type.with_shape(shape)


def _fix_defaults(graph: Graph) -> None:
    for value, tensor in list(graph.defaults.items()):
        name = value.name
        weight = graph.const(tensor, name)
        value.replace_by(weight)
        graph.erase_input(value)
        weight.name = name
