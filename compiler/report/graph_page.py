"""A graph as rows of plain facts, and as one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.infer import infer_shapes
from memoptc.ir.spelling import type_text
from memoptc.ir.tensors import nbytes
from memoptc.report.rows import size
from memoptc.runtime.profile import likely_extents
from memoptc.version import __version__


@dataclass(frozen=True)
class NodeRow:
    """One node.

    Args:
        name: Its name, or that of its first result.
        operator: With its domain.
        depth: How many bodies of If, Loop or Scan it lies in.
        operands: Names of its operands and their types.
        results: Names of its results and their types.
        attributes: As text.
        weight_bytes: Of constant operands.
        result_bytes: Of its results at the extents shown; `None` where a size is not known.
        nodes: Nodes of the original that it stands for.
        rules: Passes and rules that made it; none for a node of the original.
    """

    name: str
    operator: str
    depth: int
    operands: tuple[tuple[str, str], ...]
    results: tuple[tuple[str, str], ...]
    attributes: str
    weight_bytes: int
    result_bytes: int | None
    nodes: tuple[str, ...]
    rules: tuple[str, ...]


def graph_rows(graph: Graph, dims: Mapping[str, int]) -> tuple[list[NodeRow], dict[str, int]]:
    """Give a row for each node in order, and the extents that bytes are counted at.

    Args:
        graph: The graph; its types are inferred.
        dims: Extents of symbolic dimensions; likely ones for others.
    """
    infer_shapes(graph)
    bound = likely_extents(graph, dict(dims))
    return [
        _row(op, bound) for op in graph.walk() if not op.is_const and op.key not in ("absent", "return", "sparse_const")
    ], bound


def _row(op: Op, dims: Mapping[str, int]) -> NodeRow:
    sizes = [_bytes(value, dims) for value in op.results]
    depth, graph = 0, op.graph
    while graph is not None and graph.parent is not None:
        depth, graph = depth + 1, graph.parent.graph
    told = {key: tuple(filter(None, op.metadata.get(f"memoptc.{key}", "").split(","))) for key in ("nodes", "rules")}
    return NodeRow(
        name=op.name or (op.results[0].name if op.results else op.op_type),
        operator=op.key,
        depth=depth,
        operands=tuple((v.name, type_text(v.type)) for v in op.operands if not v.is_absent),
        results=tuple((v.name, type_text(v.type)) for v in op.results),
        attributes=", ".join(f"{k}={_short(v)}" for k, v in op.attrs.items()),
        weight_bytes=sum(nbytes(v.tensor) for v in op.operands if v.tensor is not None),
        result_bytes=sum(s for s in sizes if s is not None) if None not in sizes else None,
        nodes=told["nodes"] or (op.loc.nodes if op.loc.rules else ()),
        rules=told["rules"] or op.loc.rules,
    )


def _bytes(value: Value, dims: Mapping[str, int]) -> int | None:
    found = value.tensor_type
    count = None if found is None else found.bind(dims).nbytes
    return count if isinstance(count, int) else None


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def render_graph(name: str, rows: list[NodeRow], dims: Mapping[str, int]) -> str:
    """Give the page: one row for each node, a filter, and links from operands to where they are made."""
    from jinja2 import Environment

    template = resources.files("memoptc.report").joinpath("graph.html.j2").read_text("utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    made = {value for row in rows for value, _ in row.results}
    largest = max((row.result_bytes or 0 for row in rows), default=0) or 1
    heaviest = max((row.weight_bytes for row in rows), default=0) or 1
    facts = {"name": name, "rows": rows, "dims": dims, "made": made, "largest": largest, "heaviest": heaviest}
    counted = {"weights": sum(row.weight_bytes for row in rows), "new": sum(bool(row.rules) for row in rows)}
    return environment.from_string(template).render(**facts, **counted, size=size, version=__version__)
