"""The report of a compile, written from what its steps made; nothing is read back out of it."""

from __future__ import annotations

import platform
from typing import Any

import onnx
import onnxruntime

from memoptc.attempts import Attempt, Attempts
from memoptc.compilation import Compilation
from memoptc.digest import data_facts
from memoptc.manager import count_nodes
from memoptc.options import Options
from memoptc.report import Report
from memoptc.runtime.configuration import FILE_ORDER
from memoptc.runtime.verification import Verification
from memoptc.version import __version__


def report_of(compilation: Compilation, attempts: Attempts, attempt: Attempt) -> Report:
    """Write the report of an attempt, as far as it was not measured."""
    info, data, precision = compilation.source.graph.info, compilation.data, attempt.compiled.artefacts.precision
    report = Report(
        model={
            "path": info.source_path,
            "sha256": info.source_sha256,
            "opset": info.opset_imports.get(""),
            "nodes": count_nodes(compilation.source.graph),
        },
        options=compilation.options.to_json() | {"passes": str(attempt.pipeline)},
        control=attempts.original.side(),
        candidate=attempt.written.side(),
        passes=attempt.compiled.passes,
        kernels=None if attempt.kernels is None else attempt.kernels.to_json(),
        decisions=attempt.decisions,
        warnings=attempt.warnings,
        sizes={
            "planned": dict(data.dims),
            "run": None if data.check is None else dict(data.check),
            "configuration": str(FILE_ORDER),
            "chosen": [] if data.points is None else list(data.points.chosen),
        },
        environment=environment(compilation.options),
        precision=None if precision is None else {"layers": precision.layers, "reached": precision.reached},
        inputs={
            name: facts
            for name in ("calibration", "validation")
            if (facts := data_facts(getattr(compilation.options, name))) is not None
        },
        decoder=None if attempts.decoder is None else str(attempts.decoder),
    )
    if attempt.predicted is None:  # what of the original has no known size counts as 0, so that it cannot be compared
        report.control.predicted_need_bytes = None
    if attempt.verification is not None:
        report.verification = _proof(attempt.verification)
        accuracy = attempt.verification.accuracy
        if accuracy is not None:
            report.accuracy = {"metric": "top-1", **accuracy, "samples": int(accuracy["samples"])}
    return report


def environment(options: Options) -> dict[str, Any]:
    """Versions and threads that the report's figures hold for."""
    return {
        "memoptc": __version__,
        "onnxruntime": onnxruntime.__version__,
        "onnx": onnx.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()}-{platform.release()}-{platform.machine()}",
        "threads": options.jobs or 0,
    }


def _proof(found: Verification) -> dict[str, Any]:
    plain = found.to_json()
    plain["bit_exact"] = bool(found.outputs) and all(o.get("bit_exact", o.get("max_abs") == 0) for o in found.outputs)
    plain["worst"] = found.worst
    if found.mode == "off":
        plain["passed"] = None
    if plain["inputs"] == "none":
        plain["inputs"] = "random"
    return plain
