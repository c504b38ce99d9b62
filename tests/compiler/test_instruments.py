"""Hooks around passes: verify, print, dump, check numbers, reproduce."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from runtime_models import parse as parse_onnx

import memoptc
from memoptc import registry
from memoptc.cli.main import cli
from memoptc.graph_files import read_any
from memoptc.instruments import CheckEach, Dump, PrintAfter, PrintChanged, VerifyEach, write_reproducer
from memoptc.ir.core import Graph, Op, Tensor
from memoptc.ir.equality import same_structure
from memoptc.ir.mir import read_mir, write_mir
from memoptc.ir.onnx_io import read_onnx, to_proto, write_onnx
from memoptc.ir.parser import parse
from memoptc.ir.printer import print_graph
from memoptc.ir.tensors import from_array
from memoptc.manager import PassFailed, run_pipeline
from memoptc.pass_base import Context, Pass
from memoptc.pipeline import parse as pipeline

TEXT = """
graph @g(%x: f32[2,3]) -> (f32[2,3]) {
  %w = const() {value=splat(1.5)} : f32[2,3]
  %a = Identity(%x) : f32[2,3]
  %b = Identity(%a) : f32[2,3]
  %c = Add(%b, %w) : f32[2,3]
  return %c
}
"""


class DropOne(Pass):
    """Take one Identity out."""

    def run(self, graph: Graph, context: Context) -> None:
        for op in graph.walk("Identity"):
            op.result.replace_by(op.operand)
            op.erase()
            context.stats["dropped"] += 1
            return


class Idle(Pass):
    def run(self, graph: Graph, context: Context) -> None:
        pass


class Swap(Pass):
    """Break the order of definitions."""

    def run(self, graph: Graph, context: Context) -> None:
        first = graph.first
        assert first is not None
        ops = list(graph.ops)
        ops[-1].move_before(first)


class Invent(Pass):
    """Leave out an attribute that ONNX requires."""

    def run(self, graph: Graph, context: Context) -> None:
        last = graph.last
        assert last is not None
        made = graph.append(Op("Concat", [last.result], [last.result.type]))
        graph.set_outputs([made.result])


class Fail(Pass):
    """Fail where there is no Identity."""

    when: str = "float32"

    def run(self, graph: Graph, context: Context) -> None:
        if context.target == self.when and not any(graph.walk("Identity")):
            raise ZeroDivisionError("on purpose")


PASSES: list[type[Pass]] = [DropOne, Idle, Swap, Invent, Fail]


@pytest.fixture(autouse=True)
def _plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_plugins", {p.name: p for p in PASSES})


def test_a_pass_that_breaks_an_invariant_is_named() -> None:
    with pytest.raises(PassFailed, match="Pass swap failed: The graph is not well-formed"):
        run_pipeline(pipeline("drop-one,swap,idle"), parse(TEXT), instruments=[VerifyEach()])


def test_a_new_breach_of_onnx_is_a_fault_but_not_one_that_the_model_came_with() -> None:
    with pytest.raises(PassFailed, match="attribute axis is missing"):
        run_pipeline(pipeline("invent"), parse(TEXT), instruments=[VerifyEach()])
    odd = parse(TEXT.replace("Add(%b, %w)", "Concat(%b, %w)"))
    records = run_pipeline(pipeline("drop-one,idle"), odd, instruments=[VerifyEach()])
    assert [r.name for r in records] == ["drop-one", "idle"]


def test_changes_are_shown_as_differences() -> None:
    shown: list[str] = []
    run_pipeline(pipeline("idle,drop-one,idle,drop-one"), parse(TEXT), instruments=[PrintChanged(shown.append)])
    assert len(shown) == 2
    lines = shown[0].splitlines()
    assert lines[:2] == ["--- before", "+++ after drop-one"]
    assert "-  %a = Identity(%x) : f32[2,3]" in lines
    assert "+  %b = Identity(%x) : f32[2,3]" in lines


def test_the_graph_is_shown_after_the_passes_named() -> None:
    shown: list[str] = []
    run_pipeline(pipeline("idle,drop-one"), parse(TEXT), instruments=[PrintAfter(shown.append, ["drop-one"])])
    (text,) = shown
    assert text.startswith("// after drop-one\n")
    assert text.count("Identity") == 1


def test_dumps_are_numbered_and_can_be_read(tmp_path: Path) -> None:
    graph = parse(TEXT)
    run_pipeline(pipeline("drop-one,idle"), graph, instruments=[Dump(tmp_path / "dump")])
    files = sorted(p.name for p in (tmp_path / "dump").glob("*.mir"))
    assert files == ["000-drop-one.mir", "001-idle.mir"]
    assert same_structure(read_mir(tmp_path / "dump" / files[1]), graph, names=True) is None


def test_dumps_leave_weights_where_they_are(tmp_path: Path) -> None:
    graph = parse(TEXT)
    graph.const(_large(), "large")
    graph.set_outputs([*graph.outputs, next(graph.walk("const")).result])
    write_onnx(graph, tmp_path / "g.onnx")
    graph = read_onnx(tmp_path / "g.onnx")
    run_pipeline(pipeline("drop-one"), graph, instruments=[Dump(tmp_path)])
    assert [p.suffix for p in sorted(tmp_path.iterdir())] == [".mir", ".onnx"]
    assert same_structure(read_mir(tmp_path / "000-drop-one.mir"), graph) is None


def test_numbers_are_checked_only_after_changes() -> None:
    asked: list[int] = []

    def error(graph: Graph) -> float:
        asked.append(len(graph))
        return len(asked) / 10

    records = run_pipeline(pipeline("idle,drop-one,idle"), parse(TEXT), instruments=[CheckEach(error)])
    assert [r.max_error for r in records] == [0.1, 0.2, 0.2]
    assert asked == [4, 3]


def test_records_say_what_each_pass_did() -> None:
    first, second = run_pipeline(pipeline("drop-one,idle"), parse(TEXT), peak=lambda g: 100 * len(g))
    assert (first.name, first.nodes_before, first.nodes_after, first.stats) == ("drop-one", 3, 2, {"dropped": 1})
    assert (first.weight_bytes, first.planned_peak_bytes) == (24, 300)
    assert (second.nodes_before, second.nodes_after, second.stats) == (2, 2, {})
    assert 0 <= first.seconds < 5


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("drop-one,idle,drop-one,fail,idle", "fail,idle"),
        ("(drop-one,fail,idle)*,swap", "fail,idle,(drop-one,fail,idle)*,swap"),
        ("(drop-one,fail)*2,swap", "fail,swap"),
        ("idle,((drop-one)*,fail)*3", "fail,((drop-one)*,fail)*2"),
    ],
)
def test_a_reproducer_holds_the_graph_and_what_was_left_to_run(tmp_path: Path, text: str, rest: str) -> None:
    graph, steps = parse(TEXT), pipeline(text)
    original = graph.clone()
    with pytest.raises(PassFailed) as caught:
        run_pipeline(steps, graph, instruments=[VerifyEach()])
    path = tmp_path / "broken.mir"
    write_reproducer(path, original, steps, caught.value, lambda: Context(dims={"N": 3}))
    found, recipe = read_any(path)
    assert recipe.pipeline == rest
    assert recipe.dims == {"N": 3}
    with pytest.raises(PassFailed, match="Pass fail failed: ZeroDivisionError: on purpose"):
        run_pipeline(pipeline(recipe.pipeline), found)


def test_memoptc_opt_runs_a_reproducer_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    graph = parse(TEXT.replace("Add(%b", "MatMul(%t").replace("%c =", "%t = Transpose(%b) : f32[3,2]\n  %c ="))
    for op in graph.walk("MatMul"):
        op.result.type = None
    weight = next(graph.walk("const"))
    weight.result.replace_by(graph.const(_large(), "large"))
    graph.set_outputs([next(graph.walk("MatMul")).result])
    graph.outputs_info[0].type = None
    with pytest.raises(PassFailed) as caught:
        memoptc.compile(to_proto(graph), passes="drop-one,drop-one,fail,idle", verify="off")
    assert "memoptc opt memoptc-reproducer-fail.mir" in caught.value.hint
    assert sorted(p.name for p in tmp_path.iterdir()) == ["memoptc-reproducer-fail.mir", "memoptc-reproducer-fail.npz"]
    again = CliRunner().invoke(cli, ["opt", "memoptc-reproducer-fail.mir"])
    assert isinstance(again.exception, PassFailed)
    assert again.exception.pass_.name == "fail"
    fine = CliRunner().invoke(cli, ["opt", "memoptc-reproducer-fail.mir", "--passes", "idle"])
    assert fine.exit_code == 0
    assert "%large = const()" in fine.stdout


def _large() -> Tensor:
    return from_array(np.arange(2 * 300, dtype=np.float32).reshape(2, 300), "large")


def test_opt_keeps_results_and_reports_apart(tmp_path: Path) -> None:
    path = tmp_path / "g.mir"
    write_mir(parse(TEXT), path)
    arguments = ["opt", str(path), "--passes", "drop-one", "--print-changed", "--print-after", "all", "-v"]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0
    assert same_structure(parse(done.stdout), run_copy()) is None
    for wanted in ("drop-one: dropped 1", "+++ after drop-one", "// after drop-one"):
        assert wanted in done.stderr


def run_copy() -> Graph:
    graph = parse(TEXT)
    run_pipeline(pipeline("drop-one"), graph)
    return graph


def test_opt_prints_what_a_person_reads_and_all_of_it_when_asked(tmp_path: Path) -> None:
    """Large weights and exporters' notes hide the graph; `--full` is text that can be read back."""
    graph = parse(
        'graph @g(%x: f32[300] note("where"="input")) -> (f32[300]) doc("made by hand") {\n'
        '  %y = Relu(%x) : f32[300] loc("node") meta("module"="net.relu")\n'
        "  %w = const() {value=splat(1.5)} : f32[300]\n  %z = Mul(%y, %w) : f32[300]\n  return %z\n}\n"
    )
    (weight,) = (op for op in graph.ops if op.is_const)
    weight.set_attr("value", from_array(np.arange(300, dtype=np.float32), "w"))
    path = tmp_path / "noted.mir"
    write_mir(graph, path)
    short = CliRunner().invoke(cli, ["opt", str(path), "--passes", ""]).stdout
    assert 'Relu(%x) : f32[300] loc("node")\n' in short
    assert "dense<...>" in short
    assert not any(note in short for note in ("module", "by hand", "where"))
    full = CliRunner().invoke(cli, ["opt", str(path), "--passes", "", "--full"]).stdout
    again = parse(full)
    assert print_graph(again) == full
    assert again.doc == "made by hand"


def test_numbers_are_checked_after_each_pass_at_the_extents_asked_for(tmp_path: Path) -> None:
    """The pass is wrong for seven rows only."""
    plugin = tmp_path / "seven.py"
    plugin.write_text("""
import numpy as np

from memoptc import Context, Pass
from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph


class Seven(Pass):
    def run(self, graph: Graph, context: Context) -> None:
        (op,) = graph.walk("Relu")
        b = Builder(graph, before=op.next)
        seven = b.Cast(b.Equal(b.Shape(op.result), np.array([7], np.int64)), to=1)
        op.result.replace_by(b.Add(op.result, seven, _type=op.result.type), where=lambda user, _: user.is_return)
""")
    model = parse_onnx("g (float[N] x) => (float[N] y) { y = Relu (x) }")
    how = {"passes": "seven,lower", "plugins": (str(plugin),), "check_each": True, "force": True}
    report = memoptc.compile(model, 2, dims={"N": 7}, **how).report
    assert [round(r.max_error or 0.0, 3) for r in report.passes if r.name == "seven"] == [1.0]
