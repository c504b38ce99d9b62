"""avoid-pattern: keep onnxruntime's packed block of the second run from coming on top of the first run's arena."""

from __future__ import annotations

from collections import Counter

import numpy as np

from memoptc.ir import ops
from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Op, Tensor, Value, clone_op
from memoptc.ir.tensors import from_array
from memoptc.ir.types import DType, TensorType, Type
from memoptc.pass_base import Context, Pass
from memoptc.report.model import Decision
from memoptc.runtime.memory.liveness import peak

SEQUENCES = 11
"""Opset from which there are sequences."""

SLIGHT = 0.05
"""Share by which the planned peak may grow, for outputs that are there from the start; the pattern costs much more."""
CONDITION = 1 << 10
"""Bytes that the condition may take besides."""

COUNT = TensorType(DType.INT64, ())


class AvoidPattern(Pass):
    """Put the model into a branch of an `If` that is always taken, and let that branch see an empty sequence.

    With default session options onnxruntime packs all activations of a run into one block, its memory pattern, which
    from the second run on it allocates beside what the arena took for the first. It does so only where everything
    that a graph gets is a tensor. A branch that also gets a sequence keeps to the arena: it needs about two
    thirds, at the same latency. With the pattern off (`enable_mem_pattern`, as `memoptc.runtime.Session` sets it),
    nothing is gained, and what outputs take from the start on is lost: the decision says how much; planned figures,
    which look into the branch, leave it out.

    Args:
        ignore: Bytes; a model that plans less is left as it is.
        most: Bytes that may be planned afterwards, where less was before; any when 0. A branch allocates outputs of
            known shape when it begins.
    """

    ignore: int = 1 << 20
    most: int = 0

    def apply(self, graph: Graph, stats: Counter[str], context: Context) -> None:
        """Wrap."""
        context.shapes(graph)
        why = _obstacle(graph)
        if why:
            stats[f"left: {why}"] += 1
            return
        before = peak(graph, context.dims).peak_bytes
        if before < self.ignore:
            return
        wrapped = _wrapped(graph)
        after = peak(wrapped, context.dims).peak_bytes
        if after > before * (1 + SLIGHT) + CONDITION or (before <= self.most < after):
            stats["left: a branch allocates its outputs early"] += 1
            return
        stats["branches without a pattern"] = sum(1 for _ in wrapped.walk("If"))
        graph.become(wrapped)
        context.decisions.append(
            Decision(
                step=self.name,
                what="the model runs inside a branch that is always taken",
                why="there onnxruntime's default session makes no second copy of its activations, its memory pattern",
                gain_bytes=before - after,
                cost=f"{after - before:,} bytes planned more: outputs are there from the start",
            )
        )

    def run(self, graph: Graph, stats: Counter[str]) -> None:
        """Wrap without facts about the compile."""
        self.apply(graph, stats, Context())


def _obstacle(graph: Graph) -> str:
    """Say why a model stays as it is; `""` when nothing is in the way."""
    if any(
        user.is_a("If") or user.graph is not graph for op in graph.walk("SequenceEmpty") for user in op.result.users
    ):
        return "done before"
    if (ops.opset_of(graph) or 0) < SEQUENCES:
        return f"opset below {SEQUENCES}"
    if any(not isinstance(v.type, TensorType) for v in graph.inputs):
        return "no pattern: not all inputs are tensors"
    if any(not isinstance(v.type, TensorType) or v.type.shape is None for v in graph.outputs):
        return "outputs of unknown rank"
    if any(v.op is None or v.op.is_const for v in graph.outputs) or len(set(graph.outputs)) != len(graph.outputs):
        return "outputs that are not computed"
    return ""


def _wrapped(graph: Graph) -> Graph:
    outer = Graph(graph.name, graph.model)
    outer.doc, outer.metadata = graph.doc, dict(graph.metadata)
    mapping: dict[Value, Value] = {}
    for value in graph.inputs:
        mapping[value] = outer.add_input(value.name, value.type)
    b = Builder(outer)
    empty = b.SequenceEmpty(_name="memoptc_no_pattern")
    taken = b.Equal(b.SequenceLength(empty), np.asarray(0, np.int64))
    then = Graph("model")
    for op in graph.ops:
        then.append(clone_op(op, mapping))
    then.set_outputs([mapping[v] for v in graph.outputs])
    _let_see(then, empty)
    outputs = list(then.outputs)
    _give(then, outputs, empty)
    never = Graph("never")
    _give(never, [never.const(_nothing(v.type), f"no_{v.name}") for v in outputs], empty)
    made = b.op(
        "If",
        [taken],
        outputs=len(outputs) + 1,
        type=[*(v.type for v in outputs), COUNT],
        regions={"then_branch": then, "else_branch": never},
    )
    outer.set_outputs(made.results[:-1], list(graph.outputs_info))
    return outer


def _let_see(graph: Graph, empty: Value) -> None:
    """Let the branches inside see the sequence, too."""
    for op in list(graph.ops):
        for region in op.regions.values():
            _let_see(region, empty)
        if not op.is_a("If"):
            continue
        more = Op(
            op.op_type,
            op.operands,
            [*(r.type for r in op.results), COUNT],
            dict(op.attrs),
            result_names=[*(r.name for r in op.results), ""],
            name=op.name,
            loc=op.loc,
        )
        more.doc, more.metadata = op.doc, dict(op.metadata)
        for name in list(op.regions):
            region = op.take_region(name)
            _give(region, list(region.outputs), empty)
            more.set_region(name, region)
        graph.insert_before(op, more)
        for old, new in zip(op.results, more.results[:-1], strict=True):
            new.omitted = old.omitted
            old.replace_by(new)
        op.erase()


def _give(graph: Graph, outputs: list[Value], empty: Value) -> None:
    """Set the outputs, and one more that needs the sequence."""
    graph.set_outputs([*outputs, Builder(graph).SequenceLength(empty, _type=COUNT)])


def _nothing(type: Type | None) -> Tensor:
    assert isinstance(type, TensorType)
    assert type.shape is not None
    return from_array(np.zeros([0] * len(type.shape), type.dtype.numpy()), dtype=type.dtype)
