"""Test that samples give the same bits in calls of fewer of them, and the bytes that calls of more allocate."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from memoptc.ir.batch import Batch
from memoptc.ir.diagnostics import InputError
from memoptc.runtime.admission import BatchAxis, even_parts, run_in_parts
from memoptc.runtime.contract import Contract
from memoptc.runtime.native.session import NativeSession
from memoptc.runtime.options import Feed

if TYPE_CHECKING:
    import numpy.typing as npt

_COPIES = 4
"""How often a feed's samples are repeated to compare calls of different sizes."""
_MOST_COMPARED = 512 << 20
"""Bytes of activations up to which that is done."""


def with_samples(model: str | os.PathLike[str], contract: Contract, feed: Feed, batch: Batch) -> Contract:
    """Add to a contract what is known of calls of more and of fewer samples.

    The samples are those of the feed, over and over. Those that give other bits in calls of one, of several and of all
    of them are not kept; nor are those that may, where comparing takes too much memory.

    Args:
        model: Path of the model.
        contract: How it is run; what a run of the feed allocates was recorded.
        feed: Tensors to run it with.
        batch: Where samples lie that were proven not to depend on each other.
    """
    axes = BatchAxis(batch.inputs, batch.outputs)
    if contract.measured["run_peak_bytes"] * _COPIES > _MOST_COMPARED:
        return contract if batch.reorders else replace(contract, batch=axes)
    copies = {n: np.concatenate([v] * _COPIES, batch.inputs[n]) if n in batch.inputs else v for n, v in feed.items()}
    names, samples = list(batch.outputs), axes.samples({name: value.shape for name, value in copies.items()})
    session = NativeSession(model, contract.options)
    try:

        def run(part: Feed) -> list[npt.NDArray[Any]]:
            found = session.run(part)
            return [found[name] for name in names]

        whole, trace = session.record(copies)
        for most in {1, 2, samples - 1} - {0}:
            split = run_in_parts(run, names, copies, axes, even_parts(samples, most), {})
            if any(whole[name].tobytes() != part.tobytes() for name, part in zip(names, split, strict=True)):
                return contract
    except InputError:
        return contract
    finally:
        session.close()
    facts = {"samples": samples, "samples_peak_bytes": trace.peak_bytes}
    return replace(contract, batch=axes, measured=dict(contract.measured) | facts)
