"""Symbolic dimensions, proven by z3: the canonical form is the expression that it was made of, for all extents."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from memoptc.ir.dims import KnownDim, Sym, ceildiv, floordiv, is_nonnegative, maximum, minimum, mod

z3: Any = pytest.importorskip("z3", reason="z3 is not installed (pip install z3-solver)")

EXPRESSIONS, PATIENCE_MS = 1_000, 500


def integer(name: str, a: Any, b: Any) -> Any:
    """An atom's function in z3, whose division by a positive number rounds down."""
    if name in ("//", "%"):
        return a / b if name == "//" else a % b
    return z3.If(a <= b if name == "min" else a >= b, a, b)


def formula(dim: KnownDim) -> Any:
    """A dimension as z3 writes it."""
    if isinstance(dim, int):
        return z3.IntVal(dim)
    total = z3.IntVal(0)
    for atoms, factor in dim.terms:
        part = z3.IntVal(factor)
        for atom in atoms:
            part *= z3.Int(atom) if isinstance(atom, str) else integer(atom.name, *map(formula, atom.args))
        total += part
    return total


def draw(rng: random.Random, depth: int) -> tuple[KnownDim, Any]:
    """A random expression over N and M: as a dimension, and as z3 has it without any rule of ours."""
    if depth == 0 or rng.random() < 0.2:
        leaf = rng.choice(["N", "M", rng.randint(0, 7)])
        return (Sym(leaf), z3.Int(leaf)) if isinstance(leaf, str) else (leaf, z3.IntVal(leaf))
    (a, x), (b, y), c = draw(rng, depth - 1), draw(rng, depth - 1), rng.randint(1, 8)
    made: dict[str, tuple[KnownDim, Any]] = {
        "+": (a + b, x + y),
        "-": (a - b, x - y),
        "*": (a * c, x * c),
        "//": (floordiv(a, c), x / c),
        "ceil": (ceildiv(a, c), -(-x / c)),
        "%": (mod(a, c), x % c),
        "min": (minimum(a, b), integer("min", x, y)),
        "max": (maximum(a, b), integer("max", x, y)),
    }
    return made[rng.choice(list(made))]


@pytest.mark.nightly
def test_expressions_are_what_they_were_made_of() -> None:
    rng, verdicts = random.Random(0), Counter[str]()
    for _ in range(EXPRESSIONS):
        dim, wanted = draw(rng, rng.choice([2, 3, 4]))
        claims = [wanted == formula(dim)] + ([wanted >= 0] if is_nonnegative(dim) else [])
        for claim in claims:
            solver = z3.Solver()
            solver.set("timeout", PATIENCE_MS)
            solver.add(z3.Int("N") >= 0, z3.Int("M") >= 0, z3.Not(claim))
            verdicts[str(solver.check())] += 1
            assert not verdicts["sat"], f"{wanted} became {dim}: {solver.model()}"
    assert verdicts["unknown"] < 0.05 * verdicts.total()
