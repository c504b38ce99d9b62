"""Taking back what makes a model worse: the passes whose work costs more than it gains, as measured.

A compile promises that its output needs no more memory than the original, and is no slower than its level allows, in
stock onnxruntime and in `Session`. Where a measurement says otherwise of `Session` alone, the contract names a simpler
tier. Else the responsible passes are found by halving, as verification finds the pass that breaks the numbers: the
graph is compiled again without the last 1, 2, 4, ... of the passes that changed it, until the promise holds; then the
shortest such tail is found, whose first pass is to blame; and the passes behind that one are put back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from memoptc.allowance import CUT
from memoptc.attempts import Attempt, Attempts, Edit
from memoptc.forms import SIMPLER_FORMS
from memoptc.gate import SMALL, Broken, broken_at_small, broken_latency, broken_needs, more_in_session, refusal
from memoptc.ir.diagnostics import GateError
from memoptc.measuring import Bench, Times
from memoptc.options import Options
from memoptc.pass_base import Pass
from memoptc.report.model import Decision
from memoptc.report.verdict import TAKEN_BACK
from memoptc.runtime.contract import Tier, contract_path
from memoptc.runtime.sizes import PREDICTED
from memoptc.runtime.verification import Verification
from memoptc.targets import HALF_FLOATS

ASKED_FOR = ("freeze-runtime", "quantize-io")
KEPT = ("lower", "plan-memory", "inline-functions", *ASKED_FOR)
"""Passes that are not taken back: without them there is no file, or not what was asked for by name."""

MOST_ATTEMPTS = 16
"""Compiles after which the search settles for the best that is known to hold."""

_HALFWAY = 0.5

_SIMPLER: Mapping[str, Tier] = {"planned": "arena", "arena": "stock"}
"""The tier of `Session` to run in, where one turned out to break a promise."""


def find_edit(
    changed: Sequence[int],
    holds: Callable[[Edit], bool],
    weaker: Iterable[Edit],
    most: int = MOST_ATTEMPTS,
    late: Callable[[], bool] = lambda: False,
) -> Edit | None:
    """Find an edit of a pipeline after which a promise holds, and that drops few passes.

    Taken for granted is what bisection takes for granted: that with more passes dropped it still holds.

    Args:
        changed: Positions of the passes that may be dropped, in the order in which they run.
        holds: Whether the promise holds after an edit; called at most once for each, and about `most` times in all.
        weaker: Edits to try before any pass is dropped.
        most: When to stop looking for a smaller edit than is known.
        late: Whether to stop for another reason, such as time; while nothing is known that holds, all passes are
            dropped at once then.

    Returns:
        The edit; `None` when not even dropping all passes helps.
    """
    known: dict[frozenset[int], bool] = {frozenset(): False}

    def without(dropped: frozenset[int]) -> bool:
        if dropped not in known:
            known[dropped] = holds(Edit(dropped))
        return known[dropped]

    for edit in weaker:
        if holds(edit):
            return edit
    culprits: frozenset[int] = frozenset()
    while True:
        rest = [c for c in changed if c not in culprits]

        def tail(count: int, rest: Sequence[int] = rest, culprits: frozenset[int] = culprits) -> frozenset[int]:
            return culprits | frozenset(rest[len(rest) - count :])

        low, high = -1, 0
        while not without(tail(high)):
            if high >= len(rest):
                return None
            low, high = high, len(rest) if late() else min(max(1, 2 * high), len(rest))
        while high - low > 1 and len(known) < most and not late():
            middle = (low + high) // 2
            low, high = (low, middle) if without(tail(middle)) else (middle, high)
        if high == 0 or len(known) >= most or late():
            return Edit(tail(high))
        culprits |= {rest[len(rest) - high]}


NODE_WEIGHTS = (8.0, 64.0, 512.0)
"""How much more the bytes of nodes shall count, tried one after the other."""


def weaker_forms(passes: Sequence[Pass], changed: Sequence[int], asked: float, found: float) -> Iterator[Edit]:
    """Give edits that let passes slow a model down by less, where they take a bound on that.

    Args:
        passes: The passes of the pipeline.
        changed: Positions of those that changed the graph.
        asked: Slowdown that is allowed.
        found: Slowdown that was measured.
    """
    bounded = {i: p for i, p in enumerate(passes) if i in changed and _slowdown(p) > 1}
    if bounded and asked > 1:
        share = min(_HALFWAY, (asked - 1) / max(found - 1, 1e-6))
        yield Edit(replaced={i: _with_slowdown(p, 1 + share * (_slowdown(p) - 1)) for i, p in bounded.items()})
    free = {i: _with_slowdown(p, 1.0) for i, p in bounded.items()}
    if free:
        yield Edit(replaced=free)
    for factor in NODE_WEIGHTS[:2]:  # what costs nothing on paper does in fact: fewer of it
        lighter = _weighing(free, factor)
        if lighter:
            yield Edit(replaced={**free, **lighter})


def fewer_nodes(passes: Sequence[Pass], changed: Sequence[int], excess: float) -> Iterator[Edit]:
    """Give edits with which passes make fewer and fewer nodes, where they take a weight of these.

    Args:
        passes: The passes of the pipeline.
        changed: Positions of those that changed the graph.
        excess: Growth over the growth that is allowed; weights below are not tried.
    """
    for factor in (w for w in NODE_WEIGHTS if w >= min(excess, NODE_WEIGHTS[-1])):
        lighter = _weighing({i: p for i, p in enumerate(passes) if i in changed}, factor)
        if lighter:
            yield Edit(replaced=lighter)


def _weighing(passes: Mapping[int, Pass], factor: float) -> dict[int, Pass]:
    """Give those passes that take a weight of nodes, with so many times theirs."""
    weights = {i: getattr(p, "node_weight", None) for i, p in passes.items()}
    return {i: _replaced(passes[i], node_weight=factor * w) for i, w in weights.items() if isinstance(w, int | float)}


def fewer_copies(attempt: Attempt) -> Iterator[Edit]:
    """Give an edit with which weights stay codes in memory, where passes let onnxruntime decode them while it loads."""
    passes = list(attempt.pipeline.passes())
    copying = [i for i in attempt.compiled.changed if getattr(passes[i], "decode", "") == "load"]
    if copying:
        yield Edit(replaced={i: _replaced(passes[i], decode="run") for i in copying})


def with_weaker(edit: Edit, passes: Sequence[Pass]) -> Edit | None:
    """Give an edit with weaker passes in place of those that are dropped; `None` where none of them has one."""
    found = {i: weaker for i in edit.dropped if (weaker := passes[i].weaker()) is not None}
    return replace(edit, dropped=edit.dropped - found.keys(), replaced={**edit.replaced, **found}) if found else None


def _slowdown(pass_: Pass) -> float:
    found = getattr(pass_, "slowdown", 0.0)
    return float(found) if isinstance(found, int | float) else 0.0


def _with_slowdown(pass_: Pass, slowdown: float) -> Pass:
    return _replaced(pass_, slowdown=round(slowdown, 3))


def _replaced(pass_: Pass, **options: float | str) -> Pass:
    of: Any = pass_
    changed: Pass = replace(of, **options)
    return changed


@dataclass
class Keeper:
    """Holds a compile to what it promises: need and latency.

    Args:
        attempts: Makes attempts.
        bench: Measures them; not needed for predictions.
    """

    attempts: Attempts
    bench: Bench | None = None

    @property
    def options(self) -> Options:
        """The options in force."""
        return self.attempts.compilation.options

    def hold_predictions(self, attempt: Attempt) -> Attempt:
        """As `hold_needs`, by what the memory model predicts instead of what is measured.

        Not where activations got a budget, which small models keep by more nodes; nor for half floats, whose kernels
        the memory model does not know.

        Raises:
            GateError: there is none.
        """
        options = self.options
        if options.budget.activations is not None or options.target in HALF_FLOATS:
            return attempt

        def check(attempt: Attempt) -> list[Broken]:
            after = attempt.predicted
            before = self.attempts.original.sizes
            return [] if after is None else broken_needs(before, after, "predicted ", PREDICTED)

        return self._hold(attempt, check, lambda broken: fewer_copies(attempt))

    def hold_small(self, attempt: Attempt) -> Attempt:
        """As `hold_predictions`, at the smallest extents of a dynamic model, which nobody measures.

        Nodes that save much at large extents take as much at small ones. Passes that can weigh nodes make fewer first.

        Raises:
            GateError: there is none.
        """
        small, before = self.attempts.compilation.data.small, self.attempts.at_small
        if small is None or before is None or self.options.budget.activations is not None:
            return attempt

        def check(attempt: Attempt) -> list[Broken]:
            return [] if attempt.at_small is None else broken_at_small(before, attempt.at_small, small)

        def weaker(broken: Sequence[Broken]) -> Iterator[Edit]:
            excess = max((b.after - b.before) / SMALL for b in broken)
            return fewer_nodes(list(attempt.pipeline.passes()), attempt.compiled.changed, excess)

        return self._hold(attempt, check, weaker)

    def measure_needs(self, attempt: Attempt) -> list[Broken]:
        """Measure what an attempt needs, unless it was; give the promises that it breaks."""
        assert self.bench is not None
        if attempt.needs is None:
            self.attempts.record(attempt)
            attempt.needs = self.bench.needs(attempt.path, attempt.compiled.border.encode(self.bench.feed))
        return broken_needs(self.bench.before.sizes, attempt.needs.sizes)

    def measure_times(self, attempt: Attempt) -> list[Broken]:
        """Time an attempt, unless it was; give the promises that it breaks."""
        if attempt.needs is None:
            self.measure_needs(attempt)
        assert self.bench is not None
        assert attempt.needs is not None
        if attempt.times is None:
            encode = attempt.compiled.border.encode
            searching = attempt.edit is not None
            attempt.times = self.bench.times(attempt.path, encode(self.bench.feed), attempt.needs, searching=searching)
            if self.bench.step is not None:
                step = self.bench.step_times(attempt.path, encode(self.bench.step), attempt.needs)
                attempt.times = replace(attempt.times, step=step)
        return broken_latency(attempt.times, self.bench.bound)

    def hold_needs(self, attempt: Attempt) -> Attempt:
        """Give an attempt that needs no more than the original: this one, or one without what made it worse.

        Raises:
            GateError: there is none.
        """
        return self._hold(
            attempt, lambda a: self._in_tiers(a, self.measure_needs), lambda broken: fewer_copies(attempt)
        )

    def hold_times(self, attempt: Attempt) -> Attempt:
        """Give an attempt that is as fast as promised, and needs no more than the original.

        Raises:
            GateError: there is none.
        """

        def check(attempt: Attempt) -> list[Broken]:
            return self._in_tiers(attempt, lambda a: self.measure_needs(a) or self.measure_times(a))

        def weaker(broken: Sequence[Broken]) -> Iterator[Edit]:
            passes = list(attempt.pipeline.passes())
            return weaker_forms(passes, attempt.compiled.changed, broken[0].bound, broken[0].ratio)

        return self._hold(attempt, check, weaker)

    def _in_tiers(self, attempt: Attempt, check: Callable[[Attempt], list[Broken]]) -> list[Broken]:
        """Check an attempt; as long as only `Session` breaks a promise, again in its next simpler tier.

        So it is, too, where that needs more than stock onnxruntime, which the tier `"stock"` never does.
        """
        while (broken := check(attempt) or self._more_in_tier(attempt)) and all(b.in_session for b in broken):
            needs = attempt.needs
            simpler = None if needs is None or needs.session is None else _SIMPLER.get(needs.session.tier)
            if simpler is None or self.options.level < 1 or self.options.force:
                break
            assert needs is not None
            assert needs.session is not None
            why, tier = " and ".join(b.clause() for b in broken), needs.session.tier
            attempt.contract = replace(attempt.contract, tier=simpler)
            attempt.contract.save(contract_path(attempt.path))
            attempt.decisions.append(Decision(TAKEN_BACK, f"the tier {tier} of Session", f"with it, {why}"))
            text = f"Taken back: the tier {tier} of Session, which runs in the tier {simpler} instead. With it, {why}"
            attempt.warnings.append(f"{text}; --force writes it all the same.")
            attempt.needs = attempt.largest = attempt.times = None
        return broken

    def _more_in_tier(self, attempt: Attempt) -> list[Broken]:
        needs = attempt.needs
        found = None if needs is None else needs.session
        return more_in_session(needs) if needs is not None and found is not None and found.tier in _SIMPLER else []

    def finish(self, attempt: Attempt) -> Times:
        """Measure what was not yet; with `--force`, say which promises are broken."""
        broken = [*self.measure_needs(attempt), *self.measure_times(attempt)]
        if self.options.force and self.options.level >= 1:
            attempt.warnings += [f"{b.sentence()} Written all the same (--force)." for b in broken]
        assert attempt.times is not None
        return attempt.times

    def _hold(
        self,
        first: Attempt,
        check: Callable[[Attempt], list[Broken]],
        weaker: Callable[[Sequence[Broken]], Iterator[Edit]],
    ) -> Attempt:
        begun = time.monotonic()
        if self.options.level < 1 or self.options.force or not (broken := check(first)):
            return first
        allowance = self.attempts.allowance
        if self.bench is not None:
            allowance.grant(time.monotonic() - begun)
        with allowance.search(measured=self.bench is not None) as late:
            return self._search(first, check, weaker, broken, late)

    def _search(
        self,
        first: Attempt,
        check: Callable[[Attempt], list[Broken]],
        weaker: Callable[[Sequence[Broken]], Iterator[Edit]],
        broken: Sequence[Broken],
        late: Callable[[], bool],
    ) -> Attempt:
        """Give an attempt that keeps the promise, without the first that broke it.

        Raises:
            GateError: there is none.
        """
        cut = False

        def ended() -> bool:
            nonlocal cut
            cut = cut or late()
            return cut

        pipeline, passes = first.pipeline, list(first.pipeline.passes())
        changed = [i for i in first.compiled.changed if passes[i].name not in KEPT]
        latest = first
        failed = {first.content}
        start = form = None if first.edit is None else first.edit.form

        def in_form(edit: Edit) -> Edit:
            return edit if edit.form is not None else replace(edit, form=form)

        def holds(edit: Edit) -> bool:
            nonlocal latest, form
            edit = in_form(edit)
            self.options.progress(f"taking back {_named(passes, edit)}", None)
            latest = self.attempts.build(pipeline.without(edit.dropped, edit.replaced), form=edit.form)
            latest.edit = edit
            if latest.content in failed or check(latest):
                failed.add(latest.content)
                form = edit.form  # chosen anew, the form that broke the promise would break it again without passes
                return False
            return True

        simpler = SIMPLER_FORMS[first.choice.form.name] if self.options.form == "auto" else ()
        edit = find_edit(changed, holds, chain((Edit(form=name) for name in simpler), weaker(broken)), late=ended)
        if edit is None:  # what is taken back of one pass a later one does again, which had nothing left to do
            everywhere = _Everywhere(passes)
            edit = find_edit(changed, lambda e: holds(everywhere(e)), iter(()), late=ended)
            edit = None if edit is None else everywhere(edit)
        if edit is None:
            kept = {passes[i].name: None for i in first.compiled.changed if passes[i].name in ASKED_FOR}
            raise GateError(*refusal(broken, list(kept)))
        edit, form = in_form(edit), start
        passes_alone = replace(edit, form=start) if (edit.dropped or edit.replaced) and edit.form != start else None
        if passes_alone is not None and not ended() and holds(passes_alone):
            edit = passes_alone
        softer = with_weaker(edit, passes)
        if softer is not None and not ended() and holds(softer):
            edit = softer
        if latest.edit != edit:
            latest = self.attempts.build(pipeline.without(edit.dropped, edit.replaced), form=edit.form)
            latest.edit = edit
            check(latest)
        self._tell(first, latest, broken, passes, edit)
        if cut:
            latest.warnings.append(CUT)
        return latest

    def _tell(
        self, first: Attempt, last: Attempt, broken: Sequence[Broken], passes: Sequence[Pass], edit: Edit
    ) -> None:
        """Say in the report what was taken back, and why."""
        gain = None
        if first.needs is not None and last.needs is not None:
            gain = first.needs.stock.need_bytes - last.needs.stock.need_bytes
        elif first.predicted is not None and last.predicted is not None:
            gain = first.predicted[0] - last.predicted[0]
        why = " and ".join(b.clause() for b in broken)
        told = [str(passes[i]) for i in sorted(edit.dropped)]
        told += [f"{passes[i]} (now {edit.replaced[i]})" for i in sorted(edit.replaced)]
        chosen = first.choice.form.name
        told += [f"the form {chosen} (now {edit.form})"] if edit.form not in (None, chosen) else []
        text = f"Taken back: {', '.join(told)}. With it, {why}; --force writes it all the same."
        decisions, warnings = first.taken_back
        new = [Decision(TAKEN_BACK, what, f"with it, {why}", gain) for what in told]
        last.taken_back = ([*decisions, *new], [*warnings, text])
        last.decisions += last.taken_back[0]
        last.warnings += last.taken_back[1]


def with_proof(attempts: Attempts, first: Attempt, verify: Callable[[Attempt], Verification]) -> Attempt:
    """Give an attempt whose proof holds: with stricter passes where there are any, once, then with weaker ones.

    Args:
        attempts: Makes attempts.
        first: What failed, perhaps.
        verify: Compares an attempt with the original.

    Returns:
        The attempt, with what was taken back; `first`, whose files may be gone, where no weaker passes hold.
    """
    latest, form = first, None if first.edit is None else first.edit.form
    decisions, warnings = list(first.taken_back[0]), list(first.taken_back[1])
    stricter = frozenset[int]()
    while (found := verify(latest)).failed:
        passes = list(latest.pipeline.passes())
        changed = [i for i in latest.compiled.changed if i not in stricter]
        weaker = {i: pass_ for i in changed if (pass_ := passes[i].stricter()) is not None}
        stricter |= weaker.keys()
        if not weaker:
            weaker = {i: pass_ for i in latest.compiled.changed if (pass_ := passes[i].weaker()) is not None}
        if not weaker:
            return first
        told = [f"{passes[i]} (now {pass_})" for i, pass_ in weaker.items()]
        why = f"verification fails: {found.worst}"
        decisions += [Decision(TAKEN_BACK, what, f"with it, {why}") for what in told]
        warnings.append(f"Taken back: {', '.join(told)}. With it, {why}; --force writes it all the same.")
        latest = attempts.build(latest.pipeline.without((), weaker), form=form)
        latest.edit, latest.taken_back = first.edit, (decisions, warnings)
    if latest is not first:
        latest.decisions += decisions
        latest.warnings += warnings
    return latest


@dataclass(frozen=True)
class _Everywhere:
    """Drops passes wherever their names stand in a pipeline."""

    passes: Sequence[Pass]

    def __call__(self, edit: Edit) -> Edit:
        names = {self.passes[i].name for i in edit.dropped}
        return Edit(frozenset(i for i, p in enumerate(self.passes) if p.name in names))


def _named(passes: Sequence[Pass], edit: Edit) -> str:
    names = [passes[i].name for i in sorted({*edit.dropped, *edit.replaced})]
    return ", ".join([*names, f"the form, now {edit.form}"] if edit.form else names)
