"""Made-up inputs run: indices lie inside tables, symbols agree, shapes and lengths make sense."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from decoders import Style, decoder
from onnx import TensorProto, helper
from runtime_models import convolutions, mlp, normal, parse

from memoptc.ir.diagnostics import InputError
from memoptc.ir.onnx_io import read_onnx
from memoptc.runtime.evaluate import Evaluator
from memoptc.runtime.feeds import Generated, find_feeds
from memoptc.runtime.inputs import InputMaker
from memoptc.runtime.roles import find_roles


def feeds(model: onnx.ModelProto, count: int = 3, **options: object) -> list[Generated]:
    return find_feeds(read_onnx(model), Evaluator(model), count=count, **options)  # type: ignore[arg-type]


def test_the_same_seed_gives_the_same_feeds() -> None:
    first, again, other = (feeds(mlp(), seed=seed) for seed in (1, 1, 2))
    for a, b in zip(first, again, strict=True):
        assert np.array_equal(a.feed["x"], b.feed["x"])
    assert not np.array_equal(first[0].feed["x"], other[0].feed["x"])


def test_symbolic_extents_vary_unless_given() -> None:
    assert len({f.dims["N"] for f in feeds(mlp())}) == 3
    assert {f.feed["x"].shape for f in feeds(mlp(), dims={"N": 8})} == {(8, 16)}
    with pytest.raises(InputError, match="'M' is not a symbolic dimension") as caught:
        feeds(mlp(), dims={"M": 8})
    assert "N" in caught.value.hint


@pytest.mark.parametrize(
    "path",
    [
        "i = Identity(ids)",
        "a = Cast <to = 6> (ids) b = Unsqueeze(a, axis) c = Squeeze(b, axis) i = Cast <to = 7> (c)",
        "a = Add(ids, one) i = Sub(a, one)",
        "a = Concat <axis = 1> (ids, ids) i = Slice(a, zero, two, one)",
        "a = Cast <to = 1> (ids) b = Transpose <perm = [1, 0]> (a) i = Cast <to = 7> (b)",
    ],
)
def test_indices_stay_inside_their_table(path: str) -> None:
    model = parse(
        f"g (int64[B, S] ids) => (float[X, Y, Z] y) {{ {path} y = Gather(table, i) }}",
        table=normal(5, 3),
        **{k: np.array([v], np.int64) for k, v in {"axis": 2, "one": 1, "zero": 0, "two": 2}.items()},
    )
    assert 5 in find_roles(read_onnx(model))["ids"].extents
    for found in feeds(model, 6):
        assert found.style == "typical"
        assert 0 <= found.feed["ids"].min() <= found.feed["ids"].max() < 5


def test_indices_are_followed_into_subgraphs() -> None:
    model = parse(
        """g (int64[B] ids, bool flag) => (float[B, 3] y) {
             y = If (flag) <then_branch = t () => (float[B, 3] a) { a = Gather(table, ids) },
                            else_branch = e () => (float[B, 3] b) { c = Gather(table, ids) b = Neg(c) }>
           }""",
        table=normal(4, 3),
    )
    assert all(found.feed["ids"].max() < 4 for found in feeds(model, 6))


def test_attributes_that_calls_of_a_function_give_restrict_nothing_in_its_body() -> None:
    body = [helper.make_node("Gather", ["table", "ids"], ["y"]), helper.make_node("Cast", ["y"], ["z"])]
    for node, name, kind in zip(body, ("axis", "to"), (onnx.AttributeProto.INT,) * 2, strict=True):
        node.attribute.append(onnx.AttributeProto(name=name, ref_attr_name=name, type=kind))
    function = helper.make_function(
        "local", "Look", ["table", "ids"], ["z"], body, [helper.make_opsetid("", 21)], ["axis", "to"]
    )
    graph = helper.make_graph(
        [helper.make_node("Look", ["table", "ids"], ["z"], domain="local", axis=0, to=TensorProto.INT64)],
        "g",
        [helper.make_tensor_value_info(n, TensorProto.INT64, [n]) for n in ("table", "ids")],
        [helper.make_tensor_value_info("z", TensorProto.INT64, ["ids"])],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("local", 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=[function])
    assert set(InputMaker(read_onnx(model)).make({"table": 2, "ids": 3})) == {"table", "ids"}


def test_an_operand_of_unknown_shape_requires_nothing() -> None:
    model = parse(
        """g (float[B, H, W] x) => (float[B, h, w] y) {
             s = SequenceConstruct (x, x) t = SequenceAt (s, at) y = Slice (t, starts, ends, axes)
           }""",
        at=np.array(0), starts=np.array([1, 1]), ends=np.array([-1, -1]), axes=np.array([1, 2]),
    )  # fmt: skip
    assert feeds(model, 1)[0].feed["x"].ndim == 3


def test_an_index_less_one_may_reach_the_extent() -> None:
    model = parse(
        "g (int64[B] ids) => (float[B, 3] y) { a = Sub(ids, one) b = Max(a, zero) y = Gather(table, b) }",
        table=normal(2, 3),
        one=np.array(1, np.int64),
        zero=np.array(0, np.int64),
    )
    assert {int(v) for f in feeds(model, 9) for v in f.feed["ids"]} == {0, 1, 2}


def test_an_index_plus_two_leaves_room() -> None:
    model = parse(
        "g (int64[B] ids) => (float[B, 3] y) { a = Add(ids, two) y = Gather(table, a) }",
        table=normal(4, 3),
        two=np.array(2, np.int64),
    )
    assert all(found.feed["ids"].max() <= 1 for found in feeds(model, 4))


def test_masks_lengths_and_compared_constants() -> None:
    mask = parse(
        "g (float[B, S] x, int64[B, S] m) => (float[B, S] y) "
        "{ a = Cast <to = 1> (m) b = Sub(one, a) c = Mul(b, low) y = Add(x, c) }",
        one=np.array(1, np.float32),
        low=np.array(-1e4, np.float32),
    )
    found = feeds(mask)
    assert {int(v) for f in found for v in np.unique(f.feed["m"])} == {0, 1}
    assert found[0].feed["m"][0].all()
    rate = parse(
        """g (float[N] x, int64 sr) => (float[N] y) {
             is16 = Equal(sr, k16)
             y = If (is16) <then_branch = t () => (float[N] a) { a = Neg(x) },
                            else_branch = e () => (float[N] b) { n = Cast <to = 6> (sr) b = Abs(x) }>
           }""",
        k16=np.array(16000, np.int64),
    )
    assert feeds(rate)[0].feed["sr"] == 16000
    lengths = parse(
        """g (float[S, B, 3] x, int64[B] n) => (float[S, B, 3] y) {
             y = ReverseSequence <time_axis = 0, batch_axis = 1> (x, n)
           }"""
    )
    for f in feeds(lengths):
        assert 1 <= f.feed["n"].min() <= f.feed["n"].max() == f.feed["x"].shape[0]


def test_lengths_that_size_a_mask_are_as_long_as_what_it_masks() -> None:
    """A speech encoder's padding mask: `arange(max(lengths)) < lengths`, which no shape ties to the frames."""
    model = parse(
        """g (float[B, S, 3] x, int64[B] n) => (float[B, S, 3] y) {
             m = ReduceMax <keepdims = 0> (n)
             r = Range(zero, m, one)
             column = Unsqueeze(n, last)
             keep = Less(r, column)
             f = Cast <to = 1> (keep)
             g = Unsqueeze(f, twice)
             y = Mul(x, g)
           }""",
        zero=np.array(0, np.int64),
        one=np.array(1, np.int64),
        last=np.array([1], np.int64),
        twice=np.array([2], np.int64),
    )
    found = feeds(model)
    assert {f.style for f in found} == {"typical"}
    assert len({f.feed["x"].shape for f in found}) == 3
    assert all(f.feed["n"].max() == f.feed["x"].shape[1] for f in found)
    assert feeds(model, 1, dims={"B": 1, "S": 512})[0].feed["n"].tolist() == [512]


