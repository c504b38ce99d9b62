"""Ranks of inputs of which no shape is declared: what ONNX's own shape inference does not refuse."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import onnx

from memoptc.ir.core import Graph, Tensor
from memoptc.ir.onnx_write import proto_with_weights

_RANKS = (2, 4, 3, 1, 5, 0)
"""Ranks to try, the likeliest first."""
_MOST_CHECKS = 512
"""Combinations of ranks that are checked."""
_SMALL = 1024
"""Bytes up to which a weight's elements count, as they may be a shape."""


def likely_ranks(graph: Graph) -> Iterator[dict[str, int]]:
    """Give ranks for all inputs without a declared shape, the likeliest first: as many different ones as need be.

    Each input's ranks are found by themselves first, then those that go together; where inference refuses the model
    whatever the ranks, all are given.

    Args:
        graph: The model.
    """
    unknown = [v.name for v in graph.inputs if v.tensor_type is not None and v.shape is None]
    if not unknown:
        return
    check = _RankCheck(graph)
    alone = {name: [r for r in _RANKS if check.accepts({name: r})] or list(_RANKS) for name in unknown}
    alike = [dict.fromkeys(unknown, rank) for rank in _RANKS if all(rank in ranks for ranks in alone.values())]
    every = itertools.islice(itertools.product(*alone.values()), _MOST_CHECKS)
    mixed = sorted((dict(zip(unknown, ranks, strict=True)) for ranks in every), key=lambda r: len(set(r.values())))
    yield from (ranks for ranks in (*alike, *(r for r in mixed if r not in alike)) if check.accepts(ranks))


class _RankCheck:
    """Asks ONNX's shape inference, strictly, whether inputs of some ranks suit a model."""

    def __init__(self, graph: Graph) -> None:
        self._model = proto_with_weights(graph, _Shapes(), _SMALL)
        del self._model.graph.value_info[:]  # what a model states of its inside may be wrong
        self._usable = True
        self._usable = self.accepts({})

    def accepts(self, ranks: Mapping[str, int]) -> bool:
        """True if nothing is wrong with inputs of these ranks, or nothing can be told."""
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        for value in model.graph.input:
            if value.name in ranks:
                for axis in range(ranks[value.name]):
                    value.type.tensor_type.shape.dim.add(dim_param=f"{value.name}_d{axis}")
                if not ranks[value.name]:
                    value.type.tensor_type.shape.SetInParent()
        try:
            onnx.shape_inference.infer_shapes(model, strict_mode=True)
        except Exception:  # InferenceError, and what its checks of attributes raise
            return not self._usable
        return True


class _Shapes:
    """Writes weights without their elements."""

    def write(self, name: str, tensor: Tensor) -> onnx.TensorProto:
        """Give a tensor's type."""
        return onnx.TensorProto(name=name, data_type=int(tensor.dtype), dims=tensor.shape.numpy())
