"""The configurations that a peak of activations is planned or recorded for, by name.

One model has several peaks, according to who orders its nodes, what is fused and what is kept: a figure without its
configuration says nothing. Every command gives the same figure for the same configuration and sizes, because all
ask here.

| name | nodes | onnxruntime's optimizer | planned | recorded |
|---|---|---|---|---|
| `file order` | in the file's order; Q/DQ pairs as the integer kernels onnxruntime makes of them | | yes | |
| `as written` | in the file's order, one by one | off | yes | yes |
| `stock default` | in onnxruntime's order, with its reuse and its pattern block | on | | yes |
| `session` | as the session contract says | as it says | | yes |

Outputs and the scratch of kernels are part of each figure, inputs and weights of none. The planned ones are for one
thread, unless their name says another number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from memoptc.ir.core import Graph
from memoptc.ir.functions import as_loaded
from memoptc.runtime.memory.extents import extents
from memoptc.runtime.memory.liveness import Liveness, PeakReport, liveness, peak_of
from memoptc.runtime.memory.workspace import kernel_workspace, no_workspace
from memoptc.runtime.options import FRUGAL, STOCK, RunOptions


@dataclass(frozen=True)
class Configuration:
    """One way in which a model may run.

    Args:
        name: What every command calls it.
        options: How onnxruntime runs it so; for `file order` the nearest that can be had.
        fused: Whether quantize and dequantize pairs run as integer kernels.
    """

    name: str
    options: RunOptions
    fused: bool = True

    def __str__(self) -> str:
        return self.name

    def on(self, threads: int) -> Configuration:
        """Give the same on another number of threads, which its name then says: some kernels' scratch grows with it."""
        if threads == self.options.threads:
            return self
        name = f"{self.name}, {threads} threads" if threads else self.name
        return replace(self, name=name, options=replace(self.options, threads=threads))


FILE_ORDER = Configuration("file order", replace(FRUGAL, file_order=True, threads=1))
"""What *planned peak* means where nothing else is said."""

AS_WRITTEN = Configuration("as written", replace(FRUGAL, optimize=False, file_order=True, threads=1), fused=False)
"""How the memory model is held against what onnxruntime really allocates."""

STOCK_DEFAULT = Configuration("stock default", STOCK)

SESSION = Configuration("session", FRUGAL)
"""Without a contract: the options that `memoptc.runtime.Session` then takes."""


def planned(
    graph: Graph,
    dims: Mapping[str, int],
    configuration: Configuration = FILE_ORDER,
    *,
    workspace: bool = True,
) -> Liveness:
    """Find which bytes are alive when, on paper.

    Args:
        graph: The model, shapes inferred.
        dims: Extents of its symbolic dimensions; the inputs' are enough.
        configuration: `FILE_ORDER` or `AS_WRITTEN`.
        workspace: Count the scratch of kernels.
    """
    graph = graph.analysis(as_loaded)
    full = extents(graph, dims)
    scratch = (
        kernel_workspace(full, configuration.options.threads, fused=configuration.fused) if workspace else no_workspace
    )
    return liveness(graph, full, workspace=scratch, fused=configuration.fused)


def planned_peak(graph: Graph, dims: Mapping[str, int], configuration: Configuration = FILE_ORDER) -> PeakReport:
    """Find the most bytes alive at once, and what they are. Arguments as for `planned`."""
    return peak_of(planned(graph, dims, configuration))
