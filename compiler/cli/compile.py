"""`memoptc MODEL`: compile, prove, show what changed, write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from memoptc.cli.options import Binding, accuracy_options, common, dim_option
from memoptc.targets import TARGETS


@click.command("compile")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Where to write; MODEL.opt.onnx if not given.")
@click.option("-O", "level", type=click.IntRange(0, 3), default=2, show_default=True, help="Optimisation level.")
@click.option("--target", type=click.Choice(TARGETS), default="float32", show_default=True, help="Numbers to use.")
@click.option("--calibration", metavar="DATA", help=".npz, .npy, folder of .npz, or module:function; for integers.")
@click.option("--validation", metavar="DATA", help="As --calibration; to verify and to measure accuracy with.")
@click.option("--quantize-io", is_flag=True, help="Inputs and outputs as codes (int8, uint8) or half (float16), too.")
@click.option(
    "--device",
    default="auto",
    show_default=True,
    help="Profile to quantize for: x86-vnni, x86-avx2, arm64, or a .toml file.",
)
@click.option(
    "--memory-budget",
    metavar="SIZE",
    help="The whole process must fit, e.g. 256MiB; or its parts: activations=64MiB,weights=100MiB.",
)
@click.option(
    "--run-with", type=click.Choice(["stock", "session"]), help="Where the budget counts; either if not given."
)
@click.option("--max-slowdown", type=click.FloatRange(min=0), help="Largest accepted ratio of latencies, e.g. 1.2.")
@click.option(
    "--tune", is_flag=True, help="Measure what tiling made, instead of relying on predicted run times (slow)."
)
@click.option("--max-error", type=click.FloatRange(min=0), help="Largest accepted error relative to an output's scale.")
@accuracy_options
@dim_option
@click.option("--freeze", multiple=True, type=Binding(), help="Make a symbolic dimension static, e.g. N=8.")
@click.option(
    "--last-logits", is_flag=True, help="Scores of a vocabulary for the last step only: [batch, 1, vocabulary]."
)
@click.option(
    "--freeze-runtime", is_flag=True, help="Make onnxruntime's own optimization part of the model; keeps our order."
)
@click.option(
    "--pack-weights",
    is_flag=True,
    help="With --freeze-runtime: weights beside the model, laid out for this machine, mapped when loading.",
)
@click.option(
    "--form",
    type=click.Choice(["auto", "plain", "branch", "captured"]),
    default="auto",
    show_default=True,
    help="How the file is written: as it is, or inside a branch that avoids onnxruntime's second block of activations.",
)
@click.option(
    "--external",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Weights in a file beside the model, which onnxruntime maps; auto: from a megabyte on.",
)
@click.option("--portable", is_flag=True, help="Nothing laid out for this machine's processor (no --pack-weights).")
@click.option("--passes", metavar="PIPELINE", help="Run this pipeline instead of the level's; see `memoptc passes`.")
@click.option("--skip-pass", "skip_passes", metavar="NAME", multiple=True, help="Leave a pass out; may be repeated.")
@click.option(
    "--set",
    "settings",
    metavar="PASS.OPTION=VALUE",
    multiple=True,
    help="Set an option of a pass, e.g. fit.slowdown=1.2; may be repeated.",
)
@click.option(
    "--verify",
    type=click.Choice(["off", "fast", "full"]),
    default="fast",
    show_default=True,
    help="How much proof: none, a few samples, or all data and several sizes.",
)
@click.option("--measure/--no-measure", default=True, help="Measure memory and latency of both models.")
@click.option("--container", is_flag=True, help="Find the smallest memory limit both models run in, too (slow).")
@click.option(
    "--report",
    "reports",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Write a report: .json, .html or .md; may be repeated.",
)
@click.option("--jobs", type=click.IntRange(min=1), help="Threads onnxruntime may use while measuring.")
@click.option("--force", is_flag=True, help="Write the output even when a gate fails.")
@click.option("--print-pipeline", is_flag=True, help="Print the pipeline that would run, and stop.")
@click.option("--dump-dir", type=click.Path(path_type=Path), help="Write the graph as .mir after each pass.")
@click.option("--check-each", is_flag=True, help="Check numbers after each pass (slow); fills max_error.")
@common
def command(
    model: Path,
    output: Path | None,
    level: int,
    target: str,
    reports: tuple[Path, ...],
    dims: tuple[tuple[str, int], ...],
    freeze: tuple[tuple[str, int], ...],
    last_logits: bool,
    plugins: tuple[str, ...],
    print_pipeline: bool,
    quiet: bool,
    verbose: bool,
    debug: bool,
    **options: Any,
) -> None:
    """Compile MODEL into one that needs less memory, and prove that it still does the same."""
    from memoptc.api import compile_file, pipeline_for
    from memoptc.cli.show import Progress, print_result
    from memoptc.options import Options

    if print_pipeline:
        click.echo(pipeline_for(Options(level=level, target=target, plugins=plugins, **options)))
        return
    output = output or model.with_name(f"{model.stem}.opt.onnx")
    with Progress(quiet) as progress:
        result = compile_file(
            model,
            output,
            reports=reports,
            level=level,
            target=target,
            dims=dict(dims),
            freeze=dict(freeze),
            last_logits=last_logits,
            plugins=plugins,
            progress=progress,
            **options,
        )
    data = [] if result.data_file is None else [result.data_file]
    worst = result.report.verification.get("worst_sample")
    data += [output.with_name(worst)] if worst else []
    print_result(result.report, [output, *data, *reports], quiet=quiet, verbose=verbose)