def test_shapes_axes_and_counts() -> None:
    for text in (
        "g (float[4, 6] x, int64[2] s) => (float[a, b] y) { y = Reshape(x, s) }",
        "g (float[4, 6] x, int64[2] s) => (float[8, 3] y) { y = Reshape(x, s) }",
        "g (float[4, 6] x, int64[1] s) => (float[a, b] y) { y, i = TopK(x, s) }",
        "g (float[4, 6] x, int64[2] s, int64[2] e) => (float[a, b] y) { y = Slice(x, s, e) }",
        "g (float[4, 6] x, int64[4] s) => (float[a, b] y) { y = Pad(x, s) }",
        "g (float[4, 6] x, int64[2] s) => (float[a, b] y) { y = Tile(x, s) }",
        "g (int64 s) => (int64[a] y) { o = Constant <value_int = 1> () z = Sub(o, o) y = Range(z, s, o) }",
    ):
        model = parse(text)
        assert len(feeds(model)) == 3


def test_models_with_a_fixed_inner_batch_and_wanted_extents() -> None:
    one = parse("g (float[N, 6] x) => (float[a, b] y) { y = Reshape(x, s) }", s=np.array([1, 6], np.int64))
    assert {f.dims["N"] for f in feeds(one)} == {1}
    assert all(f.feed["x"].shape[1:] == (3, 16, 16) for f in feeds(convolutions()))


