"""Compiles a model in several ways and compares what comes out with the model as it was, in onnxruntime as written."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from memoptc import compile
from memoptc.ir.diagnostics import GateError, InputError, MemoptcError
from memoptc.runtime.evaluate import Evaluator, RunOptions
from memoptc.runtime.judge import TOLERANCES
from memoptc.testing.numbers import bits

UNOPTIMIZED = RunOptions(optimize=False)
NOISE = {"int8": 0.3, "uint8": 0.3, "mixed": 0.3, "int4": 0.6, "float16": 0.02, "bfloat16": 0.1, "float8": 0.3}
"""Norm of the error over that of an output that a target may make without data; unrelated numbers have 1.4."""

RANDOM = frozenset("Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike".split())
"""Operators whose numbers differ from run to run."""

CODING = (
    "quantize",
    "mix-weights",
    "to-half",
    "scale-columns",
    "widen-half",
    "prune",
    "factorize",
    "cluster-weights",
    "early-exit",
    "split-outliers",
    "quantize-cache",
)
"""Passes after which numbers are coarser, in pipelines."""
LOOSE = 0.6
FEW = 16
"""Elements below which `LOOSE` holds for every coarse target: so few numbers are no sample of its noise."""

Way = Mapping[str, Any]
"""Options of `memoptc.compile`."""
ITSELF = "@itself"
"""In pipelines: the file of the model that is compiled."""


JUMPS = frozenset(
    "ArgMax ArgMin Cast Ceil Compress Div DynamicQuantizeLinear Equal Exp Floor Greater GreaterOrEqual Less "
    "LessOrEqual Log Mod NonMaxSuppression NonZero Pow QuantizeLinear Reciprocal Round Sign Sqrt Tan TopK Unique "
    "Where".split()
)
"""Operators that make much of little: no norm of an error holds behind them where numbers are coarser."""


def difference(
    expected: Mapping[str, Any],
    compiled: Evaluator,
    feed: Mapping[str, Any],
    noise: float | None = None,
    *,
    exact: bool = False,
) -> str:
    """Say how a compiled model deviates, "" when it does not.

    Args:
        expected: Outputs of the original.
        compiled: The compiled model.
        feed: Inputs.
        noise: Largest norm of an error over that of the output; the tolerance of the dtype, per element, if not given.
            Infinite: shapes and types only.
        exact: Compare bits.
    """
    try:
        found = compiled.run(feed)
    except MemoptcError as e:
        return e.message
    for name, value in expected.items():
        listed = isinstance(value, list)
        one, two = (value, found[name]) if listed else ([value], [found[name]])
        if len(one) != len(two):
            return f"{name} has {len(two)} elements, had {len(one)}"
        for a, b in zip(map(np.asarray, one), map(np.asarray, two), strict=True):
            if a.shape != b.shape or a.dtype != b.dtype:
                return f"{name} is {b.dtype}{b.shape}, was {a.dtype}{a.shape}"
            if exact and bits(a) != bits(b):
                return f"{name} differs in bits"
            if noise != float("inf") and not _close(a, b, noise):
                return f"{name} differs"
    return ""


def _close(a: Any, b: Any, noise: float | None) -> bool:
    if a.dtype.kind in "OU":
        return bool((a == b).all())
    one, two = a.astype(np.float64), b.astype(np.float64)
    usual = np.isfinite(one)
    if not np.array_equal(usual, np.isfinite(two)):
        return False
    one, two = one[usual], two[usual]
    if noise is not None and str(a.dtype) in TOLERANCES:
        noise = max(noise, LOOSE) if one.size < FEW else noise
        return bool(np.linalg.norm(one - two) <= noise * max(float(np.linalg.norm(one)), 1.0))
    slack = TOLERANCES.get(str(a.dtype), 0.0) * max(float(np.abs(one).max(initial=0.0)), 1.0)
    return bool(np.allclose(one, two, 0.0, slack))


def try_ways(
    model: onnx.ModelProto,
    feeds: Sequence[Mapping[str, Any]],
    ways: Sequence[Way],
    counts: Counter[str],
    hard: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Compile a model in several ways and compare; says what is wrong, "" when nothing is.

    Args:
        model: The model.
        feeds: Those that do not run are passed over, as are those for which it leaves outputs unwritten; where none
            is left, the model counts as refused.
        ways: Options of each compile; `external` writes a file with weights beside it, and runs that.
        counts: Gets models, compiles per way, and passes that reported something.
        hard: Feeds of special numbers, for ways that keep every bit.
    """
    runs = [] if _has(model.graph, RANDOM) else runs_of(model, feeds, counts)
    if not runs:
        counts["refused"] += 1
        return ""
    special = runs_of(model, hard, counts) if hard else []
    jumps, coded = _has(model.graph, JUMPS), _has(model.graph, {"DequantizeLinear"})
    counts["models"] += 1
    narrow = _is_narrow(model)
    replaceable = not {i.name for i in model.graph.input}.isdisjoint(w.name for w in model.graph.initializer)
    for way in ways:
        text = " ".join(f"{key}={value}" for key, value in way.items())
        counts[f"way {text}"] += 1
        options, checked = _options(model, way, runs)
        if not checked:
            continue
        with tempfile.TemporaryDirectory() as folder:
            given: Any = model
            if options.pop("from_file", False):
                given = Path(folder) / "original.onnx"
                copy = onnx.ModelProto()
                copy.CopyFrom(model)  # onnx empties the weights that it writes beside a model
                onnx.save(
                    copy, given, save_as_external_data=True, size_threshold=EXTERNAL_FROM, location="original.data"
                )
            if ITSELF in options.get("passes", ""):
                itself = Path(folder) / "itself.onnx"
                onnx.save(model, itself)
                options["passes"] = options["passes"].replace(ITSELF, str(itself))
            try:
                result = compile(given, **{"verify": "off", "measure": False, **options})
            except InputError as e:
                if not {"form", "data", "bound", "frozen"} & way.keys() and "the model says they are equal" not in str(
                    e
                ):
                    return f"{text}: {e}"
                counts["form refused" if "form" in way else "data refused"] += 1  # branches cannot give inputs
                continue
            except GateError as e:
                own = "taken back but" in str(e)  # worse by what was asked for by name, which the message says
                if way.get("target", "float32") == "float32" and not way.get("data") and not own:
                    return f"{text}: {type(e).__name__} {e}"
                counts["gate refused"] += 1
                continue
            except Exception as e:
                return f"{text}: {type(e).__name__} {e}"
            for step in result.report.passes:
                counts[f"pass {step.name}"] += any(count for key, count in step.stats.items() if "left" not in key)
            counts["ended early"] += any("ended" in w for w in result.report.warnings)
            try:
                if way.get("external") or way.get("from_file"):
                    path = Path(folder) / "model.onnx"
                    result.save(path)
                    compiled = Evaluator(path, UNOPTIMIZED)
                else:
                    compiled = Evaluator(result.model, UNOPTIMIZED)
            except MemoptcError as e:
                return f"{text}: does not load: {e.message}"
            if way.get("quantize_io") or any(p in way.get("passes", "") for p in ("quantize-io", "quantize-cache")):
                continue  # other dtypes at the border: that it loads is what is looked at
            exact = "passes" not in way and way.get("level", 2) < 2 and way.get("target", "float32") == "float32"
            # A weight that was an input becomes a constant, which other kernels multiply by.
            freezes = way.get("freeze_runtime") or "freeze-runtime" in way.get("passes", "")
            exact = exact and not replaceable and not freezes and not LOSING & way.keys()
            noise = NOISE.get(way.get("target", ""), LOOSE if any(p in way.get("passes", "") for p in CODING) else None)
            noise = LOOSE if freezes and coded else noise  # its optimizer computes on the codes
            noise = max(noise or 0.0, NOISE[narrow]) if narrow and not exact else noise
            loses = LOSING & way.keys() or any(p in way.get("passes", "") for p in ("early-exit", "prune-tokens"))
            noise = float("inf") if (noise and jumps) or loses else noise
            for number, (feed, expected) in enumerate(checked + (special if exact and not way.get("frozen") else [])):
                # Data of one kind says nothing of extents and numbers of another.
                slack = float("inf") if noise and way.get("data") and number else noise
                fault = difference(expected, compiled, feed, slack, exact=exact)
                if "form" in way and "pre-allocated" in fault:
                    # Asked for without proof: onnxruntime believes its own inference of a branch, wrong as it may be.
                    counts["form refused"] += 1
                elif fault:
                    return f"{text}: {fault} on { ({k: np.shape(v) for k, v in feed.items()}) }"
            del compiled
    return ""


