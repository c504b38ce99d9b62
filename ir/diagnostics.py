"""Errors of memoptc: one sentence that says what is wrong, one that says how to go on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lark import Lark
    from lark.exceptions import UnexpectedInput


def first_line(error: BaseException) -> str:
    """The first line of what an error says; of one that says nothing, its class."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


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


class ProofError(GateError):
    """Outputs differ by more than allowed."""


class BudgetError(MemoptcError):
    """The memory budget is out of reach; nothing was written. Exit code 4."""

    exit_code = 4


class SourceError(InputError):
    """Something is wrong at one place of a text: `file:line:col: message`, then the line, then a caret.

    Args:
        what: What is wrong.
        text: The whole text.
        line: Line of the place, counted from 1 within `text`.
        col: Column of the place, counted from 1.
        file: Name of the text's file.
        first_line: Line of `file` at which `text` begins.
        hint: How to go on.
    """

    def __init__(
        self, what: str, text: str, line: int, col: int, *, file: str = "", first_line: int = 1, hint: str = ""
    ) -> None:
        lines = text.split("\n")
        shown = lines[line - 1].rstrip("\r") if line <= len(lines) else ""
        self.what = what
        self.file, self.line, self.col = file, line + first_line - 1, col
        caret = "".join(c if c == "\t" else " " for c in shown[: col - 1]) + "^"
        super().__init__(f"{file or '<text>'}:{self.line}:{col}: {what}\n{shown}\n{caret}", hint)


def syntax_error(error: UnexpectedInput, lark: Lark, text: str, *, file: str = "", first_line: int = 1) -> SourceError:
    """Turn what Lark says of a text that does not parse into one sentence with its place.

    Args:
        error: Lark's error.
        lark: The parser.
        text: The whole text.
        file: Name of the text's file.
        first_line: Line of `file` at which `text` begins.
    """
    token = getattr(error, "token", None)
    if (token is None and getattr(error, "char", None) is None) or (token is not None and token.type == "$END"):
        lines = text.rstrip().split("\n")
        line, col, what = len(lines), len(lines[-1]) + 1, "the text ends too early"
    else:
        line, col = error.line, error.column
        what = f"{str(token) if token is not None else error.char!r} cannot stand here"  # type: ignore[attr-defined]
    names: set[str] = getattr(error, "accepts", None) or getattr(error, "expected", None) or set()
    names = names or getattr(error, "allowed", None) or set()
    patterns = {t.name: t.pattern for t in lark.terminals}
    wanted = sorted(
        repr(patterns[n].value) if n in patterns and patterns[n].type == "str" else n.lower()
        for n in names
        if n != "$END" and n not in lark.ignore_tokens
    )
    if 0 < len(wanted) <= 6:
        what += f"; expected {' or '.join(wanted)}"
    return SourceError(what, text, line, col, file=file, first_line=first_line)
