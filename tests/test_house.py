"""What holds of the code as a whole: no circles of imports, and names of operators in one place."""

from __future__ import annotations

import ast
import re
import textwrap
import tomllib
from pathlib import Path

import grimp
import onnx
import pytest

from memoptc.ir import ops

ROOT = Path(__file__).resolve().parent.parent
TABLE = Path(__file__).with_name("operator_names.toml")
HEAD = "# Names of operators outside of ir/ops, by file: these numbers may only fall (tests/test_house.py).\n"
DOMAINS = ("com.microsoft", "ai.onnx")


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    """Each module of memoptc, and those of memoptc that it imports."""
    graph = grimp.build_graph("memoptc", cache_dir=None)
    return {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Modules that import each other, directly or by way of others."""
    reached = {module: _reached(module, imports) for module in imports}
    found = {frozenset(o for o in reached[m] if m in reached[o]) for m in imports if m in reached[m]}
    return sorted(sorted(circle) for circle in found)


def _reached(start: str, imports: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    todo = [start]
    while todo:
        new = imports[todo.pop()] - found
        found |= new
        todo += new
    return found


def test_circles_are_seen() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"d"}}) == [["b", "c"], ["d"]]


def test_no_module_imports_itself_by_way_of_others(imports: dict[str, set[str]]) -> None:
    assert len(imports) > 300
    assert circles(imports) == []


# -- names of operators -----------------------------------------------------------------------------------------------

OWN = {"const", "absent", "return", "sparse_const"}
"""What memoptc's graphs have beside operators."""

MAKERS = {"Op", "op", "made", "copied"}
"""Calls whose first argument is the operator to make; nothing can stand for that but its name."""


@pytest.fixture(scope="module")
def operators() -> frozenset[str]:
    """Names of all operators of ONNX and of those that `memoptc.ir.ops` knows, without their domains."""
    standard = {schema.name for schema in onnx.defs.get_all_schemas_with_history()}
    return frozenset((standard | {_bare(key) for key in ops.TABLE}) - OWN)


def _bare(name: str) -> str:
    return re.split(r"::|\.", name)[-1]


def operator_names(source: str, operators: frozenset[str]) -> int:
    """Count the literals of a module that name an operator; docstrings and operators that are made do not count."""
    tree = ast.parse(source)
    made = {
        id(call.args[0])
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and call.args
        and (call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")) in MAKERS
    }
    return sum(
        isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in made
        and _bare(node.value) in operators
        and (node.value == _bare(node.value) or node.value.startswith(DOMAINS))
        for node in ast.walk(tree)
    )


def test_operator_names_are_counted(operators: frozenset[str]) -> None:
    source = """
        if op.key in ("Conv", "com.microsoft::FusedConv", "NoOperator", "some.Conv") or op.is_const:
            "Conv, in prose"
            builder.op("Conv", [x])
    """
    assert operator_names(textwrap.dedent(source), operators) == 2


def test_operator_names_become_fewer(operators: frozenset[str], request: pytest.FixtureRequest) -> None:
    """Outside of `ir/ops`, code asks what an operator is or does, not what it is called.

    `operator_names.toml` says how many names each file still has. A number there may fall, never rise, and a new file
    has none, unless its reviewer agrees that it recognises a structure (a pattern of a rule, an exporter's way to spell
    attention), which has to name operators. `pytest tests/test_house.py --update` writes the present numbers.
    """
    found = {}
    for folder in ("ir", "runtime", "compiler", "passes"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            name = file.relative_to(ROOT).as_posix()
            # compiler/testing draws instances of operators: names are what it is about.
            if not name.startswith(("ir/ops/", "compiler/testing/")) and (
                count := operator_names(file.read_text("utf-8"), operators)
            ):
                found[name] = count
    if request.config.getoption("update"):
        TABLE.write_text(HEAD + "".join(f'"{name}" = {count}\n' for name, count in found.items()), "utf-8")
    allowed = tomllib.loads(TABLE.read_text("utf-8"))
    more = [f"{name}: {n} instead of {allowed.get(name, 0)}" for name, n in found.items() if n > allowed.get(name, 0)]
    assert more == [], "ask memoptc.ir.ops for a trait, a family or a layout, or argue for the name"
