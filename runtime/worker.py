"""One model in one fresh process, driven by `memoptc.runtime.measure` over stdin and stdout (a JSON per line).

Run as a plain file: it imports nothing but numpy and onnxruntime, so that what it measures is the model.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def session_options(attributes: Mapping[str, Any], config: Mapping[str, str]) -> ort.SessionOptions:
    """Make onnxruntime's options.

    Args:
        attributes: Attribute of `SessionOptions` -> value; enumerations by their member's name.
        config: Session configuration entries.
    """
    options = ort.SessionOptions()
    enums = {
        "graph_optimization_level": ort.GraphOptimizationLevel,
        "execution_order": ort.ExecutionOrder,
        "execution_mode": ort.ExecutionMode,
    }
    for key, value in attributes.items():
        setattr(options, key, getattr(enums[key], value) if key in enums else value)
    for key, entry in config.items():
        options.add_session_config_entry(key, entry)
    return options


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
        self.meter = PeakMeter()
        self.run_once: Callable[[], Any]
        self.loaded = 0
        with np.load(request["feed"]) as file:
            self.feed = {name: file[name] for name in file.files}
        self.special = "__kinds__" in self.feed
        if self.special:  # element types or kinds that plain numpy does not know
            from memoptc.runtime.npz import load_feed

            self.feed = load_feed(Path(request["feed"]))
            import memoptc.runtime.evaluate  # noqa: F401  (before the baseline)
        if "session" in request:
            from memoptc.runtime.native.capi import api
            from memoptc.runtime.session import Session  # noqa: F401  (before the baseline)

            if request["session"]["memory"] == "planned":
                api()

    def load(self) -> dict[str, Any]:
        baseline = self.meter.start()
        started = time.perf_counter()
        if "session" in self.request:
            from memoptc.runtime.session import Session

            planned = Session(self.request["model"], **self.request["session"])
            self.run_once = lambda: planned.run(None, self.feed)
        elif self.special:
            from memoptc.runtime.evaluate import Evaluator, RunOptions

            evaluator = Evaluator(self.request["model"], RunOptions(**self.request["options"]))
            self.run_once = lambda: evaluator.run(self.feed)
        else:
            options = session_options(self.request["native"], self.request["options"]["config"])
            session = ort.InferenceSession(
                self.request["model"],
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=self.request["options"]["disabled_optimizers"] or None,
            )
            self.run_once = lambda: session.run(None, self.feed)
        seconds = time.perf_counter() - started
        peak = self.meter.stop()
        self.loaded = self.meter.start()
        self.meter.stop()
        return {"peak": peak - baseline, "loaded": self.loaded - baseline, "seconds": seconds}

    def memory(self, runs: int) -> dict[str, Any]:
        self.meter.start(trim=False)
        started = time.perf_counter()
        for _ in range(runs):
            self.run_once()
        seconds = time.perf_counter() - started
        return {"peak": self.meter.stop() - self.loaded, "method": self.meter.method, "seconds": seconds}

    def time(self, runs: int) -> dict[str, Any]:
        found = []
        for _ in range(runs):
            started = time.perf_counter()
            self.run_once()
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
