"""Runs in progress when the interpreter exits are waited for.

Python ends the threads that are left when it exits, and unwinding one of them through onnxruntime's C++ takes the
process down with SIGABRT. So the exit waits for the runs that have begun, and other threads begin no new ones.
"""

from __future__ import annotations

import atexit
import os
import threading

_PATIENCE = 60.0
"""Seconds that the exit waits at most for the runs in progress."""


class InFlight:
    """Counts runs; `with` is around each."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget the runs of threads that are not there, as after a fork."""
        self._changed = threading.Condition()
        self._running, self._leaving = 0, False

    def __enter__(self) -> None:
        with self._changed:
            # Exit handlers may still run a model, in the main thread; a daemon thread waits until the process ends.
            while self._leaving and threading.current_thread() is not threading.main_thread():
                self._changed.wait()
            self._running += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._running -= 1
            self._changed.notify_all()

    def finish(self) -> None:
        """Let no thread but the main one begin, and wait until the others have ended."""
        with self._changed:
            self._leaving = True
            self._changed.wait_for(lambda: not self._running, _PATIENCE)


in_flight = InFlight()
atexit.register(in_flight.finish)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=in_flight.reset)
