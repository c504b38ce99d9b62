"""Caches of a sequence in one ring of buffers, one more than there are layers: past and present overlap."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from memoptc.ir.decoder_facts import Cache
from memoptc.runtime.decoder_feeds import numpy_dtype

if TYPE_CHECKING:
    Array: TypeAlias = npt.NDArray[Any]

_FIRST = 256
"""Tokens that there is room for at least."""


class CacheRing:
    """Caches of which each present may be written over the past of the one before.

    Buffer `i + 1` holds past `i` and buffer `i` takes its present; then all have moved by one, and the last buffer is
    the free one. A run so takes the room of all caches and one more, where past and present apart take twice that.

    Args:
        caches: In that order, of equal extents.
        batch: Sequences.
        longest: Most tokens there can be, `None` where nothing bounds them.
    """

    def __init__(self, caches: list[Cache], batch: int, longest: int | None) -> None:
        self.caches, self.batch = caches, batch
        self._longest = longest
        self._dtype = np.dtype(numpy_dtype(caches[0].dtype))
        self._step = batch * caches[0].bytes_per_step
        self._room = 0
        self._rotation = 0
        self._buffers: list[Array] = [np.empty(0, np.uint8)] * (len(caches) + 1)

    def reserve(self, held: int, total: int) -> None:
        """Make room for so many tokens, of which some are held. Room that is not used takes no memory.

        Each buffer is moved alone, so that at most one exists twice.
        """
        if total <= self._room:
            return
        room = max(_FIRST, 2 * total)
        self._room = room if self._longest is None else max(total, min(room, self._longest))
        for at, old in enumerate(self._buffers):
            new = _pages(self._room * self._step)
            new[: held * self._step] = old[: held * self._step]
            self._buffers[at] = new

    def pasts(self, held: int) -> Iterator[tuple[Cache, Array]]:
        """Give each cache with what it holds of so many tokens."""
        for at, cache in enumerate(self.caches):
            yield cache, self._view(at + 1, held)

    def presents(self, total: int) -> Iterator[tuple[Cache, Array]]:
        """Give each cache with where its present of so many tokens goes."""
        for at, cache in enumerate(self.caches):
            yield cache, self._view(at, total)

    def rotate(self) -> None:
        """Take the presents for pasts."""
        self._rotation -= 1

    def _view(self, at: int, steps: int) -> Array:
        cache = self.caches[0]
        shape = list(cache.shape)
        shape[cache.batch], shape[cache.axis] = self.batch, steps
        raw = self._buffers[(at + self._rotation) % len(self._buffers)]
        found: Array = raw[: steps * self._step].view(self._dtype).reshape(shape)
        return found


class CacheRings:
    """All rings of a sequence, or batch of them; none where no present may be written over another layer's past.

    Args:
        caches: Those that steps are added to.
        batch: Sequences.
        longest: Most tokens there can be, `None` where nothing bounds them.
    """

    def __init__(self, caches: Sequence[Cache], batch: int, longest: int | None) -> None:
        by_name = {c.past: c for c in caches}
        behind = {c.reuses: c for c in caches if c.reuses in by_name}
        self._rings: list[CacheRing] = []
        for first in caches:
            if first.reuses in by_name or first.past not in behind:
                continue
            chain = [first]
            while (after := behind.get(chain[-1].past)) is not None:
                chain.append(after)
            self._rings.append(CacheRing(chain, batch, longest))

    def __bool__(self) -> bool:
        """True if there is any."""
        return bool(self._rings)

    @property
    def pasts(self) -> set[str]:
        """Names of the inputs that lie in rings."""
        return {c.past for ring in self._rings for c in ring.caches}

    def run(self, session: ort.InferenceSession, binding: ort.IOBinding, held: int, total: int) -> None:
        """Run with so many tokens held and so many in all afterwards, behind whatever is bound already.

        A run that fails leaves presents written over pasts that another try would need.
        """
        for ring in self._rings:
            ring.reserve(held, total)
            for cache, past in ring.pasts(held):
                binding.bind_ortvalue_input(cache.past, ort.OrtValue.ortvalue_from_numpy(past))
            for cache, place in ring.presents(total):
                binding.bind_output(cache.present, "cpu", 0, place.dtype.type, list(place.shape), place.ctypes.data)
        session.run_with_iobinding(binding)
        for ring in self._rings:
            ring.rotate()


def _pages(size: int) -> Array:
    """Bytes of pages of their own: those that are never written take no memory, and all are given back at once."""
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    pages: Array = np.frombuffer(mmap.mmap(-1, max(size, 1), **private), np.uint8)
    return pages
