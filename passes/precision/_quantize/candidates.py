"""Candidates: copies of a graph with other numbers, run and compared with the graph in float."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from memoptc.ir.core import Graph
from memoptc.ir.diagnostics import MemoptcError
from memoptc.ir.pool import WeightPool
from memoptc.runtime.loss_bound import PairedHits
from memoptc.runtime.quality import FAILED, Examiner, Quality
from memoptc.runtime.result_cache import ResultCache
from memoptc.runtime.spool import trim


class CandidateEvaluator:
    """Runs candidates and compares their outputs with those of the graph in float.

    Args:
        examiner: Holds them against the graph in float.
        pool: Where a copy lies while it runs, with the weights that it has in common with others.
        cache: Where outcomes are kept for a compile that begins anew, if anywhere.
        about: What they follow from besides the copy: graph, data, metric.
    """

    def __init__(self, examiner: Examiner, pool: WeightPool, cache: ResultCache | None = None, about: str = "") -> None:
        self.examiner, self._pool, self._cache, self._about = examiner, pool, cache, about
        self.count = 0

    def quick(self, graph: Graph, most: int | None = None) -> Quality:
        """Compare on few samples."""
        return self._with(graph, lambda path: self.examiner.quick(path, most), f"quick {most}")

    def first(self, graph: Graph, most: int) -> Quality:
        """Compare on so many of the first samples."""
        return self._with(graph, lambda path: self.examiner.first(path, most), f"first {most}")

    def full(self, graph: Graph) -> Quality:
        """Compare on all, and measure the metric."""
        return self._with(graph, self.examiner.full, "full")

    def until(self, graph: Graph, failed: Callable[[PairedHits], bool]) -> Quality:
        """Compare on all, or until so many rows are lost that it has failed."""
        return self._with(graph, lambda path: self.examiner.full(path, failed), "until it failed")

    def _with(self, graph: Graph, look: Callable[[Path], Quality], how: str) -> Quality:
        self.count += 1
        path = self._pool.write(graph, "candidate.onnx")
        try:
            if self._cache is None:
                return look(path)
            key = ResultCache.key(self._about, how, self._pool.digest(graph))
            known = self._cache.get_record(key)
            if known is None:
                known = look(path).to_json()
                self._cache.put_record(key, known)
            return Quality.from_json(known)
        except MemoptcError:  # what onnxruntime does not run is no candidate
            return Quality({FAILED: math.inf}, 0, -math.inf)
        finally:
            path.unlink()
            trim(collect=False)
