"""Holds inferred types against what onnxruntime gives: a type that is not known is fine, a wrong one is a fault."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper
from samplers import Instance, Sampler, instance

from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.diagnostics import MemoptcError
from memoptc.ir.dims import Dim, free_symbols, substitute
from memoptc.ir.infer import Inference, infer_op, infer_shapes
from memoptc.ir.onnx_io import read_onnx
from memoptc.ir.types import DType, TensorType, Type
from memoptc.runtime.evaluate import Evaluator
from memoptc.runtime.options import RunOptions


@dataclass
class Tally:
    """What was tried.

    Args:
        instances: Per operator, how many had at least one run.
        refused: Per operator, how many onnxruntime would not run at all, with one of its reasons.
        known: Per operator, how many extents were known.
        faults: One line each.
    """

    instances: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, str] = field(default_factory=dict)
    known: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def try_sampler(sampler: Sampler, seeds: Iterable[Any], tally: Tally) -> None:
    """Check instances of a sampler; each seed gives one."""
    for seed in seeds:
        r = np.random.default_rng(seed)
        sample = sampler(r)
        made = instance(sample, r)
        name = sample.op_type
        try:
            runs, known, faults = check(made)
        except MemoptcError as e:
            tally.refused[name] += 1
            tally.reasons[name] = e.message
            continue
        tally.faults += [f"{sampler.__module__}.{sampler.__name__} {seed}: {f}" for f in faults]
        tally.known[name] += known
        if runs:
            tally.instances[name] += 1
        else:
            tally.refused[name] += 1


def check(made: Instance) -> tuple[int, int, list[str]]:
    """Run a model under all its feeds and compare.

    Returns:
        How many feeds ran, how many extents were known, and what was said wrongly.

    Raises:
        MemoptcError: onnxruntime does not load the model.
    """
    graph = read_onnx(made.model)
    found = infer_shapes(graph)
    by_name = {r.name: r for op in graph.ops for r in op.results}
    said: dict[str, tuple[Value, Type | None, Type | None]] = {}
    for name in made.values:
        value = by_name.get(name)
        if value is not None and value.op is not None:
            alone = infer_op(value.op)[value.op.results.index(value)]
            said[name] = (value, value.type, alone)
    model = onnx.ModelProto()
    model.CopyFrom(made.model)
    for name, (_, type_, _) in said.items():
        if type_ is None or isinstance(type_, TensorType):
            model.graph.output.append(helper.make_empty_tensor_value_info(name))
    evaluator = Evaluator(model, RunOptions(optimize=False))
    runs, faults = 0, []
    for feed in made.feeds:
        try:
            arrays = evaluator.run(feed)
        except MemoptcError:
            continue
        runs += 1
        extents = _bound(graph, feed)
        for name, array in arrays.items():
            value, *types = said[name]
            fault = ""
            for type_ in types:
                fault = fault or _fault(type_, array, extents)
            fault = fault or _fault_of_elements(value, found, array, extents)
            op = value.op
            assert op is not None
            if fault and not deviates(op, feed):
                faults.append(f"%{name} of {op.op_type}: {fault} with {dict(op.attrs)} on {_shapes(feed)}")
        if faults:
            break
    known = sum(_known(type_) for _, type_, _ in said.values())
    return runs, known, faults


def deviates(op: Op, feed: dict[str, Any]) -> bool:
    """Whether onnxruntime leaves ONNX's definition here, in a way that inference does not follow (and says so).

    Reductions overlook axes counted from the end where their operand is empty; a Reshape copies an extent where the
    one asked for is 0, and pools take images without elements in batches without images: all of these of nothing.
    Beside an empty operand of other extents, a Concat leaves elements of its result as they were in memory.
    """
    if op.op_type in ("Concat", "QLinearConcat"):
        parts = [np.asarray(a) for v in op.operands if (a := feed.get(v.name)) is not None and np.ndim(a)]
        others = {np.delete(a.shape, int(op.attrs["axis"]) % a.ndim).tobytes() for a in parts}
        return any(a.size == 0 for a in parts) and len(others) > 1
    operand = feed.get(op.operands[0].name) if op.operands else None
    nothing = operand is not None and np.asarray(operand).size == 0
    if op.op_type.startswith(("Reduce", "ArgM")):
        axes = op.attrs.get("axes", op.attrs.get("axis", ()))
        axes = [axes] if isinstance(axes, int) else list(axes)
        if len(op.operands) > 1:
            given = feed.get(
                op.operands[1].name, None if op.operands[1].tensor is None else op.operands[1].tensor.numpy()
            )
            axes = [] if given is None else np.asarray(given).reshape(-1).tolist()
        return nothing and min(axes, default=0) < 0
    if op.op_type == "Reshape":
        return nothing
    return nothing and op.op_type.endswith("Pool") and np.asarray(operand).shape[0] == 0


def _bound(graph: Graph, feed: dict[str, Any]) -> dict[str, int]:
    return {
        symbol: feed[value.name].shape[axis]
        for value in graph.inputs
        if value.name in feed and isinstance(value.type, TensorType)
        for axis, dim in enumerate(value.type.shape or ())
        for symbol in free_symbols(dim)
    }


def _shapes(feed: dict[str, Any]) -> dict[str, Any]:
    arrays = {name: np.asarray(value) for name, value in feed.items()}
    return {name: a.tolist() if a.dtype.kind in "ib" and a.size < 9 else a.shape for name, a in arrays.items()}


def _fault(type_: Type | None, array: Any, extents: dict[str, int]) -> str:
    if not isinstance(type_, TensorType):
        return ""
    array = np.asarray(array)
    if type_.dtype not in (DType.UNDEFINED, DType.STRING) and type_.dtype.numpy() != array.dtype:
        return f"said {type_.dtype}, is {array.dtype}"
    return _dims(type_.shape, array.shape, extents)


def _fault_of_elements(value: Value, found: Inference, array: Any, extents: dict[str, int]) -> str:
    if value not in found.elements:
        return ""
    fault = _dims(found.elements[value], tuple(np.asarray(array).reshape(-1).tolist()), extents)
    return f"elements: {fault}" if fault else ""


def _dims(said: tuple[Dim, ...] | None, true: tuple[Any, ...], extents: dict[str, int]) -> str:
    if said is None:
        return ""
    if len(said) != len(true):
        return f"said {said}, is {true}"
    for dim, number in zip(said, true, strict=True):
        if dim is not None and free_symbols(dim) <= extents.keys() and substitute(dim, extents) != number:
            return f"said {said}, is {true}"
    # A symbol that only the run knows is one number wherever it stands.
    fresh: dict[str, int] = {}
    for dim, number in zip(said, true, strict=True):
        name = getattr(dim, "name", None)
        if name is not None and name not in extents and fresh.setdefault(name, number) != number:
            return f"said {said}, is {true}"
    return ""


def _known(type_: Type | None) -> int:
    return sum(d is not None for d in (type_.shape or ())) if isinstance(type_, TensorType) else 0
