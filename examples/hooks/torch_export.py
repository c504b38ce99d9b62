"""torch: export a module and compile it, without a file in between.

Needs torch and onnxscript.
"""

import numpy as np
import torch

import memoptc
from memoptc.runtime import Session

module = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 10)).eval()
x = torch.randn(4, 64)

program = torch.onnx.export(module, (x,), dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False)
result = memoptc.compile(program.model_proto, level=2, measure=False)  # this line is the hook

result.save("mlp.onnx")
(y,) = Session("mlp.onnx").run(None, {program.model_proto.graph.input[0].name: x.numpy()})
assert np.allclose(y, module(x).detach().numpy(), atol=1e-5)
print(result.verdict)
