"""What holds of the code as a whole: no circles of imports, and names of operators in one place."""

from __future__ import annotations

import ast
import pkgutil
import re
import textwrap
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import grimp
import onnx
import pytest

from memoptc.ir import ops

ROOT = Path(__file__).resolve().parent.parent
TABLE = Path(__file__).with_name("operator_names.toml")
HEAD = "# Comparisons with operator names outside of ir/ops: these numbers may only fall (tests/test_house.py).\n"
DOMAINS = ("com.microsoft", "ai.onnx")


ONE_STRUCTURE = [["memoptc.ir.graph", "memoptc.ir.model", "memoptc.ir.operation", "memoptc.ir.value"]]
"""Files whose annotations refer to each other: the parts of one data structure. They import in one direction only."""


def imports(*, annotations: bool) -> dict[str, set[str]]:
    """Each module of memoptc, and those of memoptc that it imports, on request for annotations alone, too."""
    graph = grimp.build_graph("memoptc", cache_dir=None, exclude_type_checking_imports=not annotations)
    return {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}


def circles(imported: dict[str, set[str]]) -> list[list[str]]:
    """Modules that import each other, directly or by way of others."""
    reached = {module: _reached(module, imported) for module in imported}
    found = {frozenset(o for o in reached[m] if m in reached[o]) for m in imported if m in reached[m]}
    return sorted(sorted(circle) for circle in found)


def _reached(start: str, imported: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    todo = [start]
    while todo:
        new = imported[todo.pop()] - found
        found |= new
        todo += new
    return found


def test_circles_are_seen() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"d"}}) == [["b", "c"], ["d"]]


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert len(imports(annotations=False)) > 300
    assert circles(imports(annotations=False)) == []
    assert circles(imports(annotations=True)) == ONE_STRUCTURE


# -- names of operators -----------------------------------------------------------------------------------------------

OWN = {"const", "absent", "return", "sparse_const"}
"""What memoptc's graphs have beside operators."""

MAKERS = {"Op", "op", "made", "copied", "make_node", "make", "_op", "_add", "Node", "reduced"}
"""Calls that make an operator; nothing can stand for that but its name."""

RULES = {"any"}
"""Calls of the rule language (`op.any("Mul", "Div")`): a pattern names operators."""

REGISTERS = {"register", "_delegate"}
"""Calls that enter or look up the type inference of an operator."""


@dataclass
class Names:
    """How often a module names operators.

    Args:
        made: To make one.
        matched: In patterns of rules.
        registered: To say how its types are inferred.
        compared: To ask whether something is one: comparisons, sets, keys, `is_a`, `walk`.
    """

    made: int = 0
    matched: int = 0
    registered: int = 0
    compared: int = 0

    def __add__(self, other: Names) -> Names:
        return Names(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Names)))


@pytest.fixture(scope="module")
def operators() -> frozenset[str]:
    """Names of all operators of ONNX and of those that `memoptc.ir.ops` knows, without their domains."""
    standard = {schema.name for schema in onnx.defs.get_all_schemas_with_history()}
    return frozenset((standard | {_bare(key) for key in ops.TABLE}) - OWN)


def _bare(name: str) -> str:
    return re.split(r"::|\.", name)[-1]


def operator_names(source: str, operators: frozenset[str]) -> Names:
    """Count the operators that a module's literals name, by what they are for; docstrings do not count.

    A list of names may be written as one text, to be split at spaces.
    """
    tree = ast.parse(source)
    purpose: dict[int, str] = {}
    for call in ast.walk(tree):
        if isinstance(call, ast.Call):
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            for kind, calls in (("made", MAKERS), ("matched", RULES), ("registered", REGISTERS)):
                if name in calls:
                    purpose |= {id(arg): kind for arg in call.args}
    found = Names()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
            continue
        words = node.value.split()
        if all(_bare(w) in operators and (w == _bare(w) or w.startswith(DOMAINS)) for w in words):
            kind = purpose.get(id(node), "compared")
            setattr(found, kind, getattr(found, kind) + len(words))
    return found


def test_operator_names_are_counted_by_purpose(operators: frozenset[str]) -> None:
    source = """
        if op.key in ("Conv", "com.microsoft::FusedConv", "NoOperator", "some.Conv") or op.is_const:
            "Conv, in prose"
            moving = "Slice Transpose".split()
            builder.op("Conv", [x])

        @rewrite(op.any("Mul", "Div")("x"))
        def rule(node):
            return node.is_a("Mul")

        registry.register("", "Split", since_version=2)(infer)
    """
    assert operator_names(textwrap.dedent(source), operators) == Names(made=1, matched=2, registered=1, compared=5)


def test_comparisons_with_operator_names_become_fewer(
    operators: frozenset[str], request: pytest.FixtureRequest
) -> None:
    """Outside of `ir/ops`, code asks what an operator is or does, not what it is called.

    `operator_names.toml` says how many comparisons each file still has, by why it has them. A number there may fall,
    never rise, and a new file has none, unless its reviewer agrees to one of the reasons. What makes operators, the
    patterns of rules, and the type inference of operators name them, and are not counted.
    `pytest tests/test_house.py --update` writes the present numbers; what no reason covers goes to `to_become_traits`.
    """
    found = {}
    for folder in ("ir", "runtime", "compiler", "passes"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            name = file.relative_to(ROOT).as_posix()
            # compiler/testing draws instances of operators: names are what it is about.
            if not name.startswith(("ir/ops/", "compiler/testing/")) and (
                count := operator_names(file.read_text("utf-8"), operators).compared
            ):
                found[name] = count
    allowed = tomllib.loads(TABLE.read_text("utf-8"))
    if request.config.getoption("update"):
        _write(found, allowed)
        allowed = tomllib.loads(TABLE.read_text("utf-8"))
    counts = {name: count for group in allowed.values() for name, count in group["files"].items()}
    more = [f"{name}: {n} instead of {counts.get(name, 0)}" for name, n in found.items() if n > counts.get(name, 0)]
    assert more == [], "ask memoptc.ir.ops for a trait, a family or a layout, or argue for the name"
    assert all(group["why"] for group in allowed.values())


def _write(found: dict[str, int], groups: dict[str, Any]) -> None:
    homes = {name: key for key, group in groups.items() for name in group["files"]}
    lines = [HEAD]
    for key, group in groups.items():
        files = [f'"{n}" = {count}' for n, count in found.items() if homes.get(n, "to_become_traits") == key]
        lines.append("\n".join([f"[{key}]", f'why = "{group["why"]}"', f"[{key}.files]", *files]) + "\n")
    TABLE.write_text("\n".join(lines), "utf-8")


def test_benchmarks_import_names_that_exist() -> None:
    """They run too long for tests, so that a name that moved would be missed only by who needs a figure."""
    missing = []
    for path in sorted((ROOT / "benchmarks").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "memoptc":
                for name in (f"{node.module}.{alias.name}" for alias in node.names):
                    try:
                        pkgutil.resolve_name(name)
                    except (ImportError, AttributeError):
                        missing.append(f"{path.name}: {name}")
    assert not missing
