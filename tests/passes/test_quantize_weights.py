"""quantize-weights: errors of the codes, what shares them, what is left and why; real models' sizes."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import zoo
from hypothesis import given
from hypothesis import strategies as st
from numbers_of import Feed, run

from memoptc.api import compile_file
from memoptc.ir.core import Graph
from memoptc.ir.diagnostics import InputError
from memoptc.ir.infer import infer_shapes
from memoptc.ir.parser import parse
from memoptc.manager import run_pipeline, weight_bytes
from memoptc.pass_base import Context
from memoptc.passes.precision._quantize.blocks import encode, error_of, pack
from memoptc.passes.precision._quantize.weight_format import near_divisor
from memoptc.passes.precision.quantize_weights import QuantizeWeights
from memoptc.pipeline import parse as parse_pipeline
from memoptc.runtime.kernels import gathers_codes, multiplies_codes
from memoptc.testing import run_pass

RNG = np.random.default_rng(0)


def graph(text: str) -> Graph:
    found = parse(text)
    infer_shapes(found)
    return found


def listed(array: np.ndarray) -> str:
    """A constant's text."""
    shape = ",".join(map(str, array.shape))
    return f"const() {{value=[{','.join(repr(float(v)) for v in array.reshape(-1))}]}} : f32[{shape}]"


def product(weight: np.ndarray) -> str:
    """One MatMul."""
    body = f" %w = {listed(weight)}\n %y = MatMul(%x, %w)\n return %y\n"
    return f"graph @g(%x: f32[N,{weight.shape[0]}]) -> (f32[*]) {{\n{body}}}"


def decisions(found: Graph, **options: object) -> tuple[Counter[str], list[str]]:
    """What the pass did, and what it says."""
    context = Context()
    stats = run_pass(QuantizeWeights(**options), found, context)  # type: ignore[arg-type]
    return stats, [f"{d.what}: {d.why}" for d in context.decisions]


@given(
    st.integers(0, 2**32 - 1), st.sampled_from([2, 4, 8]), st.sampled_from([16, 27, 32]), st.booleans(),
    st.sampled_from([1e-20, 1e-3, 1.0, 1e30]),
)  # fmt: skip
def test_the_search_is_never_worse_than_rounding(
    seed: int, bits: int, block: int, symmetric: bool, unit: float
) -> None:
    rng = np.random.default_rng(seed)
    rows, columns = rng.integers(1, 5), rng.integers(1, 70)
    weight = (rng.standard_t(3, (rows, columns)) * unit).astype(np.float32)
    plain = encode(weight, bits, block, symmetric=symmetric, search=False)
    best = encode(weight, bits, block, symmetric=symmetric)
    assert best.decoded().shape == weight.shape
    assert best.codes.max() < 2**bits
    assert np.isfinite(best.scales).all()
    assert (best.scales != 0).all()
    assert error_of(weight, best)[1] <= error_of(weight, plain)[1] * (1 + 1e-4)
    step = np.abs(plain.scales).repeat(block, axis=1)[:, :columns]
    assert (np.abs(weight - plain.decoded()) <= step * 1.001).all()


def test_blocks_of_zeros_and_of_one_value_are_exact() -> None:
    for value in (0.0, 3.0, -7.5, 1e-35):
        weight = np.full((2, 40), value, np.float32)
        for symmetric in (True, False):
            real = encode(weight, 4, 32, symmetric=symmetric).decoded()
            assert np.allclose(real, weight if abs(value) > 1e-30 else 0.0, rtol=1e-6, atol=0.0)


def test_integers_in_range_are_exact() -> None:
    weight = RNG.integers(-8, 8, (5, 64)).astype(np.float32)
    weight[:, ::32] = -8.0
    assert error_of(weight, encode(weight, 4, 32, symmetric=True))[1] == 0.0


def test_packing() -> None:
    assert pack(np.array([[1, 2, 3]], np.uint8), 4).tolist() == [[0x21, 0x03]]
    assert pack(np.array([[1, 2, 3, 0, 2]], np.uint8), 2).tolist() == [[0x39, 0x02]]
    assert pack(np.array([[1, 2]], np.uint8), 8).tolist() == [[1, 2]]


def test_windows_are_cut_without_a_rest() -> None:
    assert [near_divisor(n, 32) for n in (288, 64, 9, 27, 37, 147, 1009)] == [32, 32, 9, 27, 37, 21, 1009]


