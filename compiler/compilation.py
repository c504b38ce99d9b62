"""Source, options, data and scratch folder of one compile, frozen; all steps take it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from memoptc.allowance import Allowance, parse_seconds
from memoptc.ir.core import Graph
from memoptc.ir.diagnostics import InputError
from memoptc.manager import count_nodes, weight_bytes
from memoptc.option_fields import parse_input_shape
from memoptc.options import Options
from memoptc.runtime.devices import load_device
from memoptc.runtime.inputs import by_shapes, by_symbol
from memoptc.samples import Inputs
from memoptc.source import Source, load, with_control


def for_device(options: Options) -> Options:
    """Write as the device's runtime needs it, unless a form was asked for.

    Raises:
        InputError: there is no such device, or the options ask for what it does not load.
    """
    if options.device == "auto" or not load_device(options.device).plain:
        return options
    return replace(options, form="plain" if options.form == "auto" else options.form, portable=True)


@dataclass(frozen=True)
class Compilation:
    """Source, options and data of one compile, which stay the same throughout.

    Args:
        source: The original.
        options: The options in force.
        data: What to calibrate and verify with, and the extents that it implies.
        scratch: A folder for temporary files.
        allowance: Its time.
    """

    source: Source
    options: Options
    data: Inputs
    scratch: Path
    allowance: Allowance

    @staticmethod
    def of(model: Any, options: Options, scratch: Path) -> Compilation:
        """Read a model, and find the data and the extents to compile it with.

        Args:
            model: As `memoptc.compile` takes it.
            options: What is asked for; extents may go by the names of inputs.
            scratch: An existing folder for temporary files.

        Raises:
            InputError: the model, the data or an extent cannot be used.
        """
        allowance = Allowance(None if options.time_limit is None else parse_seconds(options.time_limit))
        source = load(model, scratch)
        allowance.nodes, allowance.weights = count_nodes(source.graph), weight_bytes(source.graph)
        allowance.data = options.calibration is not None or options.validation is not None
        dims, freeze = (by_symbol(source.graph, names) for names in (options.dims, options.freeze))
        shapes = by_shapes(source.graph, dict(map(parse_input_shape, options.input_shapes)))
        said = dict(dims)
        for name, extent in (*shapes.items(), *freeze.items()):
            if said.setdefault(name, extent) != extent:
                raise InputError(
                    f"Dimension {name} is said to be {said[name]} and {extent}.",
                    hint="Say it once, with --dim, --input-shape or --freeze.",
                )
        dims |= shapes
        options = for_device(replace(options, dims=dims, freeze=freeze))
        return Compilation(source, options, Inputs(source, options, allowance.seconds), scratch, allowance)

    def with_control(self, prepared: Graph) -> Compilation:
        """Compare results with the original as it was prepared for the passes; see `memoptc.source.with_control`."""
        return replace(self, source=with_control(self.source, prepared, self.scratch))
