"""Values of one made-up input, by its role: indices inside their tables, masks, lengths, positions, images."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from memoptc.ir.dims import Dim, Sym
from memoptc.ir.types import DType, TensorType
from memoptc.runtime.roles import Role

STYLES = ("typical", "small", "ones", "zeros")


class InputValues:
    """Values of one input.

    Args:
        role: What the graph uses it for.
        past: The extent along which the model's caches grow, or `None`.
        style: One of `STYLES`.
        choice: Which of several suitable values to take.
        number: Number of the feed; every other one differs in kind where that reaches more of the model.
        rng: Draws the values.
    """

    def __init__(self, role: Role, past: Dim, style: str, choice: int, number: int, rng: np.random.Generator) -> None:
        self.role, self.past = role, past
        self.style, self.choice, self.number, self.rng = style, choice, number, rng

    def array(self, type_: TensorType, shape: tuple[int, ...], binding: Mapping[str, int]) -> npt.NDArray[Any]:
        """Give an array of this type and shape; `binding` has the extent of each symbol."""
        dtype = type_.dtype
        if dtype == DType.STRING:
            words = self.role.words or ["a", "b", "some words", ""]
            return np.asarray(self.rng.choice(np.asarray(words, object), shape), object).reshape(shape)
        if dtype == DType.BOOL:
            if self.style == "typical" and int(np.prod(shape)) == 1:  # a switch: each way, on first
                return np.full(shape, self.number % 2 == 0)
            if self.style == "typical" and len(shape) >= 2:
                return self._mask(shape, binding).astype(bool)
            return {"ones": np.ones, "zeros": np.zeros}.get(self.style, self._coin)(shape, dtype=bool)
        if dtype.is_floating_point() and not self.role.extents:
            return self._floats(shape).astype(dtype.numpy())
        if dtype in (DType.COMPLEX64, DType.COMPLEX128):
            return (self._floats(shape) + 1j * self._floats(shape)).astype(dtype.numpy())
        own = {name for dim in type_.shape or () if isinstance(dim, Sym) for name in dim.free}
        return self._integers(dtype, shape, binding, own).astype(dtype.numpy())

    def _coin(self, shape: tuple[int, ...], dtype: type = bool) -> npt.NDArray[Any]:
        return self.rng.random(shape) < 0.5

    def _floats(self, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        role = self.role
        if role.fixed:
            return _repeat_last(role.fixed[self.choice % len(role.fixed)], shape).astype(float)
        if self.style in ("ones", "zeros"):
            return np.full(shape, float(self.style == "ones"))
        if self.style == "small":
            return self.rng.uniform(0.1, 1.0, shape)
        if len(shape) <= 1 and role.compared and self.choice:
            return np.full(shape, role.compared[(self.choice - 1) % len(role.compared)])
        if len(shape) in (3, 4) and any(shape[axis] in (1, 3, 4) for axis in (-1, -3)):
            top = 255.0 if role.bytes_range else 1.0
            # every other feed leaves an image's range, to reach units that are silent inside it
            return top * (self.rng.standard_normal(shape) if self.number % 2 else self.rng.random(shape))
        return self.rng.standard_normal(shape)

    def _integers(
        self, dtype: DType, shape: tuple[int, ...], binding: Mapping[str, int], own: Collection[str]
    ) -> npt.NDArray[Any]:
        role = self.role
        if role.exact:
            return np.full(shape, extent_of(role.exact[0], "", binding))
        if role.positions and not role.counted:
            return self._following(shape, binding)
        if self.style in ("ones", "zeros"):
            return np.full(shape, int(self.style == "ones"))
        if role.extents:
            high = min(extent_of(extent, "", binding) for extent in role.extents)
            return self.rng.integers(0, max(1, min(high, 2) if self.style == "small" else high), shape)
        # what is compared with steps counts them, also where it sizes a tensor: a mask of `max(lengths)` steps
        counts_steps = bool(role.lengths) and len(shape) <= 1
        if counts_steps and not (role.fixed and self.choice):
            return self._lengths(shape, binding, own)
        if role.fixed:
            return _repeat_last(role.fixed[(self.choice - counts_steps) % len(role.fixed)], shape).astype(np.int64)
        if len(shape) <= 1 and role.compared:
            numbers = sorted(set(role.compared), reverse=True)
            return np.full(shape, int(numbers[self.choice % len(numbers)]))
        if role.mask or set(role.compared) & {0.0, 1.0}:
            return self._mask(shape, binding)
        bits = dtype.bitwidth
        if bits <= 8 and self.style == "typical":
            low = -(1 << (bits - 1)) if dtype.is_signed() else 0
            return self.rng.integers(low, low + (1 << bits), shape)
        return self.rng.integers(0, 2 if self.style == "small" else 8, shape)

    def _lengths(self, shape: tuple[int, ...], binding: Mapping[str, int], own: Collection[str]) -> npt.NDArray[Any]:
        """One length for each element; where no axis is known to be counted, the shortest of other inputs' axes."""
        known = [extent_of(dim, "", binding) for dim in self.role.lengths if dim is not None]
        known = [extent for extent in known if extent > 1]
        others = [extent for name, extent in binding.items() if extent > 1 and name not in own]
        full = min(known) if known else min(others, default=1)
        lengths = np.full(shape, full)
        if self.style == "typical" and lengths.size > 1:  # the first is full: models take the maximum
            lengths[1:] = self.rng.integers(max(1, full // 2), full + 1, lengths.size - 1)
        return lengths

    def _following(self, shape: tuple[int, ...], binding: Mapping[str, int]) -> npt.NDArray[Any]:
        """Positions of steps after the past; where nothing says how long it is, every other feed begins later."""
        steps = shape[-1] if shape else 1
        limits = [extent_of(extent, "", binding) for extent in self.role.extents]
        room = max(0, min(limits) - steps) if limits else steps
        first = extent_of(self.past, "", binding) if self.past is not None else (room // 2) * (self.number % 2)
        found = np.broadcast_to(np.arange(steps) + first, shape if shape else (1,)).reshape(shape)
        return np.minimum(found, min(limits) - 1) if limits else found

    def _mask(self, shape: tuple[int, ...], binding: Mapping[str, int]) -> npt.NDArray[Any]:
        """Ones, but for zeros at the end of every row after the first; where there is a past, at its start."""
        mask = np.ones(shape, np.int64)
        past = extent_of(self.past, "", binding) if self.past is not None else 0
        if past:
            if not self.role.counted and self.style == "typical":  # counted lengths may not fall below the past's
                for row in mask.reshape(-1, shape[-1])[1:]:
                    row[: int(self.rng.integers(0, min(past, shape[-1] // 2) + 1))] = 0
            return mask
        if self.style == "typical" and len(shape) >= 2 and shape[-1] > 1:
            rows = mask.reshape(-1, shape[-1])
            for row in rows[1:]:
                row[int(self.rng.integers(shape[-1] // 2 + 1, shape[-1] + 1)) :] = 0
        return mask


def extent_of(dim: Dim, axis_name: str, binding: Mapping[str, int]) -> int:
    """Evaluate an extent; one that no symbol names is looked up as `axis_name`, else 1."""
    if isinstance(dim, int):
        return dim
    if isinstance(dim, Sym) and dim.free <= set(binding):
        return max(0, dim.evaluate(binding))
    return binding.get(axis_name, 1)


def _repeat_last(values: tuple[int | float, ...], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    count = int(np.prod(shape, dtype=np.int64))
    row = list(values[:count]) + [values[-1]] * max(0, count - len(values))
    return np.asarray(row[:count]).reshape(shape)
