"""Make session contracts: record a run of the model under each set of options, and keep the smallest."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from memoptc.runtime.configuration import SESSION
from memoptc.runtime.contract import Contract
from memoptc.runtime.memory.bfc import arena_capacity
from memoptc.runtime.native.session import NativeSession
from memoptc.runtime.options import FRUGAL, Feed, RunOptions


def make_contract(
    model: str | os.PathLike[str],
    feed: Feed,
    *,
    threads: int = 0,
    candidates: Sequence[RunOptions] = (FRUGAL, replace(FRUGAL, file_order=True)),
) -> Contract:
    """Record a run of the model under each set of options, and keep the one with the smallest peak.

    Args:
        model: Path of the model.
        feed: Tensors to run it with.
        threads: Intra-op threads; 0 leaves the choice to onnxruntime.
        candidates: Options to try; the first of equals wins.

    Raises:
        InputError: onnxruntime cannot load or run the model; `Unavailable` when nothing can be recorded here.
    """
    best: Contract | None = None
    for candidate in candidates:
        options = replace(candidate, threads=threads)
        session = NativeSession(model, options)
        try:
            _, trace = session.record(feed)
            capacity = arena_capacity([*session.load_events, *_after(session.load_events, trace.events)])
            measured = {"run_peak_bytes": trace.peak_bytes, "loaded_bytes": session.loaded_bytes}
            shapes = {name: tuple(value.shape) for name, value in feed.items()}
            found = Contract(options, capacity, shapes, measured, peaks={str(SESSION): trace.peak_bytes})
        finally:
            session.close()
        if best is None or found.measured["run_peak_bytes"] < best.measured["run_peak_bytes"]:
            best = found
    assert best is not None
    return best


def _after(first: Sequence[int], events: Sequence[int]) -> list[int]:
    """Number the allocations of a second sequence after those of the first."""
    count = sum(1 for e in first if e > 0)
    return [e if e > 0 else e - count for e in events]
