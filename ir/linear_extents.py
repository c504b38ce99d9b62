"""Arithmetic on extents such as `96*batch` or `floor(width/2) + 1` without sympy: what needs no algebra.

onnx-ir hands every operation on a symbolic extent to sympy. In most graphs all extents are linear in a symbol, or in a
floor of such an extent, as convolutions and pools halve pictures; importing sympy for them takes longer than compiling
a small model. What is computed here is spelled as sympy spells it, so that both may be mixed.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

from onnx_ir import SymbolicDim
from onnx_shape_inference._ops import _utils

_TERM = re.compile(r"(-)?(?:([1-9]\d*)\*)?([^\W\d]\w*)(?:/([1-9]\d*))?")
_PART = re.compile(r"(-)?(?:([1-9]\d*)\*)?(floor\(|Max\(0, )(.*)\)(?:/([1-9]\d*))?")
_NUMBER = re.compile(r"([1-9]\d*)(?:/([1-9]\d*))?")
_REMEMBERED = 1 << 14
"""Answers that are kept for one operator."""


class Linear(NamedTuple):
    """An extent that is linear in one part: `factor * part + constant`.

    Args:
        factor: Not 0.
        part: A symbol, or a function of an extent that is linear in its turn.
        constant: The rest.
    """

    factor: Fraction
    part: str | Part
    constant: Fraction = Fraction(0)

    def __str__(self) -> str:
        """Spell it as sympy does: the number first where only that is positive."""
        if not self.constant:
            return self._term
        sign, size = "-" if self.constant < 0 else "+", abs(self.constant)
        return f"{size} - {self._term[1:]}" if self.factor < 0 < self.constant else f"{self._term} {sign} {size}"

    @property
    def _term(self) -> str:
        sign, size = "-" if self.factor < 0 else "", abs(self.factor)
        part = self.part if isinstance(self.part, str) else f"{self.part.function}{self.part.of})"
        over = "" if size.denominator == 1 else f"/{size.denominator}"
        return f"{sign}{part}{over}" if size.numerator == 1 else f"{sign}{size.numerator}*{part}{over}"

    @property
    def symbol(self) -> str:
        """The symbol inside."""
        return self.part if isinstance(self.part, str) else self.part.of.symbol

    @property
    def never_negative(self) -> bool:
        """True if no value of the symbol, which is an extent, makes it negative; not found where numbers cancel out."""
        part = isinstance(self.part, str) or self.part.function == _MAX or self.part.of.never_negative
        return self.factor > 0 and self.constant >= 0 and part

    @property
    def rises(self) -> bool:
        """True if it never falls where the symbol grows."""
        return self.factor > 0 and (isinstance(self.part, str) or self.part.of.rises)

    @property
    def has_open_sign(self) -> bool:
        """True if it may be negative as far as sympy can tell; of linear extents of a symbol it can tell more."""
        if isinstance(self.part, str) or not self.rises or self.constant > 0:
            return False
        return self.constant < 0 or (self.part.function == _FLOOR and self.part.of.has_open_sign)

    def positive_part(self) -> Linear | None:
        """Give `max(0, self)`; `None` where that is left to sympy."""
        if self.never_negative:
            return self
        return Linear(Fraction(1), Part(_MAX, self)) if self.has_open_sign else None

    def floor(self) -> Linear:
        """Round down: whole numbers are taken out of the floor where the rest is one of the part alone."""
        whole, rest = self.factor.denominator == 1, self.constant.denominator == 1
        if whole:
            return Linear(self.factor, self.part, Fraction(self.constant.__floor__()))
        if rest:
            return Linear(Fraction(1), Part(_FLOOR, Linear(self.factor, self.part)), self.constant)
        return Linear(Fraction(1), Part(_FLOOR, self))


_FLOOR, _MAX = "floor(", "Max(0, "


class Part(NamedTuple):
    """The floor of an extent, or the extent where it is positive and 0 elsewhere.

    Args:
        function: How its spelling begins.
        of: The extent.
    """

    function: str
    of: Linear

    @property
    def is_simple(self) -> bool:
        """True if sympy leaves it as it is; else it makes something else of it when it reads it."""
        return self.of.floor().part == self if self.function == _FLOOR else self.of.has_open_sign


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
        setattr(_utils, "min_dim", _min_dim(_remembered(_utils.min_dim)))  # noqa: B010


def _first(of: Callable[..., Linear | None], original: Callable[..., Any]) -> Callable[..., Any]:
    """Make an operator that asks `of` for a linear extent, and `original` where there is none."""
    remembered = lru_cache(_REMEMBERED)(of)

    def operator(self: SymbolicDim, *operands: Any) -> Any:
        extent = _whole(self.value)
        if extent is not None and all(type(operand) is int for operand in operands):
            answer = remembered(extent, *operands)
            if answer is not None:
                return SymbolicDim(str(answer))
        if of is _OPERATORS["__floordiv__"] and operands == (1,) and self.value is not None and "/" not in self.value:
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
        extent = linear(self.value)
        return original(self) if extent is None else frozenset((extent.symbol,))

    free_symbols.simple = True  # type: ignore[attr-defined]
    return free_symbols


def _max_dim(original: Callable[..., int | SymbolicDim | None]) -> Callable[..., int | SymbolicDim | None]:
    def max_dim(*extents: int | SymbolicDim) -> int | SymbolicDim | None:
        if len(extents) == 2 and extents[0] == 0 and isinstance(extents[1], SymbolicDim):
            extent = _whole(extents[1].value)
            positive = None if extent is None else extent.positive_part()
            if positive is not None:
                return SymbolicDim(str(positive))
        return original(*extents)

    max_dim.simple = True  # type: ignore[attr-defined]
    return max_dim


def _min_dim(original: Callable[..., int | SymbolicDim | None]) -> Callable[..., int | SymbolicDim | None]:
    def min_dim(*extents: int | SymbolicDim) -> int | SymbolicDim | None:
        first, *others = extents
        same = isinstance(first, SymbolicDim) and linear(first.value) is not None and all(e == first for e in others)
        return first if same else original(*extents)

    min_dim.simple = True  # type: ignore[attr-defined]
    return min_dim


@lru_cache(_REMEMBERED)
def linear(text: str | None) -> Linear | None:
    """Read an extent that is linear in one part and spelled as sympy spells it; `None` for anything else."""
    if text is None:
        return None
    term, constant = text, Fraction(0)
    first, sign, last = _split(text)
    if sign and (number := _number(last)) is not None:
        term, constant = first, -number if sign == "-" else number
    elif sign == "-" and (number := _number(first)) is not None:
        term, constant = f"-{last}", number
    symbol, function = _TERM.fullmatch(term), _PART.fullmatch(term)
    if symbol is not None:
        sign, factor, name, divisor = symbol.groups()
        read = _signed(sign, factor, divisor, name, constant)
        simple = not keyword.iskeyword(name)
    elif function is not None and (of := linear(function[4])) is not None:
        sign, factor, name, _, divisor = function.groups()
        part = Part(name, of)
        read, simple = _signed(sign, factor, divisor, part, constant), part.is_simple
    else:
        return None
    return read if simple and str(read) == text else None


def _signed(sign: str | None, factor: str | None, divisor: str | None, part: str | Part, constant: Fraction) -> Linear:
    return Linear(Fraction(int(factor or 1) * (-1 if sign else 1), int(divisor or 1)), part, constant)


def _split(text: str) -> tuple[str, str, str]:
    """Split a sum at its only sign outside of parentheses; without one the sign is empty."""
    depth, at = 0, -1
    for index, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if letter == " " and depth == 0 and text[index + 1 : index + 3] in ("+ ", "- "):
            if at >= 0:
                return text, "", ""
            at = index
    return (text, "", "") if at < 0 else (text[:at], text[at + 1], text[at + 3 :])


def _number(text: str) -> Fraction | None:
    found = _NUMBER.fullmatch(text)
    return None if found is None else Fraction(int(found[1]), int(found[2] or 1))


def _whole(text: str | None) -> Linear | None:
    """Read an extent, which is a whole number whatever the symbol is."""
    found = linear(text)
    return found if found is not None and found.factor.denominator == found.constant.denominator == 1 else None


_REPEATED = ("__add__", "__sub__", "__rsub__", "__mul__", "__floordiv__", "__truediv__", "__mod__", "__neg__")
"""Operators of which answers are kept; sympy takes up to milliseconds for one."""

_OPERATORS: dict[str, Callable[..., Linear | None]] = {
    "__add__": lambda x, number: x._replace(constant=x.constant + number),
    "__sub__": lambda x, number: x._replace(constant=x.constant - number),
    "__rsub__": lambda x, number: Linear(-x.factor, x.part, number - x.constant),
    "__mul__": lambda x, number: Linear(x.factor * number, x.part, x.constant * number) if number else None,
    "__floordiv__": lambda x, n: Linear(x.factor / n, x.part, x.constant / n).floor() if n else None,
    "__neg__": lambda x: Linear(-x.factor, x.part, -x.constant),
}
"""What an operator with a number makes of an extent; `None` where that is left to sympy."""
