"""An option is one field of a dataclass: the keyword, the option on the command line and its help come from it."""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner

import memoptc
from memoptc.api import compile_file
from memoptc.cli.compile import command as compile_command
from memoptc.cli.options import GroupedCommand, takes
from memoptc.file_options import FileOptions
from memoptc.ir.diagnostics import InputError
from memoptc.option_fields import keywords_after_one, option, options_of, parse_binding, to_argv
from memoptc.options import Options


@dataclass(frozen=True)
class Wish:
    """Options of a command."""

    depth: int = option("How deep.", "-d", default=3, parse=int, least=1)
    sizes: dict[str, int] = option("Extents.", default={}, parse=parse_binding)
    words: tuple[str, ...] = option("Words.", "--word", default=())
    careful: bool = option("With care.", default=True, group="Care")


@click.command("wish", cls=GroupedCommand)
@takes("wish", Wish, depth={"help": "How deep here."})
def wish_command(wish: dict[str, Any]) -> None:
    click.echo(Wish(**wish))


@keywords_after_one(Wish)
def grant(to: str, wish: Wish) -> tuple[str, Wish]:
    """Grant {options}"""
    return to, wish


def test_a_field_is_an_option_of_the_command() -> None:
    def run(*words: str) -> str:
        return CliRunner().invoke(wish_command, words).output.strip()

    assert run() == str(Wish())
    given = Wish(5, {"N": 8, "M": 0}, ("a", "b"), False)
    assert run("-d5", "--sizes", "N=8", "--sizes=M=0", "--word=a", "--word", "b", "--no-careful") == str(given)
    assert "x>=1" in run("-d0")
    assert "write one like N=8" in run("--sizes", "N")
    text = run("--help")
    assert "How deep here." in text
    assert text.index("Care:") < text.index("--careful") < text.index("General:") < text.index("--help")


def test_a_field_is_a_keyword_and_stands_in_the_docstring() -> None:
    assert grant("me", 4, words=("a",)) == ("me", Wish(4, words=("a",)))
    assert "depth: How deep." in (grant.__doc__ or "")
    with pytest.raises(TypeError, match="unexpected keyword argument 'dept'"):
        grant("me", dept=4)  # type: ignore[call-arg]


def test_compile_has_every_option_as_keyword_and_on_the_command_line() -> None:
    known = {f.name for f in fields(Options)}
    assert set(inspect.signature(memoptc.compile).parameters) == known | {"model"}
    assert set(inspect.signature(compile_file).parameters) == known | {"source", "output", "reports", "config"}
    on_the_command_line = {p.name for p in compile_command.params}
    assert set(options_of(FileOptions)) <= on_the_command_line
    assert known - {"progress"} <= on_the_command_line
    assert all(f"{name}: " in (memoptc.compile.__doc__ or "") for name in options_of(Options))


@pytest.mark.nightly
def test_a_wrong_keyword_is_an_error_to_a_type_checker(tmp_path: Path) -> None:
    api = pytest.importorskip("mypy.api")
    source = tmp_path / "caller.py"
    source.write_text("import memoptc\nmemoptc.compile('m.onnx', levle=1)\nmemoptc.compile('m.onnx', level='two')\n")
    out, _, code = api.run(["--strict", "--python-executable", sys.executable, str(source)])
    assert code == 1
    assert 'Unexpected keyword argument "levle"' in out
    assert 'incompatible type "str"; expected "int"' in out
    assert "Found 2 errors" in out


@pytest.mark.parametrize(
    "given",
    [
        FileOptions(measure=True),
        FileOptions(3, "int8", calibration="a b.npz", measure=False, fallback=False, dims={"N": 8, "M": 2}),
        FileOptions(memory_budget="activations=64MiB", skip_passes=("fit", "order"), jobs=2, reports=("a.md",)),
    ],
)
def test_the_words_of_options_give_these_options_again(given: FileOptions) -> None:
    seen: list[FileOptions] = []

    @click.command()
    @takes("options", FileOptions)
    def repeat(options: dict[str, Any]) -> None:
        seen.append(FileOptions(**options))

    outcome = CliRunner().invoke(repeat, to_argv(given))
    assert outcome.exit_code == 0, outcome.output
    assert [to_argv(options) for options in seen] == [to_argv(given)]
    assert seen[0].to_json() | {"reports": None} == given.to_json() | {"reports": None}


def test_what_no_words_can_stand_for_is_named_by_its_type() -> None:
    assert to_argv(FileOptions(calibration=[{}], measure=True)) == ["--calibration", "<list>"]


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("jobs", 0), ("jobs", 2.5), ("jobs", "2"), ("max_error", -1.0), ("max_slowdown", float("nan")),
        ("max_slowdown", float("inf")), ("min_sqnr", float("-inf")), ("level", True), ("form", "round"),
        ("memory_budget", -1), ("memory_budget", True), ("passes", 3),
    ],
)  # fmt: skip
def test_keywords_are_held_to_what_the_command_line_takes(keyword: str, value: object) -> None:
    with pytest.raises(InputError, match=keyword):
        Options(**{keyword: value})  # type: ignore[arg-type]


def test_one_word_is_a_list_of_one() -> None:
    given = FileOptions(exclude="Gemm", plugins="rules", reports=Path("a.md"))  # type: ignore[arg-type]
    assert (given.exclude, given.plugins, given.reports) == (("Gemm",), ("rules",), (Path("a.md"),))


def test_numbers_of_numpy_are_extents_and_truth_is_none() -> None:
    assert Options(dims={"n": np.int64(8)}).dims == {"n": 8}
    with pytest.raises(InputError, match="cannot be True"):
        Options(dims={"n": True})


def test_an_early_exit_that_gives_up_nothing_needs_data_too() -> None:
    with pytest.raises(InputError, match="--early-exit needs data"):
        Options(early_exit=0.0)
