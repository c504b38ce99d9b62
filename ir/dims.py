"""Symbolic dimensions: integers that are not known yet, with exact arithmetic.

A dimension is `int`, `Sym` or `None`. `None` means unknown: it never takes part in reasoning, and two
unknown dimensions are never taken to be equal (see `same`). A `Sym` is a polynomial with integer
coefficients over *atoms*: names, and integer functions (`//`, `%`, `min`, `max`) of dimensions. It is kept
in one canonical form, so that equal expressions are `==` and hash alike. Symbols stand for extents and are
therefore taken to be >= 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias, Union

LONGEST_SHAPE = 1024
"""No shape has as many extents: elements of longer vectors are data, which inference does not follow one by one."""

Dim: TypeAlias = Union[int, "Sym", None]
KnownDim: TypeAlias = Union[int, "Sym"]


@dataclass(frozen=True)
class Func:
    """An integer function of two dimensions that is not a polynomial: the atoms `//`, `%`, `min`, `max`."""

    name: str
    args: tuple[KnownDim, KnownDim]

    def __str__(self) -> str:
        return self._text

    @cached_property
    def _text(self) -> str:
        a, b = self.args
        if self.name in ("min", "max"):
            return f"{self.name}({a},{b})"
        return f"{_wrap(a)}{self.name}{_wrap(b)}"


Atom: TypeAlias = str | Func
Monomial: TypeAlias = tuple[Atom, ...]


class Sym:
    """An immutable symbolic dimension, such as `N`, `2*N+1` or `(H+1)//2`.

    Args:
        name: The symbol. Use `memoptc.ir.dim_text.parse_dim` for expressions.
        spelling: How the source file spells this dimension when that differs from `str(self)`; `""` when
            the file gives it no name at all, `None` when there is no other spelling. It is kept for
            writing and takes no part in equality.
    """

    __slots__ = ("_free", "_hash", "_text", "spelling", "terms")
    _free: frozenset[str] | None
    _hash: int
    _text: str | None
    terms: tuple[tuple[Monomial, int], ...]
    spelling: str | None

    def __init__(self, name: str, spelling: str | None = None) -> None:
        self._set((((name,), 1),), spelling)

    def _set(self, terms: tuple[tuple[Monomial, int], ...], spelling: str | None) -> None:
        object.__setattr__(self, "terms", terms)
        object.__setattr__(self, "spelling", spelling)
        object.__setattr__(self, "_hash", hash(terms))
        object.__setattr__(self, "_text", None)
        object.__setattr__(self, "_free", None)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a Sym cannot change: make a new one")

    def __reduce__(self) -> tuple[Callable[..., Sym], tuple[object, ...]]:
        return _restore, (self.terms, self.spelling)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Sym) and self._hash == other._hash and self.terms == other.terms

    def __hash__(self) -> int:
        return self._hash

    def spelled(self, spelling: str | None) -> Sym:
        """Give the same dimension with another spelling in the file."""
        return _restore(self.terms, spelling)

    @property
    def name(self) -> str | None:
        """The symbol's name when this is one plain symbol, else `None`."""
        if len(self.terms) == 1 and self.terms[0][1] == 1 and len(self.terms[0][0]) == 1:
            atom = self.terms[0][0][0]
            return atom if isinstance(atom, str) else None
        return None

    @property
    def free(self) -> frozenset[str]:
        """The names this dimension depends on."""
        if self._free is None:
            object.__setattr__(self, "_free", self._names())
        assert self._free is not None
        return self._free

    def _names(self) -> frozenset[str]:
        names: set[str] = set()
        for monomial, _ in self.terms:
            for atom in monomial:
                if isinstance(atom, str):
                    names.add(atom)
                else:
                    for arg in atom.args:
                        names |= free_symbols(arg)
        return frozenset(names)

    def evaluate(self, bindings: Mapping[str, int]) -> int:
        """Give the value under `bindings` (symbol name -> extent).

        Raises:
            KeyError: a symbol has no binding.
        """
        total = 0
        for monomial, factor in self.terms:
            for atom in monomial:
                if isinstance(atom, str):
                    factor *= bindings[atom]
                else:
                    a, b = (x if isinstance(x, int) else x.evaluate(bindings) for x in atom.args)
                    factor *= _NUMBERS[atom.name](a, b)
            total += factor
        return total

    def __add__(self, other: KnownDim) -> KnownDim:
        if isinstance(other, int) and not other:
            return self
        terms = dict(self.terms)
        for monomial, factor in _terms(other):
            terms[monomial] = terms.get(monomial, 0) + factor
        return _make(terms)

    __radd__ = __add__

    def __neg__(self) -> KnownDim:
        return self * -1

    def __sub__(self, other: KnownDim) -> KnownDim:
        return self + (other * -1)

    def __rsub__(self, other: KnownDim) -> KnownDim:
        return (self * -1) + other

    def __mul__(self, other: KnownDim) -> KnownDim:
        if isinstance(other, int):
            return self if other == 1 else _restore(tuple((m, f * other) for m, f in self.terms), None) if other else 0
        terms: dict[Monomial, int] = {}
        for m1, f1 in self.terms:
            for m2, f2 in _terms(other):
                monomial = tuple(sorted(m1 + m2, key=str))
                terms[monomial] = terms.get(monomial, 0) + f1 * f2
        return _make(terms)

    __rmul__ = __mul__

    def __floordiv__(self, other: KnownDim) -> KnownDim:
        return floordiv(self, other)

    def __rfloordiv__(self, other: KnownDim) -> KnownDim:
        return floordiv(other, self)

    def __mod__(self, other: KnownDim) -> KnownDim:
        return mod(self, other)

    def __rmod__(self, other: KnownDim) -> KnownDim:
        return mod(other, self)

    def __str__(self) -> str:
        if self._text is None:
            object.__setattr__(self, "_text", self._spell())
        return self._text  # type: ignore[return-value]

    def _spell(self) -> str:
        text = ""
        for monomial, factor in self.terms:
            alone = len(monomial) == 1 and len(self.terms) == 1 and factor == 1
            body = str(monomial[0]) if alone else "*".join(_wrap_atom(a) for a in monomial)
            sign = "-" if factor < 0 else "+" if text else ""
            size = abs(factor)
            text += sign + (str(size) if not body else body if size == 1 else f"{size}*{body}")
        return text

    def __repr__(self) -> str:
        return f"parse_dim({str(self)!r})"


