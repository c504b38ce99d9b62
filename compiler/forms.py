"""The form in which a compiled graph is written: the one with which a process needs least."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from memoptc.ir.core import Graph, Op, Tensor
from memoptc.ir.diagnostics import InputError
from memoptc.ir.form_names import FORMS, FormName
from memoptc.ir.forms import WritingForm, captured_weights, obstacle, wrap
from memoptc.ir.infer import infer_shapes
from memoptc.ir.mapped import is_external
from memoptc.ir.onnx_io import weight_tensors, write_into
from memoptc.ir.onnx_write import EXTERNAL_THRESHOLD, INLINE_LIMIT
from memoptc.ir.tensors import nbytes
from memoptc.ir.types import DType
from memoptc.options import Options
from memoptc.report.model import Decision
from memoptc.runtime.devices import load_device
from memoptc.runtime.measure import measure_need, measure_need_up_to
from memoptc.runtime.memory.extents import bind_shapes
from memoptc.runtime.memory.liveness import peak
from memoptc.runtime.memory.need import Configuration, predict_need
from memoptc.runtime.options import Feed, RunOptions

EXTERNAL_FROM = 1 << 20
"""Bytes of weights from which they go beside the model: there they are mapped instead of copied."""
COPIED_FROM = 1 << 18
"""The same inside a branch, which onnxruntime holds twice besides what it packs: in the node and in the graph of it."""

IGNORE = 1 << 20
"""Bytes of planned activations below which a branch cannot gain anything."""

FIRST_LEVEL = 2
"""Level from which a branch is considered."""

SLIGHT = 0.01
"""Share of need that a branch must gain at least."""
UNSURE = 0.02
"""The same on paper, where the graph has branches of its own: the model of need counts no pattern inside those."""

COPIES = 0.3
"""The same on paper, where weights are more than activations: copies of them decide, which are not known as well, and
which small inputs pay, too."""

SIMPLER_FORMS: Mapping[FormName, Sequence[FormName]] = {
    "plain": (),
    "branch": ("plain",),
    "captured": ("plain",),
    "shapeless": ("branch", "plain"),
}
"""A form that broke a promise -> those to try instead, one after the other."""

_SECONDS = 4.0
"""Seconds that the runs of one form may take while it is measured."""

HOPELESS = 1.5
"""Ratio of predicted needs above which a form is not measured: weights copied into a branch outweigh what it saves."""


@dataclass(frozen=True)
class Choice:
    """A form and why it was taken.

    Args:
        form: For a file.
        inline: For a protobuf message, which holds its weights.
        decision: For the report; `None` where there was nothing to decide.
    """

    form: WritingForm
    inline: WritingForm
    decision: Decision | None = None


def choose_form(
    graph: Graph,
    dims: Mapping[str, int],
    options: Options,
    *,
    frozen: bool = False,
    feed: Feed | None = None,
) -> Choice:
    """Choose how to write a graph.

    Args:
        graph: The compiled graph; types that it lacks are inferred.
        dims: Extents to plan with.
        options: The options in force; `form` and `external` pin the choice.
        frozen: The graph is as onnxruntime's optimizer left it, for sessions without patterns.
        feed: Inputs to measure the forms with, in fresh processes; when `None`, predicted need decides.

    Raises:
        InputError: `options` ask for a form that the graph cannot be written in.
    """
    external = _external(graph, options)
    why_not = obstacle(graph)
    if options.form != "auto":
        name: FormName = next(f for f in FORMS if f == options.form)
        if name != "plain" and why_not:
            raise InputError(f"The model cannot be written in form {name!r}: {why_not}.", hint="Use --form plain.")
        return Choice(WritingForm(name, external), WritingForm(name, False))
    plain = Choice(WritingForm("plain", external), WritingForm("plain", False))
    if why_not or frozen or options.pack_weights or options.level < FIRST_LEVEL:
        return plain
    infer_shapes(graph)
    planned = peak(graph, dims).peak_bytes
    if planned < IGNORE or _breaks_budget(graph, dims, planned, options.budget.activations):
        return plain
    branch_external = external or (options.external == "auto" and _large_bytes(graph) >= COPIED_FROM)
    needs = predicted_needs(graph, dims, external=external, branch_external=branch_external)
    inline = needs if not branch_external else predicted_needs(graph, dims, external=False)
    how = "predicted"
    weights = sum(nbytes(tensor) for tensor in weight_tensors(graph))
    if feed is not None:
        at = bind_shapes(graph, feed)
        few = weights > peak(graph, at).peak_bytes  # then there is little that a branch could save
        predicted = predicted_needs(graph, at, external=external, branch_external=branch_external)
        names = _promising(predicted, 1.0 if few else HOPELESS)
        if len(names) == 1:
            return plain
        forms = [WritingForm(name, external if name == "plain" else branch_external) for name in names]
        needs, how = _measured(graph, feed, forms, options), "measured"
    margin = SLIGHT if how == "measured" or not any(True for _ in graph.walk("If")) else -UNSURE
    if how == "predicted" and weights > planned:
        margin = COPIES
    best, in_message = _smallest(needs, margin), _smallest(inline, margin)
    beside = external if best == "plain" else branch_external
    others = ", ".join(f"{n / 1e6:.1f} MB {name}" for name, n in needs.items() if name != best) or "others more"
    least = (
        "it needs least" if needs[best] == min(needs.values()) else "not all patterns are predicted, and it has none"
    )
    decision = Decision(
        step="form",
        what=f"written {_SAID[best]}{_BESIDE if beside > external else ''}",
        why=f"{least} in a default session of onnxruntime: {needs[best] / 1e6:.1f} MB {how}, {others}",
        gain_bytes=needs["plain"] - needs[best],
    )
    return Choice(WritingForm(best, beside), WritingForm(in_message, False), decision)


_SAID: Mapping[FormName, str] = {
    "plain": "as a plain graph",
    "branch": "inside a branch that is always taken, which gets no memory pattern",
    "captured": "inside a branch that is always taken, which gets no memory pattern, with large weights outside of it",
    "shapeless": "inside a branch that is always taken, which gets no memory pattern, and of whose shapes onnxruntime "
    "knows nothing, so that it frees buffers instead of keeping them for others",
}

_BESIDE = "; its weights lie beside the model, since a branch would hold copies of them"


def predicted_needs(
    graph: Graph, dims: Mapping[str, int], *, external: bool, branch_external: bool = False
) -> dict[FormName, int]:
    """Predict what a default session needs, for each form that makes a difference.

    Args:
        graph: The graph, shapes inferred.
        dims: Extents to plan with.
        external: Whether weights lie beside the model.
        branch_external: Whether they do where it is written inside a branch.
    """
    plain = predict_need(graph, dims, Configuration(external=external)).need_bytes
    external = external or branch_external
    how = Configuration(external=external, branch=True)
    needs: dict[FormName, int] = {"plain": plain, "branch": predict_need(graph, dims, how).need_bytes}
    outside = sum(nbytes(op.attrs["value"]) for op in captured_weights(graph))
    if outside and external:
        # The branch would hold their pages besides what was packed from them.
        # While it loads, what it packs lies beside what it packs it from.
        packed = sum(nbytes(op.attrs["value"]) for op in captured_weights(graph) if not _only_rows(op))
        needs["captured"] = max(needs["branch"] - outside, 2 * packed)
    shapeless = predict_need(graph, dims, replace(how, shapeless=True)).need_bytes
    if shapeless < min(needs.values()) * (1 - SLIGHT):
        needs["shapeless"] = shapeless
    return needs


def _only_rows(weight: Op) -> bool:
    """True if rows of a weight are looked up, and nothing else."""
    return all(user.is_a("Gather") for user in weight.result.users)


def _large_bytes(graph: Graph) -> int:
    """Bytes of the weights that can go beside the model."""
    return sum(nbytes(t) for t in _large(graph))


def _large(graph: Graph) -> Iterator[Tensor]:
    return (t for t in weight_tensors(graph) if t.dtype != DType.STRING and nbytes(t) >= EXTERNAL_THRESHOLD)


def _external(graph: Graph, options: Options) -> bool:
    total = _large_bytes(graph)
    if options.external == "auto":
        wanted = options.pack_weights or total >= EXTERNAL_FROM or any(is_external(t) for t in _large(graph))
        return wanted and loads_beside(graph, options)
    if options.external == "never" and total > INLINE_LIMIT:
        raise InputError(
            f"The model's weights ({total / 1e9:.1f} GB) do not fit into one file with it.", hint="Use --external auto."
        )
    return options.external == "always"


def loads_beside(graph: Graph, options: Options) -> bool:
    """True if the device's runtime finds weights in a file of their own: some do not from inside a subgraph."""
    if options.device == "auto" or not load_device(options.device).plain:
        return True
    return all(op.graph is graph for op in graph.walk("const") if nbytes(op.attrs["value"]) >= EXTERNAL_THRESHOLD)


