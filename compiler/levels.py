"""Levels and targets as pipelines that one can print, edit and pass back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from memoptc.ir.diagnostics import InputError
from memoptc.lossy import NOTHING_LOSSY, Lossy
from memoptc.options import Options
from memoptc.pass_base import spell
from memoptc.runtime.devices import USUAL
from memoptc.targets import INTEGERS, TARGETS

_EXACT = "inline-functions,(simplify,fold-constants,share-common,drop-dead)*,share-weights"
"""Why groups reach a fixed point: passes of this one make ops, uses of computed values or results fewer, and put
nothing back. Those of `_FUSE` move what shrinks towards the inputs (narrow, scale-early) or fold it into weights, and
what grows towards the outputs (widen-late); each of them has a measure of its own, none undoes another. The manager
bounds rounds anyway."""
_NARROW = "(narrow,share-common,drop-dead)*"
"""Before products of views become ones over all rows of a batch, which what takes one token cannot pass."""
_FUSE = (
    "(fold-constants{exact=false},fuse-conv-bn,drop-dead-channels,narrow,widen-late,scale-early,simplify,share-common,"
    "drop-dead)*"
)
_OPEN_WEIGHTS = "widen-half,fold-constants{exact=false,weights=true}"
"""Passes that make weights constants in float32, which quantization needs."""
_SPLIT = "split-products,scale-early,(simplify,share-common,drop-dead)*"
"""Only where numbers stay floats: quantized ones would need another scale for each product and sum."""
_DECODER = "fuse-rotary,fuse-skip-norm,fuse-cached-attention,(simplify,fold-constants,share-common,drop-dead)*"
_QUERIES = "(narrow{reshapes=true},simplify,share-common,drop-dead)*"
"""Behind what recognises attention over a cache, which would not be that any more with the queries of one token."""
_ATTENTION = "fuse-attention,spell-gelu,unblock-resize,share-common,drop-dead"
_WEIGHTS = {
    "float16": "to-half",
    "bfloat16": 'raise-opset{below=13},to-half{format="bfloat16",storage=true}',
    "float8": 'raise-opset{to=19,below=19},to-half{format="float8"}',
}
"""Targets that need no data. Operators of int4 are in onnxruntime's own domain; Cast knows float16 at any opset."""

_LAST = "plan-memory,lower"
SLOWDOWN = {2: 1.05, 3: 1.3}
"""Largest ratio of run times that a level accepts for saving memory, where nobody says otherwise."""
ANY_SLOWDOWN = 1000.0
"""A slowdown that stands for none being too much: a budget was given, and no other limit."""


@dataclass(frozen=True)
class Accuracy:
    """Accuracy that integers have to keep.

    Args:
        min_sqnr: Least signal to difference of every output, in decibels.
        max_loss: Largest accepted loss of the metric.
        fallback: Whether layers may stay in float for that.
        study: Measure each layer alone even when accuracy is met without.
    """

    min_sqnr: float | None = None
    max_loss: float | None = None
    fallback: bool = True
    study: bool = False

    @property
    def asked(self) -> bool:
        """True if it differs from nothing being asked."""
        return self != Accuracy()

    def options(self) -> list[str]:
        """Options of `quantize-search` and `mix-weights`: where nothing is asked, their own."""
        found = []
        if self.min_sqnr is not None:
            found.append(f"min_sqnr={float(self.min_sqnr)!r}")
        elif self.max_loss is not None or not self.fallback:
            found.append("min_sqnr=none")
        found += [] if self.max_loss is None else [f"max_loss={float(self.max_loss)!r}"]
        found += [] if self.fallback else ["fallback=false"]
        return found + (["study=true"] if self.study else [])


def pipeline_text(
    level: int,
    target: str = "float32",
    *,
    calibrated: bool = False,
    freeze: bool = False,
    quantize_io: bool = False,
    cache: str = "float32",
    device: str = USUAL,
    budget: int | None = None,
    slowdown: float | None = None,
    accuracy: Accuracy = Accuracy(),
    lossy: Lossy = NOTHING_LOSSY,
) -> str:
    """Give the pipeline of a level and target.

    Args:
        level: 0 changes nothing; 1 no output bit; 2 adds fusion, and tiling at equal latency; 3 tiles memory first.
        target: Numbers to use.
        calibrated: Whether calibration data is at hand: without it, int8 needs none.
        freeze: Whether onnxruntime's own optimization becomes part of the model.
        quantize_io: Whether callers hand in and get codes.
        cache: Element type of a decoder's cache.
        device: Profile to write for.
        budget: Bytes that the planned activations shall fit into; as few as possible when not given.
        slowdown: Largest ratio of run times; the level's when neither this nor a budget is given, and any for a budget.
        accuracy: What is asked of integers.
        lossy: Passes that lose accuracy on purpose.

    Raises:
        InputError: there is no such target, or it cannot be held to an accuracy.
    """
    _check_target(target, calibrated, asked=accuracy.asked and not lossy)
    parts = list(lossy.first)
    if level >= 2:
        parts.append("raise-opset" if target in ("int8", "uint8") else "raise-opset{needed=false}")
    if level >= 1:
        parts.append(_EXACT)
    if level >= 2:
        parts.append(_NARROW)
    parts += lossy.tokens
    if level >= 2 and target in INTEGERS:
        parts.append(_OPEN_WEIGHTS)
    if level >= 2:
        parts.append(_FUSE)
    parts += lossy.shrinking
    if level >= 2:
        parts.append(_DECODER)
    if level >= 2 and target == "float32":
        parts.append(_SPLIT)
    if level >= 2:
        parts.append(_QUERIES)
    parts += _numbers(level, target, calibrated, device, quantize_io, accuracy)
    if quantize_io:
        parts.append('quantize-io{half="float16"}' if target == "float16" else "quantize-io")
        parts.append("drop-dead")
    if cache != "float32":
        parts.append("quantize-cache,drop-dead")
    if level >= 2:
        parts.append(_ATTENTION)  # what integers or half floats compute is no longer recognised
    parts += lossy.tables
    if level >= 1:
        parts.append("order")
    if level >= 2:
        parts.append(_fit(level, budget, slowdown))
    if freeze:
        parts.append("freeze-runtime,drop-dead,order")
    if level >= 2:
        parts.append("share-transposed")  # what knows products by name has run
    if level >= 2 or target != "float32":
        parts.append("drop-notes")  # onnxruntime holds them as long as a session lives
    parts.append(_LAST)
    return ",".join(parts)


