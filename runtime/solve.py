"""Solve what operators require of extents: dependent symbols as expressions of independent ones, and their bounds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from memoptc.ir.core import Graph
from memoptc.ir.dims import Func, KnownDim, Sym, free_symbols, is_nonnegative, substitute
from memoptc.ir.functions import as_loaded
from memoptc.ir.infer import infer_shapes, inferred
from memoptc.ir.types import TensorType, Type
from memoptc.runtime.constraints import Requirement, requirements
from memoptc.runtime.extent_search import Equation

_ROUNDS = 4


@dataclass
class Solution:
    """Extents that belong together.

    Args:
        values: Symbol -> its extent in terms of independent symbols.
        bounds: What must not be larger than what (kinds `at most` and `least`).
        conflicts: Requirements that no extents meet together with those before them.
        equations: Equalities of the inputs' extents that no symbol could be solved for; `extent_search` meets them.
        inputs: Symbols of the inputs; others stand for extents inside the model, and are solved for first.
    """

    values: dict[str, KnownDim] = field(default_factory=dict)
    bounds: list[Requirement] = field(default_factory=list)
    conflicts: list[Requirement] = field(default_factory=list)
    equations: list[Equation] = field(default_factory=list)
    inputs: frozenset[str] = frozenset()

    def of(self, dim: KnownDim) -> KnownDim:
        """Give an extent in terms of independent symbols."""
        return substitute(dim, self.values) if free_symbols(dim) & set(self.values) else dim

    def complete(self, binding: Mapping[str, int]) -> dict[str, int]:
        """Add the dependent symbols to a binding of the independent ones; that none is negative is among the bounds."""
        found = dict(binding)
        for name, dim in self.values.items():
            if free_symbols(dim) <= set(found):
                found[name] = dim if isinstance(dim, int) else dim.evaluate(binding)
        return found

    def holds(self, binding: Mapping[str, int]) -> bool:
        """True if a completed binding breaks no bound, and meets every equation."""
        return self.broken(binding) is None and all(e.holds(binding) for e in self.equations)

    def broken(self, binding: Mapping[str, int]) -> Requirement | None:
        """Give the first bound that a completed binding breaks."""
        for bound in self.bounds:
            if free_symbols(bound.left) | free_symbols(bound.right) <= set(binding):
                left, right = (d if isinstance(d, int) else d.evaluate(binding) for d in (bound.left, bound.right))
                if left > right:
                    return bound
        return None


def gather(graph: Graph, symbols: Iterable[str]) -> tuple[Graph, list[Requirement]]:
    """Give what a model's operators require of the symbols of its inputs, and a copy with inferred types.

    The bodies of the model's functions stand in place of their calls. Where two symbols turn out equal, inference goes
    on with one of them, and finds more.
    """
    loaded = graph.analysis(as_loaded)
    first, shapes = inferred(loaded)
    copy, found = first, list[Requirement]()
    for _ in range(_ROUNDS):
        new = [r for r in requirements(copy, shapes) if r not in found]
        found += new
        solution = solve(found, {}, symbols)
        solved = [_in_terms(solution, value.type) for value in graph.inputs]
        if not new or solved == [value.type for value in graph.inputs]:
            break
        copy = loaded.clone()
        for value, type_ in zip(copy.inputs, solved, strict=True):
            value.type = type_
        shapes = infer_shapes(copy)
    return first, found


def _in_terms(solution: Solution, type_: Type | None) -> Type | None:
    """Give an input's type with its extents in terms of independent symbols."""
    if not isinstance(type_, TensorType) or type_.shape is None:
        return type_
    return type_.with_shape(tuple(None if d is None else solution.of(d) for d in type_.shape))


