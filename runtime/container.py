"""The smallest container: in how little memory a model loads and runs, as the kernel enforces it.

A control group of the kernel (version 1 or 2) limits a fresh process: Python, onnxruntime and the model. Before each
trial the model's files are dropped from the page cache, so that the process is charged for the pages that it maps. A
trial that is killed, or that runs more than `SLOWEST` times as long as without a limit because the kernel evicts what
is needed again, does not fit. Runs that never reach the limit are not slowed by it, whatever their clock says.
"""

from __future__ import annotations

import contextlib
import errno
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx

from memoptc.ir.diagnostics import InputError, InternalError
from memoptc.ir.files import TemporaryFolder
from memoptc.ir.onnx_weights import tensors_of
from memoptc.runtime.control_groups import MOUNTS, OWN, groups
from memoptc.runtime.measuring_process import InSession, Way, start_worker
from memoptc.runtime.npz import save_feed
from memoptc.runtime.options import STOCK, Feed

SLOWEST = 1.6
"""Largest ratio of latencies, limited to free, that counts as running."""

TICK_MS = 0.5
"""Milliseconds that a limited run may take besides: reading clocks and waking up is no sign of a limit."""

CLOSE = 1.03
"""Ratio of the smallest limit that fits to the largest that does not, at which the search ends."""

_RUNS = 3
_LEAST = 8 << 20
"""No process with onnxruntime runs in less."""
_PARSED = 64 << 20
"""Bytes of a model file up to which it is read to see which other files belong to it."""


class Unavailable(InputError):
    """The kernel gives this process no memory limit to set."""


@dataclass(frozen=True)
class Trial:
    """Run of a model in a container of some size.

    Args:
        fits: Whether it loaded and ran, and fast enough.
        why: Why not: `killed`, or how slow it was; `""` when it fits.
        latency_ms: Median of its runs, where it got that far.
        peak_bytes: Highest bytes that the kernel charged it for.
    """

    fits: bool
    why: str
    latency_ms: float | None
    peak_bytes: int


@dataclass(frozen=True)
class Container:
    """The smallest container of a model.

    Args:
        limit_bytes: The smallest limit that was seen to fit.
        below_bytes: The largest limit that was seen not to fit.
        free_ms: Median latency without a limit.
        latency_ms: Median latency at the smallest limit.
        trials: How many processes were started.
    """

    limit_bytes: int
    below_bytes: int
    free_ms: float
    latency_ms: float
    trials: int


@dataclass(frozen=True)
class ControlGroup:
    """A control group of our own.

    Args:
        path: Its folder.
        version: 1 or 2.
    """

    path: Path
    version: int

    def limit(self, count: int | None) -> None:
        """Limit the memory of what runs inside, page cache and kernel memory included; no limit when `None`."""
        name, free = ("memory.max", "max") if self.version == 2 else ("memory.limit_in_bytes", "-1")
        try:
            (self.path / name).write_text(free if count is None else str(count))
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            raise InputError(f"No process fits into {count} bytes.", hint="Give a larger limit.") from error

    def forbid_swap(self) -> None:
        """Let nothing inside be swapped out, where there is swap: a limit that swaps is no limit of memory."""
        name = "memory.swap.max" if self.version == 2 else "memory.swappiness"
        with contextlib.suppress(OSError):
            (self.path / name).write_text("0")

    def peak_bytes(self) -> int:
        """Highest bytes charged since the last reset; 0 where the kernel does not tell."""
        name = "memory.peak" if self.version == 2 else "memory.max_usage_in_bytes"
        try:
            return int((self.path / name).read_text())
        except (OSError, ValueError):
            return 0

    def hits(self) -> int | None:
        """Times the limit was reached and memory had to be taken back; `None` where the kernel does not tell."""
        try:
            if self.version == 1:
                return int((self.path / "memory.failcnt").read_text())
            events = dict(line.split() for line in (self.path / "memory.events").read_text().splitlines())
            return int(events["max"])
        except (OSError, ValueError, KeyError):
            return None

    def command(self) -> list[str]:
        """Give what to put before a command, so that it runs inside."""
        return ["/bin/sh", "-c", f'echo $$ > "{self.path}/cgroup.procs" && exec "$@"', "sh"]

    def empty(self) -> None:
        """Forget pages of files that are still charged to it, where the kernel can, and the peak."""
        if self.version == 1:
            with contextlib.suppress(OSError):
                (self.path / "memory.force_empty").write_text("0")
            with contextlib.suppress(OSError):
                (self.path / "memory.max_usage_in_bytes").write_text("0")
        else:
            with contextlib.suppress(OSError):
                (self.path / "memory.peak").write_text("0")


