"""Admission of a call under a memory limit, decided before it starts; and calls of fewer samples that fit.

A session contract says how many bytes a run allocates, as a formula over the shapes of the inputs, and along which axes
of inputs and outputs samples lie that do not depend on each other. Imported by `memoptc.runtime.Session`, so it needs
nothing beyond numpy and the standard library.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from memoptc.ir.diagnostics import InputError
from memoptc.runtime.errors import MemoryLimit

if TYPE_CHECKING:
    import numpy.typing as npt

    from memoptc.ir.dims import KnownDim

Shapes = Mapping[str, tuple[int, ...]]
"""Input -> its shape."""


@dataclass(frozen=True)
class RunBytes:
    """Bytes of activations, outputs and scratch of a run.

    Args:
        expressions: Over symbols, such as `4*batch*sequence*384+560`; the largest counts.
        axes: Symbol -> the input and the axis whose extent it is.
        slack: The most that this was above the memory model, as a ratio, at the extents that were looked at.
    """

    expressions: tuple[str, ...]
    axes: Mapping[str, tuple[str, int]]
    slack: float = 1.0

    def of(self, shapes: Shapes) -> int | None:
        """Bytes of a run with inputs of these shapes; `None` where one is missing."""
        extents = {}
        for symbol, (name, axis) in self.axes.items():
            shape = shapes.get(name, ())
            if axis >= len(shape):
                return None
            extents[symbol] = shape[axis]
        return max(one if isinstance(one, int) else one.evaluate(extents) for one in self._parsed)

    @cached_property
    def _parsed(self) -> list[KnownDim]:
        from memoptc.ir.dim_text import parse_dim  # only sessions with a limit pay for it

        try:
            found = [parse_dim(text) for text in self.expressions]
        except ValueError as error:
            raise _unusable(f"{error}") from None
        if not {name for one in found if not isinstance(one, int) for name in one.free} <= self.axes.keys():
            raise _unusable("an expression is over an extent that is not among its axes")
        return found

    def to_json(self) -> dict[str, Any]:
        """Give plain values."""
        axes = {symbol: list(place) for symbol, place in self.axes.items()}
        return {"expressions": list(self.expressions), "axes": axes, "slack": round(self.slack, 3)}

    @staticmethod
    def from_json(plain: Mapping[str, Any]) -> RunBytes:
        """Read what `to_json` gave; errors are those of values of other types, expressions are read when needed."""
        axes = {str(symbol): (str(name), int(axis)) for symbol, (name, axis) in plain["axes"].items()}
        expressions = tuple(map(str, plain["expressions"]))
        if not expressions:
            raise ValueError("run_bytes has no expression")
        return RunBytes(expressions, axes, max(1.0, float(plain.get("slack", 1.0))))


def _unusable(why: str) -> InputError:
    return InputError(
        f"The session contract does not say what a run takes: {why}.",
        hint="Compile the model again, or delete the file.",
    )


@dataclass(frozen=True)
class BatchAxis:
    """Samples that do not depend on each other: each gives the same bits in a call of fewer samples.

    Args:
        inputs: Input -> axis of samples; other inputs are the same for all.
        outputs: The same of outputs.
    """

    inputs: Mapping[str, int]
    outputs: Mapping[str, int]

    def samples(self, shapes: Shapes) -> int:
        """Number of samples in a call; 0 where its inputs do not agree."""
        counts = {shapes[name][axis] for name, axis in self.inputs.items() if axis < len(shapes.get(name, ()))}
        return counts.pop() if len(counts) == 1 else 0

    def with_samples(self, shapes: Shapes, count: int) -> dict[str, tuple[int, ...]]:
        """The shapes of a call with another number of samples."""
        found = dict(shapes)
        for name, axis in self.inputs.items():
            found[name] = (*shapes[name][:axis], count, *shapes[name][axis + 1 :])
        return found

    def to_json(self) -> dict[str, Any]:
        """Give plain values."""
        return {"inputs": dict(self.inputs), "outputs": dict(self.outputs)}

    @staticmethod
    def from_json(plain: Mapping[str, Any]) -> BatchAxis:
        """Read what `to_json` gave; its errors are those of values of other types."""
        found = ({str(n): int(axis) for n, axis in plain[side].items()} for side in ("inputs", "outputs"))
        return BatchAxis(*found)


@dataclass(frozen=True)
class Admission:
    """Decides about calls.

    Args:
        limit: Most bytes that onnxruntime may allocate.
        fixed: Bytes that are allocated as long as the session lives.
        run_bytes: What a run takes, on paper.
        factor: What runs really take, over that.
        batch: Samples that may be computed in several calls.
    """

    limit: int
    fixed: int
    run_bytes: RunBytes
    factor: float
    batch: BatchAxis | None

    def need(self, shapes: Shapes) -> int | None:
        """Bytes that a call of these shapes takes, what stays allocated included; `None` when not known."""
        found = self.run_bytes.of(shapes)
        return None if found is None else self.fixed + int(found * self.factor)

    def parts(self, shapes: Shapes) -> list[int]:
        """Sizes of the sub-batches, as few as fit; an empty list for one call as it is.

        Raises:
            MemoryLimit: the call does not fit, and not in parts either; with the figure.
        """
        need = self.need(shapes)
        if need is None or need <= self.limit:
            return []
        samples = 0 if self.batch is None else self.batch.samples(shapes)
        if self.batch is not None and samples > 1:
            most = self._most(shapes, samples)
            if most:
                return even_parts(samples, most)
        if self.fixed + (need - self.fixed) / self.run_bytes.slack > self.limit:
            smallest = shapes if self.batch is None or samples < 1 else self.batch.with_samples(shapes, 1)
            raise self._refused(need, shapes, None if smallest is shapes else self.need(smallest))
        return []

    def smaller(self, shapes: Shapes, parts: Sequence[int]) -> list[int]:
        """Parts to try after `parts` did not fit; an empty list where there are none."""
        samples = 0 if self.batch is None else self.batch.samples(shapes)
        largest = max(parts, default=samples)
        return even_parts(samples, largest * 7 // 8 or 1) if largest > 1 else []

    def _most(self, shapes: Shapes, samples: int) -> int:
        """The most samples that fit in one call."""
        assert self.batch is not None
        low, high = 0, samples - 1
        while low < high:
            middle = (low + high + 1) // 2
            need = self.need(self.batch.with_samples(shapes, middle))
            low, high = (middle, high) if need is not None and need <= self.limit else (low, middle - 1)
        return low

    def _refused(self, need: int, shapes: Shapes, single: int | None) -> MemoryLimit:
        what = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())
        alone = "" if single is None else f", and {single} with a single sample"
        return MemoryLimit(
            f"A call with {what} needs about {need} bytes{alone}; the limit is {self.limit}.",
            hint="Raise the limit, or feed smaller inputs.",
        )


def even_parts(samples: int, most: int) -> list[int]:
    """As few parts as possible of at most so many samples, equal but for one: there are two shapes at most."""
    calls = -(-samples // most)
    small, more = divmod(samples, calls)
    return [small + 1] * more + [small] * (calls - more)


def check_slices(name: str, value: npt.NDArray[Any], axis: int, samples: int) -> None:
    """Raise `InputError` where an output does not have a slice for each sample."""
    if value.shape[axis] != samples:
        raise InputError(
            f"Output {name!r} has {value.shape[axis]} slices for {samples} samples.",
            hint="The contract does not belong to this model: compile it again.",
        )


def warn_of_parts(parts: Sequence[int]) -> None:
    """Tell the caller of a session's `run` that a batch is computed in several calls."""
    said = f"a batch of {sum(parts)} does not fit the memory limit and is computed in {len(parts)} calls"
    warnings.warn(said, RuntimeWarning, stacklevel=4)


