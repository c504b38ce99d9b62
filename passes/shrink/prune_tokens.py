"""prune-tokens: after chosen layers only the tokens that matter go on, as far as the outputs on data allow."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.diagnostics import InputError
from memoptc.ir.dims import same
from memoptc.ir.ops import opset_of
from memoptc.pass_base import Context, Pass
from memoptc.passes.memory._tile.memory_profile import run_seconds
from memoptc.passes.precision._quantize.remaining_time import Pace
from memoptc.passes.precision._quantize.replay import adopt
from memoptc.passes.shrink._shrink.accuracy_search import Gate, Level, Levels
from memoptc.passes.shrink._shrink.work import FLOATS, multiplications
from memoptc.passes.shrink._tokens.drop import PARTS, TokenDrop, drop_tokens
from memoptc.passes.shrink._tokens.merge import MOST_MERGED, TokenCounts
from memoptc.passes.shrink._tokens.region import PASSED_BY, token_region
from memoptc.runtime.accuracy import AccuracyTarget
from memoptc.runtime.held_out import labelled_rows

STEPS = {"drop": (1, 2, 3, 4, 6, 8, 10, 12), "merge": (1, 2, 3, 4, 5, 6, MOST_MERGED)}
"""Sixteenths of its tokens that a layer may drop, or merge."""

PROBED = {"drop": (4, 10), "merge": (3, 6)}
"""Of those, what the outputs' noise is measured at, one layer at a time; it is taken to grow by a power between."""

SECONDS, FEWEST = 15.0, 4
"""Predicted seconds for these measurements of all layers, and samples that each of them takes in any case."""

GAIN = 0.1
"""Share of the run time that has to be saved on paper: predictions miss by as much."""

LOST, QUICK = 3, 0.005
"""Rows that may be lost where so many are looked at that this is no more than is allowed: of none, a single one among
hundreds decides. Seconds, at most, that a row takes for so many to be looked at."""

UNPAID, LONGER = "choosing tokens takes as long as it saves", "longer inputs gain more: plan for them with --dim"

WORTH = 0.02
"""Share of the model's multiplications that has to lie behind a layer for tokens to be dropped there."""

NEVER = Level(math.inf, 0.0)
"""What a site is not asked for."""

SCORES = ("auto", "first", "all", "norm")
"""By the attention of token 0, of all tokens, by the norm of the hidden state; what is best at each layer."""

NOTHING_BEHIND = "no hidden state behind it"

OPSET = 18
"""The first whose reductions take axes as operands, and in which scattering can add."""


