"""Levels and targets as pipelines that one can print, edit and pass back."""

from __future__ import annotations

from memoptc.ir.diagnostics import InputError

TARGETS = ("float32", "int8", "uint8", "int4", "float16", "bfloat16", "float8")

_EXACT = "inline-functions,(simplify,fold-constants,share-common,drop-dead)*,share-weights"
_FUSE = "(fold-constants{exact=false},fuse-conv-bn,simplify,share-common,drop-dead)*"
_WEIGHTS = {
    "int4": "quantize-weights",
    "float16": "to-half",
    "bfloat16": 'raise-opset{to=13,below=13},to-half{format="bfloat16",storage=true}',
    "float8": 'raise-opset{to=19,below=19},to-half{format="float8"}',
}
"""Targets that need no data. Operators of int4 are in onnxruntime's own domain; Cast knows float16 at any opset."""

_PLACE = "order,plan-memory,lower"


def pipeline_text(level: int, target: str = "float32", *, calibrated: bool = False, freeze: bool = False) -> str:
    """Give the pipeline of a level and target.

    Args:
        level: 0 changes nothing; 1 no output bit; 2 adds fusion; 3 (memory first) is 2 for now.
        target: Numbers to use.
        freeze: Whether onnxruntime's own optimization becomes part of the model.
        calibrated: Whether calibration data is at hand: without it, int8 needs none.

    Raises:
        InputError: there is no such target.
    """
    if target not in TARGETS:
        raise InputError(f"There is no target {target!r}.", hint=f"Targets are {', '.join(TARGETS)}.")
    parts = []
    if level >= 1:
        parts.append(_EXACT)
    if level >= 2:
        parts.append(_FUSE)
    if target in _WEIGHTS:
        parts += [_WEIGHTS[target], "share-weights,drop-dead"]
    elif target != "float32":
        parts += ["raise-opset", _quantize(target, calibrated), "drop-dead"]
    if freeze:
        parts.append("freeze-runtime,drop-dead")
    parts.append(_PLACE if level >= 1 or freeze else "plan-memory,lower")
    return ",".join(parts)


def _quantize(target: str, calibrated: bool) -> str:
    options = [] if calibrated else ['form="dynamic"']
    if target != "int8":
        options.append(f'weights="{target}"')
    return "quantize" + (f"{{{','.join(options)}}}" if options else "")
