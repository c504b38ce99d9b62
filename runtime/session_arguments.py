"""Arguments of `Session`, checked and converted: models, contracts, limits, options, tiers and feeds."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import onnxruntime as ort

from memoptc.ir.diagnostics import InputError
from memoptc.runtime.contract import Contract, beside, load_contract
from memoptc.runtime.errors import as_both, invalid_argument, no_such_file
from memoptc.runtime.options import PACKING_KEY, Feed, RunOptions
from memoptc.runtime.sizes import as_bytes

Packing: TypeAlias = Literal["auto"] | bool
_SMALLEST_LIMIT = 1 << 16
"""onnxruntime ignores the limit of an arena of a few kilobytes (found by trial: 4 KiB is ignored, 64 KiB holds)."""

_HOST_PROVIDERS = frozenset({"CPUExecutionProvider", "AzureExecutionProvider"})
"""Providers whose sessions compute in the process's own memory."""


def native_feed(feed: Feed) -> Feed:
    """Give a feed in this machine's byte order, which onnxruntime takes all arrays to be in."""
    other = {n: v for n, v in feed.items() if not getattr(getattr(v, "dtype", None), "isnative", True)}
    return {**feed, **{n: v.astype(v.dtype.newbyteorder("=")) for n, v in other.items()}} if other else feed


def runs_on_host(providers: Sequence[Any] | None) -> bool:
    """True if all providers compute in the process's own memory; what is no provider onnxruntime will refuse."""
    named = (p[0] if isinstance(p, tuple) and p else p for p in providers or ())
    return all(name in _HOST_PROVIDERS for name in named if isinstance(name, str))


def as_source(model: Any) -> str | bytes:
    """Give the path or the bytes of a model: a path that exists, bytes, or a protobuf."""
    if hasattr(model, "SerializeToString"):  # a protobuf, without importing onnx to ask
        return bytes(model.SerializeToString())
    if isinstance(model, bytes):
        return model
    if not isinstance(model, str | os.PathLike):
        raise as_both(TypeError)(f"A model is a path, bytes or a protobuf, not {type(model).__name__}.")
    path = os.fspath(model)
    if not os.path.isfile(path):
        raise no_such_file(path)
    return path


def as_packed(source: str | bytes, folder: str | os.PathLike[str]) -> str:
    """Give the path of a copy of the model whose weights are packed ahead, kept in a folder.

    Raises:
        InputError: the model has no path, or no copy can be made.
    """
    if isinstance(source, bytes):
        raise InputError(
            "A model that is given as bytes has no packed copy.",
            hint="Load it from its path, or leave packed_cache out.",
        )
    from memoptc.runtime.packed_cache import packed_copy  # only models that ask for it pay for it

    return packed_copy(source, folder)


def as_contract(given: Contract | str | os.PathLike[str] | Literal[False] | None, source: str | bytes) -> Contract:
    """Give the contract itself, the one in a file, or the one beside the model; `False` asks for none."""
    if isinstance(given, str | os.PathLike):
        read = load_contract(given)
        if read is None:
            raise InputError(f"{given}: no such file.")
        return read
    if given is None and isinstance(source, str):
        given = load_contract(beside(source))
    return given or Contract()


def as_limit(given: int | str | None) -> int | None:
    """Give a limit in bytes; refuse one that onnxruntime's arena would not hold to."""
    limit = None if given is None else as_bytes(given)
    if limit is not None and limit < _SMALLEST_LIMIT:
        raise InputError(
            f"A limit of {limit} bytes is too small: onnxruntime's arena does not hold to it.",
            hint=f"Give at least {_SMALLEST_LIMIT} bytes.",
        )
    return limit


def as_options(options: RunOptions, packing: Packing, threads: int | None) -> RunOptions:
    """Give the options of a run with packing and threads as they were asked for."""
    if packing != "auto":
        config = {k: v for k, v in options.config.items() if k != PACKING_KEY}
        options = replace(options, config=config if packing else config | {PACKING_KEY: "1"})
    return options if threads is None else replace(options, threads=threads)


def check_tier(memory: str, limited: bool, providers: Any, sess_options: ort.SessionOptions | None) -> None:
    """Refuse a tier that other arguments exclude.

    Args:
        memory: The tier asked for.
        limited: Whether a memory limit is to be held.
        providers: As for `InferenceSession`.
        sess_options: The caller's.

    Raises:
        InputError: as said.
    """
    on_host = runs_on_host(providers)
    if limited and (memory == "stock" or not on_host):
        raise InputError(
            "onnxruntime as it comes holds no memory limit; the tiers 'arena' and 'planned' do.",
            hint="Leave memory_limit out, or choose memory='arena'.",
        )
    if not on_host and memory in ("arena", "planned"):
        raise InputError(
            f"The tier {memory!r} is for the CPU; {providers} manage their own memory.",
            hint="Leave memory= at 'auto', or choose 'stock'.",
        )
    parallel = sess_options is not None and sess_options.execution_mode != ort.ExecutionMode.ORT_SEQUENTIAL
    if memory == "planned" and parallel:
        raise InputError(
            "The tier 'planned' is for one node after the other; these sess_options run nodes in parallel.",
            hint="Leave execution_mode at ORT_SEQUENTIAL, or choose memory='arena'.",
        )


def wanted_outputs(names: Sequence[str] | None, into: Iterable[str], known: Sequence[str]) -> list[str]:
    """Give the outputs that a run is asked for, all when none is named.

    Raises:
        InputError: the model has no such output, or there is an array for one that is not wanted.
    """
    wanted = list(names or known)
    for name in wanted:
        if name not in known:
            raise invalid_argument(f"The model has no output {name!r}.", f"It has {', '.join(sorted(known))}.")
    for name in into:
        if name not in wanted:
            raise invalid_argument(f"There is an array for {name!r}, which is no output of this run.")
    return wanted


def not_in_planned(what: str) -> Exception:
    """Make the error of what onnxruntime's Python session has, and its C interface has not."""
    return as_both(NotImplementedError)(
        f"A planned session has no {what}: it goes through onnxruntime's C interface.",
        hint="Choose memory='arena'; arrays for outputs are taken by run(..., into={name: array}).",
    )
