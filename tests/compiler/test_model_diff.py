"""`memoptc diff`: what is gone, what is new, what changed, and nothing where nothing did."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from accuracy_models import CNN

from memoptc.cli.main import main
from memoptc.ir.core import Graph
from memoptc.ir.onnx_io import read_onnx, write_into
from memoptc.ir.parser import parse
from memoptc.model_diff import diff_models

BEFORE = """graph @g(%x: f32[N,4]) -> (f32[N,4]) {
  %a = Relu(%x) : f32[N,4]
  %b = LeakyRelu(%a) {alpha=0.5} : f32[N,4]
  %y = Neg(%b) : f32[N,4]
  return %y
}"""
AFTER = """graph @g(%x: f32[N,4]) -> (f32[N,4]) {
  %b = LeakyRelu(%x) {alpha=0.25} : f32[N,4]
  %c = Abs(%b) : f32[N,4]
  %y = Neg(%c) : f32[N,4]
  return %y
}"""


def test_nodes_are_gone_new_or_changed() -> None:
    found = diff_models(parse(BEFORE), parse(AFTER))
    assert [str(node) for node in found.nodes] == ["- Relu a", "~ LeakyRelu b: alpha 0.5 -> 0.25", "+ Abs c"]
    assert found.operators == {"Abs": (0, 1), "Relu": (1, 0)}
    assert found.ports == []
    assert diff_models(parse(BEFORE), parse(BEFORE)).same
    other = [
        parse(f"graph @g(%x: f32[2]) -> (f32[2]) {{\n %w = const() {{value=[{w},1.0]}} : f32[2]\n"
              " %y = Add(%x, %w) : f32[2]\n return %y\n}")
        for w in (1.0, 2.0)
    ]  # fmt: skip
    assert [str(node) for node in diff_models(*other).nodes] == ["~ Add y: other values of weights"]


def test_operands_order_of_ports_and_nans_count() -> None:
    def model(reads: str, returned: str = "%y, %z") -> Graph:
        return parse(
            "graph @g(%a: f32[2], %b: f32[2]) -> (f32[2], f32[2]) {\n %w = const() {value=[nan,-0.0]} : f32[2]\n"
            f" %y = Sub({reads}) : f32[2]\n %z = Add(%y, %w) : f32[2]\n return {returned}\n}}"
        )

    first = model("%a, %b")
    assert diff_models(first, model("%a, %b")).same
    assert [str(node) for node in diff_models(first, model("%b, %a")).nodes] == [
        "~ Sub y: reads %b instead of %a; reads %a instead of %b"
    ]
    assert diff_models(first, model("%a, %b", "%z, %y")).ports == ["outputs are in another order: z, y"]


def test_the_command_compares_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = read_onnx(CNN)
    first = next(graph.walk("Relu"))
    first.result.replace_by(first.operand)
    first.erase()
    write_into(graph, tmp_path / "b.onnx")
    assert main(["diff", str(CNN), str(CNN)]) == 0
    capsys.readouterr()
    assert main(["diff", str(CNN), str(tmp_path / "b.onnx"), "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert [(node["before"], node["after"]) for node in found["nodes"]] == [("Relu", None)]
    assert found["operators"]["Relu"][0] == found["operators"]["Relu"][1] + 1
    assert found["weight_bytes"][0] == found["weight_bytes"][1]
