"""share-weights: keep one copy of weights that are the same, also under another shape."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable

import numpy as np
import numpy.typing as npt

from memoptc.ir import ops
from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Op, Tensor, Value
from memoptc.ir.tensors import nbytes
from memoptc.ir.types import DType
from memoptc.pass_base import Context, Pass

SAMPLE = 256
"""Bytes of a weight that are looked at before all of it is."""


class ShareWeights(Pass):
    """Keep one copy of weights with the same content.

    Equal shapes share the weight itself. Another shape of the same content becomes a Reshape of the kept one,
    which shares its bytes at run time; this is done from `reshape_from` bytes on, since it costs a node. The
    content is read one weight at a time, and only of those that have a candidate twin (same element type,
    size and a few bytes). Transposed twins stay: a Transpose at run time would need the memory again; so do
    reshaped ones of MatMul, Conv and the like, whose weights or codes onnxruntime packs only when they are constants,
    and codes of less than 8 bits, for which it has no Reshape. Of twins in
    two branches or bodies one moves to the graph around both, where kernels that pack it or lay it out still see a
    constant there.
    """

    reshape_from: int = 65536

    def run(self, graph: Graph, context: Context) -> None:
        """Group by element type and size, then by a few bytes, then by content."""
        sizes: dict[Hashable, list[Op]] = defaultdict(list)
        for op in graph.walk("const"):
            tensor = op.attrs["value"]
            if tensor.dtype != DType.STRING and nbytes(tensor) > 0:
                sizes[(DType(tensor.dtype), nbytes(tensor))].append(op)
        for same_size in sizes.values():
            if len(same_size) < 2:
                continue
            samples: dict[bytes, list[Op]] = defaultdict(list)
            for op in same_size:
                samples[_sample(op.attrs["value"])].append(op)
            for candidates in samples.values():
                if len(candidates) > 1:
                    self._share(graph, candidates, context.stats)

    def _share(self, graph: Graph, candidates: list[Op], stats: Counter[str]) -> None:
        kept: dict[bytes, list[Op]] = defaultdict(list)
        for op in candidates:
            twins = kept[_digest(op.attrs["value"])]
            twin = next((t for t in twins if _shape(t) == _shape(op) and _visible(t, op)), None)
            if twin is None:
                twin = next((t for t in twins if _shape(t) == _shape(op) and _meet(t, op)), None)
            if twin is not None:
                self._merge(op, twin.result, stats)
                continue
            other = next((t for t in twins if _visible(t, op)), None)
            large = nbytes(op.attrs["value"]) >= self.reshape_from and _may_be_view(op.result)
            if other is not None and large and op.graph is graph and (ops.opset_of(graph) or 5) >= 5:
                builder = Builder(graph, before=_first_user(op, graph), loc=op.loc.union(rule="share-weights"))
                shape = builder.const(_as_int64(_shape(op)), f"{op.result.name}_shape")
                view = builder.op("Reshape", [other.result, shape], name=op.result.name, type=op.result.type).result
                stats["reshaped"] += 1
                self._merge(op, view, stats)
                continue
            twins.append(op)

    def _merge(self, op: Op, value: Value, stats: Counter[str]) -> None:
        stats["bytes saved"] += nbytes(op.attrs["value"])
        stats["weights shared"] += 1
        op.result.replace_by(value)
        op.erase()


def _content(tensor: Tensor) -> memoryview:
    """Give a weight's bytes as they lie, without a copy where they are mapped from a file."""
    if DType(tensor.dtype).bitwidth % 8:
        return memoryview(tensor.tobytes())
    array = tensor.numpy()
    if not array.flags.c_contiguous or array.ndim == 0:
        array = np.ascontiguousarray(array)
    return array.reshape(-1).view(np.uint8).data


def _sample(tensor: Tensor) -> bytes:
    """Give some bytes of the start, the middle and the end."""
    content = _content(tensor)
    middle = len(content) // 2
    return bytes(content[:SAMPLE]) + bytes(content[middle : middle + SAMPLE]) + bytes(content[-SAMPLE:])


def _digest(tensor: Tensor) -> bytes:
    digest = hashlib.blake2b(_content(tensor), digest_size=16).digest()
    release = getattr(tensor, "release", None)
    if release is not None:
        release()
    return digest


def _shape(op: Op) -> tuple[int, ...]:
    return tuple(op.attrs["value"].shape.numpy())


def _as_int64(shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
    return np.asarray(shape, np.int64)


def _may_be_view(weight: Value) -> bool:
    """True if a Reshape may stand in a weight's place: there is one, and no kernel wants the constant itself."""
    if ops.has_packing_user(weight) or weight.dtype is None or weight.dtype.bitwidth < 8:
        return False
    readers = [*weight.users, *(u for d in weight.users if d.is_a("DequantizeLinear") for u in d.result.users)]
    return not any(ops.in_family(u, ops.Family.MATMUL, ops.Family.CONVOLUTION) for u in readers)


def _visible(weight: Op, elsewhere: Op) -> bool:
    """True if a weight can be used where another one stands."""
    if weight.graph is None or elsewhere.graph is None or not weight.graph.encloses(elsewhere.graph):
        return False
    return ops.packs_alike_in(elsewhere, weight.graph)


def _meet(weight: Op, twin: Op) -> bool:
    """Move a weight out to the smallest graph around its twin, too, if that is better for both."""
    assert weight.graph is not None
    assert twin.graph is not None
    graph = weight.graph
    while not graph.encloses(twin.graph):
        if graph.parent is None or graph.parent.graph is None:
            return False
        graph = graph.parent.graph
    first = graph.first
    if first is None or not (ops.packs_alike_in(weight, graph) and ops.packs_alike_in(twin, graph)):
        return False
    weight.move_before(first)
    return True


def _first_user(op: Op, graph: Graph) -> Op | None:
    """The first op of the graph that uses the weight, itself or inside its regions."""
    users = set(op.result.users)
    for candidate in graph.ops:
        if candidate in users or any(inner in users for inner in candidate.walk()):
            return candidate
    return None
