"""Graphs of one operator, from the `sample` in its definition."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, ModelInfo, Op, Output, Value
from memoptc.ir.ops import TABLE, definition_of
from memoptc.ir.ops.sample import Sample
from memoptc.ir.types import DType, TensorType

Feed = dict[str, npt.NDArray[Any]]

SAMPLED = sorted(key for key, operator in TABLE.items() if operator.sampler is not None)
"""Operators whose definition makes instances."""


def drawn(key: str, seed: int) -> Sample:
    """Draw an instance of an operator."""
    sampler = definition_of(key).sampler
    assert sampler is not None
    return sampler(np.random.default_rng([zlib.crc32(key.encode()), seed]))


def built(key: str, sample: Sample) -> tuple[Op, Feed]:
    """Build an instance as a graph of its own.

    Returns:
        The op, and numbers for the graph's inputs.
    """
    domain, _, name = key.rpartition("::")
    graph = Graph("sample", ModelInfo(ir_version=10, opset_imports={"": sample.opset}))
    b, feed = Builder(graph), Feed()
    operands: list[Value | None] = []
    for index, array in enumerate(sample.operands):
        if array is None:
            operands.append(None)
        elif index in sample.weights:
            operands.append(b.const(array, f"w{index}"))
        else:
            feed[f"x{index}"] = array
            operands.append(graph.add_input(f"x{index}", TensorType(DType.from_numpy(array.dtype), array.shape)))
    op = b.op(name, operands, sample.attrs, domain=domain, outputs=sample.results)
    graph.set_outputs(op.results, [Output(f"y{i}", r.type) for i, r in enumerate(op.results)])
    return op, feed
