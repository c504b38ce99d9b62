"""ONNX's own backend suite through `memoptc.backend`.

Every case that stock onnxruntime passes must pass at -O2 as well, and, of each operator's cases every other one at -O1
and every sixth at -O0, whose passes -O2 runs, too (`make nightly`: all of them); every case must go model -> IR -> text
-> IR -> model without a change.
"""

from __future__ import annotations

import functools
import glob
import os
import warnings
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests
from onnx_ir import serde

from memoptc.backend import at_level
from memoptc.ir.diagnostics import MemoptcError
from memoptc.ir.onnx_io import read_onnx, to_proto
from memoptc.ir.parser import parse
from memoptc.ir.printer import print_graph
from memoptc.runtime.evaluate import Evaluator

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")
SHARDS = 24


@functools.lru_cache(maxsize=1)
def cases() -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [c for kind in KINDS for c in load_model_tests(kind=kind)]


def model_of(case: Any) -> onnx.ModelProto:
    file = os.path.join(case.model_dir, "model.onnx") if case.model_dir else ""
    return onnx.load(file) if file and os.path.exists(file) else case.model


def data_of(case: Any, model: onnx.ModelProto) -> list[tuple[list[Any], list[Any]]]:
    if case.data_sets is not None:
        return [(list(i), list(o)) for i, o in case.data_sets]
    found = []
    for folder in sorted(glob.glob(os.path.join(case.model_dir, "test_data_set_*"))):
        sets = []
        for kind, infos in (("input", model.graph.input), ("output", model.graph.output)):
            files = sorted(glob.glob(os.path.join(folder, f"{kind}_*.pb")), key=lambda f: int(f.split("_")[-1][:-3]))
            sets.append([read_value(f, info.type) for f, info in zip(files, infos, strict=False)])
        found.append((sets[0], sets[1]))
    return found


def read_value(file: str, type_: onnx.TypeProto) -> Any:
    data = open(file, "rb").read()
    if type_.HasField("sequence_type"):
        sequence = onnx.SequenceProto()
        sequence.ParseFromString(data)
        return numpy_helper.to_list(sequence)
    if type_.HasField("optional_type"):
        optional = onnx.OptionalProto()
        optional.ParseFromString(data)
        return numpy_helper.to_optional(optional)
    tensor = onnx.TensorProto()
    tensor.ParseFromString(data)
    return numpy_helper.to_array(tensor)


def same(expected: Any, found: Any, rtol: float, atol: float) -> bool:
    if isinstance(expected, list | tuple):
        return len(expected) == len(found) and all(same(e, f, rtol, atol) for e, f in zip(expected, found, strict=True))
    if expected is None or found is None:
        return expected is None and found is None
    a, b = np.asarray(expected), np.asarray(found)
    if a.shape != b.shape:
        return False
    if a.dtype.kind in "OSU" or b.dtype.kind in "OSU":
        return bool((a.astype(str) == b.astype(str)).all())
    return bool(np.allclose(a.astype(np.float64), b.astype(np.float64), rtol=rtol, atol=atol, equal_nan=True))


def passes(run: Any, case: Any, data: list[tuple[list[Any], list[Any]]]) -> bool:
    """Whether the model runs on every data set with the expected results."""
    for inputs, outputs in data:
        found = run(inputs)
        if not same(outputs, list(found), max(case.rtol, 1e-3), max(case.atol, 1e-7)):
            return False
    return True


def stock(case: Any, model: onnx.ModelProto, data: list[tuple[list[Any], list[Any]]]) -> bool:
    try:
        evaluator = Evaluator(model)
        names = [i.name for i in model.graph.input]
        return passes(lambda ins: evaluator.run(dict(zip(names, ins, strict=False))).values(), case, data)
    except (MemoptcError, ValueError, TypeError, RuntimeError, NotImplementedError):
        return False


