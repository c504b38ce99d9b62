"""`memoptc plan`: where every activation lies in one arena, for people and for other programs."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memoptc.cli.options import Talk, takes, talks
from memoptc.cli.project import ProjectCommand
from memoptc.options import Options

if TYPE_CHECKING:
    from memoptc.runtime.memory.liveness import Liveness
    from memoptc.runtime.memory.plan import Plan

FORMS = (".json", ".csv", ".h", ".svg")


@click.command("plan", cls=ProjectCommand)
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--save",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Write the plan: .json, .csv, .h or .svg; repeatable.",
)
@click.option("--top", default=10, show_default=True, help="How many buffers to list.")
@click.option("--workspace/--no-workspace", default=True, help="Place the scratch of onnxruntime's kernels, too.")
@click.option(
    "--spaces",
    metavar="NAME=SIZE[@COST],...",
    help="Place buffers in several memories, fastest first, and move them between: sram=512KiB,dram=8MiB. COST is that "
    "of reading or writing a byte; unstated, ten times that of the memory before.",
)
@takes("options", Options, "dims")
@talks
def command(
    model: Path,
    save: tuple[Path, ...],
    top: int,
    workspace: bool,
    spaces: str | None,
    options: dict[str, Any],
    talk: Talk,
) -> None:
    """Plan the arena of MODEL's activations, in the order of its nodes."""
    from memoptc.cli.spaces import parse_spaces, plan_spaces, print_spaces
    from memoptc.ir.diagnostics import InputError
    from memoptc.ir.files import atomic_write
    from memoptc.ir.infer import infer_shapes
    from memoptc.ir.onnx_io import read_onnx
    from memoptc.runtime.configuration import planned
    from memoptc.runtime.memory.allocate import allocate
    from memoptc.runtime.profile import likely_extents

    for path in save:
        if path.suffix not in FORMS:
            raise InputError(f"{path} is no form of a plan.", hint=f"Names end in {', '.join(FORMS)}.")
    memories = None if spaces is None else parse_spaces(spaces)
    if memories is not None and any(path.suffix != ".json" for path in save):
        raise InputError("A plan for several memories is saved as .json only.", hint="Leave out --spaces or --save.")
    graph = read_onnx(model)
    infer_shapes(graph)
    bound = likely_extents(graph, options["dims"])
    found = planned(graph, bound, workspace=workspace)
    if memories is None:
        plan = allocate(found.problem)
        texts = {path: _render(path, plan, found, model, bound) for path in save}
        facts = _facts(plan, found, model, bound)
        show = partial(_print, plan, found, model, bound, top)
    else:
        spaced = plan_spaces(found, memories)
        facts = spaced.to_json()
        texts = {path: json.dumps(facts, indent=1) + "\n" for path in save}
        show = partial(print_spaces, spaced, top)
    for path, text in texts.items():
        atomic_write(path, text.encode())
    if found.unknown:
        names = ", ".join(dict.fromkeys(found.unknown[:5]))
        click.echo(f"{len(found.unknown)} values have no known size and are not placed: {names}", err=True)

    def tell() -> None:
        show()
        for path in save:
            click.echo(f"wrote {path}")

    talk.tell(facts | {"files": list(save)}, tell)


def _render(path: Path, plan: Plan, found: Liveness, model: Path, dims: dict[str, int]) -> str:
    from memoptc.runtime.memory.liveness import label
    from memoptc.runtime.memory.render import to_header, to_svg

    if path.suffix == ".csv":
        return plan.to_csv()
    if path.suffix == ".h":
        return to_header(plan, model.stem)
    if path.suffix == ".svg":
        return to_svg(plan, f"{model.name}: arena", [label(op) for op in found.steps])
    return json.dumps(_facts(plan, found, model, dims), indent=1) + "\n"


def _facts(plan: Plan, found: Liveness, model: Path, dims: dict[str, int]) -> dict[str, Any]:
    from memoptc.runtime.configuration import FILE_ORDER
    from memoptc.runtime.memory.liveness import label

    return plan.to_json() | {
        "model": model.name,
        "dims": dims,
        "configuration": str(FILE_ORDER),
        "planned_peak_bytes": max(found.curve),
        "steps": [label(op) for op in found.steps],
    }


def _print(plan: Plan, found: Liveness, model: Path, dims: dict[str, int], top: int) -> None:
    from rich.markup import escape
    from rich.table import Table

    from memoptc.cli.show import result_console
    from memoptc.report.rows import size
    from memoptc.runtime.configuration import FILE_ORDER
    from memoptc.runtime.memory.liveness import label

    console = result_console()
    sizes = ", ".join(f"{k}={v}" for k, v in dims.items())
    gap = plan.arena_bytes / plan.floor - 1 if plan.floor else 0.0
    console.print(f"planned peak {size(max(found.curve))} ({FILE_ORDER}; {max(found.curve)} bytes)", markup=False)
    console.print(
        f"{model}{f' at {sizes}' if sizes else ''}: {len(plan.offsets)} buffers in {size(plan.arena_bytes)} "
        f"({plan.arena_bytes} bytes), {gap:.2%} above the floor; one by one {size(plan.naive_sum)} ({plan.algorithm})",
        markup=False,
        soft_wrap=True,
    )
    table = Table("buffer", "bytes", "offset", "from", "to", title="largest buffers", title_justify="left")
    order = sorted(range(len(plan.offsets)), key=lambda i: -plan.problem.buffers[i].size)
    for index in order[:top]:
        b = plan.problem.buffers[index]
        first, last = (f"{s} {label(found.steps[s])}" for s in (b.first, b.last))
        table.add_row(escape(b.name), size(b.size), str(plan.offsets[index]), escape(first), escape(last))
    console.print(table)
