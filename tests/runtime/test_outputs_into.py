"""Arrays for outputs that share memory with an input, or cannot be written to, in every tier and in parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from native_models import model, usable
from onnx import TensorProto, helper

from memoptc.ir.diagnostics import InputError
from memoptc.runtime.admission import BatchAxis, run_in_parts
from memoptc.runtime.session import Session

WIDTH = 1 << 18
"""Large enough for outputs that runs write straight into arrays."""


def opened(tier: Any) -> Session:
    nodes = [helper.make_node("Neg", ["x"], ["y"]), helper.make_node("Add", ["x", "y"], ["z"])]
    kind = (TensorProto.FLOAT, ["b", WIDTH])
    return Session(model(nodes, {"x": kind}, {"y": kind, "z": kind}), memory=tier)


@pytest.mark.parametrize("tier", ["stock", "arena", *(["planned"] if usable() else [])])
def test_an_output_over_an_input_is_written_when_that_is_read(tier: Any) -> None:
    given = np.random.default_rng(0).random((2, WIDTH), np.float32)
    with opened(tier) as session:
        for _ in range(3):  # recorded, then planned
            x = given.copy()
            y, z = session.run(None, {"x": x}, into={"y": x})
            assert y is x
            assert np.array_equal(y, -given)
            assert not z.any()
        fixed = np.zeros_like(given)
        fixed.flags.writeable = False
        with pytest.raises(InputError, match="read-only"):
            session.run(None, {"x": given}, into={"y": fixed})
        assert not fixed.any()


def test_parts_read_their_input_before_it_is_written_over() -> None:
    x = np.arange(8.0)
    calls = []

    def run(part: Any) -> list[Any]:
        calls.append(part["x"].copy())
        return [part["x"] + 1]

    batch = BatchAxis({"x": 0}, {"y": 0})
    (found,) = run_in_parts(run, ["y"], {"x": x[:6]}, batch, [2, 2, 2], {"y": x[2:]})
    assert np.array_equal(np.concatenate(calls), np.arange(6.0))
    assert np.array_equal(found, np.arange(6.0) + 1)


@pytest.mark.parametrize("tier", ["stock", "arena", *(["planned"] if usable() else [])])
def test_arrays_of_another_byte_order_and_for_other_outputs(tier: Any) -> None:
    given = np.random.default_rng(0).random((1, WIDTH), np.float32)
    with opened(tier) as session:
        for _ in range(2):
            assert np.array_equal(session.run(["y"], {"x": given.astype(">f4")})[0], -given)
        for name in ("z", "q"):
            with pytest.raises(InputError, match="no output of this run"):
                session.run(["y"], {"x": given}, into={name: np.zeros_like(given)})
        with pytest.raises(InputError, match=">f4"):
            session.run(["y"], {"x": given}, into={"y": np.zeros(given.shape, ">f4")})
    for call in (session.io_binding, session.get_modelmeta, session.get_session_options):
        with pytest.raises(InputError, match="closed"):
            call()
