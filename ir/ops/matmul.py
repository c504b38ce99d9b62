"""Matrix products."""

from __future__ import annotations

import re
from dataclasses import replace
from math import prod
from typing import Any

from memoptc.ir.core import Op
from memoptc.ir.dims import Dim, same
from memoptc.ir.ops.axis import (
    SUMMED,
    WHOLE,
    Along,
    Axis,
    Join,
    accumulated,
    axis_of_result,
    broadcast_axis,
    dtype_of,
    everywhere,
    extents,
    shape,
)
from memoptc.ir.ops.definition import Family, IntegerKernel, Operator, ShapeOf, WeightLayout, also, define
from memoptc.ir.ops.sample import Rng, Sample, floats
from memoptc.ir.ops.sample import extents as drawn_extents
from memoptc.ir.ops.schema import MICROSOFT
from memoptc.ir.ops.sizes import Sizes, width


def _matmul(op: Op) -> list[Axis]:
    return _product(op, 0, 1, False, False)


def _fused_matmul(op: Op) -> list[Axis]:
    if op.attrs.get("transBatchA") or op.attrs.get("transBatchB"):
        return []
    return _product(op, 0, 1, bool(op.attrs.get("transA")), bool(op.attrs.get("transB")))


def _matmul_integer(op: Op) -> list[Axis]:
    scalar = all(not extents(op, i) or extents(op, i) == (1,) for i in (2, 3))
    return _product(op, 0, 1, False, False) if scalar else []


def _qlinear_matmul(op: Op) -> list[Axis]:
    scalar = all(not extents(op, i) or extents(op, i) == (1,) for i in (1, 2, 4, 5, 6, 7))
    return _product(op, 0, 3, False, False) if scalar else []


def _product(op: Op, left: int, right: int, flip_a: bool, flip_b: bool) -> list[Axis]:
    """A matrix product: rows of the left operand, columns of the right one, batches of both."""
    a, b, y = extents(op, left), extents(op, right), shape(op.results[0])
    if len(a) < 2 or len(b) < 2 or y is None or len(y) < 2:
        return []
    rank = len(y)
    found = []
    for place in range(rank - 2):
        parts = [broadcast_axis(op, i, place, rank, y[place]) for i in (left, right)]
        if all(p is not False for p in parts) and any(parts):
            cut = [(i, p) for i, p in zip((left, right), parts, strict=True) if isinstance(p, Along)]
            # Batches of one operand only may be computed as rows of one product.
            found.append(axis_of_result(op, place, *cut, reorders=len(cut) < 2))
    found.append(axis_of_result(op, rank - 2, (left, Along(len(a) - (1 if flip_a else 2))), reorders=True))
    found.append(axis_of_result(op, rank - 1, (right, Along(len(b) - (2 if flip_b else 1))), reorders=True))
    return found


def _gemm(op: Op) -> list[Axis]:
    flip_a, flip_b = bool(op.attrs.get("transA")), bool(op.attrs.get("transB"))
    y = shape(op.results[0])
    if y is None or len(y) != 2:
        return []
    found = []
    for place, operand, axis in ((0, 0, int(flip_a)), (1, 1, 1 - int(flip_b))):
        bias = broadcast_axis(op, 2, place, 2, y[place])
        if bias is False:
            continue
        cut = [(operand, Along(axis))] + ([(2, bias)] if isinstance(bias, Along) else [])
        found.append(axis_of_result(op, place, *cut, reorders=True))
    return found


def _rows(op: Op) -> list[Axis]:
    """Every axis but the last: a product with weights that are packed."""
    return [Axis((i,), everywhere(op, i).operands, reorders=True) for i in range(len(extents(op, 0)) - 1)]


def _equation(op: Op) -> str:
    """An Einsum's equation without blanks."""
    equation: str | bytes = op.attrs.get("equation", "")
    return (equation.decode() if isinstance(equation, bytes) else equation).replace(" ", "")


def einsum_terms(op: Op) -> tuple[list[str], str] | None:
    """The letters of each operand and of the result, `None` where one has a letter twice or they are not all said."""
    text = _equation(op)
    if "." in text or "->" not in text or not re.fullmatch(r"[A-Za-z,]*->[A-Za-z]*", text):
        return None
    left, _, result = text.partition("->")
    terms = left.split(",")
    if len(terms) != len(op.operands) or any(len(set(t)) != len(t) for t in [*terms, result]):
        return None
    if any(len(extents(op, i)) != len(t) for i, t in enumerate(terms)):
        return None
    return terms, result


def _einsum(op: Op) -> list[Axis]:
    letters, y = einsum_terms(op), shape(op.results[0])
    if letters is None or y is None:
        return []
    terms, result = letters
    found = []
    for place, letter in enumerate(result):
        places = [t.find(letter) for t in terms]
        if all(p < 0 or same(extents(op, i)[p], y[place]) for i, p in enumerate(places)):
            found.append(
                axis_of_result(op, place, *[(i, Along(p)) for i, p in enumerate(places) if p >= 0], reorders=True)
            )
    return found


