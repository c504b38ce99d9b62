"""Codes of weights on disk: what a killed compile had rounded by data is read back by the next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt

from memoptc.ir.core import Graph
from memoptc.ir.types import DType
from memoptc.pass_base import Context
from memoptc.passes.precision._quantize.blocks import Blocks
from memoptc.passes.precision._quantize.observe import shared_weights
from memoptc.passes.precision._quantize.rounding import Rounded
from memoptc.passes.precision._quantize.tables import Table
from memoptc.passes.precision._quantize.weight_coder import CodedMatrix, CodeKey, WeightCoder
from memoptc.passes.precision._quantize.weight_operands import Weight
from memoptc.runtime.result_cache import ResultCache, fingerprint

Arrays = dict[str, npt.NDArray[Any]]

_BLOCKS = tuple(field.name for field in fields(Blocks))


class CodeCache:
    """Cache of weight codes on disk, one entry for each group of weights.

    A group's codes follow from the graph, in which those before it are coded already, from how codes are written, from
    the data, and from what dampings were best so far.

    Args:
        graph: The graph whose weights are coded.
        coder: What codes them.
        context: Of the compile, with data and a folder to keep codes in.
    """

    def __init__(self, graph: Graph, coder: WeightCoder, context: Context) -> None:
        assert context.checkpoint is not None
        self._graph, self._coder, self._context = graph, coder, context
        self._cache, self._data = ResultCache(context.checkpoint), fingerprint(context.calibration)

    def read(self, weights: Sequence[Weight]) -> str:
        """Let the coder know the codes of a group; give the key to keep them under where none are known, else ""."""
        with shared_weights(self._context) as pool:
            pool.write(self._graph, "coded.onnx").unlink()
            named = [weight.value.name for weight in weights]
            key = ResultCache.key(pool.digest(self._graph), self._data, self._coder.format, self._coder.dampings, named)
        found = self._cache.get_arrays(key)
        if found is None:
            return key
        self._take(weights, found)
        return ""

    @contextmanager
    def keeping(self, key: str, weights: Sequence[Weight]) -> Iterator[None]:
        """Keep what the coder codes within."""
        coder = self._coder
        before = ({*(coder.memo or ())}, {*(coder.tables or ())}, len(coder.rounded))
        yield
        number = {id(weight.value.tensor): i for i, weight in enumerate(weights)}
        rounded = [(r.before, r.after, r.damping) for r in coder.rounded[before[2] :]]
        arrays: Arrays = {
            "rounded": np.array(rounded, np.float64).reshape(-1, 3),
            "dampings": np.array([*coder.dampings.won.elements()], np.float64),
            "weights": np.array(coder.dampings.seen),
        }
        for known, (blocks, signal, noise) in (coder.memo or {}).items():
            if known not in before[0]:
                parts = {name: getattr(blocks, name) for name in _BLOCKS} | {"energy": (signal, noise)}
                arrays |= _named(f"blocks {number[known[0]]} {known[1]} {known[2]!r}", parts)
        for index, table in (coder.tables or {}).items():
            if index not in before[1]:
                wide = table.indices.astype(np.uint8)  # numpy writes no elements of 4 bits
                parts = {"numbers": table.numbers, "indices": wide, "narrow": wide.dtype != table.indices.dtype}
                parts |= {"shape": table.shape, "energy": (table.signal, table.noise)}
                arrays |= _named(f"table {number[index[0]]} {index[1]}", parts)
        self._cache.put_arrays(key, arrays)

    def _take(self, weights: Sequence[Weight], found: Arrays) -> None:
        coder = self._coder
        empty = np.empty((0, 0))
        coder.rounded.extend(Rounded(empty, *map(float, row)) for row in found["rounded"])
        coder.dampings.won.clear()
        coder.dampings.won.update(found["dampings"].tolist())
        coder.dampings.seen = int(found["weights"])
        for name in (key.removesuffix(" energy") for key in found if key.endswith(" energy")):
            kind, number, *rest = name.split(" ")
            tensor = weights[int(number)].value.tensor
            part = {key.removeprefix(f"{name} "): array for key, array in found.items() if key.startswith(f"{name} ")}
            signal, noise = map(float, part["energy"])
            if kind == "blocks":
                parts: dict[str, Any] = {name: part[name] if part[name].ndim else part[name].item() for name in _BLOCKS}
                blocks = Blocks(**parts)
                assert coder.memo is not None
                key = CodeKey(id(tensor), int(rest[0]), float(rest[1]))
                coder.memo[key] = CodedMatrix(blocks, signal, noise)
            else:
                dtype = DType.UINT4.numpy() if part["narrow"] else np.uint8
                shape = tuple(part["shape"].tolist())
                assert coder.tables is not None
                coder.tables[id(tensor), int(rest[0])] = Table(
                    part["numbers"], part["indices"].astype(dtype), shape, signal, noise
                )


def _named(name: str, parts: Mapping[str, Any]) -> Arrays:
    return {f"{name} {part}": np.asarray(value) for part, value in parts.items()}
