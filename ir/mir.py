"""`.mir` files: text, and beside it the weights that are too large to stand in it."""

from __future__ import annotations

import os
from pathlib import Path

from memoptc.ir.core import Graph, Tensor
from memoptc.ir.diagnostics import InputError
from memoptc.ir.files import reading, staged
from memoptc.ir.printer import INLINE_LIMIT, print_graph
from memoptc.ir.spelling import quote
from memoptc.ir.tensors import same_content
from memoptc.ir.weights import onnx_weights, write_npz

EXPECT = "// ---- expect"
"""The line in a case or an example below which stands what must come out; files are read up to it."""


def read_mir(path: str | os.PathLike[str]) -> Graph:
    """Read a `.mir` file; large weights in the files that it names stay there until somebody looks.

    Raises:
        SourceError: the text is wrong; the message shows where.
        InputError: the file, or one that it names, cannot be read.
    """
    try:
        with reading(path, ".mir"):
            text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{path} is no text.", hint="memoptc reads .mir files in UTF-8.") from None
    from memoptc.ir.parser import parse  # loads Lark, which writing does without

    return parse(text.partition(f"{EXPECT}\n")[0], file=str(path))


def write_mir(
    graph: Graph,
    path: str | os.PathLike[str],
    *,
    source: str | os.PathLike[str] | None = None,
    limit: int = INLINE_LIMIT,
    positions: bool = False,
) -> list[Path]:
    """Write a graph as text, tensors of more than `limit` elements into `PATH.npz` beside it; all or nothing.

    Args:
        graph: The graph.
        path: Where to.
        source: The `.onnx` file that the graph came from: weights that are still as they are there are referred to
            by name and not copied.
        limit: Up to how many elements a tensor is spelled out in the text.
        positions: Also write from which place of which text file each op was parsed.

    Returns:
        The files written.

    Raises:
        InputError: the place cannot be written, or `source` cannot be read.
    """
    path = Path(path)
    store = _Store(onnx_weights(Path(source)) if source is not None else {})
    side = path.name.removesuffix(".mir") + ".npz"
    text = print_graph(graph, weights=store.name, limit=limit, positions=positions)
    files = [os.path.relpath(source, path.parent)] if source is not None and store.from_source else []
    files += [side] if store.kept else []
    head, _, rest = text.partition("\n")
    if not head.startswith("model "):
        head, rest = "", text
    lines = "".join(f"weights {quote(f)}\n" for f in files)
    with staged(path) as inner:
        inner.write_text(f"{head}\n{lines}{rest}", encoding="utf-8")
        if store.kept:
            write_npz(inner.with_name(side), store.kept)
    return [path.parent / side, path] if store.kept else [path]


class _Store:
    """Finds names for tensors: the source's where it has them, else new ones."""

    def __init__(self, source: dict[str, Tensor]) -> None:
        self.source = source
        self.from_source = False
        self.kept: dict[str, Tensor] = {}
        self._names: dict[int, str] = {}

    def name(self, tensor: Tensor, hint: str) -> str:
        held = self.source.get(hint)
        if held is not None and same_content(held, tensor):
            self.from_source = True
            return hint
        if id(tensor) in self._names:
            return self._names[id(tensor)]
        base = hint.replace("\\", "/").strip("/") or "tensor"
        name, n = base, 1
        while name in self.kept or name in self.source:
            name, n = f"{base}_{n}", n + 1
        self.kept[name] = tensor
        self._names[id(tensor)] = name
        return name


__all__ = ["print_graph", "read_mir", "write_mir"]
