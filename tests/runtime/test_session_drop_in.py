"""One script of some thirty calls, written for `onnxruntime.InferenceSession`, run with it and with `Session`."""

from __future__ import annotations

import inspect
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from native_models import model, network, usable
from onnx import TensorProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from memoptc.ir.diagnostics import InputError
from memoptc.runtime import Session
from memoptc.runtime.contract import Contract, contract_path
from memoptc.runtime.errors import MemoryLimit

CPU = ["CPUExecutionProvider"]


def script(make: Any, folder: Path) -> dict[str, Any]:
    """Call what a program may call; give what it saw, in plain values."""
    path = folder / "m.onnx"
    path.write_bytes(network())
    x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    seen: dict[str, Any] = {}

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    options.add_free_dimension_override_by_name("batch", 3)
    before = [getattr(options, name) for name in ("enable_mem_pattern", "enable_mem_reuse", "execution_order")]

    session = make(str(path), options, providers=CPU)
    seen["an inference session"] = isinstance(session, ort.InferenceSession)
    seen["options untouched"] = before == [
        getattr(options, name) for name in ("enable_mem_pattern", "enable_mem_reuse", "execution_order")
    ]
    for name in ("get_inputs", "get_outputs", "get_overridable_initializers"):
        seen[name] = [(p.name, p.type, p.shape) for p in getattr(session, name)()]
    seen["get_providers"] = session.get_providers()
    seen["get_provider_options"] = session.get_provider_options()
    seen["get_session_options"] = session.get_session_options().intra_op_num_threads
    meta = session.get_modelmeta()
    seen["get_modelmeta"] = (meta.graph_name, meta.producer_name, meta.version, meta.custom_metadata_map)

    seen["run"] = session.run(None, {"x": x})
    seen["run no names"] = session.run([], {"x": x})
    seen["run names"] = session.run(["y"], {"x": x}, ort.RunOptions())
    value = ort.OrtValue.ortvalue_from_numpy(x)
    seen["run ort value"] = session.run(["y"], {"x": value})
    seen["run_with_ort_values"] = [v.numpy() for v in session.run_with_ort_values(["y"], {"x": value})]

    binding = session.io_binding()
    binding.bind_cpu_input("x", x)
    binding.bind_output("y")
    session.run_with_iobinding(binding)
    seen["run_with_iobinding"] = binding.copy_outputs_to_cpu()
    target = ort.OrtValue.ortvalue_from_numpy(np.zeros((3, 64), np.float32))
    binding.bind_ortvalue_output("y", target)
    session.run_with_iobinding(binding, ort.RunOptions())
    seen["bound output"] = target.numpy()

    done, answers = threading.Event(), []

    def finished(results: Any, user_data: Any, error: str) -> None:
        answers.append((results, user_data, error))
        done.set()

    asynchronous = ort.SessionOptions()
    asynchronous.intra_op_num_threads = 2  # onnxruntime runs asynchronously on a pool only
    make(str(path), sess_options=asynchronous).run_async(["y"], {"x": x}, finished, "mine")
    assert done.wait(30)
    seen["run_async"] = answers

    seen["get_profiling_start_time_ns"] = session.get_profiling_start_time_ns() > 0
    seen["end_profiling"] = Path(session.end_profiling()).is_file()
    session.disable_fallback()
    session.enable_fallback()
    session.set_providers(CPU)
    seen["after set_providers"] = session.run(None, {"x": x})

    for label, arguments in {
        "path object": (path,), "bytes": (network(),), "providers": (str(path), None, CPU),
        "provider with options": (str(path), None, [("CPUExecutionProvider", {})]),
        "provider options": (str(path), None, CPU, [{}]), "what is no provider": (str(path), None, [7]),
    }.items():  # fmt: skip
        seen[label] = make(*arguments).run(None, {"x": x})

    seen["errors"] = {label: _raised(call) for label, call in {
        "no file": lambda: make(str(folder / "none.onnx")),
        "no model": lambda: make(b"no model"),
        "neither": lambda: make(7),
        "no such output": lambda: session.run(["z"], {"x": x}),
        "no such input": lambda: session.run(None, {"x": x, "z": x}),
        "missing input": lambda: session.run(None, {}),
        "wrong type": lambda: session.run(None, {"x": x.astype(np.float64)}),
        "wrong rank": lambda: session.run(None, {"x": x[0]}),
        "too many options": lambda: make(str(path), None, CPU, [{}, {}], enable_fallback=0),
    }.items()}  # fmt: skip
    return seen


