"""Calibration of a decoder that scores its last step only: it sees all steps, as the weights do over a whole text."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.diagnostics import InputError
from memoptc.ir.infer import infer_shapes
from memoptc.ir.ops import facts
from memoptc.ir.tensors import ints
from memoptc.ir.types import TensorType
from memoptc.last_logits import KEY
from memoptc.pass_base import Context
from memoptc.passes.precision._quantize.observe import observe

T = TypeVar("T")


def observe_steps(
    graph: Graph, values: Iterable[Value], context: Context, look: Callable[[Path, dict[str, Value]], dict[str, T]]
) -> dict[Value, T]:
    """Look at values as `observe` does; of a decoder that scores its last step only, at all steps.

    Args:
        graph: The top graph.
        values: What to look at.
        context: Of the compile.
        look: From a file and the values of `graph` by name to what was seen, by name.
    """
    wanted = list(values)
    whole = every_step(graph)
    if whole is not None:
        copy, moved = whole
        mine = {moved[v]: v for v in wanted}
        try:
            seen = observe(copy, mine, context, lambda path, names: look(path, {n: mine[v] for n, v in names.items()}))
            return {mine[v]: found for v, found in seen.items()}
        except InputError:  # it computes something that holds for one step only
            pass
    return observe(graph, wanted, context, look)


def every_step(graph: Graph) -> tuple[Graph, dict[Value, Value]] | None:
    """Copy a graph compiled with `--last-logits`, without the Slices that leave the last step.

    Generating asks for the scores behind each step in turn, so the rows that the last layers meet are those of all
    steps; of a prompt at once they would see one row, far too few to round weights by. `None` for any other graph.

    Returns:
        The copy, and its values by those of the graph.
    """
    if KEY not in graph.info.metadata:
        return None
    moved: dict[Value, Value] = {}
    copy = graph.clone(moved)
    slices = [op for op in copy.ops if facts(op).moves and _leaves_last_step(op)]
    if not slices:
        return None
    behind: dict[Op, None] = {}
    todo = list(slices)
    while todo:
        for user in (user for result in todo.pop().results for user in result.users):
            if user.graph is copy and user not in behind and user.results:
                behind[user] = None
                todo.append(user)
    for op in slices:
        op.result.replace_by(op.operand)
    for op in behind:  # what is said of their extents holds for one step
        for result in op.results:
            if result.dtype is not None:
                result.type = TensorType(result.dtype, None)
    infer_shapes(copy)
    return copy, moved


def _leaves_last_step(op: Op) -> bool:
    """True if an op that moves elements takes [:, -1:] of [batch, steps, channels]: by starts, ends and axes."""
    bounds = [ints(v.tensor) for v in op.operands[1:]]
    return (
        op.operand.rank == 3
        and op.operand.is_floating_point
        and len(bounds) >= 3
        and bounds[0] == (-1,)
        and bounds[1] is not None
        and len(bounds[1]) == 1
        and bounds[1][0] >= 2**31 - 1
        and bounds[2] in ((1,), (-2,))
        and (len(bounds) == 3 or bounds[3] in (None, (1,)))
    )
