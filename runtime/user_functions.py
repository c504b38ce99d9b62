"""Functions of the user's own modules: imported by name, their faults told as theirs."""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from memoptc.ir.diagnostics import InputError, MemoptcError
from memoptc.runtime.npz import one_line


def load_function(module: str, function: str) -> Callable[..., Any]:
    """Import a user's function; the current folder counts as a place of modules.

    Raises:
        InputError: there is no such module or function.
    """
    added = os.getcwd() not in sys.path and "" not in sys.path
    if added:
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), function, None)
    except Exception as error:  # the module's own faults, too
        kind = "" if isinstance(error, ImportError) else f"{type(error).__name__}: "
        raise InputError(f"{module}:{function}: {kind}{one_line(error)}.", hint="--debug shows where.") from error
    finally:
        if added:
            sys.path.remove(os.getcwd())
    if not callable(found):
        raise InputError(f"{module} has no function {function!r}.")

    @functools.wraps(found)
    def call(*arguments: Any) -> Any:
        try:
            return found(*arguments)
        except MemoptcError:
            raise
        except Exception as error:
            raise _raised_by(f"{module}:{function}", error) from error

    return call


def _raised_by(name: str, error: Exception) -> InputError:
    return InputError(f"{name} raised {type(error).__name__}: {one_line(error)}.", hint="--debug shows where.")


def guarded_items(items: Iterable[Mapping[str, Any]], name: str) -> Iterator[Mapping[str, Any]]:
    """Give what a user's function gives; a fault of a generator is told as the function's."""
    rest = iter(items)
    while True:
        try:
            item = next(rest)
        except StopIteration:
            return
        except Exception as error:
            raise _raised_by(name, error) from error
        yield item
