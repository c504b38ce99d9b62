"""Views of decoded values go into the bodies that use them.

onnxruntime (1.32) moves a DequantizeLinear behind a view to the view's users. One inside a body takes it for an operand
of the If, Loop or Scan, which has none there: `Assertion '__n < this->size()'`, and the process ends.
"""

from __future__ import annotations

from memoptc.ir.core import Graph, Op, Value, clone_op
from memoptc.ir.ops import Family, definition, in_family


def enter_bodies(graph: Graph) -> int:
    """Copy into each body what lies between a DequantizeLinear outside and the body's uses; give how many copies."""
    count = 0
    for op in list(graph.walk()):
        for body in op.regions.values():
            todo = [v for v in body.captures() if _is_passed(v)]
            while todo:
                value = todo.pop()
                if value in body.captures() and value.op is not None:
                    _copy_into(body, value, value.op)
                    count += 1
                    todo += [v for v in value.op.operands if _is_passed(v)]
                    if not any(r.has_uses for r in value.op.results):
                        value.op.erase()
    return count


def _is_passed(value: Value) -> bool:
    """True if onnxruntime would move a DequantizeLinear as far as to this value."""
    op = value.op
    while op is not None and definition(op).ort_passes_codes:
        op = op.operands[0].op
        if op is not None and in_family(op, Family.CODING) and not op.result.is_integer:
            return True
    return False


def _copy_into(body: Graph, value: Value, op: Op) -> None:
    copies: dict[Value, Value] = {}
    copy = clone_op(op, copies)
    for result in copy.results:
        result.name = body.fresh_name(result.name)
    copy.name = ""
    body.prepend(copy)
    value.replace_by(copies[value], where=lambda user, _: user.graph is not None and body.encloses(user.graph))