def test_strings_and_sequences() -> None:
    model = onnx.ModelProto()
    model.CopyFrom(parse("g (string[N] x, seq(float[K]) s) => (string[N] y, float[L] z) { y = Identity(x) "
                         "z = ConcatFromSequence <axis = 0> (s) }"))  # fmt: skip
    (first, *_) = feeds(model)
    assert first.feed["x"].dtype == object
    assert len(first.feed["s"]) == 2


def test_no_valid_inputs_is_said() -> None:
    model = parse(
        "g (float[N] x) => (float[a] y) { s = Shape(x) z = Sub(s, s) i = Add(z, nine) y = Gather(t, i) }",
        t=normal(2),
        nine=np.array([9], np.int64),
    )
    with pytest.raises(InputError, match="No inputs were found") as caught:
        feeds(model)
    assert "--dim N=N" in caught.value.hint
    assert "--validation" in caught.value.hint


def test_extents_of_expressions_follow_their_symbols() -> None:
    maker = InputMaker(read_onnx(mlp()), {"N": 3})
    assert maker.make(next(iter(maker.bindings())))["x"].shape == (3, 16)
    assert not maker.is_dynamic


DECODERS = [
    Style(),
    Style(norm="layer", rotary="none", positions="learned", kv=4, mask="triangle", gated=False, symbols="unnamed"),
    Style(rotary="interleaved", mask="infinite", symbols="apart", names="odd"),
    Style(rotary="table", cache="stacked", symbols="apart"),
    Style(rotary="partial", cache="flat", mask="causal", positions="computed", symbols="unnamed"),
    Style(mask="positions", names="legacy", symbols="unnamed"),
    Style(norm="layer_parts", mask="none", names="past", scale_keys=True, qk_norm=True, symbols="apart"),
]


