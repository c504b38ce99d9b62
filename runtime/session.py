"""A drop-in for `onnxruntime.InferenceSession` that keeps memory small: sized arena, planned runs, a limit."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import onnxruntime as ort

from memoptc.ir.diagnostics import InputError
from memoptc.runtime.contract import Contract
from memoptc.runtime.errors import MemoryLimit, PlanLeft, as_both, translated
from memoptc.runtime.heap import trim_heap
from memoptc.runtime.in_flight import in_flight
from memoptc.runtime.library_pages import library_pages_returned
from memoptc.runtime.options import PACKING_KEY, Feed, RunOptions
from memoptc.runtime.session_arguments import (
    Packing,
    as_contract,
    as_limit,
    as_options,
    as_packed,
    as_source,
    check_tier,
    native_feed,
    not_in_planned,
    runs_on_host,
    wanted_outputs,
)
from memoptc.runtime.session_methods import forward_all
from memoptc.runtime.sizes import as_bytes
from memoptc.runtime.streaming import UNPACKED, UNSPUN, Weights, as_weight_limit, paged, streamed
from memoptc.runtime.tiers.arena import combined, registered_arena

if TYPE_CHECKING:
    import numpy.typing as npt

    from memoptc.runtime.admission import Admission
    from memoptc.runtime.native.pager import Pager, Traffic
    from memoptc.runtime.native.shared import Shared
    from memoptc.runtime.tiers.planned import Planned, RunPlan

Memory: TypeAlias = Literal["auto", "arena", "planned", "stock"]


class Session(ort.InferenceSession):  # type: ignore[misc]
    """A model ready to run, with as little memory as the chosen tier allows.

    `"stock"` is onnxruntime as it comes. `"arena"` uses only onnxruntime's public Python interface: our order, no reuse
    by shape, no pattern block, one arena of the right size. `"planned"` goes through the C interface: the first
    run of each set of input shapes is recorded, its allocations are planned, and every later run gets each of them
    at its planned offset inside one block of exactly the planned size. Outputs whose shapes follow from those of the
    inputs are written straight into the arrays that `run` gives. `"auto"` (the default) is the tier that the contract
    names as the smallest, `"arena"` without one; a session for other providers than the CPU's is `"stock"`.

    One block serves one run at a time: concurrent calls of `run` wait for each other in the tier `"planned"`.

    Everything else is `InferenceSession`'s: arguments, methods, and the exceptions, which are also `InputError`s. What
    needs onnxruntime's Python session (`io_binding`, run options, `run_with_ort_values`, ...) is not to be had with
    `memory="planned"`; a session that is planned by `"auto"` then loads the model in the tier `"arena"` and goes on.

    Args:
        path_or_bytes: Path, serialized bytes, or protobuf. A session contract beside the path is applied.
        sess_options: The caller's `SessionOptions`. What differs in them from onnxruntime's defaults stays, with a
            warning where the contract says otherwise; the contract's options take the place of defaults.
        providers: As for `InferenceSession`; the CPU's when not given.
        provider_options: As for `InferenceSession`.
        memory: The tier.
        memory_limit: Most bytes that onnxruntime may allocate: activations, outputs, workspace and pre-packed weights.
        strict: Raise when a run leaves its plan, instead of serving it from the heap with a warning.
        threads: Intra-op threads; the contract's, or onnxruntime's choice, when not given.
        arena_bytes: Size of the arena, in bytes or as `"64MiB"`, in place of the contract's.
        contract: How to run the model, or a file that says so, in place of the file beside it; `False` ignores that.
        packing: Whether weights are copied into the layout that kernels read fastest. `"auto"` is what the contract
            says, and `True` without one. `False` leaves mapped weights where they are: less memory of the process's
            own, at a latency that depends on the model.
        weights: `"streamed"` keeps no more than `weight_limit` of the mapped weights in memory (on Linux): a share
            stays, the rest is read when a run comes to it. They are not packed, unless `packing=True` asks for it.
        weight_limit: Bytes, or text such as `"64MiB"`; with `weights="streamed"`.
        packed_cache: A folder that keeps a copy of the model with weights packed ahead, which this and later sessions
            map: not a process's own memory, and the same pages for all of them. The first load makes the copy.
        shared: What a `memoptc.runtime.Pool` gives its sessions.
        kwargs: `InferenceSession`'s other arguments.

    Raises:
        InputError: the model cannot be loaded, or the tier not be had on this machine.
        MemoryLimit: loading needs more than the limit.
    """

    def __init__(
        self,
        path_or_bytes: Any,
        sess_options: ort.SessionOptions | None = None,
        providers: Sequence[str | tuple[str, dict[Any, Any]]] | None = None,
        provider_options: Sequence[dict[Any, Any]] | None = None,
        *,
        memory: Memory = "auto",
        memory_limit: int | str | None = None,
        strict: bool = False,
        threads: int | None = None,
        arena_bytes: int | str | None = None,
        contract: Contract | str | os.PathLike[str] | Literal[False] | None = None,
        packing: Packing = "auto",
        weights: Weights = "loaded",
        weight_limit: int | str | None = None,
        packed_cache: str | os.PathLike[str] | None = None,
        shared: Shared | None = None,
        **kwargs: Any,
    ) -> None:
        if memory not in ("auto", "arena", "planned", "stock"):
            raise InputError(f"{memory!r} is no way to run.", hint="Choose 'auto', 'arena', 'planned' or 'stock'.")
        if packing not in ("auto", True, False):
            raise InputError(f"{packing!r} is no choice of packing.", hint="Choose 'auto', True or False.")
        self._source: str | bytes | None = as_source(path_or_bytes)
        self._chosen = memory
        self.contract = as_contract(contract, self._source)
        self.memory_limit = as_limit(memory_limit)
        self._planned: Planned | None = None
        self._shared = shared
        self._caller = (sess_options, providers, provider_options, kwargs)
        self._arena_bytes = self.contract.arena_bytes if arena_bytes is None else as_bytes(arena_bytes)
        self._weight_limit = as_weight_limit(weights, weight_limit)
        self._pager: Pager | None = None
        if packing == "auto" and (packed_cache is not None or self._weight_limit is not None):
            packing = packed_cache is not None
        self._run_options = as_options(self.contract.options, packing, threads)
        if self._weight_limit is not None:
            self._run_options = replace(self._run_options, config={**self._run_options.config, **UNSPUN})
        self._strict, self._threads = strict, threads
        on_host = runs_on_host(providers)
        self._maps_packed = packed_cache is not None and bool(packing) and on_host
        if packed_cache is not None and self._maps_packed:
            self._source = as_packed(self._source, packed_cache)
        check_tier(memory, self.memory_limit is not None, providers, sess_options)
        tier = memory if memory != "auto" else self.contract.tier if on_host and sess_options is None else "arena"
        if tier == "stock" and self.memory_limit is not None:
            tier = "arena"  # the contract's, which holds no limit
        self.memory: Memory = tier if on_host else "stock"
        self._closed = False
        self._open_any(on_host)
        self._admission = self._make_admission()
        self._said_split = False
        self.parts: list[int] = []
        """How many samples each call of the last `run` took, where it was split to fit the limit; else empty."""

    def __repr__(self) -> str:
        """Say which model it is, the tier it runs in, and its limit."""
        model = repr(os.path.basename(self._source)) if isinstance(self._source, str) else "bytes"
        limit = "" if self.memory_limit is None else f", memory_limit={self.memory_limit}"
        return f"Session({model}, memory={self.memory!r}{limit})"

    def _make_admission(self) -> Admission | None:
        """Know what calls take before they start, where the contract says it."""
        if self.memory_limit is None or self.memory not in ("arena", "planned"):
            return None
        # What a copy holds packed is mapped, and no part of what the contract's recording took.
        packed = 0 if self._maps_packed else self.contract.measured.get("loaded_bytes", 0)
        fixed = packed if self._planned is None else self._planned.loaded_bytes
        return self.contract.admission(self.memory_limit, fixed, self.memory)

    def _open_any(self, on_host: bool) -> None:
        """Load the model in the chosen tier; in the next simpler one where `"auto"` chose one that cannot be had."""
        self._stop_streaming()
        threads = self._run_options.threads
        with library_pages_returned():
            self._pager = streamed(lambda: self._load(on_host), self._source, self._weight_limit, threads)
        if self._pager is not None:
            self._stops = weakref.finalize(self, self._pager.close)  # before the weights are unmapped
        trim_heap()  # what loading freed stands beside what runs take, else

    def _load(self, on_host: bool) -> None:
        """Load the model in the chosen tier or a simpler one, in place of what is loaded."""
        if self._planned is not None:
            self._planned.close()
            self._planned = None
        if self.memory == "planned":
            try:
                self._open_planned()
            except InputError:
                if self._chosen == "planned":
                    raise
                self.memory = "arena"
        if self._planned is None:
            self._open(on_host)

    def _open(self, on_host: bool = True) -> None:
        """Load the model into onnxruntime's Python session."""
        given, providers, provider_options, kwargs = self._caller
        options, limit = self._run_options, self.memory_limit
        stock = self.memory == "stock"
        if stock and on_host:
            options = RunOptions(threads=self._threads or 0, config=self._stock_config())
        providers = providers or ["CPUExecutionProvider"]
        kwargs = dict(kwargs)  # it may be loaded again
        disabled = kwargs.pop("disabled_optimizers", None) or list(options.disabled_optimizers) or None
        with (
            translated(limit),
            nullcontext() if stock else registered_arena(self._arena_bytes, limit or 0),
            combined(
                given,
                options,
                environment=not stock,
                graph_only=stock and not on_host,
                promised=on_host and not stock and bool(self.contract.measured),
            ) as native,
        ):
            super().__init__(self._source, native, providers, provider_options, disabled_optimizers=disabled, **kwargs)
        if not stock and isinstance(self._source, bytes):
            # Kept by onnxruntime's package, they would be one more copy of the weights as long as the session lives.
            self._source = self._model_bytes = None

    def _stock_config(self) -> dict[str, str]:
        """Entries of a session as onnxruntime comes: none but what streaming weights asks for."""
        if not self._weight_limit:
            return {}
        return UNPACKED if PACKING_KEY in self._run_options.config else UNSPUN

    def _open_planned(self) -> None:
        """Load the model through the C interface."""
        from memoptc.runtime.tiers.planned import Planned

        given, _, provider_options, kwargs = self._caller
        if given is not None or provider_options or kwargs:
            raise InputError(
                "A planned session takes none of InferenceSession's options: it goes through the C interface.",
                hint="Say threads= and contract= instead, or choose memory='arena'.",
            )
        assert self._source is not None
        planned = Planned(self._source, self._run_options, self.memory_limit, self._strict, self._shared)
        super(ort.InferenceSession, self).__init__(enable_fallback=False)
        self._planned = planned
        self._inputs_meta, self._outputs_meta = planned.inputs, planned.outputs
        self._providers = ["CPUExecutionProvider"]
        self._provider_options: dict[str, dict[str, str]] = {"CPUExecutionProvider": {}}

    def run(
        self,
        output_names: Sequence[str] | None,
        input_feed: Feed,
        run_options: ort.RunOptions | None = None,
        *,
        into: Mapping[str, npt.NDArray[Any]] | None = None,
    ) -> list[Any]:
        """Run once, as `InferenceSession.run` does.

        A batch that does not fit the limit is computed in several calls where the contract says that its samples then
        give the same bits; `parts` tells how many samples each took, and a warning says so once.

        Args:
            output_names: Outputs wanted; all when `None` or empty.
            input_feed: A value per input.
            run_options: Not with `memory="planned"`.
            into: Arrays that outputs are written to, C-contiguous, of the right shape and type.

        Returns:
            A value per output wanted, in that order.

        Raises:
            InputError: onnxruntime refuses the run; the session stays usable.
            MemoryLimit: it would need more than the limit, and cannot be split; where the contract says what a run
                takes, that is known before it starts. The session stays usable.
            PlanLeft: with `strict`, it asked for memory that its plan does not foresee; the message names the event.
        """
        self._check_open()
        names = wanted_outputs(output_names, into or (), [p.name for p in self.get_outputs()])
        if run_options is not None:
            self._need_python("run options")
        input_feed = native_feed(input_feed)
        self.parts = []
        if self._admission is None:
            return self._run_once(names, input_feed, run_options, into)
        return self._run_admitted(self._admission, names, input_feed, run_options, into)

    def _run_admitted(
        self,
        admission: Admission,
        names: Sequence[str],
        input_feed: Feed,
        run_options: ort.RunOptions | None,
        into: Mapping[str, npt.NDArray[Any]] | None,
    ) -> list[Any]:
        """Run in as few calls as fit on paper; in more where that was not enough."""
        from memoptc.runtime.admission import run_in_parts, warn_of_parts

        shapes = {name: tuple(getattr(value, "shape", ())) for name, value in input_feed.items()}
        parts = admission.parts(shapes)

        def run(part: Feed) -> list[Any]:
            return self._run_once(names, part, run_options, None)

        while True:
            self.parts = parts
            try:
                if admission.batch is None or not parts:
                    return self._run_once(names, input_feed, run_options, into)
                if not self._said_split:
                    self._said_split = True
                    warn_of_parts(parts)
                return run_in_parts(run, names, input_feed, admission.batch, parts, into or {})
            except MemoryLimit:
                parts = admission.smaller(shapes, parts)
                if not parts:
                    raise

    def _run_once(
        self,
        names: Sequence[str],
        input_feed: Feed,
        run_options: ort.RunOptions | None,
        into: Mapping[str, npt.NDArray[Any]] | None,
    ) -> list[Any]:
        """Run all samples in one call."""
        with in_flight, translated(self.memory_limit), paged(self._pager):
            if self._planned is not None:
                self._validate_input(list(input_feed))
                found = self._planned.run(input_feed, into or {})
                return [found[name] for name in names]
            if not into:
                return list(super().run(names, dict(input_feed), run_options))
            from memoptc.runtime.outputs import run_into  # numpy, for those who hand in arrays

            return run_into(self, names, input_feed, run_options, into)

    def set_providers(
        self,
        providers: Sequence[str | tuple[str, dict[Any, Any]]] | None = None,
        provider_options: Sequence[dict[Any, Any]] | None = None,
    ) -> None:
        """Load the model anew for other providers; for the CPU's there is nothing to do.

        Raises:
            InputError: the model came as bytes, which only the tier `"stock"` keeps.
        """
        if runs_on_host(providers):
            return
        self._need_python("other providers")
        if self._source is None:
            raise as_both(ValueError)(
                "The bytes of the model are not kept, so it cannot be loaded anew.",
                hint="Load it from a path, or with memory='stock'.",
            )
        with translated():
            super().set_providers(providers, provider_options)
        self.memory = "stock"

    @property
    def plans(self) -> list[RunPlan]:
        """Plans so far: one per set of input shapes."""
        return list(self._planned.plans.values()) if self._planned is not None else []

    def set_limit(self, limit: int | str | None) -> None:
        """Hold later runs of a planned session to another limit: bytes, or text such as `64MiB`."""
        limit = None if limit is None else as_bytes(limit)
        if self._planned is not None and limit != self.memory_limit:
            self.memory_limit = self._planned.limit = limit
            self._admission = self._make_admission()

    @property
    def traffic(self) -> Traffic | None:
        """Bytes and reads of streamed weights; `None` where weights do not stream."""
        return None if self._pager is None else self._pager.traffic

    def _stop_streaming(self) -> None:
        """Before the weights are unmapped: afterwards, their addresses may be somebody else's."""
        if self._pager is not None:
            self._stops()
            self._pager = None

    def close(self) -> None:
        """Release the model's memory; the session cannot run any more."""
        self._stop_streaming()
        if self._planned is not None:
            self._planned.close()
        self._closed = True
        self._sess = self._sess_options = self._model_meta = None

    def _check_open(self) -> None:
        if self._closed:
            raise InputError("The session is closed.", hint="Open another one.")

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _need_python(self, what: str) -> None:
        """See to it that onnxruntime's Python session is there: for what the C interface does not give."""
        if self._planned is None:
            return
        if self._chosen == "planned":
            raise not_in_planned(what)
        self.memory = "arena"
        self._open_any(True)
        self._admission = self._make_admission()


forward_all(Session)


__all__ = ["Memory", "MemoryLimit", "Packing", "PlanLeft", "Session"]
