"""Read symbolic dimensions from text: `N`, `2*N+1`, `floor((H - 1)/2) + 1`."""

from __future__ import annotations

import ast
from functools import lru_cache

from memoptc.ir.dims import KnownDim, Sym, ceildiv, floordiv, maximum, minimum, mod, product


@lru_cache(maxsize=4096)
def parse_dim(text: str) -> KnownDim:
    """Read an expression: names, integers, `+ - * / // %`, `floor ceil ceiling min max Mod` and parentheses.

    A bare `a/b` means `floor(a/b)`, which for an extent it must equal.

    Raises:
        ValueError: the text is not such an expression.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, RecursionError, MemoryError) as e:
        raise ValueError(f"not a dimension: {text!r}") from e
    num, den = _rational(tree.body, text)
    return num if den == 1 else floordiv(num, den)


def _rational(node: ast.expr, text: str) -> tuple[KnownDim, KnownDim]:
    """Read an expression as a fraction, so that `floor(H/2 + 1/2)` becomes exact."""
    match node:
        case ast.Constant(value=int(v)) if not isinstance(v, bool):
            return v, 1
        case ast.Name(id=name):
            return Sym(name), 1
        case ast.UnaryOp(op=ast.USub(), operand=x):
            n, d = _rational(x, text)
            return n * -1, d
        case ast.BinOp(left=left, op=op, right=right):
            (n1, d1), (n2, d2) = _rational(left, text), _rational(right, text)
            match op:
                case ast.Add() | ast.Sub():
                    sign = 1 if isinstance(op, ast.Add) else -1
                    if d1 == d2:
                        return n1 + n2 * sign, d1
                    return n1 * d2 + n2 * d1 * sign, d1 * d2
                case ast.Mult():
                    return n1 * n2, d1 * d2
                case ast.Div():
                    return n1 * d2, d1 * n2
                case ast.FloorDiv():
                    return floordiv(n1 * d2, d1 * n2), 1
                case ast.Mod():
                    return mod(floordiv(n1, d1), floordiv(n2, d2)), 1
                case ast.Pow() if d2 == 1 and isinstance(n2, int) and 0 <= n2 <= 8:
                    return product([n1] * n2), product([d1] * n2)
        case ast.Call(func=ast.Name(id=func), args=args, keywords=[]) if args:
            parts = [_rational(a, text) for a in args]
            if func == "floor" and len(parts) == 1:
                return floordiv(*parts[0]), 1
            if func in ("ceil", "ceiling") and len(parts) == 1:
                return ceildiv(*parts[0]), 1
            wholes = [n if d == 1 else floordiv(n, d) for n, d in parts]
            if func == "Mod" and len(wholes) == 2:
                return mod(wholes[0], wholes[1]), 1
            if func in ("min", "Min", "max", "Max"):
                fold = minimum if func in ("min", "Min") else maximum
                total = wholes[0]
                for dim in wholes[1:]:
                    total = fold(total, dim)
                return total, 1
    raise ValueError(f"not a dimension: {text!r}")
