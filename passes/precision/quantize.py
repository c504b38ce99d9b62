"""quantize: 8-bit integers for weights and activations, from calibration data or without any."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from memoptc.ir import ops
from memoptc.ir.core import Graph, Value
from memoptc.ir.diagnostics import InputError
from memoptc.ir.types import DType
from memoptc.pass_base import Context, Pass
from memoptc.passes.precision._quantize import embedding
from memoptc.passes.precision._quantize.bias import join_biases
from memoptc.passes.precision._quantize.dynamic import quantize_dynamically
from memoptc.passes.precision._quantize.existing_codes import is_quantized, without_sign
from memoptc.passes.precision._quantize.numerics import Scale, activation_scale
from memoptc.passes.precision._quantize.observe import checkpoint_of, observe, warn_of_infinite
from memoptc.passes.precision._quantize.static import StaticQuantizer
from memoptc.passes.precision._quantize.static_choice import Choice, choose, is_float32, share_scales
from memoptc.passes.precision._quantize.weight_operands import GATHER, RECURRENT
from memoptc.passes.precision._quantize.worst_layers import left_in_float
from memoptc.passes.precision.quantize_weights import QuantizeWeights
from memoptc.report.model import Decision
from memoptc.runtime.calibrate import calibrate
from memoptc.runtime.devices import USUAL, Device, load_device
from memoptc.runtime.observers import OBSERVERS

DTYPES = {"int8": DType.INT8, "uint8": DType.UINT8}
"""Element types of weight codes, by their names as options."""
STATIC_OPSET = 10
"""The first opset that has the integer convolutions and products which onnxruntime makes of coded operands."""
_MEASURED = 20.0
"""Decibels that the dynamic form keeps where it failed the proof as a whole."""
_ACTIVATIONS = {"uint8": DType.UINT8, "int8": DType.INT8, "uint16": DType.UINT16, "int16": DType.INT16}


class Quantize(Pass):
    """Quantize products and convolutions with constant weights, and what lies between them.

    With calibration data (form "static"): weights per channel and symmetric, activations asymmetric in uint8
    with ranges seen in the data, written as QuantizeLinear/DequantizeLinear pairs that onnxruntime turns into
    integer kernels. Without data (form "dynamic"): the same weights; products code activations at run time by their
    own range. Pairs that a model carries already are kept as they are; with data, what lacks them gets them. Inputs and
    outputs stay float.

    Args:
        form: "auto" (static with data, else dynamic), "static" or "dynamic".
        method: Ranges by "minmax", "percentile", "entropy" (least Kullback-Leibler divergence), "mse" (least mean
            squared error of the code), or "auto": for each tensor the range whose code errs least on the data, with
            headroom for samples that reach further.
        percentile: For "percentile": which, in percent.
        weights: Element type of weight codes, "int8" or "uint8".
        activations: Element type of activation codes in the static form: "uint8"; "int8", around 0 (onnxruntime has no
            convolutions for it on x86); "uint16" or "int16" for models that 8 bits are too coarse for (onnxruntime's
            CPU computes these in float between the codes); "auto" takes that of the codes which the model brings
            along, since kernels do not mix them, else "uint8".
        device: Whose integer kernels to write for, and whose saturation to respect: a profile's name or `.toml` file.
        exclude: Node names or operators to leave in float.
        convolutions: What the dynamic form makes of them: "weights" stores their weights as integers and computes
            in float; "integer" computes in integers, too, which onnxruntime has only slow kernels for.
        embeddings: Also code the tables of Gather, per column.
        outputs: Also code outputs of the model, in the static form, where they come from integers (see `quantize-io`).
        weights_only: Code weights alone, as tables that onnxruntime decodes while loading: the file is small, need and
            latency are those of float. Tried where activations in codes err too much, need more or are slower.
        min_sqnr: In the dynamic form: leave those few layers in float without which every output keeps so many decibels
            of signal to difference, on data or on made-up inputs. Not measured unless given.
    """

    changes_numbers: ClassVar[bool] = True
    form: str = "auto"
    method: str = "auto"
    percentile: float = 99.99
    weights: str = "int8"
    activations: str = "auto"
    device: str = USUAL
    exclude: tuple[str, ...] = ()
    convolutions: str = "weights"
    embeddings: bool = True
    outputs: bool = False
    weights_only: bool = False
    min_sqnr: float | None = None

    def stricter(self, missing: float | None = None) -> Pass | None:
        """With the few layers that hurt most in float."""
        measured = self.weights_only or self.min_sqnr is not None
        return replace(self, min_sqnr=_MEASURED) if self.form == "dynamic" and not measured else None

    def weaker(self) -> Pass | None:
        """Weights alone."""
        return None if self.weights_only else replace(self, weights_only=True)

    def run(self, graph: Graph, context: Context) -> None:
        """Quantize the top graph; what lies inside subgraphs stays in float and is counted."""
        self._check()
        device = load_device(self.device)
        dtype, bits = DTYPES[self.weights], device.weight_bits(self.weights)
        form = self.form if self.form != "auto" else ("static" if context.calibration is not None else "dynamic")
        if self.weights_only and not is_quantized(graph):
            coding = QuantizeWeights(bits=8, symmetric=True, rounding=False, decode="load", exclude=self.exclude)
            coding.run(graph, context)
            return
        if is_quantized(graph):
            if not device.signed:
                without_sign(graph, context.stats)
            kept = "The model is quantized already; its own scales are kept as they are"
            if form == "dynamic":
                context.stats["left: quantized already"] += 1
                context.warnings.append(f"{kept}. With --calibration, what they leave in float would be completed.")
                return
            context.warnings.append(f"{kept}, and what they leave in float is completed.")
        if form == "static":
            self._static(graph, dtype, bits, device, context)
            if self.embeddings:
                embedding.quantize_tables(graph, frozenset(self.exclude), context.stats)
        else:
            self._dynamic(graph, device, context)
        _count_left(graph, context.stats, device)
        _decide(form, context)

    def _check(self) -> None:
        for name, value, known in (
            ("form", self.form, ("auto", "static", "dynamic")),
            ("method", self.method, ("auto", *OBSERVERS)),
            ("weights", self.weights, tuple(DTYPES)),
            ("activations", self.activations, ("auto", *_ACTIVATIONS)),
            ("convolutions", self.convolutions, ("weights", "integer")),
        ):
            if value not in known:
                raise InputError(f"quantize has no {name} {value!r}.", hint=f"There are: {', '.join(known)}.")

    def _dynamic(self, graph: Graph, device: Device, context: Context) -> None:
        """Without ranges: products code what they read at run time, all other weights are stored as codes."""

        def quantize(graph: Graph, left: frozenset[str], context: Context) -> None:
            excluded = left | frozenset(self.exclude)
            quantize_dynamically(
                graph,
                excluded,
                DTYPES[self.weights],
                device.weight_bits(self.weights),
                context.stats,
                device,
                integer_convolutions=self.convolutions == "integer",
            )
            if self.embeddings:
                embedding.quantize_tables(graph, excluded, context.stats)
            stored = (*excluded, *(() if self.embeddings else (GATHER,)))
            QuantizeWeights(bits=8, symmetric=True, activations=8, decode="load", exclude=stored).run(
                graph, replace(context, calibration=None, decisions=[])
            )

        left = frozenset[str]()
        if self.min_sqnr is not None:
            left = left_in_float(
                self.name, graph, context, self.min_sqnr, lambda copy, left: quantize(copy, left, Context())
            )
        quantize(graph, left, context)

    def _static(self, graph: Graph, dtype: DType, bits: int, device: Device, context: Context) -> None:
        if context.calibration is None:
            raise InputError("The static form of quantize needs data.", hint="Give some with --calibration.")
        version = ops.opset_of(graph) or 0
        if version < STATIC_OPSET:
            context.stats[f"left: opset below {STATIC_OPSET}"] += 1
            context.warnings.append(
                f"Nothing runs on integers end to end: onnxruntime's kernels for that begin with opset {STATIC_OPSET}, "
                f"the model has {version}. Pass raise-opset, run before, converts it."
            )
            return
        join_biases(graph, frozenset(self.exclude), context.stats)
        choice = choose(graph, frozenset(self.exclude), context.stats, device, outputs=self.outputs)
        activations = _ACTIVATIONS.get(self.activations) or choice.existing.dtype or DType.UINT8
        scales = self._scales(graph, choice, activations, context)
        share_scales(choice, scales)
        StaticQuantizer(graph, choice, scales, dtype, bits, context.stats, activations).emit()

    def _scales(self, graph: Graph, choice: Choice, dtype: DType, context: Context) -> dict[Value, Scale]:
        known = choice.existing.scales
        wanted = [v for v in choice.tensors if is_float32(v) and v not in known]
        # With 16 bits steps are fine enough for outliers.
        method = "minmax" if self.method == "auto" and dtype.bitwidth == 16 else self.method

        infinite: dict[str, str] = {}

        def look(path: Path, names: dict[str, Value]) -> dict[str, Scale]:
            ranges = calibrate(
                path,
                names,
                context.calibration,
                method,
                percentile=self.percentile,
                checkpoint=checkpoint_of(context, self.name),
                infinite=infinite,
            )
            warn_of_infinite(infinite, context)
            chosen = {name: (r.min, r.max) for name, r in ranges.items()}
            if self.method == "auto":  # the others give what they are named after
                chosen = {name: ranges[name].with_headroom(ends) for name, ends in chosen.items()}
            return {name: activation_scale(*ends, dtype) for name, ends in chosen.items()}

        return dict(known) | (observe(graph, wanted, context, look) if wanted else {})


def _count_left(graph: Graph, stats: Counter[str], device: Device) -> None:
    for op in graph.walk():
        if op.key in RECURRENT:
            stats[f"left {op.op_type}: recurrent, errors would add up"] += 1
        elif op.key in device.heavy and op.graph is not graph:
            stats[f"left {op.op_type}: inside a subgraph"] += 1


def _decide(form: str, context: Context) -> None:
    done = sum(n for k, n in context.stats.items() if k.startswith("quantized "))
    left = sum(n for k, n in context.stats.items() if k.startswith("left "))
    why = (
        "ranges were seen in the calibration data"
        if form == "static"
        else "there is no calibration data, so activations are quantized at run time"
    )
    context.decisions.append(Decision("quantize", f"{done} nodes on 8-bit integers, {left} left in float", why))
    if form == "dynamic":
        context.warnings.append(
            "Without --calibration, products quantize their activations at run time by their own range, and "
            "convolutions only store their weights as integers; with data both run on integers end to end."
        )