def _restore(terms: tuple[tuple[Monomial, int], ...], spelling: str | None) -> Sym:
    sym = object.__new__(Sym)
    sym._set(terms, spelling)
    return sym


def _terms(dim: KnownDim) -> Iterable[tuple[Monomial, int]]:
    return (((), dim),) if isinstance(dim, int) else dim.terms


def _make(terms: Mapping[Monomial, int]) -> KnownDim:
    kept = [(m, f) for m, f in terms.items() if f]
    if not kept:
        return 0
    if len(kept) == 1 and not kept[0][0]:
        return kept[0][1]
    # Highest degree first, the constant last: the order in which people write polynomials.
    kept.sort(key=lambda t: (-len(t[0]), [str(a) for a in t[0]]))
    return _restore(tuple(kept), None)


def _wrap(dim: KnownDim) -> str:
    return str(dim) if isinstance(dim, int) or dim.name else f"({dim})"


def _wrap_atom(atom: Atom) -> str:
    return f"({atom})" if isinstance(atom, Func) and atom.name in ("//", "%") else str(atom)


def _atom(name: str, a: KnownDim, b: KnownDim) -> KnownDim:
    return _restore((((Func(name, (a, b)),), 1),), None)


def floordiv(a: KnownDim, b: KnownDim) -> KnownDim:
    """Give `floor(a / b)`. For a constant `b` the part of `a` that it divides is taken out exactly."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b
    if a == b:
        return 1
    if isinstance(b, int):
        whole = _make({m: f // b for m, f in _terms(a)})
        rest = _make({m: f % b for m, f in _terms(a)})
        if isinstance(rest, int):
            return whole + rest // b
        return whole + _reduced_floordiv(rest, b)
    if a == 0:
        return 0
    quotient = _divide_monomial(a, b)
    return quotient if quotient is not None else _atom("//", a, b)


def _reduced_floordiv(a: Sym, b: int) -> KnownDim:
    """Cancel the common factor, and use `(x // p) // q == x // (p * q)` for positive p and q."""
    common = math.gcd(b, *(f for _, f in a.terms))
    if common > 1:
        return floordiv(_make({m: f // common for m, f in a.terms}), b // common)
    (monomial, factor), *others = a.terms
    if b > 0 and factor == 1 and not others and len(monomial) == 1 and isinstance(monomial[0], Func):
        inner, by = monomial[0].args
        if monomial[0].name == "//" and isinstance(by, int) and by > 0:
            return floordiv(inner, by * b)
    return _atom("//", a, b)


def _divide_monomial(a: KnownDim, b: Sym) -> KnownDim | None:
    if len(b.terms) != 1:
        return None
    (divisor, factor), out = b.terms[0], {}
    for monomial, f in _terms(a):
        rest = list(monomial)
        for atom in divisor:
            if atom not in rest:
                return None
            rest.remove(atom)
        if f % factor:
            return None
        out[tuple(rest)] = f // factor
    return _make(out)


def ceildiv(a: KnownDim, b: KnownDim) -> KnownDim:
    """Give `ceil(a / b)` for positive `b`, in the canonical form `(a + b - 1) // b`."""
    return floordiv(a + (b - 1), b)


def mod(a: KnownDim, b: KnownDim) -> KnownDim:
    """Give `a % b` with the sign of `b`, as Python does."""
    if isinstance(a, int) and isinstance(b, int):
        return a % b
    if a == b:
        return 0
    if isinstance(b, int):
        rest = _make({m: f % b for m, f in _terms(a)})
        return rest % b if isinstance(rest, int) else _atom("%", rest, b)
    return _atom("%", a, b)


def minimum(a: KnownDim, b: KnownDim) -> KnownDim:
    """Give the smaller of two dimensions."""
    return _extreme("min", a, b)


def maximum(a: KnownDim, b: KnownDim) -> KnownDim:
    """Give the larger of two dimensions."""
    return _extreme("max", a, b)


def _extreme(name: str, a: KnownDim, b: KnownDim) -> KnownDim:
    """The smaller of two dimensions by the name of `min`, or the larger: one of them where it is known which."""
    for large, small in ((a, b), (b, a)):
        inner, outer = (large, small) if name == "min" else (small, large)
        if is_nonnegative(large - small) or _is_among(inner, outer, name):
            return outer
    return _atom(name, *sorted((a, b), key=str))


def _is_among(a: KnownDim, b: KnownDim, name: str) -> bool:
    """True if `b` is `max(a, ...)`, or `min`: then it is that of both."""
    if isinstance(b, int) or len(b.terms) != 1:
        return False
    ((atoms, factor),) = b.terms
    return (
        factor == 1 and len(atoms) == 1 and isinstance(atoms[0], Func) and atoms[0].name == name and a in atoms[0].args
    )


_OPS: dict[str, Callable[[KnownDim, KnownDim], KnownDim]] = {
    "//": lambda a, b: 0 if b == 0 else floordiv(a, b),  # of an extent that turned out to be 0
    "%": lambda a, b: 0 if b == 0 else mod(a, b),
    "min": minimum,
    "max": maximum,
}


_NUMBERS: dict[str, Callable[[int, int], int]] = {
    "//": lambda a, b: a // b if b else 0,
    "%": lambda a, b: a % b if b else 0,
    "min": min,
    "max": max,
}


def is_nonnegative(dim: KnownDim) -> bool:
    """True if `dim >= 0` follows for all extents >= 0. `False` means "not proven"."""
    if isinstance(dim, int):
        return dim >= 0
    return all(f >= 0 and all(_atom_nonnegative(a) for a in m) for m, f in dim.terms)


def _atom_nonnegative(atom: Atom) -> bool:
    if isinstance(atom, str):
        return True
    a, b = atom.args
    if atom.name == "//":
        return is_nonnegative(a) and is_nonnegative(b)
    if atom.name == "%":
        return is_nonnegative(b)
    if atom.name == "max":
        return is_nonnegative(a) or is_nonnegative(b)
    return is_nonnegative(a) and is_nonnegative(b)


def same(a: Dim, b: Dim) -> bool:
    """True if two dimensions are known to be equal. Unknown ones never are."""
    return a is not None and b is not None and a == b


def free_symbols(dim: Dim) -> frozenset[str]:
    """The symbols a dimension depends on; none for an int or an unknown one."""
    return dim.free if isinstance(dim, Sym) else frozenset()


def substitute(dim: KnownDim, bindings: Mapping[str, KnownDim]) -> KnownDim:
    """Put `bindings` in for symbols; those not named stay."""
    if isinstance(dim, int):
        return dim
    total: KnownDim = 0
    for monomial, factor in dim.terms:
        term: KnownDim = factor
        for atom in monomial:
            if isinstance(atom, str):
                term = term * bindings.get(atom, Sym(atom))
            else:
                a, b = (substitute(x, bindings) for x in atom.args)
                term = term * _OPS[atom.name](a, b)
        total = total + term
    return total


def product(dims: Iterable[KnownDim]) -> KnownDim:
    """Multiply dimensions; 1 for none."""
    total: KnownDim = 1
    for dim in dims:
        total = total * dim
    return total
