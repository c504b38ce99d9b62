"""to-half: float16, bfloat16 or float8 for weights, and for ops that run in it; inputs and outputs stay float32."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from memoptc.ir import ops
from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.diagnostics import InputError
from memoptc.ir.onnx_io import write_into
from memoptc.ir.onnx_names import Names
from memoptc.ir.tensors import nbytes
from memoptc.ir.types import DType
from memoptc.pass_base import Context, Pass
from memoptc.passes.precision._half.choice import Candidate, Choice, narrow_candidates, worth
from memoptc.passes.precision._half.rewrite import Rewriter, can_look_up_float8, channel_axis, is_table, scaled
from memoptc.passes.precision._half.table import FORMATS, Format
from memoptc.passes.precision._quantize.accuracy_check import made_up
from memoptc.report.model import Decision
from memoptc.runtime.calibrate import magnitudes
from memoptc.runtime.devices import USUAL, load_device
from memoptc.runtime.kernels import loaded

MADE_UP = 3
"""Feeds to make up where there is no calibration data."""

_LISTED = 12


class ToHalf(Pass):
    """Store weights in a narrow float format, and run ops in it where that saves bytes and their numbers fit.

    An op runs in the format when onnxruntime's CPU has a kernel for it, when no operand or result was larger than
    `share` of the format's largest number over the calibration data (or made-up inputs), and when its neighbours do
    so, too, such that Casts cost less than they save. All others stay float32 and get weights through a Cast, or in
    float8, which has scales, through a DequantizeLinear.

    Args:
        format: "float16", "bfloat16" or "float8" (E4M3FN with a scale per channel; weights only).
        storage: Weights only: every op computes in float32, but for lookups, which give rows in the format.
        whole: Run every op in float16 that ONNX defines for it, for runtimes that have such kernels. On a CPU
            onnxruntime casts around each that has none, and holds those weights in both formats.
        share: Part of the format's largest number up to which a measured magnitude is trusted to stay in range.
        smallest: Bytes below which a weight that float32 ops read stays as it is.
        exclude: Node names or operators to leave in float32.
        device: Whose kernels to count on: a profile's name or `.toml` file.
    """

    changes_numbers: ClassVar[bool] = True
    format: str = "float16"
    storage: bool = False
    whole: bool = False
    share: float = 0.25
    smallest: int = 2048
    exclude: tuple[str, ...] = ()
    device: str = USUAL

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise InputError(f"to-half has no format {self.format!r}.", hint=f"There are: {', '.join(FORMATS)}.")
        if not 0 < self.share <= 1:
            raise InputError(f"share={self.share} is no part of a whole.", hint="Give a number above 0 and up to 1.")
        if self.whole and (self.storage or self.format == "float8"):
            raise InputError("Weights that are only stored leave no op to run whole.", hint="Leave out whole=true.")
        if self.whole and self.format == "bfloat16":
            raise InputError(
                "onnxruntime does not load bfloat16 ops that it has no CPU kernels for, so nothing could be proven.",
                hint="Leave out whole=true, or use float16, around which it puts Casts.",
            )

    def run(self, graph: Graph, context: Context) -> None:
        """Measure, choose, change, and say what stays float32 and why."""
        format_ = replace(FORMATS[self.format], kernels=load_device(self.device).half.get(self.format, {}))
        version = ops.opset_of(graph) or 0
        if version < format_.opset:
            what = f"the model stays float32: {self.format} needs opset {format_.opset}, it has {version}"
            way = f"run raise-opset{{to={format_.opset},below={format_.opset}}} before"
            context.decisions.append(Decision(self.name, what, way))
            context.warnings.append(f"{what[0].upper()}{what[1:]}; {way}.")
            context.stats["left: opset"] += 1
            return
        report = _Report(self, context)
        kept = frozenset(self.exclude)
        fitting = self._fitting(graph, format_, kept, report)
        choice = self._choice(graph, format_, kept, fitting, report)
        rewriter = Rewriter(graph, format_.dtype, choice, context.stats)
        rewriter.ops()
        before, after, decoded = self._weights(fitting, rewriter, format_, kept, context.stats)
        if format_.dtype == DType.FLOAT8E4M3FN and before:
            graph.info.ir_version = max(graph.info.ir_version, 9)
        context.stats["weights narrow"] += len(rewriter.stored)
        report.done(graph, choice, rewriter, (before, after, decoded))

    # -- weights --------------------------------------------------------------------------------------

    def _fitting(self, graph: Graph, format_: Format, kept: frozenset[str], report: _Report) -> dict[Value, None]:
        """Weights that keep their numbers in the format; reasons for others go into the report."""
        found: dict[Value, None] = {}
        for op in graph.walk("const"):
            value = op.result
            tensor = value.tensor
            if tensor is None or tensor.dtype != DType.FLOAT or not value.has_uses:
                continue
            if any(ops.takes_scales(u) for u in value.users):
                continue
            reason = self._why_not(value, format_)
            if not reason:
                found[value] = None
            elif nbytes(tensor) >= self.smallest:
                report.left.append((f"%{value.name} stays float32", f"{_readers(value)}: {reason}"))
        return found

    def _why_not(self, value: Value, format_: Format) -> str:
        assert value.tensor is not None
        content = np.asarray(value.tensor.numpy(), np.float32)
        if not np.isfinite(content).all():
            return "it holds NaN or Inf"
        signal = float(np.square(content, dtype=np.float64).sum())
        if format_.dtype == DType.FLOAT8E4M3FN:
            axis = channel_axis(value) if value.has_uses else None
            codes, scales = scaled(content, axis, format_.largest, format_.dtype)
            spread = scales if axis is None else scales.reshape([-1 if i == axis else 1 for i in range(content.ndim)])
            real = codes.astype(np.float32) * spread
        else:
            largest = float(np.abs(content).max(initial=0.0))
            if largest > self.share * format_.largest:
                return f"{largest:.3g} is beyond {self.share:g} of {format_.largest:g}"
            real = content.astype(format_.dtype.numpy()).astype(np.float32)
        noise = float(np.square(content - real, dtype=np.float64).sum())
        if noise and 10 * math.log10(max(signal, 1e-300) / noise) < format_.least_decibels:
            kept = 10 * math.log10(max(signal, 1e-300) / noise)
            return f"it would keep {kept:.0f} dB over rounding; {format_.least_decibels:.0f} are asked for"
        return ""

    def _weights(
        self,
        fitting: dict[Value, None],
        rewriter: Rewriter,
        format_: Format,
        kept: frozenset[str],
        stats: Counter[str],
    ) -> tuple[int, int, int]:
        """Store what float32 ops still read; give bytes before and after, and those decoded for float32 ops."""
        decoded = 0
        for value in fitting:
            readers = value.users
            if not readers or value.tensor is None or nbytes(value.tensor) < self.smallest:
                continue
            if all(r.name in kept or r.key in kept for r in readers):
                continue
            if format_.dtype != DType.FLOAT8E4M3FN:
                rewriter.decode(value)
            elif is_table(value) and can_look_up_float8():
                rewriter.look_up_scaled(value, format_.largest)
                continue
            else:
                rewriter.decode_scaled(value, format_.largest)
            decoded += nbytes(value.tensor)
            stats["weights decoded"] += 1
        before = sum(nbytes(v.tensor) for v in rewriter.stored if v.tensor is not None)
        return before, rewriter.stored_bytes, decoded

    # -- ops ------------------------------------------------------------------------------------------

    def _choice(
        self, graph: Graph, format_: Format, kept: frozenset[str], fitting: dict[Value, None], report: _Report
    ) -> Choice:
        found = narrow_candidates(graph, format_, kept, any_kernel=self.whole)
        if self.storage:
            found = {op: c for op, c in found.items() if op.op_type == "Gather" and op.operand.tensor is not None}
        for op in list(found):
            bad = next((v for v in found[op].values if v.tensor is not None and v not in fitting), None)
            if bad is not None:
                del found[op]
        dims = report.context.dims
        weights = {v for v in fitting if v.tensor is not None and nbytes(v.tensor) >= self.smallest}
        wanted = found if self.whole else worth(found, dims, weights).narrow
        if not wanted:
            return Choice()
        if format_.dtype == DType.FLOAT16:  # bfloat16 reaches as far as float32
            wanted = self._in_range(graph, wanted, format_, report)
        return Choice(dict(wanted)) if self.whole else worth(wanted, dims, weights)

    def _in_range(
        self, graph: Graph, found: dict[Op, Candidate], format_: Format, report: _Report
    ) -> dict[Op, Candidate]:
        values = dict.fromkeys(v for c in found.values() for v in c.values if v.tensor is None)
        limit = self.share * format_.largest
        measured = report.measure(graph, list(values))
        inside: dict[Op, Candidate] = {}
        for op, candidate in found.items():
            large = next((v for v in candidate.values if measured.get(v, 0.0) > limit), None)
            if large is None:
                inside[op] = candidate
                continue
            why = f"%{large.name} reaches {measured[large]:.3g}, beyond {self.share:g} of {format_.largest:g}"
            report.left.append((f"{op.key} {op.name or '%' + op.result.name} stays float32", why))
        return inside


class _Report:
    """The pass's entry in the report."""

    def __init__(self, pass_: ToHalf, context: Context) -> None:
        self.pass_, self.context = pass_, context
        self.left: list[tuple[str, str]] = []
        self.ranges = ""

    def measure(self, graph: Graph, values: list[Value]) -> dict[Value, float]:
        """Largest magnitudes of values over the calibration data, or over made-up inputs."""
        path = Path(self.context.scratch) / "ranges.onnx"
        names = Names()
        names.assign(graph)
        files = write_into(graph, path)
        data = self.context.calibration
        self.ranges = "the calibration data"
        if data is None:
            data = made_up(graph, path, self.context, MADE_UP)
            self.ranges = f"{len(data)} made-up inputs"
        by_name = {names.of[v]: v for v in values}
        found = magnitudes(path, list(by_name), data)
        for file in files:
            Path(file).unlink()
        return {by_name[n]: m for n, m in found.items()}

    def done(self, graph: Graph, choice: Choice, rewriter: Rewriter, sums: tuple[int, int, int]) -> None:
        """Write the decisions."""
        before, after, decoded = sums
        name, decisions = self.pass_.format, self.context.decisions
        if not before and not choice.narrow:
            why = f"no weight of {self.pass_.smallest} bytes or more fits" if not self.left else "see below"
            decisions.append(Decision(self.pass_.name, f"nothing was changed to {name}", why))
        if before:
            what = f"{len(rewriter.stored)} weights in {name}: {before} -> {after} bytes"
            cost = self._loaded(graph, decoded) if decoded or self.pass_.whole else ""
            why = "the file shrinks by as much" + (f"; {cost}" if cost else "")
            decisions.append(Decision(self.pass_.name, what, why, gain_bytes=before - after, cost=cost))
        if choice.narrow:
            ran = f"; magnitudes come from {self.ranges}" if self.ranges else ""
            what = f"{len(choice.narrow)} ops run in {name}, {rewriter.stats['casts']} Casts at their border"
            rule = "ONNX defines them for it" if self.pass_.whole else "onnxruntime has kernels, and they save more"
            decisions.append(Decision(self.pass_.name, what, rule + ran))
        for what, why in self.left[:_LISTED]:
            decisions.append(Decision(self.pass_.name, what, why))
        if len(self.left) > _LISTED:
            more = f"{len(self.left) - _LISTED} further weights and ops stay float32"
            decisions.append(Decision(self.pass_.name, more, "for the same reasons"))

    def _loaded(self, graph: Graph, decoded: int) -> str:
        """Bytes that onnxruntime holds after loading, by asking it."""
        if self.pass_.format == "float8":
            return f"{decoded} bytes of float32 are decoded in each run, one weight at a time"
        path = Path(self.context.scratch) / "loaded.onnx"
        files = write_into(graph, path)
        found = loaded(path)
        for file in files:
            Path(file).unlink()
        if found is None:
            return "what onnxruntime holds after loading could not be asked"
        casts = f" and {found.casts} Casts" if self.pass_.whole else ""
        return f"onnxruntime holds {found.weight_bytes} bytes of weights{casts} once loaded: float32 where no kernel is"


def _readers(value: Value) -> str:
    user = value.users[0]
    return f"{user.key} {user.name!r}" if user.name else user.key
