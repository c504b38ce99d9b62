"""Planned runs through onnxruntime's C interface: record the first run of each set of shapes, replay later ones."""

from __future__ import annotations

import ctypes
import math
import os
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from memoptc.ir.diagnostics import InputError
from memoptc.runtime.errors import MemoryLimit, PlanLeft, no_such_file
from memoptc.runtime.memory.allocate import allocate
from memoptc.runtime.memory.plan import Plan
from memoptc.runtime.memory.problem import Buffer, Problem
from memoptc.runtime.native.allocator import Block, Script, Trace
from memoptc.runtime.native.session import NativeSession, Port
from memoptc.runtime.options import RunOptions

if TYPE_CHECKING:
    import numpy.typing as npt

_WARM_UP = Problem(tuple(Buffer("", 64 * (i + 1), i, i + 2, 64) for i in range(8)))
"""Planned while loading, so that the first run does not pay for the planner's own code."""

_MOST_PLANS = 16
_PATIENCE = 3
"""Runs of one shape that may leave their plan before planning that shape is given up."""

_ENOUGH = 1.005
"""Share of the floor at which planning a run stops: searching on takes memory of its own."""

_LEFT_HINT = "Its sizes depend on more than the shapes of its inputs: run without strict."


@dataclass
class RunPlan:
    """The plan of one set of input shapes.

    Args:
        shapes: Of the inputs.
        trace: What the run allocates, without the outputs that are written to the caller's arrays.
        plan: Where.
        bound: Outputs written to the caller's arrays: shape and type.
        runs: Runs that kept to it.
        peak_bytes: Most bytes alive at once in the recorded run, outputs included.
    """

    shapes: dict[str, tuple[int, ...]]
    trace: Trace
    plan: Plan
    bound: dict[str, tuple[tuple[int, ...], np.dtype[Any]]]
    runs: int = 0
    peak_bytes: int = 0

    @cached_property
    def arena_bytes(self) -> int:
        """Bytes of the block that the runs of these shapes take."""
        return self.plan.arena_bytes


