"""Parts of fuse-attention: recognition, masks, and the operands of the operator that takes over.

Measured with onnxruntime 1.31.1 on x86-64 (peak beside inputs and weights; 1 x 4,096 tokens, 8 heads of 64, projections
included, 1,082 MB as separate operators): MultiHeadAttention keeps tiles of the scores, 59 MB, for float32 operands of
three axes, without mask, bias of the scores, past or `unidirectional`, and on machines that tell the size of their
second-level cache; with keys and values of four axes it computes all scores (587 MB), with `unidirectional` too
(671 MB). GroupQueryAttention does without when it is causal and gives its present keys and values (76 MB), not with
`causal=0` (612 MB), and an empty batch ends the process: it is not used.

Left to onnxruntime, whose default level makes them: SkipLayerNormalization (where nothing else needs the sum),
BiasGelu, FusedMatMul (a scale or a Transpose in a product), FusedConv.
"""
