"""Random allocation problems."""

from __future__ import annotations

import random
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


def cut_up(pieces: int, seed: int, *, width: int = 24, unit: int = 1) -> Problem:
    """A full block of memory over time, cut into pieces by straight cuts: its floor can be met, but only just."""
    rng = random.Random(seed)
    blocks = [(0, width, 4 * width)]
    while len(blocks) < pieces:
        first, steps, size = blocks.pop(rng.randrange(len(blocks)))
        if steps > 1 and (rng.random() < 0.4 or size == 1):
            cut = rng.randrange(1, steps)
            blocks += [(first, cut, size), (first + cut, steps - cut, size)]
        elif size > 1:
            cut = rng.randrange(1, size)
            blocks += [(first, steps, cut), (first, steps, size - cut)]
        else:
            blocks.append((first, steps, size))
    rng.shuffle(blocks)
    return Problem(tuple(Buffer(str(i), unit * c, a, a + b - 1, unit) for i, (a, b, c) in enumerate(blocks)))
