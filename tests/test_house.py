"""How the house stands: no module imports itself by way of others, imports for type checkers included."""

from __future__ import annotations

import grimp
import pytest


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
