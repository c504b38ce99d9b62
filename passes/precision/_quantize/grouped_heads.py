"""Weights of the keys and values of a decoder whose query heads share them."""

from __future__ import annotations

from collections.abc import Sequence

from memoptc.ir.core import Graph, Op
from memoptc.ir.decoder_facts import DecoderFacts
from memoptc.ir.ops import layout_of
from memoptc.passes.precision._quantize.nearest_products import nearest_products
from memoptc.passes.precision._quantize.weight_operands import Weight

_SMALL_PART = 0.06
"""Part of the weights that those of keys and values may be to get more bits."""


def of_shared_heads(graph: Graph, facts: DecoderFacts | None, weights: Sequence[Weight]) -> list[int]:
    """Number the weights that make keys and values which several query heads read, where these are a small part.

    An error in one of them meets as many heads (Ainslie et al., "GQA", 2023), while their bytes are few.

    Args:
        graph: The top graph.
        facts: Of the decoder; `None` for any other model.
        weights: Those that are coded.
    """
    caches = [] if facts is None else [c for c in facts.own if c.part in ("key", "value")]
    if facts is None or not caches or not all(0 < c.heads < facts.heads for c in caches):
        return []
    products = set(nearest_products(graph, {c.present for c in caches}))
    widths = {c.heads * c.width for c in caches}
    found = [i for i, weight in enumerate(weights) if _makes(weight, products, widths)]
    nbytes = [weight.bytes for weight in weights]
    return found if sum(nbytes[i] for i in found) <= _SMALL_PART * sum(nbytes) else []


def _makes(weight: Weight, products: set[Op], widths: set[int]) -> bool:
    ops = [site.op for site in weight.sites]
    shape = weight.value.static_shape
    return (
        bool(ops)
        and shape is not None
        and all(op in products and not site.decoded for op, site in zip(ops, weight.sites, strict=True))
        and all(shape[layout_of(op).output_axis] in widths for op in ops)
    )