def _breaks_budget(graph: Graph, dims: Mapping[str, int], planned: int, budget: int | None) -> bool:
    """True if a plan fits into the budget, and no longer does in a branch, which allocates outputs when it begins."""
    return budget is not None and planned <= budget < peak(wrap(graph), dims).peak_bytes


def _smallest(needs: Mapping[FormName, int], margin: float) -> FormName:
    """The form that needs least; plain unless another one gains more than the margin."""
    best = min(needs, key=lambda name: needs[name])
    if best == "plain" and margin < 0:
        best = min((n for n in needs if n != "plain"), key=lambda name: needs[name])
    return best if needs[best] < needs["plain"] * (1 - margin) else "plain"


def _promising(needs: Mapping[FormName, int], most: float) -> list[FormName]:
    """Name the forms that are worth measuring: plain, and those predicted to need at most so many times as much."""
    return [name for name, need in needs.items() if need <= most * needs["plain"]]


def _measured(graph: Graph, feed: Feed, forms: Sequence[WritingForm], options: Options) -> dict[FormName, int]:
    """Measure each form in a fresh process; forms that need more than a plain graph are left out."""
    found: dict[FormName, int] = {}
    folder = Path(tempfile.mkdtemp(prefix="memoptc-forms-"))
    try:
        for form in forms:
            path, name = folder / "candidate.onnx", form.name
            write_into(graph, path, form)
            run = RunOptions(threads=options.jobs or 0)
            try:
                if name == "plain":
                    found[name] = measure_need(path, feed, options=run, seconds=_SECONDS).need_bytes
                    continue
                need = measure_need_up_to(path, feed, found["plain"], options=run, seconds=_SECONDS)
                if need is not None:
                    found[name] = need.need_bytes
            except InputError:
                if name == "plain":
                    raise
                # onnxruntime only warns of a shape that it inferred wrongly, except where a branch gives it.
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return found
