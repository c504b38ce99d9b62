"""Worker process for one model, driven by `memoptc.runtime.measure` over stdin and stdout (a JSON per line).

Run as a plain file: it imports little but numpy and onnxruntime, so that what it measures is the model.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMeter:
    """Highest resident memory of this process between `start` and `stop`, in bytes.

    On Linux the kernel's own high-water mark, reset at `start`; elsewhere, or where it cannot be reset, a thread
    that samples resident memory about every millisecond (short peaks may be missed). `method` says which.
    """

    def __init__(self) -> None:
        self.method = "VmHWM" if self._reset() else "sampled"
        self._peak = 0
        self._going = False
        self._thread: threading.Thread | None = None

    @staticmethod
    def _reset() -> bool:
        try:
            _CLEAR.write_text("5")
        except OSError:
            return False
        return _status("VmHWM") is not None

    def start(self, *, trim: bool = True) -> int:
        """Begin; give the resident bytes of this moment, by default after returning what is free to the system."""
        if trim:
            gc.collect()
            with contextlib.suppress(OSError, AttributeError):
                ctypes.CDLL(None).malloc_trim(0)
        now = resident_bytes()
        if self.method == "VmHWM":
            self._reset()
        else:
            self._peak, self._going = now, True
            self._thread = threading.Thread(target=self._sample, daemon=True)
            self._thread.start()
        return now

    def _sample(self) -> None:
        while self._going:
            self._peak = max(self._peak, resident_bytes())
            time.sleep(0.001)

    def stop(self) -> int:
        """End; give the peak."""
        if self.method == "VmHWM":
            return _status("VmHWM") or resident_bytes()
        self._going = False
        if self._thread is not None:
            self._thread.join()
        return max(self._peak, resident_bytes())


class Watch:
    """Anonymous and mapped resident bytes, over those at `start`, sampled every two milliseconds by a thread.

    Mapped pages (files: weights beside a model, libraries) can be evicted by the kernel and read again, anonymous ones
    cannot. Where the system tells neither, both stay 0 and `known` is false.

    Args:
        most: Ends the process, with the answer `{"above": most}`, once resident bytes rise above that.
    """

    def __init__(self, most: int | None = None) -> None:
        self._most = most
        try:
            self._file: int | None = os.open("/proc/self/statm", os.O_RDONLY)
        except OSError:
            self._file = None
        self.known = self._file is not None
        self._page = os.sysconf("SC_PAGE_SIZE") if self.known else 0
        self._base = (0, 0)
        self._anonymous = self.mapped_peak = 0
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._base = self._read()
        if self.known:
            self._thread.start()

    def _read(self) -> tuple[int, int]:
        if self._file is None:
            return 0, 0
        resident, shared = (int(n) for n in os.pread(self._file, 128, 0).split()[1:3])
        return (resident - shared) * self._page, shared * self._page

    def now(self) -> tuple[int, int]:
        """Give anonymous and mapped bytes of this moment, over those at `start`."""
        with self._lock:
            anonymous, mapped = self._read()
            found = anonymous - self._base[0], mapped - self._base[1]
            self._anonymous, self.mapped_peak = max(self._anonymous, found[0]), max(self.mapped_peak, found[1])
        return found

    def new_mapped_peak(self, start: int) -> int:
        """Let `mapped_peak` begin anew, at `start` bytes; give the one so far."""
        with self._lock:
            before, self.mapped_peak = self.mapped_peak, start
        return before

    def _sample(self) -> None:
        while not self._stopped.wait(0.002):
            if self._most is not None and sum(self.now()) > self._most:
                os.write(1, (json.dumps({"above": self._most}) + "\n").encode())
                os._exit(0)  # a run under way cannot be ended otherwise
            self.now()

    def stop(self) -> None:
        """End."""
        self.now()
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def anonymous_peak(self, need: int) -> int | None:
        """Give the highest anonymous bytes; `None` where unknown.

        Args:
            need: Highest resident bytes. What they exceed the highest mapped ones by was anonymous, also where it was
                too short for a sample.
        """
        return max(self._anonymous, need - self.mapped_peak, 0) if self.known else None


def resident_bytes() -> int:
    """Resident memory of this process; 0 where nothing tells it."""
    found = _status("VmRSS")
    if found is not None:
        return found
    try:
        psutil = importlib.import_module("psutil")
    except ImportError:
        return 0
    return int(psutil.Process().memory_info().rss)


def _status(key: str) -> int | None:
    try:
        text = _STATUS.read_text()
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return None


class _Worker:
    def __init__(self, request: Mapping[str, Any]) -> None:
        self.request = request
        self.run_once: Callable[[], Any]
        self.kept: Any = None
        with np.load(request["feed"]) as file:
            self.feed = {name: file[name] for name in file.files}
        for array in self.feed.values():
            array.sum() if array.dtype.kind in "fiu" else None  # resident before anything is measured
        if "session" not in request:
            import memoptc.runtime.options
        self.special = "__kinds__" in self.feed
        if self.special:  # element types or kinds that plain numpy does not know
            from memoptc.runtime.npz import load_feed

            self.feed = load_feed(Path(request["feed"]))
            import memoptc.runtime.evaluate  # noqa: F401  (before the baseline)

    def load(self) -> dict[str, Any]:
        """Make the session."""
        self._import()
        started = time.perf_counter()
        tier = self._open()
        return {"tier": tier, "seconds": time.perf_counter() - started}

    def _import(self) -> None:
        """Import what the way to run needs beside onnxruntime."""
        if "session" in self.request:
            from memoptc.runtime.session import Session  # noqa: F401

    def _open(self) -> str:
        """Make the session; give the tier of `memoptc.runtime.Session`, `""` for plain onnxruntime."""
        if "session" in self.request:
            from memoptc.runtime.session import Session

            planned = Session(self.request["model"], **self.request["session"])
            self.run_once = lambda: planned.run(None, self.feed)
            return planned.memory
        if self.special:
            from memoptc.runtime.evaluate import Evaluator
            from memoptc.runtime.options import RunOptions

            evaluator = Evaluator(self.request["model"], RunOptions(**self.request["options"]))
            self.run_once = lambda: evaluator.run(self.feed)
            return ""
        from memoptc.runtime.options import session_options

        options = session_options(self.request["native"], self.request["options"]["config"])
        session = ort.InferenceSession(
            self.request["model"],
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=self.request["options"]["disabled_optimizers"] or None,
        )
        self.run_once = lambda: session.run(None, self.feed)
        return ""

    def need(self, runs: int, seconds: float, most: int | None = None) -> dict[str, Any]:
        """Load and run, watching memory all along; every figure in bytes over the process before.

        Nothing is returned to the system in between, and the outputs of a run are kept while the next one goes on, as
        in a loop that assigns them: what is watched is what a user's process does.

        Args:
            runs: How often to run; twice when the first run shows that all would take longer than `seconds`.
            seconds: About how long the runs may take.
            most: Give up once more bytes than these are needed.
        """
        meter, watch = PeakMeter(), Watch(most)
        base = meter.start()
        watch.start()
        self._import()
        ours = watch.now()
        started = time.perf_counter()
        tier = self._open()
        loading = time.perf_counter() - started
        load_peak, loaded = meter.stop(), watch.now()
        resident = meter.start(trim=False)
        mapped_in_loading = watch.new_mapped_peak(loaded[1])
        started = time.perf_counter()
        took: list[float] = []
        while len(took) < runs:
            took += self.time(1)["ms"]
            if len(took) == 1 and runs * (time.perf_counter() - started) > seconds:
                runs = min(runs, 2)
        peak = meter.stop()
        watch.stop()
        mapped_in_runs = watch.mapped_peak - loaded[1]
        watch.mapped_peak = max(watch.mapped_peak, mapped_in_loading)
        need = max(load_peak, peak) - base
        return {
            "tier": tier,
            "need": need,
            "load_peak": load_peak - base,
            "loaded": resident - base,
            "peak": peak - resident,
            "anonymous": watch.anonymous_peak(need),
            "ours": max(0, sum(ours)) if "session" in self.request else 0,
            "mapped_in_runs": mapped_in_runs,
            "load_seconds": loading,
            "run_seconds": time.perf_counter() - started,
            "runs": len(took),
            "ms": took,
            "method": meter.method,
        }

    def time(self, runs: int) -> dict[str, Any]:
        """Run; give the milliseconds of each run."""
        found = []
        for _ in range(runs):
            started = time.perf_counter()
            self.kept = self.run_once()
            found.append((time.perf_counter() - started) * 1e3)
        return {"ms": found}


def _main() -> None:
    worker = _Worker(json.loads(sys.stdin.readline()))
    for line in sys.stdin:
        order = json.loads(line)
        try:
            answer = getattr(worker, order.pop("do"))(**order)
        except Exception as error:
            answer = {"error": " ".join(str(error).split())}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _main()