LOSING = {"prune", "low_rank", "cluster", "prune_tokens", "early_exit"}
"""Options that lose accuracy on purpose."""
SAMPLES = 79
EXTERNAL_FROM = 80
"""Bytes from which a weight may lie beside the model: onnxruntime reads shapes, axes and the like while it loads."""


def _options(
    model: onnx.ModelProto, way: Way, runs: Sequence[tuple[Any, Any]]
) -> tuple[dict[str, Any], Sequence[tuple[Any, Any]]]:
    """Options of `memoptc.compile` for a way, and the feeds to compare with.

    A way with `data` has calibration data like the first feed that has no extent of 0; one that is `bound` names the
    extents of that feed's inputs, and one that is `frozen` makes them the only ones.
    """
    options = dict(way)
    data, bound = options.pop("data", False), options.pop("bound", False)
    frozen = options.pop("frozen", False)
    full = (run for run in runs if all(isinstance(v, np.ndarray) and v.size for v in run[0].values()))
    first = next(full, None)
    if first is None or not first[0]:
        options.pop("verify", None)
        return (options, runs) if not data else (options, [])
    feed = first[0]
    if data:
        r = np.random.default_rng(1)
        options["calibration"] = [
            {k: r.choice(v.ravel(), v.shape).astype(v.dtype) if v.dtype.kind == "f" else v for k, v in feed.items()}
            for _ in range(SAMPLES)
        ] + [feed]
        runs = [first, *(run for run in runs if run is not first)]
    if options.get("verify"):
        options["validation"] = [feed]
    if frozen:
        extents = {
            (dim.dim_param, int(extent))
            for value in model.graph.input
            if value.type.HasField("tensor_type") and value.name in feed
            for dim, extent in zip(value.type.tensor_type.shape.dim, feed[value.name].shape, strict=False)
            if dim.dim_param
        }
        options["freeze"] = dict(extents)
        if len(options["freeze"]) < len(extents):
            return options, []  # a name of two extents, which onnxruntime allows
        shapes = {k: v.shape for k, v in feed.items()}
        runs = [run for run in runs if {k: np.shape(v) for k, v in run[0].items()} == shapes]
    if bound:
        options["input_shapes"] = tuple(f"{k}:{','.join(map(str, v.shape))}" for k, v in feed.items() if v.shape)
    return options, runs


