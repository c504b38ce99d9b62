"""Cases: a `.mir` file with a pipeline, a graph, and what must come out of it.

    // pipeline: drop-double-relu
    graph @case(%x: f32[N,8]) -> (f32[N,8]) {
      ...
    }
    // ---- expect
    graph ...                           or, in place of a whole graph, lines such as `// CHECK: Relu(%x)`

Lines before the graph may say more: `// dims: S=64` names extents to plan with; `// numbers: exact` (or `close`,
`powers of two`, `sqnr 30`) says how numbers must compare, where the setting `memoptc_numbers` of pytest does not say it
for the passes of the pipeline. Without either, outputs must be close by the tolerances of `memoptc verify`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from memoptc.instruments import KeepsInterface, VerifyEach
from memoptc.ir.core import Graph
from memoptc.ir.diagnostics import InputError
from memoptc.ir.equality import same_structure
from memoptc.ir.infer import infer_shapes
from memoptc.ir.mir import EXPECT
from memoptc.ir.parser import parse
from memoptc.ir.printer import print_graph
from memoptc.manager import run_pipeline
from memoptc.pass_base import Context
from memoptc.pipeline import Pipeline
from memoptc.pipeline import parse as parse_pipeline
from memoptc.testing.checks import Check, read_checks, run_checks
from memoptc.testing.numbers import (
    LEAST_SQNR,
    NOT_EMPTY,
    compare,
    compare_coded,
    feed_of,
    hard_feeds,
    tame_feeds,
    with_external_weights,
)

KEYS = ("pipeline", "dims", "numbers")
_HEAD = re.compile(r"// (\w+): (.*)")
_NUMBERS = re.compile(r"exact|close|powers of two|sqnr \d+(\.\d+)?")


@dataclass(frozen=True)
class Case:
    """A test case, read from a `.mir` file.

    Args:
        file: Its path.
        pipeline: What runs.
        dims: Extents to plan with; numbers are compared for them, too.
        numbers: `exact`, `close`, `powers of two` or `sqnr DB`; `""` when the file does not say.
        before: The text of the graph.
        after: The text of the graph that must come out; `None` when only checks say what must.
        checks: Partial expectations.
    """

    file: Path
    pipeline: Pipeline
    dims: Mapping[str, int]
    numbers: str
    before: str
    after: str | None
    checks: tuple[Check, ...]

    def graph(self) -> Graph:
        """Give the graph before, with types inferred."""
        graph = parse(self.before, file=self.file.name)
        infer_shapes(graph)
        return graph

    def run(self, graph: Graph) -> None:
        """Run the pipeline in place; the graph is verified, and its interface held, after each pass."""
        run_pipeline(self.pipeline, graph, Context(dims=self.dims), [VerifyEach(types=True), KeepsInterface()])

    def ran(self) -> Graph:
        """Give the graph after the pipeline."""
        graph = self.graph()
        self.run(graph)
        return graph


def read_case(file: Path) -> Case:
    """Read a case.

    Raises:
        InputError: the file has no pipeline, no expectation, or a line at its head that says nothing.
    """
    text = file.read_text("utf-8")
    before, mark, after = text.partition(f"{EXPECT}\n")
    head: dict[str, str] = {}
    for line in before.split("\n"):
        found = _HEAD.fullmatch(line.rstrip())
        if not found:
            break
        if found[1] not in KEYS and (close := difflib.get_close_matches(found[1].lower(), KEYS, n=1, cutoff=0.7)):
            raise InputError(f"{file.name}: a case says nothing called {found[1]!r}.", hint=f"Did you mean {close[0]}?")
        if found[1] in KEYS and found[1] in head:
            raise InputError(f"{file.name} says {found[1]} twice.", hint="Leave one of the lines out.")
        head[found[1]] = found[2]
    if "pipeline" not in head:
        raise InputError(f"{file.name} names no pipeline.", hint="Let it begin with `// pipeline: NAME`.")
    numbers = head.get("numbers", "")
    if numbers and not _NUMBERS.fullmatch(numbers):
        raise InputError(f"{file.name}: {numbers!r} is no way to compare numbers.", hint="Write `exact`, `close`, ...")
    dims = _dims(head, file)
    checks = read_checks(text, str(file))
    whole = after if mark and "graph" in re.sub(r"//.*", "", after) else None
    if whole is None and not checks and not mark:
        raise InputError(f"{file.name} expects nothing.", hint=f"Add {EXPECT!r} and a graph, or `// CHECK` lines.")
    return Case(file, parse_pipeline(head["pipeline"].strip()), dims, numbers, before, whole, checks)


def _dims(head: Mapping[str, str], file: Path) -> dict[str, int]:
    pairs = [pair.partition("=") for pair in head.get("dims", "").split()]
    for name, _, extent in pairs:
        if not name or not extent.isdecimal():
            raise InputError(f"{file.name}: {head['dims']!r} names no extents.", hint="Write `// dims: N=2 S=64`.")
    return {name: int(extent) for name, _, extent in pairs}


def without_locations(graph: Graph) -> str:
    """Give a graph's text without saying where its ops come from; they lose that."""
    for op in graph.walk():
        op.loc = type(op.loc)()
    return print_graph(graph)


