"""Weights packed ahead lie where kernels that round addresses find their parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from memoptc.runtime.freeze import write_packed
from memoptc.runtime.packed_data import ALIGNMENT, align_parts
from memoptc.runtime.session import Session

WIDTH = 96


def chain(bits: int, count: int = 4) -> onnx.ModelProto:
    """Products with codes, one after the other, in sizes that leave what follows at odd offsets."""
    rng = np.random.default_rng(bits)
    make, nodes, weights, name = onnx.helper, [], [], "x"
    for i in range(count):
        blocks = WIDTH // 32
        arrays = {
            f"q{i}": rng.integers(0, 256, (WIDTH, blocks, 32 * bits // 8), np.uint8),
            f"s{i}": rng.uniform(0.001, 0.01, WIDTH * blocks).astype(np.float32),
            f"z{i}": rng.integers(0, 256, WIDTH * -(-blocks * bits // 8), np.uint8),
            f"b{i}": rng.standard_normal(WIDTH).astype(np.float32),
        }
        weights += [onnx.numpy_helper.from_array(a, n) for n, a in arrays.items()]
        # longer than what is kept in the model, and of an odd size
        weights.append(onnx.numpy_helper.from_array(np.arange(1025 + 2 * i, dtype=np.uint8) % 2, f"odd{i}"))
        operands = [name, f"q{i}", f"s{i}", f"z{i}", "", f"b{i}"]
        attrs = {"K": WIDTH, "N": WIDTH, "bits": bits, "block_size": 32, "accuracy_level": 4}
        nodes.append(make.make_node("MatMulNBits", operands, [f"p{i}"], domain="com.microsoft", **attrs))
        nodes.append(make.make_node("Cast", [f"odd{i}"], [f"c{i}"], to=onnx.TensorProto.FLOAT))
        nodes.append(make.make_node("ReduceMax", [f"c{i}"], [f"m{i}"], keepdims=0))
        nodes.append(make.make_node("Mul", [f"p{i}", f"m{i}"], [f"y{i}"]))
        name = f"y{i}"
    info = make.make_tensor_value_info
    graph = make.make_graph(nodes, "chain", [info("x", 1, ["rows", WIDTH])], [info(name, 1, ["rows", WIDTH])], weights)
    opsets = [make.make_opsetid("", 17), make.make_opsetid("com.microsoft", 1)]
    return make.make_model(graph, opset_imports=opsets, ir_version=9)


def offsets(path: Path) -> list[int]:
    """Of all weights beside a model and of what was packed of them."""
    found = []
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "offset":
                found.append(int(entry.value))
            elif entry.key.startswith("prepacked_"):
                found += [int(part.split(";")[0]) for part in entry.value.split("|")[1:]]
    return found


@pytest.mark.parametrize("bits", [4, 8])
def test_packed_parts_are_aligned_and_give_the_same_bits(tmp_path: Path, bits: int) -> None:
    plain, packed = tmp_path / "plain.onnx", tmp_path / "packed.onnx"
    onnx.save(chain(bits), plain)
    data = write_packed(plain, packed)
    found = offsets(packed)
    assert len(found) > 8
    assert all(at % ALIGNMENT == 0 for at in found)
    assert not align_parts(onnx.load(packed, load_external_data=False), data)
    feed = {"x": np.random.default_rng(0).standard_normal((5, WIDTH)).astype(np.float32)}
    a, b = (Session(p, memory="stock", threads=1).run(None, feed)[0] for p in (plain, packed))
    assert np.isfinite(a).all()
    assert a.tobytes() == b.tobytes()


def test_moving_keeps_the_bytes(tmp_path: Path) -> None:
    data = tmp_path / "w.data"
    data.write_bytes(bytes(range(200)))
    tensor = onnx.TensorProto(name="w", data_type=2, dims=[70], data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (
        ("location", "w.data"), ("offset", "3"), ("length", "70"), ("prepacked_0", "K+1|73;20;0|93;5;0"),
    ):  # fmt: skip
        tensor.external_data.add(key=key, value=value)
    model = onnx.ModelProto(graph=onnx.GraphProto(initializer=[tensor]))
    assert align_parts(model, data)
    entries = {e.key: e.value for e in model.graph.initializer[0].external_data}
    assert (entries["offset"], entries["prepacked_0"]) == ("0", "K+1|128;20;0|192;5;0")
    content = data.read_bytes()
    assert content[:70] == bytes(range(3, 73))
    assert content[128:148] == bytes(range(73, 93))
    assert content[192:197] == bytes(range(93, 98))
