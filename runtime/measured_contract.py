"""Make session contracts: record runs of the model under sets of options, and keep what needs least memory."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from memoptc.ir.batch import Batch
from memoptc.ir.diagnostics import InputError
from memoptc.ir.files import TemporaryFolder
from memoptc.runtime import isolated
from memoptc.runtime.configuration import SESSION
from memoptc.runtime.contract import Contract, load_contract
from memoptc.runtime.memory.bfc import arena_capacity, repeated
from memoptc.runtime.memory.default_arena import BOOK
from memoptc.runtime.native.capi import api
from memoptc.runtime.native.session import NativeSession
from memoptc.runtime.npz import load_feed, save_feed
from memoptc.runtime.options import FRUGAL, PACKING_KEY, Feed, RunOptions
from memoptc.runtime.same_samples import with_samples

PLANNED_BYTES = 3 << 19
"""Bytes that a planned session takes beside its block (about 1.1 MB over the tier arena), and that it must gain."""
LIBRARY_BYTES = 24 << 20
"""The same where the C interface comes from a second library of onnxruntime, with its pages and registers."""
CALL_SECONDS = 1.5e-6
"""Seconds by which an allocation takes longer in our own allocator."""
UNSEEN_SECONDS = 6e-6
"""The same in a run of shapes that did not run before, which is recorded; free shapes may be new in every run."""
CALLS_SHARE = 0.02
"""Share of a run's time that these may take."""

_WORTH = 1 << 20
"""Bytes of packed weights below which doing without is not tried."""

_SECONDS, _FEWEST, _MOST = 0.5, 3, 50
"""About how long one set of options is timed, and in how many runs."""


def make_contract(
    model: str | os.PathLike[str],
    feed: Feed,
    *,
    threads: int = 0,
    candidates: Sequence[RunOptions] = (FRUGAL, replace(FRUGAL, file_order=True)),
    timed: Callable[[], Sequence[Feed]] | None = None,
    slowdown: float = 0.0,
    transposed: bool = False,
    isolate: bool = False,
    batch: Batch | None = None,
) -> Contract:
    """Record a run of the model under each set of options, and keep the one with the smallest peak.

    Where its weights lie in a file of their own, the same is tried without packing them into the kernels' layout: the
    mapped file then is the only copy, which the kernel may evict. That is kept where no feed takes longer than
    `slowdown` times: products of few rows are bound by reading weights, others run several times as long. The last bits
    of outputs may differ, since products are added up in another order.

    Args:
        model: Path of the model.
        feed: Tensors to run it with.
        threads: Intra-op threads; 0 leaves the choice to onnxruntime.
        candidates: Options to try; the first of equals wins.
        timed: Gives the feeds to time packing with, the one that may decide alone first; `feed` when not given. Those
            that the model does not run on are left out.
        slowdown: Largest accepted ratio of run times without packing; 0 keeps it, and every bit.
        transposed: Products read transposes of weights: without packing, constants are not folded, so that
            onnxruntime makes products of them that read the mapped weight itself instead of a transposed copy.
        isolate: Do it in a process of its own, so that the caller's memory never holds the model.
        batch: Where samples lie that were proven not to depend on each other; kept where they give the same bits in
            calls of fewer samples.

    Raises:
        InputError: onnxruntime cannot load or run the model; `Unavailable` when nothing can be recorded here.
    """
    if isolate:
        feeds = timed() if slowdown and timed else ()
        return _isolated(model, feed, threads, candidates, feeds, slowdown, transposed, batch)
    best: _Trial | None = None
    for candidate in reversed(candidates):  # the usual choice comes last, and stays loaded for what follows
        trial = _Trial(model, replace(candidate, threads=threads))
        if best is not None:
            best.close()
        trial.record(feed)
        if best is None or trial.peak <= best.peak:
            best = trial
        else:
            trial.close()
    assert best is not None
    try:
        if slowdown and PACKING_KEY not in best.options.config and best.maps_weights:
            found = _without_packing(best, feed, timed() if timed else (feed,), slowdown, transposed)
        else:
            found = best.contract
    finally:
        best.close()
    return found if batch is None else with_samples(model, found, feed, batch)


def _isolated(
    model: str | os.PathLike[str],
    feed: Feed,
    threads: int,
    candidates: Sequence[RunOptions],
    timed: Sequence[Feed],
    slowdown: float,
    transposed: bool,
    batch: Batch | None,
) -> Contract:
    with TemporaryFolder("memoptc-contract-") as name:
        folder = Path(name)
        files = [folder / f"feed{index}.npz" for index in range(1 + len(timed))]
        for file, one in zip(files, (feed, *timed), strict=True):
            save_feed(file, one)
        request = {
            "model": os.path.abspath(os.fspath(model)),
            "feeds": [str(file) for file in files],
            "threads": threads,
            "candidates": [candidate.to_json() for candidate in candidates],
            "slowdown": slowdown,
            "batch": batch and asdict(batch),
            "transposed": transposed,
            "contract": str(folder / "contract.json"),
        }
        isolated.ask("memoptc.runtime.measured_contract", request, folder)
        found = load_contract(folder / "contract.json")
        assert found is not None
        return found


def _work(asked: dict[str, Any]) -> dict[str, Any]:
    feed, *timed = (load_feed(Path(file)) for file in asked["feeds"])
    options = [RunOptions(**plain) for plain in asked["candidates"]]
    found = make_contract(
        asked["model"],
        feed,
        threads=asked["threads"],
        candidates=options,
        timed=(lambda: timed) if timed else None,
        slowdown=asked["slowdown"],
        batch=Batch(**asked["batch"]) if asked["batch"] else None,
        transposed=asked["transposed"],
    )
    found.save(Path(asked["contract"]))
    return {}


