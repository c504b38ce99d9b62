"""Names of nodes in options: those of `--exclude` handed to passes, those of passes held against the model."""

from __future__ import annotations

import difflib
from collections.abc import Sequence, Set
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from memoptc.ir.core import Graph, Op
from memoptc.ir.diagnostics import InputError
from memoptc.pass_base import Pass
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
            hint="--exclude is for targets other than float32 and for lossy passes: --target int8, int4, float16, "
            "--prune, --low-rank, --cluster.",
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


def named_nodes(pass_: Pass) -> list[tuple[str, str]]:
    """Give the names of nodes, results or operators in a pass's options, each with its option."""
    found = []
    for option in pass_.names_nodes:
        given = getattr(pass_, option, ())
        names = (given,) if isinstance(given, str) else given if isinstance(given, tuple | list) else ()
        found += [(option, name) for name in names if name and isinstance(name, str)]  # plug-ins may mean other things
    return found


def names_of(graph: Graph) -> set[str]:
    """Names of a model's nodes and of their results, and its operators."""
    return {name for op in graph.walk() for name in (op.name, op.key, op.op_type, *(r.name for r in op.results))}


def check_names(pass_: Pass, graph: Graph, before: Set[str]) -> None:
    """Hold the names in a pass's options against the model.

    Args:
        pass_: The pass.
        graph: What it is about to run on.
        before: Names of the model before other passes, which may have fused what was named.

    Raises:
        InputError: nothing is called that; the message says what is called nearly so.
    """
    strange = [(option, name) for option, name in named_nodes(pass_) if name not in before]
    known = names_of(graph) if strange else set()
    for option, name in strange:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(before | known), n=1)
            raise InputError(
                f"{pass_.name}: {option} names {name!r}, and no node, value or operator is called so.",
                hint=f"Did you mean {near[0]!r}?" if near else "`memoptc show` lists nodes with their operators.",
            )
