"""memoptc: make ONNX models run in far less memory, and prove numerically what changed.

`memoptc.compile(model, level=2, target="int8", calibration=...)` is the whole tool as one call. Names are
loaded when first used, so that `import memoptc` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from memoptc.version import __version__

_LAZY = {
    "BudgetError": "memoptc.ir.diagnostics",
    "Context": "memoptc.pass_base",
    "GateError": "memoptc.ir.diagnostics",
    "InputError": "memoptc.ir.diagnostics",
    "MemoptcError": "memoptc.ir.diagnostics",
    "Pass": "memoptc.pass_base",
    "Result": "memoptc.api",
    "compile": "memoptc.api",
}

__all__ = [
    "BudgetError",
    "Context",
    "GateError",
    "InputError",
    "MemoptcError",
    "Pass",
    "Result",
    "__version__",
    "compile",
]

if TYPE_CHECKING:
    from memoptc.api import Result, compile
    from memoptc.ir.diagnostics import BudgetError, GateError, InputError, MemoptcError
    from memoptc.pass_base import Context, Pass


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'memoptc' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
