"""Two models side by side: nodes that only one of them has, nodes that changed, operators and weights counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Set
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np

from memoptc.ir.core import Graph, Op
from memoptc.ir.tensors import nbytes
from memoptc.manager import weight_bytes


@dataclass(frozen=True)
class NodeChange:
    """One node that differs.

    Args:
        name: Of the node, or of its first output where it has none.
        before: Its operator in the first model; `None` where only the second has it.
        after: Its operator in the second model; `None` where only the first has it.
        what: What differs, where both have it.
        origin: Names of the nodes that it came from and the rules that made it, as far as they are known.
    """

    name: str
    before: str | None
    after: str | None
    what: str = ""
    origin: str = ""

    def __str__(self) -> str:
        if self.after is None:
            return f"- {self.before} {self.name}"
        made = f"  (from {self.origin})" if self.origin else ""
        if self.before is None:
            return f"+ {self.after} {self.name}{made}"
        return f"~ {self.after} {self.name}: {self.what}{made}"


@dataclass(frozen=True)
class ModelDiff:
    """Differences between two models: nodes, weights, interface.

    Args:
        nodes: Nodes that differ, in the order of the models.
        operators: Operator -> how many the first and the second model have, where that differs.
        weight_bytes: Bytes of weights of both.
        ports: Inputs and outputs that differ, in sentences.
    """

    nodes: list[NodeChange]
    operators: dict[str, tuple[int, int]]
    weight_bytes: tuple[int, int]
    ports: list[str]

    @property
    def same(self) -> bool:
        """True if nothing differs."""
        return not (self.nodes or self.operators or self.ports) and len(set(self.weight_bytes)) == 1


def diff_models(before: Graph, after: Graph) -> ModelDiff:
    """Compare two models node by node; nodes are the same where their names are, and else their first outputs'."""
    old, new = _by_name(before), _by_name(after)
    kept = _value_names(before) & _value_names(after)
    counts = [Counter(op.key for op in ops.values()) for ops in (old, new)]
    nodes = [NodeChange(name, op.key, None) for name, op in old.items() if name not in new]
    for name, op in new.items():
        origin = ", ".join(dict.fromkeys((*op.loc.nodes, *op.loc.rules))) if op.loc.rules else ""
        if name not in old:
            nodes.append(NodeChange(name, None, op.key, origin=origin))
        elif what := _changes(old[name], op, kept):
            nodes.append(NodeChange(name, old[name].key, op.key, what, origin))
    operators = {k: (counts[0][k], counts[1][k]) for k in sorted(counts[0] | counts[1]) if counts[0][k] != counts[1][k]}
    return ModelDiff(nodes, operators, (weight_bytes(before), weight_bytes(after)), _ports(before, after))


def _by_name(graph: Graph) -> dict[str, Op]:
    found: dict[str, Op] = {}
    for op in graph.walk():
        if op.results and not op.is_const and op.key not in ("absent", "return"):
            name = op.name or op.results[0].name
            found[name if name not in found else f"{name} ({op.results[0].name})"] = op
    return found


def _value_names(graph: Graph) -> set[str]:
    return {v.name for v in graph.inputs} | {r.name for op in graph.walk() for r in op.results}


def _changes(a: Op, b: Op, kept: Set[str]) -> str:
    """Differences between two forms of a node; operands that only one model has are told by the nodes that make them.

    Args:
        a: The node in the first model.
        b: The node in the second model.
        kept: Names of values that both models have.
    """
    found = [f"was {a.key}"] if a.key != b.key else []
    names = [
        n for n in (*a.attrs, *(n for n in b.attrs if n not in a.attrs)) if not _same(a.attrs.get(n), b.attrs.get(n))
    ]
    found += [f"{n} {_short(a.attrs.get(n))} -> {_short(b.attrs.get(n))}" for n in names]
    for x, y in zip_longest(a.results, b.results):
        types = [None if v is None else v.type for v in (x, y)]
        if types[0] != types[1] and None not in types:
            found.append(f"gives {types[1]} instead of {types[0]}")
    read = [[v.name for v in op.operands if v.tensor is None and not v.is_absent] for op in (a, b)]
    rewired = [(x, y) for x, y in zip(*read, strict=False) if x != y and {x, y} <= kept]
    found += [f"reads %{y} instead of %{x}" for x, y in rewired]
    if len(read[0]) != len(read[1]):
        found.append(f"reads {len(read[1])} values instead of {len(read[0])}")
    weights = [[v.tensor for v in op.operands if v.tensor is not None] for op in (a, b)]
    sizes = [list(map(nbytes, tensors)) for tensors in weights]
    dtypes = [[t.dtype for t in tensors] for tensors in weights]
    if sizes[0] != sizes[1]:
        found.append(f"{sum(sizes[1])} bytes of weights instead of {sum(sizes[0])}")
    elif dtypes[0] != dtypes[1]:
        found.append(f"weights of {', '.join(map(str, dtypes[1]))} instead of {', '.join(map(str, dtypes[0]))}")
    elif not all(map(_same, *weights)):
        found.append("other values of weights")
    return "; ".join(found)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Graph) and isinstance(b, Graph):
        return True  # the nodes inside are compared by themselves
    if hasattr(a, "numpy") and hasattr(b, "numpy"):
        x, y = (np.ascontiguousarray(side.numpy()) for side in (a, b))
        # Bytes, so that NaN is itself, and 0.0 is not -0.0; the elements of strings are no bytes.
        return a.dtype == b.dtype and bool(np.array_equal(x, y) if x.dtype == object else x.tobytes() == y.tobytes())
    return bool(type(a) is type(b) and a == b)


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _ports(before: Graph, after: Graph) -> list[str]:
    found = []
    for what, a, b in (("input", before.inputs, after.inputs), ("output", before.outputs_info, after.outputs_info)):
        old, new = ({v.name: str(v.type) for v in side} for side in (a, b))
        for name in dict.fromkeys((*old, *new)):
            if old.get(name) != new.get(name):
                found.append(f"{what} {name}: {old.get(name, 'none')} -> {new.get(name, 'none')}")
        if set(old) == set(new) and list(old) != list(new):
            found.append(f"{what}s are in another order: {', '.join(new)}")
    return found
