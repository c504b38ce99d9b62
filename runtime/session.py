"""A drop-in for `onnxruntime.InferenceSession` that keeps memory small: sized arena, planned runs, a limit."""

from __future__ import annotations

import ctypes
import math
import os
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from memoptc.ir.diagnostics import BudgetError, InputError, MemoptcError
from memoptc.runtime.contract import Contract, arena_entries, contract_path, load_contract
from memoptc.runtime.evaluate import Feed, RunOptions, clean_message
from memoptc.runtime.memory.allocate import allocate
from memoptc.runtime.memory.plan import Plan
from memoptc.runtime.memory.problem import Buffer, Problem
from memoptc.runtime.native.allocator import Block, Script, Trace
from memoptc.runtime.native.session import NativeSession, Port
from memoptc.runtime.sizes import parse_bytes

Memory = Literal["arena", "planned", "stock"]

_WARM_UP = Problem(tuple(Buffer("", 64 * (i + 1), i, i + 2, 64) for i in range(8)))
"""Planned while loading, so that the first run does not pay for the planner's own code."""

_SMALLEST_LIMIT = 1 << 16
"""onnxruntime ignores the limit of an arena of a few kilobytes (found by trial: 4 KiB is ignored, 64 KiB holds)."""

_MOST_PLANS = 16
_PATIENCE = 3
"""Runs of one shape that may leave their plan before planning that shape is given up."""

_registration = threading.Lock()


class PlanLeft(InputError):
    """A run asked for memory that its plan does not foresee."""


class MemoryLimit(BudgetError):
    """A run, or loading, would need more memory than the session may use."""


