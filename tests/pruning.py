"""Models after prune-tokens, and their outputs."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import onnxruntime

from memoptc.ir.onnx_io import read_onnx, to_proto
from memoptc.ir.verifier import verify
from memoptc.pass_base import Context
from memoptc.passes.shrink.prune_tokens import PruneTokens
from memoptc.testing import run_pass

Floats = npt.NDArray[np.float32]


def pruned(
    model: onnx.ModelProto, options: PruneTokens, context: Context | None = None
) -> tuple[onnx.ModelProto, Counter[str]]:
    graph = read_onnx(model)
    stats = run_pass(options, graph, context or Context())
    verify(graph)
    return to_proto(graph), stats


def outputs(model: onnx.ModelProto, feed: dict[str, Floats]) -> Floats:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: Floats = session.run(None, feed)[0]
    return found
