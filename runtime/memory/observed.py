"""Sizes that shape inference cannot prove, observed in runs of the model and planned with as assumptions.

A value whose shape depends on what an operator computes, or that comes from an operator nobody described, would count
as nothing in every plan. Runs at two or more sizes show its extents; each is taken to be constant, or affine in one
symbol, where all runs agree with that. The value's type stays as it was: nothing is folded or tiled by an assumption.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort

from memoptc.ir.core import Graph, Value
from memoptc.ir.diagnostics import InputError
from memoptc.ir.dims import Dim, KnownDim, Sym
from memoptc.ir.facts import OBSERVED
from memoptc.ir.types import DType
from memoptc.runtime.evaluate import ModelSource
from memoptc.runtime.memory.extents import extents
from memoptc.runtime.memory.footprint import evaluate, is_resident, value_size
from memoptc.runtime.node_events import node_events
from memoptc.runtime.options import FOLDER_KEY, Feed, RunOptions, clean_message
from memoptc.runtime.spool import trim

_WIDTHS = {"bool": 8, "float": 32, "double": 64, "float16": 16, "bfloat16": 16, "int4": 4, "uint4": 4}


class Observation:
    """Shapes of all values of a model in some runs.

    Args:
        model: The model for onnxruntime: path, bytes or protobuf.
        feeds: Inputs; each is run once.
        bindings: The symbols' extents in each feed.

    Raises:
        InputError: onnxruntime cannot run the model.
    """

    def __init__(self, model: ModelSource, feeds: Sequence[Feed], bindings: Sequence[Mapping[str, int]]) -> None:
        self.bindings = list(bindings)
        self._points = [_run(model, feed) for feed in feeds]

    def apply(self, graph: Graph) -> str:
        """Note sizes on the values of a graph that has this model's names; gives one sentence that says how many."""
        open_values = unsized_values(graph, self.bindings)
        fitted = 0
        for value in open_values:
            seen = [point[value.name] for point in self._points if value.name in point]
            size = _fit(seen, self.bindings) if len(seen) == len(self._points) else None
            if size is not None:
                value.metadata[OBSERVED] = str(size)
                fitted += 1
        graph._touch()
        if not open_values:
            return ""
        rest = len(open_values) - fitted
        if not fitted:
            return f"{rest} values have no known size, and count as 0 in planned figures."
        runs = f"{len(self._points)} runs" if len(self._points) > 1 else "one run"
        return f"{fitted} values have sizes that were observed in {runs}, not proven; planned figures assume them" + (
            f", and {rest} of unknown size count as 0." if rest else "."
        )


def unsized_values(graph: Graph, bindings: Sequence[Mapping[str, int]]) -> list[Value]:
    """Values of the main graph whose bytes do not follow from the inputs' extents."""
    full = [extents(graph, binding) for binding in bindings]
    found = []
    for op in graph.ops:
        if is_resident(op):
            continue
        for value in op.results:
            tensor = value.type is None or value.tensor_type is not None
            text = value.dtype == DType.STRING
            if tensor and not text and not value.omitted and any(evaluate(value_size(value), b) is None for b in full):
                found.append(value)
    return found


def observed_values(graph: Graph) -> list[str]:
    """Names of the values whose sizes are assumptions."""
    return [v.name for op in graph.ops for v in op.results if OBSERVED in v.metadata]


def _run(model: ModelSource, feed: Feed) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Value name -> bits of an element, shape; from onnxruntime's profiler, which keeps nothing alive.

    Without an arena the run holds no more than is alive, and leaves nothing behind.
    """
    proto, folder = _proto(model)
    outputs = {}
    for index, node in enumerate(proto.graph.node):
        node.name = f"memoptc.{index}"
        outputs[node.name] = list(node.output)
    options = RunOptions(optimize=False, arena=False, mem_pattern=False).session_options()
    options.enable_profiling = True
    if folder is not None:
        options.add_session_config_entry(FOLDER_KEY, str(folder))
    with tempfile.TemporaryDirectory(prefix="memoptc-observe-") as scratch:
        options.profile_file_prefix = str(Path(scratch) / "run")
        try:
            session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
            session.run(None, dict(feed))
        except Exception as error:
            raise InputError(f"onnxruntime cannot run the model: {clean_message(error)}.") from error
        events = session.end_profiling()
        del session
        trim(collect=False)
        found: dict[str, tuple[int, tuple[int, ...]]] = {}
        for node, event in node_events(events):
            shapes: list[dict[str, Any]] = event["args"].get("output_type_shape", [])
            for name, described in zip([n for n in outputs.get(node, ()) if n], shapes, strict=False):
                for kind, shape in described.items():
                    found[name] = _bits(kind), tuple(int(d) for d in shape)
    return found


def _proto(model: ModelSource) -> tuple[onnx.ModelProto, Path | None]:
    if isinstance(model, onnx.ModelProto):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        return copy, None
    if isinstance(model, bytes):
        return onnx.load_from_string(model), None
    path = Path(model)
    return onnx.load(path, load_external_data=False), path.resolve().parent


def _bits(kind: str) -> int:
    digits = "".join(c for c in kind if c.isdigit())
    return _WIDTHS.get(kind, int(digits) if digits else 32)


def _fit(seen: Sequence[tuple[int, tuple[int, ...]]], bindings: Sequence[Mapping[str, int]]) -> Dim:
    """Bytes as an expression that all observations agree with; `None` when there is none."""
    bits = {b for b, _ in seen}
    ranks = {len(shape) for _, shape in seen}
    if len(bits) != 1 or len(ranks) != 1:
        return None
    size: KnownDim = 1
    for axis in range(ranks.pop()):
        extent = _fit_extent([shape[axis] for _, shape in seen], bindings)
        if extent is None:
            return None
        size = size * extent
    return size * max(1, bits.pop() // 8)


def _fit_extent(seen: Sequence[int], bindings: Sequence[Mapping[str, int]]) -> KnownDim | None:
    if len(set(seen)) == 1:
        return seen[0]
    candidates: list[tuple[int, str, KnownDim]] = []
    for name in sorted(set.intersection(*(set(b) for b in bindings))):
        at = [b[name] for b in bindings]
        low, high = at.index(min(at)), at.index(max(at))
        if at[low] == at[high]:
            continue
        slope = Fraction(seen[high] - seen[low], at[high] - at[low])
        rest = seen[low] - at[low] * slope.numerator // slope.denominator
        extent: KnownDim = Sym(name) * slope.numerator // slope.denominator + rest
        if slope > 0 and all(evaluate(extent, b) == s for b, s in zip(bindings, seen, strict=True)):
            candidates.append((slope.denominator + slope.numerator + abs(rest), name, extent))
    return min(candidates, key=lambda c: c[:2])[2] if candidates else None
