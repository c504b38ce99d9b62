"""ONNX's own schemas: operands, attributes and their defaults, by opset version."""

from __future__ import annotations

from functools import cache
from typing import Any

import onnx.defs

from memoptc.ir.core import Graph, Op

MICROSOFT = "com.microsoft"
BLOCKED_DOMAIN = "com.microsoft.nchwc"
"""Domain of onnxruntime's operators on tensors in blocks of channels, and of the copies to and from them."""


def opset_of(graph: Graph, domain: str = "") -> int | None:
    """Give the version of a domain that is in force in a graph's model; `None` when it is not imported."""
    imports = graph.info.opset_imports
    if not domain:
        return imports.get("", imports.get("ai.onnx"))
    return imports.get(domain)


@cache
def schema(op_type: str, domain: str, version: int | None) -> onnx.defs.OpSchema | None:
    """Give ONNX's schema of an operator at an opset version; `None` when ONNX has none."""
    if version is None:
        return None
    try:
        return onnx.defs.get_schema(op_type, version, domain)
    except (onnx.defs.SchemaError, TypeError):  # TypeError: a version beyond 32 bits
        return None


def schema_of(op: Op) -> onnx.defs.OpSchema | None:
    """Give the schema of an op in its model's opset."""
    if op.graph is None or op.graph.root.model is None:
        return None
    return schema(op.op_type, op.domain, opset_of(op.graph, op.domain))


def default_of(op: Op, attr: str) -> Any:
    """Give an attribute's value, its schema's default when it is not set, or `None` when there is neither."""
    if attr in op.attrs:
        return op.attrs[attr]
    found = schema_of(op)
    if found is None or attr not in found.attributes:
        return None
    value = found.attributes[attr].default_value
    if not value.name:
        return None
    content = onnx.helper.get_attribute_value(value)
    return content.decode() if isinstance(content, bytes) else content


def since(op: Op, version: int) -> bool:
    """True if the standard operators in force are at least this version; so when nobody says."""
    return op.graph is None or (opset_of(op.graph) or version) >= version
