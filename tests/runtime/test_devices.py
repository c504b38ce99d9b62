"""Device profiles: built-in ones, a user's own, detection, and what they change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from memoptc import levels
from memoptc.api import compile
from memoptc.compilation import for_device
from memoptc.forms import loads_beside
from memoptc.ir.diagnostics import InputError
from memoptc.ir.infer import infer_shapes
from memoptc.ir.onnx_io import to_proto
from memoptc.ir.parser import parse
from memoptc.options import Options
from memoptc.pipeline import parse as parse_pipeline
from memoptc.runtime.devices import USUAL, detect, load_device, names
from memoptc.runtime.kernels import saturates

RNG = np.random.default_rng(0)


def net() -> onnx.ModelProto:
    values = RNG.standard_normal(16 * 8).astype(np.float32)
    weight = f"const() {{value=[{','.join(repr(float(v)) for v in values)}]}} : f32[16,8]"
    graph = parse(
        f"graph @g(%x: f32[N,16]) -> (f32[*]) {{\n %w = {weight}\n %a = MatMul(%x, %w)\n"
        " %y = Concat(%a, %a) {axis=1}\n return %y\n}"
    )
    infer_shapes(graph)
    proto: onnx.ModelProto = to_proto(graph)
    return proto


def feeds() -> list[dict[str, npt.NDArray[Any]]]:
    return [{"x": RNG.standard_normal((4, 16)).astype(np.float32)} for _ in range(3)]


def largest_code(device: str, target: str = "int8") -> int:
    found = compile(net(), 1, target, calibration=feeds(), device=device)
    weights = [
        op.result.tensor.numpy().astype(np.int64)
        for op in found.graph.ops
        if op.is_const and op.result.shape is not None and len(op.result.shape) == 2 and op.result.is_integer
    ]
    assert len(weights) == 1
    return int(np.abs(weights[0] - (128 if target == "uint8" else 0)).max())


def test_built_in_profiles() -> None:
    assert names() == ["arm64", "cpu", "wasm", "x86-avx2", "x86-vnni"]
    assert USUAL in names()
    for name in names():
        found = load_device(name)
        assert "Conv" in found.heavy
        assert found.description
        assert found.weight_bits("int8") == (7 if name == "x86-avx2" else 8)
        assert found.weight_bits("uint8") == 8
        assert set(found.half["bfloat16"]) <= set(found.half["float16"])


def test_the_detected_profile_says_what_products_do_here() -> None:
    assert load_device(detect()).saturates == saturates()


def test_weights_have_seven_bits_where_sums_saturate() -> None:
    assert largest_code("x86-vnni") == 127
    assert largest_code("x86-avx2") == 63
    assert largest_code("x86-avx2", "uint8") == 127


def test_a_profile_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "dsp.toml"
    file.write_text('base = "cpu"\ndescription = "no integer products"\n[integer]\nheavy = ["Conv"]\n')
    found = load_device(str(file))
    assert found.heavy == {"Conv"}
    assert found.light == load_device("cpu").light
    result = compile(net(), 1, "int8", calibration=feeds(), device=str(file))
    assert not any(op.op_type == "QuantizeLinear" for op in result.graph.ops)
    assert "dsp.toml" in result.report.options["passes"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bits = 8", "bits is no entry"),
        ('saturates = "yes"', "saturates is true or false"),
        ("integer = 3", "integer is a table"),
        ('[integer]\nheavy = "Conv"', "heavy is a list of operators"),
        ('[integer.same_scale]\nMaxPool = "new"', "same_scale gives an opset"),
        ("=", "cannot be read"),
        ('base = "toaster"', "no device 'toaster'"),
    ],
)
def test_faults_in_a_profile(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(InputError, match=message):
        load_device(str(tmp_path / "mine.toml"))


def test_a_profile_is_not_its_own_base(tmp_path: Path) -> None:
    file = tmp_path / "loop.toml"
    file.write_text(f'base = "{file.as_posix()}"')
    with pytest.raises(InputError, match="its own base"):
        load_device(str(file))


def test_the_pipeline_names_every_other_device_than_the_usual() -> None:
    assert "device" not in levels.pipeline_text(2, "int8", device=USUAL)
    for target in ("int8", "uint8", "float16", "bfloat16"):
        text = levels.pipeline_text(2, target, device="x86-avx2")
        assert 'device="x86-avx2"' in text
        assert str(parse_pipeline(text)) == text


def test_unknown_devices_are_refused() -> None:
    with pytest.raises(InputError, match="no device 'abacus'"):
        compile(net(), 1, "int8", device="abacus")


def test_for_webassembly_models_are_plain_and_portable() -> None:
    """onnxruntime-web 1.30 does not load weights that lie in a file of their own inside a branch."""
    asked = for_device(Options(level=2, device="wasm"))
    assert (asked.form, asked.portable) == ("plain", True)
    assert for_device(Options(level=2, device="wasm", form="branch")).form == "branch"
    assert for_device(Options(level=2, device="arm64")).form == "auto"
    with pytest.raises(InputError, match="portable model's are not"):
        for_device(Options(level=2, device="wasm", pack_weights=True))


@pytest.mark.parametrize(("nested", "beside"), [(True, False), (False, True)])
def test_for_webassembly_weights_of_subgraphs_stay_in_the_model(nested: bool, beside: bool) -> None:
    weight = f"const() {{value=[{','.join(['0.5'] * 4096)}]}} : f32[64,64]"
    branch = f"%w = {weight}\n %p = MatMul(%x, %w)" if nested else "%p = Neg(%x)"
    graph = parse(
        f"""graph @g(%c: bool[], %x: f32[N,64]) -> (f32[*]) {{
          %v = {weight}
          %z = MatMul(%x, %v)
          %y = If(%c)
            region then_branch() -> (f32[*]) {{
              {branch}
              return %p
            }}
            region else_branch() -> (f32[*]) {{
              %q = Exp(%z)
              return %q
            }}
          return %y
        }}"""
    )
    assert loads_beside(graph, Options(device="wasm")) == beside
    assert loads_beside(graph, Options(device="arm64"))