def _is_narrow(model: onnx.ModelProto) -> str:
    """The name of a float type narrower than float32 that a model computes with, "" where there is none."""
    text = str(model.graph) + "".join(map(str, model.functions))
    for name, number in (("bfloat16", 16), ("float8", 17), ("float8", 19), ("float16", 10)):
        if f"elem_type: {number}\n" in text or f"data_type: {number}\n" in text or f"i: {number}\n" in text:
            return name
    return ""


def runs_of(model: onnx.ModelProto, feeds: Sequence[Mapping[str, Any]], counts: Counter[str]) -> list[tuple[Any, Any]]:
    """Feeds that a model runs with, and for which it writes all that it gives; with what it gives."""
    try:
        original = Evaluator(model, UNOPTIMIZED)
    except MemoptcError:
        return []
    runs = []
    for feed in feeds:
        try:
            outputs, again = original.run(feed), original.run(feed)
        except MemoptcError:
            continue
        if bits(list(outputs.values())) != bits(list(again.values())):
            counts["random"] += 1
        elif _is_defined(original, feed, outputs):
            runs.append((feed, outputs))
        else:
            counts["undefined"] += 1
    return runs


def _has(graph: onnx.GraphProto, names: Collection[str]) -> bool:
    inner = [a.g for n in graph.node for a in n.attribute if a.type == onnx.AttributeProto.GRAPH]
    return any(n.op_type in names for n in graph.node) or any(_has(g, names) for g in inner)


def _is_defined(model: Evaluator, feed: Mapping[str, Any], outputs: Mapping[str, Any]) -> bool:
    """Whether a model writes every number that it gives: some kernels leave memory as it was for odd operands.

    Args:
        model: The model.
        feed: Inputs.
        outputs: What it gave for them; those that are arrays are written again, over other numbers.
    """
    binding = model.session.io_binding()
    bound = {i.name for i in model.session.get_inputs()}
    if not all(i.type.startswith("tensor(") for i in model.session.get_inputs()):
        return True
    for name, value in feed.items():
        if (
            not isinstance(value, np.ndarray)
            or value.dtype.isbuiltin != 1
            or value.dtype.kind in "OU"
            or name not in bound
        ):
            return True  # bfloat16 and its like cannot be bound
        binding.bind_cpu_input(name, value)
    for name, value in outputs.items():
        if isinstance(value, np.ndarray) and value.size and value.dtype.kind in "fiu":
            binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(np.full_like(value, 77)))
        else:
            binding.bind_output(name)
    try:
        model.session.run_with_iobinding(binding)
    except RuntimeError:  # Attention asks for outputs of other extents than it fills: nothing is known then
        return True
    found = dict(zip(outputs, binding.get_outputs(), strict=True))
    return all(
        _close(value, found[name].numpy(), None)
        for name, value in outputs.items()
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiu"
    )


def log(entry: Mapping[str, Any]) -> None:
    """Append a line of JSON to the file that `FUZZ_LOG` names."""
    if path := os.environ.get("FUZZ_LOG"):
        with Path(path).open("a") as file:
            file.write(json.dumps(entry) + "\n")
