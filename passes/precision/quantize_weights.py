"""quantize-weights: weights as 4 or 8 bits in small blocks, each with its own scale; activations stay float32."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from memoptc.ir import ops
from memoptc.ir.core import Graph
from memoptc.ir.diagnostics import InputError
from memoptc.pass_base import Context, Pass
from memoptc.passes.precision._quantize.coding import SMALLEST, find, report, write_all
from memoptc.passes.precision._quantize.weight_coder import WeightCoder
from memoptc.passes.precision._quantize.weight_format import WeightFormat
from memoptc.passes.precision._quantize.weight_only import Writer

BLOCKS = (16, 32, 64, 128, 256)
FORMS = ("nbits", "dq")


class QuantizeWeights(Pass):
    """Code the weights of products, convolutions and lookup tables in blocks; needs no data, and is better with some.

    Scales and zero points are searched for the least squared error of each block (see `_quantize/blocks.py`). With
    calibration data, weights of products and convolutions are then rounded to the same grid for the least error of
    their product (see `_quantize/rounding.py`), and scales are fitted to that, each only where it shows on data kept
    aside. A weight is coded once for all that read it, and stays float32 when something else reads it, too. Every
    weight that stays is named, with the reason, in the report's decisions.

    Args:
        bits: 4, 8, or 2: of products and lookups only, in the form "nbits"; other kernels for it than those for
            activations of 8 bits are slow.
        block: Weights that share a scale: 16, 32, 64, 128 or 256. Convolutions take the nearest size that divides
            the weights of a channel.
        symmetric: Code 0 as the middle code everywhere, which saves the zero points and costs about half a decibel.
        form: "nbits" for onnxruntime's MatMulNBits and GatherBlockQuantized, which decode a few weights at a time;
            "dq" for standard operators: DequantizeLinear with blocks (opset 21), and lookups of int8 rows. Weights of
            convolutions are decoded as a whole in both, when they are needed.
        smallest: Bytes below which a weight stays as it is.
        search: Search for the scales; without it every block's range is rounded plainly (to compare with).
        rounding: Round by calibration data, where there is any.
        activations: 32, or 8: MatMulNBits then codes its other operand at run time, block by block. With weights of 8
            bits only that has a fast kernel; products of a single row are up to ten times slower without it.
        decode: When weights of convolutions are decoded: in each "run", or while onnxruntime "load"s them, from tables,
            as `mix-weights` does; then those of recurrent operators are coded, too.
        rest: Code what another pass has left, which tells of what stays in float.
        exclude: Node names or operators to leave in float.
    """

    changes_numbers: ClassVar[bool] = True
    bits: int = 4
    block: int = 32
    symmetric: bool = False
    form: str = "nbits"
    smallest: int = SMALLEST
    search: bool = True
    rounding: bool = True
    activations: int = 32
    decode: str = "run"
    rest: bool = False
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, value, known in (
            ("bits", self.bits, (2, 4, 8) if self.form == "nbits" else (4, 8)),
            ("block", self.block, BLOCKS),
            ("form", self.form, FORMS),
            ("activations", self.activations, (8, 32)),
            ("decode", self.decode, ("load", "run")),
        ):
            if value not in known:
                raise InputError(
                    f"quantize-weights has no {name}={value!r}.", hint=f"There are: {', '.join(map(str, known))}."
                )

    def run(self, graph: Graph, context: Context) -> None:
        """Code what can be coded, and say what was left and why."""
        opset = ops.opset_of(graph) or 0
        plan = WeightFormat(
            self.bits, self.block, self.symmetric, self.form, opset, self.search, self.activations, self.decode
        )
        found = find(graph, plan, self.smallest, frozenset(self.exclude))
        if self.rest:
            found = replace(found, left=[], small=0)
        writer = Writer(WeightCoder(plan), context.stats)
        before = sum(weight.bytes for weight in found.chosen)
        after = sum(write_all(graph, found.chosen, writer, context if self.rounding else None))
        if found.left:
            context.stats["weights left"] += len(found.left)
        context.stats["weights quantized"] += len(found.chosen)
        if found.chosen or not self.rest:
            report(self.name, context, writer.coder, found, len(found.chosen), (before, after))
