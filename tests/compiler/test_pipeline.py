"""Pipelines as text: canonical spelling, options checked, faults shown with a caret."""

from __future__ import annotations

import gc
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memoptc import levels, registry
from memoptc.ir.core import Graph
from memoptc.ir.diagnostics import InputError
from memoptc.manager import Instrument, PassFailed, run_pipeline
from memoptc.pass_base import Context, Pass
from memoptc.pipeline import parse
from memoptc.report.model import PassRecord
from memoptc.targets import TARGETS


class AddInput(Pass):
    """Add an input until there are `limit` of them."""

    limit: int = 2
    label: str = "x"
    share: float = 0.5
    axes: tuple[int, ...] = ()
    dry: bool = False

    def run(self, graph: Graph, context: Context) -> None:
        if len(graph.inputs) < self.limit and not self.dry:
            graph.add_input(graph.fresh_name(self.label))
            context.stats["added"] += 1


class Choosy(Pass):
    """Take options of every kind."""

    kind: Literal["fast", "exact"]
    limit: int | None = None
    names: tuple[str, ...] = ()
    shares: tuple[float, ...] = (0.5,)

    def __post_init__(self) -> None:
        if self.limit == 13:
            raise InputError("13 brings bad luck.", hint="Take 12.")


class AroundAnother(Pass):
    """Run a pipeline on another graph, and count."""

    def run(self, graph: Graph, context: Context) -> None:
        run_pipeline(parse("add-input"), Graph("other"), context)
        context.stats["around"] += 1


class BreakDown(Pass):
    """Fail."""

    def run(self, graph: Graph, context: Context) -> None:
        raise ZeroDivisionError("on purpose")


@pytest.fixture(autouse=True)
def _plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_plugins", {p.name: p for p in (AddInput, AroundAnother, BreakDown, Choosy)})


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


def _passes() -> st.SearchStrategy[str]:
    texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    floats = st.floats(allow_nan=False, allow_infinity=False)
    adders = st.builds(AddInput, st.integers(), texts, floats, st.lists(st.integers(), max_size=3).map(tuple))
    choosers = st.builds(
        Choosy,
        st.sampled_from(["fast", "exact"]),
        st.none() | st.integers(20, 30),
        st.lists(texts, max_size=3).map(tuple),
        st.lists(floats, max_size=3).map(tuple),
    )
    return (adders | choosers).map(str)


def _sequences(items: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(items, min_size=1, max_size=3).map(",".join)


@given(
    _sequences(
        st.recursive(
            _passes(),
            lambda items: st.builds("({})*{}".format, _sequences(items), st.just("") | st.integers(1, 9).map(str)),
            max_leaves=6,
        )
    )
)
def test_every_pipeline_survives_its_text(text: str) -> None:
    pipeline = parse(text)
    assert str(pipeline) == text
    assert parse(f"  {text.replace(',(', ' , ( ')} ") == pipeline or '"' in text


def test_whole_numbers_count_as_floats_in_lists_too() -> None:
    (found,) = parse('choosy{kind="fast",shares=[1,0.25]}').passes()
    assert found == Choosy("fast", shares=(1.0, 0.25))
    assert str(found) == 'choosy{kind="fast",shares=[1.0,0.25]}'


def test_spaces_and_defaults_are_left_out() -> None:
    assert str(parse("choosy{kind=fast}")) == 'choosy{kind="fast"}'
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
        (
            "break-down,\nadd-input{limits=3}",
            r"no option limits:\n  break-down, add-input.*\n                        \^",
        ),
        ("choosy", r"choosy needs its option kind:\n  choosy\n  \^"),
        ('choosy{kind="slow"}', r'kind must be one of "fast", "exact", not "slow"'),
        ('choosy{kind="fast",limit=true}', r"limit must be of type int or none, not true"),
        ('choosy{kind="fast",names=["a",1]}', r'names must be a list, each of type str, not \["a",1\]'),
        ('choosy{kind="fast",limit=13}', r"13 brings bad luck:\n.*\n  \^\nTake 12"),
        ("add-input{limit=1,limit=2}", r"add-input gets an option twice"),
        ("add-input{share=1e999}", r"1e999 is too large"),
        ('add-input{label="\\q"}', r"this is no string"),
        ("add-input{share=}", r"a value is expected here"),
        ("add-input{label=a/b.onnx}", r"',' or '}' is expected here; .* stands in quotes"),
        ("choosy{names=[a b]}", r"',' or ']' is expected here"),
        ("add-input{limit}", r"as in limit=1"),
        ("add-input{3}", r"the name of an option is expected here"),
        ("add-input{share=large}", r"share must be of type float, not \"large\""),
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

    with pytest.raises(PassFailed, match=r"Pass break-down failed: \w+: on purpose"):
        run_pipeline(parse("add-input,add-input,break-down"), Graph(), instruments=[Watch()])
    assert seen == ["before 0", "after 0 add-input", "before 2", "failed 2 on purpose"]


def test_a_pass_is_found_in_a_module_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("shiny_plugin")

    class Polish(Pass):
        """Polish."""

    Polish.__module__ = "shiny_plugin"
    module.Polish = Polish  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "shiny_plugin", module)
    registry.load_plugin("shiny_plugin")
    assert registry.find("polish") is Polish
    assert "polish" in registry.names()


