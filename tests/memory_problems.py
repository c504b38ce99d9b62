"""Random allocation problems."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from memoptc.runtime.memory.problem import Buffer, Problem


@st.composite
def problems(
    draw: st.DrawFn, *, most: int = 24, steps: int = 12, largest: int = 40, alignments: Sequence[int] = (1,)
) -> Problem:
    """Up to `most` buffers over `steps` steps, nothing fixed."""
    buffers = []
    for index in range(draw(st.integers(0, most))):
        first = draw(st.integers(0, steps - 1))
        last = draw(st.integers(first, steps - 1))
        size, alignment = draw(st.integers(1, largest)), draw(st.sampled_from(list(alignments)))
        buffers.append(Buffer(f"b{index}", size, first, last, alignment))
    return Problem(tuple(buffers))
