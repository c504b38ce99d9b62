"""Writing an exit: a head, a confidence, and an If whose other branch is the rest of the model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.types import DType, TensorType
from memoptc.passes.shrink._exit.scores import gives_probabilities

NEVER = 2.0
"""A threshold above every confidence."""


def pooled(b: Builder, value: Value) -> Value:
    """Features of a hidden state, float32 `[batch, features]`.

    Of `[batch, tokens, width]` the mean over tokens and token 0; of `[batch, channels, height, width]` the mean and the
    largest over the image; of `[batch, features]` all.
    """
    whole = value if value.dtype == DType.FLOAT else b.Cast(value, to=int(DType.FLOAT))
    rank = len(value.shape or ())
    if rank == 2:
        found: Value = b.Identity(whole) if whole is value else whole
        return found
    axes = np.array([1] if rank == 3 else [2, 3], np.int64)
    mean = b.ReduceMean(whole, axes, keepdims=0)
    other = b.Gather(whole, np.int64(0), axis=1) if rank == 3 else b.ReduceMax(whole, axes, keepdims=0)
    both: Value = b.Concat(mean, other, axis=1)
    return both


def write_exit(
    graph: Graph,
    value: Value,
    weight: npt.NDArray[np.float32],
    bias: npt.NDArray[np.float32],
    threshold: float,
    rule: str,
) -> None:
    """Let a model end behind a value where its least confident sample is confident enough.

    Args:
        graph: The top graph, with one output of class scores `[batch, classes]`, or probabilities by a Softmax.
        value: Hidden state; what follows it moves into a branch.
        weight: Of the head, `[features, classes]`.
        bias: Of the head, `[classes]`.
        threshold: Least confidence in [0, 1]. At 0 every batch ends here, at 1 none.
        rule: Name that new ops carry as their origin.
    """
    assert value.op is not None
    anchor = value.op.next
    assert anchor is not None
    (output,) = graph.outputs
    b = Builder(graph, before=anchor, loc=value.op.loc.union(rule=rule))
    scores = b.Add(b.MatMul(pooled(b, value), weight), bias)
    sure = confident(b, b.Softmax(scores, axis=1), threshold)
    rest = [op for op in list(graph.ops) if op not in set(b.made)]
    rest = rest[rest.index(anchor) :]
    ends = Graph("exit")
    inside = Builder(ends, loc=b.loc)
    result = inside.Identity(scores)
    if gives_probabilities(graph):
        result = inside.Softmax(scores, axis=1)
    if output.dtype != DType.FLOAT:
        assert output.dtype is not None
        result = inside.Cast(result, to=int(output.dtype))
    classes = (output.shape or (None, None))[1]
    result.type = TensorType(output.dtype or DType.FLOAT, ((value.shape or (None,))[0], classes))
    ends.set_outputs([result])
    end_or_go_on(b, sure, ends, rest)


def confident(b: Builder, probabilities: Value, threshold: float) -> Value:
    """Give whether every row of `[batch, classes]` is confident enough, as a scalar; NaN never is.

    Args:
        b: Where to put the ops.
        probabilities: Of the classes, per row.
        threshold: Least confidence in [0, 1]. At 0 every batch is confident, at 1 none.
    """
    likely = b.op("TopK", [probabilities, np.array([2], np.int64)], {"axis": 1}, outputs=2).results[0]
    first, second = (b.Gather(likely, np.int64(i), axis=1) for i in (0, 1))
    least = np.array(NEVER if threshold >= 1 else threshold, np.float32)
    # Counted, since a smallest of no rows is refused, and one among NaN may be a number.
    unsure = b.Cast(b.Not(b.GreaterOrEqual(b.Sub(first, second), least)), to=int(DType.INT64))
    sure: Value = b.Equal(b.ReduceSum(unsure, keepdims=0), np.int64(0))
    return sure


def end_or_go_on(b: Builder, sure: Value, ends: Graph, rest: Sequence[Op]) -> None:
    """Make the graph's only output that of an If: of `ends` where `sure` holds, else what it was.

    Args:
        b: Where to put the If, in the top graph.
        sure: The condition, a scalar.
        ends: The branch that ends early; it gives one value.
        rest: The ops that move into the other branch, constants excepted.
    """
    graph = b.graph
    (output,) = graph.outputs
    goes_on = Graph("rest")
    made = b.op("If", [sure], type=output.type, regions={"then_branch": ends, "else_branch": goes_on})
    start = Builder(goes_on).const(np.zeros(1, np.float32)).op
    assert start is not None
    last: Op = start
    for op in rest:
        if not op.is_const:
            op.move_after(last)
            last = op
    start.erase()
    name = output.name
    graph.set_outputs([made.result])
    goes_on.set_outputs([output])
    if output.name == name:
        output.name = goes_on.fresh_name(f"{name}_whole")
    made.result.name = name
