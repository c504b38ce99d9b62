"""Convolutions that are no faster on integers, and what they must gain to compute in float; and those too large."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from memoptc.ir.core import Graph, Op
from memoptc.ir.ops import definition
from memoptc.ir.ops.sizes import Sizes, UnknownExtentError
from memoptc.passes.precision._quantize.calibrated import CalibratedGraph
from memoptc.passes.precision._quantize.sensitivity import work_of
from memoptc.passes.precision._quantize.settings import Setting
from memoptc.passes.precision._quantize.static_choice import alone_on_integers
from memoptc.runtime.memory.extents import likely_extents
from memoptc.runtime.memory.liveness import peak

WORTH = 0.2
"""Decibels that a change of how layers are quantized must gain on the data to stay."""

_LITTLE = 0.1
"""Part of the multiplications that convolutions among floats may do to be tried in float."""

_SMALL = 2.5e5
"""Multiplications, on average, up to which convolutions gain from integers what coding their operands takes."""

SMALL_GAIN = 1.0
"""Decibels that small convolutions must gain in float."""

_TOO_LARGE, _NOTICED = 2, 16 << 20
"""How many times what the graph in float has alive at once a kernel's scratch may take, and bytes from which it is
noticed: every run of a candidate would need it, and a model with such a layer needs more than the one in float."""

FINE_ENOUGH = 30.0
"""Decibels from which a model is fine enough on integers: once loaded, float weights take four times the bytes."""


def slow_on_integers(
    layers: Mapping[str, Op], dims: Mapping[str, int], setting: Setting, variant: CalibratedGraph
) -> Iterator[tuple[list[str], float, str]]:
    """Give groups of convolutions that gain next to no time from integers, so that they may compute in float.

    Args:
        layers: The layers of a search by name.
        dims: Extents to count multiplications with.
        setting: How the others are quantized.
        variant: The graph that is quantized.

    Returns:
        Names, the decibels that they must gain in float, and why they may.
    """
    # neighbours that find their range in each run hand over floats
    floats = variant.codes.excluded | (variant.run_time_products if setting.run_time else frozenset())
    choice = variant.codes.choose(variant.graph, floats, Counter())
    works = {name: work_of(op, dims) for name, op in layers.items()}
    lonely = [op.name for op in alone_on_integers(choice)]
    if lonely and sum(works[name] for name in lonely) <= _LITTLE * sum(works.values()):
        yield lonely, WORTH, "they do little of the work"
    every = [op.name for op in choice.heavy if op.name in variant.codes.tabled]
    if every and sum(works[name] for name in every) <= _SMALL * len(every):
        yield every, SMALL_GAIN, "so small ones are no faster on integers"


def large_on_integers(layers: Mapping[str, Op], graph: Graph, dims: Mapping[str, int]) -> dict[str, str]:
    """Find convolutions whose kernel on integers alone takes far more scratch than all of the graph in float.

    It spreads the windows of an image out as columns where no kernel requantizes at once: of 9 x 9 taps, 81 copies.

    Args:
        layers: The layers of a search by name.
        graph: The graph in float.
        dims: Extents to count bytes with.

    Returns:
        Their names, and why they compute in float.
    """
    known = likely_extents(graph, dims)
    whole, found = peak(graph, known).peak_bytes, dict[str, str]()
    for name, op in layers.items():
        formula = definition(op).integer_workspace
        try:
            scratch = 0 if formula is None else formula(Sizes(op, known, 1, gives_codes=True))
        except UnknownExtentError:
            continue
        if scratch > max(_TOO_LARGE * whole, _NOTICED) and whole:
            found[name] = (
                f"on integers its kernel takes {scratch / 1e6:.0f} MB, in float all takes {whole / 1e6:.0f} MB"
            )
    return found
