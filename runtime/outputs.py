"""Runs of onnxruntime's Python session whose outputs go into arrays of the caller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from memoptc.runtime.errors import invalid_argument
from memoptc.runtime.options import Feed


def run_into(
    session: ort.InferenceSession,
    names: Sequence[str],
    feed: Feed,
    run_options: ort.RunOptions | None,
    into: Mapping[str, npt.NDArray[Any]],
) -> list[Any]:
    """Run once, with some outputs in arrays that are there.

    onnxruntime writes into those that are C-contiguous and share no memory with an input, which it may still read while
    it writes; to others, outputs are copied.

    Args:
        session: The session; of a subclass, onnxruntime's own methods run.
        names: Outputs wanted.
        feed: A value per input.
        run_options: Of the run.
        into: Output name -> array of its shape and type.

    Returns:
        A value per output wanted, in that order.

    Raises:
        InputError: an array has another shape or type than its output.
    """
    binding = ort.InferenceSession.io_binding(session)
    for name, value in feed.items():
        binding.bind_cpu_input(name, np.asarray(value, order="C"))
    direct = {name for name, array in into.items() if can_be_written_to(array, feed)}
    for name in names:
        if name in direct:
            binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(into[name]))
        else:
            binding.bind_output(name)
    ort.InferenceSession.run_with_iobinding(session, binding, run_options)
    found = dict(zip(names, binding.get_outputs(), strict=True))
    return [_given(name, found[name], into.get(name), direct=name in direct) for name in names]


def _given(name: str, value: ort.OrtValue, array: npt.NDArray[Any] | None, *, direct: bool) -> Any:
    if array is None:
        return value.numpy()
    return array if direct else copied(name, value.numpy(), array)


def can_be_written_to(array: npt.NDArray[Any], feed: Feed) -> bool:
    """True if a run may write straight into an array."""
    return bool(array.flags.c_contiguous) and array.dtype.isnative and shares_no_memory(array, feed)


def shares_no_memory(array: npt.NDArray[Any], feed: Feed) -> bool:
    """True if an array can be written to before all inputs are read: it shares no memory with one."""
    return bool(array.flags.writeable) and not any(np.may_share_memory(array, value) for value in feed.values())


def copied(name: str, value: Any, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Copy an output into the array for it, and give that.

    Raises:
        InputError: the array has another shape or type, or cannot be written to.
    """
    written = np.asarray(value)
    if written.shape != array.shape or written.dtype != array.dtype:
        raise invalid_argument(
            f"The output {name!r} is {written.dtype} {written.shape}, its array {array.dtype} {array.shape}."
        )
    if not array.flags.writeable:
        raise invalid_argument(f"The array for output {name!r} is read-only.", "Give one that can be written to.")
    np.copyto(array, written)
    return array
