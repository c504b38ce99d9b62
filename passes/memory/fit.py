"""fit: tile the operators around the memory peak, so that large intermediate tensors never exist as a whole."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

from memoptc.ir.core import Graph, clone_op
from memoptc.pass_base import Context, Pass
from memoptc.passes.memory._tile.choose import tilings
from memoptc.passes.memory._tile.costs import Costs
from memoptc.passes.memory._tile.emit import Emitter
from memoptc.passes.memory._tile.equal_extents import equate_joined
from memoptc.passes.memory._tile.estimate import TilingEstimate, bound
from memoptc.passes.memory._tile.fitting import (
    Beginning,
    MadeTiling,
    Round,
    Start,
    grid_for,
    holder_of,
    key_of,
    peaks_of,
)
from memoptc.passes.memory._tile.grid import NotTileableError
from memoptc.passes.memory._tile.marks import REMATERIALISED, TILED
from memoptc.passes.memory._tile.memory_profile import MemoryProfile
from memoptc.passes.memory._tile.remat import Remat, remat_candidates, rematerialise
from memoptc.passes.memory._tile.states import State
from memoptc.passes.memory.split_sums import SAVED, SplitSums
from memoptc.report.model import Decision
from memoptc.runtime.memory.extents import keep_extents
from memoptc.runtime.memory.liveness import label
from memoptc.runtime.memory.loading import further_copy_bytes

SLOWDOWN_MULTIPLES = (8.0, 4.0, 2.0, 1.0, 0.5, 0.25)
"""Multiples of the slowdown allowed that predictions may say, when what comes out is measured."""

LADDER = (0.05, 0.3, 1.0, 10.0)
"""Shares of the run time that tiling may take longer, tried one after the other where a budget is to be kept."""

MISSES = 6
"""Tilings in a row that may turn out worse than predicted before a peak is left as it is."""

WORSE = "more was alive than predicted"

NODE_BYTES = 4 << 10
"""Bytes that a session of onnxruntime needs for one more node, measured over models of 100 to 20,000 nodes."""
BRANCH_NODE_BYTES = 8 << 10
"""The same inside a branch: each graph around it keeps it, too, as text. (12 KiB were measured in a branch of a branch;
but a byte of peak is more than one of need, in an arena that doubles.)"""

STRETCH = 1.5
"""Times as much slowdown as is asked for where no tiling at all fits that: predictions are no nearer than this, and a
peak must not stay as it is because the first step takes 5.2 per cent on paper instead of 5.0."""

SLIGHT = 0.003
"""Share of the run time below which a tiling counts as costing nothing."""


class Fit(Pass):
    """Lower the peak until it fits the budget, or as far as time allows.

    The peak is found on the memory model; tilings of regions around it are compared on paper (bytes alive inside,
    halo computed twice, nodes added), and the best one is made and checked on the model. That goes on until
    the peak fits, or nothing that is worth it is left; then all is done once more with the cheapest tilings that reach
    the same peak. Tile results are concatenated; along a reduction axis they are accumulated, each tile into the result
    of those before it. Large values with a long gap between two uses are rematerialised for the late one first, where
    that lowers the peak.

    Args:
        budget: Bytes that the planned activations shall fit into; 0: as few as possible.
        slowdown: Largest accepted ratio of predicted run times; half as much more where else nothing could be done.
        worth: Share of the peak that one step must save at least.
        moves: Most steps.
        max_remat: Most values to rematerialise.
        ignore: Bytes; without a budget a smaller peak is not worth a node.
        node_weight: How much a byte that nodes take, or weights packed once more, counts against one of activations.
            Nodes cost as much at small extents, where there is less to save, as at those that are planned for.
        caches: Whether tiles that fit into a cache are predicted to move their bytes faster.
    """

    budget: int = 0
    slowdown: float = 1.05
    worth: float = 0.02
    moves: int = 64
    max_remat: int = 6
    ignore: int = 1 << 20
    node_weight: float = 1.0
    caches: bool = True

    def run(self, graph: Graph, context: Context) -> None:
        """Tile, and say what was done."""
        original, graph = graph, graph.clone()
        _one_decoder_per_use(graph)
        equate_joined(graph)
        keep_extents(graph)
        start = MemoryProfile(graph, self._costs(graph, context))
        if not start.curve or start.peak <= (self.budget or self.ignore):
            return
        found = self._fit_graph(Start(graph, context, start))
        split = graph.clone()
        sums: Counter[str] = Counter()
        SplitSums().run(split, replace(context, stats=sums))
        keep_extents(split)
        if sums:
            other = self._fit_graph(Start(split, context, start))
            other.sums = sum(count for kind, count in sums.items() if kind != SAVED)
            found = min(found, other, key=lambda f: (max(f.peak, self.budget), f.seconds, f.sums))
        worth = found.peak <= max(
            self.budget, start.peak * (1 - self.worth)
        )  # what keeps the budget is, however little
        done = bool(found.moves or found.sums) and worth
        if done:
            original.become(found.graph)
            # onnxruntime overwrites an operand only where both shapes are known to be the same, and cannot tell by
            # itself that they are for slices whose ends are computed.
            original.info.states_types = True
        self._report(found, start, context, done=done)

    def _costs(self, graph: Graph, context: Context) -> Costs:
        return Costs(graph, context.dims, caches=self.caches)

    def _fit_graph(self, start: Start) -> Round:
        """Fit one graph, the original or another that computes the same; by measured or by estimated slowdown."""
        if start.context.slowdown is not None:
            found = self._measured(start.context.slowdown, start)
        else:
            allowance = (self.slowdown - 1) * start.profile.seconds
            found = self._within(allowance, start)
            if not found.moves and not self.budget:
                found = self._within(allowance * STRETCH, start)
        found.ended_early = start.is_spent
        return found

    def _measured(self, slowdown: Callable[[Graph], float], start: Start) -> Round:
        """Tile boldly, measure, and be less bold until the run time is right."""
        tried: set[int] = set()
        for boldness in SLOWDOWN_MULTIPLES:
            found = self._within((self.slowdown - 1) * start.profile.seconds * boldness, start)
            if not found.moves:
                return found
            if found.peak in tried:
                continue
            tried.add(found.peak)
            found.measured = slowdown(found.graph)
            start.context.say(f"{found.peak:,} bytes, {found.measured:.2f} times the run time")
            if found.measured <= self.slowdown:
                return found
            start.context.stats["taken back: slower than predicted"] += 1
        return Round(start.graph, peak=start.profile.peak, holder=holder_of(start.profile))

    def _within(self, allowance: float, start: Start) -> Round:
        """The cheapest way into the budget that costs no more than an allowance of seconds, else the smallest peak."""
        if not self.budget:
            return self._cheapest(self._search(start, allowance, self.ignore), start, allowance)
        # What costs most tells whether the budget can be reached at all.
        least = self._search(start, allowance, self.budget)
        if least.peak > self.budget:
            lower = self._search(start, allowance, self.ignore)
            least = lower if lower.peak < least.peak else least
            if least.peak > self.budget:
                return least
        for share in LADDER:
            given = share * start.profile.seconds
            if given < min(allowance, least.seconds):
                for goal in dict.fromkeys((self.budget, self.ignore)):
                    found = self._search(start, given, goal)
                    if found.peak <= self.budget:
                        return self._cheapest(found, start, given)
        return self._cheapest(least, start, allowance)

    def _cheapest(self, found: Round, start: Start, allowance: float) -> Round:
        """Do it once more with the cheapest tilings that reach the same peak."""
        if not found.moves or start.profile.peak * (1 - self.worth) < found.peak:
            return found
        target = max(self.budget, found.peak, self._worthwhile(found))
        second = self._round(start, target, allowance, len(found.remats))
        fewer = target > found.peak or second.seconds <= found.seconds
        return second if second.peak <= target * 1.01 and fewer else found

    def _worthwhile(self, found: Round) -> int:
        """The peak on the way down at which activations and what nodes take were together the fewest bytes."""
        if self.budget:
            return 0
        totals = [(self.node_weight * nodes + peak, peak) for peak, nodes in found.course]
        return min(totals)[1] if totals else 0

    def _search(self, start: Start, allowance: float, goal: int) -> Round:
        """Tile until the peak is down to `goal`: as it is, and with more and more rematerialised while that helps."""
        best = self._round(start, goal, allowance, 0)
        for count in range(1, self.max_remat + 1):
            if best.peak <= goal:
                break
            found = self._round(start, goal, allowance, count)
            if len(found.remats) < count or found.peak > max(goal, best.peak * (1 - self.worth)):
                break
            best = found
        return best

    def _round(self, start: Start, goal: int, allowance: float, count: int) -> Round:
        """Rematerialise the `count` most promising values, then tile until the peak fits.

        Ends: a turn makes one of at most `moves` tilings, or refuses one more of the finitely many on offer.
        """
        key = (count, allowance if count else 0.0)
        begin = start.begun.get(key)
        if begin is None:
            begin = start.begun[key] = self._begin(start, allowance, count)
        found = Round(begin.state.graph, list(begin.remats), seconds=begin.seconds, peak=sys.maxsize)
        return self._tiled(found, begin.state, start, goal, allowance) if len(begin.remats) == count else found

    def _begin(self, start: Start, allowance: float, count: int) -> Beginning:
        """Rematerialise the `count` most promising values, or fewer where no more are worth it."""
        first = start.begun.get((0, 0.0))
        if first is None:
            same = start.profile.graph is start.graph
            first = Beginning(State(start.graph, start.profile) if same else self._state(start.graph, start.context))
        if not count or not remat_candidates(first.state.profile, allowance):
            return first
        graph = start.graph.clone()
        keep_extents(graph, start.graph)
        remats: list[Remat] = []
        for _ in range(count):
            profile = MemoryProfile(graph, self._costs(graph, start.context))
            values = remat_candidates(profile, allowance - sum(remat.seconds for remat in remats))
            if not values:
                break
            remats.append(values[0])
            rematerialise(values[0])
        return Beginning(self._state(graph, start.context), tuple(remats))

    def _state(self, graph: Graph, context: Context) -> State:
        return State(graph, MemoryProfile(graph, self._costs(graph, context)))

    def _tiled(self, found: Round, state: State, start: Start, goal: int, allowance: float) -> Round:
        context = start.context
        refused: set[object] = set()
        misses = 0
        tried: tuple[object, ...] = ()
        last: Graph | None = None
        while True:
            profile = state.profile
            found.graph, found.peak = state.graph, profile.peak
            found.course.append((profile.peak, _bytes_of_nodes(profile)))
            found.holder = holder_of(profile)
            if profile.peak <= goal or len(found.moves) >= self.moves or start.is_spent:
                return self._checked(found)
            slight = SLIGHT * profile.seconds
            offered = (e for e in tilings(state.offers, profile, goal, start.known) if key_of(e) not in refused)
            ranked = self._ranked(offered, profile, goal, allowance - found.seconds, slight)
            if not ranked:
                return self._checked(found)
            for choice in ranked:
                start.known.effort += 4 * len(profile.ops)  # a copy, and what is alive in it
                key = key_of(choice)
                tried = (*tried, key)
                make = partial(self._make, state, choice, last, context)
                move, after, last = start.states.after(state, tried, make)
                if isinstance(move, MadeTiling) and after is not None:
                    state, misses, tried = after, 0, ()
                    found.moves.append(move)
                    found.seconds += max(0.0, choice.seconds)
                    peak = state.profile.peak
                    context.say(f"{peak:,} bytes{f' of {self.budget:,}' if self.budget else ''}")
                    break
                context.stats[f"declined: {move}"] += 1
                refused.add(key)
                if move == WORSE:
                    misses += 1
                    if misses > MISSES:
                        return self._checked(found)
                    break

    def _checked(self, found: Round) -> Round:
        """Refuse copies that were not tiled: onnxruntime's common-subexpression elimination would merge them."""
        if any(REMATERIALISED in op.metadata and TILED not in op.metadata for op in found.graph.ops):
            found.peak = sys.maxsize
        return found

    def _ranked(
        self, every: Iterable[TilingEstimate], profile: MemoryProfile, target: int, allowance: float, slight: float
    ) -> list[TilingEstimate]:
        """The tilings worth trying, best first: the cheapest that reach the target, else the smallest.

        A budget is one of activations; without one, nodes and the weights that each of them packs count as well, once
        for each peak of about this height: all of them must be tiled alike before the highest falls.
        """
        peak, peaks = profile.peak, 0 if self.budget else peaks_of(profile)

        def size(choice: TilingEstimate) -> int:
            each = BRANCH_NODE_BYTES if choice.region.is_symbolic else NODE_BYTES
            added = each * choice.nodes + (choice.count - 1) * choice.region.copied_bytes
            return choice.inside + round(self.node_weight * peaks * added)

        def settled() -> bool:
            """True if no choice with at least this peak can still be among the best."""
            fewer = NODE_BYTES * len(choice.region.ops)  # at most all of its nodes are gone
            floor = bound(choice.region, profile)[2] - round(self.node_weight * peaks * fewer)
            return enough < floor and any(enough < size(e) <= floor for e in fair)

        fair: list[TilingEstimate] = []
        enough = float("inf")
        for choice in every:
            if settled():
                break
            saves = size(choice) <= peak * (1 - self.worth) or choice.peak <= target
            if saves and choice.seconds <= allowance:
                fair.append(choice)
                least = max(size(choice), target)
                enough = min(enough, target if least <= target else least * 1.08)
        near = [e for e in fair if size(e) <= enough]
        # Gains of time are not relied on: of what costs next to nothing, the fewest nodes.
        near.sort(key=lambda e: (e.seconds if e.seconds > slight else 0.0, e.nodes, e.inside))
        rest = sorted((e for e in fair if size(e) > enough), key=lambda e: (size(e), e.seconds))
        return [*near[:3], *rest[:1]]

    def _make(
        self, state: State, choice: TilingEstimate, last: Graph | None, context: Context
    ) -> tuple[MadeTiling | str, State | None, Graph]:
        """Make a tiling in a copy; give why not where it cannot be, or does not help.

        `last` is the copy that was changed before, whose names are not given again.
        """
        profile, copy = state.profile, state.copy(last)
        region = copy.region(choice.region)
        name = f"{label(region.ops[0])} ... {label(region.ops[-1])}"
        count = len(region.ops)
        try:
            grid = grid_for(region, choice.count, profile)
            tiled = Emitter(
                region, grid, profile.costs.extent, overcompute=choice.overcompute, ordered=choice.ordered
            ).run()
        except NotTileableError as reason:
            return str(reason), None, copy.graph
        made = copy.state(self._costs(copy.graph, context), state.spaces)
        after = made.profile
        steps = [after.position[op] for op in tiled.ops if op in after.position]
        here = max(after.curve[min(steps) : max(steps) + 1], default=0)
        little = here >= profile.peak * (1 - self.worth / 2) and after.peak > self.budget
        if little or after.peak > profile.peak:
            return WORSE, None, copy.graph
        return MadeTiling(name, count, tiled.count, profile.peak, here, choice.seconds), made, copy.graph

    def _report(self, found: Round, start: MemoryProfile, context: Context, *, done: bool) -> None:
        if done:
            if found.sums:
                context.stats["products split"] += found.sums
                what = f"{found.sums} products of joined operands became sums of the products of each"
                context.decisions.append(Decision(self.name, what, "they are never joined", 0, "not predicted"))
            for value in found.remats:
                context.stats["rematerialised"] += 1
                what = f"%{value.value.name} rematerialised for {label(value.users[0])} ({len(value.ops)} nodes)"
                cost = f"{value.seconds * 1e3:+.2f} ms predicted"
                context.decisions.append(
                    Decision(self.name, what, "it was alive across the peak, unused", value.gain, cost)
                )
            for move in found.moves:
                context.stats["regions"] += 1
                context.stats["tiles"] += move.tiles
                what = f"{move.ops} nodes in {move.tiles} tiles: {move.name}"
                why = f"{move.before:,} bytes were alive there, now {move.after:,}"
                cost = f"{move.seconds * 1e3:+.2f} ms predicted"
                context.decisions.append(Decision(self.name, what, why, move.before - move.after, cost))
            context.stats["bytes saved"] = start.peak - found.peak
            if found.measured is not None:
                cost = f"{found.measured:.2f} times the original's run time"
                context.decisions.append(Decision(self.name, "measured", "instead of predicted", 0, cost))
        peak, holder = (found.peak, found.holder) if done else (start.peak, holder_of(start))
        if peak > self.budget:
            why = "no tiling that helps fits the slowdown allowed" if self.budget else "nothing else is worth its time"
            if found.ended_early:
                why = "the search ended with the best so far: it had looked at as much as a graph of this size is worth"
            context.decisions.append(Decision(self.name, f"stopped at {peak:,} bytes, at {holder}", why, 0, "none"))


def _bytes_of_nodes(profile: MemoryProfile) -> int:
    """Bytes that the nodes of a graph take, and the weights that their kernels pack."""
    inside = sum(1 for op in profile.ops for region in op.regions.values() for _ in region.walk())
    return BRANCH_NODE_BYTES * inside + sum(NODE_BYTES + further_copy_bytes(op) for op in profile.ops)


def _one_decoder_per_use(graph: Graph) -> None:
    """Give each user of decoded codes a DequantizeLinear of its own, right before it, as onnxruntime does when it looks
    for integer kernels: codes cross the borders of regions then, not floats."""
    for op in list(graph.ops):
        if op.key != "DequantizeLinear" or op.operands[0].tensor is not None or not op.result.has_uses:
            continue
        uses = [(user, i) for user, i in op.result.uses if user.graph is graph and not user.is_return]
        if len(uses) < op.result.use_count:
            continue
        for user, index in uses[1:]:
            copy = clone_op(op, {})
            copy.name, copy.result.name = "", graph.fresh_name(op.result.name)
            graph.insert_before(user, copy)
            user.set_operand(index, copy.result)
        op.move_before(uses[0][0])
