"""Random valid instances of operators: what `Operator.sample` gives, and those that follow from other facts.

Property tests draw from them: inferred types, iteration spaces, the float64 form and the text form of every operator
with a sample are held against onnxruntime without a further line (`tests/ir/test_definitions.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx.defs

Array: TypeAlias = npt.NDArray[Any]
Rng: TypeAlias = np.random.Generator

OPSET = 21
"""Of standard ONNX, unless an instance says otherwise."""
_KINDS = {
    "tensor(float)": np.float32,
    "tensor(bool)": np.bool_,
    "tensor(int64)": np.int64,
    "tensor(uint32)": np.uint32,
}


@dataclass(frozen=True)
class Sample:
    """One random instance of an operator.

    Args:
        operands: What goes in; `None` for an optional operand that is not given.
        attrs: Its attributes.
        weights: Which operands are constants; the others are inputs.
        results: How many results it has.
        opset: Version of standard ONNX that it is valid in.
    """

    operands: tuple[Array | None, ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    weights: frozenset[int] = frozenset()
    results: int = 1
    opset: int = OPSET


Sampler: TypeAlias = Callable[[Rng], Sample]


def extents(r: Rng, least: int, most: int, *, largest: int = 7) -> tuple[int, ...]:
    """Draw a shape of at least `least` and at most `most` axes."""
    return tuple(int(d) for d in r.integers(1, largest + 1, int(r.integers(least, most + 1))))


def floats(r: Rng, *shape: int) -> Array:
    """Draw float32 numbers of both signs."""
    return np.asarray(r.standard_normal(shape), np.float32)


def axis_of(r: Rng, rank: int) -> int:
    """Draw an axis, counted from either end."""
    return int(r.integers(-rank, rank))


def broadcasting(name: str, least: int) -> Sampler:
    """Instances of an element-wise operator of standard ONNX: operands that broadcast against each other.

    Args:
        name: The operator.
        least: How many operands it has at least.
    """

    def sampler(r: Rng) -> Sample:
        schema = onnx.defs.get_schema(name)
        whole = extents(r, 0, 4)
        count = max(least, schema.min_input)
        operands = []
        for index in range(count):
            formal = schema.inputs[min(index, len(schema.inputs) - 1)]
            shape = tuple(1 if index and r.random() < 0.3 else d for d in whole)
            operands.append(_numbers(r, _kind(formal.types), shape if name != "CastLike" or not index else (1,)))
        return Sample(tuple(operands), opset=max(OPSET, schema.since_version))

    return sampler


def _kind(types: Any) -> Any:
    return next(dtype for text, dtype in _KINDS.items() if text in types)


def _numbers(r: Rng, dtype: Any, shape: tuple[int, ...]) -> Array:
    """Numbers that most functions are defined for: of 0.1 to 1, or of 1 to 4."""
    if dtype == np.bool_:
        return np.asarray(r.random(shape) < 0.5)
    if dtype == np.float32:
        return np.asarray(0.1 + 0.9 * r.random(shape), dtype)
    return np.asarray(r.integers(1, 5, shape), dtype)
