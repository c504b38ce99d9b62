"""`memoptc fits`: the smallest memory limit in which a model runs, or whether it runs in a given one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memoptc.cli.options import BYTES, Talk, takes, talks, unused
from memoptc.cli.project import ProjectCommand
from memoptc.options import Options

if TYPE_CHECKING:
    from memoptc.runtime.largest import AxisLimit


@click.command("fits", cls=ProjectCommand)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--limit", type=BYTES, help="Say whether it runs in this, e.g. 256MiB; exit code 4 when not.")
@click.option("--sizes", is_flag=True, help="With --limit: the largest sizes of the open axes that run in it.")
@click.option(
    "--run-with",
    type=click.Choice(["stock", "session"]),
    default="stock",
    show_default=True,
    help="onnxruntime as it comes, or memoptc's Session.",
)
@click.option(
    "--inputs",
    "--validation",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Inputs, .npz; made up when not given.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Intra-op threads.")
@click.option("--seconds", default=120.0, show_default=True, type=float, help="About how long the search may take.")
@click.option("--seed", default=0, show_default=True, help="Of made-up inputs.")
@takes("options", Options, "dims")
@talks
def command(
    model: Path,
    limit: int | None,
    sizes: bool,
    run_with: str,
    inputs: Path | None,
    threads: int | None,
    seconds: float,
    seed: int,
    options: dict[str, Any],
    talk: Talk,
) -> int:
    """Find the smallest memory limit of a process in which MODEL loads and runs at no more than 1.6 times its latency.

    The kernel sets the limit (control groups), on Python, onnxruntime and the model together. Where it cannot, need is
    measured: what the model adds to a process.
    """
    from memoptc.cli.feeds import given, made_up
    from memoptc.cli.main import report_error
    from memoptc.cli.show import Progress
    from memoptc.ir.diagnostics import BudgetError
    from memoptc.report.rows import limit_text, size
    from memoptc.runtime.container import Unavailable
    from memoptc.runtime.measuring_process import InSession, Way
    from memoptc.runtime.options import RunOptions

    if sizes and (limit is None or inputs is not None):
        raise click.UsageError("--sizes takes --limit, and makes its own inputs: give --limit 512MiB, no --inputs.")
    if limit is not None and not sizes:
        unused("with --limit", "seconds")
    if inputs is not None:
        unused("with --inputs", "dims", "seed")
    in_session: dict[str, Any] = {"threads": threads} if threads else {}
    way: Way = InSession(None, in_session) if run_with == "session" else RunOptions(threads=threads or 0)
    answer = _Answer({"model": model, "run_with": run_with, "limit_bytes": limit})
    try:
        with Progress(talk.quiet, talk.progress) as progress:

            def trying(text: str) -> None:
                progress(f"trying {text}", None)

            if sizes and limit is not None:
                _find_largest(answer, model, limit, way, options["dims"], seed, seconds, trying)
            else:
                feed = given(model, inputs) if inputs is not None else made_up(model, options["dims"], seed)
                shapes = {name: list(v.shape) for name, v in feed.items() if hasattr(v, "shape")}
                answer.told["inputs"] = shapes
                answer.lines += [f"inputs: {_shapes(shapes)}"] if inputs is None else []
                _find_container(answer, model, feed, way, limit, seconds, trying)
    except Unavailable as missing:
        click.echo(f"memoptc: {missing.message}\n{missing.hint}", err=True)
        answer.told["unavailable"] = missing.message
        need = answer.told.get("need")
        if limit is not None and need is not None and need.need_bytes > limit:
            answer.problem = f"the model alone needs {size(need.need_bytes)}"
    told, problem = answer.told, answer.problem
    if problem and limit is not None:
        told["error"] = f"{model.name} does not run in {limit_text(limit)} ({_called(way)}): {problem}."
    talk.tell(told, lambda: click.echo("\n".join(answer.lines)), always=True)
    if not problem:
        return 0
    smaller = "Give a larger --limit, smaller sizes with --dim, or compile it for less."
    hint = smaller if sizes else "Leave --limit out to find the smallest limit, or compile it for less."
    if talk.as_json:
        report_error(told["error"], hint)  # stdout has it already
        return BudgetError.exit_code
    raise BudgetError(told["error"], hint=hint)


@dataclass
class _Answer:
    """Answer of the command.

    Args:
        told: Facts for `--json`.
        lines: For people.
        problem: Why it does not run; `""` where it does.
    """

    told: dict[str, Any]
    lines: list[str] = field(default_factory=list)
    problem: str = ""


def _find_largest(
    answer: _Answer,
    model: Path,
    limit: int,
    way: Any,
    dims: dict[str, int],
    seed: int,
    seconds: float,
    trying: Callable[[str], None],
) -> None:
    """Find the largest sizes that run in the limit."""
    from memoptc.report.rows import limit_text

    edges, point = _edges(model, limit, way, dims, seed, seconds, trying)
    answer.told |= {"edges": edges, "others": point}
    answer.lines += [
        f"largest sizes that run in {limit_text(limit)} ({_called(way)}), the others at {_spelled(point)}:"
    ]
    answer.lines += [f"  {_told(edge)}" for edge in edges]
    if any(edge.largest is None for edge in edges):
        answer.problem = "at any size that was tried"


def _find_container(
    answer: _Answer,
    model: Path,
    feed: Mapping[str, Any],
    way: Any,
    limit: int | None,
    seconds: float,
    trying: Callable[[str], None],
) -> None:
    """Measure the need, then try the limit, or find the smallest one."""
    from memoptc.report.rows import evictable, limit_text, size
    from memoptc.runtime.container import limiter, smallest_container
    from memoptc.runtime.measure import measure_need

    need = measure_need(model, feed, options=way)
    answer.told["need"] = need
    answer.lines.append(
        f"need in {_called(way)}: {size(need.need_bytes)}{evictable(need.need_bytes, need.anonymous_bytes)}"
    )
    if limit is None:
        found = smallest_container(model, feed, way=way, seconds=seconds, say=trying)
        answer.told["smallest"] = found
        close = "" if found.below_bytes * 1.04 > found.limit_bytes else f" (not in {size(found.below_bytes)})"
        answer.lines.append(
            f"smallest container: {size(found.limit_bytes)}{close}, {found.latency_ms:.3g} ms there, "
            f"{found.free_ms:.3g} ms without a limit"
        )
        return
    with limiter(model, feed, way) as tries:
        tries.free()
        trial = tries.run(limit)
    answer.told |= {"trial": trial, "free_ms": tries.free_ms}
    if trial.fits:
        figures = f"{trial.latency_ms:.3g} ms, {tries.free_ms:.3g} ms without a limit"
        answer.lines.append(f"runs in {limit_text(limit)}: {figures}")
    else:
        answer.problem = trial.why


def _called(way: Any) -> str:
    """The name of a way of running."""
    from memoptc.runtime.measuring_process import InSession

    return "Session" if isinstance(way, InSession) else "stock onnxruntime"


def _shapes(inputs: Mapping[str, list[int]]) -> str:
    return ", ".join(f"{name} {'x'.join(map(str, shape)) or 'scalar'}" for name, shape in inputs.items())


def _edges(
    model: Path, limit: int, way: Any, dims: dict[str, int], seed: int, seconds: float, say: Callable[[str], None]
) -> tuple[list[AxisLimit], dict[str, int]]:
    """Find the largest extent of each kind of open axis, and the extents of the others meanwhile."""
    from memoptc.ir.diagnostics import InputError
    from memoptc.ir.onnx_io import read_onnx
    from memoptc.runtime.container import Trial, limiter
    from memoptc.runtime.design_points import SMALLEST, design_points
    from memoptc.runtime.inputs import InputMaker
    from memoptc.runtime.largest import largest_extents
    from memoptc.runtime.measuring_process import InSession
    from memoptc.runtime.memory.need import Configuration, predict_need

    graph = read_onnx(model)
    points = design_points(graph, dims)
    if points is None:
        raise InputError(
            f"{model.name} has no open axes whose sizes are known to belong together.",
            hint="Leave --sizes out: fits then tells whether it runs as it is.",
        )
    maker = InputMaker(graph, dims, seed)
    point = maker.consistent({n: min(points.check[n], 4 * SMALLEST.get(k, 1)) for n, k in points.chosen.items()})
    point = point or dict(points.check)
    how = Configuration(session="planned" if isinstance(way, InSession) else "stock")
    with limiter(model, maker.make(point), way) as tries:
        besides = tries.free().peak_bytes - predict_need(maker.typed, point, how).need_bytes

    def attempt(extents: Mapping[str, int]) -> Trial:
        with limiter(model, maker.make(extents), way) as tries:
            try:
                tries.free()
            except InputError as error:
                return Trial(False, error.message, None, 0)
            return tries.run(limit)

    def predicted(extents: Mapping[str, int]) -> int:
        return besides + predict_need(maker.typed, extents, how).need_bytes

    return largest_extents(maker, points.chosen, point, attempt, predicted, limit, say, seconds), point


def _told(edge: AxisLimit) -> str:
    axes = ", ".join(edge.axes)
    if edge.largest is None:
        return f"{axes}: none; {edge.beyond} does not fit: {edge.why}"
    past = edge.why if edge.beyond is None else f"{edge.beyond} does not: {edge.why}"
    return f"{axes} = {edge.largest} ({edge.latency_ms:.3g} ms; {past})"


def _spelled(extents: Mapping[str, int]) -> str:
    return ", ".join(f"{name}={extent}" for name, extent in extents.items())
