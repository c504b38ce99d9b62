"""Extents of joined operands: what a Concat has to find equal is taken to be equal.

Shape inference gives a Concat of `[N, 16, H]` and `[N, 16, 2*(H//2)]` a symbol of its own for the last extent, since
onnxruntime lets empty operands differ. In every other run the operands' extents are the same number, or the Concat
fails, in tiles as in the whole: to plan tiles of a U-Net, whose two arms meet so at each level, that symbol is the
simplest of the operands' extents. Where operands are empty, tiles of them are, and what is joined follows the same
rule as before.
"""

from __future__ import annotations

from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.dims import Dim, KnownDim, Sym, free_symbols, substitute
from memoptc.ir.ops import definition
from memoptc.ir.ops.axis import shape
from memoptc.ir.ops.elementwise import broadcast_axes


def equate_joined(graph: Graph) -> dict[str, KnownDim]:
    """State the extents of all values by those of joined operands, and give what was put in for which symbol.

    Args:
        graph: A top graph with inferred types, which are changed.
    """
    given = {name for value in graph.inputs for dim in shape(value) or () for name in free_symbols(dim)}
    found: dict[str, KnownDim] = {}
    for op in graph.ops:
        if op.key == "Concat" or definition(op).space is broadcast_axes:
            for symbol, extent in _equal_extents(op, found):
                if symbol not in given and symbol not in free_symbols(extent):
                    found[symbol] = extent
    if found:
        _restate(graph, found)
    return found


def _equal_extents(op: Op, known: dict[str, KnownDim]) -> list[tuple[str, KnownDim]]:
    """Symbols that inference made for a result, and the extents that they stand for.

    Of a Concat that is the simplest of its operands' extents; of an element-wise operator, the one that all of its
    operands have once what was found before is put in.
    """
    whole, parts = shape(op.result), [shape(v) for v in op.operands if not v.is_absent]
    if whole is None or any(p is None for p in parts):
        return []
    joins = op.key == "Concat"
    axis = int(op.attrs["axis"]) % len(whole) if joins else None
    found = []
    for place, dim in enumerate(whole):
        if place == axis or not isinstance(dim, Sym) or dim.name is None or dim.name in known:
            continue
        own = [p[place - len(whole)] for p in parts if p is not None and len(p) >= len(whole) - place]
        extents = [substitute(d, known) for d in own if d is not None and (joins or d != 1)]
        if dim in extents or len(extents) < sum(joins or d != 1 for d in own) or not extents:
            continue
        if joins or len(set(extents)) == 1:
            found.append((dim.name, min(extents, key=_complexity)))
    return found


def _complexity(dim: KnownDim) -> tuple[bool, int, str]:
    text = str(dim)
    return isinstance(dim, Sym), len(text), text


def _put_in(dim: Dim, known: dict[str, KnownDim]) -> Dim:
    return dim if dim is None or not free_symbols(dim) & known.keys() else substitute(dim, known)


def _restate(graph: Graph, known: dict[str, KnownDim]) -> None:
    values: list[Value] = [r for op in graph.walk() for r in op.results]
    values += [v for op in graph.walk() for region in op.regions.values() for v in region.inputs]
    for value in values:
        type_ = value.tensor_type
        if type_ is not None and type_.shape is not None:
            dims = tuple(_put_in(d, known) for d in type_.shape)
            if dims != type_.shape:
                value.type = type_.with_shape(dims)