class CaseTests:
    """Tests of every case below a folder; name a subclass `Test...` and set `folder`.

    Each case survives printing and parsing; gives what is expected, verified after each pass; is changed by no second
    run; and gives the same numbers in onnxruntime before and after, with weights inside the model and beside it.
    """

    folder: ClassVar[str] = "cases"
    """Beside the module of the tests."""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run each test for each case."""
        if "case" not in metafunc.fixturenames:
            return
        folder = Path(metafunc.module.__file__).parent / self.folder
        files = sorted(folder.rglob("*.mir"))
        if not files:
            raise FileNotFoundError(f"{folder} holds no case: put a .mir file there")
        ids = [file.relative_to(folder).as_posix().removesuffix(".mir") for file in files]
        metafunc.parametrize("case", [read_case(file) for file in files], ids=ids)

    def test_text_round_trip(self, case: Case) -> None:
        """The text form loses nothing."""
        for text in filter(None, (case.before, case.after)):
            graph = parse(text)
            assert same_structure(graph, parse(print_graph(graph)), names=True) is None

    def test_expected_graph(self, case: Case, memoptc_update: bool) -> None:
        """The pipeline gives the graph that is expected; `--update` writes what it gives as that."""
        graph = case.ran()
        text = without_locations(graph)
        run_checks(case.checks, text)
        if memoptc_update and (case.after is not None or not case.checks):
            case.file.write_text(f"{case.before}{EXPECT}\n\n{text}", "utf-8")
        elif case.after is not None or not case.checks:
            assert case.after is not None, "no graph is expected; --update writes the one that comes out"
            found = parse(text)
            difference = same_structure(parse(case.after, file=case.file.name), found)
            assert difference is None, f"{difference}\n{text}"

    def test_again_changes_nothing(self, case: Case) -> None:
        """The pipeline leaves nothing for a second run."""
        graph = case.ran()
        once = print_graph(graph)
        run_pipeline(case.pipeline, graph, Context(dims=case.dims))
        assert print_graph(graph) == once

    @pytest.mark.parametrize("weights", ["inline", "external"])
    def test_numbers(self, case: Case, weights: str, tmp_path: Path, memoptc_numbers: Mapping[str, str]) -> None:
        """onnxruntime gives the same numbers before and after."""
        folder = tmp_path if weights == "external" else None
        after = case.graph()
        if folder is not None:
            with_external_weights(after, folder)
        case.run(after)
        counted = compare_numbers(case.graph(), after, wanted(case, memoptc_numbers), case.dims, folder)
        assert counted > 0, "the graph before runs with no inputs"


def wanted(case: Case, by_pass: Mapping[str, str]) -> str:
    """Give how the numbers of a case must compare: as the file says, else as its least exact pass asks."""
    if case.numbers:
        return case.numbers
    kinds = []
    for pass_ in case.pipeline.passes():
        # A pass with an option `exact` keeps bits only as long as that is set.
        kind = by_pass.get(pass_.name, "close")
        kinds.append(kind if kind.startswith("sqnr") or getattr(pass_, "exact", True) else "close")
    return min(kinds, key=_exactness, default="exact")


def _exactness(kind: str) -> float:
    return {"close": 1.0, "powers of two": 2.0, "exact": 3.0}.get(kind, 0.0)


def compare_numbers(
    before: Graph, after: Graph, numbers: str, dims: Mapping[str, int] | None = None, folder: Path | None = None
) -> int:
    """Compare what two graphs give in onnxruntime.

    Args:
        before: The first one.
        after: The second one.
        numbers: `exact` (every bit), `close`, `powers of two` (every bit of numbers that neither overflow nor vanish)
            or `sqnr DB` (signal to difference of every output).
        dims: Extents to compare with besides.
        folder: Where to write the second one, with its weights in a data file.

    Raises:
        AssertionError: they differ by more.

    Returns:
        How many sets of inputs counted.
    """
    if numbers.startswith("sqnr"):
        least = float(numbers.removeprefix("sqnr") or LEAST_SQNR)
        return compare_coded(before, after, tame_feeds(before), folder, least)
    feeds = tame_feeds(before) if numbers == "powers of two" else None
    if dims:
        empty = not any(op.op_type in NOT_EMPTY for op in before.walk())
        feeds = [*hard_feeds(before, empty=empty), feed_of(before, dims)]
    return compare(before, after, exact=numbers != "close", feeds=feeds, folder=folder)


def read_numbers(lines: Sequence[str]) -> dict[str, str]:
    """Read the setting `memoptc_numbers`: lines such as `exact: my-pass other-pass`; gives pass -> how to compare.

    Raises:
        InputError: a line is wrong.
    """
    found: dict[str, str] = {}
    for line in lines:
        kind, colon, names = line.partition(":")
        if not colon or not _NUMBERS.fullmatch(kind.strip()):
            raise InputError(f"memoptc_numbers: {line!r} is wrong.", hint="Write a line such as `exact: PASS PASS`.")
        found |= dict.fromkeys(names.split(), kind.strip())
    return found


__all__: list[Any] = ["Case", "CaseTests", "compare_numbers", "read_case", "read_numbers", "without_locations"]
