"""A search in several attempts at one compile: what it did to a graph, it does to an equal one without searching."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from memoptc.ir.core import Graph
from memoptc.pass_base import Context, Pass, Searched
from memoptc.passes.precision._quantize.observe import shared_weights


def search_memoized(search: Pass, graph: Graph, context: Context, work: Callable[[Context], None]) -> None:
    """Run a search on a graph, or repeat what it did to an equal graph in an earlier attempt.

    Args:
        search: The pass, with its options.
        graph: The top graph, changed in place.
        context: Of the compile; its `searched` lasts over attempts, its `stats` get what the search counts.
        work: The search itself, on `graph`; gets the context to use, which counts by itself.
    """
    with shared_weights(context) as pool:
        written = pool.write(graph, "searched.onnx").read_bytes()
        key = f"{search!r} {hashlib.sha256(written).hexdigest()}"
        known = context.searched.get(key)
        if known is None:
            counted, decided, warned = Counter[str](), len(context.decisions), len(context.warnings)
            work(replace(context, stats=counted))
            known = context.searched[key] = Searched(
                graph.clone(),
                counted,
                context.decisions[decided:],
                context.warnings[warned:],
                context.artefacts.precision,
            )
        else:
            adopt(graph, known.graph.clone())
            context.decisions.extend(known.decisions)
            context.warnings.extend(known.warnings)
            context.artefacts.precision = known.precision
        context.stats.update(known.stats)


def adopt(graph: Graph, done: Graph) -> None:
    """Let a graph become a copy of itself that a search has changed, with the operator sets that it needs."""
    imports, version = dict(done.info.opset_imports), done.info.ir_version
    graph.become(done)
    graph.info.opset_imports.update(imports)
    graph.info.ir_version = max(graph.info.ir_version, version)


def take_over(graph: Graph, copy: Graph, context: Context, trial: Context) -> None:
    """Let a graph become a copy of itself that a pass has coded, and note what that did."""
    adopt(graph, copy)
    context.stats.update(trial.stats)
    context.decisions += trial.decisions
    context.warnings += trial.warnings