def _raised(call: Any) -> type[Exception]:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        call()
    return caught.type


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)


def test_methods_have_the_signatures_of_onnxruntime() -> None:
    for name, theirs in inspect.getmembers(ort.InferenceSession, inspect.isfunction):
        if not name.startswith("_"):
            expected = list(inspect.signature(theirs).parameters.values())
            ours = list(inspect.signature(getattr(Session, name)).parameters.values())
            kinds = [(p.name, p.kind, p.default) for p in ours][: len(expected)]
            assert kinds == [(p.name, p.kind, p.default) for p in expected], name
            assert all(p.kind == p.KEYWORD_ONLY for p in ours[len(expected) :]), name


@pytest.mark.parametrize("contract", [False, True])
def test_a_script_sees_the_same_with_either(tmp_path: Path, contract: bool) -> None:
    for name in ("theirs", "ours"):
        (tmp_path / name).mkdir()
    if contract:
        Contract(arena_bytes=1 << 20, tier="planned").save(contract_path(tmp_path / "ours" / "m.onnx"))
    expected = script(ort.InferenceSession, tmp_path / "theirs")
    seen = script(Session, tmp_path / "ours")
    theirs, ours = expected.pop("errors"), seen.pop("errors")
    assert [k for k in expected if not _same(expected[k], seen[k])] == []
    wrong = {k: (theirs[k], ours[k]) for k in theirs if not issubclass(ours[k], (theirs[k], InputError))}
    assert wrong == {}
    assert {k: (theirs[k], ours[k].__mro__) for k in theirs if not issubclass(ours[k], theirs[k])} == {}
    assert all(issubclass(kind, InputError) for kind in ours.values())


def test_bytes_are_not_kept_and_what_needs_them_says_so() -> None:
    session = Session(network())
    assert session._model_bytes is None
    session.set_providers(CPU)
    with pytest.raises(ValueError, match="not kept"):
        session.set_providers(["CUDAExecutionProvider"])
    assert session.run(None, {"x": np.zeros((1, 64), np.float32)})[0].shape == (1, 64)


def test_every_public_name_of_inference_session_is_there() -> None:
    names = {n for n in dir(ort.InferenceSession) if not n.startswith("_")}
    assert {n for n in names if not callable(getattr(Session, n, None))} == set()


def test_what_a_planned_session_cannot_do_says_so_and_auto_goes_on_in_the_arena(tmp_path: Path) -> None:
    if not usable():
        pytest.skip("onnxruntime's C interface cannot be used here")
    path = tmp_path / "m.onnx"
    path.write_bytes(network())
    x = np.ones((2, 64), np.float32)
    planned = Session(path, memory="planned", threads=1)
    expected = planned.run(None, {"x": x})
    for call in (planned.io_binding, planned.get_modelmeta, lambda: planned.run(None, {"x": x}, ort.RunOptions())):
        with pytest.raises(NotImplementedError, match="A planned session has no"):
            call()
    Contract(tier="planned").save(contract_path(path))
    auto = Session(path, threads=1)
    assert auto.memory == "planned"
    assert _same(auto.run(None, {"x": x}), expected)
    assert auto.get_modelmeta().graph_name == "small"
    assert auto.memory == "arena"
    assert _same(auto.run(None, {"x": x}), expected)


def test_what_no_plan_is_made_for_is_refused_at_once_and_auto_runs_it_in_the_arena(tmp_path: Path) -> None:
    if not usable():
        pytest.skip("onnxruntime's C interface cannot be used here")
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    element = helper.make_tensor_type_proto(TensorProto.FLOAT, ["n", 3])
    first = helper.make_tensor("first", TensorProto.INT64, [], [0])
    items = helper.make_value_info("items", helper.make_sequence_type_proto(element))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])
    take = helper.make_graph([helper.make_node("SequenceAt", ["items", "first"], ["y"])], "g", [items], [y], [first])
    codes = helper.make_tensor_value_info("y", TensorProto.INT4, ["n", 3])
    narrow = helper.make_node("Cast", ["items"], ["y"], to=TensorProto.INT4)
    floats = helper.make_tensor_value_info("items", TensorProto.FLOAT, ["n", 3])
    graphs = {"sequence": (take, [x]), "int4": (helper.make_graph([narrow], "g", [floats], [codes]), x)}
    for name, (graph, given) in graphs.items():
        path = tmp_path / f"{name}.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
        with pytest.raises(InputError, match="no plan is made"):
            Session(path, memory="planned", threads=1)
        Contract(tier="planned").save(contract_path(path))
        auto = Session(path, threads=1)
        assert auto.memory == "arena"
        if name == "sequence":  # onnxruntime's own session has no numpy type for 4 bits
            assert np.array_equal(auto.run(None, {"items": given})[0], x)


