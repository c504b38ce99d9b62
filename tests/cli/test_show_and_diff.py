"""Graphs as pages, where coded nodes come from, reports side by side, and limits of `verify`."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import onnx.parser
import pytest
from accuracy_models import CNN, DATA

from memoptc.cli.main import main


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coded")
    words = ["--no-measure", "--verify", "fast", "--config", "none", "-q"]
    data = [w for name, path in DATA.items() for w in (f"--{name}", str(path))]
    for name, more in {"a": ["-O1"], "b": ["-O1", "--target", "int8", *data]}.items():
        out = folder / f"{name}.onnx"
        assert main([str(CNN), str(out), *words, *more, "--report", str(folder / f"{name}.json")]) == 0
    return folder


def test_text_and_numbers_of_less_than_a_byte_have_pages_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = '<ir_version: 10, opset_import: ["": 21]> g (string[3] x, float[3] z) => (string[3] y, int4[3] q) '
    model = onnx.parser.parse_model(f"{text} {{ y = Identity(x) i = Cast <to = 22> (z) q = Identity(i) }}")
    onnx.save(model, tmp_path / "m.onnx")
    assert main(["show", str(tmp_path / "m.onnx"), "--json", "--config", "none"]) == 0
    assert [row["result_bytes"] for row in json.loads(capsys.readouterr().out)["nodes"]] == [None, 2, 2]


def test_every_node_that_codes_says_what_it_is_for(coded: Path) -> None:
    original = {node.name for node in onnx.load(CNN).graph.node}
    count = 0
    for node in onnx.load(coded / "b.onnx").graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            told = {p.key: p.value for p in node.metadata_props}
            count += 1
            assert "quantize" in told["memoptc.rules"]
            assert set(told["memoptc.nodes"].split(",")) <= original
    assert count > 20


def test_a_graph_is_a_page(coded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "graph.html"
    assert main(["show", str(coded / "b.onnx"), "-o", str(page), "--dim", "batch=4", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["dims"] == {"batch": 4}
    conv = next(node for node in told["nodes"] if node["operator"] == "Conv")
    assert conv["result_bytes"] > 0
    coder = next(node for node in told["nodes"] if node["operator"] == "QuantizeLinear")
    assert coder["rules"] == ["quantize"]
    text = page.read_text()
    assert "batch=4" in text
    assert all(node["name"] in text for node in told["nodes"])
    assert "http" not in text
    assert main(["show", str(CNN), "-o", str(tmp_path / "graph.pdf")]) == 2


def test_reports_stand_side_by_side(coded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for ending in ("onnx", "json"):
        assert main(["diff", str(coded / f"a.{ending}"), str(coded / f"b.{ending}"), "--json"]) == 3
        rows = {row["what"]: row for row in json.loads(capsys.readouterr().out)["reports"]}
        assert (rows["option target"]["before"], rows["option target"]["after"]) == ("float32", "int8")
        assert rows["file"]["before"] != rows["file"]["after"]
        assert any(what.startswith("pass quantize") for what in rows)
    assert main(["diff", str(coded / "a.json"), str(coded / "a.json"), "-q"]) == 0
    other = json.loads((coded / "a.json").read_text())
    first = other["passes"][0]
    other["passes"] = [first, *other["passes"]]  # what ran twice did twice as much
    first["stats"] = {"looked": 1}
    (coded / "c.json").write_text(json.dumps(other))
    assert main(["diff", str(coded / "a.json"), str(coded / "c.json"), "--json"]) == 3
    rows = {row["what"]: row for row in json.loads(capsys.readouterr().out)["reports"]}
    assert "looked 2" in rows[f"pass {first['name']}"]["after"]
    assert main(["diff", str(CNN), str(coded / "b.onnx"), "--json"]) == 3  # one of them has no report
    assert json.loads(capsys.readouterr().out)["reports"] == []


def test_verify_asks_for_a_least_sqnr(coded: Path) -> None:
    words = ["verify", str(CNN), str(coded / "b.onnx"), "--validation", str(DATA["validation"]), "--min-sqnr"]
    assert main([*words, "20"]) == 0
    assert main([*words, "90"]) == 3
