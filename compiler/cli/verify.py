"""`memoptc verify A B`: the numbers of two models against each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memoptc.cli.options import Talk, takes, talks, unused
from memoptc.cli.project import ProjectCommand
from memoptc.ir.files import TemporaryFolder
from memoptc.options import Options

if TYPE_CHECKING:
    from memoptc.runtime.judge import Judge
    from memoptc.runtime.verification import Verification


@click.command("verify", cls=ProjectCommand)
@click.argument("original", type=click.Path(path_type=Path))
@click.argument("candidate", type=click.Path(path_type=Path))
@click.option("--bit-exact", is_flag=True, help="Ask for the same bits, in onnxruntime with its optimizer off.")
@click.option("--metric", type=click.Choice(["perplexity"]), help="Measure it on the data, too.")
@click.option("--full", is_flag=True, help="All data, more sizes.")
@click.option("--keep", type=click.Path(path_type=Path), help="Write the worst sample here (.npz).")
@takes(
    "options",
    Options,
    *("target", "validation", "max_error", "min_sqnr", "dims"),
    target={"help": "Numbers the candidate was made for."},
    validation={"help": ".npz, .npy, folder of .npz, or module:function."},
)
@talks
def command(
    original: Path,
    candidate: Path,
    bit_exact: bool,
    metric: str | None,
    full: bool,
    keep: Path | None,
    options: dict[str, Any],
    talk: Talk,
) -> int:
    """Compare CANDIDATE with ORIGINAL; exit code 3 when they differ by more than allowed."""
    from memoptc.runtime.verify import verify

    if bit_exact:
        unused("with --bit-exact", "target", "max_error", "min_sqnr")
    if options["max_error"] is not None:
        unused("with --max-error, which takes the place of other bounds", "min_sqnr")
    if options["validation"] is None:
        unused("without data", "metric", hint="Give data with --validation.")
    with TemporaryFolder() as folder:
        found = verify(
            original,
            _comparable(original, candidate, Path(folder)),
            _judge(bit_exact, options),
            mode="full" if full else "fast",
            data=options["validation"],
            dims=options["dims"] or None,
            keep=keep,
            metric=metric,
        )
    asked = bit_exact or options["min_sqnr"] is not None or options["max_error"] is not None
    talk.tell(found, lambda: _print(found, metric, lossless=options["target"] == "float32" and not asked))
    return 0 if found.passed else 3


def _print(found: Verification, metric: str | None, *, lossless: bool) -> None:
    from rich.markup import escape
    from rich.table import Table

    from memoptc.cli.show import result_console

    console = result_console()
    table = Table("output", "max abs", "max rel", "cosine", "SQNR dB", "top-1", "judged by")
    for o in found.outputs:
        cells = [o[k] for k in ("max_abs", "max_rel", "cosine", "sqnr_db", "top1_agreement")]
        text = ["" if c is None else f"{c:.4g}" if isinstance(c, float) else str(c) for c in cells]
        table.add_row(escape(o["name"]), *text, found.judged_by.get(o["name"], ""))
    console.print(table)
    for note in (*found.failures, *found.notes):
        console.print(note, soft_wrap=True, markup=False)
    if found.accuracy is not None:
        before, after, tokens = (found.accuracy[key] for key in ("control", "candidate", "samples"))
    if found.accuracy is not None and "metric" not in found.accuracy:
        console.print(f"top-1: {before:.4f} before, {after:.4f} after, {tokens} labels")
    elif found.accuracy is not None:
        console.print(f"{metric}: {before:.3f} before, {after:.3f} after ({after / before:.3f}x, {tokens} tokens)")
    noun = "sample" if found.samples == 1 else "samples"
    console.print(f"{'passed' if found.passed else 'FAILED'} on {found.samples} {found.inputs} {noun}")
    if not found.passed and lossless:
        console.print(
            "next: a model that is coarser on purpose is judged by --target (what it was compiled for), --min-sqnr or "
            "--max-error; of one that is not, `memoptc bisect` names the pass",
            soft_wrap=True,
            markup=False,
        )


def _judge(bit_exact: bool, options: dict[str, Any]) -> Judge:
    """Build the judge: equal bits, a largest error, a least SQNR, or what the target usually keeps."""
    from memoptc.runtime.accuracy import AccuracyTarget
    from memoptc.runtime.judge import Judge

    accuracy = None if options["min_sqnr"] is None else AccuracyTarget(min_sqnr=options["min_sqnr"])
    return Judge(bit_exact, options["target"], options["max_error"], accuracy)


def _comparable(original: Path, candidate: Path, folder: Path) -> Path:
    """Give the candidate, or, where it takes or gives codes, a model around it that takes and gives what they code."""
    from memoptc.coded_interface import with_interface_of
    from memoptc.ir.diagnostics import MemoptcError
    from memoptc.ir.onnx_io import read_onnx, write_into

    try:
        graph = read_onnx(candidate)
        floating = with_interface_of(read_onnx(original), graph)
    except MemoptcError:
        return candidate  # the comparison says what is wrong with either
    if floating is graph:
        return candidate
    path = folder / candidate.name
    write_into(floating, path)
    return path
