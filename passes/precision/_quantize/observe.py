"""A graph on its way through the pipeline, as a file that calibration can run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from memoptc.ir.core import Graph, Value
from memoptc.ir.onnx_names import Names
from memoptc.ir.pool import WeightPool
from memoptc.pass_base import Context
from memoptc.runtime.result_cache import fingerprint
from memoptc.runtime.spool import trim

T = TypeVar("T")


@contextmanager
def shared_weights(context: Context) -> Iterator[WeightPool]:
    """Write all models within to one pool of weights, deleted at the end; an inner use shares the outer one's."""
    if context.weights is not None:
        yield context.weights
        return
    pool = context.weights = WeightPool(Path(context.scratch))
    try:
        yield pool
    finally:
        context.weights = None
        pool.remove()


def pool_of(context: Context) -> WeightPool:
    """The pool that is shared now, else a new one that goes with its last user."""
    return context.weights or WeightPool(Path(context.scratch))


def checkpoint_of(context: Context, *parts: str) -> Path | None:
    """Folder for what calibration sees in one step of a compile, on its data; `None` where nothing is kept."""
    if context.checkpoint is None:
        return None
    return context.checkpoint / "-".join(["ranges", *parts, fingerprint(context.calibration)[:16]])


def observe(
    graph: Graph, values: Iterable[Value], context: Context, look: Callable[[Path, dict[str, Value]], dict[str, T]]
) -> dict[Value, T]:
    """Write a graph, look at some of its values, and remove the file.

    Args:
        graph: The top graph.
        values: What to look at.
        context: Its `scratch` is where the file lies for so long.
        look: From the file and the values by name to what was seen, by name.
    """
    names = Names()
    names.assign(graph)
    by_name = {names.of[v]: v for v in values}
    if not by_name:
        return {}
    with shared_weights(context) as pool:
        path = pool.write(graph, "calibrate.onnx")
        try:
            return {by_name[name]: seen for name, seen in look(path, by_name).items()}
        finally:
            trim(collect=False)


def warn_of_infinite(infinite: Mapping[str, str], context: Context) -> None:
    """Say once which values hold NaN or Inf on data that holds none.

    Args:
        infinite: Name of a value -> the sample that showed it.
        context: Gets the warning.
    """
    if not infinite or any(_INFINITE in warning for warning in context.warnings):
        return
    first, where = next(iter(infinite.items()))
    more = f" ({len(infinite) - 1} other values, too)" if len(infinite) > 1 else ""
    context.warnings.append(f"{first!r} {_INFINITE} ({where}){more}: what reads such values stays in float.")


_INFINITE = "holds NaN or Inf though no input does"
