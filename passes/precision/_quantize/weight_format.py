"""Formats of weights in few bits: blocks that share a scale, and which operators can read them."""

from __future__ import annotations

from dataclasses import dataclass

from memoptc.passes.precision._quantize.layer_precision import LayerPrecision
from memoptc.passes.precision._quantize.weight_operands import GATHER, Weight, WeightUse
from memoptc.runtime.kernels import multiplies_codes

BLOCKED_SINCE = 21
"""Opset from which DequantizeLinear has a scale per block, and codes of 4 bits."""

DECODER_BLOCK = 64
"""Weights of a decoder that share a scale in 8 bits: 8.5 bits a weight."""


@dataclass
class WeightFormat:
    """Format that weights are quantized to.

    Args:
        bits: 2, 4 or 8.
        block: Weights that share a scale.
        symmetric: Whether 0 always has the middle code.
        form: "nbits" or "dq".
        opset: Version of the standard operators in force.
        search: Search for scales, or round plainly.
        activations: 8 where the kernel codes the other operand, else 32.
        decode: When weights of operators without a kernel for codes are decoded: in each "run", from blocks, or at
            "load", from tables: they then take the memory of floats, and no time.
    """

    bits: int
    block: int
    symmetric: bool
    form: str
    opset: int
    search: bool = True
    activations: int = 32
    decode: str = "run"

    def why_not(self, weight: Weight, site: WeightUse) -> str:
        """Say why a site cannot be written in this form; `""` when it can."""
        if site.whole and self.decode == "run":
            return site.whole
        if site.decoded or site.op.op_type == GATHER:
            return "no operator that decodes weights as a whole knows 2 bits" if self.bits == 2 and site.decoded else ""
        tensor = weight.value.tensor
        if tensor is not None and self.bytes_of(tuple(tensor.shape.numpy()), site.columns) >= weight.bytes:
            return f"in blocks of {self.block} its codes would take as many bytes"
        if self.form == "nbits":
            known = multiplies_codes(self.bits)
            return "" if known else f'this onnxruntime has no MatMulNBits for {self.bits} bits (form="dq" needs none)'
        if self.opset < BLOCKED_SINCE:
            return f"blocks need opset {BLOCKED_SINCE}, the model has {self.opset} (raise-opset{{to=21,below=21}})"
        return ""

    def bytes_of(self, shape: tuple[int, ...], columns: int) -> int:
        """Bytes of a matrix in codes, with scales and zero points."""
        blocks = shape[1 - columns] * -(-shape[columns] // self.block)
        zeros = 0 if self.symmetric else blocks * self.bits // 8
        return blocks * (self.block * self.bits // 8 + 4) + zeros


def near_divisor(length: int, block: int) -> int:
    """Give the divisor of `length` nearest to `block` (as a ratio), at most twice as large; else `length` itself.

    Blocks of equal size need no padding. Divisors below half of the block spend more on scales than they gain.
    """
    fitting = [d for d in range(max(1, block // 2), 2 * block + 1) if length % d == 0]
    return min(fitting, key=lambda d: (max(d / block, block / d), d)) if fitting else length


def byte_shares(block: int, decoder: bool) -> dict[LayerPrecision, float]:
    """Give by state: bytes of a weight, with its scale and zero point, as a part of those in float.

    Args:
        block: Weights that share a scale in 2 and 4 bits.
        decoder: Whether 8 bits are in blocks, too, as in decoders with a cache.
    """
    eight = 8 + 32 / DECODER_BLOCK if decoder else 8.0
    return {
        LayerPrecision.INT2_WEIGHTS: (2 + 34 / block) / 32,
        LayerPrecision.INT4_WEIGHTS: (4 + 36 / block) / 32,
        LayerPrecision.INT8_WEIGHTS: eight / 32,
        LayerPrecision.FLOAT: 1.0,
    }