class PruneTokens(Pass):
    """Drop or merge, after chosen attention layers, the tokens that matter least to what follows.

    For encoders (ViT, BERT and their kind): behind an attention layer the hidden states `[batch, tokens, width]` of
    the tokens with the highest scores are gathered in the order that they have, and all that follows computes with
    those. Masks and position biases that later layers read lose the same tokens. A score is the attention that a token
    gets from the class token (Liang et al., "EViT", 2022) or from all tokens (Goyal et al., "PoWER-BERT", 2020; Kim et
    al., "Learned Token Pruning", 2022), or the norm of its hidden state. Where an output has a row per token, dropped
    tokens get theirs from the layer that dropped them.

    Merged tokens are averaged with the most similar others (Bolya et al., "Token Merging", 2022); later attention
    counts an average as often as tokens went into it, and outputs per token take the row of the average.

    How many tokens go at which layer, in which of the two forms and by which score, is searched on data: layers whose
    tokens cost the outputs least for the run time saved go first, as far as `min_sqnr` and `max_loss` hold on data kept
    aside. That time is predicted at the planned extents, with the ops that choose tokens: where they take more than is
    saved, the model is left alone. With `keep` nothing is searched: every layer keeps that share.

    Args:
        min_sqnr: Least signal to difference of every output, in decibels; `none` for any.
        max_loss: Largest accepted loss of the metric (top-1 accuracy of labelled data, or the user's own).
        keep: Share of the tokens that every layer keeps, without data; rounded to sixteenths that go, at most fifteen.
        layers: Indices of the attention layers to drop tokens behind; all when empty.
        score: "first" (attention of token 0), "all" (attention of all tokens), "norm", or "auto": where outputs read
            token 0, the better of the first two (with `keep`, "first"), else "all"; of dropped tokens.
        form: "drop", "merge" (at most 7/16 at a layer), or "auto": what costs least at each layer; with `keep`, "drop".
    """

    min_sqnr: float | None = 20.0
    max_loss: float | None = None
    keep: float | None = None
    layers: tuple[int, ...] = ()
    score: str = "auto"
    form: str = "auto"

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise InputError(f"prune-tokens has no score={self.score!r}.", hint=f"There are: {', '.join(SCORES)}.")
        if self.form not in ("auto", *STEPS):
            raise InputError(f"prune-tokens has no form={self.form!r}.", hint=f"There are: auto, {', '.join(STEPS)}.")
        if self.keep is not None and not 0 < self.keep <= 1:
            raise InputError(f"prune-tokens has no keep={self.keep!r}.", hint="A number in (0, 1] was expected.")

    @property
    def accuracy_target(self) -> AccuracyTarget:
        """The limits that the search keeps to."""
        return AccuracyTarget(self.min_sqnr, self.max_loss)

    def run(self, graph: Graph, context: Context) -> None:
        """Drop tokens in the top graph."""
        if (opset_of(graph) or 0) < OPSET:
            context.stats[f"left: opset below {OPSET} (raise-opset{{to={OPSET}}} first)"] += 1
            return
        context.shapes(graph)
        sites = list(self.sites(graph, context.stats))
        if not sites:
            context.stats["left: no attention layer behind which tokens can go"] += 1
            return
        if self.keep is not None:
            parts = min(round((1 - self.keep) * PARTS), PARTS - 1)
            way = (
                TokenReduction("merge", min(parts, MOST_MERGED))
                if self.form == "merge"
                else TokenReduction("drop", parts, self.score)
            )
            context.stats["layers that drop tokens"] += self.drop(graph, dict.fromkeys(sites, way))
            return
        gate = Gate(
            self.name, graph, context, self.min_sqnr, self.max_loss, fitted=False, lost=_lost_rows(graph, context)
        )
        ways, curves = self._curves(graph, sites, gate, context)
        if not any(level.saved > 0 for levels in curves for level in levels):
            context.stats[f"left: {UNPAID} ({LONGER})"] += 1
            return

        def make(levels: Levels) -> Graph:
            return self._copy(graph, {sites[i]: ways[level] for i, level in levels.items()})

        chosen = gate.choose(curves, make)
        context.stats["trials"] = gate.trials.count
        if not chosen:
            context.stats["left: outputs need all tokens"] += 1
            return
        done = make(chosen)
        ratio, how = _run_time(graph, done, context)
        if ratio >= (1.0 if how == "measured" else 1 - GAIN):
            context.stats[f"left: {UNPAID} ({how} run time {ratio:.2f} of what it is without; {LONGER})"] += 1
            return
        adopt(graph, done)
        context.stats["layers that drop tokens"] += len(chosen)
        left = ", ".join(f"{sites[i].name}: {ways[level]}" for i, level in sorted(chosen.items()))
        what = f"tokens go in {len(chosen)} of {len(sites)} layers; each keeps, {left}"
        gate.decide(graph, f"{what}; {how} run time {ratio:.2f} of what it was", 0, context)

    def _curves(
        self, graph: Graph, sites: Sequence[TokenSite], gate: Gate, context: Context
    ) -> tuple[list[TokenReduction], list[list[Level]]]:
        """The ways to let tokens go; for each site and each of these, the noise that comes, and the seconds saved."""
        kinds = self._kinds(any(site.leading for site in sites))
        ways = [replace(kind, parts=parts) for kind in kinds for parts in STEPS[kind.form]]
        whole = run_seconds(graph, context.dims)
        looks = len(sites) * sum(len(PROBED[kind.form]) for kind in kinds)
        samples = max(FEWEST, int(SECONDS / max(whole * looks, 1e-9)))
        curves, pace = [], Pace(len(sites))
        for number, site in enumerate(sites):
            context.say(f"each layer alone, {pace.at(number)}")
            probes: dict[TokenReduction, _Probes] = {}
            for kind in kinds if site.leading else self._kinds(False):
                parts = PROBED[kind.form]
                copies = [self._copy(graph, {site: replace(kind, parts=p)}) for p in parts]
                sqnr = [gate.trials.quick(copy, samples).sqnr_db for copy in copies]
                seconds = [run_seconds(copy, context.dims) for copy in copies]
                probes[kind] = _Probes(parts, sqnr, seconds)
            kind_of = {way: replace(way, parts=0) for way in ways}
            curves.append([probes[kind_of[w]].level(w.parts, whole) if kind_of[w] in probes else NEVER for w in ways])
        return ways, curves

    def _kinds(self, leading: bool) -> list[TokenReduction]:
        """Forms and scores to try, where outputs read leading tokens or not."""
        scores = (self.score,) if self.score != "auto" else ("first", "all") if leading else ("all",)
        dropped = [TokenReduction("drop", 0, score) for score in scores]
        merged = [TokenReduction("merge", 0)]
        return dropped * (self.form != "merge") + merged * (self.form != "drop")

    def _copy(self, graph: Graph, ways: Mapping[TokenSite, TokenReduction]) -> Graph:
        copy = graph.clone()
        self.drop(copy, ways)
        return copy

    def drop(self, graph: Graph, ways: Mapping[TokenSite, TokenReduction]) -> int:
        """Let so many tokens go at each site, the first one first."""
        done, sizes = 0, TokenCounts()
        for site, way in sorted(ways.items(), key=lambda pair: pair[0].order):
            values = {r.name: r for op in graph.ops for r in op.results}
            region = token_region(graph, values[site.hidden])
            if isinstance(region, str):
                continue
            probabilities = None if self.score == "norm" else values[site.probabilities]
            first = way.score == "first" or (way.score == "auto" and region.leading > 0)
            drop_tokens(region, TokenDrop(way.parts, probabilities, first, way.form == "merge"), sizes, self.name)
            done += 1
        return done

    def sites(self, graph: Graph, stats: Counter[str]) -> Iterator[TokenSite]:
        """Attention layers, each with the first hidden state behind it that all later ones depend on."""
        ops = list(graph.ops)
        whole = sum(map(multiplications, ops)) or 1
        places = [i for i, op in enumerate(ops) if _attention(op)]
        if strange := [n for n in self.layers if not 0 <= n < len(places)]:
            raise InputError(
                f"{self.name}: layers names {strange[0]}, and the model has {len(places)} attention layers.",
                hint="They are counted from 0, in the model's order.",
            )
        for number, (at, until) in enumerate(zip(places, [*places, len(ops)][1:], strict=True)):
            if self.layers and number not in self.layers:
                continue
            reason = NOTHING_BEHIND
            for value in _hidden_behind(ops[at], ops[at + 1 : until]):
                region = token_region(graph, value)
                if isinstance(region, str):
                    # Of the values behind a layer, the sum that leaves it comes first: others tell less.
                    reason = region if reason in (NOTHING_BEHIND, PASSED_BY) else reason
                    continue
                share = sum(map(multiplications, region.ops)) / whole
                if share >= WORTH:
                    name = ops[at].name or ops[at].result.name
                    yield TokenSite(number, name, value.name, ops[at].result.name, region.leading > 0)
                    reason = ""
                else:
                    reason = "hardly anything is computed behind it"
                break
            if reason:
                stats[f"left: {reason}"] += 1