PLUGIN = '''
"""shine: make it shine."""

from __future__ import annotations

from memoptc import Pass


class Shine(Pass):
    strength: int = 3

    def run(self, graph, context):
        context.stats["shone"] += self.strength
'''


def test_a_file_may_bear_the_name_of_any_module(tmp_path: Path) -> None:
    path = tmp_path / "json.py"
    path.write_text(PLUGIN)
    registry.load_plugin(str(path))
    import json

    assert json.loads("1") == 1
    (record,) = run_pipeline(parse("shine{strength=4}"), Graph())
    assert record.stats == {"shone": 4}
    assert registry.help_of(registry.find("shine")) == "make it shine."


@pytest.mark.parametrize("kind", ["module", "class"])
def test_entry_points_name_a_module_or_a_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    (tmp_path / f"shiny_{kind}.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    value = f"shiny_{kind}" + (":Shine" if kind == "class" else "")
    entry = EntryPoint("shine", value, registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group, name=None: [entry] if name in (None, "shine") else [])
    assert registry.find("shine").__name__ == "Shine"
    assert "shine" in registry.names()
    broken = EntryPoint("dull", "no_such_module_anywhere", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group, name=None: [broken])
    with pytest.raises(InputError, match="Pass dull of no_such_module_anywhere cannot be loaded"):
        registry.find("dull")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("x = 1", "defines no pass"),
        ("def", "cannot be loaded: SyntaxError"),
        ("raise RuntimeError('no licence')", "cannot be loaded: RuntimeError: no licence"),
        ("class Old(__import__('memoptc').Pass):\n    def run(self, graph, stats): ...", r"Old\.run takes .*stats"),
        ("from memoptc.rewrite import op\nop.Reluu('x')", "there is no operator 'Reluu'; did you mean Relu"),
    ],
)
def test_plug_ins_that_do_not_load_are_bad_input(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "plugin.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message):
        registry.load_plugin(str(path))


def test_two_plug_ins_that_define_one_name_are_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_plugins", {})
    one, other = str(tmp_path / "one.py"), str(tmp_path / "other.py")
    for path in (one, other):
        Path(path).write_text(PLUGIN)
    registry.load_plugins([one, one])
    with pytest.raises(InputError, match=r"one\.py and .*other\.py both define a pass shine"):
        registry.load_plugins([one, other])


def test_a_module_that_does_not_exist_is_bad_input() -> None:
    with pytest.raises(InputError, match="no_such_module_anywhere cannot be loaded"):
        registry.load_plugin("no_such_module_anywhere")


def test_every_pass_has_help_and_every_level_a_pipeline() -> None:
    names = registry.names()
    assert {"simplify", "fold-constants", "share-weights", "order", "quantize", "lower"} <= set(names)
    for name in names:
        cls = registry.find(name)
        assert cls.name == name
        assert registry.help_of(cls).endswith(".")
    for level in range(4):
        for target in TARGETS:
            for calibrated in (False, True):
                text = levels.pipeline_text(level, target, calibrated=calibrated)
                assert str(parse(text)) == text


def test_contexts_share_no_folder() -> None:
    one, two = Context(), Context()
    folders = {one.scratch, two.scratch}
    assert len(folders) == 2
    assert all(f.is_dir() and f != Path.cwd() for f in folders)
    del one, two
    gc.collect()
    assert not any(f.exists() for f in folders)


def test_a_pass_that_runs_a_pipeline_keeps_its_own_counts() -> None:
    (record,) = run_pipeline(parse("around-another"), Graph("g"), Context())
    assert record.stats == {"around": 1}
