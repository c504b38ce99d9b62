"""Inputs and outputs of two models, which have to be the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from memoptc.ir.types import Type, as_tensor
from memoptc.runtime.evaluate import Evaluator

Ports: TypeAlias = Mapping[str, Type | None]
"""Inputs or outputs: name -> type, in order."""


class Refused(Exception):
    """The candidate cannot even be loaded or has other inputs and outputs."""


def check_ports(original: tuple[Ports, Ports], candidate: Evaluator) -> None:
    """Check that a candidate has the original's inputs and outputs: names, order, kinds and element types.

    Args:
        original: Its inputs and outputs.
        candidate: The other model, loaded.

    Raises:
        Refused: it has others.
    """
    for what, a, b in (
        ("inputs", original[0], candidate.inputs),
        ("outputs", original[1], candidate.outputs),
    ):
        if list(a) != list(b):
            raise Refused(f"the candidate's {what} are {list(b)} instead of {list(a)}")
        for name in a:
            if _kind(a[name]) != _kind(b[name]):
                raise Refused(f"{name!r} among the candidate's {what} is {b[name]} instead of {a[name]}")


def _kind(type_: Type | None) -> object:
    tensor = as_tensor(type_)
    return type(type_) if tensor is None else tensor.dtype