class Session:
    """A model ready to run, with as little memory as the chosen tier allows.

    `"stock"` is onnxruntime as it comes. `"arena"` (the default) uses only onnxruntime's public Python interface: our
    order, no reuse by shape, no pattern block, one arena of the right size. `"planned"` goes through the C interface:
    the first run of each set of input shapes is recorded, its allocations are planned, and every later run gets
    each of them at its planned offset inside one block of exactly the planned size. Outputs whose shapes follow from
    those of the inputs are written straight into the arrays that `run` gives.

    One block serves one run at a time: concurrent calls of `run` wait for each other in the tier `"planned"`.

    Args:
        model: Path, serialized bytes, or protobuf. A session contract beside the path is applied.
        memory: The tier.
        memory_limit: Most bytes that onnxruntime may allocate: activations, outputs, workspace and pre-packed weights.
        strict: Raise when a run leaves its plan, instead of serving it from the heap with a warning.
        threads: Intra-op threads; the contract's, or onnxruntime's choice, when not given.
        arena_bytes: Size of the arena in place of the contract's.
        contract: How to run the model, or a file that says so, in place of the file beside it; `False` ignores that.

    Raises:
        InputError: the model cannot be loaded, or the tier not be had on this machine.
        MemoryLimit: loading needs more than the limit.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | bytes | onnx.ModelProto,
        *,
        memory: Memory = "arena",
        memory_limit: int | str | None = None,
        strict: bool = False,
        threads: int | None = None,
        arena_bytes: int | None = None,
        contract: Contract | str | os.PathLike[str] | Literal[False] | None = None,
    ) -> None:
        if memory not in ("arena", "planned", "stock"):
            raise InputError(f"{memory!r} is no way to run.", hint="Choose 'arena', 'planned' or 'stock'.")
        source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
        if contract is None and isinstance(source, str | os.PathLike):
            contract = load_contract(contract_path(source))
        elif isinstance(contract, str | os.PathLike):
            contract = load_contract(contract)
            if contract is None:
                raise InputError(f"{contract}: no such file.")
        self.contract = contract or Contract()
        options = RunOptions(threads=0) if memory == "stock" else self.contract.options
        options = options if threads is None else replace(options, threads=threads)
        self.memory = memory
        try:
            self.memory_limit = parse_bytes(memory_limit) if isinstance(memory_limit, str) else memory_limit
        except ValueError as error:
            raise InputError(f"{error}.") from None
        if self.memory_limit is not None and self.memory_limit < _SMALLEST_LIMIT:
            raise InputError(
                f"A limit of {self.memory_limit} bytes is too small: onnxruntime's arena does not hold to it.",
                hint=f"Give at least {_SMALLEST_LIMIT} bytes.",
            )
        self._tier: _Stock | _Planned
        if memory == "planned":
            self._tier = _Planned(source, options, self.memory_limit, strict)
        else:
            sized = self.contract.arena_bytes if arena_bytes is None else arena_bytes
            self._tier = _Stock(source, options, None if memory == "stock" else sized, self.memory_limit)

    def run(
        self,
        output_names: Sequence[str] | None,
        input_feed: Feed,
        run_options: ort.RunOptions | None = None,
        *,
        into: Mapping[str, npt.NDArray[Any]] | None = None,
    ) -> list[Any]:
        """Run once, as `InferenceSession.run` does.

        Args:
            output_names: Outputs wanted; all when `None`.
            input_feed: A value per input.
            run_options: Not with `"planned"`.
            into: Arrays that outputs are written to, C-contiguous, of the right shape and type.

        Returns:
            A value per output wanted, in that order.

        Raises:
            InputError: onnxruntime refuses the run; the session stays usable.
            MemoryLimit: it would need more than the limit; the session stays usable.
            PlanLeft: with `strict`, it asked for memory that its plan does not foresee; the message names the event.
        """
        names = list(output_names) if output_names is not None else [p.name for p in self.get_outputs()]
        known = {p.name for p in self.get_outputs()}
        for name in names:
            if name not in known:
                raise InputError(f"The model has no output {name!r}.", hint=f"It has {', '.join(sorted(known))}.")
        found = self._tier.run(names, input_feed, run_options, into or {})
        return [found[name] for name in names]

    def get_inputs(self) -> list[Any]:
        """Give the inputs: objects with `name`, `type` and `shape`."""
        return self._tier.inputs

    def get_outputs(self) -> list[Any]:
        """Give the outputs: objects with `name`, `type` and `shape`."""
        return self._tier.outputs

    def get_providers(self) -> list[str]:
        """Give the execution providers: the CPU's."""
        return ["CPUExecutionProvider"]

    def io_binding(self) -> Any:
        """Give onnxruntime's `IOBinding` for `run_with_iobinding`; not with `"planned"` (use `run(..., into=...)`)."""
        return self._python_session().io_binding()

    def run_with_iobinding(self, binding: Any, run_options: ort.RunOptions | None = None) -> None:
        """Run with bound inputs and outputs, as `InferenceSession.run_with_iobinding` does."""
        with _translated(self.memory_limit):
            self._python_session().run_with_iobinding(binding, run_options)

    @property
    def plans(self) -> list[RunPlan]:
        """What was planned so far: one per set of input shapes."""
        return list(self._tier.plans.values()) if isinstance(self._tier, _Planned) else []

    def close(self) -> None:
        """Release the model's memory."""
        self._tier.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _python_session(self) -> ort.InferenceSession:
        if isinstance(self._tier, _Planned):
            raise InputError(
                "A planned session has no IOBinding: it goes through onnxruntime's C interface.",
                hint="Pass arrays for the outputs with run(..., into={name: array}).",
            )
        return self._tier.session


