"""`memoptc bisect MODEL`: the first pass, and the rewrite in it, that breaks the numbers."""

from __future__ import annotations

from pathlib import Path

import click

from memoptc.cli.options import common, dim_option
from memoptc.ir.files import TemporaryFolder
from memoptc.targets import TARGETS


@click.command("bisect")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-O", "level", type=click.IntRange(0, 3), default=2, show_default=True)
@click.option("--target", type=click.Choice(TARGETS), default="float32", show_default=True)
@click.option("--passes", metavar="PIPELINE", help="Pipeline to bisect instead of the level's.")
@click.option("--calibration", metavar="DATA")
@click.option("--validation", metavar="DATA")
@click.option("--max-error", type=click.FloatRange(min=0), help="What counts as broken.")
@click.option(
    "--reduce",
    "reduced",
    metavar="OUT",
    type=click.Path(path_type=Path),
    help="Also write the smallest model it breaks.",
)
@dim_option
@common
def command(
    model: Path,
    level: int,
    target: str,
    passes: str | None,
    calibration: str | None,
    validation: str | None,
    max_error: float | None,
    reduced: Path | None,
    dims: tuple[tuple[str, int], ...],
    plugins: tuple[str, ...],
    quiet: bool,
    verbose: bool,
    debug: bool,
) -> int:
    """Say which pass, and which rewrite in it, first breaks MODEL's numbers; exit code 3 when one does."""
    from memoptc.options import Options
    from memoptc.report import Report
    from memoptc.samples import Inputs
    from memoptc.source import load, with_control
    from memoptc.steps import prepare, prove, run

    with TemporaryFolder() as folder:
        scratch = Path(folder)
        options = Options(
            level=level,
            target=target,
            passes=passes,
            calibration=calibration,
            validation=validation,
            max_error=max_error,
            dims=dict(dims),
            plugins=plugins,
        )
        source = load(model, scratch)
        data = Inputs(source, options)
        source = with_control(source, prepare.prepare(source, options, data, Report())[0], scratch)
        pipeline = run.pipeline(options, data.calibration is not None)
        culprit = prove.find_culprit(source, options, data, scratch, pipeline)
    click.echo(culprit or "no pass breaks the numbers")
    if culprit and reduced is not None:
        from memoptc.cli.reduce import compile_options, describe, reduce_by

        plain = compile_options(level, target, passes, plugins, dims)
        click.echo(describe(reduce_by(model, reduced, plain, "differs", quiet=quiet), reduced))
    return 3 if culprit else 0
