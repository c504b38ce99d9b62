"""unblock-resize: keep a resize out of onnxruntime's layout in blocks of channels where nothing behind it is in it."""

from __future__ import annotations

from memoptc.ir.core import Graph
from memoptc.ir.ops.resize import as_unblocked
from memoptc.pass_base import Context, Pass
from memoptc.runtime.memory.layout import leaves_blocks


class UnblockResize(Pass):
    """Write a linear resize so that onnxruntime has no kernel on blocks of channels for it.

    Behind convolutions onnxruntime resizes in blocks of channels. Where what comes behind reads plain tensors, as the
    output of a segmentation does, the whole result is then there twice: in blocks, its channels rounded up, and copied
    out of them. The mode `pytorch_half_pixel` places elements as `half_pixel` does wherever there is more than one, and
    has no such kernel, so that the small operand is copied instead. Outputs may differ by float noise.
    """

    def run(self, graph: Graph, context: Context) -> None:
        """Look once at every op; the new mode is not looked at again."""
        for op in list(graph.walk()):
            mode = as_unblocked(op)
            if mode is not None and leaves_blocks(op.result):
                op.set_attr("coordinate_transformation_mode", mode)
                context.stats["resizes"] += 1
