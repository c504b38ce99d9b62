"""Arithmetic on extents such as `96*batch` without sympy: the cases of which there are many, and which need no algebra.

onnx-ir hands every operation on a symbolic extent to sympy. Of a graph whose only symbol is the size of the batch, all
are products of that with a number; reading them takes longer to import sympy for than to compile a small model. What is
computed here is spelled as sympy spells it, so that both may be mixed.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable
from typing import Any

from onnx_ir import SymbolicDim
from onnx_shape_inference._ops import _utils

_MONOMIAL = re.compile(r"(-)?(?:([1-9]\d*)\*)?([^\W\d]\w*)")


def install() -> None:
    """Answer where that is simple, in place of onnx-ir's operators; the others are still theirs."""
    for name in _REPEATED:
        original = getattr(SymbolicDim, name)
        if not hasattr(original, "simple"):
            known = _remembered(original)
            setattr(SymbolicDim, name, _first(_OPERATORS[name], known) if name in _OPERATORS else known)
    if not hasattr(SymbolicDim.free_symbols, "simple"):
        setattr(SymbolicDim, "free_symbols", _free_symbols(SymbolicDim.free_symbols))  # noqa: B010
    if not hasattr(_utils.max_dim, "simple"):
        setattr(_utils, "max_dim", _max_dim(_remembered(_utils.max_dim)))  # noqa: B010
        setattr(_utils, "min_dim", _remembered(_utils.min_dim))  # noqa: B010


def _first(of: Callable[[int, Any], int | None], original: Callable[..., Any]) -> Callable[..., Any]:
    """Make an operator that asks `of` for the new factor of a monomial, and `original` where there is none."""

    def operator(self: SymbolicDim, *operands: Any) -> Any:
        parts = _parts(self.value)
        if parts is not None and all(type(operand) is int for operand in operands):
            factor = of(parts[0], *operands)
            if factor:
                return SymbolicDim(_spelled(factor, parts[1]))
        if of is _quotient and operands == (1,) and self.value is not None and "/" not in self.value:
            return self + 0  # of whole numbers, which sympy takes milliseconds to find out
        return original(self, *operands)

    operator.simple = True  # type: ignore[attr-defined]
    return operator


def _remembered(original: Callable[..., Any]) -> Callable[..., Any]:
    """Make an operator that asks sympy once for the same extents, by how they are spelled: layers repeat."""
    known: dict[tuple[Any, ...], Any] = {}

    def operator(*operands: Any) -> Any:
        key = tuple(o.value if type(o) is SymbolicDim else o for o in operands)
        if any(type(part) not in (str, int) for part in key):
            return original(*operands)
        found = known.get(key)
        if found is None:
            if len(known) >= _REMEMBERED:
                known.clear()
            found = known[key] = original(*operands)
        return found

    operator.simple = True  # type: ignore[attr-defined]
    return operator


def _free_symbols(original: Callable[[SymbolicDim], frozenset[str]]) -> Callable[[SymbolicDim], frozenset[str]]:
    def free_symbols(self: SymbolicDim) -> frozenset[str]:
        parts = _parts(self.value)
        return original(self) if parts is None else frozenset((parts[1],))

    free_symbols.simple = True  # type: ignore[attr-defined]
    return free_symbols


def _max_dim(original: Callable[..., int | SymbolicDim | None]) -> Callable[..., int | SymbolicDim | None]:
    def max_dim(*extents: int | SymbolicDim) -> int | SymbolicDim | None:
        if len(extents) == 2 and extents[0] == 0 and isinstance(extents[1], SymbolicDim):
            parts = _parts(extents[1].value)
            if parts is not None and parts[0] > 0:
                return extents[1]  # no extent is negative
        return original(*extents)

    max_dim.simple = True  # type: ignore[attr-defined]
    return max_dim


def _parts(text: str | None) -> tuple[int, str] | None:
    """Take a monomial apart into factor and symbol; `None` for anything else."""
    found = None if text is None else _MONOMIAL.fullmatch(text)
    if found is None or keyword.iskeyword(found[3]):
        return None
    return int(found[2] or 1) * (-1 if found[1] else 1), found[3]


def _spelled(factor: int, symbol: str) -> str:
    sign, size = "-" if factor < 0 else "", abs(factor)
    return f"{sign}{symbol}" if size == 1 else f"{sign}{size}*{symbol}"


def _quotient(factor: int, number: int) -> int | None:
    return None if not number or factor % number else factor // number


_REMEMBERED = 1 << 14
"""Answers that are kept for one operator."""

_REPEATED = ("__add__", "__sub__", "__rsub__", "__mul__", "__floordiv__", "__truediv__", "__mod__", "__neg__")
"""Operators of which answers are kept; sympy takes up to milliseconds for one."""

_OPERATORS: dict[str, Callable[..., int | None]] = {
    "__add__": lambda factor, number: None if number else factor,
    "__sub__": lambda factor, number: None if number else factor,
    "__mul__": lambda factor, number: factor * number,
    "__floordiv__": _quotient,
    "__neg__": lambda factor: -factor,
}
"""The factor that an operator with a number leaves; nothing, or 0, where it leaves no monomial."""
