"""Tensors in `.mir` text, and in files beside it: every bit survives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import pytest
from round_trip import TINY, everything_equal, round_trip

from memoptc.ir.core import Graph, ModelInfo, Op
from memoptc.ir.diagnostics import InputError, SourceError
from memoptc.ir.mir import print_graph, read_mir, write_mir
from memoptc.ir.onnx_io import read_onnx, write_onnx
from memoptc.ir.parser import parse
from memoptc.ir.tensors import from_array, same_content
from memoptc.ir.types import (
    DType,
    TensorType,
)

NUMBERED = [d for d in DType if d not in (DType.UNDEFINED, DType.STRING)]


@pytest.mark.parametrize("dtype", NUMBERED, ids=lambda d: d.name)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (5, 7)], ids=str)
def test_tensors_of_every_element_type_survive(dtype: DType, shape: tuple[int, ...], tmp_path: Path) -> None:
    """Random bits, NaNs with payloads among them: in the text, in bytes, and beside it."""
    try:
        dtype.numpy()
    except TypeError:
        pytest.skip("this onnx-ir cannot hold such tensors")
    count = int(np.prod(shape)) * dtype.bitwidth
    rng = np.random.default_rng(count)
    raw = rng.integers(0, 2 if dtype == DType.BOOL else 256, (count + 7) // 8, np.uint8)
    if count % 8:
        raw[-1] &= (1 << count % 8) - 1
    if dtype.bitwidth < 8:
        tensor: Any = onnx_ir.PackedTensor(raw, dtype, shape=shape)
    else:
        tensor = onnx_ir.Tensor(raw.view(dtype.numpy()).reshape(shape), dtype=dtype)
    check_tensor(tensor, tmp_path)


def check_tensor(tensor: Any, tmp_path: Path) -> None:
    graph = Graph("g", ModelInfo())
    weight = graph.const(tensor, "w")
    other = graph.append(Op("Constant", (), [None], {"value": tensor}, result_names=["c"])).result
    default = graph.add_input("d", weight.type)
    graph.defaults[default] = tensor
    graph.set_outputs([weight, other])
    round_trip(graph)
    write_mir(graph, tmp_path / "g.mir", limit=4)
    again = read_mir(tmp_path / "g.mir")
    everything_equal(graph, again)
    assert same_content(again.outputs[0].op.attrs["value"], tensor)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "items", [[], [b"a"], [b"", b'"', b"\xff\xfe", "ü\n".encode()], [b"long %d" % i for i in range(40)]], ids=len
)
def test_string_tensors_survive(items: list[bytes], tmp_path: Path) -> None:
    check_tensor(onnx_ir.StringTensor(items, shape=onnx_ir.Shape([len(items)])), tmp_path)


def test_equal_elements_are_written_once() -> None:
    graph = Graph("g", ModelInfo())
    graph.set_outputs([graph.const(from_array(np.full((100, 3), -0.5, np.float32)), "w")])
    assert "value=splat(-0.5)" in print_graph(graph)
    assert "value=splat(-0.5)" in print_graph(graph, limit=299)
    assert "value=[-0.5,-0.5," in print_graph(graph, limit=300)
    round_trip(graph)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "i64", "u8", "i4", "u2", "bool"])
def test_random_elements_are_the_same_everywhere(dtype: str) -> None:
    """They depend on the seed alone, every type holds them, and text has them in full."""
    made = [
        parse(f"graph @g() -> ({dtype}[50]) {{ %w = const() {{value=rand({seed})}} : {dtype}[50]  return %w }}")
        for seed in (7, 7, 8)
    ]
    a, b, c = (g.outputs[0].tensor for g in made)
    assert a is not None
    assert b is not None
    assert c is not None
    assert same_content(a, b)
    assert not same_content(a, c)
    assert np.abs(a.numpy().astype(np.float64)).max() <= (1 if dtype in ("f32", "f16", "bf16", "bool") else 8)
    round_trip(made[0])


def test_random_elements_are_known() -> None:
    graph = parse("graph @g() -> (f32[3]) { %w = const() {value=rand(1)} : f32[3]  return %w }")
    assert graph.outputs[0].tensor is not None
    assert graph.outputs[0].tensor.numpy().tolist() == [-0.734375, 0.6875, 0.515625]


def weights_graph() -> Graph:
    graph = Graph("g", ModelInfo())
    x = graph.add_input("x", TensorType(DType.FLOAT, (600, 700)))
    w = graph.const(from_array(np.random.default_rng(0).standard_normal((700, 800)).astype(np.float32)), "odd/na me")
    bias = graph.const(from_array(np.arange(800, dtype=np.float32)), "bias")
    y = graph.append(Op("MatMul", [x, w], [TensorType(DType.FLOAT, (600, 800))], result_names=["y"])).result
    z = graph.append(Op("Add", [y, bias], [TensorType(DType.FLOAT, (600, 800))], result_names=["z"])).result
    graph.set_outputs([z])
    return graph


def test_large_weights_lie_beside_the_text_and_stay_there(tmp_path: Path) -> None:
    graph = weights_graph()
    files = write_mir(graph, tmp_path / "g.mir")
    assert [f.name for f in files] == ["g.npz", "g.mir"]
    assert np.load(files[0])["odd/na me"].shape == (700, 800)
    again = read_mir(tmp_path / "g.mir")
    everything_equal(graph, again)
    large = next(op.attrs["value"] for op in again.walk("const") if op.result.name == "odd/na me")
    assert isinstance(large, onnx_ir.LazyTensor)
    first = [f.read_bytes() for f in files]
    write_mir(graph, tmp_path / "g.mir")
    assert [f.read_bytes() for f in files] == first


def test_weights_of_the_source_model_are_referred_to(tmp_path: Path) -> None:
    write_onnx(weights_graph(), tmp_path / "model.onnx")
    graph = read_onnx(tmp_path / "model.onnx")
    changed = next(op for op in graph.walk("const") if op.result.name == "bias")
    changed.set_attr("value", from_array(np.arange(800, dtype=np.float32) + 1))
    (tmp_path / "sub").mkdir()
    files = write_mir(graph, tmp_path / "sub" / "g.mir", source=tmp_path / "model.onnx")
    assert 'weights "../model.onnx"\nweights "g.npz"' in files[1].read_text()
    assert np.load(files[0]).files == ["bias_1"]
    everything_equal(graph, read_mir(tmp_path / "sub" / "g.mir"))


def test_weights_may_come_from_arrays_and_compressed_files(tmp_path: Path) -> None:
    array = np.arange(864, dtype=np.int64).astype(np.int8).reshape(32, 3, 3, 3)
    np.savez_compressed(tmp_path / "w.npz", allow_pickle=False, **{"conv0.weight": array})
    one = parse(TINY, weights={"conv0.weight": array})
    two = parse(TINY, weights=tmp_path / "w.npz")
    everything_equal(one, two)
    with pytest.raises(SourceError, match=r"it is float32\[864\] where i8\[32,3,3,3\] is stated"):
        parse(TINY, weights={"conv0.weight": np.zeros(864, np.float32)})
    with pytest.raises(SourceError, match=r"hold no @conv0\.weight"):
        parse(TINY, weights={})


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut"])
def test_a_damaged_weights_file_is_told(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"not a readable \.npz file"):
        parse(TINY, weights=tmp_path / "w.npz")


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.mir").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is no text"):
        read_mir(tmp_path / "x.mir")
    with pytest.raises(InputError, match="no such file"):
        read_mir(tmp_path / "y.mir")
    with pytest.raises(InputError, match="is a folder"):
        read_mir(tmp_path)