def solve(found: Iterable[Requirement], decided: Mapping[str, int], inputs: Iterable[str]) -> Solution:
    """Solve requirements for the symbols of a model's inputs.

    Equalities are solved first, surest first; then axes that broadcast are taken to be equal where
    that contradicts nothing, else the one that can be 1 is; then an extent that is only bounded from below, by an
    expression, is taken to be that expression: a mask is as long as the keys that it masks.

    Args:
        found: The requirements.
        decided: Symbols whose extents are asked for.
        inputs: Symbols of the inputs. Others stand for extents that inference knows nothing of.
    """
    wanted = set(inputs)
    every = [_as_bound(r) for r in found]
    solution = Solution(dict(decided), inputs=frozenset(wanted))
    for kind, trust in (("equal", 0), ("equal", 1), ("broadcast", 0), ("equal", 2), ("broadcast", 2)):
        for r in every:
            if (r.kind, r.trust) == (kind, trust) and not _equate(solution, r.left, r.right):
                if kind == "equal" or not _one(solution, r):
                    solution.conflicts.append(r)
    bounds = [r for r in every if r.kind in ("at most", "least")]
    for r in bounds:
        if r.kind == "least":
            continue
        right = solution.of(r.right)
        lone = isinstance(right, Sym) and right.name in wanted and right.name not in free_symbols(solution.of(r.left))
        if lone and free_symbols(solution.of(r.left)) <= wanted:
            _equate(solution, r.right, r.left)
    solution.equations = list(_equations(solution, every))
    dependent = [Requirement("least", 0, d, name) for name, d in solution.values.items() if not is_nonnegative(d)]
    solution.bounds = dependent + [
        Requirement(r.kind, left, right, r.op)
        for r in bounds
        for left, right in [(solution.of(r.left), solution.of(r.right))]
        if left != right and not (isinstance(left, int) and isinstance(right, int) and left <= right)
    ]
    return solution


def _equations(solution: Solution, found: Iterable[Requirement]) -> Iterator[Equation]:
    seen = set()
    for r in found:
        sure = r.kind == "equal" and r.trust < 2
        equation = Equation.of(solution.of(r.left), solution.of(r.right), r.op) if sure else None
        if equation is not None and equation.rest not in seen and equation.rest.free <= solution.inputs:
            seen.add(equation.rest)
            yield equation


def _as_bound(r: Requirement) -> Requirement:
    """Read `min(a, b) == a` as what it means, a <= b: what is cut to a table's length agrees with what is not.

    So is `max(a, b) == a`, b <= a: what a slice leaves of an extent that cannot be negative.
    """
    for cut, whole in ((r.left, r.right), (r.right, r.left)):
        if r.kind not in ("equal", "broadcast") or not isinstance(cut, Sym) or len(cut.terms) != 1:
            continue
        ((atoms, factor),) = cut.terms
        if factor == 1 and len(atoms) == 1 and isinstance(atoms[0], Func) and whole in atoms[0].args:
            a, b = atoms[0].args
            other = b if whole == a else a
            if atoms[0].name == "min":
                return Requirement("at most", whole, other, r.op, r.trust)
            if atoms[0].name == "max":
                return Requirement("least" if isinstance(other, int) else "at most", other, whole, r.op, r.trust)
    return r


def _equate(solution: Solution, left: KnownDim, right: KnownDim) -> bool:
    """Make two extents equal by solving for a symbol; `False` where they cannot be."""
    a, b = solution.of(left), solution.of(right)
    if a == b:
        return True
    rest = a - b
    if isinstance(rest, int):
        return False
    inner = sorted(rest.free - solution.inputs)
    for name in inner:
        solved = _solved(rest, name)
        if solved is not None:
            return _bind(solution, name, solved)
    if inner:
        return True  # says nothing that is known of the inputs
    for one, other in ((a, b), (b, a)):  # a symbol that stands alone is the dependent one
        if isinstance(one, Sym) and one.name is not None and one.name not in free_symbols(other):
            return _bind(solution, one.name, other)
    for name in sorted(rest.free):
        solved = _solved(rest, name)
        if solved is not None:
            return _bind(solution, name, solved)
    return False


def _solved(rest: Sym, name: str) -> KnownDim | None:
    """Solve `rest == 0` for a symbol that occurs once, linearly; `None` where that gives no whole number."""
    reduced = rest // math.gcd(*(n for _, n in rest.terms))
    assert isinstance(reduced, Sym)  # it depends on the symbol
    rest = reduced
    coefficient = sum(n for atoms, n in rest.terms if atoms == (name,))
    remaining = rest - Sym(name) * coefficient
    if not coefficient or name in free_symbols(remaining):
        return None
    if abs(coefficient) == 1:
        return remaining * -coefficient
    if isinstance(remaining, int):
        return -remaining // coefficient if remaining % coefficient == 0 else None
    return None


def _bind(solution: Solution, name: str, dim: KnownDim) -> bool:
    if isinstance(dim, int) and dim < 0:
        return False
    solution.values = {
        k: substitute(v, {name: dim}) if name in free_symbols(v) else v for k, v in solution.values.items()
    }
    solution.values[name] = dim
    return True


def _one(solution: Solution, r: Requirement) -> bool:
    return any(_equate(solution, side, 1) for side in (r.left, r.right))