def normal(model: onnx.ModelProto) -> bytes:
    """The model's bytes with what ONNX lets one write in two ways written in one."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _normalise(copy.graph)
    for opset in copy.opset_import:
        if opset.domain in ("", "ai.onnx"):
            opset.ClearField("domain")
    for function in copy.functions:
        for node in function.node:
            _normalise_node(node)
    return copy.SerializeToString(deterministic=True)


def _normalise(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        _normalise_node(node)
    for tensor in graph.initializer:
        _normalise_tensor(tensor)
    infos = sorted(graph.value_info, key=lambda v: v.name)
    del graph.value_info[:]
    graph.value_info.extend(infos)


def _normalise_node(node: onnx.NodeProto) -> None:
    if node.domain in ("", "ai.onnx"):
        node.ClearField("domain")
    attributes = sorted(
        (onnx.AttributeProto.FromString(a.SerializeToString()) for a in node.attribute), key=lambda a: a.name
    )
    del node.attribute[:]
    node.attribute.extend(attributes)
    for attr in node.attribute:
        for tensor in (*((attr.t,) if attr.HasField("t") else ()), *attr.tensors):
            _normalise_tensor(tensor)
        for graph in (*((attr.g,) if attr.HasField("g") else ()), *attr.graphs):
            _normalise(graph)


def _normalise_tensor(tensor: onnx.TensorProto) -> None:
    if not tensor.name:
        tensor.ClearField("name")
    if tensor.data_type != onnx.TensorProto.STRING and not tensor.HasField("raw_data"):
        content = serde.deserialize_tensor(tensor).tobytes()
        for field in ("float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
            tensor.ClearField(field)
        tensor.raw_data = content


@pytest.mark.parametrize("shard", range(SHARDS))
def test_structure_survives_text(shard: int) -> None:
    broken = []
    for case in cases()[shard::SHARDS]:
        model = model_of(case)
        graph = parse(print_graph(read_onnx(model)))
        if normal(to_proto(graph)) != normal(model):
            broken.append(case.name)
    assert not broken


ALL = {0: 1, 1: 1, 2: 1}
"""Level -> of how many cases one is compiled at it."""
SOME = {0: 6, 1: 2, 2: 1}


@pytest.mark.parametrize("every", [SOME, pytest.param(ALL, marks=pytest.mark.nightly)], ids=["some", "all"])
@pytest.mark.parametrize("shard", range(SHARDS))
def test_what_onnxruntime_passes_passes_through_memoptc(shard: int, every: dict[int, int]) -> None:
    broken, passed = [], 0
    for index, case in enumerate(cases()[shard::SHARDS]):
        model = model_of(case)
        data = data_of(case, model)
        if not stock(case, model, data):
            continue
        passed += 1
        for level in (level for level, one_in in every.items() if (shard + index) % one_in == 0):
            try:
                good = passes(at_level(level).prepare(model).run, case, data)
            except Exception as e:
                broken.append(f"{case.name} -O{level}: {type(e).__name__}: {e}")
                continue
            if not good:
                broken.append(f"{case.name} -O{level}: other numbers")
    assert passed > 0
    assert not broken


def test_one_node_runs_at_the_opset_asked_for() -> None:
    """Softmax of opset 11 flattens its operand, that of 13 does not; one operand may be named twice."""
    x = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    backend, softmax = at_level(1), onnx.helper.make_node("Softmax", ["x"], ["y"])
    (old,) = backend.run_node(softmax, [x], outputs_info=[(x.dtype, x.shape)], opset_version=11)
    (new,) = backend.run_node(softmax, [x], outputs_info=[(x.dtype, x.shape)], opset_version=13)
    np.testing.assert_allclose(old.sum((1, 2)), 1, rtol=1e-6)
    np.testing.assert_allclose(new.sum(2), 1, rtol=1e-6)
    twice = onnx.helper.make_node("Add", ["x", "x"], ["y"])
    np.testing.assert_array_equal(backend.run_node(twice, [x, x], outputs_info=[(x.dtype, x.shape)])[0], x + x)
    fused = onnx.helper.make_node("FusedMatMul", ["x", "w"], ["y"], domain="com.microsoft", transA=1)
    labels = onnx.helper.make_node(
        "LabelEncoder", ["x"], ["y"], domain="ai.onnx.ml", keys_floats=[1.0], values_floats=[2.0], default_float=0.0
    )
    encoded = backend.run_node(labels, [np.ones(1, np.float32)], outputs_info=[(np.dtype(np.float32), (1,))])[0]
    assert encoded.tolist() == [2.0]  # an operator of version 2: the newest is taken, as for ONNX's own
    (product,) = backend.run_node(fused, [x, x], outputs_info=[(x.dtype, (2, 3, 3))])
    np.testing.assert_allclose(product, x.transpose(0, 2, 1) @ x)
