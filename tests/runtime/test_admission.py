"""Calls under a memory limit: the need is known before they start, batches are split to fit, bits stay."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from native_models import usable
from runtime_models import convolutions, mlp

from memoptc.ir.batch import separable_batch
from memoptc.ir.diagnostics import InputError
from memoptc.ir.infer import infer_shapes
from memoptc.ir.onnx_io import read_onnx
from memoptc.runtime.admission import Admission, BatchAxis, RunBytes, even_parts, run_in_parts
from memoptc.runtime.contract import Contract, contract_path
from memoptc.runtime.errors import MemoryLimit
from memoptc.runtime.measured_contract import make_contract
from memoptc.runtime.memory.formula import run_formula
from memoptc.runtime.memory.liveness import peak
from memoptc.runtime.native.session import NativeSession
from memoptc.runtime.session import Session

RNG = np.random.default_rng(0)
BATCH = BatchAxis({"x": 0}, {"y": 0})


def images(count: int) -> dict[str, Any]:
    """A batch for the convolutional net."""
    return {"x": RNG.standard_normal((count, 3, 16, 16)).astype(np.float32)}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The convolutional net, with a contract as a compile makes it."""
    if not usable():
        pytest.skip("onnxruntime's C interface cannot be used here")
    path = tmp_path_factory.mktemp("admission") / "net.onnx"
    onnx.save(convolutions(), path)
    graph = read_onnx(path)
    infer_shapes(graph)
    made = make_contract(path, images(8), batch=separable_batch(graph))
    replace(made, run_bytes=run_formula(graph, {"N": 8})).save(contract_path(path))
    return path