class _Stock:
    """Through onnxruntime's Python package, in its own arena or in one of ours."""

    def __init__(
        self, model: str | os.PathLike[str] | bytes, options: RunOptions, arena: int | None, limit: int | None
    ) -> None:
        if isinstance(model, str | os.PathLike) and not Path(model).is_file():
            raise InputError(f"{model}: no such file.")
        self._limit = limit
        native = options.session_options()
        with _translated(limit), _registration:
            if arena is not None or limit is not None:
                native.add_session_config_entry("session.use_env_allocators", "1")
                # With a limit all of it is one chunk: an arena that may not grow must not have to.
                _register_arena(limit or arena or 0, limit or 0)
            self.session = ort.InferenceSession(
                os.fspath(model) if isinstance(model, os.PathLike) else model,
                native,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=list(options.disabled_optimizers) or None,
            )
        self.inputs, self.outputs = self.session.get_inputs(), self.session.get_outputs()

    def run(
        self,
        names: Sequence[str],
        feed: Feed,
        run_options: ort.RunOptions | None,
        into: Mapping[str, npt.NDArray[Any]],
    ) -> dict[str, Any]:
        with _translated(self._limit):
            if not into:
                return dict(zip(names, self.session.run(list(names), dict(feed), run_options), strict=True))
            binding = self.session.io_binding()
            for name, value in feed.items():
                binding.bind_cpu_input(name, np.asarray(value, order="C"))
            for name in names:
                if name in into:
                    binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(into[name]))
                else:
                    binding.bind_output(name)
            self.session.run_with_iobinding(binding, run_options)
            found = dict(zip(names, binding.get_outputs(), strict=True))
            return {n: into[n] if n in into else v.numpy() for n, v in found.items()}

    def close(self) -> None:
        del self.session


def _register_arena(size: int, limit: int) -> None:
    """The environment has one arena per device; a session keeps the one that was there when it was made.

    Older versions of onnxruntime (1.20) take one per process: later sessions share it, and cannot have a limit of
    their own.
    """
    info = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    try:
        ort.create_and_register_allocator(info, ort.OrtArenaCfg(arena_entries(size, limit)))
    except RuntimeError as error:
        if "already been registered" not in str(error):
            raise
        if limit or _limits:
            raise InputError(
                f"onnxruntime {ort.__version__} has one arena for all sessions of a process, so none can have a limit.",
                hint="Use memory='planned', one session per process, or a newer onnxruntime.",
            ) from None
    else:
        _limits.extend([limit] if limit else [])


_limits: list[int] = []
"""Limits of arenas that were registered: where there is one arena, nobody else may use one with a limit."""


@dataclass
class RunPlan:
    """The plan of one set of input shapes.

    Args:
        shapes: Of the inputs.
        trace: What the run allocates, without the outputs that are written to the caller's arrays.
        plan: Where.
        bound: Outputs written to the caller's arrays: shape and type.
        runs: Runs that kept to it.
    """

    shapes: dict[str, tuple[int, ...]]
    trace: Trace
    plan: Plan
    bound: dict[str, tuple[tuple[int, ...], np.dtype[Any]]]
    runs: int = 0

    @cached_property
    def arena_bytes(self) -> int:
        """Bytes of the block that the runs of these shapes take."""
        return self.plan.arena_bytes


class _Planned:
    """Through the C interface: record once, then replay at planned places."""

    def __init__(
        self, model: str | os.PathLike[str] | bytes, options: RunOptions, limit: int | None, strict: bool
    ) -> None:
        if isinstance(model, str | os.PathLike) and not Path(model).is_file():
            raise InputError(f"{model}: no such file.")
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
        names: Sequence[str],
        feed: Feed,
        run_options: ort.RunOptions | None,
        into: Mapping[str, npt.NDArray[Any]],
    ) -> dict[str, Any]:
        if run_options is not None:
            raise InputError("A planned session takes no run options.", hint="Use memory='arena' with run options.")
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
        self.plans[key] = RunPlan({n: a.shape for n, a in feed.items()}, kept, plan, bound)
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
        self._session.close()
        self._scripts.clear()
        self.plans.clear()
        self._block = None


_ENOUGH = 1.005
"""Share of the floor at which planning a run stops: searching on takes memory of its own."""

_LEFT_HINT = "Its sizes depend on more than the shapes of its inputs: run without strict."


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


@contextmanager
def _translated(limit: int | None) -> Iterator[None]:
    try:
        yield
    except MemoptcError:
        raise
    except Exception as error:
        if limit is not None and "memory" in str(error).lower():
            raise MemoryLimit(
                f"More than the limit of {limit} bytes is needed: {clean_message(error)}.",
                hint="Raise the limit, or feed smaller inputs.",
            ) from None
        raise InputError(f"onnxruntime cannot run the model: {clean_message(error)}.") from error
