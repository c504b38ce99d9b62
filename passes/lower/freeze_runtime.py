"""freeze-runtime: keep what onnxruntime's own optimizer makes of the model, so that order and plan hold."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import onnxruntime as ort

from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Tensor
from memoptc.ir.diagnostics import InputError
from memoptc.ir.infer import infer_shapes
from memoptc.ir.onnx_io import read_onnx, write_into
from memoptc.ir.tensors import same_content
from memoptc.ir.types import DType
from memoptc.manager import count_nodes, weight_bytes
from memoptc.pass_base import Context, Pass
from memoptc.report.model import Decision
from memoptc.runtime.freeze import LEVELS, optimize, unknown_optimizers


class FreezeRuntime(Pass):
    """Run onnxruntime's optimizer now, and load the result with it off.

    What the optimizer does while loading undoes an order and makes every plan of the unoptimized graph wrong. Fused
    operators of `com.microsoft` that it writes run in onnxruntime only.

    Args:
        level: `basic`, `extended`, or `all`, which adds layouts for this machine's processor: for it alone.
        disabled: Names of onnxruntime optimizers not to run.
    """

    kept: ClassVar[bool] = True
    level: str = "extended"
    disabled: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise InputError(f"freeze-runtime has no level {self.level!r}.", hint=f"Levels are {', '.join(LEVELS)}.")

    def run(self, graph: Graph, context: Context) -> None:
        """Write the graph, let onnxruntime optimize it, read it back."""
        context.warnings += [
            f"onnxruntime {ort.__version__} has no optimizer {name!r}, so that name disables nothing; its sources, "
            "onnxruntime/core/optimizer, have the names."
            for name in unknown_optimizers(self.disabled)
        ]
        before, size = count_nodes(graph), weight_bytes(graph)
        source, output = Path(context.scratch) / "freeze.onnx", Path(context.scratch) / "frozen.onnx"
        write_into(graph, source)
        optimize(source, output, level=self.level, disabled=self.disabled, weight_bytes=size)
        frozen = read_onnx(output)
        infer_shapes(frozen)
        context.stats["weights kept"] = _keep_weights(graph, frozen)
        context.stats["weights new"] = sum(1 for _ in frozen.walk("const")) - context.stats["weights kept"]
        assert graph.model is not None
        assert frozen.model is not None
        _constant_scales(frozen)
        graph.become(frozen)
        graph.model.opset_imports.update(frozen.model.opset_imports)
        context.stats["nodes before"], context.stats["nodes after"] = before, count_nodes(graph)
        context.artefacts.frozen = True
        context.decisions.append(
            Decision(
                self.name,
                f"onnxruntime's {self.level} optimizations, once: {before} -> {count_nodes(graph)} nodes",
                "with its optimizer off, onnxruntime keeps our order and plan",
            )
        )


def _constant_scales(graph: Graph) -> None:
    """Compute what a Cast makes of MatMulNBits' constant operands: they are packed while loading, so 0 is read else.

    onnxruntime leaves such Casts where it computes float16 in float32, and folds them in its next optimization only.
    """
    for op in graph.walk("com.microsoft::MatMulNBits"):
        for index, value in enumerate(op.operands[1:], 1):
            cast = value.op
            if cast is None or not cast.is_a("Cast") or cast.operands[0].tensor is None:
                continue
            wide = np.asarray(cast.operands[0].tensor.numpy()).astype(DType(cast.attrs["to"]).numpy())
            assert op.graph is not None
            op.set_operand(index, Builder(op.graph, before=op).const(wide))
            if not cast.result.has_uses:
                cast.erase()


def _keep_weights(graph: Graph, frozen: Graph) -> int:
    """Weights that are the same bytes stay the tensors they were: mapped files stay mapped. Count them."""
    known: dict[str, Tensor] = {op.result.name: op.attrs["value"] for op in graph.walk("const")}
    kept = 0
    for op in frozen.walk("const"):
        mine, theirs = known.get(op.result.name), op.attrs["value"]
        if mine is not None and same_content(mine, theirs):
            op.set_attr("value", mine)
            kept += 1
    return kept