@pytest.mark.parametrize("tier", ["stock", "arena", "planned"])
def test_errors_go_by_both_names(tier: Any, tmp_path: Path) -> None:
    node = helper.make_node("Reshape", ["x", "s"], ["y"])
    data = model(
        [node],
        {"x": (TensorProto.FLOAT, ["n"]), "s": (TensorProto.INT64, [2])},
        {"y": (TensorProto.FLOAT, ["a", "b"])},
    )
    session = Session(data, memory=tier, threads=1)
    feed = {"x": np.zeros(6, np.float32), "s": np.array([4, 4])}
    with pytest.raises(InputError, match="reshape") as caught:
        session.run(None, feed)
    assert isinstance(caught.value, ort_state.RuntimeException | ort_state.Fail | ort_state.InvalidArgument)
    with pytest.raises(ort_state.InvalidProtobuf):
        Session(b"no model", memory=tier)
    with pytest.raises(ort_state.NoSuchFile):
        Session(tmp_path / "none.onnx", memory=tier)
    with pytest.raises(ValueError, match="Required inputs"):
        session.run(None, {})


def test_other_providers_are_passed_through_as_stock() -> None:
    others = [p for p in ort.get_available_providers() if p not in ("CPUExecutionProvider", "AzureExecutionProvider")]
    with pytest.warns(UserWarning, match="CUDAExecutionProvider") if "CUDAExecutionProvider" not in others else _none():
        session = Session(network(), providers=["CUDAExecutionProvider", "CPUExecutionProvider"])
    assert session.memory == "stock"
    assert "CPUExecutionProvider" in session.get_providers()
    with pytest.raises(InputError, match="for the CPU"):
        Session(network(), providers=["CUDAExecutionProvider"], memory="arena")


class _none:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def test_outputs_larger_than_the_machine_are_refused_and_the_session_lives_on() -> None:
    shapes = {"x": (TensorProto.FLOAT, ["n", 1]), "y": (TensorProto.FLOAT, [1, "m"])}
    data = model([helper.make_node("MatMul", ["x", "y"], ["z"])], shapes, {"z": (TensorProto.FLOAT, ["n", "m"])})
    with Session(data, memory="planned") as session:
        for count, fits in ((10_000_000, False), (2, True)):
            feed = {"x": np.ones((count, 1), np.float32), "y": np.ones((1, count), np.float32)}
            if fits:
                assert session.run(None, feed)[0].sum() == count * count
            else:
                with pytest.raises(MemoryLimit, match="bytes are available"):
                    session.run(None, feed)


def test_buffers_larger_than_the_machine_are_refused_and_the_session_lives_on() -> None:
    shapes = {"x": (TensorProto.FLOAT, [1000, 1]), "k": (TensorProto.INT64, [2])}
    nodes = [helper.make_node("Expand", ["x", "k"], ["t"]), helper.make_node("ReduceSum", ["t"], ["y"], keepdims=0)]
    data = model(nodes, shapes, {"y": (TensorProto.FLOAT, [])})
    with Session(data, memory="planned") as session:
        if session._planned is None or not session._planned._session.allocator.can_refuse:
            pytest.skip("onnxruntime cannot be told on this machine")
        for columns in (10**11, 1, 10**11, 1):  # for the first time, and against a plan
            feed = {"x": np.ones((1000, 1), np.float32), "k": np.array([1, columns])}
            if columns == 1:
                assert session.run(None, feed)[0] == 1000
            else:
                with pytest.raises(MemoryLimit, match="asks for 400000000000000 bytes"):
                    session.run(None, feed)
