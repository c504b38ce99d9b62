"""In which order onnxruntime really runs a model's nodes, from its own profiler."""

from __future__ import annotations

import os
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path

import onnx
import onnxruntime as ort

from memoptc.ir.diagnostics import InputError
from memoptc.ir.files import TemporaryFolder
from memoptc.ir.ops import EXTENTS
from memoptc.runtime.node_events import node_events
from memoptc.runtime.options import Feed, RunOptions, clean_message


def executed_order(model: str | os.PathLike[str], feed: Feed, options: RunOptions) -> list[str]:
    """Run once under onnxruntime's profiler.

    Args:
        model: Path of the model.
        feed: The inputs.
        options: How to run.

    Returns:
        Names of the nodes of the top graph and of its branches and bodies, as they ended.

    Raises:
        InputError: onnxruntime cannot load or run the model.
    """
    native = options.session_options()
    native.enable_profiling = True
    with TemporaryFolder("memoptc-order-") as folder:
        native.profile_file_prefix = str(Path(folder) / "run")
        try:
            session = ort.InferenceSession(
                os.fspath(model),
                native,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=list(options.disabled_optimizers) or None,
            )
            session.run(None, dict(feed))
        except Exception as error:
            raise InputError(f"onnxruntime cannot run the model: {clean_message(error)}.") from error
        ended = [(int(e["ts"]) + int(e["dur"]), name) for name, e in node_events(session.end_profiling())]
    ended.sort(key=itemgetter(0))
    return [name for _, name in ended]


def first_difference(model: str | os.PathLike[str], executed: Sequence[str]) -> str:
    """Compare what was executed with the order of the file.

    Nodes without a name, and names that onnxruntime made, are left out; Shape and Size may run early, as they do under
    every order of onnxruntime.

    Returns:
        One sentence on the first node that ran out of order; empty when all ran as written.
    """
    graph = onnx.load(os.fspath(model), load_external_data=False).graph
    free = {n.name for n in graph.node if n.op_type in EXTENTS | {"Constant"}}
    written = [n.name for n in graph.node if n.name and n.name not in free]
    known = set(written)
    ran = [name for name in executed if name in known]
    missing = known - set(ran)
    expected = [name for name in written if name not in missing]
    for wanted, found in zip(expected, ran, strict=False):
        if wanted != found:
            return f"node {found!r} ran where {wanted!r} is written"
    return "" if len(expected) == len(ran) else "some nodes ran more than once"