def _terms(op: Op, flip_a: bool, flip_b: bool) -> list[Axis]:
    """The terms of a matrix product's sums."""
    a, b = extents(op, 0), extents(op, 1)
    if len(a) < 2 or len(b) < 2 or shape(op.results[0]) is None:
        return []
    left, right = len(a) - (2 if flip_a else 1), len(b) - (1 if flip_b else 2)
    return [accumulated(op, Join.SUM, (0, left), (1, right))] if same(a[left], b[right]) else []


def matmul_terms(op: Op) -> list[Axis]:
    """The contraction axis of a MatMul, along which partial products are added up."""
    return _terms(op, False, False) if dtype_of(op, 0) in (*SUMMED, *WHOLE) else []


def _fused_matmul_terms(op: Op) -> list[Axis]:
    if op.attrs.get("transBatchA") or op.attrs.get("transBatchB") or dtype_of(op, 0) not in SUMMED:
        return []
    return _terms(op, bool(op.attrs.get("transA")), bool(op.attrs.get("transB")))


def _gemm_terms(op: Op) -> list[Axis]:
    if dtype_of(op, 0) not in SUMMED:
        return []
    return _terms(op, bool(op.attrs.get("transA")), bool(op.attrs.get("transB")))


def _matmul_integer_terms(op: Op) -> list[Axis]:
    """Sums of integers; zero points are per row or column, never along the terms."""
    return [Axis(a.results, a.operands, join=a.join) for a in _terms(op, False, False)]


def _einsum_terms(op: Op) -> list[Axis]:
    letters = einsum_terms(op)
    if letters is None or dtype_of(op, 0) not in SUMMED:
        return []
    terms, result = letters
    found = []
    for letter in dict.fromkeys("".join(terms)):
        if letter not in result:
            places = [(i, t.find(letter)) for i, t in enumerate(terms) if letter in t]
            sizes: list[Dim] = [extents(op, i)[axis] for i, axis in places]
            if all(same(size, sizes[0]) for size in sizes):
                found.append(accumulated(op, Join.SUM, *places))
    return found


def _multiplications(op: Op, shape_of: ShapeOf) -> float:
    left = shape_of(op.operands[0])
    depth = left[-2] if op.attrs.get("transA") and len(left) > 1 else left[-1] if left else 1
    return prod(shape_of(op.results[0])) * depth


def _matmul_layout(op: Op) -> WeightLayout | None:
    return _product_layout(op, transposed=bool(op.attrs.get("transB", 0)))


def _product_layout(op: Op, *, transposed: bool) -> WeightLayout | None:
    rank = len(extents(op, 1))
    if rank < 2 or op.attrs.get("transBatchA") or op.attrs.get("transBatchB"):
        return None
    output, summed = (rank - 2, rank - 1) if transposed else (rank - 1, rank - 2)
    data = -2 if op.attrs.get("transA", 0) else -1
    return WeightLayout(1, output, summed, data_axis=data, scale=float(op.attrs.get("alpha", 1.0)))


def _gemm_layout(op: Op) -> WeightLayout | None:
    found = _matmul_layout(op)
    return None if found is None else replace(found, bias=2, bias_scale=float(op.attrs.get("beta", 1.0)))


def _sums(s: Sizes) -> int:
    """Sums in int32, requantized at the end (quantization/quant_gemm.cc, qlinear_matmul.cc)."""
    return 4 * prod(s.result) if width(s.op.results[0]) == 1 else 0


def _sums_of_codes(s: Sizes) -> int:
    """Sums in int32; a kernel that gives floats writes them where they belong."""
    return 4 * prod(s.result) if s.op.result.has_uses and s.gives_codes else 0


def _codes(s: Sizes) -> int:
    """The first operand's codes (quantization/dynamic_quantize_matmul.cc)."""
    return prod(s.operand(0))


def _einsum_copies(s: Sizes) -> int:
    """Operands brought into the order of a batched product, and the result back (cpu_providers_shared einsum_utils)."""
    terms, arrow, kept = _equation(s.op).partition("->")
    labels = list(dict.fromkeys(terms.replace(",", "")))
    pair = terms.split(",")
    if len(pair) != 2 or not arrow or "." in labels:
        return sum(s.operand_bytes(i) for i in range(1, len(pair))) + s.result_bytes
    extents = [dict(zip(term, s.operand(i), strict=True)) for i, term in enumerate(pair)]
    wide = [{x for x, n in e.items() if n > 1} for e in extents]
    summed = [x for x in labels if x not in kept]
    both = [x for x in labels if x in kept and x in wide[0] and x in wide[1]]
    left = [x for x in labels if x in kept and x in wide[0] and x not in wide[1]]
    right = [x for x in labels if x in kept and x not in both and x not in left]
    orders = ([*both, *left, *summed, *right], [*both, *summed, *right, *left])
    copied = 0
    for index, term in enumerate(pair):
        once = [*term] != [x for x in labels if x in term]
        copied += s.operand_bytes(index) * (once + (orders[index] != labels))
    return copied + s.result_bytes * (1 + ([x for x in orders[0] if x in kept] != [*kept]))


