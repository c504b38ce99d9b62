"""Modules executed when something of them is first used: importing sympy takes longer than compiling a small model.

onnx-ir and onnx-shape-inference import sympy for arithmetic on symbolic extents. Many models have none, or only pass
symbols on. Python's own `importlib.util.LazyLoader` is of no use here: a second import of a module executes it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.abc import Loader

DEFERRED = (
    "sympy",
    "onnx_ir._symbolic_shapes",
    "onnx_shape_inference._symbolic_shapes",
    "onnx_shape_inference._constraints",
)
"""sympy, and what computes with it as soon as it is imported."""

_LOCK = threading.RLock()


class Deferred(ModuleType):
    """A module that is executed when an attribute is looked up; what was set on it before stays."""

    def __getattr__(self, name: str) -> Any:
        execute(self)
        return getattr(self, name)


def execute(module: ModuleType) -> None:
    """Execute a deferred module now; nothing for others."""
    with _LOCK:
        if type(module) is not Deferred:
            return
        object.__setattr__(module, "__class__", ModuleType)
        known = dict(vars(module))
        spec = module.__spec__
        assert spec is not None
        assert isinstance(spec.loader, _DeferredLoader)
        spec.loader = module.__loader__ = spec.loader.actual
        spec.loader.exec_module(module)
        vars(module).update({k: v for k, v in known.items() if not k.startswith("__")})


class _DeferredLoader:
    def __init__(self, actual: Loader) -> None:
        self.actual = actual

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Leave it to `execute`."""
        module.__class__ = Deferred


class _Imported:
    """Gives a module that was imported while it was looked for."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.spec = module, module.__spec__
        module.__spec__ = None  # with one, the import system loads the module a second time

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        """Leave it as it is."""
        module.__spec__ = self.spec


class _Finder:
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        parent = sys.modules.get(fullname.rpartition(".")[0])
        if type(parent) is Deferred:  # what lies inside a package may need it, and may be imported by it
            execute(parent)
            if fullname in sys.modules:
                return ModuleSpec(fullname, _Imported(sys.modules[fullname]))  # type: ignore[arg-type]
        if fullname not in DEFERRED:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _DeferredLoader(spec.loader)  # type: ignore[assignment]
        return spec


def install() -> None:
    """Defer `DEFERRED` from now on, as far as they are not imported yet."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