class _Trial:
    """A model under one set of options: what a run of it allocates, and how long runs take.

    Args:
        model: Its path.
        options: The options.
    """

    def __init__(self, model: str | os.PathLike[str], options: RunOptions) -> None:
        self.model, self.options = model, options
        self.contract = Contract(options)
        self._open: NativeSession | None = None

    @property
    def session(self) -> NativeSession:
        """The model, loaded when it is first asked for."""
        if self._open is None:
            self._open = NativeSession(self.model, self.options)
        return self._open

    def close(self) -> None:
        """Release the model; it is loaded anew when it is needed again."""
        if self._open is not None:
            self._open.close()
            self._open = None

    @property
    def peak(self) -> int:
        """Most bytes that the recorded run had allocated at once."""
        return self.contract.measured["run_peak_bytes"]

    @property
    def maps_weights(self) -> bool:
        """True if weights are packed that do not lie in the model's own file, and enough of them."""
        packed = self.contract.measured["loaded_bytes"]
        return packed >= _WORTH and packed > Path(self.model).stat().st_size

    def record(self, feed: Feed) -> None:
        """Record a run, and make the contract that it stands for.

        Raises:
            InputError: onnxruntime cannot load or run the model.
        """
        session = self.session
        _, trace = session.record(feed)
        loaded = sum(1 for e in session.load_events if e > 0)
        capacity = arena_capacity([*session.load_events, *repeated(trace.events, loaded)])
        measured = {"run_peak_bytes": trace.peak_bytes, "loaded_bytes": session.loaded_bytes}
        shapes = {name: tuple(value.shape) for name, value in feed.items()}
        fixed = all(isinstance(d, int) for port in session.input_ports for d in port.shape)
        outputs = sum(trace.sizes[number] for number in set(trace.outputs.values()))
        tier = tier_of(capacity, session.loaded_bytes + trace.peak_bytes + outputs)
        calls = len(trace.sizes) * (CALL_SECONDS if fixed else UNSEEN_SECONDS)
        if tier == "planned" and calls > CALLS_SHARE * _once(session, feed):
            tier = "arena"
        peaks = {str(SESSION): trace.peak_bytes}
        self.contract = Contract(self.options, capacity, shapes, measured, tier=tier, peaks=peaks)

    def shortest(self, feeds: Sequence[Feed]) -> list[float | None]:
        """Give seconds of the shortest run of each feed, `None` where the model fails."""
        return [_shortest(self.session, one) for one in feeds]


def _without_packing(packed: _Trial, feed: Feed, feeds: Sequence[Feed], slowdown: float, transposed: bool) -> Contract:
    """Time the model with and without packing, one after the other, and give the contract to keep.

    The first feed decides alone where doing without is too slow on it: runs of larger feeds take minutes.
    """
    config = dict(packed.options.config) | {PACKING_KEY: "1"}
    disabled = (*packed.options.disabled_optimizers, *(["ConstantFolding"] if transposed else []))
    unpacked = _Trial(packed.model, replace(packed.options, config=config, disabled_optimizers=disabled))
    ratio, turns = 0.0, (packed, unpacked)
    for part in (feeds[:1], feeds[1:]):
        if part and ratio <= slowdown:
            first, then = turns  # what was timed last is still loaded
            found = {first: first.shortest(part)}
            first.close()
            if then is unpacked:
                unpacked.record(feed)
            found[then] = then.shortest(part)
            both = [(a, b) for a, b in zip(found[packed], found[unpacked], strict=True) if a is not None]
            ratio = max([ratio, *(b / a if b is not None else slowdown + 1 for a, b in both)])
            turns = then, first
    unpacked.close()
    ratio = ratio or slowdown + 1
    facts = {
        "packed_bytes": packed.contract.measured["loaded_bytes"] - unpacked.contract.measured["loaded_bytes"],
        "unpacked_latency_percent": round(100 * ratio),
    }
    chosen = (unpacked if ratio <= slowdown else packed).contract
    return replace(chosen, measured=dict(chosen.measured) | facts)


def tier_of(arena: int, planned: int, ours: int | None = None) -> Literal["arena", "planned"]:
    """Name the tier that needs less.

    Args:
        arena: Bytes of an arena that suffices while the outputs of the run before are held; it takes a share more for
            its handles.
        planned: About what a planned session takes: the bytes alive, and the outputs that are held.
        ours: What a planned session takes itself; by how it reaches the C interface here, when not given.
    """
    if ours is None:
        ours = PLANNED_BYTES if api().shared else LIBRARY_BYTES
    return "planned" if arena + arena // BOOK - planned > ours else "arena"


def _once(session: NativeSession, feed: Feed) -> float:
    """Seconds of one run."""
    started = time.perf_counter()
    session.run(feed)
    return time.perf_counter() - started


def _shortest(session: NativeSession, feed: Feed) -> float | None:
    times: list[float] = []
    try:
        while len(times) < _fewest(times) or (sum(times) < _SECONDS and len(times) < _MOST):
            started = time.perf_counter()
            session.run(feed)
            times.append(time.perf_counter() - started)
    except InputError:
        return None
    return min(times)


def _fewest(times: Sequence[float]) -> int:
    """Least number of runs: long ones differ by less, and the first only pays for reading weights."""
    return 2 if times and min(times) > _SECONDS else _FEWEST


if __name__ == "__main__":
    isolated.answer(_work, *sys.argv[1:3])
