"""Planned runs through onnxruntime's C interface: record the first run of a set of shapes, replay later ones."""

from __future__ import annotations

import math
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from memoptc.ir.diagnostics import InputError
from memoptc.runtime.errors import MemoryLimit, PlanLeft, no_such_file, too_large
from memoptc.runtime.heap import available_bytes, trim_heap
from memoptc.runtime.memory.allocate import allocate
from memoptc.runtime.memory.plan import Plan
from memoptc.runtime.memory.problem import Buffer, Problem
from memoptc.runtime.native.allocator import ASKED_FOR
from memoptc.runtime.native.elements import element_bytes, has_whole_bytes
from memoptc.runtime.native.session import NativeSession, Port
from memoptc.runtime.native.shared import BlockHome, Shared
from memoptc.runtime.native.trace import LARGE, Block, Script, Trace
from memoptc.runtime.options import RunOptions
from memoptc.runtime.outputs import can_be_written_to, copied

if TYPE_CHECKING:
    import numpy.typing as npt

_WARM_UP = Problem(tuple(Buffer("", 64 * (i + 1), i, i + 2, 64) for i in range(8)))
"""Planned while loading, so that the first run does not pay for the planner's own code."""

_MOST_PLANS = 16
_PATIENCE = 3
"""Runs of one shape that may leave their plan before planning that shape is given up."""

_ENOUGH = 1.005
"""Share of the floor at which planning a run stops: searching on takes memory of its own."""

_EFFORT = 400_000
"""Looks at a neighbour that planning a run may take: about a tenth of a second, which the run waits for."""

_LEFT_HINT = "Its sizes depend on more than the shapes of its inputs: run without strict."


@dataclass
class RunPlan:
    """The plan of one set of input shapes.

    Args:
        shapes: Of the inputs.
        trace: What the run allocates.
        plan: Where, but for what lies apart.
        handed_out: Numbers of the allocations that outputs lie in: their memory is handed out with them.
        bound: Outputs among them whose shapes follow from those of the inputs: shape and type. They are written
            straight into the caller's arrays, where there are some.
        runs: Runs that kept to it.
        peak_bytes: Most bytes alive at once in the recorded run, outputs included.
    """

    shapes: dict[str, tuple[int, ...]]
    trace: Trace
    plan: Plan
    handed_out: frozenset[int]
    bound: dict[str, tuple[tuple[int, ...], np.dtype[Any]]]
    runs: int = 0
    peak_bytes: int = 0

    @cached_property
    def arena_bytes(self) -> int:
        """Bytes of the block that the runs of these shapes take."""
        return self.plan.arena_bytes

    @cached_property
    def output_bytes(self) -> int:
        """Bytes of outputs, which each run takes besides."""
        return sum(self.trace.sizes[number] for number in self.handed_out)


@dataclass(frozen=True)
class _Recorded:
    """Allocations of one run of a set of shapes; planned when the shapes come again."""

    shapes: dict[str, tuple[int, ...]]
    trace: Trace
    outputs: dict[str, tuple[tuple[int, ...], np.dtype[Any]]]


