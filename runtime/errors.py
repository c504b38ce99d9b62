"""Errors of `memoptc.runtime.Session`: each is also an instance of what onnxruntime raises in the same case.

A program written for `onnxruntime.InferenceSession` catches onnxruntime's exceptions; one written for memoptc catches
`InputError`. `translated` raises one that is both.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from memoptc.ir.diagnostics import BudgetError, InputError, MemoptcError
from memoptc.runtime.options import clean_message, way_out


class PlanLeft(InputError, ort_state.Fail):  # type: ignore[misc]
    """A run asked for memory that its plan does not foresee."""


class MemoryLimit(BudgetError, ort_state.Fail):  # type: ignore[misc]
    """A run, or loading, would need more memory than the session may use."""


def no_such_file(path: object) -> InputError:
    """Make the error for a model that is not there; onnxruntime's is `NoSuchFile`."""
    return as_both(ort_state.NoSuchFile)(f"{path}: no such file.")


def invalid_argument(message: str, hint: str = "") -> InputError:
    """Make the error for a wrong name or value in a call; onnxruntime's is `InvalidArgument`."""
    return as_both(ort_state.InvalidArgument)(message, hint)


def too_much_memory(limit: int | None, what: str) -> MemoryLimit:
    """Make the error for more than the limit."""
    return MemoryLimit(
        f"More than the limit of {limit} bytes is needed: {what}.", hint="Raise the limit, or feed smaller inputs."
    )


def too_large(what: str) -> MemoryLimit:
    """Make the error for more memory than there is."""
    return MemoryLimit(f"{what}.", hint="Feed smaller inputs, or compile the model for less memory.")


_CODES = (
    "Fail", "InvalidArgument", "NoSuchFile", "NoModel", "EngineError", "RuntimeException", "InvalidProtobuf",
    "ModelLoaded", "NotImplemented", "InvalidGraph", "EPFail",
)  # fmt: skip
"""Exceptions of onnxruntime's Python package, in the order of `OrtErrorCode` from 1 on."""


def of_code(code: int) -> type[InputError]:
    """Give the class of errors for an `OrtErrorCode` of the C interface."""
    name = _CODES[code - 1] if 1 <= code <= len(_CODES) else "Fail"
    return as_both(getattr(ort_state, name, ort_state.Fail))


_both: dict[type[Exception], type[InputError]] = {}


def as_both(kind: type[Exception]) -> type[InputError]:
    """Give the class of errors that are an `InputError` and of the given kind."""
    if issubclass(kind, InputError):
        return kind
    if kind not in _both:
        _both[kind] = type(kind.__name__, (InputError, kind), {"__module__": __name__, "__doc__": kind.__doc__})
    return _both[kind]


@contextmanager
def translated(limit: int | None = None) -> Iterator[None]:
    """Turn what onnxruntime raises inside into one clear sentence, caught by either name.

    Args:
        limit: The session's memory limit, in bytes; a failure to allocate is then a `MemoryLimit`.
    """
    try:
        yield
    except MemoptcError:
        raise
    except Exception as error:
        if limit is not None and "memory" in str(error).lower():
            raise too_much_memory(limit, clean_message(error)) from None
        what = f"onnxruntime cannot run the model: {clean_message(error)}."
        raise as_both(type(error))(what, hint=way_out(error)) from error
