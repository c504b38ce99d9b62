"""Origin of an exception in an author's code: type, message, file, line and the line's text."""

from __future__ import annotations

import linecache
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


def described(error: BaseException, author: str) -> str:
    """Describe an exception with the innermost line of the code that somebody wrote.

    Args:
        error: What was raised.
        author: A file of the author's; other files in its folder, and below, are the author's, too.
    """
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    places = [(frame.f_code, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    own = [p for p in places if p[0].co_filename == author]
    folder = Path(author).parent
    own = own or [p for p in places if Path(p[0].co_filename).is_relative_to(folder)]
    if not (own or places):
        return what
    code, line = (own or places)[-1]
    text = linecache.getline(code.co_filename, line).strip()
    return f"{what}\n  {code.co_filename}:{line}, in {code.co_name}" + (f"\n    {text}" if text else "")


def file_of(author: Any) -> str:
    """Give the file that a function was written in, or a class; `""` when it has none."""
    if isinstance(author, type):
        functions = [v for v in vars(author).values() if hasattr(v, "__code__")]
        written = [f for f in functions if f.__module__ == author.__module__ and f.__code__.co_filename != "<string>"]
        return written[0].__code__.co_filename if written else ""
    return str(author.__code__.co_filename) if hasattr(author, "__code__") else ""


def defined_at(function: Callable[..., Any]) -> str:
    """Give ` (file:line)` of a function; `""` when it has none of its own."""
    code = getattr(function, "__code__", None)
    return "" if code is None else f" ({code.co_filename}:{code.co_firstlineno})"
