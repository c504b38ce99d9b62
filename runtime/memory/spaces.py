"""Several memories: which tensor lies where and when, and what is moved; the plan and its check.

A device often has a small fast memory and a large slow one, say 512 KB of SRAM and 8 MB of DRAM. A buffer may then
spend parts of its life in different spaces: its life is a row of *stays*, and between two stays the bytes are moved,
out of the way (a spill) or back before they are used (a prefetch). Moves of a step happen before that step runs, all
at once: during them a moved buffer occupies both places. So with step t come two moments: its moves, and its run.

`allocate_spaces` in `memoptc.runtime.memory.space_allocation` makes such plans:

    sram, dram = Space("SRAM", 512 << 10, cost_per_byte=1), Space("DRAM", 8 << 20, cost_per_byte=10)
    plan = allocate_spaces(SpacedProblem(buffers, accesses), (sram, dram))
    for move in plan.moves:
        print(move.step, move.buffer, move.source, "to", move.target, move.bytes)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from memoptc.ir.diagnostics import InputError, InternalError
from memoptc.runtime.memory.plan import Plan, check
from memoptc.runtime.memory.problem import Buffer, Problem


@dataclass(frozen=True)
class Space:
    """A memory space: its capacity and its cost per byte.

    Args:
        name: Its name.
        size: Bytes it has, or `None` for as many as needed.
        cost_per_byte: What reading or writing a byte of it costs, in any unit (time, energy).

    Raises:
        InputError: a number is negative.
    """

    name: str
    size: int | None
    cost_per_byte: float

    def __post_init__(self) -> None:
        if (self.size is not None and self.size < 0) or not 0 <= self.cost_per_byte < float("inf"):
            raise InputError(f"Space {self.name!r} has size {self.size} and cost {self.cost_per_byte} per byte.")


@dataclass(frozen=True)
class Access:
    """A read or a write of a buffer.

    Args:
        step: When.
        bytes: How many; more than the buffer has, where a kernel goes over it several times.
    """

    step: int
    bytes: int


@dataclass(frozen=True)
class SpacedProblem:
    """Buffers to place in several memories.

    Args:
        buffers: The buffers; none has a fixed offset.
        accesses: Those of each buffer, in any order.

    Raises:
        InputError: a buffer is accessed when it is not alive, or has a fixed offset.
    """

    buffers: tuple[Buffer, ...]
    accesses: tuple[tuple[Access, ...], ...]

    def __post_init__(self) -> None:
        if len(self.buffers) != len(self.accesses):
            raise InputError(f"There are {len(self.buffers)} buffers, and accesses of {len(self.accesses)}.")
        for b, accesses in zip(self.buffers, self.accesses, strict=True):
            if b.offset is not None:
                raise InputError(f"Buffer {b.name!r} has a fixed offset, but no fixed space.")
            for access in accesses:
                if not b.first <= access.step <= b.last or access.bytes < 0:
                    raise InputError(
                        f"Buffer {b.name!r} lives from {b.first} to {b.last} and cannot be accessed at {access.step}, "
                        f"{access.bytes} bytes."
                    )


@dataclass(frozen=True)
class Stay:
    """A part of a buffer's life, in one place.

    Args:
        space: Index of the space.
        offset: Bytes from its start.
        first: First step at which the buffer is there.
        last: Last step at which it is.
    """

    space: int
    offset: int
    first: int
    last: int


@dataclass(frozen=True)
class Move:
    """Bytes to copy before a step runs. All moves of a step may be done in any order.

    Args:
        step: The step.
        buffer: Index of the buffer.
        source: Index of the space that it leaves; `source_offset` its place there.
        target: Index of the space that it goes to; `target_offset` its place there.
        bytes: Its size.
    """

    step: int
    buffer: int
    source: int
    source_offset: int
    target: int
    target_offset: int
    bytes: int


@dataclass(frozen=True)
class SpacedPlan:
    """Placement of each buffer at each step of its life, and the moves that takes.

    Args:
        problem: What was asked.
        spaces: The memories.
        stays: Of each buffer, in order of time.
        moves: In order of steps.
    """

    problem: SpacedProblem
    spaces: tuple[Space, ...]
    stays: tuple[tuple[Stay, ...], ...]
    moves: tuple[Move, ...]

    @property
    def access_cost(self) -> float:
        """Cost of all accesses, where they find their buffers."""
        cost = 0.0
        for stays, accesses in zip(self.stays, self.problem.accesses, strict=True):
            for access in accesses:
                space = next(s.space for s in stays if s.first <= access.step <= s.last)
                cost += access.bytes * self.spaces[space].cost_per_byte
        return cost

    @property
    def move_cost(self) -> float:
        """Cost of all moves: a read at the source and a write at the target."""
        per_byte = [s.cost_per_byte for s in self.spaces]
        return sum((m.bytes * (per_byte[m.source] + per_byte[m.target]) for m in self.moves), 0.0)

    @property
    def cost(self) -> float:
        """Cost of accesses and moves."""
        return self.access_cost + self.move_cost

    @property
    def arena_bytes(self) -> tuple[int, ...]:
        """Bytes needed of each space."""
        arenas = [0] * len(self.spaces)
        for b, stays in zip(self.problem.buffers, self.stays, strict=True):
            for stay in stays:
                arenas[stay.space] = max(arenas[stay.space], stay.offset + b.size)
        return tuple(arenas)

    def to_json(self) -> dict[str, Any]:
        """Give the plan as plain values; spaces and buffers by name."""
        names, buffers = [s.name for s in self.spaces], self.problem.buffers
        return {
            "version": 1,
            "cost": self.cost,
            "move_cost": self.move_cost,
            "spaces": [
                {"name": s.name, "size": s.size, "cost_per_byte": s.cost_per_byte, "arena_bytes": arena}
                for s, arena in zip(self.spaces, self.arena_bytes, strict=True)
            ],
            "buffers": [
                {
                    "name": b.name,
                    "size": b.size,
                    "stays": [
                        {"space": names[s.space], "offset": s.offset, "first": s.first, "last": s.last} for s in stays
                    ],
                }
                for b, stays in zip(buffers, self.stays, strict=True)
            ],
            "moves": [
                {
                    "step": m.step,
                    "buffer": buffers[m.buffer].name,
                    "source": names[m.source],
                    "source_offset": m.source_offset,
                    "target": names[m.target],
                    "target_offset": m.target_offset,
                    "bytes": m.bytes,
                }
                for m in self.moves
            ],
        }


def moves_between(problem: SpacedProblem, stays: Sequence[Sequence[Stay]]) -> tuple[Move, ...]:
    """The moves that stays imply, in order of steps."""
    moves = [
        Move(after.first, index, before.space, before.offset, after.space, after.offset, problem.buffers[index].size)
        for index, row in enumerate(stays)
        for before, after in pairwise(row)
    ]
    return tuple(sorted(moves, key=lambda m: (m.step, m.buffer)))


def pieces(problem: SpacedProblem, stays: Sequence[Sequence[Stay]], space: int) -> list[tuple[int, int, Buffer]]:
    """Content of one space: (buffer, number of its stay, what to place), with moments as steps.

    Moment 2t is the moves of step t, moment 2t + 1 its run. A stay that a move begins or ends occupies its place
    during that move, too.
    """
    found = []
    for index, row in enumerate(stays):
        b = problem.buffers[index]
        for number, stay in enumerate(row):
            if stay.space == space:
                first = 2 * stay.first + (number == 0)
                last = 2 * stay.last + 1 + (number < len(row) - 1)
                found.append((index, number, Buffer(b.name, b.size, first, last, b.alignment)))
    return found


def check_spaces(plan: SpacedPlan) -> None:
    """Check a plan: every buffer is somewhere at every step of its life, moved whenever its place changes.

    In each space, what is there at one moment lies apart, aligned, and within its size (`check`, on the stays with the
    moves at their ends). The moves are exactly those that the stays imply; so at each access the bytes are where the
    plan says, and the moves that bring them come before.

    Raises:
        InternalError: something does not hold; the message names the buffer.
    """
    problem = plan.problem
    if len(plan.stays) != len(problem.buffers):
        raise InternalError(f"the plan places {len(plan.stays)} of {len(problem.buffers)} buffers")
    for b, row in zip(problem.buffers, plan.stays, strict=True):
        steps = [(s.first, s.last) for s in row]
        whole = steps and steps[0][0] == b.first and steps[-1][1] == b.last
        if not whole or any(a > z for a, z in steps) or any(y[0] != x[1] + 1 for x, y in pairwise(steps)):
            raise InternalError(f"the stays of {b.name!r}, {steps}, are not its life from {b.first} to {b.last}")
        if any(not 0 <= s.space < len(plan.spaces) for s in row):
            raise InternalError(f"{b.name!r} lies in a space that there is not")
    if sorted(plan.moves, key=lambda m: (m.step, m.buffer)) != list(moves_between(problem, plan.stays)):
        raise InternalError("the moves of the plan are not those between its stays")
    if [m.step for m in plan.moves] != sorted(m.step for m in plan.moves):
        raise InternalError("the moves of the plan are not in order of steps")
    for number, space in enumerate(plan.spaces):
        here = pieces(problem, plan.stays, number)
        offsets = tuple(plan.stays[index][k].offset for index, k, _ in here)
        try:
            check(Plan(Problem(tuple(b for *_, b in here), space.size), offsets, space.name))
        except InternalError as e:
            raise InternalError(f"in space {space.name!r}, at moments of two per step, {e.message}") from None
