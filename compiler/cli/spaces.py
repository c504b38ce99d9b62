"""`memoptc plan --spaces`: buffers placed in several memories, with the moves between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memoptc.runtime.memory.liveness import Liveness
    from memoptc.runtime.memory.spaces import Space, SpacedPlan

STEP = 10
"""Cost of a byte in a memory over that in the one named before it, where none is stated."""


def parse_spaces(text: str) -> list[Space]:
    """Read memories, fastest first, such as `sram=512KiB,dram=8MiB` or, with the cost of a byte, `sram=512KiB@1`.

    Raises:
        InputError: an entry cannot be read, or two have one name.
    """
    from memoptc.ir.diagnostics import InputError
    from memoptc.runtime.memory.spaces import Space
    from memoptc.runtime.sizes import parse_bytes

    spaces: list[Space] = []
    cost = 1.0
    for entry in text.split(","):
        name, _, rest = entry.strip().partition("=")
        size, _, stated = rest.partition("@")
        refusal = InputError(
            f"--spaces cannot read {entry!r}.", hint="Write NAME=SIZE or NAME=SIZE@COST, such as sram=512KiB@1."
        )
        if not name or any(name == s.name for s in spaces):
            raise refusal
        try:
            cost = float(stated) if stated else cost
            spaces.append(Space(name, parse_bytes(size), cost))
        except ValueError:
            raise refusal from None
        cost *= STEP
    return spaces


def plan_spaces(found: Liveness, spaces: list[Space]) -> SpacedPlan:
    """Place the storages of a graph in several memories.

    Raises:
        BudgetError: they do not fit.
    """
    from memoptc.runtime.memory.accesses import spaced_problem
    from memoptc.runtime.memory.space_allocation import allocate_spaces

    return allocate_spaces(spaced_problem(found), spaces)


def print_spaces(plan: SpacedPlan, top: int) -> None:
    """Print what each memory holds and serves, and the largest moves."""
    from rich.markup import escape
    from rich.table import Table

    from memoptc.cli.show import result_console
    from memoptc.report.rows import size

    console = result_console()
    served = [0] * len(plan.spaces)
    for stays, accesses in zip(plan.stays, plan.problem.accesses, strict=True):
        for access in accesses:
            served[next(s.space for s in stays if s.first <= access.step <= s.last)] += access.bytes
    table = Table("memory", "size", "arena", "accesses", "cost of a byte", title="memories", title_justify="left")
    for space, arena, count in zip(plan.spaces, plan.arena_bytes, served, strict=True):
        whole = "" if space.size is None else size(space.size)
        table.add_row(escape(space.name), whole, size(arena), size(count), f"{space.cost_per_byte:g}")
    console.print(table)
    share = f", {plan.move_cost / plan.cost:.1%} of it for moves" if plan.cost else ""
    console.print(f"{len(plan.moves)} moves; cost {plan.cost:g}{share}", markup=False)
    if not plan.moves:
        return
    moves = Table("before step", "buffer", "bytes", "from", "to", title="largest moves", title_justify="left")
    for move in sorted(plan.moves, key=lambda m: -m.bytes)[:top]:
        names = (escape(plan.spaces[i].name) for i in (move.source, move.target))
        moves.add_row(str(move.step), escape(plan.problem.buffers[move.buffer].name), size(move.bytes), *names)
    console.print(moves)
