"""Graphs after recoveries, each made once, and the cost of trying a setting in one of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from memoptc.ir.core import Graph
from memoptc.pass_base import Context, Pass
from memoptc.passes.precision._quantize.calibrated import CalibratedGraph
from memoptc.passes.precision._quantize.effort import MULTIPLICATIONS, Effort
from memoptc.passes.precision._quantize.observation import rounding_work
from memoptc.passes.precision._quantize.observe import checkpoint_of
from memoptc.passes.precision._quantize.settings import QuantizationConfig, Setting
from memoptc.passes.precision.split_outliers import names_of_split


@dataclass
class RecoveredGraphs:
    """A graph in float after recoveries, with what calibration sees in it.

    Args:
        search: Name of the pass that searches.
        graph: The graph before any.
        context: Of the compile.
        codes: What codes weights have.
        effort: Costs of the search.
    """

    search: str
    graph: Graph
    context: Context
    codes: QuantizationConfig
    effort: Effort
    _made: dict[tuple[Pass, ...], CalibratedGraph] = field(default_factory=dict)

    def __getitem__(self, recoveries: tuple[Pass, ...]) -> CalibratedGraph:
        """The graph after these recoveries."""
        if recoveries not in self._made:
            graph, stats = self.graph.clone(), Counter[str]()
            for pass_ in recoveries:
                pass_.run(graph, replace(self.context, stats=stats, decisions=[], warnings=[]))
            codes = replace(self.codes, excluded=self.codes.excluded | names_of_split(graph))
            checkpoint = checkpoint_of(self.context, self.search, *(p.name for p in recoveries))
            # tensors of the graph itself outlive all others, so that their codes hold in each
            memo = dict(self._made[()].memo) if recoveries else {}
            self._made[recoveries] = CalibratedGraph(graph, self.context, codes, checkpoint, stats, memo)
        return self._made[recoveries]

    def keep(self, best: Setting) -> None:
        """Give up all graphs but the one without recoveries and that of a setting."""
        self._made = {key: kept for key, kept in self._made.items() if key in ((), best.recoveries)}

    def drop_unused_codes(self, best: Setting) -> None:
        """Forget codes that a setting does not use."""
        for key, kept in self._made.items():
            kept.drop_unused_codes(best if key == best.recoveries else None)

    def cost(self, tried: Setting) -> float:
        """Seconds that a try takes, beyond what is known from earlier ones."""
        seconds = self.effort.look()
        if tried.recoveries not in self._made:
            seconds += self.effort.variant
        known = self._made.get(tried.recoveries)
        if (tried.clip or tried.bias) and (known is None or "channels" not in vars(known)):
            seconds += self.effort.run * self.effort.many
        if tried.rounding and (known is None or not known.was_rounded(tried.clip)):
            passes, work = rounding_work(self[()].choice.heavy)
            seconds += passes * self.effort.run * self.effort.many + work / MULTIPLICATIONS
        return seconds
