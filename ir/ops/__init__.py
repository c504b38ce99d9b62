"""The operators: one definition each, in files by family; passes ask traits and layouts, not names.

ONNX's own schemas say how many operands and which attributes an operator has (`schema`). What they do not say stands in
its definition: whether it computes element by element, is a view, may overwrite an operand or is no function of its
operands; along which axes it can be computed piece by piece; where its weight lies; which kernels onnxruntime has. An
operator without a definition and without a schema is left alone by every pass.
"""

from __future__ import annotations

from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.ops.definition import Arity, Blocked, Family, IntegerKernel, Operator, ShapeOf, WeightLayout
from memoptc.ir.ops.schema import BLOCKED_DOMAIN, MICROSOFT, default_of, opset_of, schema, schema_of
from memoptc.ir.ops.table import TABLE, definition, definition_of, layout_of, names_where, weight_layout

__all__ = [
    "BINARY",
    "BLOCKED_DOMAIN",
    "BROADCAST",
    "CONTRIB_PURE",
    "EXTENTS",
    "MICROSOFT",
    "MOVES",
    "TABLE",
    "UNARY",
    "VARIADIC",
    "VIEWS",
    "Arity",
    "Blocked",
    "Family",
    "IntegerKernel",
    "Operator",
    "ShapeOf",
    "WeightLayout",
    "default_of",
    "definition",
    "definition_of",
    "domain_of",
    "facts",
    "has_packing_user",
    "in_family",
    "is_pure",
    "is_removable",
    "layout_of",
    "leaves_unwritten",
    "names_where",
    "needs_own_codes",
    "opset_of",
    "packs_alike_in",
    "schema",
    "schema_of",
    "weight_layout",
]

UNARY = names_where(lambda o: o.arity is Arity.UNARY)
BINARY = names_where(lambda o: o.arity is Arity.BINARY)
VARIADIC = names_where(lambda o: o.arity is Arity.VARIADIC)
BROADCAST = BINARY | VARIADIC
"""Operators whose operands broadcast against each other."""
MOVES = names_where(lambda o: o.moves)
"""Operators whose result has elements of operand 0, Concat's of any operand, moved or repeated."""
VIEWS = names_where(lambda o: o.view is not None)
EXTENTS = names_where(lambda o: o.reads_extents)
CONTRIB_PURE = names_where(lambda o: o.pure, MICROSOFT)
"""onnxruntime's contributed operators that are functions of their operands."""


def facts(op: Op) -> Operator:
    """Give what is known of an op's operator."""
    return definition(op)


def in_family(op: Op, *families: Family) -> bool:
    """True if an op's operator belongs to one of these families."""
    return definition(op).family in families


def is_pure(op: Op) -> bool:
    """True if the op, everything in its regions included, is a function of what it uses."""
    if not definition(op).pure or _drops_out(op):
        return False
    return all(region.analysis(_all_pure) for region in op.regions.values())


def _all_pure(region: Graph) -> bool:
    return all(is_pure(op) for op in region.ops)


def takes_scales(op: Op) -> bool:
    """True if float operands of an op are scales, or tables of numbers, that belong to codes."""
    known = facts(op)
    return known.on_codes or known.decodes_weight or known.family is Family.CODING


def is_removable(op: Op) -> bool:
    """True if the op may be dropped when none of its results is used."""
    return definition(op).removable and all(region.analysis(_all_removable) for region in op.regions.values())


def _all_removable(region: Graph) -> bool:
    return all(is_removable(op) for op in region.ops)


def _drops_out(op: Op) -> bool:
    """Dropout in training mode is random; before opset 7 that is what it does unless told otherwise."""
    if not op.is_a("Dropout"):
        return False
    if op.graph is not None and (opset_of(op.graph) or 7) < 7:
        return not op.attrs.get("is_test", 0)
    mode = op.input(2)
    if mode is None:
        return False
    tensor = mode.tensor
    return tensor is None or bool(tensor.numpy().reshape(-1)[0])


def needs_own_codes(op: Op) -> bool:
    """True if an op decodes a weight for a product.

    onnxruntime makes one operator of both, looks for the codes in their own graph only, and refuses the model where
    they stand around it.
    """
    return op.is_a("DequantizeLinear") and any(in_family(u, Family.MATMUL) for u in op.result.users)


def leaves_unwritten(value: Value, body: Graph) -> bool:
    """True if onnxruntime leaves an output of a body as it was in memory: an input of a Scan's, handed on as it is."""
    return value.is_input and body.parent is not None and body.parent.op_type == "Scan"


def has_packing_user(value: Value) -> bool:
    """True if an op uses this value that rounds differently when it is a constant (see `Operator.packs_weights`)."""
    floats = value.dtype is not None and not value.is_integer
    todo, seen = [value], {value}
    while todo and floats:
        for user in todo.pop().users:
            if definition(user).packs_weights:
                return True
            if definition(user).view is not None or user.op_type in ("Cast", "Transpose"):
                fresh = [r for r in user.results if r not in seen]
                seen.update(fresh)
                todo.extend(fresh)
    return False


def packs_alike_in(constant: Op, graph: Graph) -> bool:
    """True if `graph`, which lies around a constant's own, may hold it without any kernel losing its layout.

    onnxruntime looks for codes of products, and for weights that it lays out in blocks of channels, in the kernel's own
    graph only; for weights that it packs also in the graph right around that. Unpacked ones are slower and round
    differently.
    """
    home = constant.graph
    for user in constant.result.users if graph is not home else ():
        around = user.graph.parent.graph if user.graph is not None and user.graph.parent is not None else None
        if needs_own_codes(user) or in_family(user, Family.CONVOLUTION):
            if user.graph is home:
                return False
        elif definition(user).packs_weights and home in (user.graph, around) and graph is not around:
            return False
    return True


def domain_of(op_type: str) -> str:
    """Give the domain of an operator written without one: standard ONNX first, then onnxruntime's own."""
    if definition_of(op_type).known:
        return ""
    return MICROSOFT if op_type in CONTRIB_PURE else ""
