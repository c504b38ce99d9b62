"""Load a session so that its weights can be streamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from memoptc.ir.diagnostics import InputError
from memoptc.runtime.streaming.pages import mappings_below
from memoptc.runtime.streaming.streamer import Streamer


@contextmanager
def streamed(model: str | bytes | None, limit: int) -> Iterator[list[Streamer]]:
    """Load a session inside; afterwards the list holds what streams the weights that were mapped meanwhile.

    Args:
        model: Path of the model, in whose folder its weights lie.
        limit: Most bytes of weights in memory at once.

    Raises:
        InputError: they cannot be streamed, and why.
    """
    if not isinstance(model, str):
        raise InputError(
            "A model that is given as bytes has no file to stream weights from.", hint="Load it from its path."
        )
    folder = os.path.dirname(os.path.abspath(model))
    before = {(m.start, m.end) for m in mappings_below(folder)}
    found: list[Streamer] = []
    yield found
    found.append(Streamer((m for m in mappings_below(folder) if (m.start, m.end) not in before), limit))
