"""Layers of a quantization search: everything with weights that can be coded, and the block formats they fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Set
from dataclasses import replace

from memoptc.ir import ops
from memoptc.ir.core import Graph, Op
from memoptc.passes.precision._quantize import embedding
from memoptc.passes.precision._quantize.coding import SMALLEST, obstacle
from memoptc.passes.precision._quantize.recurrent import recurrent
from memoptc.passes.precision._quantize.settings import QuantizationConfig
from memoptc.passes.precision._quantize.weight_format import WeightFormat
from memoptc.passes.precision._quantize.weight_operands import CONVOLUTIONS, GATHER, PRODUCTS, Weight, find_weights
from memoptc.runtime.kernels import gathers_codes, multiplies_codes

BLOCK = 32
"""Weights that share a scale where they are in 4 bits."""

INT8_BLOCK_MIN_BYTES = 1 << 18
"""Bytes from which a weight with float activations is read in blocks: where it were decoded in each run, the floats
would take their room and time all the same."""

INT8_BLOCK_SIZES = (128, 64, 32)
"""The same in 8 bits: that of least bytes is taken."""


def quantizable_layers(
    graph: Graph, codes: QuantizationConfig, *, narrow: bool = False, load: bool = False
) -> tuple[dict[str, Op], QuantizationConfig]:
    """Give everything with weights that can be quantized a name of its own, and list it, in order.

    Args:
        graph: The graph.
        codes: What codes weights have.
        narrow: Also list subgraphs, and let weights be in blocks of 4 bits.
        load: Let weights of convolutions be decoded while loading: decoded in each run they are no constants, and the
            convolutions take two to three times the time.

    Returns:
        The nodes, and the codes with the names of those that can be in blocks.
    """
    found = set(codes.choose(graph, codes.excluded, Counter(), frozenset()).heavy)
    found |= set(embedding.tables(graph, codes.excluded, Counter())) if codes.embeddings else set()
    found |= set(recurrent(graph, codes.excluded)) if codes.recurrent else set()
    plan, blocks, whole, wide, tabled = int4_format(graph), set[Op](), set[Op](), set[Op](), set[Op]()
    for weight in find_weights(graph, codes.excluded):
        if load and not obstacle(weight, replace(plan, decode="load")):
            tabled |= {site.op for site in weight.sites if site.op.op_type in CONVOLUTIONS}
        if (
            weight.bytes >= INT8_BLOCK_MIN_BYTES
            and all(site.op in found for site in weight.sites)
            and not obstacle(weight, plan)
        ):
            wide |= {site.op for site in weight.sites} if int8_format(graph, weight) is not None else set()
        together = _tied(weight, graph) and codes.embeddings
        if (narrow or together) and weight.bytes >= SMALLEST and not obstacle(weight, plan):
            if together:  # one code for all that read it, and one layer
                blocks.add(weight.sites[0].op)
                whole |= {site.op for site in weight.sites}
            else:
                blocks |= {site.op for site in weight.sites if codes.embeddings or site.op.op_type != GATHER}
    found -= whole
    layers: dict[str, Op] = {}
    taken: set[str] = set()
    for op in graph.walk():
        if op in found or op in blocks or op in whole:
            number, name = 1, op.name
            while not op.name or op.name in taken:
                op.name = (
                    f"{name or f'{op.op_type}_{op.result.name}'}{'' if number == 1 and not name else f'_{number}'}"
                )
                number += 1
            taken.add(op.name)
            if op in found or op in blocks:
                layers[op.name] = op
    named = replace(
        codes,
        narrow=frozenset(op.name for op in blocks if narrow),
        weight_only=frozenset(op.name for op in blocks - found),
        wide=frozenset(op.name for op in (wide & found)),
        tabled=frozenset(op.name for op in (tabled & found)),
        excluded=codes.excluded | frozenset(op.name for op in whole),
    )
    return layers, named


def int4_format(graph: Graph) -> WeightFormat:
    return WeightFormat(4, BLOCK, False, "nbits", ops.opset_of(graph) or 0)


def _tied(weight: Weight, graph: Graph) -> bool:
    """True if lookups and products of the top graph share a weight, which then has one code."""
    kinds = {site.op.op_type for site in weight.sites}
    top = all(site.op.graph is graph for site in weight.sites)
    return top and GATHER in kinds and len(kinds) > 1 and not weight.obstacle


def int8_format(graph: Graph, weight: Weight) -> WeightFormat | None:
    """Blocks of 8 bits for a weight; `None` where not all that reads it has a kernel for them."""
    lookups = {site.op.op_type == GATHER for site in weight.sites}
    known = (gathers_codes(8) or True not in lookups) and (multiplies_codes(8) or False not in lookups)
    if not known or any(site.op.op_type not in (*PRODUCTS, GATHER) for site in weight.sites):
        return None
    columns = weight.numpy().shape[weight.sites[0].columns]
    block = min(INT8_BLOCK_SIZES, key=lambda b: -(-columns // b) * (b + 4))
    plan = replace(int4_format(graph), bits=8, block=block, symmetric=True, search=False)
    return None if any(plan.why_not(weight, site) for site in weight.sites) else plan


def weights_read_by(graph: Graph, names: Set[str], weight_only: Set[str] = frozenset()) -> list[Weight]:
    """Weights as far as nodes of these names read them; one whose first reader is of `weight_only`, wholly."""
    found = []
    for weight in find_weights(graph, frozenset()) if names else ():
        whole = bool(weight.sites) and weight.sites[0].op.name in names & weight_only
        weight.sites = [site for site in weight.sites if whole or site.op.name in names]
        if weight.sites:
            found.append(weight)
    return found
