"""What memoptc says when something is wrong: one sentence what, one sentence how to go on."""

from __future__ import annotations


class MemoptcError(Exception):
    """Base of every error that memoptc raises on purpose.

    Args:
        message: One sentence that says what is wrong, naming the file, node or value.
        hint: One sentence that says how to go on; empty when there is nothing to do.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class InternalError(MemoptcError):
    """A fault of ours: a pass broke an invariant. Exit code 1."""


class InputError(MemoptcError):
    """Bad usage or bad input: a file, an option or a model that cannot be used. Exit code 2."""

    exit_code = 2


class GateError(MemoptcError):
    """Verification or the accuracy gate failed; nothing was written. Exit code 3."""

    exit_code = 3


class BudgetError(MemoptcError):
    """The memory budget is out of reach; nothing was written. Exit code 4."""

    exit_code = 4
