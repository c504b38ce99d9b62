"""A compile ends, also where a pass, a rule or a group of passes would not."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import onnx
import pytest

import memoptc
from memoptc import registry
from memoptc.compilation import Compilation
from memoptc.graph_files import read_any
from memoptc.instruments import VerifyEach
from memoptc.ir.budget import PassOverrun
from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.equality import same_structure
from memoptc.ir.onnx_io import to_proto
from memoptc.ir.parser import parse
from memoptc.manager import run_pipeline
from memoptc.overrun import Watch, bounded
from memoptc.pass_base import Artefacts, Context, Limits, Pass
from memoptc.pipeline import parse as pipeline
from memoptc.rewrite import RulePass, op, rewrite
from memoptc.runtime.evaluate import Evaluator
from memoptc.runtime.memory.allocate import allocate
from memoptc.runtime.memory.problem import Problem
from memoptc.steps import run
from memoptc.testing import run_pass

TEXT = """
graph @g(%x: f32[2,3]) -> (f32[2,3]) {
  %a = Sin(%x) : f32[2,3]
  %b = Identity(%a) : f32[2,3]
  %c = Relu(%b) : f32[2,3]
  return %c
}
"""
FEW = Limits(steps=2_000, steps_per_op=10, seconds=0.5, seconds_per_op=0.0)


class Spin(Pass):
    """Swap an op for a twin of itself again and again."""

    def run(self, graph: Graph, context: Context) -> None:
        while True:
            for old in list(graph.walk("Relu", "Sin")):
                new = graph.insert_before(old, Op(old.op_type, old.operands, [old.result.type]))
                old.result.replace_by(new.result)
                old.erase()
                context.stats[f"{old.op_type} again"] += 1


class Hang(Pass):
    """Compute for ever without a change, and catch what one can catch."""

    def run(self, graph: Graph, context: Context) -> None:
        count = 0
        while True:
            try:
                count += 1
            except Exception:
                count = 0


class Search(Pass):
    """Count steps of its own."""

    def run(self, graph: Graph, context: Context) -> None:
        while True:
            context.tick()


class Halfway(Pass):
    """Leave a graph that no method of it can mend, then hang; an undone pass must not matter."""

    def run(self, graph: Graph, context: Context) -> None:
        first = graph.first
        assert first is not None
        first._unlink()
        graph.add_input("more")
        while True:
            pass


class ToAbs(Pass):
    """Neg becomes Abs: another number, but it is the group that these tests look at."""

    def run(self, graph: Graph, context: Context) -> None:
        _change(graph, "Neg", "Abs")


class ToNeg(Pass):
    """The other way round."""

    def run(self, graph: Graph, context: Context) -> None:
        _change(graph, "Abs", "Neg")


def _change(graph: Graph, old_type: str, new_type: str) -> None:
    for old in list(graph.walk(old_type)):
        new = graph.insert_before(old, Op(new_type, old.operands, [old.result.type]))
        old.result.replace_by(new.result)
        old.erase()


class NegateTwice(Pass):
    """Put in, or take out, two Negs: the numbers stay, the model never does."""

    def run(self, graph: Graph, context: Context) -> None:
        negs = [o for o in graph.walk("Neg") if o.operand.op is not None and o.operand.op.is_a("Neg")]
        for last in negs:
            first = last.operand.op
            assert first is not None
            last.result.replace_by(first.operand)
            last.erase()
            first.erase()
        for old in [] if negs else list(graph.walk("Sin")):
            after = Op("Neg", [old.result], [old.result.type])
            graph.insert_after(old, after)
            again = Op("Neg", [after.result], [old.result.type])
            graph.insert_after(after, again)
            old.result.replace_by(again.result, where=lambda user, index, own=after: user is not own)


@rewrite(op.Sin("x"))
def sin_of_sum(b: object, x: Value) -> Value:
    """Goes on for ever."""
    return b.Sin(b.Neg(b.Neg(x)))  # type: ignore[attr-defined,no-any-return]


class Grow(RulePass):
    """Rules without end."""

    rules = (sin_of_sum,)


@pytest.fixture(autouse=True)
def _plugins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for cls in (Spin, Hang, Search, Halfway, ToAbs, ToNeg, NegateTwice, Grow):
        monkeypatch.setitem(registry._plugins, cls.name, cls)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("spin", "again"),
        ("hang", "last in run"),
        ("search", "last in run"),
        ("halfway", "last in run"),
        ("grow", "sin-of-sum"),
    ],
)
def test_an_endless_pass_is_taken_back(name: str, says: str) -> None:
    graph, plain = parse(TEXT), parse(TEXT)
    context = Context(limits=FEW)
    records = run_pipeline(pipeline(f"simplify,{name},lower,{name}"), graph, context, [VerifyEach()])
    assert [r.name for r in records] == ["simplify", name, "lower"]
    run_pipeline(pipeline("simplify,lower"), plain)
    assert same_structure(graph, plain) is None
    (warning,) = context.warnings
    assert warning.startswith(f"Pass {name} did not end on ")
    assert says in warning
    assert "left out from here on" in warning


def test_what_the_pass_said_is_taken_back_and_what_others_said_stays() -> None:
    class Talk(Pass):
        def run(self, graph: Graph, context: Context) -> None:
            context.warnings.append("nonsense")
            context.artefacts.frozen = True
            context.artefacts.plan = None
            while True:
                context.tick()

    registry._plugins[Talk.name] = Talk
    try:
        made = allocate(Problem(()))
        context = Context(limits=FEW, warnings=["before"], artefacts=Artefacts(plan=made))
        run_pipeline(pipeline("talk"), parse(TEXT), context)
    finally:
        del registry._plugins[Talk.name]
    assert context.warnings[0] == "before"
    assert len(context.warnings) == 2
    assert context.artefacts.plan is made
    assert not context.artefacts.frozen


def test_no_watch_is_left_and_no_exception_comes_late() -> None:
    context = Context(limits=Limits(seconds=0.05, seconds_per_op=0.0))
    for _ in range(20):
        context.warnings.clear()
        run_pipeline(pipeline("hang"), parse(TEXT), context)
        assert len(context.warnings) == 1
    for _ in range(200_000):
        pass
    assert not [t for t in threading.enumerate() if t.name == "memoptc-watch" and t.is_alive()]


def test_an_endless_group_ends_with_a_warning() -> None:
    text = TEXT.replace("Identity", "Neg")
    graph, context = parse(text), Context()
    records = run_pipeline(pipeline("(to-abs,to-neg)*"), graph, context, [VerifyEach()])
    assert len(records) == 20
    (warning,) = context.warnings
    assert "(to-abs,to-neg)* still changed the model after 10 rounds: to-abs, to-neg" in warning
    limited = Context()
    run_pipeline(pipeline("(to-abs,to-neg)*2"), parse(text), limited)
    assert not limited.warnings


def test_compile_goes_on_and_the_numbers_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    make = run.context_of

    def limited(compilation: Compilation) -> Context:
        context = make(compilation)
        context.limits = FEW
        return context

    monkeypatch.setattr(run, "context_of", limited)
    model = to_proto(parse(TEXT))
    result = memoptc.compile(model, passes="spin,(negate-twice)*,simplify,lower", measure=False)
    endless, group = result.report.warnings
    assert endless.startswith("Pass spin did not end")
    assert "again" in endless
    assert "(negate-twice)* still changed the model" in group
    assert all("memoptc opt memoptc-reproducer-" in w for w in (endless, group))
    x = np.linspace(-3, 3, 6, dtype=np.float32).reshape(2, 3)
    outputs = [next(iter(Evaluator(m).run({"x": x}).values())) for m in (model, result.model)]
    np.testing.assert_array_equal(*outputs)
    graph, recipe = read_any(Path("memoptc-reproducer-spin.mir"))
    assert recipe.pipeline == "spin"
    assert same_structure(graph, parse(TEXT)) is None
    with pytest.raises(PassOverrun), Watch() as watch, bounded(graph, Context(limits=FEW), 3, watch):
        run_pass(Spin(), graph)


def torch_indexing() -> dict[str, onnx.ModelProto]:
    """What torch writes for `x[:, 0, 1]` and the like."""
    heads = {
        "select, select": ["%b = Gather(%x, %zero) {axis=1}", "%y = Gather(%b, %one) {axis=1}"],
        "slice, slice": ["%b = Slice(%x, %one1, %all, %one1)", "%y = Slice(%b, %two1, %all, %two1)"],
        "slice, slice of one axis": ["%b = Slice(%x, %one1, %all, %one1)", "%y = Slice(%b, %two1, %all, %one1)"],
        "index, index": ["%b = Gather(%x, %two1) {axis=1}", "%y = Gather(%b, %one1) {axis=2}"],
        "index, slice": ["%b = Gather(%x, %two1) {axis=1}", "%y = Slice(%b, %one1, %all, %two1)"],
        "slice, select": ["%b = Slice(%x, %one1, %all, %one1)", "%y = Gather(%b, %zero) {axis=2}"],
        "behind others": ["%a = Sigmoid(%x)", "%b = Gather(%a, %zero) {axis=1}", "%y = Slice(%b, %one1, %all, %one1)"],
    }
    weights = """
  %zero = const() {value=0} : i64[]
  %one = const() {value=1} : i64[]
  %one1 = const() {value=[1]} : i64[1]
  %two1 = const() {value=[2]} : i64[1]
  %all = const() {value=[9223372036854775807]} : i64[1]
"""
    return {
        name: to_proto(parse("graph @g(%x: f32[N,5,4]) -> (f32[*]) {" + weights + "\n".join(ops) + "\nreturn %y\n}\n"))
        for name, ops in heads.items()
    }


@pytest.mark.parametrize("level", [1, 2, 3])
def test_indexing_as_torch_writes_it(level: int) -> None:
    x = np.random.default_rng(0).standard_normal((3, 5, 4)).astype(np.float32)
    for name, model in torch_indexing().items():
        result = memoptc.compile(model, level=level, measure=False, verify="off")
        assert not result.report.warnings, name
        outputs = [next(iter(Evaluator(m).run({"x": x}).values())) for m in (model, result.model)]
        np.testing.assert_allclose(*outputs, rtol=1e-6, err_msg=name)
