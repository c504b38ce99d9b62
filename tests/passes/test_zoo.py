"""Real models: no output bit changes at -O1 (onnxruntime's optimizer off), fewer nodes, dynamic axes still dynamic."""

from __future__ import annotations

import numpy as np
import zoo
from numbers_of import UNOPTIMIZED, bits

from memoptc.instruments import VerifyEach
from memoptc.ir.infer import infer_shapes
from memoptc.ir.onnx_io import read_onnx, to_proto
from memoptc.levels import pipeline_text
from memoptc.manager import count_nodes, run_pipeline
from memoptc.pipeline import parse
from memoptc.runtime.evaluate import Evaluator

ON_THE_WAY = pipeline_text(1).removesuffix(",order,plan-memory,lower")
LARGE = ("minilm_l6", "long_attention_4k", "mobilenet_v2_1024", "edsr_x4", "fns_candy")
"""Too slow for the first default inputs without onnxruntime's optimizer; `benchmarks/zoo.py` runs them."""


@zoo.each_model(skip=LARGE)
def test_no_bit_changes(name: str) -> None:
    assert zoo.ZOO is not None
    path = zoo.ZOO.path(name)
    graph = read_onnx(path)
    infer_shapes(graph)
    nodes = count_nodes(graph)
    run_pipeline(parse(ON_THE_WAY), graph, instruments=[VerifyEach()])
    assert count_nodes(graph) <= nodes
    original, candidate = Evaluator(str(path), UNOPTIMIZED), Evaluator(to_proto(graph), UNOPTIMIZED)
    feed = zoo.ZOO.inputs(name)
    expected, found = original.run(feed), candidate.run(feed)
    assert list(expected) == list(found)
    for output, value in expected.items():
        assert bits(value) == bits(found[output]), output
    assert original.inputs == candidate.inputs
    assert {k: np.shape(v) for k, v in expected.items()} == {k: np.shape(v) for k, v in found.items()}
