"""Choice of ops for a narrow format: those that can, whose numbers fit, and where it saves more than Casts cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from memoptc.ir import ops
from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.dims import free_symbols, substitute
from memoptc.ir.types import DType
from memoptc.passes.precision._half.table import Format

USUAL_EXTENT = 16
"""Taken for a symbolic extent that nobody gave, to weigh Casts against savings."""

_WIDE, _NARROW = 4, 2


@dataclass
class Candidate:
    """An op that can run in the format.

    Args:
        op: The op.
        operands: Indices of its float32 operands that would be narrow.
        results: Its float32 results, which would be narrow.
    """

    op: Op
    operands: tuple[int, ...]
    results: tuple[Value, ...]

    @property
    def values(self) -> tuple[Value, ...]:
        """All values that would be narrow."""
        return (*(self.op.operands[i] for i in self.operands), *self.results)


@dataclass
class Choice:
    """Ops that will run in the format, in order."""

    narrow: dict[Op, Candidate] = field(default_factory=dict)

    def takes(self, op: Op, index: int) -> bool:
        """True if a use is a narrow one."""
        found = self.narrow.get(op)
        return found is not None and index in found.operands

    def makes(self, value: Value) -> bool:
        """True if a value is made narrow."""
        return value.op is not None and value.op in self.narrow and value in self.narrow[value.op].results


def is_float32(value: Value) -> bool:
    """True if a value is a float32 tensor."""
    return value.dtype == DType.FLOAT


def candidate(op: Op, format_: Format, *, any_kernel: bool) -> Candidate | None:
    """Give an op's part in the format by ONNX's own schema; `None` when it has none.

    Args:
        op: An op of the top graph.
        format_: The format.
        any_kernel: Whether an op counts for which onnxruntime's CPU has no kernel.
    """
    version = ops.opset_of(op.graph) if op.graph is not None else None
    schema = ops.schema_of(op)
    if op.domain or op.regions or version is None or schema is None or op.op_type == "Cast":
        return None
    if not any_kernel and version < format_.kernels.get(op.op_type, version + 1):
        return None
    kind = f"tensor({format_.dtype.name.lower()})"
    allowed = {c.type_param_str for c in schema.type_constraints if kind in c.allowed_type_strs}
    fixed = {"to", "dtype"} & set(op.attrs)
    operands = tuple(
        i for i, v in enumerate(op.operands)
        if is_float32(v) and schema.inputs[min(i, len(schema.inputs) - 1)].type_str in allowed
    )  # fmt: skip
    results = tuple(
        r for i, r in enumerate(op.results)
        if is_float32(r) and schema.outputs[min(i, len(schema.outputs) - 1)].type_str in allowed
    )  # fmt: skip
    if fixed or not operands or len(results) != sum(is_float32(r) for r in op.results):
        return None
    if any(r.type is not None and r.tensor_type is None for r in op.results):
        return None  # what takes tensors out of a sequence or an optional would get other ones
    if ops.facts(op).float32_statistics:
        if any(r.has_uses for r in op.results[1:]):
            return None
        results = results[:1]
    # An operand of the same type parameter that is not float32 (another float, say) rules the op out.
    bound = {schema.inputs[min(i, len(schema.inputs) - 1)].type_str for i in operands}
    for i, value in enumerate(op.operands):
        same = schema.inputs[min(i, len(schema.inputs) - 1)].type_str in bound
        if same and not value.is_absent and not is_float32(value):
            return None
    unknown = [r for r in op.results if r.type is None and not r.omitted]  # readers could not be told what they get
    return None if unknown else Candidate(op, operands, results)


def worth(found: dict[Op, Candidate], dims: Mapping[str, int], stored: set[Value]) -> Choice:
    """Keep the connected groups of candidates that write fewer bytes in the format, Casts counted.

    Args:
        found: Candidates.
        dims: Extents of symbolic dimensions.
        stored: Weights that are stored in the format, and have to be decoded for every op outside a group.
    """
    choice = Choice()
    for group in _groups(found):
        members = {c.op for c in group}
        if _narrow_bytes(group, members, found, dims) < _wide_bytes(group, dims, stored):
            choice.narrow.update((c.op, c) for c in group)
    choice.narrow = {op: choice.narrow[op] for op in found if op in choice.narrow}
    return choice


def _groups(found: dict[Op, Candidate]) -> Iterator[list[Candidate]]:
    seen: set[Op] = set()
    for start in found:
        if start in seen:
            continue
        seen.add(start)
        group, todo = [], [start]
        while todo:
            op = todo.pop()
            group.append(found[op])
            around = [v.op for i in found[op].operands if (v := op.operands[i]).op is not None]
            for value in found[op].results:
                around += [u for u, i in value.uses if u in found and i in found[u].operands]
            for other in around:
                if other is not None and other in found and other not in seen:
                    seen.add(other)
                    todo.append(other)
        yield group


def _wide_bytes(group: list[Candidate], dims: Mapping[str, int], stored: set[Value]) -> int:
    written = sum(_WIDE * elements(r, dims) for c in group for r in c.results if c.op.op_type not in ops.VIEWS)
    weights = {v for c in group for i in c.operands if (v := c.op.operands[i]) in stored}
    return written + sum(_WIDE * elements(v, dims) for v in weights)


def _narrow_bytes(group: list[Candidate], members: set[Op], found: dict[Op, Candidate], dims: Mapping[str, int]) -> int:
    written = sum(_NARROW * elements(r, dims) for c in group for r in c.results if c.op.op_type not in ops.VIEWS)
    entering = {v for c in group for i in c.operands if (v := c.op.operands[i]).tensor is None and v.op not in members}
    leaving = {
        r for c in group for r in c.results
        if any(u not in members or i not in found[u].operands for u, i in r.uses)
    }  # fmt: skip
    casts = sum(_NARROW * elements(v, dims) for v in entering) + sum(_WIDE * elements(v, dims) for v in leaving)
    return written + casts


def elements(value: Value, dims: Mapping[str, int]) -> int:
    """Elements of a value, for weighing: unknown extents count as `USUAL_EXTENT`."""
    count = 1
    shape = value.shape
    for dim in shape or ():
        if dim is not None and not isinstance(dim, int):
            known = {s: dims.get(s, USUAL_EXTENT) for s in free_symbols(dim)}
            bound = substitute(dim, known)
            dim = bound if isinstance(bound, int) else None
        count *= USUAL_EXTENT if dim is None else max(dim, 1)
    return count


def narrow_candidates(graph: Graph, format_: Format, kept: frozenset[str], *, any_kernel: bool) -> dict[Op, Candidate]:
    """Find the candidates of the top graph, in order; `kept` are names and operators that stay float32."""
    found = {}
    for op in graph.ops:
        if op.name not in kept and op.key not in kept:
            made = candidate(op, format_, any_kernel=any_kernel)
            if made is not None:
                found[op] = made
    return found