@dataclass(frozen=True)
class TokenSite:
    """One attention layer.

    Args:
        order: Its number.
        name: Of its softmax's node.
        hidden: Name of the hidden state behind it.
        probabilities: Name of the softmax's result.
        leading: Whether outputs read tokens at the front by themselves.
    """

    order: int
    name: str
    hidden: str
    probabilities: str
    leading: bool = False


@dataclass(frozen=True)
class TokenReduction:
    """Choice at a site: "drop" or "merge", how many sixteenths of the tokens go, and of dropped ones the score."""

    form: str
    parts: int
    score: str = "auto"

    def __str__(self) -> str:
        by = {"first": " by the attention of token 0", "all": " by all attention"}
        how = ", the rest merged" if self.form == "merge" else by.get(self.score, "")
        return f"{PARTS - self.parts}/{PARTS}{how}"


class _Probes:
    """Outcome of letting two shares of the tokens go at one site, and what others are taken to do.

    Args:
        parts: The sixteenths that went.
        sqnr: Signal over noise of the outputs then, in decibels; noise grows by a power of the tokens that go.
        seconds: Predicted run time then; it falls evenly.
    """

    def __init__(self, parts: tuple[int, int], sqnr: Sequence[float], seconds: Sequence[float]) -> None:
        low, high = (max(10 ** (-max(min(s, 200.0), -200.0) / 10), 1e-20) for s in sqnr)
        self._first, self._low = parts[0], low
        self._exponent = math.log(max(high, low) / low) / math.log(parts[1] / parts[0])
        self._slope = (seconds[1] - seconds[0]) / (parts[1] - parts[0])
        self._start = seconds[0] - self._slope * parts[0]

    def level(self, parts: int, whole: float) -> Level:
        """The outcome for some sixteenths, where all tokens take so many seconds."""
        return Level(self._low * (parts / self._first) ** self._exponent, whole - self._start - self._slope * parts)


def _lost_rows(graph: Graph, context: Context) -> int:
    rows = max((labelled_rows(sample) for sample in islice(context.calibration or (), 1)), default=0)
    return LOST if run_seconds(graph, context.dims) <= QUICK * max(rows, 1) else 0


def _run_time(before: Graph, after: Graph, context: Context) -> tuple[float, str]:
    """Run time over what it was: measured where the compile measures graphs between passes, else predicted."""
    if context.slowdown is not None:
        return context.slowdown(after) / context.slowdown(before), "measured"
    return run_seconds(after, context.dims) / run_seconds(before, context.dims), "predicted"


def _attention(op: Op) -> bool:
    """True if an op is a softmax of tokens over tokens."""
    shape = op.result.shape if op.is_a("Softmax") else None
    if shape is None or len(shape) not in (3, 4) or op.result.dtype not in FLOATS:
        return False
    return int(op.attrs.get("axis", -1)) in (-1, len(shape) - 1) and same(shape[-1], shape[-2]) and shape[-1] != 1


def _hidden_behind(softmax: Op, ops: Sequence[Op]) -> Iterator[Value]:
    """Values `[batch, tokens, width]` that depend on a softmax, among ops.

    Attention within windows has these in its batch; as many tokens behind it, after patches were merged, are others.
    """
    scores = softmax.result.shape or (None,)
    batch, tokens = scores[0], scores[-1]
    reached = {softmax.result}
    for op in ops:
        if not any(v in reached for v in op.operands):
            continue
        reached |= set(op.results)
        shape = op.results[0].shape
        if shape is not None and len(shape) == 3 and same(shape[1], tokens) and op.results[0].dtype in FLOATS:
            if len(scores) < 4 or same(shape[0], batch):
                yield op.results[0]