def _matmul_sample(r: Rng) -> Sample:
    m, k, n = (int(d) for d in r.integers(1, 8, 3))
    batch = drawn_extents(r, 0, 2, largest=3)
    return Sample((floats(r, *batch, m, k), floats(r, *batch[int(r.integers(0, len(batch) + 1)) :], k, n)))


def _gemm_sample(r: Rng) -> Sample:
    m, k, n = (int(d) for d in r.integers(1, 8, 3))
    flip_a, flip_b = (int(d) for d in r.integers(0, 2, 2))
    a, b = floats(r, *((k, m) if flip_a else (m, k))), floats(r, *((n, k) if flip_b else (k, n)))
    bias = floats(r, *((n,), (m, 1), (1,))[int(r.integers(3))])
    return Sample((a, b, bias), {"transA": flip_a, "transB": flip_b, "alpha": 0.5, "beta": 2.0}, frozenset({1, 2}))


_PRODUCT: dict[str, Any] = {"family": Family.MATMUL, "packs_weights": True, "multiplications": _multiplications}
_INTEGER_KERNEL: dict[str, Any] = {"integer": IntegerKernel.FLOAT_RESULT, "integer_workspace": _sums_of_codes}
_INTEGER_PRODUCT: dict[str, Any] = {"family": Family.MATMUL, "multiplications": _multiplications}

OPERATORS: tuple[Operator, ...] = (
    *define(
        "MatMul",
        sample=_matmul_sample,
        space=_matmul,
        accumulates=matmul_terms,
        layout=_matmul_layout,
        **_INTEGER_KERNEL,
        **_PRODUCT,
    ),
    *define(
        "Gemm",
        sample=_gemm_sample,
        space=_gemm,
        accumulates=_gemm_terms,
        layout=_gemm_layout,
        **_INTEGER_KERNEL,
        **_PRODUCT,
    ),
    *define("Einsum", space=_einsum, accumulates=_einsum_terms, workspace=_einsum_copies, unchecked_ranks=True),
    *define("MatMulInteger", space=_matmul_integer, accumulates=_matmul_integer_terms, **_INTEGER_PRODUCT),
    *define("QLinearMatMul", space=_qlinear_matmul, workspace=_sums, **_INTEGER_PRODUCT),
    *define("Det"),
    *define(
        "FusedMatMul",
        MICROSOFT,
        space=_fused_matmul,
        accumulates=_fused_matmul_terms,
        layout=_matmul_layout,
        **_PRODUCT,
    ),
    *define("FusedGemm", MICROSOFT, types_like=("Gemm", 13), space=_gemm, layout=_gemm_layout, **_PRODUCT),
    *define("DynamicQuantizeMatMul", MICROSOFT, workspace=_codes, family=Family.MATMUL),
    *define("QGemm", MICROSOFT, workspace=_sums, family=Family.MATMUL),
    *define("MatMulNBits", MICROSOFT, space=_rows, **_INTEGER_PRODUCT),
    *define("Inverse", MICROSOFT, types_like=("Identity", 1), family=Family.MATMUL),
    *define(
        "CDist FusedMatMulActivation MatMulBnb4 MatMulFpQ4 MatMulInteger16 "
        "MatMulIntegerToFloat QOrderedMatMul SparseToDenseMatMul TransposeMatMul",
        MICROSOFT,
        family=Family.MATMUL,
    ),
)
OPERATORS = also(OPERATORS, "MatMul Gemm MatMulInteger", packed=(1,))
OPERATORS = also(
    OPERATORS,
    "FusedMatMul FusedGemm MatMulIntegerToFloat DynamicQuantizeMatMul MatMulNBits",
    MICROSOFT,
    packed=(1,),
)
OPERATORS = also(OPERATORS, "MatMulBnb4 MatMulFpQ4 MatMulNBits", MICROSOFT, decodes_weight=True)
OPERATORS = also(OPERATORS, "MatMul Gemm", captured=1)
OPERATORS = also(OPERATORS, "FusedMatMul FusedGemm", MICROSOFT, captured=1)
OPERATORS = also(OPERATORS, "MatMul", packs_matrices=True)
OPERATORS = also(OPERATORS, "FusedMatMul", MICROSOFT, packs_matrices=True)
OPERATORS = also(OPERATORS, "QLinearMatMul", packed=(3,))
OPERATORS = also(OPERATORS, "QGemm", MICROSOFT, packed=(3,))
OPERATORS = also(OPERATORS, "MatMulInteger QLinearMatMul", on_codes=True)
OPERATORS = also(OPERATORS, "DynamicQuantizeMatMul MatMulIntegerToFloat QGemm", MICROSOFT, on_codes=True)
