"""onnxruntime's own graph optimization, done once and kept: the model as it would run, written by onnxruntime."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import onnx
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from memoptc.ir.diagnostics import InputError
from memoptc.runtime.options import clean_message, session_options
from memoptc.runtime.packed_data import align_parts

LEVELS = ("basic", "extended", "all")
_SMALL = 1024
_LARGE = 1 << 30
"""Bytes of weights from which they are written beside the model: one protobuf message holds less than 2 GB."""


def optimize(
    model: str | os.PathLike[str],
    output: Path,
    *,
    level: str = "extended",
    disabled: tuple[str, ...] = (),
    weight_bytes: int = 0,
) -> None:
    """Write what onnxruntime makes of a model.

    Args:
        model: Path of the model.
        output: Where to.
        level: `basic`, `extended`, or `all`, which adds layouts for this machine's processor.
        disabled: Names of onnxruntime optimizers not to run.
        weight_bytes: How large its weights are: large ones are written beside the output.

    Raises:
        InputError: onnxruntime cannot load it.
    """
    config = {}
    if weight_bytes >= _LARGE:
        config["session.optimized_model_external_initializers_file_name"] = f"{output.name}.data"
        config["session.optimized_model_external_initializers_min_size_in_bytes"] = str(_SMALL)
    options = session_options(
        {"graph_optimization_level": f"ORT_ENABLE_{level.upper()}", "log_severity_level": 4}, config
    )
    _save(model, output, options, disabled)


def unknown_optimizers(names: Sequence[str]) -> list[str]:
    """Give the names that no optimizer of the installed onnxruntime has, which ignores such names without a word.

    It lists none, but their names, or the parts around `_` of those that are put together, are strings in its library,
    which may be the ends of longer ones, or, where the compiler made numbers of those, names of their classes.
    """
    if not names:
        return []

    def known(part: bytes, library: mmap.mmap) -> bool:
        return any(library.find(text) >= 0 for text in (b"%b\0" % part, b"%d%bE\0" % (len(part), part)))

    with Path(ort_state.__file__).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as library:
        return [n for n in names if not any(known(part.encode(), library) for part in (n, *n.split("_")))]


def write_packed(model: str | os.PathLike[str], output: Path) -> Path:
    """Write a model whose weights lie beside it, in the layouts that this machine's kernels read: loading maps them.

    Args:
        model: Path of a model that is to run with onnxruntime's optimizer off.
        output: Where to; the weights go to `OUTPUT.data`.

    Returns:
        The file with the weights.

    Raises:
        InputError: onnxruntime cannot load it.
    """
    data = output.with_name(f"{output.name}.data")
    save_packed(model, output, data.name, optimize=False)
    packed = onnx.load(output, load_external_data=False)
    aligned = data.exists() and align_parts(packed, data)
    if _restore_order(Path(model), packed) or aligned:
        output.write_bytes(packed.SerializeToString(deterministic=True))
    return data


def save_packed(model: str | os.PathLike[str], output: Path, data: str, *, optimize: bool) -> None:
    """Let onnxruntime write a model as it runs it, with what its kernels pack of weights in a file beside it.

    Args:
        model: Path of the model.
        output: Where to.
        data: Name of the file beside it.
        optimize: Optimize the model as a session does by default.

    Raises:
        InputError: onnxruntime cannot load it.
    """
    config = {
        "session.optimized_model_external_initializers_file_name": data,
        "session.optimized_model_external_initializers_min_size_in_bytes": str(_SMALL),
        "session.save_external_prepacked_constant_initializers": "1",
    }
    level = "ORT_ENABLE_ALL" if optimize else "ORT_DISABLE_ALL"
    _save(model, output, session_options({"graph_optimization_level": level, "log_severity_level": 4}, config), ())


def _restore_order(original: Path, model: onnx.ModelProto) -> bool:
    """Nodes come out in onnxruntime's own order: bring them back into the file's. Say whether that was possible."""
    rank = {n: i for i, n in enumerate(_first_outputs(onnx.load(original, load_external_data=False)))}
    if not set(_first_outputs(model)) <= rank.keys():
        return False  # nodes were added, and where they belong is not known; onnxruntime's order is a valid one
    nodes = sorted(model.graph.node, key=lambda node: rank[_key(node)])
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return True


def _first_outputs(model: onnx.ModelProto) -> list[str]:
    return [_key(node) for node in model.graph.node]


def _key(node: onnx.NodeProto) -> str:
    return next((name for name in node.output if name), node.name)


def _save(model: str | os.PathLike[str], output: Path, options: ort.SessionOptions, disabled: tuple[str, ...]) -> None:
    options.optimized_model_filepath = str(output)
    try:
        ort.InferenceSession(
            os.fspath(model), options, providers=["CPUExecutionProvider"], disabled_optimizers=list(disabled) or None
        )
    except Exception as error:
        raise InputError(f"onnxruntime cannot load the model: {clean_message(error)}.") from error
