"""Every real model through -O1 (same bits), -O2 and int8; skipped where there is no zoo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import zoo

from memoptc.api import compile_file
from memoptc.ir.diagnostics import GateError

SLOW = ("edsr_x4", "long_attention_4k", "mobilenet_v2_1024")
"""Half a minute each to verify; `make nightly` and benchmarks/zoo.py run them."""


HARD_TO_QUANTIZE = ("gtcrn_stream", "ppocr_det_mobile")
"""Near or below the gate of 10 dB with plain calibration; the gate then has to hold."""

LONG_TO_SEARCH = (
    "filled_shufflenet", "gtcrn_stream", "light_densenet121", "light_inception_v2", "ppocr_det_mobile",
    "selfie_seg_256", "super_resolution_x3", "tashkeel_fp32", "ultraface_rfb320", "unet_dynamic",
    "yunet_n_dynamic",
)  # fmt: skip
"""Twenty seconds and more each for the search for int8."""

FEW = {"ppocr_det_mobile": 2}
"""Samples where one takes long; the search runs the model on all of them again and again."""

PLACES = 4096
"""Bytes of constants that say where tiling cuts; some models have hardly more in their weights."""


def ports(path: Path) -> list[Any]:
    """Names, types and extents of inputs and outputs as onnxruntime reports them."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [(p.name, p.type, p.shape) for p in (*session.get_inputs(), *session.get_outputs())]


def feeds(name: str, folder: Path, count: int) -> str:
    """Real samples where there are some, else made-up ones, as a folder of `.npz`."""
    assert zoo.ZOO is not None
    found, _ = zoo.ZOO.samples(name, count)
    folder.mkdir()
    for index, feed in enumerate(found or [zoo.ZOO.inputs(name)]):
        np.savez(folder / f"{index}.npz", **feed)
    return str(folder)


@zoo.each_model(skip=SLOW)
def test_o1_changes_no_bit_and_no_axis(name: str, tmp_path: Path) -> None:
    assert zoo.ZOO is not None
    source, output = zoo.ZOO.path(name), tmp_path / "out.onnx"
    found = compile_file(source, output, level=1, validation=feeds(name, tmp_path / "data", 2)).report
    assert found.verification["passed"]
    assert found.verification["bit_exact"]
    assert found.candidate.nodes <= found.control.nodes
    assert ports(output) == ports(source)


BOUNDED = {"tashkeel_fp32": {"batch": 1, "seq": 64}, "unet_dynamic": {"batch": 1, "height": 256, "width": 256}}
"""Extents for models that take minutes to compile, or to verify, at the sizes that they are planned for otherwise."""


@zoo.each_model(skip=SLOW)
def test_o2_stays_within_float_noise(name: str, tmp_path: Path) -> None:
    assert zoo.ZOO is not None
    source, output = zoo.ZOO.path(name), tmp_path / "out.onnx"
    assert compile_file(source, output, level=2, dims=BOUNDED.get(name, {})).report.verification["passed"]
    assert ports(output) == ports(source)


@zoo.each_model(skip=(*SLOW, "fns_candy"), nightly=LONG_TO_SEARCH)
def test_int8_passes_its_gates_or_writes_nothing(name: str, tmp_path: Path) -> None:
    assert zoo.ZOO is not None
    data = feeds(name, tmp_path / "data", FEW.get(name, 32))
    source, output = zoo.ZOO.path(name), tmp_path / "out.onnx"
    refusal = ""
    try:
        found = compile_file(source, output, target="int8", calibration=data).report
    except GateError as e:
        refusal = e.message
    if refusal:
        assert name in HARD_TO_QUANTIZE
        assert "first broken by pass quantize" in refusal
        assert not output.exists()
        return
    assert found.verification["passed"]
    # Tiling adds the places of its slices: a few integers.
    assert found.candidate.weight_bytes <= found.control.weight_bytes + PLACES
    assert ports(output) == ports(source)