@contextmanager
def control_group(mounts: Path | None = None, own: Path | None = None) -> Iterator[ControlGroup]:
    """Make a control group below that of this process, or of one that it may write to; removed at the end.

    Args:
        mounts: Where the kernel says what is mounted.
        own: Where it says in which groups this process is.

    Raises:
        Unavailable: there are no control groups here, or none that this process may make.
    """
    found = None
    for parent, version in groups(mounts or MOUNTS, own or OWN):
        found = _make(Path(parent), version)
        if found is not None:
            break
    if found is None:
        raise Unavailable(
            "No memory limit can be set here: the kernel offers this process no control group of its own.",
            hint="Run as root, or in a delegated group (systemd-run --user --scope -p Delegate=yes ...); need is "
            "measured without one.",
        )
    try:
        yield found
    finally:
        for _ in range(20):  # what was killed takes a moment to leave
            try:
                found.path.rmdir()
                break
            except OSError:
                time.sleep(0.05)


def _make(parent: Path, version: int) -> ControlGroup | None:
    """Make a group whose memory can be limited; `None` where that is not allowed."""
    if version == 2 and not _hands_down(parent):
        return None
    path = parent / f"memoptc-{os.getpid()}-{threading.get_ident()}"
    group = ControlGroup(path, version)
    try:
        path.mkdir()
    except OSError:
        return None
    try:
        group.limit(None)
        group.forbid_swap()
        return group
    except OSError:
        with contextlib.suppress(OSError):
            path.rmdir()
        return None


def _hands_down(parent: Path) -> bool:
    """True if groups below one of version 2 can limit memory, asking for it where that is allowed."""
    control = parent / "cgroup.subtree_control"
    try:
        if "memory" not in (parent / "cgroup.controllers").read_text().split():
            return False
        if "memory" not in control.read_text().split():
            control.write_text("+memory")  # refused for a group that has processes itself
        return True
    except OSError:
        return False


def model_files(model: Path) -> list[Path]:
    """The files of a model: itself, those that its weights name, and those beside it that carry its name."""
    found = [model, *(f for f in model.parent.iterdir() if f.name.startswith((f"{model.name}.", f"{model.stem}.")))]
    if model.stat().st_size < _PARSED:
        with contextlib.suppress(Exception):  # what is no model is refused by onnxruntime, in its own words
            proto = onnx.load_model(model, load_external_data=False)
            for tensor in tensors_of(proto):
                found += [model.parent / e.value for e in tensor.external_data if e.key == "location"]
    return [f for f in dict.fromkeys(found) if f.is_file()]


def _kept_copies(way: Way) -> list[Path]:
    """Files of packed copies that a way to run maps: else they are charged to whoever read them before."""
    folder = way.arguments.get("packed_cache") if isinstance(way, InSession) else None
    return [] if folder is None else [f for f in Path(folder).rglob("*") if f.is_file()]


def drop_from_cache(files: list[Path]) -> None:
    """Drop files from the kernel's page cache."""
    for file in files:
        with contextlib.suppress(OSError):
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


