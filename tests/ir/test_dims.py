"""Symbolic dimensions: canonical forms, exactness against plain integer arithmetic, text round trip."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memoptc.ir.dim_text import parse_dim
from memoptc.ir.dims import KnownDim, Sym, ceildiv, floordiv, is_nonnegative, maximum, minimum, mod, same, substitute

NAMES = ("N", "H", "W")


@st.composite
def expressions(draw: st.DrawFn, depth: int = 3) -> tuple[KnownDim, str]:
    """A dimension, and the same computation as Python source."""
    if depth == 0 or draw(st.booleans()):
        if draw(st.booleans()):
            name = draw(st.sampled_from(NAMES))
            return Sym(name), name
        number = draw(st.integers(-5, 9))
        return number, f"({number})"
    (a, sa), (b, sb) = draw(expressions(depth=depth - 1)), draw(expressions(depth=depth - 1))
    k = draw(st.integers(1, 6))
    return draw(
        st.sampled_from(
            [
                (a + b, f"({sa}+{sb})"),
                (a - b, f"({sa}-{sb})"),
                (a * b, f"({sa}*{sb})"),
                (floordiv(a, k), f"({sa}//{k})"),
                (ceildiv(a, k), f"(-(-{sa}//{k}))"),
                (mod(a, k), f"({sa}%{k})"),
                (minimum(a, b), f"min({sa},{sb})"),
                (maximum(a, b), f"max({sa},{sb})"),
            ]
        )
    )


def value(dim: KnownDim, env: dict[str, int]) -> int:
    return dim if isinstance(dim, int) else dim.evaluate(env)


@given(expressions(), st.tuples(*[st.integers(0, 50)] * 3))
def test_arithmetic_is_exact(expression: tuple[KnownDim, str], extents: tuple[int, ...]) -> None:
    dim, source = expression
    env = dict(zip(NAMES, extents, strict=True))
    assert value(dim, env) == eval(source, {"min": min, "max": max}, env)


@given(expressions())
def test_text_round_trip(expression: tuple[KnownDim, str]) -> None:
    dim, _ = expression
    assert parse_dim(str(dim)) == dim


@given(expressions(), st.tuples(*[st.integers(0, 50)] * 3))
def test_nonnegative_is_never_wrong(expression: tuple[KnownDim, str], extents: tuple[int, ...]) -> None:
    dim, _ = expression
    if is_nonnegative(dim):
        assert value(dim, dict(zip(NAMES, extents, strict=True))) >= 0


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("1+N*2", "2*N+1"),
        ("ceil(H/2)", "(H+1)//2"),
        ("ceiling(H/2)", "(H+1)//2"),
        ("floor(H/2 + 1/2)", "(H+1)//2"),
        ("floor(H/4 - 1/4) + 1", "(H+3)//4"),
        ("(W-1)//2+1", "(W+1)//2"),
        ("N*4//8", "N//2"),
        ("N//2//3", "N//6"),
        ("2*N*H//N", "2*H"),
        ("Max(N, 0)", "N"),
    ],
)
def test_one_canonical_form(text: str, canonical: str) -> None:
    assert str(parse_dim(text)) == canonical


@pytest.mark.parametrize("text", ["", "?", "N M", "f(N)", "1.5", "N[0]", "__import__('os')", "a.b"])
def test_what_is_not_a_dimension_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a dimension"):
        parse_dim(text)


def test_unknown_is_never_the_same() -> None:
    assert not same(None, None)
    assert not same(None, 3)
    assert same(parse_dim("N+N"), parse_dim("2*N"))


def test_a_quotient_of_an_extent_of_0_is_0() -> None:
    for dim in (Sym("N") // Sym("M"), Sym("N") % Sym("M")):
        assert isinstance(dim, Sym)
        assert dim.evaluate({"N": 6, "M": 0}) == 0
        assert substitute(dim, {"M": 0}) == 0


def test_evaluate_names_the_missing_symbol() -> None:
    dim = parse_dim("N*M")
    assert isinstance(dim, Sym)
    with pytest.raises(KeyError, match="M"):
        dim.evaluate({"N": 2})
    assert dim.evaluate({"N": 2, "M": 3}) == math.prod((2, 3))
