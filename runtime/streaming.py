"""Sessions whose weights stream from their file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from memoptc.ir.diagnostics import InputError
from memoptc.runtime.options import PACKING_KEY
from memoptc.runtime.sizes import as_bytes

if TYPE_CHECKING:
    from memoptc.runtime.native.pager import Pager

Weights: TypeAlias = Literal["loaded", "streamed"]

_LOADS = 5
"""Times that a session is loaded until no other one is loaded at the same time."""

UNPACKED = {PACKING_KEY: "1", "session.intra_op.allow_spinning": "0"}
UNSPUN = {"session.intra_op.allow_spinning": "0"}
"""A kernel's thread that spins takes the processor from the one that reads its weights."""


def streamed(load: Callable[[], None], model: str | bytes | None, limit: int | None, threads: int) -> Pager | None:
    """Load a session; give what streams the weights that it mapped.

    A session that another thread loads meanwhile, in onnxruntime itself, maps the same files. Then this one is loaded
    again, as nothing tells whose a mapping is.

    Args:
        load: Loads it, in place of what it loaded before.
        model: Path of the model, in whose folder its weights lie.
        limit: Most bytes of weights in memory at once; `None` where they do not stream.
        threads: Intra-op threads; 0 for as many as there are processors.

    Raises:
        InputError: they cannot be streamed, and why.
    """
    if limit is None:
        load()
        return None
    from memoptc.runtime.external_weights import all_external_weights
    from memoptc.runtime.native.file_mappings import changing, mark_all, new_mappings, of_weights
    from memoptc.runtime.native.pager import Pager

    if not isinstance(model, str):
        raise InputError(
            "A model that is given as bytes has no file to stream weights from.", hint="Load it from its path."
        )
    name, weights = os.path.basename(model), all_external_weights(model)
    files = {weight.file for weight in weights}
    for _ in range(_LOADS):
        with changing:  # what is mapped meanwhile is this session's
            mark_all(files)
            load()
            mapped = of_weights(new_mappings(files), weights)
            if mapped:
                return Pager(mapped, limit, threads or os.cpu_count() or 1)
        if mapped is not None:
            raise InputError(
                f"{name} has no weights in a file of their own to stream.",
                hint="Write it with memoptc --external always.",
            )
    raise InputError(
        f"The weights of {name} cannot be told from those of other sessions that were loaded at the same time.",
        hint="Load the session whose weights stream before the others, or after them.",
    )


def as_weight_limit(weights: Weights, limit: int | str | None) -> int | None:
    """Give the limit of weights that stream in bytes, `None` where they do not.

    Raises:
        InputError: the two do not go together.
    """
    if weights not in ("loaded", "streamed") or (weights == "streamed") != (limit is not None):
        raise InputError(
            f"weights={weights!r} does not go with weight_limit={limit!r}.",
            hint="Say weights='streamed' and weight_limit='64MiB', or neither.",
        )
    return None if limit is None else as_bytes(limit)


@contextmanager
def paged(pager: Pager | None) -> Iterator[None]:
    """Run inside; what was computed with weights that could not be read is not given.

    Raises:
        InputError: some could not be read.
    """
    if pager is None:
        yield
        return
    failures = pager.begin_run()
    try:
        yield
    finally:
        pager.check(failures)


def paged_later(
    pager: Pager | None, arguments: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Give the arguments of `run_async` with a callback that is told when weights could not be read."""
    place, name = 2, "callback"
    callback = named.get(name) if len(arguments) <= place else arguments[place]
    if pager is None or callback is None:
        return arguments, named
    failures = pager.begin_run()

    def checked(outputs: Any, data: Any, error: str) -> Any:
        try:
            pager.check(failures)
        except InputError as failed:
            return callback([], data, error or failed.message)
        return callback(outputs, data, error)

    if len(arguments) <= place:
        return arguments, {**named, name: checked}
    return (*arguments[:place], checked, *arguments[place + 1 :]), named
