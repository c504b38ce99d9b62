"""`.mir` text: everything survives it, it looks as documented, and its faults are told with their place."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import graphs, random_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from round_trip import TINY, round_trip

from memoptc.ir.core import AttrRef, EmptyList, Function, Graph, Loc, ModelInfo, Op, Output, Value
from memoptc.ir.diagnostics import SourceError
from memoptc.ir.dim_text import parse_dim
from memoptc.ir.dims import Sym, maximum, minimum
from memoptc.ir.mir import print_graph
from memoptc.ir.parser import parse
from memoptc.ir.printer import print_op
from memoptc.ir.tensors import from_array
from memoptc.ir.types import (
    DType,
    MapType,
    OpaqueType,
    OptionalType,
    SequenceType,
    SparseTensorType,
    TensorType,
    Type,
)
from memoptc.ir.verifier import VerifyError, verify

F32 = TensorType(DType.FLOAT, (2,))
ERRORS = Path(__file__).parent.parent / "errors"


def one_op(attrs: dict[str, Any], result: Type | None = F32) -> Graph:
    graph = Graph("g", ModelInfo())
    x = graph.add_input("x", F32)
    op = graph.append(Op("Thing", [x], [result], attrs, domain="my.ops", result_names=["y"]))
    graph.set_outputs([op.result])
    return graph


def attr_after(value: Any) -> Any:
    (op,) = round_trip(one_op({"a": value})).walk("my.ops::Thing")
    return op.attrs["a"]


# -- how it looks ---------------------------------------------------------------------------------------


def test_the_documented_example_is_the_canonical_spelling() -> None:
    weight = from_array(np.arange(864, dtype=np.int64).astype(np.int8).reshape(32, 3, 3, 3))
    graph = parse(TINY, weights={"conv0.weight": weight})
    (w, _, dequantize, conv) = graph.ops
    assert w.attrs["value"] is weight
    assert (dequantize.name, dequantize.loc.nodes) == ("/conv0/Conv", ("/conv0/Conv",))
    assert conv.attrs["pads"] == (1, 1, 1, 1)
    assert graph.inputs[0].type == TensorType(DType.FLOAT, (Sym("N"), 3, 224, 224))
    assert graph.outputs_info == [Output("c", conv.result.type)]
    assert print_graph(graph, weights=lambda tensor, hint: "conv0.weight") == TINY


def test_other_ways_to_write_mean_the_same() -> None:
    free = """graph(%"x" :f32[ 2 , N ])->(y:?){ // a comment
        %y=com.microsoft::Gelu(%x)  ()=Print(%y) return %y}"""
    graph = parse(free)
    assert [op.key for op in graph.ops] == ["com.microsoft::Gelu", "Print"]
    assert graph.outputs_info == [Output("y", None)]
    round_trip(graph)


def test_values_of_one_name_are_numbered_apart() -> None:
    graph = Graph("g", ModelInfo())
    value = graph.add_input("x", F32)
    for _ in range(2):
        value = graph.append(Op("Relu", [value], [F32], result_names=["x"])).result
    graph.set_outputs([value])
    assert "%x#2 = Relu(%x#1)" in print_graph(graph)
    assert [v.name for op in round_trip(graph).ops for v in op.results] == ["x", "x"]


def test_elided_text_is_refused_with_the_way_out() -> None:
    graph = Graph("g", ModelInfo())
    graph.set_outputs([graph.const(from_array(np.arange(100)), "w")])
    text = print_graph(graph, weights="elide")
    assert "value=dense<...>" in text
    with pytest.raises(SourceError, match="left out when the text was printed") as caught:
        parse(text)
    assert "write_mir" in caught.value.hint


# -- everything survives ------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(graphs(25))
def test_random_graphs_survive(graph: Graph) -> None:
    assert verify(graph) == []
    round_trip(graph)


ODD = ("", "a b", 'quote"d', "back\\slash", "%", "ünï·code", "/a//b", "x#1", "new\nline", "return", "1", "_", "a::b:0")


def decorate(graph: Graph, seed: int) -> Graph:
    """Give everything in a graph odd names, notes, locations and spellings."""
    rng = random.Random(seed)

    def text() -> str:
        return rng.choice(ODD) + (str(rng.randrange(9)) if rng.random() < 0.5 else "")

    def notes() -> dict[str, str]:
        return {text(): text() for _ in range(rng.randrange(3))}

    def value(v: Value) -> None:
        v.name, v.doc, v.metadata = text(), text() if rng.random() < 0.3 else "", notes()
        if isinstance(v.type, TensorType) and v.type.shape and rng.random() < 0.3 and not v.tensor:
            dims = tuple(d.spelled(text()) if isinstance(d, Sym) else d for d in v.type.shape)
            axes = tuple(text() for _ in dims) if rng.random() < 0.5 else ()
            v.type = TensorType(v.type.dtype, dims, text(), axes)

    def inside(g: Graph) -> None:
        g.doc, g.metadata = text(), notes()
        for v in g.inputs:
            value(v)
        for op in g.ops:
            op.name, op.doc, op.metadata = text(), text(), notes()
            rules = tuple(text() for _ in range(rng.randrange(3)))
            op.loc = Loc(tuple(text() for _ in range(rng.randrange(3))), rules, text(), rng.randrange(9), 7)
            for v in op.results:
                value(v)
                if not v.has_uses and rng.random() < 0.3:
                    v.omitted, v.name = True, ""
            for region in op.regions.values():
                inside(region)
        infos = [Output(text(), rng.choice([v.type, None]), text(), notes()) for v in g.outputs]
        g.set_outputs(g.outputs, infos)

    inside(graph)
    info = graph.info
    info.producer_name, info.producer_version, info.domain, info.doc = text(), text(), text(), text()
    info.model_version, info.metadata, info.source_path, info.source_sha256 = 7, notes(), text(), "ab"
    info.opset_imports[text()] = 3
    info.opaque = {"training_info": (b"\x00\xff", b"")}
    return graph


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 15))
def test_odd_names_and_notes_survive(seed: int, size: int) -> None:
    graph = decorate(random_graph(seed, size), seed)
    again = round_trip(graph, positions=True)
    for a, b in zip(graph.walk(), again.walk(), strict=True):
        assert a.loc == b.loc


@pytest.mark.parametrize(
    "value",
    [
        0, -1, 2**63 - 1, 0.1, 1.0, -0.0, 1e-45, 3.4028234663852886e38, 1e20, float("inf"), float("-inf"),
        "", 'a "b"\n\\', b"\xff\x00", (1, 2), (1, 2.5), (0.1, float("inf")), ("a", "b"), (b"\xff", b""),
        AttrRef("alpha", "FLOAT"), AttrRef("odd name", "INTS"), EmptyList("STRINGS"), F32, (F32, None),
        SequenceType(None), TensorType(DType.UNDEFINED, None),
    ],
)  # fmt: skip
def test_attributes_survive(value: Any) -> None:
    found = attr_after(value)
    assert repr(found) == repr(np.float32(value).item() if isinstance(value, float) else found)
    assert type(found) is type(value)


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7F800001, 0xFFC00000, 0xFFFFFFFF])
def test_nan_attributes_keep_their_bits(bits: int) -> None:
    value = np.asarray([bits], np.uint32).view(np.float32)[0]
    found = np.float32(attr_after(float(value)))
    assert found.view(np.uint32) == np.float32(float(value)).view(np.uint32)


def test_sparse_tensors_survive() -> None:
    values = onnx.helper.make_tensor("values", onnx.TensorProto.FLOAT, [2], [1.0, 2.0])
    indices = onnx.helper.make_tensor("indices", onnx.TensorProto.INT64, [2], [0, 3])
    sparse = onnx.helper.make_sparse_tensor(values, indices, [5])
    assert attr_after(sparse) == sparse
    assert attr_after((sparse, sparse)) == (sparse, sparse)


TYPES: list[Type | None] = [
    None,
    TensorType(DType.FLOAT, None),
    TensorType(DType.STRING, ()),
    TensorType(DType.BOOL, (None, 0, Sym("N"))),
    TensorType(DType.FLOAT, (parse_dim("2*N+1"), parse_dim("(H+1)//2"), parse_dim("-N+M*N//3"), parse_dim("N%4"))),
    TensorType(DType.FLOAT, (minimum(Sym("N"), 4), maximum(Sym("N") * 2, Sym("M") + 1))),
    TensorType(DType.FLOAT, (Sym("batch size"), Sym("a,b]") * 2 + Sym("class"), Sym("x", '?"'), Sym("y", ""))),
    TensorType(DType.INT4, (3,), "IMAGE", ("DATA_CHANNEL",)),
    SparseTensorType(DType.DOUBLE, (3, Sym("N"))),
    SequenceType(TensorType(DType.INT64, (Sym("N"),)), "LIST"),
    OptionalType(SequenceType(None)),
    MapType(DType.INT64, TensorType(DType.FLOAT, ())),
    OpaqueType("my.domain", "thing", "WHAT"),
    *(TensorType(dtype, (2,)) for dtype in DType),
]


@pytest.mark.parametrize("type_", TYPES, ids=str)
def test_types_survive(type_: Type | None) -> None:
    again = round_trip(one_op({}, type_))
    assert next(again.ops).result.type == type_


def test_functions_survive() -> None:
    graph = one_op({"alpha": 1.0})
    body = Graph("F")
    a, b = body.add_input("a"), body.add_input("b", F32)
    op = body.append(Op("LeakyRelu", [a], [None], {"alpha": AttrRef("alpha", "FLOAT")}, result_names=["c"]))
    add = body.append(Op("Add", [op.result, b], [F32], result_names=["d"]))
    body.set_outputs([add.result], [Output("d")])
    for overload in ("", "wide"):
        attrs = {"alpha": 0.1, "must": None, "list": EmptyList("INTS")}
        function = Function("my.ops", "Thing", overload, body, attrs, {"": 18, "x": 1}, "doc", {"k": "v"})
        graph.info.functions["my.ops", "Thing", overload] = function
    body.doc = "of the body"
    again = round_trip(graph)
    assert list(again.info.functions) == [("my.ops", "Thing", ""), ("my.ops", "Thing", "wide")]


# -- faults and places --------------------------------------------------------------------------------


def sections() -> Iterator[Any]:
    for file in sorted(ERRORS.glob("*.mir")):
        line = 1
        for number, text in enumerate(re.split(r"(?m)^// ----\n", file.read_text(encoding="utf-8"))):
            yield pytest.param(file, line, text, id=f"{file.stem}-{number}")
            line += text.count("\n") + 1


def faults(text: str, file: Path, first_line: int) -> tuple[list[tuple[int, str]], str]:
    """Give (line, what) of each fault that parser or verifier find, and the whole message."""
    try:
        verify(parse(text, file=str(file), first_line=first_line), tolerated=())
    except SourceError as e:
        return [(e.line, e.what)], str(e)
    except VerifyError as e:
        return [(f.op.loc.line, f.what) for f in e.faults if f.op is not None], str(e)
    return [], ""


@pytest.mark.parametrize(("file", "first_line", "text"), list(sections()))
def test_errors_are_told_where_they_are(file: Path, first_line: int, text: str) -> None:
    expected = []
    for number, content in enumerate(text.split("\n"), first_line):
        if found := re.search(r"// expect-error@\+(\d+): (.*)", content):
            expected.append((number + int(found[1]), found[2]))
    assert expected, "every section of tests/errors expects something"
    told, message = faults(text, file, first_line)
    assert [line for line, _ in told] == [line for line, _ in expected]
    for (line, what), (_, wanted) in zip(told, expected, strict=True):
        assert wanted in what
        shown = file.read_text(encoding="utf-8").split("\n")[line - 1]
        assert re.search(rf"{re.escape(str(file))}:{line}:\d+: .*\n{re.escape(shown)}\n *\^", message)


def test_the_caret_points_into_a_type() -> None:
    with pytest.raises(SourceError) as caught:
        parse("graph(%x: f32[2, N*]) -> () {\n  return\n}", file="a.mir")
    assert str(caught.value) == "a.mir:1:18: not a dimension: 'N*'\ngraph(%x: f32[2, N*]) -> () {\n" + " " * 17 + "^"


def test_a_misspelt_value_gets_a_suggestion() -> None:
    with pytest.raises(SourceError) as caught:
        parse("graph(%image: f32[2]) -> (?) {\n  return %imgae\n}")
    assert caught.value.hint == "Did you mean %image?"


def test_parsed_ops_know_their_place() -> None:
    graph = parse(TINY, weights={"conv0.weight": np.zeros((32, 3, 3, 3), np.int8)}, file="tiny.mir", first_line=10)
    conv = next(graph.walk("Conv"))
    assert (conv.loc.file, conv.loc.line, conv.loc.col) == ("tiny.mir", 16, 3)


def test_one_op_for_people() -> None:
    graph = parse(TINY, weights={"conv0.weight": np.zeros((32, 3, 3, 3), np.int8)})
    assert print_op(next(graph.ops)) == "%w = const() {value=dense<...>} : i8[32,3,3,3]"


def test_ten_thousand_ops_take_seconds() -> None:
    """About 1 s each way where this was written; the limit only catches a quadratic step."""
    graph = Graph("g", ModelInfo())
    value = graph.add_input("x", F32)
    for index in range(10_000):
        name = f"/layer{index}/Relu"
        value = graph.append(Op("Relu", [value], [F32], result_names=[f"v{index}"], name=name, loc=Loc((name,)))).result
    graph.set_outputs([value])
    begin = time.process_time()
    round_trip(graph)
    verify(graph)
    assert time.process_time() - begin < 20
