"""Memory budgets: of the whole process, of its planned activations, of its weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from numbers import Real
from typing import TypeAlias

from memoptc.ir.diagnostics import InputError
from memoptc.runtime.sizes import parse_bytes

PROCESS = "process"


@dataclass(frozen=True)
class Budget:
    """Memory budgets in bytes; `None` where there is none.

    Args:
        process: Need: what the process takes for the model above what it took before, loading included.
        activations: Tensors of a run, as planned.
        weights: Weights, as stored.
    """

    process: int | None = None
    activations: int | None = None
    weights: int | None = None

    @staticmethod
    def of(value: BudgetLike) -> Budget:
        """Give a budget for what a caller wrote: bytes, `256MiB`, or `activations=64MiB,weights=100MiB`.

        Raises:
            InputError: it says nothing that is known.
        """
        if value is None:
            return Budget()
        if isinstance(value, Budget):
            return value
        if isinstance(value, Real) and not isinstance(value, bool):
            if not 0 <= value < math.inf:
                raise InputError(f"memory_budget={value!r} is no size.", hint="Give bytes, or a size such as 256MiB.")
            return Budget(process=int(value))
        found: dict[str, int] = {}
        for part in str(value).split(","):
            name, equals, text = part.rpartition("=")
            name = name.strip() if equals else PROCESS
            if name not in (f.name for f in fields(Budget)) or name in found:
                raise InputError(
                    f"memory_budget={value!r}: {part.strip()!r} is no budget.",
                    hint="Write 256MiB for the whole process, or activations=64MiB,weights=100MiB for its parts.",
                )
            try:
                found[name] = parse_bytes(text)
            except ValueError as error:
                raise InputError(f"memory_budget={value!r}: {error}.", hint="Write a size such as 256MiB.") from error
        return Budget(**found)

    def __bool__(self) -> bool:
        return self != Budget()

    def __str__(self) -> str:
        """Write it as `of` reads it."""
        return ",".join(f"{f.name}={v}" for f in fields(self) if (v := getattr(self, f.name)) is not None)


BudgetLike: TypeAlias = Budget | int | str | None
"""A budget as callers write it."""
