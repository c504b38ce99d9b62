"""Facts of a model beside its graph: versions, producer, metadata, model-local functions."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memoptc.ir.graph import Graph


@dataclass
class Function:
    """A model-local function: its body, and its attributes (name -> default, or `None` when required)."""

    domain: str
    name: str
    overload: str
    body: Graph
    attrs: dict[str, Any] = field(default_factory=dict)
    opset_imports: dict[str, int] = field(default_factory=dict)
    doc: str = ""
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass
class ModelInfo:
    """Facts of a model beside its graph. Lives on the top graph as `graph.model`.

    Args:
        opset_imports: Domain -> version; `""` is standard ONNX.
        functions: (domain, name, overload) -> function.
        source_path: The file it was read from, `""` when it came from memory.
        source_sha256: Digest of that file (of the serialised model when it came from memory).
        opaque: Parts that memoptc does not look into (training info, device configurations), as
            serialised protobuf by field name, carried to the output as they are.
        states_types: Whether the file says types of inner values; a model that did not is written without.
        form: The form in which the file was written, where it was not plain (`memoptc.ir.forms`).
    """

    ir_version: int = 10
    opset_imports: dict[str, int] = field(default_factory=lambda: {"": 21})
    producer_name: str = ""
    producer_version: str = ""
    domain: str = ""
    model_version: int = 0
    doc: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    functions: dict[tuple[str, str, str], Function] = field(default_factory=dict)
    source_path: str = ""
    source_sha256: str = ""
    opaque: dict[str, tuple[bytes, ...]] = field(default_factory=dict)
    states_types: bool = True
    form: str = ""


def copy_info(info: ModelInfo) -> ModelInfo:
    """Copy facts of a model, functions and their bodies included."""
    functions = {k: replace(f, body=f.body.clone(), attrs=dict(f.attrs)) for k, f in info.functions.items()}
    return replace(
        info,
        opset_imports=dict(info.opset_imports),
        metadata=dict(info.metadata),
        functions=functions,
        opaque=dict(info.opaque),
    )