class Planned:
    """Through the C interface: the first run of a set of shapes is recorded, later ones replay it at planned offsets.

    Shapes that never come again are not planned: what they allocate lies in the block of the runs before, best fit.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | bytes,
        options: RunOptions,
        limit: int | None,
        strict: bool,
        shared: Shared | None = None,
    ) -> None:
        if not isinstance(model, bytes) and not os.path.isfile(model):
            raise no_such_file(model)
        self._session = NativeSession(model, options, shared=shared)
        self.inputs: list[Port] = self._session.input_ports
        self.outputs: list[Port] = self._session.output_ports
        other = next((p for p in (*self.inputs, *self.outputs) if not has_whole_bytes(p.type)), None)
        if other is not None:
            self._session.close()
            raise InputError(
                f"{other.name!r} is no tensor, or has less than a byte an element; no plan is made for such.",
                hint="Choose memory='arena'.",
            )
        self._recorded: dict[Any, _Recorded] = {}
        self._plans: dict[Any, RunPlan] = {}
        self._scripts: dict[Any, Script] = {}
        self._lefts: Counter[Any] = Counter()
        self._home = BlockHome() if shared is None else shared.home
        self._best_fit_bytes = 0
        self._handed_out: frozenset[int] = frozenset()
        self._strict, self.limit = strict, limit
        self._lock = self._home.lock
        if limit is not None and self._session.load_peak_bytes > limit:
            self._session.close()
            raise MemoryLimit(
                f"Loading allocates {self._session.load_peak_bytes} bytes for weights in the kernels' own layout; "
                f"the limit is {limit}.",
                hint="Raise the limit, or turn pre-packing off: config {'session.disable_prepacking': '1'}.",
            )
        allocate(_WARM_UP)
        self._symbols = {s for port in self.inputs for s in port.shape if isinstance(s, str)}

    @property
    def loaded_bytes(self) -> int:
        """Bytes that stay allocated: weights in the kernels' own layout."""
        return self._session.loaded_bytes

    @property
    def plans(self) -> dict[Any, RunPlan]:
        """The plan of each set of shapes that ran, by what identifies them."""
        with self._lock:
            for key in list(self._recorded):
                self._plan(key)
            return dict(self._plans)

    def run(
        self,
        feed: Mapping[str, Any],
        into: Mapping[str, npt.NDArray[Any]],
    ) -> dict[str, Any]:
        """Run once; give a value per output of the model."""
        arrays = {name: np.asarray(value, order="C") for name, value in feed.items()}
        key = tuple((name, a.dtype.str, a.shape) for name, a in sorted(arrays.items()))
        if not self._session.allocator.can_refuse:
            self._require(self._output_bytes(arrays, into), "Its outputs alone take")
        with self._lock:
            if self._lefts[key] >= _PATIENCE:
                return self._on_heap(arrays, into)
            if key not in self._plans and key not in self._recorded:
                return self._record(key, arrays, into)
            return self._replay(key, arrays, into)

    def _on_heap(self, feed: Mapping[str, npt.NDArray[Any]], into: Mapping[str, npt.NDArray[Any]]) -> dict[str, Any]:
        straight = {name: array for name, array in into.items() if can_be_written_to(array, feed)}
        with self._limited():
            found = self._session.run(feed, straight)
        return _copied(found, into)

    def _record(
        self, key: Any, feed: Mapping[str, npt.NDArray[Any]], into: Mapping[str, npt.NDArray[Any]]
    ) -> dict[str, Any]:
        first = not self._best_fit_bytes
        with self._limited():
            block = None if first else self._block_of(self._best_fit_bytes)
            found, trace = self._session.record(feed, block, self._handed_out)
        outputs = {name: (found[name].shape, found[name].dtype) for name in trace.outputs}
        for kept in (self._recorded, self._plans, self._scripts):
            while len(kept) >= _MOST_PLANS:
                del kept[next(iter(kept))]
        self._recorded[key] = _Recorded({n: a.shape for n, a in feed.items()}, trace, outputs)
        self._best_fit_bytes = max(self._best_fit_bytes, trace.best_fit_bytes)
        self._handed_out = _outputs_of(trace)
        if first:
            trim_heap()
        return _copied(found, into)

    def _plan(self, key: Any) -> RunPlan:
        """Give the plan of shapes that ran before; it is made when they come again."""
        if key in self._recorded:
            of = self._recorded.pop(key)
            handed_out = _outputs_of(of.trace)
            plan = allocate(of.trace.without(handed_out).problem(), effort=_EFFORT, enough=_ENOUGH)
            # A bound output must fit whatever the values are: only shapes that follow from the inputs' are bound.
            bound = {
                port.name: of.outputs[port.name]
                for port in self.outputs
                if port.name in of.outputs and of.trace.outputs[port.name] in handed_out and self._follows(port)
            }
            self._plans[key] = RunPlan(of.shapes, of.trace, plan, handed_out, bound, peak_bytes=of.trace.peak_bytes)
        return self._plans[key]

    def _follows(self, port: Port) -> bool:
        """True if an output's shape follows from the inputs' shapes."""
        return port.type not in ("", "tensor(string)") and all(
            isinstance(d, int) or d in self._symbols for d in port.shape
        )

    def _replay(
        self, key: Any, feed: Mapping[str, npt.NDArray[Any]], into: Mapping[str, npt.NDArray[Any]]
    ) -> dict[str, Any]:
        run_plan = self._plan(key)
        needed = self._session.loaded_bytes + run_plan.arena_bytes + run_plan.output_bytes
        if self.limit is not None and needed > self.limit:
            raise self._too_much(f"{needed} bytes are planned")
        room = 0 if self._home.block is None else self._home.block.size
        self._require(max(0, run_plan.arena_bytes - room) + run_plan.output_bytes, "Its plan takes")
        bound = {n: into[n] for n, known in run_plan.bound.items() if n in into and _fits(into[n], *known, feed)}
        given = sum(run_plan.trace.sizes[run_plan.trace.outputs[name]] for name in bound)
        with self._limited(run_plan.arena_bytes + given, strict=self._strict):
            found, left = self._session.replay(self._script(key, frozenset(bound)), feed, bound)
        if left:
            self._leave(key, left)
        else:
            run_plan.runs += 1
        return _copied(found, into)

    @contextmanager
    def _limited(self, taken: int = 0, *, strict: bool = False) -> Iterator[None]:
        """Hold the heap to what the limit leaves beside the bytes that are taken otherwise."""
        limit = None if self.limit is None else self.limit - taken
        with self._session.limited(limit, strict=strict) as allocator:
            try:
                yield
            except InputError:
                if not (allocator.over or allocator.refused):
                    raise
            if allocator.refused:
                raise too_large(allocator.refused)
            if allocator.over:
                raise self._too_much(allocator.over)

    def _output_bytes(self, feed: Mapping[str, npt.NDArray[Any]], into: Mapping[str, npt.NDArray[Any]]) -> int:
        """Bytes of the outputs whose shapes follow from those of the inputs, but for those that have an array."""
        extents = {
            symbol: extent
            for port in self.inputs
            if port.name in feed
            for symbol, extent in zip(port.shape, feed[port.name].shape, strict=False)
            if isinstance(symbol, str)
        }
        total = 0
        for port in (p for p in self.outputs if p.name not in into):
            shape = [d if isinstance(d, int) else extents.get(d or "", 0) for d in port.shape]
            total += math.prod(shape) * element_bytes(port.type)
        return total

    def _require(self, wanted: int, what: str) -> None:
        """Raise where memory is asked for that there is not: later, nobody can be told, and the process ends."""
        there = available_bytes() if wanted >= ASKED_FOR else None
        if there is not None and wanted > there:
            raise too_large(f"{what} {wanted} bytes, and {there} bytes are available")

    def _too_much(self, what: str) -> MemoryLimit:
        return MemoryLimit(
            f"The run needs more than the limit of {self.limit} bytes: {what}.",
            hint="Raise the limit, or feed smaller inputs.",
        )

    def _leave(self, key: Any, left: str) -> None:
        """Plan these shapes anew, unless that was tried often enough."""
        del self._plans[key]
        self._forget_scripts(key)
        self._lefts[key] += 1
        if self._strict:
            raise PlanLeft(f"The run left its plan: {left}.", hint=_LEFT_HINT)
        warnings.warn(f"a run left its memory plan and was served by the heap: {left}", RuntimeWarning, stacklevel=5)

    def _script(self, key: Any, bound: frozenset[str]) -> Script:
        run_plan = self._plans[key]
        block = self._block_of(run_plan.arena_bytes)
        known = self._scripts.get((key, bound))
        if known is None or known.block is not block:
            numbers = frozenset(run_plan.trace.outputs[name] for name in bound)
            self._scripts[key, bound] = Script(
                run_plan.trace, run_plan.plan.offsets, block, handed_out=run_plan.handed_out, bound=numbers
            )
        return self._scripts[key, bound]

    def _block_of(self, size: int) -> Block:
        """Give a block of at least that size; a larger one takes the place of the one before."""
        if self._home.block is None or self._home.block.size < size:
            self._scripts.clear()
            self._home.block = None
            self._home.block = Block(size)
        return self._home.block

    def _forget_scripts(self, key: Any) -> None:
        for known in [k for k in self._scripts if k[0] == key]:
            del self._scripts[known]

    def close(self) -> None:
        """Release the model and the block."""
        self._session.close()
        self._scripts.clear()
        self._plans.clear()
        self._recorded.clear()
        self._home = BlockHome()


def _outputs_of(trace: Trace) -> frozenset[int]:
    """Numbers of the allocations that outputs lie in and that are worth a mapping of their own."""
    return frozenset(number for number in trace.outputs.values() if trace.sizes[number] >= LARGE)


def _fits(
    array: npt.NDArray[Any], shape: tuple[int, ...], dtype: np.dtype[Any], feed: Mapping[str, npt.NDArray[Any]]
) -> bool:
    return array.shape == shape and array.dtype == dtype and can_be_written_to(array, feed)


def _copied(found: Mapping[str, Any], into: Mapping[str, npt.NDArray[Any]]) -> dict[str, Any]:
    """Bring outputs that could not be written in place to where the caller wants them."""
    result = dict(found)
    for name, array in into.items():
        if result[name] is not array:
            result[name] = copied(name, result[name], array)
    return result
