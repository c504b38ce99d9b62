"""Feeds of a decoder: padded ids, empty caches, and the inputs beside the ids of a beginning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from memoptc.ir.decoder_facts import Cache, DecoderFacts
from memoptc.ir.diagnostics import InputError

if TYPE_CHECKING:
    Array: TypeAlias = npt.NDArray[Any]

Ids: TypeAlias = "Sequence[int] | Sequence[Sequence[int]] | Array"


def empty_cache(cache: Cache, batch: int, room: int) -> Array:
    """A cache without a past: of no steps, or with room for so many; a state before the first step."""
    shape = list(cache.shape)
    shape[cache.batch] = batch
    if cache.form != "state" and (shape[cache.axis] < 0 or room):
        shape[cache.axis] = room
    return np.full(shape, cache.start, numpy_dtype(cache.dtype))


def buffer_length(facts: DecoderFacts, steps: int) -> int:
    """Steps that a mask covers: those of a buffer of constant length, else as many as there are."""
    cache = next((c for c in facts.own if c.form == "fixed"), None)
    return steps if cache is None else cache.shape[cache.axis]


def first_feed(facts: DecoderFacts, ids: Array) -> dict[str, Array]:
    """Inputs of a model beside the ids of a beginning, `[batch, steps]`: no past, no padding."""
    batch, steps = ids.shape
    feed = {c.past: empty_cache(c, batch, 0) for c in (*facts.own, *facts.states)}
    if facts.mask:
        shown = np.ones((batch, steps), np.int64)
        feed[facts.mask] = np.pad(shown, ((0, 0), (0, max(0, buffer_length(facts, steps) - steps))))
    if facts.positions:
        counted = np.arange(steps)
        feed[facts.positions] = np.tile(counted, (batch, 1)) if facts.positions_rank == 2 else counted
    if facts.lengths:
        feed[facts.lengths] = np.full(batch, steps - 1)
    return {name: value.astype(facts.dtypes.get(name, value.dtype)) for name, value in feed.items()}


def numpy_dtype(name: str) -> Any:
    """The numpy type of an element type by name; bfloat16 is that of ml_dtypes."""
    if name == "bfloat16":
        import ml_dtypes

        return ml_dtypes.bfloat16
    return np.dtype(name)


def padded_ids(ids: Ids) -> tuple[Array, Array]:
    """Rows of equally many ids, and which of them are no padding; shorter ones are padded at the left."""
    try:
        one = len(ids) > 0 and np.ndim(ids[0]) == 0
        rows = [np.asarray(row) for row in ([ids] if one else ids)]
    except TypeError:
        raise InputError("Ids are numbers of tokens, or rows of them.") from None
    if not rows or any(row.ndim != 1 or not row.size for row in rows):
        raise InputError("There are no ids to start from.", hint="Give at least one token for each sequence.")
    if any(row.dtype.kind not in "iu" for row in rows):
        raise InputError(f"Ids are whole numbers, not {next(r.dtype for r in rows if r.dtype.kind not in 'iu')}.")
    longest = max(row.size for row in rows)
    padded = np.zeros((len(rows), longest), np.int64)
    shown = np.zeros((len(rows), longest), np.int64)
    for at, row in enumerate(rows):
        padded[at, longest - row.size :] = row
        shown[at, longest - row.size :] = 1
    return padded, shown