class Planned:
    """Through the C interface: record once, then replay at planned places."""

    def __init__(
        self, model: str | os.PathLike[str] | bytes, options: RunOptions, limit: int | None, strict: bool
    ) -> None:
        if not isinstance(model, bytes) and not os.path.isfile(model):
            raise no_such_file(model)
        self._session = NativeSession(model, options)
        self.inputs: list[Port] = self._session.input_ports
        self.outputs: list[Port] = self._session.output_ports
        self.plans: dict[Any, RunPlan] = {}
        self._scripts: dict[Any, Script] = {}
        self._lefts: Counter[Any] = Counter()
        self._block: Block | None = None
        self._strict, self._limit = strict, limit
        self._lock = threading.RLock()
        if limit is not None and self._session.load_peak_bytes > limit:
            self._session.close()
            raise MemoryLimit(
                f"Loading allocates {self._session.load_peak_bytes} bytes for weights in the kernels' own layout; "
                f"the limit is {limit}.",
                hint="Raise the limit, or turn pre-packing off: config {'session.disable_prepacking': '1'}.",
            )
        allocate(_WARM_UP)
        self._symbols = {s for port in self.inputs for s in port.shape if isinstance(s, str)}

    def run(
        self,
        feed: Mapping[str, Any],
        into: Mapping[str, npt.NDArray[Any]],
    ) -> dict[str, Any]:
        """Run once; give a value per output of the model."""
        arrays = {name: np.asarray(value, order="C") for name, value in feed.items()}
        key = tuple((name, a.dtype.str, a.shape) for name, a in sorted(arrays.items()))
        with self._lock:
            if self._lefts[key] >= _PATIENCE:
                return self._on_heap(arrays, into)
            if key not in self.plans:
                return self._record(key, arrays, into)
            return self._replay(key, arrays, into)

    def _on_heap(self, feed: Mapping[str, npt.NDArray[Any]], into: Mapping[str, npt.NDArray[Any]]) -> dict[str, Any]:
        with self._limited():
            return dict(self._session.run(feed, into))

    def _record(
        self, key: Any, feed: Mapping[str, npt.NDArray[Any]], into: Mapping[str, npt.NDArray[Any]]
    ) -> dict[str, Any]:
        with self._limited():
            found, trace = self._session.record(feed)
        # A bound output must fit whatever the values are: only shapes that follow from the inputs' are bound.
        bound = {
            port.name: (found[port.name].shape, found[port.name].dtype)
            for port in self.outputs
            if port.name in trace.outputs and self._follows(port)
        }
        kept = trace.without(frozenset(trace.outputs[name] for name in bound))
        plan = allocate(kept.problem(), enough=_ENOUGH)
        while len(self.plans) >= _MOST_PLANS:
            oldest = next(iter(self.plans))
            del self.plans[oldest]
            self._scripts.pop(oldest, None)
        self.plans[key] = RunPlan({n: a.shape for n, a in feed.items()}, kept, plan, bound, peak_bytes=trace.peak_bytes)
        _trim()
        return _copied(found, into)

    def _follows(self, port: Port) -> bool:
        """Whether an output's shape follows from the inputs' shapes."""
        return port.type not in ("", "tensor(string)") and all(
            isinstance(d, int) or d in self._symbols for d in port.shape
        )

    def _replay(
        self, key: Any, feed: Mapping[str, npt.NDArray[Any]], into: Mapping[str, npt.NDArray[Any]]
    ) -> dict[str, Any]:
        run_plan = self.plans[key]
        outputs = sum(math.prod(shape) * dtype.itemsize for shape, dtype in run_plan.bound.values())
        needed = self._session.loaded_bytes + run_plan.arena_bytes + outputs
        if self._limit is not None and needed > self._limit:
            raise self._too_much(f"{needed} bytes are planned")
        targets = {n: into[n] if n in into else np.empty(shape, dtype) for n, (shape, dtype) in run_plan.bound.items()}
        with self._limited(run_plan.arena_bytes + outputs, strict=self._strict):
            found, left = self._session.replay(self._script(key), feed, targets)
        if left:
            self._leave(key, left)
        else:
            run_plan.runs += 1
        return _copied(found, into)

    @contextmanager
    def _limited(self, taken: int = 0, *, strict: bool = False) -> Iterator[None]:
        """Hold the heap to what the limit leaves beside the bytes that are taken otherwise."""
        limit = None if self._limit is None else self._limit - taken
        with self._session.limited(limit, strict=strict) as allocator:
            try:
                yield
            except InputError:
                if not allocator.over:
                    raise
            if allocator.over:
                raise self._too_much(allocator.over)

    def _too_much(self, what: str) -> MemoryLimit:
        return MemoryLimit(
            f"The run needs more than the limit of {self._limit} bytes: {what}.",
            hint="Raise the limit, or feed smaller inputs.",
        )

    def _leave(self, key: Any, left: str) -> None:
        """Plan these shapes anew, unless that was tried often enough."""
        del self.plans[key]
        self._scripts.pop(key, None)
        self._lefts[key] += 1
        if self._strict:
            raise PlanLeft(f"The run left its plan: {left}.", hint=_LEFT_HINT)
        warnings.warn(f"a run left its memory plan and was served by the heap: {left}", RuntimeWarning, stacklevel=5)

    def _script(self, key: Any) -> Script:
        size = self.plans[key].arena_bytes
        if self._block is None or self._block.size < size:
            self._scripts.clear()
            self._block = None
            self._block = Block(size)
        if key not in self._scripts:
            run_plan = self.plans[key]
            self._scripts[key] = Script(run_plan.trace, run_plan.plan.offsets, self._block)
        return self._scripts[key]

    def close(self) -> None:
        """Release the model and the block."""
        self._session.close()
        self._scripts.clear()
        self.plans.clear()
        self._block = None


def _copied(found: Mapping[str, Any], into: Mapping[str, npt.NDArray[Any]]) -> dict[str, Any]:
    """Bring outputs that could not be written in place to where the caller wants them."""
    result = dict(found)
    for name, array in into.items():
        if result[name] is not array:
            np.copyto(array, result[name])
            result[name] = array
    return result


def _trim() -> None:
    """Give freed memory back to the system, where the C library can."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
