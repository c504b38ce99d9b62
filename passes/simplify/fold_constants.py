"""fold-constants: compute now what depends on nothing but constants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from memoptc.ir import ops
from memoptc.ir.core import Graph, ModelInfo, Op, Tensor, Value, clone_op
from memoptc.ir.diagnostics import InternalError, MemoptcError
from memoptc.ir.onnx_io import to_proto
from memoptc.ir.tensors import from_array, nbytes, tensor_type
from memoptc.ir.types import DType
from memoptc.pass_base import Context, Pass
from memoptc.runtime.evaluate import Evaluator
from memoptc.runtime.options import RunOptions

SMALL = 256
"""A constant of this many bytes weighs about what the node weighs that computes it."""

KEPT = frozenset({"DequantizeLinear", "com.microsoft::DequantizeLinear"})
"""Stays beside its quantized weight: folding it would give the float weight back."""


class FoldConstants(Pass):
    """Compute ops whose operands are all constants, in onnxruntime itself, so that no bit changes.

    An op is folded when its results need no more bytes than the operands that die with it (and a few), so
    the file never grows by more than it loses: a ConstantOfShape that stands for megabytes stays. Integer
    vectors that shape inference knows in full (from Shape of a static extent, say) become constants, too.

    Args:
        max_bytes: More than this is never computed with here, operands and results together.
        exact: Keep what computes a float operand of MatMul, Conv and the like: onnxruntime has another kernel
            for a constant one, whose results differ in the last bits. Also keep what computes float16 or bfloat16
            numbers, most of which it computes in float32 and does not round before the next such operator.
        weights: Also compute float weights of MatMul, Conv and the like that take more bytes than what they are made
            from (a Cast of float16 numbers, a norm and a scale), since codes need constants.
    """

    max_bytes: int = 1 << 26
    exact: bool = True
    weights: bool = False

    def run(self, graph: Graph, context: Context) -> None:
        """Fold in every graph of the model, the top one first."""
        self._known_elements(graph, context)
        for inner in (graph, *(region for op in graph.walk() for region in op.regions.values())):
            while self._fold(inner, context.stats):
                pass

    def _known_elements(self, graph: Graph, context: Context) -> None:
        if next(graph.walk(*ops.EXTENTS), None) is None:
            return  # all that is known of integer vectors, constants aside, comes from these
        for value, elements in list(context.shapes(graph).elements.items()):
            op, type_ = value.op, value.tensor_type
            if op is None or op.graph is None or op.is_const or type_ is None:
                continue
            numbers = [e for e in elements if isinstance(e, int)]
            shape = type_.static_shape
            if len(numbers) < len(elements) or shape is None or len(shape) > 1 or not value.has_uses:
                continue
            if int(np.prod(shape)) != len(numbers) or type_.dtype not in (DType.INT64, DType.INT32):
                continue
            limits = np.iinfo(type_.dtype.numpy())
            if not ops.is_pure(op) or not all(limits.min <= n <= limits.max for n in numbers):
                continue  # onnxruntime wraps numbers that the type does not hold
            array = np.asarray(numbers, type_.dtype.numpy()).reshape(shape)
            value.replace_by(op.graph.const(from_array(array), value.name))
            context.stats["shapes known"] += 1

    def _fold(self, graph: Graph, stats: Counter[str]) -> bool:
        """Fold what fits into memory at once; says whether to go on."""
        chosen: dict[Op, None] = {}
        asked = _weight_makers(graph) if self.weights else frozenset()
        held = 0
        for op in graph.ops:
            if op.op_type == "Constant" and not op.domain:
                # onnxruntime makes these weights at load time itself, whatever its options.
                _inline_constant(op, stats)
            elif not self.exact and _changes_nothing(op) and not op.result.is_output:
                op.result.replace_by(op.operand)  # equal parameters, which torch's exporter stores once
                op.erase()
                stats["folded"] += 1
            elif self._foldable(op, chosen, stats, asked):
                held += _held(op)
                if held > self.max_bytes:
                    break
                chosen[op] = None
        if not chosen:
            return False
        before = graph.version
        wanted = [r for op in chosen for r in op.results if any(u not in chosen for u in r.users)]
        for value, tensor in evaluate(list(chosen), wanted, graph.info, stats):
            if nbytes(tensor) > self.max_bytes:
                continue
            assert value.op is not None
            folded = graph.const(tensor, value.name)
            value.replace_by(folded)
            stats["folded"] += 1
        for op in reversed(chosen):
            if not any(r.has_uses for r in op.results):
                op.erase()
        return held > self.max_bytes and graph.version != before

    def _foldable(self, op: Op, chosen: dict[Op, None], stats: Counter[str], asked: frozenset[Op]) -> bool:
        if op.is_const or op.op_type in ("absent", "sparse_const") or op.regions or op.key in KEPT:
            return False
        if not ops.is_pure(op) or not any(r.has_uses for r in op.results):
            return False
        given = [v for v in dict.fromkeys(op.operands) if not v.is_absent]
        if any(v.op is None or not (v.op.is_const or v.op in chosen) for v in given):
            return False
        # what has as many uses as this op has of it is used by nothing else
        freed = sum(_size(v) or 0 for v in given if v.use_count == op.operands.count(v))
        if self.exact and any(ops.has_packing_user(r) for r in op.results):
            stats["kept: another kernel"] += 1
            return False
        if self.exact and _rounds_halves(op):
            stats["kept: rounds otherwise"] += 1
            return False
        need = [_size(r) for r in op.results if not r.omitted]
        if any(n is None for n in need) and not _surely_small(op):
            stats["kept: size unknown"] += 1
            return False
        total = sum(n or 0 for n in need)
        if total > freed + SMALL and op not in asked:
            stats["kept: would grow the file"] += 1
            return False
        if _held(op) > self.max_bytes:
            stats["kept: too large to compute here"] += 1
            return False
        return True


def _changes_nothing(op: Op) -> bool:
    """True if the result of an op is a constant that it reads, bytes and shape alike."""
    source = op.operand.tensor if op.operands and ops.definition(op).view == 0 and ops.is_pure(op) else None
    return source is not None and tensor_type(source) == op.result.type


def _rounds_halves(op: Op) -> bool:
    """True if an op gives new numbers of float16 or bfloat16."""
    halves = (DType.FLOAT16, DType.BFLOAT16)
    return not ops.facts(op).moves and any(r.dtype in halves for r in op.results)


def _weight_makers(graph: Graph) -> frozenset[Op]:
    """Ops that compute, from constants or from one another, a float weight of a product or convolution."""
    fixed: set[Op] = set()
    for op in graph.ops:
        # what repeats numbers stands for more bytes than codes take
        if op.is_const or op.regions or op.op_type in _GROWING or not op.operands:
            continue
        if all(v.is_absent or v.tensor is not None or v.op in fixed for v in op.operands):
            fixed.add(op)
    found: set[Op] = set()
    todo = [op for op in fixed if any(ops.definition(u).packs_weights for r in op.results for u in r.users)]
    while todo:
        op = todo.pop()
        if op not in found:
            found.add(op)
            todo += [v.op for v in op.operands if v.op in fixed and v.op is not None]
    shared = {v for op in found for v in op.operands if v.tensor is not None and not found.issuperset(v.users)}
    return frozenset(op for op in found if shared.isdisjoint(op.operands))


def _held(op: Op) -> int:
    """Bytes in memory while an op is computed."""
    return sum(_size(v) or 0 for v in (*op.operands, *op.results) if not v.is_absent)


def _size(value: Value) -> int | None:
    if value.tensor is not None:
        return nbytes(value.tensor)
    return value.nbytes if isinstance(value.nbytes, int) else None


_GROWING = frozenset("ConstantOfShape Expand Tile Range Resize Upsample OneHot Pad EyeLike Loop Scan If".split())


def _surely_small(op: Op) -> bool:
    """An op on a few elements whose result cannot be much larger."""
    inputs = [_size(v) for v in op.operands if not v.is_absent]
    return op.op_type not in _GROWING and all(n is not None and n <= SMALL for n in inputs)


def _inline_constant(op: Op, stats: Counter[str]) -> None:
    tensor = constant_of(op)
    if tensor is None or op.graph is None:
        return
    name = op.result.name
    op.result.replace_by(op.graph.const(tensor, f"{name}"))
    op.erase()
    stats["constants"] += 1


def constant_of(op: Op) -> Tensor | None:
    """Give what a Constant node holds; `None` for a sparse one, or where a function left its attribute out."""
    if not op.attrs:
        return None
    (name, value), *_ = op.attrs.items()
    match name:
        case "value":
            tensor: Tensor = value
            return tensor
        case "value_float" | "value_floats":
            return from_array(np.asarray(tuple(value) if name.endswith("s") else value, np.float32))
        case "value_int" | "value_ints":
            return from_array(np.asarray(tuple(value) if name.endswith("s") else value, np.int64))
        case "value_string" | "value_strings":
            items = list(value) if name.endswith("s") else value
            return from_array(np.asarray(items, object), dtype=DType.STRING)
        case _:
            return None


def evaluate(
    chosen: Sequence[Op], wanted: Sequence[Value], info: ModelInfo, stats: Counter[str]
) -> list[tuple[Value, Tensor]]:
    """Compute values in onnxruntime, all in one model; op by op where that fails.

    Args:
        chosen: The ops to run, in order; what they use is constant or made by ops before them.
        wanted: The results to give.
        info: Opset versions.
        stats: Counts ops that nothing here can compute.

    Returns:
        Those of `wanted` that could be computed, with their content.
    """
    try:
        return _run(chosen, wanted, info, _in_onnxruntime)
    except (MemoptcError, ValueError, TypeError, RuntimeError, KeyError):
        pass
    found: list[tuple[Value, Tensor]] = []
    known: dict[Value, Tensor] = {}
    for op in chosen:
        if any(not v.is_absent and v.tensor is None and v not in known for v in op.operands):
            continue
        outputs = [r for r in op.results if r.has_uses]
        for evaluate in (_in_onnxruntime, _in_reference):
            try:
                results = _run([op], outputs, info, evaluate, known)
            except Exception:
                stats["kept: no kernel"] += evaluate is _in_reference
                continue
            known.update(results)
            found.extend((v, t) for v, t in results if v in wanted)
            break
    return found


def _run(
    chosen: Sequence[Op],
    wanted: Sequence[Value],
    info: ModelInfo,
    evaluate: Any,
    known: dict[Value, Tensor] | None = None,
) -> list[tuple[Value, Tensor]]:
    model = ModelInfo(ir_version=max(info.ir_version, 8), opset_imports=dict(info.opset_imports))
    graph = Graph("constants", model)
    mapping: dict[Value, Value] = {}
    for op in chosen:
        for value in op.operands:
            if value in mapping:
                continue
            if value.is_absent:
                mapping[value] = graph.absent()
            elif value.tensor is not None or (known and value in known):
                tensor = value.tensor if value.tensor is not None else (known or {})[value]
                mapping[value] = graph.const(tensor, value.name)
        graph.append(clone_op(op, mapping))
    graph.set_outputs([mapping[v] for v in wanted])
    for index, output in enumerate(graph.outputs_info):
        output.name = f"result_{index}"
    arrays = evaluate(to_proto(graph))
    results = []
    for value, array in zip(wanted, arrays, strict=True):
        dtype = value.dtype or DType.UNDEFINED
        if not isinstance(array, np.ndarray):
            raise InternalError(f"%{value.name} is no tensor")
        tensor = from_array(array, dtype=None if dtype == DType.UNDEFINED else dtype)
        if value.type is None:
            value.type = tensor_type(tensor)
        results.append((value, tensor))
    return results


def _in_onnxruntime(model: onnx.ModelProto) -> list[Any]:
    return list(Evaluator(model, RunOptions(optimize=False), blame=InternalError).run({}).values())


def _in_reference(model: onnx.ModelProto) -> list[Any]:
    import onnx.reference

    return list(onnx.reference.ReferenceEvaluator(model).run(None, {}))
