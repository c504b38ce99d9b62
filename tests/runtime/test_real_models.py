"""Made-up inputs and verification on every real model."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import zoo
from onnx import numpy_helper

from memoptc.ir.onnx_io import read_onnx
from memoptc.runtime.evaluate import Evaluator
from memoptc.runtime.feeds import find_feeds
from memoptc.runtime.float64 import Float64
from memoptc.runtime.judge import TOLERANCES, TRUST, UNIT_NOISE, Judge
from memoptc.runtime.options import RunOptions
from memoptc.runtime.verify import verify

LONG = ("unet_dynamic", "yunet_n_dynamic")  # a quarter, and half a minute
SLOW = ("edsr_x4", "mobilenet_v2_1024")  # seconds per run, whatever the input


def path(name: str) -> Any:
    assert zoo.ZOO is not None
    return zoo.ZOO.path(name)


@zoo.each_model(skip=SLOW)
def test_made_up_inputs_run_and_a_model_equals_itself(name: str) -> None:
    found = verify(path(name), path(name), Judge(bit_exact=True))
    assert found.passed, found.failures
    assert found.samples == 3
    assert not any("NaN" in note for note in found.notes)


@zoo.each_model(skip=SLOW, nightly=LONG)
def test_the_original_lies_close_to_its_float64_twin(name: str) -> None:
    original = Evaluator(path(name), RunOptions(optimize=False))
    (made,) = find_feeds(read_onnx(path(name)), original, count=1)
    near = original.run(made.feed)
    twin = Float64(path(name)).run(made.feed, list(near))
    for output, value in near.items():
        exact = twin[output]
        assert isinstance(exact, np.ndarray)
        assert exact.shape == value.shape
        if value.dtype.kind == "f" and value.size:
            bound = max(TRUST * TOLERANCES["float32"] * np.abs(exact).max(), UNIT_NOISE["float32"])
            assert np.abs(exact - value).max() <= bound


@zoo.each_model(skip=(*SLOW, "fns_candy"), nightly=LONG)  # its layers are normalised after each convolution: scale-free
def test_weights_off_by_a_percent_are_found(name: str) -> None:
    model = onnx.load(path(name))
    weights = [t for t in model.graph.initializer if t.data_type == 1 and len(t.dims) >= 2]
    if not weights:
        pytest.skip("no float32 matrices among the initializers")
    tensor = weights[len(weights) // 2]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name))
    found = verify(path(name), model)
    assert not found.passed
    assert "float64" in found.failures[0]
