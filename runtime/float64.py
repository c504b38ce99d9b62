"""The float64 twin: the same model computed in float64, to know how much of a difference is rounding.

Every float tensor, weight, cast and constant becomes float64; operators without a float64 kernel in onnxruntime
are written with ones that have it (`Operator.double`). Where that cannot be done the twin does not
exist, and the message says which operator stands in the way. A twin is never trusted blindly: the original must
lie close to it (`memoptc.runtime.judge`).
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import onnx.version_converter

from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.diagnostics import MemoptcError
from memoptc.ir.files import TemporaryFolder
from memoptc.ir.forms import WritingForm
from memoptc.ir.infer import infer_shapes
from memoptc.ir.onnx_io import read_onnx, write_into
from memoptc.ir.ops import definition
from memoptc.ir.ops.double import NoDouble
from memoptc.ir.tensors import from_array, nbytes
from memoptc.ir.types import DType, OptionalType, SequenceType, TensorType, Type, as_tensor
from memoptc.runtime.evaluate import Evaluator, ModelSource
from memoptc.runtime.memory.extents import bind_shapes
from memoptc.runtime.memory.liveness import peak
from memoptc.runtime.options import Feed, RunOptions
from memoptc.runtime.spool import trim

NARROW = frozenset({DType.FLOAT, DType.FLOAT16, DType.BFLOAT16})
WEIGHT_LIMIT = 512 << 20  # bytes of weights: beyond, tolerances judge
_NARROW_FROM = 1 << 16  # bytes of a weight that is widened where it is used
OP_LIMIT = 10_000  # lowering infers types op by op: beyond, it would take minutes
_LOWEST_OPSET = 13  # lowerings are written for it; older models are converted first


class Float64:
    """A model in float64.

    Large weights stay as they are in a file of their own, which onnxruntime maps, and are widened where they are used:
    a run takes them once, the largest of them widened, and activations of twice the size.

    Args:
        model: The original; a path when its weights are external.

    Raises:
        NoDouble: the model has no float64 twin here.
    """

    def __init__(self, model: ModelSource, threads: int = 1) -> None:
        self._folder = TemporaryFolder("memoptc-float64-")
        self._path = Path(self._folder.name) / "twin.onnx"
        self._threads = threads
        self._evaluator: Evaluator | None = None
        try:
            self._original = _prepared(model)
            infer_shapes(self._original)
            self._graph: Graph | None = _twin(self._original.clone())
            write_into(self._graph, self._path, WritingForm("plain", True), threshold=_NARROW_FROM)
        except MemoptcError as error:
            raise NoDouble(error.message) from error

    def excess_bytes(self, feed: Feed) -> int:
        """Predict the bytes that a run takes beyond one of the original; 0 where they are not known, or once it ran."""
        if self._graph is None:
            return 0
        return _planned(self._graph, feed) - _planned(self._original, feed)

    def run(self, feed: Feed, outputs: list[str]) -> dict[str, object]:
        """Run on a feed of the original (float inputs are widened).

        Raises:
            NoDouble: onnxruntime cannot load it.
            MemoptcError: onnxruntime cannot run it.
        """
        if self._evaluator is None:
            self._graph = None  # with the weights that it may hold
            self._original = Graph("released")
            trim()
            # in file order: else onnxruntime widens all weights before anything uses them
            options = RunOptions(
                optimize=False,
                threads=self._threads,
                mem_pattern=False,
                mem_reuse=False,
                arena=False,
                file_order=True,
            )
            try:
                self._evaluator = Evaluator(self._path, options, label="the float64 twin")
            except MemoptcError as error:
                raise NoDouble(error.message) from error
        wide = {name: _widened(value, self._evaluator.inputs.get(name)) for name, value in feed.items()}
        return self._evaluator.run(wide, outputs)


def _planned(graph: Graph, feed: Feed) -> int:
    return peak(graph, bind_shapes(graph, feed)).peak_bytes


def _prepared(model: ModelSource) -> Graph:
    """Read a model; functions are inlined, and its opset is raised where lowerings are written for a later one."""
    if isinstance(model, onnx.ModelProto | bytes):
        proto = onnx.ModelProto()
        proto.ParseFromString(model if isinstance(model, bytes) else model.SerializeToString())
        return read_onnx(_modern(proto))
    if Path(os.fspath(model)).stat().st_size > WEIGHT_LIMIT:
        raise NoDouble("weights of more than 512 MB")
    proto = onnx.load(os.fspath(model), load_external_data=False)
    if sum(_nbytes(t) for t in proto.graph.initializer if _is_external(t)) > WEIGHT_LIMIT:
        raise NoDouble("weights of more than 512 MB")
    if not proto.functions and _opset(proto) >= _LOWEST_OPSET:
        del proto
        return read_onnx(model)  # weights beside it stay there
    if any(_is_external(t) for t in proto.graph.initializer):
        proto = onnx.load(os.fspath(model))
    return read_onnx(_modern(proto))


def _is_external(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def _opset(proto: onnx.ModelProto) -> int:
    return next((int(o.version) for o in proto.opset_import if o.domain == ""), _LOWEST_OPSET)


def _modern(proto: onnx.ModelProto) -> onnx.ModelProto:
    try:
        if proto.functions:
            proto = onnx.inliner.inline_local_functions(proto)
        opset = _opset(proto)
        if opset < _LOWEST_OPSET:
            stated = {value.name for value in proto.graph.input}  # as the converter still expects it
            proto.graph.input.extend(
                onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims)
                for t in proto.graph.initializer
                if t.name not in stated
            )
            proto = onnx.version_converter.convert_version(proto, _LOWEST_OPSET)
            for value in [v for v in proto.graph.input if v.name not in stated]:
                proto.graph.input.remove(value)
            if opset < 11:  # before, there was only this way to resize; the converter does not write it down
                for node in proto.graph.node:
                    if node.op_type == "Resize" and not any("coord" in a.name for a in node.attribute):
                        mode = onnx.helper.make_attribute("coordinate_transformation_mode", "asymmetric")
                        node.attribute.extend([mode, onnx.helper.make_attribute("nearest_mode", "floor")])
    except Exception as error:  # the converter raises whatever its C++ throws
        raise NoDouble(f"its opset cannot be raised: {' '.join(str(error).split())}") from error
    return proto


def _nbytes(tensor: onnx.TensorProto) -> int:
    return int(np.prod(tensor.dims, dtype=np.int64)) * DType(tensor.data_type).bitwidth // 8


def _twin(graph: Graph) -> Graph:
    if sum(1 for _ in graph.walk()) > OP_LIMIT:
        raise NoDouble(f"more than {OP_LIMIT} operators")
    for op in list(graph.walk("Constant")):
        if "value" in op.attrs:  # weights are looked at: make all of them `const`
            assert op.graph is not None
            op.result.replace_by(op.graph.const(op.attrs["value"]))
            op.erase()
    _widen_at_use(graph)
    for op in list(graph.walk()):
        _retag(op)
    for part in (graph, *(r for op in graph.walk() for r in op.regions.values())):
        for value in part.inputs:
            value.type = _wide(value.type)
        for info in part.outputs_info:
            info.type = _wide(info.type)
    graph.defaults = {
        value: from_array(np.asarray(t.numpy(), np.float64), t.name or "")
        if DType(t.dtype) in NARROW else t
        for value, t in graph.defaults.items()
    }  # fmt: skip
    for op in list(graph.walk()):
        _lower(op)
    return graph


def _lower(op: Op) -> None:
    """Write an op with others where onnxruntime has no float64 kernel for it."""
    lowering = definition(op).double
    if lowering is None or not any(r.dtype == DType.DOUBLE for r in op.results):
        return
    assert op.graph is not None
    for old, new in zip(op.results, lowering(Builder(op.graph, before=op), op), strict=False):
        if new is not None:
            new.type = new.type or old.type
            old.replace_by(new)
    op.erase()


def _widen_at_use(graph: Graph) -> None:
    """Widen large weights where they are used, so that one of them at a time lies in memory in float64."""
    for const in list(graph.walk("const")):
        if not _stays_narrow(const):
            continue
        weight, home = const.result, const.graph
        assert home is not None
        shared: Value | None = None
        for user, index in list(weight.uses):
            if user.graph is home and user.is_a("Gather") and index == 0:
                continue  # a few rows of a table: widened once they are taken
            if user.graph is home and user.op_type != "return":
                _cast(user, index, DType.DOUBLE)
                continue
            if shared is None:  # not once per iteration of a loop
                shared = home.insert_after(const, _cast_op(const, weight, DType.DOUBLE)).result
            user.set_operand(index, shared)


def _stays_narrow(op: Op) -> bool:
    if not op.is_const or not _is_narrow(op.result.type):
        return False
    return nbytes(op.attrs["value"]) >= _NARROW_FROM


def _retag(op: Op) -> None:
    """Make one op compute in float64."""
    if _stays_narrow(op) or (op.is_a("Cast") and op.attrs.get("to") == DType.DOUBLE):
        return
    if op.is_a("Gather") and op.operands[0].op is not None and _stays_narrow(op.operands[0].op):
        _widen_results(op)
        return
    known = definition(op)
    if (
        op.domain not in ("", "ai.onnx.ml")
        and known.double is None
        and any(_is_narrow(v.type) for v in (*op.operands, *op.results))
    ):
        raise NoDouble(f"operator {op.key}")
    if known.stays_float32:
        _keep(op)
        return
    for key, value in op.attrs.items():
        if hasattr(value, "dtype") and DType(value.dtype) in NARROW:
            op.set_attr(key, from_array(np.asarray(value.numpy(), np.float64), value.name or ""))
    if op.is_a("Constant"):
        for key in ("value_float", "value_floats"):
            if key in op.attrs:
                op.set_attr("value", from_array(np.asarray(op.attrs[key], np.float64)))
                op.set_attr(key, None)
    if op.is_a("ConstantOfShape") and "value" not in op.attrs:
        op.set_attr("value", from_array(np.zeros(1)))
    for key in ("to", "dtype", "output_datatype"):
        if op.attrs.get(key) is not None and op.op_type != "const" and DType(op.attrs[key]) in NARROW:
            op.set_attr(key, int(DType.DOUBLE))
    for result in op.results:
        result.type = _wide(result.type)
    for index in known.float32_operands:
        if index >= len(op.operands) or op.operands[index].is_absent:
            continue
        if _is_empty(op.operands[index]):  # not given, as opset 11 spells it: a constant, or it counts as given
            assert op.graph is not None
            op.set_operand(index, op.graph.const(from_array(np.zeros(0, np.float32))))
        else:
            _cast(op, index, DType.FLOAT)


def _is_empty(value: Value) -> bool:
    return value.shape is not None and 0 in value.shape


def _keep(op: Op) -> None:
    """Leave an op in its own precision, between casts."""
    for index, value in enumerate(op.operands):
        if value.dtype in NARROW | {DType.DOUBLE}:
            _cast(op, index, DType.FLOAT)
    _widen_results(op)


def _widen_results(op: Op) -> None:
    graph = op.graph
    assert graph is not None
    for result in op.results:
        if _is_narrow(result.type):
            wide = Op("Cast", [result], [_wide(result.type)], {"to": int(DType.DOUBLE)}, loc=op.loc)
            graph.insert_after(op, wide)
            result.replace_by(wide.result, where=lambda user, _, wide=wide: user is not wide)  # type: ignore[misc]


def _cast(op: Op, index: int, dtype: DType) -> None:
    graph = op.graph
    assert graph is not None
    op.set_operand(index, graph.insert_before(op, _cast_op(op, op.operands[index], dtype)).result)


def _cast_op(at: Op, value: Value, dtype: DType) -> Op:
    shape = value.shape
    return Op("Cast", [value], [TensorType(dtype, shape)], {"to": int(dtype)}, loc=at.loc)


def _is_narrow(type_: Type | None) -> bool:
    tensor = as_tensor(type_)
    return tensor is not None and tensor.dtype in NARROW


def _wide(type_: Type | None) -> Type | None:
    tensor = as_tensor(type_)
    if tensor is not None and tensor.dtype in NARROW:
        return TensorType(DType.DOUBLE, tensor.shape)
    if isinstance(type_, SequenceType):
        return SequenceType(_wide(type_.elem))
    if isinstance(type_, OptionalType):
        return OptionalType(_wide(type_.elem))
    return type_


def _widened(value: object, type_: Type | None) -> object:
    if isinstance(value, list):
        return [_widened(item, type_.elem if isinstance(type_, SequenceType) else None) for item in value]
    tensor = as_tensor(type_)
    if isinstance(value, np.ndarray) and tensor is not None and tensor.dtype == DType.DOUBLE:
        return value.astype(np.float64)
    return value
