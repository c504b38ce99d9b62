"""Finding passes by name: memoptc's own, those of installed packages, those of plug-in files. No one is privileged."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from memoptc.ir.diagnostics import InputError
from memoptc.pass_base import Pass

BUILT_IN = "memoptc.passes"
ENTRY_POINT_GROUP = "memoptc.passes"

_plugins: dict[str, type[Pass]] = {}
_sources: dict[str, list[str]] = {}


def find(name: str) -> type[Pass]:
    """Give the pass class of that name.

    Raises:
        InputError: there is none; the message names close ones.
    """
    if name in _plugins:
        return _plugins[name]
    if name in (own := _built_in()):
        return _pass_in(importlib.import_module(own[name]), name)
    for entry in entry_points(group=ENTRY_POINT_GROUP, name=name):
        try:
            found = entry.load()
        except Exception as e:
            raise InputError(f"Pass {name} of {entry.value} cannot be loaded: {type(e).__name__}: {e}.") from e
        if isinstance(found, ModuleType):
            return _pass_in(found, name)
        if isinstance(found, type) and issubclass(found, Pass):
            return found
        raise InputError(f"Entry point {name} = {entry.value} names no pass.", hint="Name a module or a Pass.")
    close = difflib.get_close_matches(name, list(names()), n=1)
    guess = f"Did you mean {close[0]}?" if close else "`memoptc passes` lists them."
    raise InputError(f"There is no pass {name!r}.", hint=guess)


def names() -> list[str]:
    """Names of all passes that can be found, sorted."""
    return sorted(set(_built_in()) | {e.name for e in entry_points(group=ENTRY_POINT_GROUP)} | set(_plugins))


@cache
def _built_in() -> dict[str, str]:
    """Give the module of each built-in pass: `memoptc.passes` has one package for each kind, with its passes."""
    package = importlib.import_module(BUILT_IN)
    kinds = [m.name for m in pkgutil.iter_modules(package.__path__, f"{BUILT_IN}.") if m.ispkg]
    return {
        m.name.replace("_", "-"): f"{kind}.{m.name}"
        for kind in kinds
        for m in pkgutil.iter_modules(importlib.import_module(kind).__path__)
        if not m.ispkg and not m.name.startswith("_")
    }


def help_of(cls: type[Pass]) -> str:
    """The first line of the pass's docstring, or of its module's."""
    own = cls.__doc__ if cls.__doc__ and not cls.__doc__.startswith(f"{cls.__name__}(") else None
    text = own or sys.modules[cls.__module__].__doc__ or ""
    return text.strip().partition("\n")[0].removeprefix(f"{cls.name}: ")


def load_plugins(sources: Sequence[str]) -> None:
    """Load passes of several plug-ins, each a module name, a `.py` file or a `.rules` file.

    Raises:
        InputError: one cannot be loaded or defines no pass, or two define passes of one name.
    """
    origins: dict[str, str] = {}
    for source in sources:
        _sources[source] = load_plugin(source)
        for name in _sources[source]:
            other = origins.setdefault(name, source)
            if other != source:
                raise InputError(
                    f"Plug-ins {other} and {source} both define a pass {name}.",
                    hint="Rename one of them, or name one plug-in only: a pipeline could not say which it means.",
                )


def names_in(source: str) -> list[str]:
    """Names of the passes that a plug-in brought when `load_plugins` loaded it."""
    return _sources.get(source, [])


def load_plugin(source: str) -> list[str]:
    """Load passes from a module name, a `.py` file or a `.rules` file. Their names go before any other's.

    Returns:
        The names of its passes.

    Raises:
        InputError: it cannot be loaded, or defines no pass.
    """
    path = Path(source)
    if path.suffix == ".rules":
        from memoptc.rewrite.language import load_rules

        rules = load_rules(path)
        _register(rules)
        return [rules.name]
    try:
        module = _load_file(path) if path.suffix == ".py" else importlib.import_module(source)
    except InputError:
        raise
    except Exception as e:
        raise InputError(
            f"Plug-in {source} cannot be loaded: {type(e).__name__}: {e}.",
            hint="Name an importable module, or a .py or .rules file.",
        ) from e
    found = list(_passes_of(module))
    if not found:
        raise InputError(f"Plug-in {source} defines no pass.", hint="Let it define a subclass of memoptc.Pass.")
    for cls in found:
        _register(cls)
    return [cls.name for cls in found]


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError(f"Plug-in {path}: no such file.", hint="Check the path.")
    # A name of its own, so that a plug-in called json.py takes nobody's place.
    name = f"memoptc_plugin_{path.stem}_{abs(hash(path.resolve())):x}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _register(cls: type[Pass]) -> None:
    _plugins[cls.name] = cls


def _passes_of(module: ModuleType) -> Iterator[type[Pass]]:
    for _, cls in inspect.getmembers(module, inspect.isclass):
        if issubclass(cls, Pass) and cls.__module__ == module.__name__:
            yield cls


def _pass_in(module: ModuleType, name: str) -> type[Pass]:
    for cls in _passes_of(module):
        if cls.name == name:
            return cls
    for _, other in inspect.getmembers(module, inspect.isclass):
        if issubclass(other, Pass) and other.name == name:
            return other
    raise InputError(f"Module {module.__name__} defines no pass {name!r}.")
