"""Taking back what makes a model worse: the passes whose work costs more than it gains, as measured.

A compile promises that its output needs no more memory than the original, and is no slower than its level allows, in
stock onnxruntime and in `Session`. Where a measurement says otherwise of `Session` alone, the contract names a simpler
tier. Else the responsible passes are found by halving, as verification finds the pass that breaks the numbers: the
graph is compiled again without the last 1, 2, 4, ... of the passes that changed it, until the promise holds; then the
shortest such tail is found, whose first pass is to blame; and the passes behind that one are put back.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from memoptc.allowance import CUT
from memoptc.attempts import Attempt, Attempts, Edit
from memoptc.bisect import Culprit
from memoptc.edits import Everywhere, fewer_copies, fewer_nodes, find_edit, weaker_forms, with_weaker
from memoptc.forms import SIMPLER_FORMS
from memoptc.gate import (
    Broken,
    broken_at_small,
    broken_latency,
    broken_needs,
    granted_at_small,
    more_in_session,
    refusal,
)
from memoptc.ir.diagnostics import GateError
from memoptc.measuring import Bench, Needs, Times
from memoptc.options import Options
from memoptc.pass_base import Pass
from memoptc.pipeline import Pipeline
from memoptc.report.model import Decision
from memoptc.report.verdict import TAKEN_BACK
from memoptc.runtime.contract import Tier, contract_path
from memoptc.runtime.judge import GATES, missing_decibels
from memoptc.runtime.sizes import PREDICTED
from memoptc.runtime.verification import Verification
from memoptc.targets import HALF_FLOATS

ASKED_FOR = ("freeze-runtime", "quantize-io")
"""Passes that are not taken back because they were asked for by name."""

_SIMPLER: Mapping[str, Tier] = {"planned": "arena", "arena": "stock"}
"""The tier of `Session` to run in, where one turned out to break a promise."""


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
            granted = granted_at_small(self.attempts.original.sizes, attempt.predicted)
            return [] if attempt.at_small is None else broken_at_small(before, attempt.at_small, small, granted)

        def weaker(broken: Sequence[Broken]) -> Iterator[Sequence[Edit]]:
            granted = granted_at_small(self.attempts.original.sizes, attempt.predicted)
            excess = max((b.after - b.before) / granted for b in broken)
            return fewer_nodes(list(attempt.pipeline.passes()), attempt.compiled.changed, excess)

        return self._hold(attempt, check, weaker)

    def measure_needs(self, attempt: Attempt) -> list[Broken]:
        """Measure what an attempt needs, unless it was; give the promises that it breaks."""
        assert self.bench is not None
        if attempt.needs is None:
            self.attempts.record(attempt)
            attempt.needs = self.bench.needs(attempt.path, attempt.compiled.interface.encode(self.bench.feed))
        return broken_needs(self.bench.before.sizes, attempt.needs.sizes)

    def measure_times(self, attempt: Attempt) -> list[Broken]:
        """Time an attempt, unless it was; give the promises that it breaks."""
        if attempt.needs is None:
            self.measure_needs(attempt)
        assert self.bench is not None
        assert attempt.needs is not None
        if attempt.times is None:
            encode = attempt.compiled.interface.encode
            attempt.times = self.bench.times(attempt.path, encode(self.bench.feed), attempt.needs)
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

        def weaker(broken: Sequence[Broken]) -> Iterator[Sequence[Edit]]:
            compiled = attempt.compiled
            return weaker_forms(list(attempt.pipeline.passes()), compiled.changed, compiled.passes)

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
            self._measure_tier(attempt, needs)
        return broken

    def _measure_tier(self, attempt: Attempt, needs: Needs) -> None:
        """Measure an attempt in `Session` once more, in the tier that its contract names now."""
        assert self.bench is not None
        feed = attempt.compiled.interface.encode(self.bench.feed)
        attempt.largest, attempt.needs = None, self.bench.needs_in_session(attempt.path, feed, needs)
        if attempt.times is not None:
            attempt.times = self.bench.times_in_session(attempt.path, feed, attempt.needs, attempt.times)

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
        weaker: Callable[[Sequence[Broken]], Iterator[Sequence[Edit]]],
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
        weaker: Callable[[Sequence[Broken]], Iterator[Sequence[Edit]]],
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
        changed = [i for i in first.compiled.changed if not passes[i].kept]
        latest = first
        failed, held = {first.content}, dict[str, Attempt]()
        start = form = None if first.edit is None else first.edit.form

        def in_form(edit: Edit) -> Edit:
            return edit if edit.form is not None else replace(edit, form=form)

        def holds(edit: Edit) -> bool:
            nonlocal latest, form
            edit = in_form(edit)
            self.options.progress(f"taking back {_named(passes, edit)}", None)
            latest = self.attempts.build(pipeline.without(edit.dropped, edit.replaced), form=edit.form)
            latest.edit = edit
            if latest.content in held:
                _take_figures(latest, held[latest.content])
            elif latest.content in failed or check(latest):
                failed.add(latest.content)
                form = edit.form  # chosen anew, the form that broke the promise would break it again without passes
                return False
            held[latest.content] = latest
            return True

        simpler = SIMPLER_FORMS[first.choice.form.name] if self.options.form == "auto" else ()
        edit = find_edit(changed, holds, chain(([Edit(form=name)] for name in simpler), weaker(broken)), late=ended)
        if edit is None:  # what is taken back of one pass a later one does again, which had nothing left to do
            everywhere = Everywhere(passes)
            edit = find_edit(changed, lambda e: holds(everywhere(e)), iter(()), late=ended)
            edit = None if edit is None else everywhere(edit)
        if edit is None and (also := _changed_by(latest, passes, changed)):
            edit = find_edit(also, lambda e: holds(everywhere(e)), iter(()), late=ended)
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
            if latest.content in held:
                _take_figures(latest, held[latest.content])
            else:
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


_STRICTER = 2
"""How often a pass is made stricter."""


def with_proof(
    attempts: Attempts,
    first: Attempt,
    verify: Callable[[Attempt], Verification],
    find_culprit: Callable[[Pipeline], Culprit] | None = None,
) -> Attempt:
    """Give an attempt whose proof holds: with stricter passes where there are any, twice, then with weaker ones.

    Args:
        attempts: Makes attempts.
        first: What failed, perhaps.
        verify: Compares an attempt with the original.
        find_culprit: Finds the pass to leave out where none of them has a weaker form. Only for originals that round to
            codes: there a sum in another order may become another code, without any fault in the pass.

    Returns:
        The attempt, with what was taken back; `first`, whose files may be gone, where no weaker passes hold.
    """
    latest, form = first, None if first.edit is None else first.edit.form
    decisions, warnings = list(first.taken_back[0]), list(first.taken_back[1])
    tried = Counter[int]()
    while (found := verify(latest)).failed:
        passes = list(latest.pipeline.passes())
        options = attempts.compilation.options
        missing = missing_decibels(found.outputs, GATES.get(options.target), options.min_sqnr)
        weaker: dict[int, Pass] = {}
        for i in latest.compiled.changed:
            # by what is missing at first, then by as much as there is
            found_stricter = passes[i].stricter(None if tried[i] else missing) if tried[i] < _STRICTER else None
            if found_stricter is not None:
                weaker[i] = found_stricter
                tried[i] += 1 if missing is not None else _STRICTER
        if not weaker:
            weaker = {i: pass_ for i in latest.compiled.changed if (pass_ := passes[i].weaker()) is not None}
        dropped: list[int] = []
        if not weaker and find_culprit is not None:
            culprit = find_culprit(latest.pipeline).pass_
            dropped = [i for i in latest.compiled.changed if passes[i] is culprit]
        if not weaker and not dropped:
            return first
        told = [f"{passes[i]} (now {pass_})" for i, pass_ in weaker.items()] + [str(passes[i]) for i in dropped]
        why = f"verification fails: {found.worst}"
        decisions += [Decision(TAKEN_BACK, what, f"with it, {why}") for what in told]
        warnings.append(f"Taken back: {', '.join(told)}. With it, {why}; --force writes it all the same.")
        latest = attempts.build(latest.pipeline.without(dropped, weaker), form=form)
        latest.edit, latest.taken_back = first.edit, (decisions, warnings)
    if latest is not first:
        latest.decisions += decisions
        latest.warnings += warnings
    return latest


def _changed_by(latest: Attempt, passes: Sequence[Pass], changed: Sequence[int]) -> list[int]:
    """Positions of passes that changed the graph at first or in the latest attempt; empty where these are no others.

    A pass may find its work only when another one, which did it in a better way, is taken back.
    """
    ran = list(latest.pipeline.passes())
    names = {passes[i].name for i in changed} | {ran[i].name for i in latest.compiled.changed}
    found = [i for i, p in enumerate(passes) if p.name in names and not p.kept]
    return found if {passes[i].name for i in found} - {passes[i].name for i in changed} else []


def _take_figures(attempt: Attempt, same: Attempt) -> None:
    """Take over what was measured of an attempt that is written alike, and the tier of `Session` that it came to."""
    attempt.needs, attempt.largest, attempt.times = same.needs, same.largest, same.times
    if same.recorded:
        attempt.contract, attempt.recorded = same.contract, True
        attempt.contract.save(contract_path(attempt.path))
    attempt.decisions += [d for d in same.decisions if d.step == TAKEN_BACK]
    attempt.warnings += [w for w in same.warnings if w not in attempt.warnings]


def _named(passes: Sequence[Pass], edit: Edit) -> str:
    names = [passes[i].name for i in sorted({*edit.dropped, *edit.replaced})]
    return ", ".join([*names, f"the form, now {edit.form}"] if edit.form else names)
