"""A model under observation: probes behind its tensors, run in the file's order."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import onnx

from memoptc.ir.diagnostics import InputError
from memoptc.ir.onnx_io import read_onnx
from memoptc.runtime.data import Data, DataSource
from memoptc.runtime.evaluate import Evaluator, ModelSource
from memoptc.runtime.options import PACKING_KEY, RunOptions
from memoptc.runtime.perplexity import Completed

PREFIX = "memoptc.calibrate"
"""What names of probes begin with."""


def copies(names: Sequence[str]) -> list[onnx.NodeProto]:
    """Give nodes that hand tensors out as float32, tensor i under the name `PREFIX.i.copy`."""
    return [
        onnx.helper.make_node("Cast", [name], [f"{PREFIX}.{i}.copy"], to=onnx.TensorProto.FLOAT)
        for i, name in enumerate(names)
    ]


class Probe:
    """A model whose inner tensors can be made outputs.

    Args:
        model: The model; external data is looked for beside the file or in `folder`.
        folder: Where external data lies when `model` is no path.
        threads: Threads of onnxruntime.
    """

    def __init__(self, model: ModelSource, folder: str | os.PathLike[str] | None, threads: int) -> None:
        self.threads = threads
        self.folder = folder
        if isinstance(model, onnx.ModelProto):
            self.proto = onnx.ModelProto()
            self.proto.CopyFrom(model)
        elif isinstance(model, bytes):
            self.proto = onnx.load_from_string(model)
        else:
            self.proto = onnx.load(os.fspath(model), load_external_data=False)
            self.folder = Path(os.path.abspath(os.fspath(model))).parent
        self.outputs = [output.name for output in self.proto.graph.output]
        self.opset = next((o.version for o in self.proto.opset_import if o.domain in ("", "ai.onnx")), 1)

    def data(self, source: DataSource) -> Data:
        """Open data for this model."""
        graph = read_onnx(self.proto, Path(self.folder or ""))
        return Data(source, {v.name: v.type for v in graph.inputs}, (v.name for v in graph.defaults), Completed(graph))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the model's file, weights that lie outside of it by name and place only."""
        return hashlib.sha256(self.proto.SerializeToString(deterministic=True)).hexdigest()

    def known(self) -> set[str]:
        """Names of all tensors of the main graph."""
        graph = self.proto.graph
        names = {i.name for i in graph.input} | {t.name for t in graph.initializer}
        return names | {name for node in graph.node for name in node.output if name}

    def require(self, names: Iterable[str]) -> None:
        """Refuse names of tensors that the main graph does not have.

        Raises:
            InputError: naming the first.
        """
        known = self.known()
        for name in names:
            if name not in known:
                raise InputError(f"The model has no tensor {name!r} in its main graph.")

    def load(self, extra: Sequence[onnx.NodeProto], outputs: Sequence[str]) -> Evaluator:
        """Load the model with nodes put in behind the producers of what they read, and with these outputs.

        Run in the file's order, unoptimized: a probe then runs right after the tensor it looks at is made, and
        keeps none alive longer. What no output depends on is left out: onnxruntime would run it all the same.
        """
        model = onnx.ModelProto()
        model.CopyFrom(self.proto)
        graph = model.graph
        waiting: dict[str, list[onnx.NodeProto]] = {}
        made_here = {name for node in extra for name in node.output}
        nodes: list[onnx.NodeProto] = [node for node in extra if not node.input]
        for node in extra:
            if node.input:
                waiting.setdefault(next(n for n in node.input if n), []).append(node)

        def release(name: str) -> None:
            for node in waiting.pop(name, []):
                nodes.append(node)
                for output in node.output:
                    release(output)

        first = [n for n in waiting if n not in made_here]
        produced = {name for node in graph.node for name in node.output}
        for name in first:
            if name not in produced:
                release(name)
        for node in graph.node:
            nodes.append(node)
            for name in node.output:
                release(name)
        needed = _feeding(nodes, outputs)
        ordered = [onnx.NodeProto.FromString(node.SerializeToString()) for node in needed]
        del graph.node[:]
        graph.node.extend(ordered)
        kept = {output.name: output for output in graph.output}
        chosen = [kept.get(name) or onnx.ValueInfoProto(name=name) for name in outputs]
        chosen = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in chosen]
        del graph.output[:]
        graph.output.extend(chosen)
        # patterns keep a block per set of shapes, and reuse by shape keeps tensors that nobody reads any more
        options = RunOptions(
            optimize=False,
            threads=self.threads,
            file_order=True,
            mem_pattern=False,
            mem_reuse=False,
            config={PACKING_KEY: "1"},  # weights stay mapped: a packed copy costs more than it gains in a few runs
        )
        return Evaluator(model, options, folder=self.folder, label="the model under calibration")


def _feeding(nodes: Sequence[onnx.NodeProto], outputs: Iterable[str]) -> list[onnx.NodeProto]:
    """Nodes that outputs depend on, in their order; those are in topological order."""
    needed, kept = set(outputs), list[onnx.NodeProto]()
    for node in reversed(nodes):
        if needed.intersection(node.output):
            kept.append(node)
            needed |= _read_by(node)
    return kept[::-1]


def _read_by(node: onnx.NodeProto) -> set[str]:
    """Names that a node reads, within its subgraphs, too."""
    found = set(node.input)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            found |= {output.name for output in graph.output}
            found |= {name for inner in graph.node for name in _read_by(inner)}
    return found - {""}