def _check_target(target: str, calibrated: bool, *, asked: bool) -> None:
    """Refuse a target that does not exist, or that cannot be held to the accuracy that is asked of it."""
    if target not in TARGETS:
        raise InputError(f"There is no target {target!r}.", hint=f"Targets are {', '.join(TARGETS)}.")
    if asked and (target not in INTEGERS or not calibrated):
        raise InputError(
            f"An accuracy can be asked of lossy passes, and of --target {', '.join(INTEGERS)} with --calibration only.",
            hint="Hold other targets to --max-error."
            if calibrated
            else "Say what may be lossy, such as --target int8 or --prune 0.3, and give data with --calibration.",
        )


def _numbers(
    level: int, target: str, calibrated: bool, device: str, quantize_io: bool, accuracy: Accuracy
) -> list[str]:
    """Passes that write the numbers of a target; none for float32."""
    if target == "float32":
        return []
    if target in _WEIGHTS:
        return [_for_device(_WEIGHTS[target], device), "share-weights,drop-dead"]
    if target == "int4" or (target == "mixed" and not calibrated):
        options = accuracy.options() if target == "int4" else ["min_sqnr=20.0", 'by="weights"']
        options += ["tables_sqnr=none"] if target == "int4" and accuracy.asked else []
        return ["scale-columns", _spelled("mix-weights", options), "share-weights,drop-dead"]
    raised = ["raise-opset"] if level < 2 else []
    return [*raised, _quantize(target, calibrated, device, quantize_io, accuracy), "drop-dead"]


def _fit(level: int, budget: int | None, slowdown: float | None) -> str:
    if slowdown is None:
        slowdown = SLOWDOWN[level] if budget is None else ANY_SLOWDOWN
    options = [f"slowdown={float(slowdown)!r}"] if slowdown != SLOWDOWN[2] else []
    if budget is not None:
        options.insert(0, f"budget={budget}")
    return "fit" + (f"{{{','.join(options)}}}" if options else "")


def _for_device(text: str, device: str) -> str:
    """Name the device in the pass that asks what has kernels for half floats."""
    named, option = "to-half", f"device={spell(device)}"
    if device == USUAL or named not in text:
        return text
    return text.removesuffix("}") + f",{option}}}" if text.endswith("}") else f"{text}{{{option}}}"


def _quantize(target: str, calibrated: bool, device: str, outputs: bool, accuracy: Accuracy) -> str:
    options = accuracy.options() if calibrated else ['form="dynamic"']
    if target == "mixed":
        options.append("mixed=true")
    elif target != "int8":
        options.append(f'weights="{target}"')
    if device != USUAL:
        options.append(f"device={spell(device)}")
    if outputs and calibrated:
        options.append("outputs=true")
    return _spelled("quantize-search" if calibrated else "quantize", options)


def _spelled(name: str, options: list[str]) -> str:
    return name + (f"{{{','.join(options)}}}" if options else "")


def promised_slowdown(options: Options) -> float:
    """Largest ratio of latencies that a compile promises: what was asked for, else the level's; any for a budget."""
    if options.max_slowdown is not None:
        return options.max_slowdown
    return ANY_SLOWDOWN if options.budget else SLOWDOWN.get(options.level, SLOWDOWN[2])


def cascade_pipeline(small: Path, max_disagreement: float, threshold: float | None = None) -> str:
    """Give the pipeline that puts a small classifier before a large one.

    Args:
        small: File of the small model.
        max_disagreement: Share of inputs that may get another likeliest class than from the large model.
        threshold: Confidence from which the small model answers; calibrated if `None`.
    """
    settings = [f"small={json.dumps(str(small))}", f"max_disagreement={max_disagreement!r}"]
    settings += [] if threshold is None else [f"threshold={threshold!r}"]
    merged = f"cascade{{{','.join(settings)}}},share-weights,drop-dead,lower"
    return f"raise-opset{{to=18,below=18}},inline-functions,{merged}"
