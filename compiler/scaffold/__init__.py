"""A package for a new pass: the pass, its tests, and what makes memoptc find it."""

from __future__ import annotations

import re
from pathlib import Path

from memoptc.ir.diagnostics import InputError
from memoptc.ir.files import TemporaryFolder

KINDS = ("rule", "pass")

_FILES = {
    "pyproject.toml": "pyproject.toml.j2",
    "README.md": "README.md.j2",
    "src/{package}/__init__.py": "package.py.j2",
    "src/{package}/{module}.py": "{kind}.py.j2",
    "tests/test_{module}.py": "tests.py.j2",
    "tests/cases/{module}.mir": "case.mir.j2",
}
"""Files of the package, and the template of each."""


def new_pass(name: str, kind: str, folder: Path) -> list[Path]:
    """Write a package with one pass, which works, and tests that pass.

    Args:
        name: The pass's name, such as `drop-double-relu`.
        kind: `rule`: a pattern and what replaces it; `pass`: code that walks the graph.
        folder: Where to write; it appears with all files or not at all.

    Returns:
        The files written.

    Raises:
        InputError: the name is none, or taken; the folder is there, or cannot be made.
    """
    from memoptc import registry

    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise InputError(f"{name!r} is no name of a pass.", hint="Write words in small letters: drop-double-relu.")
    if name in registry.names():
        raise InputError(f"There is a pass {name} already.", hint="`memoptc passes` lists them.")
    if folder.exists():
        raise InputError(f"{folder} is there already.", hint="Name another folder with -o.")
    module = name.replace("-", "_")
    facts = {
        "name": name,
        "kind": kind,
        "module": module,
        "package": f"memoptc_{module}",
        "cls": "".join(word.capitalize() for word in name.split("-")),
    }
    written = []
    try:
        with TemporaryFolder(parent=folder.absolute().parent) as scratch:
            made = Path(scratch) / folder.name
            for place, template in _FILES.items():
                file = made / place.format(**facts)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(_render(template.format(**facts), facts), encoding="utf-8")
                written.append(folder / place.format(**facts))
            made.rename(folder)
    except OSError as error:
        raise InputError(f"{folder} cannot be made: {error.strerror}.", hint="Name another with -o.") from error
    return written


def _render(template: str, facts: dict[str, str]) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("memoptc.scaffold"),
        trim_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,
    )
    return environment.get_template(template).render(facts)
