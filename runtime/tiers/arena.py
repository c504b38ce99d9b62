"""An arena of the right size for sessions of onnxruntime's Python package, and options applied to the caller's own."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import onnxruntime as ort

from memoptc.runtime.contract import arena_entries
from memoptc.runtime.options import ENUMERATIONS, RunOptions, registration

ENVIRONMENT_KEY = "session.use_env_allocators"

_ADJUSTED = ("enable_mem_pattern", "enable_mem_reuse", "graph_optimization_level", "execution_order")
_turned_off: WeakKeyDictionary[ort.SessionOptions, set[str]] = WeakKeyDictionary()
"""Entries that a caller's object holds as "0" because `combined` set it back: no choice of the caller's."""

_GRAPH = ("graph_optimization_level", "execution_order")


@contextmanager
def registered_arena(size: int, limit: int) -> Iterator[None]:
    """Make the environment's arena one of `size` bytes while a session is made.

    With a limit all of it is one chunk: an arena that may not grow must not have to.

    Args:
        size: Bytes of the first chunk; 0 lets it grow as needed.
        limit: Most bytes; 0 for no limit.
    """
    info = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    with registration:
        ort.create_and_register_allocator(info, ort.OrtArenaCfg(arena_entries(limit or size, limit)))
        yield


@contextmanager
def combined(
    given: ort.SessionOptions | None,
    options: RunOptions,
    *,
    environment: bool,
    graph_only: bool = False,
    promised: bool = False,
) -> Iterator[ort.SessionOptions]:
    """Give `SessionOptions` that are the caller's where the caller chose, and ours elsewhere.

    The caller's object is adjusted while the session is made (onnxruntime copies it) and set back afterwards: much of
    what it may hold, such as custom operators and free dimensions, cannot be read out into another one.

    Args:
        given: The caller's, if any.
        options: Ours.
        environment: Allocate from the environment's arena.
        graph_only: Of ours, apply only what decides the graph and its order, for providers other than the CPU's.
        promised: Ours are those of a session contract; warn of those of the caller's that stand against them.
    """
    extra = {ENVIRONMENT_KEY: "1"} if environment else {}
    if given is None:
        made = ort.SessionOptions() if graph_only else options.session_options()
        if graph_only:
            _set(made, {k: v for k, v in options.native().items() if k in _GRAPH})
        for key, value in extra.items():
            made.add_session_config_entry(key, value)
        yield made
        return
    usual = ort.SessionOptions()
    before: dict[str, Any] = {}
    for key, value in options.native().items():
        if key in (_GRAPH if graph_only else _ADJUSTED) and getattr(given, key) == getattr(usual, key):
            before[key] = getattr(given, key)
            _set(given, {key: value})
    ours = {} if graph_only else dict(options.config) | extra
    free = _turned_off.get(given, set())
    entries = {k: v for k, v in ours.items() if k in free or not _entry(given, k)}
    if promised:
        kept = [k for k, v in ours.items() if k not in entries and _entry(given, k) != v]
        kept += [k for k, v in options.native().items() if k in _ADJUSTED and k not in before and _differs(given, k, v)]
        if kept:
            warnings.warn(
                f"sess_options says otherwise than the model's session contract: {', '.join(kept)}. It is done as "
                "sess_options says, so that memory and latency may not be what was promised; contract=False ignores "
                "the contract.",
                UserWarning,
                stacklevel=5,
            )
    for key, value in entries.items():
        given.add_session_config_entry(key, value)
    try:
        yield given
    finally:
        for key, value in before.items():
            setattr(given, key, value)
        for key, value in entries.items():
            if value == "1":  # an entry cannot be taken back, but switches can be turned off
                given.add_session_config_entry(key, "0")
                _turned_off.setdefault(given, set()).add(key)


def _set(options: ort.SessionOptions, attributes: dict[str, Any]) -> None:
    for key, value in attributes.items():
        setattr(options, key, _native(key, value))


def _differs(options: ort.SessionOptions, key: str, value: Any) -> bool:
    return bool(getattr(options, key) != _native(key, value))


def _native(key: str, value: Any) -> Any:
    return getattr(getattr(ort, ENUMERATIONS[key]), value) if key in ENUMERATIONS else value


def _entry(options: ort.SessionOptions, key: str) -> str:
    try:
        return str(options.get_session_config_entry(key))
    except RuntimeError:
        return ""
