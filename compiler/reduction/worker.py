"""Trial compiles, each in a process of its own that may crash or hang.

The worker has memoptc and onnxruntime loaded, and answers each line of stdin (a request as JSON) by a line of stdout.
For each request it forks: a child starts within milliseconds, and is ended with all its processes when its time is up.
Where there is no fork, the worker answers one request itself and is started anew for the next.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

HAS_FORK = hasattr(os, "fork")


def perform(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Do what a request asks for, and say how it ended.

    Args:
        request: `model`: path. `options`: of `memoptc.compile`. `compare`: whether to compare the outputs. Or `types`:
            path of a file that gets the types of all values.
        folder: For temporary files.

    Returns:
        `kind` (`ok`, `differs`, `refused` or `fault`), `text` (a message), `peak` (bytes).
    """
    from memoptc.ir.diagnostics import InputError, MemoptcError

    kind, text = "ok", ""
    try:
        if "types" in request:
            from memoptc.reduction.types import value_types

            Path(request["types"]).write_bytes(value_types(Path(request["model"])).SerializeToString())
        else:
            kind, text = _compile(request, folder)
    except InputError as error:
        kind, text = "refused", error.message
    except MemoptcError as error:
        kind, text = "fault", error.message
    except Exception as error:  # any exception is what is looked for
        kind, text = "fault", f"{type(error).__name__}: {error}"
    return {"kind": kind, "text": text, "peak": _peak_bytes()}


def _compile(request: dict[str, Any], folder: Path) -> tuple[str, str]:
    import memoptc
    from memoptc.runtime.judge import Judge
    from memoptc.runtime.verify import verify

    options = dict(request["options"])
    level, target = options.pop("level", 2), options.pop("target", "float32")
    options |= {"verify": "off", "measure": False, "force": True, "plugins": tuple(options.get("plugins", ()))}
    result = memoptc.compile(request["model"], level, target, **options)
    if not request.get("compare"):
        return "ok", ""
    candidate = folder / "candidate.onnx"
    result.save(candidate)
    bound = options.get("max_error")
    exact = level <= 1 and target == "float32" and options.get("passes") is None
    judge = Judge(bit_exact=exact, target=target, max_error=bound)
    found = verify(request["model"], candidate, judge, dims=options.get("dims") or None)
    return ("ok", "") if found.passed else ("differs", "; ".join(found.failures))


def _peak_bytes() -> int:
    try:
        import resource
    except ImportError:  # not there on Windows
        return 0
    kib = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return int(kib) * (1 if sys.platform == "darwin" else 1024)


def _in_child(request: dict[str, Any]) -> dict[str, Any]:
    """Fork, wait for the answer or the end of the time, and end whatever is left."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _child(request, writing)
    os.close(writing)
    started = time.monotonic()
    text, timed_out = b"", False
    with open(reading, "rb", buffering=0) as pipe:
        while True:
            left = request["seconds"] - (time.monotonic() - started)
            if left <= 0 or not select.select([pipe], [], [], left)[0]:
                timed_out = True
                break
            if not (read := pipe.read(1 << 16)):
                break
            text += read
    with contextlib.suppress(OSError):  # before the child has a group of its own
        os.kill(child, signal.SIGKILL)
    with contextlib.suppress(OSError):
        os.killpg(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if timed_out:
        return {"kind": "timeout", "text": "", "peak": 0}
    try:
        found: dict[str, Any] = json.loads(text)
    except ValueError:
        return {"kind": "died", "text": f"the process ended with status {status}", "peak": 0}
    return found


def _child(request: dict[str, Any], writing: int) -> None:
    try:
        os.setsid()
        os.chdir(request["folder"])  # reproducers go there
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        os.write(writing, json.dumps(perform(request, Path(request["folder"]))).encode())
    finally:
        os._exit(0)


def main() -> None:
    """Answer requests until stdin ends."""
    import onnxruntime  # noqa: F401  (loaded once for all children)

    import memoptc.api
    import memoptc.reduction.types
    import memoptc.runtime.verify  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        if HAS_FORK:
            found = _in_child(request)
        else:
            os.chdir(request["folder"])
            found = perform(request, Path(request["folder"]))
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
