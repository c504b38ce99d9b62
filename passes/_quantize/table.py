"""Which operators onnxruntime runs on 8-bit integers, and what processors do with them: data, no code."""

from __future__ import annotations

HEAVY = frozenset({"Conv", "Gemm", "MatMul"})
"""Their products are what quantization is for; they need constant weights."""

LIGHT = frozenset({"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid"})
"""Have an integer kernel that rescales; worth it between operators that are quantized anyway."""

SAME_SCALE = {
    "MaxPool": 12,
    "Reshape": 5,
    "Flatten": 1,
    "Squeeze": 1,
    "Unsqueeze": 1,
    "Transpose": 1,
    "DepthToSpace": 13,
    "Resize": 10,
}
"""Only move or choose elements, so result and operand share one code. Operator -> first opset with 8-bit types."""

ABSORBED = frozenset({"Relu", "Clip"})
"""Vanish into the range of what follows them."""

PROCESSORS = {"vnni": 8, "avx2": 7, "arm": 8}
"""Bits for weights. AVX2 without VNNI adds pairs of u8*s8 products in 16 bits, which saturates with 8-bit weights."""

RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
"""Stay in float: errors add up over the steps."""
