"""Running and measuring models: planned runs, evaluation, verification, calibration, memory and time.

`memoptc.runtime.Session` is a drop-in for `onnxruntime.InferenceSession` that keeps memory small,
`memoptc.runtime.Decoder` runs language models.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_LAZY = {
    "Contract": "memoptc.runtime.contract",
    "Decoder": "memoptc.runtime.decoding",
    "MemoryLimit": "memoptc.runtime.errors",
    "PlanLeft": "memoptc.runtime.errors",
    "Pool": "memoptc.runtime.pool",
    "Session": "memoptc.runtime.session",
    "Shadow": "memoptc.runtime.shadow",
    "Stages": "memoptc.runtime.stages",
}

__all__ = ["Contract", "Decoder", "MemoryLimit", "PlanLeft", "Pool", "Session", "Shadow", "Stages"]

if TYPE_CHECKING:
    from memoptc.runtime.contract import Contract
    from memoptc.runtime.decoding import Decoder
    from memoptc.runtime.errors import MemoryLimit, PlanLeft
    from memoptc.runtime.pool import Pool
    from memoptc.runtime.session import Session
    from memoptc.runtime.shadow import Shadow
    from memoptc.runtime.stages import Stages


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'memoptc.runtime' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