def run_in_parts(
    run: Callable[[Mapping[str, Any]], Sequence[Any]],
    names: Sequence[str],
    feed: Mapping[str, Any],
    batch: BatchAxis,
    parts: Sequence[int],
    into: Mapping[str, npt.NDArray[Any]],
) -> list[Any]:
    """Compute a batch in several calls.

    Args:
        run: Runs the model with a feed; gives a value for each of `names`.
        names: Outputs wanted.
        feed: The whole batch.
        batch: Where samples lie.
        parts: How many samples each call takes.
        into: Arrays for outputs, as far as there are some.

    Raises:
        InputError: an output has another extent along its axis of samples than the call has samples, or an array in
            `into` another shape or type than the output.
    """
    import numpy as np

    from memoptc.runtime.outputs import copied, shares_no_memory

    whole = {name: np.asarray(value) for name, value in feed.items()}
    results: dict[str, npt.NDArray[Any]] = {}
    start, total = 0, sum(parts)
    for count in parts:
        part = {
            name: value[(slice(None),) * batch.inputs[name] + (slice(start, start + count),)]
            if name in batch.inputs
            else value
            for name, value in whole.items()
        }
        for name, found in zip(names, run(part), strict=True):
            axis = batch.outputs[name]
            check_slices(name, found, axis, count)
            shape = (*found.shape[:axis], total, *found.shape[axis + 1 :])
            if name not in results:
                own = name in into and shares_no_memory(into[name], whole)
                results[name] = into[name] if own else np.empty(shape, found.dtype)
                if (results[name].shape, results[name].dtype) != (shape, found.dtype):
                    raise InputError(
                        f"Output {name!r} is {found.dtype} {list(shape)}; the array for it is {results[name].dtype} "
                        f"{list(results[name].shape)}.",
                        hint="Give an array of the output's shape and type in into=, or none.",
                    )
            results[name][(slice(None),) * axis + (slice(start, start + count),)] = found
        start += count
    # What shares memory with an input is written last: later parts, and another try with smaller ones, read that.
    late = {name for name in names if name in into and results[name] is not into[name]}
    return [copied(name, results[name], into[name]) if name in late else results[name] for name in names]
