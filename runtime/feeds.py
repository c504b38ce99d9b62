"""Feeds on which a model runs, by trial: extents and values are varied until the original runs on them."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from memoptc.ir.core import Graph
from memoptc.ir.diagnostics import InputError, MemoptcError
from memoptc.runtime.design_points import effort
from memoptc.runtime.evaluate import Evaluator
from memoptc.runtime.input_ranks import likely_ranks
from memoptc.runtime.input_values import STYLES
from memoptc.runtime.inputs import InputMaker, independent_extents
from memoptc.runtime.trials import TooManyCrashes, Trial, trial_runs

_ATTEMPTS = 72
_LARGEST_FEED = 16 << 20
"""Bytes of inputs above which extents are not tried where smaller ones are to be had: several open axes multiply."""
_MOST_EFFORT = 16.0
"""How often a run may take what is affordable, where the model runs at no smaller extents: 2 GB, some ten seconds."""


@dataclass(frozen=True)
class Generated:
    """A feed of generated values on which the model runs.

    Args:
        feed: Input name -> value.
        dims: Extent per symbol; an axis without a name is `input_dAXIS`.
        style: How the values were chosen, one of `STYLES`.
        finite: Whether the original gave only finite numbers on it.
    """

    feed: dict[str, Any]
    dims: dict[str, int]
    style: str
    finite: bool = True


def find_feeds(
    graph: Graph,
    original: Evaluator,
    *,
    count: int = 3,
    dims: Mapping[str, int] | None = None,
    seed: int = 0,
    seconds: float = math.inf,
    cpu_seconds: float = math.inf,
    trial: Trial | None = None,
) -> list[Generated]:
    """Find feeds on which the original runs; with open dimensions, over several extents.

    Args:
        graph: The model.
        original: The same model in onnxruntime, for trials.
        count: How many feeds are wanted (at least 1).
        dims: Extents that are decided.
        seed: Seed of all random values.
        seconds: Trials end after so long; a trial under way is not broken off.
        cpu_seconds: Time of processors after which a run counts as failed.
        trial: What `trial_runs` gave for the same model, where it is searched for feeds several times.

    Returns:
        `count` feeds. Their extents differ as far as the model runs with several.

    Raises:
        InputError: no inputs were found on which the model runs.
    """
    maker = InputMaker(graph, dims, seed)
    with nullcontext(trial) if trial is not None else trial_runs(maker.typed, original) as trial:
        trial.restart()
        trial.cpu_seconds = cpu_seconds
        return _made_up_samples(graph, maker, trial, count, time.monotonic() + seconds)


def _made_up_samples(graph: Graph, maker: InputMaker, trial: Trial, count: int, until: float) -> list[Generated]:
    first, error = _first(maker, trial, until)
    if first is None and independent_extents(maker.types)[0] != maker.types:  # names that mean several extents
        independent = InputMaker(graph, maker.asked, maker.seed, independent=True)
        first, _ = _first(independent, trial, until)
        maker = independent if first is not None else maker
    for ranked in _ranked(graph) if first is None else ():
        guess = InputMaker(ranked, maker.asked, maker.seed)
        first, _ = _first(guess, trial, until)
        if first is not None:
            maker = guess
            break
    if first is None:
        raise InputError(
            f"No inputs were found on which the model runs; the likeliest attempt said: {error}", hint=_way_out(maker)
        )
    begin, choice, smallest = first
    found, sizes = [begin], [smallest]
    if maker.is_dynamic:
        twice = {n: 2 if e == 1 and n not in maker.dims else e for n, e in smallest.items()}
        most = max(1.0, effort(maker, smallest)) if count > 1 else 0.0
        for binding in (*itertools.islice(maker.bindings(), 12), twice):
            if len(found) >= count or time.monotonic() > until:
                break
            if binding not in sizes and effort(maker, binding) <= most:
                more = _attempt(maker, trial, binding, begin.style, len(found), choice)
                if isinstance(more, Generated) and (more.finite or not begin.finite):
                    found.append(more)
                    sizes.append(binding)
    number = len(found)
    while len(found) < count:
        binding = sizes[number % len(sizes)]
        feed = maker.make(binding, begin.style, seed=number, choice=choice)
        found.append(Generated(feed, maker.named(binding), begin.style, begin.finite))
        number += 1
    return found


_MOST_RANKINGS = 8
"""Ways to give inputs without a declared shape ranks, once scalars were refused."""


def _ranked(graph: Graph) -> Iterator[Graph]:
    """Copies of a model in which every input without a declared shape has one of symbols, of likely ranks."""
    for ranks in itertools.islice(likely_ranks(graph), _MOST_RANKINGS):
        unshaped = {v.name: t for v in graph.inputs if v.name in ranks and (t := v.tensor_type) is not None}
        types, _ = independent_extents({n: t.with_shape((None,) * ranks[n]) for n, t in unshaped.items()})
        copy = graph.clone()
        for value in copy.inputs:
            value.type = types.get(value.name, value.type)
        yield copy


_First = tuple[Generated, int, dict[str, int]]
"""A feed, the choice of its values, and its extents by the names of the maker."""


def _first(maker: InputMaker, trial: Trial, until: float) -> tuple[_First | None, str]:
    choices = max([1, *(max(len(set(r.compared)), bool(r.lengths) + len(r.fixed)) for r in maker.roles.values())])
    fallback: _First | None = None
    error = ""
    attempts = 0
    bindings = _affordable_first(maker, list(maker.bindings()))
    sizes = [maker.nbytes(binding) for binding in bindings]
    bound = max(_LARGEST_FEED, 2 * min(sizes, default=0))
    for style in STYLES:
        for binding, size in zip(bindings, sizes, strict=True):
            for choice in range(min(choices, 6) if size <= bound else 0):
                attempts += 1
                if attempts > _ATTEMPTS or (attempts > 1 and time.monotonic() > until):
                    return fallback, error
                try:
                    found = _attempt(maker, trial, binding, style, 0, choice)
                except TooManyCrashes:
                    return fallback, error
                if isinstance(found, str):
                    error = error or found
                elif found.finite:
                    return (found, choice, binding), ""
                elif fallback is None:
                    fallback = found, choice, binding
    return fallback, error


def _affordable_first(maker: InputMaker, bindings: list[dict[str, int]]) -> list[dict[str, int]]:
    """Move extents at which a run takes much behind the others, and leave out those at which it takes far too much."""
    if len(bindings) < 2 or effort(maker, max(bindings, key=maker.nbytes)) <= 1:
        return bindings
    efforts = [effort(maker, binding) for binding in bindings]
    most = max(_MOST_EFFORT, min(efforts))
    order = sorted(range(len(bindings)), key=lambda i: max(1.0, efforts[i]))  # of what is affordable, as they came
    return [bindings[i] for i in order if efforts[i] <= most]


def _attempt(
    maker: InputMaker, trial: Trial, binding: dict[str, int], style: str, seed: int, choice: int
) -> Generated | str:
    feed = maker.make(binding, style, seed, choice)
    try:
        finite = trial.outputs_are_finite(feed)
    except TooManyCrashes:
        raise
    except MemoptcError as error:
        return error.message
    return Generated(feed, maker.named(binding), style, finite)


def _way_out(maker: InputMaker) -> str:
    """The least that somebody could say to help."""
    free = [name for name in maker.classes if name not in maker.solution.values]
    said = " ".join(f"--dim {name}=N" for name in free[:4])
    conflict = maker.solution.conflicts[:1]
    why = f" ({conflict[0].op} needs {conflict[0].left} = {conflict[0].right})" if conflict else ""
    more = f"Say which extents suit it{why}: {said}; or give" if said else "Give"
    return f"{more} real inputs with --validation (an .npz with one array per input)."
