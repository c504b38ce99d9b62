"""Constants that stand for one weight in codes, each made once for all that read it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Value
from memoptc.ir.types import DType
from memoptc.passes.precision._quantize.blocks import Blocks
from memoptc.passes.precision._quantize.weight_operands import Weight

_DTYPES = {(4, True): DType.INT4, (4, False): DType.UINT4, (8, True): DType.INT8, (8, False): DType.UINT8}


class WeightConstants:
    """Makes the constants of one weight.

    Args:
        weight: Its value names them.
    """

    def __init__(self, weight: Weight) -> None:
        self._weight = weight
        self._values: dict[tuple[str, object], Value] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all that were made."""
        return sum(v.nbytes for v in self._values.values() if isinstance(v.nbytes, int))

    def const(self, content: npt.NDArray[Any], suffix: str, key: object = ()) -> Value:
        """A constant beside the weight.

        Args:
            content: Of the constant.
            suffix: Of its name.
            key: Distinguishes constants of the same suffix.
        """
        if (suffix, key) not in self._values:
            graph: Graph = self._weight.value.graph
            self._values[suffix, key] = Builder(graph).const(content, f"{self._weight.value.name}_{suffix}")
        return self._values[suffix, key]

    def decoded_operands(
        self,
        blocks: Blocks,
        codes: npt.NDArray[np.uint8],
        scales: npt.NDArray[np.float32],
        zeros: npt.NDArray[np.uint8],
        turned: bool,
    ) -> list[Value]:
        """Operands of a DequantizeLinear: codes, scales, and zero points where they differ."""
        dtype = _DTYPES[blocks.bits, blocks.symmetric]
        middle = 2 ** (blocks.bits - 1) if blocks.symmetric else 0
        arrays: list[tuple[str, npt.NDArray[Any]]] = [
            ("codes", (codes.astype(np.int16) - middle).astype(dtype.numpy())),
            ("scales", scales),
        ]
        if not blocks.symmetric:
            arrays.append(("zeros", zeros.astype(dtype.numpy())))
        return [
            self.const(np.ascontiguousarray(array.T if turned else array), name, ("dq", turned))
            for name, array in arrays
        ]
