"""Memory that sessions of the C interface share: weights, packed forms, the block that their runs take turns in."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from memoptc.ir.diagnostics import InputError
from memoptc.runtime.native.capi import Pointer, api
from memoptc.runtime.native.trace import Block

if TYPE_CHECKING:
    from memoptc.runtime.external_weights import ExternalWeight

_PAGE = mmap.PAGESIZE


@dataclass
class BlockHome:
    """The block of sessions whose runs take turns."""

    block: Block | None = None
    lock: threading.RLock = field(default_factory=threading.RLock)


@dataclass(frozen=True)
class Shared:
    """Part of the shared memory that one session gets.

    Args:
        weights: Initializer -> its value.
        packed: Weights in the kernels' own layout, by content.
        home: Where it runs.
    """

    weights: Mapping[str, StoredWeight]
    packed: PackedWeights
    home: BlockHome


class PackedWeights:
    """onnxruntime's container of weights in the kernels' own layout, which sessions with equal weights share."""

    def __init__(self) -> None:
        self.pointer: Pointer = api().new("CreatePrepackedWeightsContainer")

    def __del__(self) -> None:
        if getattr(self, "pointer", None):
            api().release["ReleasePrepackedWeightsContainer"](self.pointer)


class StoredWeight:
    """The bytes of one weight in a mapped file, as a value of onnxruntime's."""

    def __init__(self, weight: ExternalWeight, data: npt.NDArray[np.uint8]) -> None:
        self.data, a = data, api()
        dims = (ctypes.c_int64 * len(weight.dims))(*weight.dims)
        self.value: Pointer = a.new(
            "CreateTensorWithDataAsOrtValue",
            a.memory_info, data.ctypes.data, data.nbytes, dims, len(weight.dims), weight.element,
        )  # fmt: skip

    def __del__(self) -> None:
        if getattr(self, "value", None):
            api().release["ReleaseValue"](self.value)


class WeightStore:
    """Weights in mapped files, equal ones once.

    Weights whose bytes are equal share one value, whichever files and models they come from. Nothing is counted here:
    a weight stays as long as somebody holds it.
    """

    def __init__(self) -> None:
        self._files: dict[tuple[int, int, int], tuple[mmap.mmap, npt.NDArray[np.uint8]]] = {}
        self._places: dict[tuple[object, ...], StoredWeight] = {}
        self._alike: dict[tuple[object, ...], dict[bytes, StoredWeight]] = {}
        """Length, element type and dims -> the weights that have these, by digest; a single one under no digest."""

    def get(self, weight: ExternalWeight) -> StoredWeight:
        """Give the value of a weight.

        Raises:
            InputError: its file is not there, or too short.
        """
        file, mapped, data = self._mapped(weight.file)
        if weight.offset + weight.length > len(data):
            raise InputError(f"{weight.file} ends before weight {weight.name!r} does.", hint="Write the model again.")
        place = (file, weight.offset, weight.length, weight.element, weight.dims)
        if place not in self._places:
            part = data[weight.offset : weight.offset + weight.length]
            self._places[place] = self._stored(weight, part, place[2:])
            _give_back(mapped, weight.offset, weight.length)
        return self._places[place]

    def give_back(self) -> None:
        """Let all pages go that were read to pack weights; those that runs use are read again."""
        for mapped, _ in self._files.values():
            _give_back(mapped, 0, len(mapped))

    def drop(self, kept: set[StoredWeight]) -> None:
        """Forget all but these; pages of the others are given back."""
        for place, stored in list(self._places.items()):
            if stored not in kept:
                del self._places[place]
        left = {shape: {d: s for d, s in alike.items() if s in kept} for shape, alike in self._alike.items()}
        self._alike = {shape: alike for shape, alike in left.items() if alike}
        held = {place[0] for place in self._places}
        for file, (mapped, _) in self._files.items():
            if file not in held:
                _give_back(mapped, 0, len(mapped))

    def _stored(self, weight: ExternalWeight, part: npt.NDArray[np.uint8], shape: tuple[object, ...]) -> StoredWeight:
        """Give the weight that has these bytes, or a new one. Nothing is read as long as it is alone in its shape."""
        alike = self._alike.setdefault(shape, {})
        if not alike:
            alike[b""] = StoredWeight(weight, part)
            return alike[b""]
        if b"" in alike:
            single = alike.pop(b"")
            alike[_digest(single.data)] = single
        digest = _digest(part)
        if digest not in alike or not np.array_equal(alike[digest].data, part):
            alike[digest] = StoredWeight(weight, part)
        return alike[digest]

    def _mapped(self, file: str) -> tuple[tuple[int, int, int], mmap.mmap, npt.NDArray[np.uint8]]:
        from memoptc.ir.files import open_plain  # only what shares weights pays for it

        try:
            with os.fdopen(open_plain(Path(file)), "rb") as opened:
                status = os.fstat(opened.fileno())
                key = (status.st_dev, status.st_ino, status.st_mtime_ns)
                if key not in self._files:
                    mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
                    self._files[key] = mapped, np.frombuffer(mapped, np.uint8)
        except (OSError, ValueError) as error:
            raise InputError(f"{file} cannot be mapped: {error}.", hint="Write the model again.") from None
        return key, *self._files[key]


def _digest(data: npt.NDArray[np.uint8]) -> bytes:
    import hashlib  # a session of its own needs none

    return hashlib.blake2b(data.data, digest_size=16).digest()


def _give_back(mapped: mmap.mmap, offset: int, length: int) -> None:
    """Let the pages of a read-only mapping go; they are read again where they are used."""
    if hasattr(mapped, "madvise") and length:
        start = offset // _PAGE * _PAGE
        mapped.madvise(mmap.MADV_DONTNEED, start, offset + length - start)