@dataclass
class Limiter:
    """Tries one model in one control group.

    Args:
        group: The group.
        model: The model.
        way: How to run it.
        feed: File with its inputs.
        free_ms: Median latency without a limit, once known.
        seconds: What a process without a limit took, from start to end.
        trials: How many processes were started.
    """

    group: ControlGroup
    model: Path
    way: Way
    feed: Path
    free_ms: float = 0.0
    seconds: float = 60.0
    trials: int = 0

    def free(self) -> Trial:
        """Run without a limit.

        Raises:
            InputError: the model does not run at all.
        """
        start = time.monotonic()
        trial = self._run(None, 600.0)
        if trial.latency_ms is None:
            raise InputError(f"{self.model.name} does not run, even without a limit.")
        self.free_ms, self.seconds = trial.latency_ms, time.monotonic() - start
        return trial

    def run(self, limit: int) -> Trial:
        """Run with a limit; a run that is only slow is tried once more."""
        longest = 10.0 + 4 * SLOWEST * self.seconds
        trial = self._run(limit, longest)
        if not trial.fits and trial.latency_ms is not None:
            trial = self._run(limit, longest)
        return trial

    def _run(self, limit: int | None, longest: float) -> Trial:
        drop_from_cache([*model_files(self.model), *_kept_copies(self.way)])
        self.group.limit(None)
        self.group.empty()
        self.group.limit(limit)
        self.trials += 1
        latency = None
        try:
            with start_worker(self.model, self.way, self.feed, self.group.command(), longest) as ask:
                ask(do="load")
                before = self.group.hits()
                latency = statistics.median(ask(do="time", runs=2 + _RUNS)["ms"][2:])
        except InternalError:
            return Trial(False, "killed, or too slow to end", None, self.group.peak_bytes())
        except InputError as error:
            if limit is None:
                raise
            return Trial(False, error.message, None, self.group.peak_bytes())
        # Runs that never reached the limit are slow for another reason: other work on this machine.
        limited = before is None or self.group.hits() != before
        slow = limited and self.free_ms > 0 and latency > SLOWEST * self.free_ms + TICK_MS
        why = f"{latency / self.free_ms:.1f} times as slow" if slow else ""
        return Trial(not slow, why, latency, self.group.peak_bytes())


@contextmanager
def limiter(model: str | os.PathLike[str], feed: Feed, way: Way = STOCK) -> Iterator[Limiter]:
    """Give what tries a model under limits.

    Raises:
        Unavailable: no limit can be set here.
    """
    with control_group() as group, TemporaryFolder() as folder:
        file = Path(folder) / "feed.npz"
        save_feed(file, feed)
        yield Limiter(group, Path(model), way, file)


def smallest_container(
    model: str | os.PathLike[str],
    feed: Feed,
    *,
    way: Way = STOCK,
    seconds: float = 120.0,
    say: Callable[[str], None] = lambda text: None,
) -> Container:
    """Find the smallest limit in which a model loads and runs at no more than `SLOWEST` times its free latency.

    The search halves, on a logarithmic scale, between nothing and what the kernel charged a process without a limit.

    Args:
        model: Its path.
        feed: What to run it with.
        way: How to run it.
        seconds: About how long it may take; what is known by then is given (`below_bytes` says how close it is).
        say: Told of each limit.

    Raises:
        Unavailable: no limit can be set here.
        InputError: the model does not run at all.
    """
    with limiter(model, feed, way) as tries:
        end = time.monotonic() + seconds
        free = tries.free()
        assert free.latency_ms is not None
        low, high, there = _LEAST, max(free.peak_bytes, 2 * _LEAST), free.latency_ms
        while not (trial := tries.run(high)).fits:
            # Without a limit nothing is evicted, but the kernel charges in batches: a little more must do.
            low, high = high, int(high * 1.25)
            if high > 64 * max(free.peak_bytes, _LEAST):
                raise InputError(f"{Path(model).name} fits no limit that was tried: {trial.why}.")
        there = trial.latency_ms or there
        while high > CLOSE * low and time.monotonic() < end:
            middle = int((low * high) ** 0.5)
            say(f"{middle / 1e6:.0f} MB")
            trial = tries.run(middle)
            if trial.fits:
                high, there = middle, trial.latency_ms or there
            else:
                low = middle
        return Container(high, low, tries.free_ms, there, tries.trials)
