"""Bounds for passes: what ends one that goes on for ever, and how the program is had back as it was before."""

from __future__ import annotations

import gc
import math
import queue
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from memoptc.ir.budget import Meter, PassOverrun
from memoptc.ir.core import Graph
from memoptc.pass_base import Artefacts, Context, Pass

COPY_SHARE = 25
"""Passes since the last copy have taken this many times as long as a copy takes before another one is made: copies
take less than 4 % of the time, and what has to be run again after an overrun is little."""
REPEAT = 1.0
"""Seconds after which a pass that caught the exception that ends it gets another one."""
_SHOWN = 3
"""Counts and functions that a message names."""


@contextmanager
def bounded(graph: Graph, context: Context, nodes: int, watch: Watch, most: float = math.inf) -> Iterator[None]:
    """End what runs inside when it takes more steps or seconds than `context.limits` allows for a program of this size.

    Changes of `graph` and of what it contains are steps; so is what `context.tick()` counts. Seconds are watched from
    another thread, which raises the exception in this one between two instructions of Python: what hangs in C is not
    reached. After `most` seconds it is ended whatever the limits say.

    Raises:
        PassOverrun: it took too many.
    """
    meter = graph.meter = context.meter = Meter(context.limits.steps_for(nodes))
    try:
        try:
            watch.start(min(context.limits.seconds_for(nodes, context), most))
            yield
        finally:
            watch.stop()
    except PassOverrun:
        watch.stop()  # the exception may have come while it was being stopped
        raise
    finally:
        graph.meter = context.meter = None
        meter.most = 0


class Watch:
    """A thread that ends passes of the thread that made it when their seconds are over: one for a whole pipeline.

    The thread waits for the end of the pass that runs, and looks at a later one only when that time has come: passes
    that end by themselves do not wake it. Its messages come through a queue in C, which an exception cannot interrupt
    half-way.
    """

    def __init__(self) -> None:
        self._target = threading.get_ident()
        self._messages: queue.SimpleQueue[float | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._end: float | None = None
        self._fired = False
        self._thread = threading.Thread(target=self._wait, name="memoptc-watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._messages.put(None)
        self._thread.join()

    def start(self, seconds: float) -> None:
        """Let an exception come when so many seconds are over."""
        with self._lock:
            self._fired = False
            self._end = time.monotonic() + seconds
        self._messages.put(self._end)

    def stop(self) -> None:
        """Let no exception come from here on."""
        with self._lock:
            self._end = None
            if self._fired:
                _raise_in(self._target, None)

    def _wait(self) -> None:
        look: float | None = None
        while True:
            try:
                end = self._messages.get(timeout=None if look is None else max(0.0, look - time.monotonic()))
            except queue.Empty:
                look = self._fire()
                continue
            if end is None:
                return
            look = end if look is None else min(look, end)

    def _fire(self) -> float | None:
        """Raise the exception if the pass is over its time; give the time to look again."""
        with self._lock:
            if self._end is None or time.monotonic() < self._end:
                return self._end
            self._fired = True
            _raise_in(self._target, PassOverrun)
        return time.monotonic() + REPEAT


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    """Raise an exception in another thread, or take one back that was not raised yet. CPython only."""
    import ctypes

    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), None if error is None else ctypes.py_object(error)
    )


def describe(error: BaseException, stats: Counter[str]) -> str:
    """Say what a pass that was ended did most, and where it was."""
    often = ", ".join(f"{what} {count:,} times" for what, count in stats.most_common(_SHOWN) if count > 1)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).name != Path(__file__).name]
    inside = [f for f in frames if "/ir/" not in f.filename.replace("\\", "/") and f.name != "tick"] or frames
    where = f"{inside[-1].name} ({Path(inside[-1].filename).name}:{inside[-1].lineno})" if inside else "its run"
    return f"{often}; last in {where}" if often else f"last in {where}"


@dataclass
class _State:
    graph: Graph
    warnings: int
    decisions: int
    artefacts: Artefacts


class Rollback:
    """Gives back the program as it was before a pass, with what passes had left in the context.

    It is copied now and then, without its weights, and passes since the last copy are run again.

    Args:
        graph: The program; also the one that is restored.
        context: Facts about the compile.
        redo: Runs a pass again.
    """

    def __init__(self, graph: Graph, context: Context, redo: Callable[[Pass], None]) -> None:
        self._graph, self._context, self._redo = graph, context, redo
        self._copy()

    def _copy(self) -> None:
        start = time.perf_counter()
        context = self._context
        artefacts = replace(context.artefacts)
        collects = gc.isenabled()
        gc.disable()  # none of what a copy makes is garbage; looking for it takes longer than the copy
        try:
            self._state = _State(self._graph.clone(), len(context.warnings), len(context.decisions), artefacts)
        finally:
            if collects:
                gc.enable()
        self._since: list[Pass] = []
        self._spent, self._cost = 0.0, time.perf_counter() - start

    def before(self) -> None:
        """Look whether it is time for another copy."""
        if self._since and self._spent > COPY_SHARE * self._cost:
            self._copy()

    def after(self, pass_: Pass, seconds: float) -> None:
        """Note a pass that changed the program."""
        self._since.append(pass_)
        self._spent += seconds

    def restore(self) -> None:
        """Take back everything since the last pass that was noted."""
        context, state = self._context, self._state
        self._graph.replace_content(state.graph.clone())
        del context.warnings[state.warnings :]
        del context.decisions[state.decisions :]
        context.artefacts = replace(state.artefacts)
        context.keep_shapes(self._graph, None)
        for pass_ in self._since:
            self._redo(pass_)
