"""Extents of made-up inputs: what windows, weights, functions and other operands ask of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper
from runtime_models import normal, parse

from memoptc.ir.diagnostics import InputError
from memoptc.ir.onnx_io import read_onnx
from memoptc.runtime.design_points import effort
from memoptc.runtime.evaluate import Evaluator
from memoptc.runtime.feeds import Generated, _affordable_first, find_feeds
from memoptc.runtime.inputs import InputMaker
from memoptc.runtime.memory.liveness import liveness


def feeds(model: onnx.ModelProto, count: int = 3, **options: object) -> list[Generated]:
    return find_feeds(read_onnx(model), Evaluator(model), count=count, **options)  # type: ignore[arg-type]


def test_extents_grow_until_every_window_fits() -> None:
    model = parse(
        "g (float[B, 1, T] x) => (float[a, b, c] y) { c = Conv <strides = [5]> (x, w) d = Conv <strides = [4]> (c, v)"
        "y = MaxPool <kernel_shape = [9]> (d) }",
        w=normal(2, 1, 10),
        v=normal(2, 2, 3),
    )
    assert all(f.style == "typical" and f.feed["x"].shape[2] > 16 for f in feeds(model))
    assert InputMaker(read_onnx(model)).consistent({"B": 1, "T": 3}) is not None
    with pytest.raises(InputError, match="Invalid input shape"):
        feeds(model, dims={"T": 16})


@pytest.mark.parametrize(
    ("text", "decided"),
    [
        # What a slice leaves of a strided extent, in a shape that the exporter wrote down
        ("g (float[B, 1, T] x) => (float[a] y) { c = Conv <strides = [40]> (x, w) r = Slice(c, one, end, two)"
         "z = Reshape(r, audio) y = Squeeze(z, zero) }", {}),
        ("g (float[B, 1, H, W] x) => (float[a, b] y) { c = Conv <strides = [4, 4]> (x, square) y = Reshape(c, image) }",
         {}),
        ("g (float[B, 1, H, W] x) => (float[a, b] y) { c = Conv <strides = [4, 4]> (x, square) y = Reshape(c, image) }",
         {"W": 47}),
    ],
)  # fmt: skip
def test_shapes_that_an_exporter_wrote_down_are_solved_for(text: str, decided: dict[str, int]) -> None:
    numbers = {"one": [1], "end": [1 << 40], "two": [2], "zero": [0], "audio": [1, -1, 38], "image": [-1, 96]}
    model = parse(
        text,
        w=normal(2, 1, 80),
        square=normal(1, 1, 3, 3),
        **{name: np.array(value, np.int64) for name, value in numbers.items() if name in text},
    )
    assert all(f.style == "typical" for f in feeds(model, dims=decided))
    assert {k: v for k, v in feeds(model, dims=decided)[0].dims.items() if k in decided} == decided


@pytest.mark.parametrize("rank", [1, 2, 3, 4, 5])
def test_an_input_without_a_declared_shape_gets_the_rank_that_its_reader_takes(rank: int) -> None:
    graph = helper.make_graph(
        [helper.make_node("Transpose", ["x"], ["y"], perm=range(rank))],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert {found.feed["x"].ndim for found in feeds(model)} == {rank}


@pytest.mark.parametrize(("kind", "weight"), [("MatMul", (5, 4)), ("Gemm", (5, 4)), ("Conv", (4, 3, 3, 3))])
def test_an_input_without_a_declared_shape_gets_the_extents_that_a_weight_asks_for(
    kind: str, weight: tuple[int, ...]
) -> None:
    graph = helper.make_graph(
        [helper.make_node(kind, ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ones(weight, np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    wanted = weight[0] if kind != "Conv" else weight[1]
    found = feeds(model)
    assert {f.feed["x"].shape[1] for f in found} == {wanted}
    assert len({f.feed["x"].shape for f in found}) > 1, "other extents vary"


@pytest.mark.parametrize(
    ("text", "shapes", "wanted"),
    [
        ("y = Conv (x, w)", {"x": "N, C, H, W", "w": (4, 3, 3, 3)}, 3),
        ("y = Conv <group = 3> (x, w)", {"x": "N, C, H, W", "w": (6, 2, 3, 3)}, 6),
        ("y = ConvTranspose <group = 3> (x, w)", {"x": "N, C, H, W", "w": (6, 2, 3, 3)}, 6),
        ("y = BatchNormalization (x, w, w, w, w)", {"x": "N, C, H, W", "w": (5,)}, 5),
        ("y = InstanceNormalization (x, w, w)", {"x": "N, C, H, W", "w": (5,)}, 5),
        ("y = LayerNormalization (x, w)", {"x": "N, C", "w": (5,)}, 5),
        ("y = LSTM <hidden_size = 4> (x, w, r)", {"x": "N, B, C", "w": (1, 16, 3), "r": (1, 16, 4)}, 3),
    ],
)
def test_open_channels_are_as_many_as_the_weight_has(text: str, shapes: dict[str, Any], wanted: int) -> None:
    weights = {name: normal(*shape) for name, shape in shapes.items() if name != "x"}
    model = parse(f"g (float[{shapes['x']}] x) => (y) {{ {text} }}", **weights)
    found = feeds(model)
    assert {f.dims["C"] for f in found} == {wanted}
    assert len({f.dims["N"] for f in found}) > 1


def test_numbers_that_are_broadcast_leave_the_extent_open() -> None:
    model = parse("g (float[N, C] x) => (y) { y = LayerNormalization (x, w) }", w=normal(1))
    assert len({f.dims["C"] for f in feeds(model)}) > 1


def test_sizes_below_zero_are_not_planned_with() -> None:
    model = parse("g (float[B, 1, T] x) => (float[a, b, c] y) { y = Conv(x, w) }", w=normal(2, 1, 10))
    graph = InputMaker(read_onnx(model)).typed
    assert liveness(graph, {"B": 1, "T": 3}).unknown == ["y"]


def test_extents_at_which_a_run_takes_too_much_are_left_out() -> None:
    """Memory grows with the fourth power of the extents: most of the usual ones are out of reach."""
    model = parse("""g (float[batch, height, width] x) => (float[batch] y)
        <int64[3] down = {0, -1, 1}, int64[3] across = {0, 1, -1}, int64[2] last = {1, 2}> {
        a = Reshape (x, down)
        b = Reshape (x, across)
        c = Mul (a, b)
        y = ReduceSum <keepdims: int = 0> (c, last)
    }""")
    graph = read_onnx(model)
    maker = InputMaker(graph)
    tried = _affordable_first(maker, list(maker.bindings()))
    efforts = [effort(maker, binding) for binding in tried]
    assert efforts[0] <= 1
    assert max(efforts) <= 16
    assert max(effort(maker, binding) for binding in maker.bindings()) > 1000
    reachable = sum(e <= 1 for e in efforts)
    assert [b for b in maker.bindings() if effort(maker, b) <= 1] == tried[:reachable]
    found = find_feeds(graph, Evaluator(model), count=3)
    assert all(effort(maker, feed.dims) <= 1 for feed in found)


@pytest.mark.parametrize(
    "text",
    [
        "g (float[a, 4] x, float[b] y) => (int64[i, 3] z) { l = Constant <value = int64 {5}> () "
        "o = Constant <value_ints = [0]> () p = Constant <value_ints = [0, 1]> () "
        "q = Unsqueeze (x, o) r = Unsqueeze (y, p) z = NonMaxSuppression (q, r, l) }",
        "g (float[2, 3, 8, 8] x, float[a, 4] r, int64[b] i) => (float[c, 3, 2, 2] z) { "
        'z = RoiAlign <output_height = 2, output_width = 2, mode = "max"> (x, r, i) }',
        "g (float[a, 3, 8, 8] x, float[b, 4, 4, 2] y) => (float[c, 3, 4, 4] z) { z = GridSample (x, y) }",
        "g (float[a, 3, 4, 4] x, int64[b, 3, c, d] y) => (float[a, 3, e, f] z) { "
        "z = MaxUnpool <kernel_shape = [2, 2], strides = [2, 2]> (x, y) }",
    ],
    ids=["boxes and scores", "boxes and their pictures", "pictures and grids", "values and places"],
)
def test_axes_that_an_operator_wants_equally_long_are(text: str) -> None:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    for found in feeds(model):
        assert found.feed


@pytest.mark.parametrize(
    ("text", "ranks"),
    [
        ("c = Conv (x, w) p = GlobalAveragePool (c) f = Flatten (p) y = Gemm (f, b, z)", {"x": 4, "b": 2}),
        ("t = Transpose <perm = [2, 0, 1]> (x) y = Gemm (b, z)", {"x": 3, "b": 2}),
        ("m = MatMul (x, b) y = Transpose <perm = [0, 3, 1, 2]> (m)", {"x": 4}),
    ],
)
def test_inputs_without_a_declared_shape_get_each_its_own_rank(text: str, ranks: dict[str, int]) -> None:
    body = parse(
        f"g (float x, float b{', float z' if 'z)' in text else ''}) => (float y) {{ {text} }}",
        **({"w": normal(4, 3, 3, 3)} if "w)" in text else {}),
    )
    for value in (*body.graph.input, *body.graph.output):
        value.type.tensor_type.ClearField("shape")
    found = feeds(body)
    assert {name: found[0].feed[name].ndim for name in ranks} == ranks


def test_open_channels_inside_a_function_are_as_many_as_the_weight_has() -> None:
    model = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["": 17, "own": 1]>
        g (float[N, C, H, W] x, float[4, 3, 3, 3] w) => (float[a, b, c, d] y) { y = own.block (x, w) }
        <domain: "own", opset_import: ["": 17]>
        block (x, w) => (y) { c = Conv (x, w) y = Relu (c) }""")
    found = feeds(model)
    assert {f.dims["C"] for f in found} == {3}
    assert len({f.dims["H"] for f in found}) > 1
