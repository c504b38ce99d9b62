"""`memoptc fits`: the smallest memory limit in which a model runs, or whether it runs in a given one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from memoptc.cli.options import Bytes, common, dim_option


@click.command("fits")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--limit", type=Bytes(), help="Say whether it runs in this, e.g. 256MiB; exit code 4 when not.")
@click.option(
    "--run-with",
    type=click.Choice(["stock", "session"]),
    default="stock",
    show_default=True,
    help="onnxruntime as it comes, or memoptc's Session.",
)
@click.option("--inputs", type=click.Path(path_type=Path), help="Inputs, .npz; made up when not given.")
@click.option("--threads", type=click.IntRange(min=1), help="Intra-op threads.")
@click.option("--seconds", default=120.0, show_default=True, type=float, help="About how long the search may take.")
@click.option("--seed", default=0, show_default=True, help="Of made-up inputs.")
@dim_option
@common
def command(
    model: Path,
    limit: int | None,
    run_with: str,
    inputs: Path | None,
    threads: int | None,
    seconds: float,
    seed: int,
    dims: tuple[tuple[str, int], ...],
    plugins: tuple[str, ...],
    quiet: bool,
    verbose: bool,
    debug: bool,
) -> None:
    """Find the smallest memory limit of a process in which MODEL loads and runs at no more than 1.6 times its latency.

    The kernel sets the limit (control groups), on Python, onnxruntime and the model together. Where it cannot, need is
    measured: what the model adds to a process.
    """
    from memoptc.cli.feeds import made_up
    from memoptc.cli.show import Progress
    from memoptc.ir.diagnostics import BudgetError
    from memoptc.report.rows import size
    from memoptc.runtime.container import Unavailable, limiter, smallest_container
    from memoptc.runtime.measure import InSession, Way, measure_need
    from memoptc.runtime.npz import load_feed
    from memoptc.runtime.options import RunOptions

    feed = load_feed(inputs) if inputs is not None else made_up(model, dict(dims), seed)
    in_session: dict[str, Any] = {"threads": threads} if threads else {}
    way: Way = InSession(None, in_session) if run_with == "session" else RunOptions(threads=threads or 0)
    where = "Session" if run_with == "session" else "stock onnxruntime"
    if inputs is None:
        extents = {name: "x".join(map(str, v.shape)) or "scalar" for name, v in feed.items() if hasattr(v, "shape")}
        shapes = ", ".join(f"{name} {text}" for name, text in extents.items())
        click.echo(f"inputs: {shapes}")
    need = measure_need(model, feed, options=way)
    click.echo(f"need in {where}: {size(need.need_bytes)}{_kept(need.anonymous_bytes, size)}")
    try:
        if limit is None:
            with Progress(quiet) as progress:
                found = smallest_container(
                    model, feed, way=way, seconds=seconds, say=lambda text: progress(f"trying {text}", None)
                )
            close = "" if found.below_bytes * 1.04 > found.limit_bytes else f" (not in {size(found.below_bytes)})"
            click.echo(
                f"smallest container: {size(found.limit_bytes)}{close}, {found.latency_ms:.3g} ms there, "
                f"{found.free_ms:.3g} ms without a limit"
            )
            return
        with limiter(model, feed, way) as tries:
            tries.free()
            trial = tries.run(limit)
    except Unavailable as problem:
        click.echo(f"memoptc: {problem.message}\n{problem.hint}", err=True)
        return
    if not trial.fits:
        raise BudgetError(
            f"{model.name} does not run in {size(limit)} ({where}): {trial.why}.",
            hint="Leave --limit out to find the smallest limit, or compile it for less.",
        )
    click.echo(f"runs in {size(limit)}: {trial.latency_ms:.3g} ms, {tries.free_ms:.3g} ms without a limit")


def _kept(anonymous: int | None, size: Any) -> str:
    return "" if anonymous is None else f", {size(anonymous)} of them not evictable"