@pytest.mark.parametrize("style", DECODERS, ids=lambda s: f"{s.cache}-{s.rotary}-{s.mask}-{s.symbols}")
def test_inputs_of_a_decoder_belong_together(style: Style) -> None:
    model = decoder(style)
    axis = {"concat": 2, "stacked": 3, "flat": 4}[style.cache]
    cache = next(i.name for i in model.graph.input if len(i.type.tensor_type.shape.dim) > 3)
    seen = []
    for found in feeds(model):
        batch, steps = found.feed["input_ids"].shape
        past = found.feed[cache].shape[axis]
        seen.append((steps, past))
        assert found.style == "typical"
        if "attention_mask" in found.feed:
            assert found.feed["attention_mask"].shape == (batch, past + steps)
        if "position_ids" in found.feed:
            assert np.array_equal(found.feed["position_ids"], np.tile(np.arange(past, past + steps), (batch, 1)))
    assert any(past == 0 for _, past in seen)
    assert any(steps == 1 and past > 0 for steps, past in seen)
    assert any(steps > 1 and past > 0 for steps, past in seen)


def test_names_that_mean_two_extents_are_taken_apart() -> None:
    text = "a = Gather(x, i) z = Concat <axis = 1> (a, y)"
    model = parse(f"g (float[N, 4] x, float[N, 5] y) => (float[a, b] z) {{ {text} }}", i=np.array([0, 4], np.int64))
    with pytest.raises(InputError):
        feeds(model, dims={"N": 5})
    found = feeds(model)[0]
    assert found.feed["y"].shape == (2, 5)
    assert found.feed["x"].shape[0] >= 5


def test_further_samples_of_names_taken_apart_keep_their_extents() -> None:
    text = "a = Gather(x, i) z = Concat <axis = 1> (a, y)"
    model = parse(f"g (float[N, 4] x, float[N, 5] y) => (float[a, b] z) {{ {text} }}", i=np.array([0, 4], np.int64))
    for found in feeds(model, count=40):
        assert found.feed["y"].shape[0] == 2
        assert found.feed["x"].shape[0] >= 5
        assert found.dims.keys() == {"N"}


def test_extents_that_depend_on_each_other_are_solved() -> None:
    for text, dims in (
        # a mask is read at computed places
        ("g (float[P, 4] p, float[S, 4] x, int64[M] m) => (float[a, 4] y, int64[b] z) {"
         "y = Concat <axis = 0> (p, x) s = Shape <end = 1> (y) n = Squeeze(s) r = Range(zero, n, one) "
         "z = Gather(m, r) }",
         lambda f: f["m"].shape[0] == f["p"].shape[0] + f["x"].shape[0]),
        # a product, a reshape and an expansion
        ("g (float[A, B] x, float[C, D] y) => (float[a, b] z) { z = MatMul(x, y) }",
         lambda f: f["x"].shape[1] == f["y"].shape[0]),
        ("g (float[A, 6] x, float[B, 3] y) => (float[a, b] z) {"
         "s = Shape(y) r = Reshape(x, s) z = Add(r, y) }", lambda f: f["y"].shape[0] == 2 * f["x"].shape[0]),
        ("g (float[A, 1] x, float[B, C] y) => (float[a, b] z) {"
         "s = Shape(y) r = Expand(x, s) z = Concat <axis = 1> (r, y) }", lambda f: f["x"].shape[0] in (1, len(f["y"]))),
        # indices are computed from extents, the table is small
        ("g (int64[N, S] x) => (float[a, b] y) { s = Shape <start = 1> (x) n = Squeeze(s) r = Range(zero, n, one)"
         "y = Gather(table, r) }", lambda f: f["x"].shape[1] <= 5),
        ("g (int64[N, S] x) => (float[a, b] y) { s = Shape <start = 1> (x) n = Squeeze(s) last = Sub(n, one)"
         "r = Range(last, less, less) y = Gather(table, r) }", lambda f: f["x"].shape[1] <= 5),
    ):  # fmt: skip
        numbers = {"zero": 0, "one": 1, "less": -1}
        model = parse(text, table=normal(5, 3), **{name: np.array(n, np.int64) for name, n in numbers.items()})
        for found in feeds(model):
            assert dims(found.feed), text
            assert found.style == "typical"
