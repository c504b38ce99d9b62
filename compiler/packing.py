"""Packing ahead: weights are stored in the kernels' layout beside the model where that spares memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from memoptc.ir.core import Graph
from memoptc.ir.forms import WritingForm
from memoptc.ir.infer import infer_shapes
from memoptc.ir.onnx_io import write_into
from memoptc.options import Options
from memoptc.report.model import Decision
from memoptc.report.rows import size
from memoptc.runtime.memory.need import Configuration, predict_need
from memoptc.runtime.pack_ahead import pack_ahead

FIRST_LEVEL = 2
"""Level from which weights are packed ahead unasked."""

PACKED_FROM = 16 << 20
"""Bytes of anonymous memory that packing ahead must spare: the file grows by as much."""

SHARE = 1 / 3
"""Share of need that they must be."""


def decide_packing(graph: Graph, dims: Mapping[str, int], options: Options, form: WritingForm) -> Decision | None:
    """Decide if weights are packed ahead; `None` where they are not.

    Unasked that is done for float32, whose file is no smaller on purpose, where packed copies are a large part of need.

    Args:
        graph: The compiled graph; types that it lacks are inferred.
        dims: Extents that it runs at.
        options: The options in force; `pack_weights` asks for it, `portable` forbids it.
        form: How the graph is written.
    """
    if form.name != "plain" or not form.external or options.portable:
        return None
    infer_shapes(graph)
    how = Configuration(external=True)
    before, after = (predict_need(graph, dims, h) for h in (how, replace(how, packed=True)))
    spared = before.anonymous_bytes - after.anonymous_bytes
    unasked = options.level >= FIRST_LEVEL and options.target == "float32"
    worth = unasked and spared >= max(PACKED_FROM, SHARE * before.need_bytes)
    if not worth and not (options.pack_weights and spared > 0):
        return None
    return Decision(
        step="packing",
        what="weights are in the file a second time, as this processor's kernels read them",
        why=f"onnxruntime maps that instead of packing copies: {size(before.anonymous_bytes)} of memory that cannot be "
        f"evicted become {size(after.anonymous_bytes)}, predicted; on other processors it packs as ever "
        "(--portable keeps the file small)",
        gain_bytes=spared,
    )


def write_in_form(graph: Graph, path: Path, form: WritingForm, scratch: Path) -> list[Path]:
    """Write a graph, packed where its form says so; give its files.

    Args:
        graph: The graph.
        path: Where to.
        form: How.
        scratch: An existing folder for temporary files.
    """
    files = write_into(graph, path, form)
    if form.packed and len(files) > 1:
        pack_ahead(path, scratch)
    return files
