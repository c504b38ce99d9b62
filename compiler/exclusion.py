"""Leave nodes alone: names, operators and patterns that a user gives, handed to the passes that change numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from memoptc.ir.core import Graph, Op
from memoptc.ir.diagnostics import InputError
from memoptc.pipeline import Pipeline


def excluding(steps: Pipeline, graph: Graph, patterns: Sequence[str]) -> Pipeline:
    """Give a pipeline whose passes leave nodes alone.

    Args:
        steps: The pipeline; passes with an option `exclude` get the names.
        graph: The original.
        patterns: Names of nodes, operators, or patterns of either, such as `/head/*`.

    Raises:
        InputError: a pattern matches no node, or no pass of the pipeline leaves nodes out.
    """
    if not patterns:
        return steps
    names = dict.fromkeys(name for pattern in patterns for name in _matching(graph, pattern))
    passes: list[Any] = list(steps.passes())
    able = {i: p for i, p in enumerate(passes) if isinstance(getattr(p, "exclude", None), tuple)}
    if not able:
        raise InputError(
            f"No pass of this compile can leave {patterns[0]!r} out.",
            hint="--exclude is for integers and for lossy passes: --target int8, int4, mixed, --prune, --low-rank, "
            "--cluster.",
        )
    return steps.without(
        (), {i: replace(p, exclude=tuple(dict.fromkeys((*p.exclude, *names)))) for i, p in able.items()}
    )


def _matching(graph: Graph, pattern: str) -> list[str]:
    """Names of the nodes that a pattern matches, and of the weights that they read."""
    ops = [op for op in graph.walk() if not op.is_const]
    # A name as it stands comes first: `block[0]/MatMul` is one, though its brackets are a pattern.
    found = [op for op in ops if op.name == pattern]
    found = found or [op for op in ops if fnmatchcase(op.name, pattern) or fnmatchcase(op.key, pattern)]
    if not found:
        types = ", ".join(sorted({op.op_type for op in ops}))
        raise InputError(
            f"--exclude {pattern} matches no node.", hint=f"Operators are {types}; `memoptc profile` lists the nodes."
        )
    return [name for op in found for name in (op.name, *_weights(op)) if name]


def _weights(op: Op) -> list[str]:
    return [value.name for value in op.operands if value.tensor is not None]