@pytest.mark.parametrize("rows", [48, 50, 257])
@pytest.mark.parametrize(
    "options", [{}, {"symmetric": True}, {"bits": 8}, {"bits": 2}, {"form": "dq"}, {"form": "dq", "bits": 8}]
)
def test_onnxruntime_computes_what_the_codes_say(rows: int, options: dict[str, object]) -> None:
    weight = RNG.standard_normal((rows, 24)).astype(np.float32)
    found = graph(product(weight))
    run_pass(QuantizeWeights(smallest=0, **options), found)  # type: ignore[arg-type]
    feed: Feed = {"x": RNG.standard_normal((3, rows)).astype(np.float32)}
    plain = {"bits": 4, "symmetric": False} | options
    blocks = encode(np.ascontiguousarray(weight.T), plain["bits"], 32, symmetric=bool(plain["symmetric"]))  # type: ignore[arg-type]
    expected = feed["x"] @ blocks.decoded().T
    outputs = run(found, feed)
    assert outputs is not None
    assert np.allclose(outputs["y"], expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_without_a_code_are_left_and_named(value: float) -> None:
    weight = RNG.standard_normal((32, 32)).astype(np.float32)
    found = graph(product(weight))
    broken = weight.copy()
    broken[3, 4] = value
    (op,) = found.walk("MatMul")
    op.set_operand(1, found.const(__import__("onnx_ir").tensor(broken), "odd"))
    stats, lines = decisions(found, smallest=0)
    assert stats["weights left"] == 1
    assert lines == ["%odd stays float32: it holds NaN or Inf, which no code stands for"]
    assert op.op_type == "MatMul"


def test_small_models_stay_with_a_decision() -> None:
    found = graph(product(np.ones((32, 2), np.float32)))
    stats, (line,) = decisions(found)
    assert stats["weights quantized"] == 0
    assert "1 weights of products, convolutions and tables are below 8192 bytes" in line


def test_what_would_not_shrink_is_left() -> None:
    _, (line,) = decisions(graph(product(np.ones((2, 4), np.float32))), smallest=0, block=256)
    assert "in blocks of 256 its codes would take as many bytes" in line


def test_standard_blocks_name_the_opset_they_need() -> None:
    text = 'model {ir_version=8, opset={""=17}}\n' + product(np.ones((32, 4), np.float32))
    _, (line,) = decisions(graph(text), smallest=0, form="dq")
    assert "blocks need opset 21, the model has 17 (raise-opset{to=21,below=21})" in line


def test_a_table_and_a_product_of_one_matrix_are_stored_once() -> None:
    text = f"""graph @g(%x: f32[N,64], %i: i64[M]) -> (f32[*], f32[*]) {{
      %w = {listed(RNG.standard_normal((1024, 64)).astype(np.float32))}
      %t = Transpose(%w) {{perm=[1,0]}}
      %y = MatMul(%x, %t)
      %z = Gather(%w, %i)
      return %y, %z
    }}"""
    found = graph(text)
    run_pipeline(parse_pipeline("quantize-weights{bits=8},share-weights,drop-dead"), found)
    assert weight_bytes(found) < 1024 * 64 * (1 + 5 / 32) * 1.01
    reshaped = [op.operand.tensor for op in found.walk("Reshape") if op.operand.tensor is not None]
    assert all(tensor.nbytes <= 1024 * 64 / 8 for tensor in reshaped)  # scales and zeros only: no copy of codes


def test_options_are_checked() -> None:
    for text in ("bits=3", "block=33", 'form="gguf"'):
        with pytest.raises(InputError, match=r"quantize-weights has no .*") as refusal:
            parse_pipeline(f"quantize-weights{{{text}}}")
        assert "There are:" in refusal.value.hint


def test_this_onnxruntime_has_kernels_for_4_bits() -> None:
    assert multiplies_codes(4)
    assert not multiplies_codes(3)
    assert not gathers_codes(3)


SIZES = {"minilm_l6": 0.17, "long_attention_4k": 0.17}
"""Part of the float32 weights that is left; those of these models are nearly all in products and tables."""


@zoo.each_model(skip=tuple(n for n in zoo.NAMES if n not in SIZES))
def test_real_models_shrink_and_beat_plain_rounding(name: str, tmp_path: Path) -> None:
    assert zoo.ZOO is not None
    samples, _ = zoo.ZOO.samples(name, 4)
    data = samples or [zoo.ZOO.inputs(name, "1k" if name == "long_attention_4k" else None)]
    found = compile_file(zoo.ZOO.path(name), tmp_path / "q.onnx", target="int4", validation=data).report
    assert found.verification["passed"]
    assert found.candidate.weight_bytes <= SIZES[name] * found.control.weight_bytes
    passes = found.options["passes"].replace("mix-weights", "quantize-weights{search=false}")
    plain = compile_file(
        zoo.ZOO.path(name), tmp_path / "p.onnx", target="int4", validation=data, passes=passes, force=True
    ).report
    searched, rounded = (r.verification["outputs"][0]["sqnr_db"] for r in (found, plain))
    assert searched > rounded