@given(st.integers(1, 200), st.integers(1, 200))
def test_parts_are_even_few_and_fit(samples: int, most: int) -> None:
    parts = even_parts(samples, most)
    assert sum(parts) == samples
    assert max(parts) <= most
    assert len(parts) == -(-samples // most)
    assert max(parts) - min(parts) <= 1


@given(st.integers(0, 10_000), st.integers(1, 5_000), st.integers(1, 100), st.floats(1, 2), st.integers(1, 60_000))
def test_whatever_is_admitted_fits_on_paper(fixed: int, each: int, samples: int, factor: float, limit: int) -> None:
    admission = Admission(limit, fixed, RunBytes((f"{each}*N+7",), {"N": ("x", 0)}), factor, BATCH)
    shapes = {"x": (samples, 4)}
    need = admission.need(shapes)
    assert need is not None
    single = admission.need({"x": (1, 4)})
    assert single is not None
    if single > limit:
        with pytest.raises(MemoryLimit, match=str(need)):
            admission.parts(shapes)
        return
    parts = admission.parts(shapes)
    for count in parts or [samples]:
        part = admission.need({"x": (count, 4)})
        assert part is not None
        assert part <= limit
    assert bool(parts) == (need > limit)


@pytest.mark.parametrize("model", [mlp(), convolutions()], ids=["mlp", "convolutions"])
def test_the_formula_gives_the_planned_peak(model: onnx.ModelProto) -> None:
    graph = read_onnx(model)
    infer_shapes(graph)
    found = run_formula(graph, {"N": 16})
    assert found is not None
    for count in (1, 5, 16, 63):
        shape = tuple(count if not isinstance(d, int) else d for d in graph.inputs[0].shape or ())
        predicted, planned = found.of({"x": shape}), peak(graph, {"N": count}).peak_bytes
        assert predicted is not None
        assert planned <= predicted <= 1.1 * planned + 4096


def test_what_is_predicted_is_what_runs_allocate(compiled: Path) -> None:
    session = Session(compiled, memory="planned", memory_limit="1GiB")
    native = NativeSession(str(compiled), session.contract.options)
    admission = session._admission
    assert admission is not None
    for count in (8, 32, 128):
        _, trace = native.record(images(count))
        need = admission.need({"x": (count, 3, 16, 16)})
        assert need is not None
        assert 0.97 <= need / (native.loaded_bytes + trace.peak_bytes) <= 1.1
    native.close()


@pytest.mark.parametrize("tier", ["arena", "planned"])
def test_a_batch_is_split_to_fit_and_keeps_its_bits(compiled: Path, tier: Any) -> None:
    feed = images(40)
    expected = Session(compiled, memory=tier).run(None, feed)[0]
    free = Session(compiled, memory=tier, memory_limit="1GiB")
    assert free.run(None, feed)[0].tobytes() == expected.tobytes()
    assert free.parts == []
    assert free._admission is not None
    limit = free._admission.need({"x": (9, 3, 16, 16)})
    with Session(compiled, memory=tier, memory_limit=limit) as session:
        with pytest.warns(RuntimeWarning, match="a batch of 40 does not fit the memory limit"):
            (found,) = session.run(None, feed)
        assert found.tobytes() == expected.tobytes()
        assert session.parts == even_parts(40, 9)
        into = np.empty_like(expected)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # said once
            assert session.run(["y"], feed, into={"y": into})[0] is into
        assert into.tobytes() == expected.tobytes()
        session.run(None, images(4))
        assert session.parts == []


def test_parts_go_into_arrays_of_the_outputs_shape_and_type_only() -> None:
    x = np.arange(8, dtype=np.float32).reshape(4, 2)

    def run(into: Any) -> Any:
        return run_in_parts(lambda part: [part["x"] + 0.5], ["y"], {"x": x}, BATCH, [2, 2], {"y": into})[0]

    for wrong in (np.zeros((5, 2), np.float32), np.zeros((4, 2), np.int32), np.zeros((4, 1), np.float32)):
        with pytest.raises(InputError, match=r"is float32 \[4, 2\]; the array for it is"):
            run(wrong)
    right = np.zeros((4, 2), np.float32)
    assert run(right) is right
    assert np.array_equal(right, x + 0.5)


def test_a_batch_that_was_thought_to_fit_is_split_further(compiled: Path) -> None:
    feed = images(40)
    with Session(compiled, memory="planned", memory_limit="1GiB") as free:
        expected = free.run(None, feed)[0]
        assert free._admission is not None
        limit = free._admission.need({"x": (9, 3, 16, 16)})
    with Session(compiled, memory="planned", memory_limit=limit) as session:
        assert session._admission is not None
        paper = session._admission.run_bytes
        session._admission = replace(session._admission, run_bytes=replace(paper, expressions=("1",)))
        with pytest.warns(RuntimeWarning, match="is computed in"):
            found = session.run(None, feed)[0]
        assert found.tobytes() == expected.tobytes()
        assert 2 <= max(session.parts) <= 9
        assert session.run(None, feed)[0].tobytes() == expected.tobytes()


def test_a_call_that_fits_in_no_part_is_refused_before_it_starts(compiled: Path) -> None:
    limit = 1 << 16
    session = Session(compiled, memory="planned", memory_limit=limit)
    assert session._admission is not None
    assert session._planned is not None
    object.__setattr__(session._admission, "fixed", limit)
    with pytest.raises(MemoryLimit, match=r"x 4x3x16x16 needs about \d+ bytes, and \d+ with a single sample"):
        session.run(None, images(4))
    assert not session._planned.plans


def test_a_contract_keeps_both_and_refuses_nonsense(compiled: Path) -> None:
    contract = Session(compiled).contract
    assert contract.batch == BATCH
    assert contract.run_bytes is not None
    assert Contract.from_json(contract.to_json()) == contract
    plain = contract.to_json()
    for wrong in ({"expressions": [], "axes": {}}, {"axes": {}}):
        with pytest.raises((ValueError, KeyError)):
            Contract.from_json(plain | {"run_bytes": wrong})
    for expression, why in (("4*M", "not among its axes"), ("4**", "does not say what a run takes")):
        nonsense = Contract.from_json(plain | {"run_bytes": {"expressions": [expression], "axes": {}}})
        with pytest.raises(InputError, match=why):
            nonsense.admission(1 << 30, 0, "arena")
