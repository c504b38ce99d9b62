"""Planted faults in larger models are reduced to the few nodes that show them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from runtime_models import parse

from memoptc.cli.main import main
from memoptc.ir.diagnostics import InputError
from memoptc.reduction import CommandCheck, reduce_model
from memoptc.reduction.edits import KnownTypes, inline_branch, keep_nodes
from memoptc.reduction.worker import perform

FAULTS = '''
"""Passes that are wrong, each on one small pattern."""


import numpy as np

from memoptc import Context, Pass
from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph


class DropScale(Pass):
    """Forgets a Mul behind a Sigmoid."""

    def run(self, graph: Graph, context: Context) -> None:
        for op in list(graph.walk("Mul")):
            if op.operands[0].op is not None and op.operands[0].op.is_a("Sigmoid"):
                op.result.replace_by(op.operands[0])


class SwapOperands(Pass):
    """Takes Sub for commutative where both operands are computed."""

    def run(self, graph: Graph, context: Context) -> None:
        for op in list(graph.walk("Sub")):
            a, b = op.operands
            if a.op is not None and b.op is not None and not a.op.is_const and not b.op.is_const:
                op.set_operand(0, b)
                op.set_operand(1, a)


class RoundWeights(Pass):
    """Rounds weights of products of more than four columns."""

    def run(self, graph: Graph, context: Context) -> None:
        for op in list(graph.walk("MatMul")):
            weight = op.operands[1].tensor
            if weight is not None and weight.shape.numpy()[1] > 4:
                op.set_operand(1, Builder(graph, before=op).const(np.round(weight.numpy()) + np.float32(1)))


class HangOnPair(Pass):
    """Never ends where a Tanh reads a Concat; sleeps between two instructions of C, so that no bound ends it."""

    def run(self, graph: Graph, context: Context) -> None:
        import time

        for op in graph.walk("Tanh"):
            if op.operand.op is not None and op.operand.op.is_a("Concat"):
                time.sleep(1e6)
'''

FAULTY = {
    "drop-scale": ["--differs", "1"],
    "swap-operands": ["--differs", "2"],
    "round-weights": ["--differs", "3"],
    "hang-on-pair": ["--slow", "2"],
}


def _model(layers: int = 8) -> onnx.ModelProto:
    """Layers of a small network with residual sums; each pattern is somewhere inside."""
    r = np.random.default_rng(0)
    nodes, weights, x = [], [], "x"

    def add(op: str, *operands: str, **attrs: object) -> str:
        name = f"v{len(nodes)}"
        nodes.append(helper.make_node(op, operands, [name], name=f"{op}_{len(nodes)}", **attrs))
        return name

    def weight(*shape: int) -> str:
        weights.append(numpy_helper.from_array(r.standard_normal(shape).astype(np.float32) / 4, f"w{len(weights)}"))
        return weights[-1].name

    for layer in range(layers):
        skip = x
        x = add("Relu", add("Add", add("MatMul", x, weight(12, 12)), weight(12)))
        x = add("MatMul", add("Neg", x), weight(12, 12 if layer == 5 else 4))
        if layer == 2:
            x = add("Mul", add("Sigmoid", x), weight(1))
        if layer == 3:
            x = add("Sub", add("Abs", x), add("Cos", x))
        if layer != 5:
            x = add("Tanh", add("Concat", x, x, x, axis=2)) if layer == 6 else add("Concat", x, x, x, axis=2)
        x = add("Add", x, skip)
    types = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 3, 12]) for n in ("x", x)]
    graph = helper.make_graph(nodes, "network", types[:1], types[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("network")
    (folder / "faults.py").write_text(FAULTS)
    onnx.save(_model(3), folder / "small.onnx")
    onnx.save(_model(), folder / "m.onnx")
    return folder


@pytest.mark.parametrize(
    ("fault", "model"),
    [("drop-scale", "small.onnx"), *(pytest.param(f, "m.onnx", marks=pytest.mark.nightly) for f in FAULTY)],
)
def test_planted_faults_are_reduced(
    network: Path, tmp_path: Path, fault: str, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "small.onnx"
    arguments = ["--passes", f"{fault},lower", "--plugin", str(network / "faults.py"), "-q"]
    assert main(["reduce", str(network / model), "-o", str(out), *FAULTY[fault], *arguments]) == 0
    left = onnx.load(out)
    assert len(left.graph.node) <= (3 if fault == "swap-operands" else 2)
    assert sum(np.prod(t.dims) for t in left.graph.initializer) <= 12 * 12
    assert "nodes, after" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["small.onnx"]


def test_a_command_says_what_fails(tmp_path: Path) -> None:
    """And its file is text where that is asked for."""
    onnx.save(_model(4), tmp_path / "m.onnx")
    out = tmp_path / "small.mir"
    assert main(["reduce", str(tmp_path / "m.onnx"), "-o", str(out), "--test", "grep -q Cos {}", "-q"]) == 0
    assert out.read_text().count("Cos(") == 1
    assert out.read_text().count(") : ") <= 2


def test_what_does_not_fail_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(parse("g (float[2] x) => (float[2] y) { y = Abs (x) }"), tmp_path / "m.onnx")
    out = tmp_path / "small.onnx"
    assert main(["reduce", str(tmp_path / "m.onnx"), "-o", str(out), "--test", "false", "-q"]) == 2
    assert "does not show the failure" in capsys.readouterr().err
    assert not out.exists()
    with pytest.raises(InputError, match="does not show"):
        reduce_model(onnx.load(tmp_path / "m.onnx"), CommandCheck("sleep 60;", seconds=0.1))


@pytest.mark.nightly
def test_bisect_hands_over(network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(
        parse("g (float[2] x) => (float[2] y) { a = Abs (x) b = Sigmoid (a) c = Mul (b, a) y = Exp (c) }"),
        tmp_path / "m.onnx",
    )
    out = tmp_path / "small.onnx"
    arguments = ["--passes", "drop-scale,lower", "--plugin", str(network / "faults.py"), "-q", "--reduce", str(out)]
    assert main(["bisect", str(tmp_path / "m.onnx"), *arguments]) == 3
    assert "pass drop-scale" in capsys.readouterr().out
    assert [n.op_type for n in onnx.load(out).graph.node] == ["Sigmoid", "Mul"]


def test_cuts_become_inputs_and_outputs() -> None:
    model = parse("g (float[2] x) => (float[2] y) { a = Abs (x) b = Neg (a) c = Exp (b) y = Add (c, a) }")
    types = KnownTypes({n: helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in "abcy"})
    left = keep_nodes(model, {1}, types)
    assert left is not None
    assert [i.name for i in left.graph.input] == ["a"]
    assert [o.name for o in left.graph.output] == ["b"]
    onnx.checker.check_model(left, full_check=True)
    assert keep_nodes(model, {1}, KnownTypes()) is None


def test_a_branch_takes_the_place_of_its_if() -> None:
    model = parse(
        "g (bool c, float[2] x) => (float[2] y) { a = Abs (x) "
        "y = If (c) <then_branch = t () => (float[2] r) { r = Neg (a) }, "
        "else_branch = e () => (float[2] q) { q = Identity (a) }> }"
    )
    left = inline_branch(model, 1, "then_branch")
    assert left is not None
    assert [n.op_type for n in left.graph.node] == ["Abs", "Neg"]
    assert left.graph.node[1].output == ["y"]
    onnx.checker.check_model(left, full_check=True)


def test_what_counts_as_another_number_is_said_by_the_options(network: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(parse("g (float[2] x) => (float[2] y) { b = Sigmoid (x) y = Mul (b, x) }"), path)
    options = {"passes": "drop-scale,lower", "plugins": [str(network / "faults.py")]}
    request = {"model": str(path), "options": options, "compare": True}
    assert perform(request, tmp_path)["kind"] == "differs"
    assert perform({**request, "options": {**options, "max_error": 1e6}}, tmp_path)["kind"] == "ok"
