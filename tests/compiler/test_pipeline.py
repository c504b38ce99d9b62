"""Pipelines as text: canonical spelling, options checked, faults shown with a caret."""

from __future__ import annotations

import sys
from collections import Counter
from types import ModuleType

import pytest

from memoptc import registry
from memoptc.ir.core import Graph
from memoptc.ir.diagnostics import InputError
from memoptc.manager import Instrument, PassFailed, run_pipeline
from memoptc.pass_base import Pass
from memoptc.pipeline import parse
from memoptc.report.model import PassRecord


class AddInput(Pass):
    """Add an input until there are `limit` of them."""

    limit: int = 2
    label: str = "x"
    share: float = 0.5
    axes: tuple[int, ...] = ()
    dry: bool = False

    def run(self, graph: Graph, stats: Counter[str]) -> None:
        if len(graph.inputs) < self.limit and not self.dry:
            graph.add_input(graph.fresh_name(self.label))
            stats["added"] += 1


class BreakDown(Pass):
    """Fail."""

    def run(self, graph: Graph, stats: Counter[str]) -> None:
        raise ZeroDivisionError("on purpose")


@pytest.fixture(autouse=True)
def _plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_plugins", {"add-input": AddInput, "break-down": BreakDown})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "add-input",
        "add-input{limit=3}",
        'add-input{label="a \\"b\\" \\\\",share=0.25,axes=[1,-2],dry=true},(add-input,break-down)*3,add-input',
        "(add-input)*",
        "((add-input)*2,break-down)*",
    ],
)
def test_canonical_text_is_a_fixed_point(text: str) -> None:
    assert str(parse(text)) == text


def test_spaces_and_defaults_are_left_out() -> None:
    assert str(parse(" add-input { limit = 2 , share=1 } , break-down")) == "add-input{share=1.0},break-down"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("add-inputs", r"no pass 'add-inputs':\n  add-inputs\n  \^\nDid you mean add-input\?"),
        (
            "add-input{limits=3}",
            r"add-input has no option limits:\n.*\n            \^\nIts options are: limit",
        ),
        ('add-input{limit="3"}', r"limit must be of type int, not \"3\""),
        ("add-input,,", r"expected here:\n  add-input,,\n            \^"),
        ("add-input{", r"expected here"),
    ],
)
def test_faults_point_at_the_place(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse(text)


def test_a_group_runs_until_nothing_changes() -> None:
    graph = Graph()
    records = run_pipeline(parse("(add-input{limit=3})*"), graph)
    assert len(graph.inputs) == 3
    assert [r.stats for r in records] == [{"added": 1}] * 3 + [{}]


def test_a_group_with_a_count_stops_there() -> None:
    graph = Graph()
    run_pipeline(parse("(add-input{limit=30})*4"), graph)
    assert len(graph.inputs) == 4


def test_hooks_see_every_pass_and_may_skip_one() -> None:
    seen: list[str] = []

    class Watch(Instrument):
        def should_run(self, index: int, pass_: Pass, graph: Graph) -> bool:
            return index != 1

        def before(self, index: int, pass_: Pass, graph: Graph) -> None:
            seen.append(f"before {index}")

        def after(self, index: int, pass_: Pass, graph: Graph, record: PassRecord) -> None:
            seen.append(f"after {index} {record.name}")

        def failed(self, index: int, pass_: Pass, graph: Graph, error: Exception) -> None:
            seen.append(f"failed {index} {error}")

    with pytest.raises(PassFailed, match="Pass break-down failed: on purpose"):
        run_pipeline(parse("add-input,add-input,break-down"), Graph(), instruments=[Watch()])
    assert seen == ["before 0", "after 0 add-input", "before 2", "failed 2 on purpose"]


def test_a_pass_is_found_in_an_installed_plug_in_and_in_a_file(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("shiny_plugin")

    class Polish(Pass):
        """Polish."""

    Polish.__module__ = "shiny_plugin"
    module.Polish = Polish  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "shiny_plugin", module)
    registry.load_plugin("shiny_plugin")
    assert registry.find("polish") is Polish
    assert "polish" in registry.names()


def test_a_plug_in_that_does_not_load_is_bad_input() -> None:
    with pytest.raises(InputError, match="no_such_module_anywhere cannot be loaded"):
        registry.load_plugin("no_such_module_anywhere")
