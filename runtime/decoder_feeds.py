"""Feeds of a decoder: padded ids, empty caches, and the inputs beside the ids of a beginning."""

from __future__ import annotations

from collections.abc import Collection, Sequence
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
    feed |= counted_feed(facts, np.ones((batch, steps), np.int64), steps)
    return {name: value.astype(facts.dtypes.get(name, value.dtype)) for name, value in feed.items()}


def counted_feed(facts: DecoderFacts, mask: Array, steps: int) -> dict[str, Array]:
    """Inputs that say which tokens there are, those of a model that has them: its mask, positions and lengths.

    Args:
        facts: The decoder.
        mask: 0 for padding, `[batch, tokens]`, past and present.
        steps: How many of the tokens are computed, the last ones.
    """
    batch, total = mask.shape
    feed: dict[str, Array] = {}
    if facts.mask:
        feed[facts.mask] = np.pad(mask, ((0, 0), (0, max(0, buffer_length(facts, total) - total))))
    if facts.positions:
        counted = np.maximum(np.cumsum(mask, axis=1) - 1, 0)[:, total - steps :]
        feed[facts.positions] = counted if facts.positions_rank == 2 else np.arange(total - steps, total)
    if facts.lengths:
        feed[facts.lengths] = np.full(batch, total - 1)
    return feed


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


def refuse_padding(facts: DecoderFacts) -> None:
    """Refuse prompts of different lengths where padding at the left would change what is computed.

    Raises:
        InputError: the model has no mask of keys, carries states on, or numbers the steps of all sequences alike.
    """
    if not facts.mask or facts.counted:
        why = "counts keys instead of masking them" if facts.mask else "has no mask"
        raise InputError(
            f"The prompts have different lengths, and the model {why}, so that shorter ones cannot be padded.",
            hint="Run each in a sequence of its own (decoder.sequence()).",
        )
    if facts.states:
        raise InputError(
            "The prompts have different lengths, and the model carries states on, which padding would change.",
            hint="Run each in a sequence of its own (decoder.sequence()).",
        )
    if facts.shared_positions:
        raise InputError(
            "The prompts have different lengths, and the model numbers the steps of all sequences alike, so that "
            "padding at the left would shift the positions of shorter ones.",
            hint="Run each in a sequence of its own (decoder.sequence()).",
        )


def check_context(facts: DecoderFacts, context: Collection[str]) -> None:
    """Refuse a context that lacks an input which the model needs, or has one that it does not take.

    Raises:
        InputError: as said; the message names the input.
    """
    known = facts.context_inputs | {c.past for c in facts.states}
    unknown = set(context) - known
    needed = set(facts.context) | (set() if facts.switch else facts.context_inputs - {facts.encoder_mask})
    if unknown or needed - set(context):
        wrong = sorted(unknown or needed - set(context))[0]
        raise InputError(
            f"{wrong!r} is {'no input that a context gives' if unknown else 'needed, and not given'}.",
            hint=f"context= takes {', '.join(sorted(known)) or 'nothing'}.",
        )
