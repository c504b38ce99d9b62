"""`memoptc run`: run a model in stock onnxruntime, or in no more memory than planned."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from memoptc.cli.options import BYTES, Talk, takes, talks, unused
from memoptc.cli.project import ProjectCommand
from memoptc.options import Options

SAMPLING = ("max_new_tokens", "max_length", "temperature", "top_k", "top_p", "stop")
"""Parameters that only --generate has a use for."""


@click.command("run", cls=ProjectCommand)
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--inputs",
    "--validation",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Inputs, .npz; made up when not given.",
)
@click.option("--outputs", type=click.Path(path_type=Path), help="Write the outputs here, .npz.")
@click.option(
    "--memory",
    type=click.Choice(["stock", "arena", "planned"]),
    default="arena",
    show_default=True,
    help="onnxruntime as it comes; our order and one sized arena; every allocation at its planned place.",
)
@click.option("--memory-limit", type=BYTES, help="Fail cleanly beyond this, e.g. 64MiB; not with stock.")
@click.option("--strict", is_flag=True, help="With --memory planned: fail when a run leaves its plan.")
@click.option("--arena", is_flag=True, help="Run node by node in the planned arena, freed bytes poisoned: proof, slow.")
@click.option("--runs", default=1, show_default=True, type=click.IntRange(min=1), help="How often.")
@click.option("--threads", type=click.IntRange(min=1), help="Intra-op threads.")
@click.option("--seed", default=0, show_default=True, help="Of made-up inputs, and of --generate's choices.")
@click.option("--generate", is_flag=True, help="Run a language model: print tokens that continue --prompt-ids.")
@click.option(
    "--prompt-ids", type=click.Path(path_type=Path), help="Numbers of tokens: .npy, .npz, or text, a row each."
)
@click.option("--max-new-tokens", default=128, show_default=True, type=click.IntRange(min=0), help="Most to generate.")
@click.option("--max-length", type=click.IntRange(min=1), help="Most tokens of a sequence, the prompt included.")
@click.option("--temperature", type=click.FloatRange(min=0), help="Choose at random; the best token if not given.")
@click.option("--top-k", default=0, type=click.IntRange(min=0), help="Choose among so many of the likeliest.")
@click.option("--top-p", default=1.0, help="Choose among the likeliest that have this probability together.")
@click.option("--stop", multiple=True, type=int, help="A token that ends a sequence; may be repeated.")
@takes("options", Options, "dims")
@talks
def command(
    model: Path,
    inputs: Path | None,
    outputs: Path | None,
    memory: str,
    memory_limit: int | None,
    strict: bool,
    arena: bool,
    runs: int,
    threads: int | None,
    seed: int,
    generate: bool,
    prompt_ids: Path | None,
    max_new_tokens: int,
    max_length: int | None,
    temperature: float | None,
    top_k: int,
    top_p: float,
    stop: tuple[int, ...],
    options: dict[str, Any],
    talk: Talk,
) -> None:
    """Run MODEL and show its outputs, and the memory that it took."""
    from memoptc.cli.feeds import given, made_up
    from memoptc.ir.diagnostics import InputError
    from memoptc.runtime.npz import save_feed

    if outputs is not None and outputs.suffix != ".npz":
        raise InputError(f"{outputs} is no name for outputs.", hint="Use a name that ends in .npz.")
    if generate != (prompt_ids is not None):
        raise InputError(
            "--generate and --prompt-ids go together: a language model continues the tokens that it is given.",
            hint="Give both, such as --generate --prompt-ids tokens.txt (numbers, a row for each prompt), or neither.",
        )
    if arena:
        unused("with --arena", "generate", "memory", "memory_limit", "strict", "runs", "threads")
    if memory == "stock":
        unused("with --memory stock", "memory_limit", hint="Use --memory arena or planned.")
    if generate:
        unused("with --generate", "inputs", "dims", "runs", "strict")
        if temperature is None:
            unused("without --temperature: the best token is taken", "seed", "top_k", "top_p")
    else:
        unused("without --generate", *SAMPLING)
        if memory != "planned":
            unused(f"with --memory {memory}", "strict", hint="Add --memory planned.")
    if inputs is not None:
        unused("with --inputs", "dims", "seed")
    if prompt_ids is not None:
        from memoptc.cli.generate import print_tokens

        sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed, "stop": stop}
        session = {"memory": memory, "memory_limit": memory_limit, "max_length": max_length, "threads": threads}
        print_tokens(model, prompt_ids, session, {"max_new_tokens": max_new_tokens, **sampling}, outputs, talk)
        return
    feed = given(model, inputs) if inputs is not None else made_up(model, options["dims"], seed)
    if arena:
        found, lines, facts = _in_arena(model, feed)
    else:
        found, lines, facts = _in_session(model, feed, memory, memory_limit, strict, runs, threads)
    if talk.as_json or not talk.quiet:
        planned, line = _planned_peak(model, feed)
        facts |= planned
        lines.insert(0, line)
    if outputs is not None:
        save_feed(outputs, found)
        lines.append(f"wrote {outputs}")
    facts["files"] = [] if outputs is None else [outputs]
    talk.tell(
        lambda: facts | {"outputs": [_summary(name, value) for name, value in found.items()]},
        lambda: _print(found, lines),
    )


def _planned_peak(model: Path, feed: dict[str, Any]) -> tuple[dict[str, Any], str]:
    from memoptc.ir.infer import infer_shapes
    from memoptc.ir.onnx_io import read_onnx
    from memoptc.report.rows import size
    from memoptc.runtime.configuration import FILE_ORDER, planned_peak
    from memoptc.runtime.memory.extents import bind_shapes

    graph = read_onnx(model)
    infer_shapes(graph)
    peak = planned_peak(graph, bind_shapes(graph, feed)).peak_bytes
    facts = {"planned_peak_bytes": peak, "configuration": str(FILE_ORDER)}
    return facts, f"planned peak {size(peak)} ({FILE_ORDER}; {peak} bytes)"


def _in_arena(model: Path, feed: dict[str, Any]) -> tuple[dict[str, Any], list[str], dict[str, Any]]:
    from memoptc.ir.infer import infer_shapes
    from memoptc.ir.onnx_io import read_onnx
    from memoptc.report.rows import size
    from memoptc.runtime.arena import run_in_arena

    graph = read_onnx(model)
    infer_shapes(graph)
    found, report = run_in_arena(graph, feed)
    lines = [
        f"{report.steps} steps in an arena of {size(report.arena_bytes)} (floor {size(report.floor_bytes)}); freed "
        "bytes were poisoned, guard zones are untouched"
    ]
    if report.outside:
        lines.append(f"{len(report.outside)} values of unknown size lay outside: {', '.join(report.outside[:5])}")
    facts = {n: getattr(report, n) for n in ("steps", "arena_bytes", "floor_bytes", "outside")}
    return found, lines, facts


def _in_session(
    model: Path,
    feed: dict[str, Any],
    memory: Any,
    limit: int | None,
    strict: bool,
    runs: int,
    threads: int | None,
) -> tuple[dict[str, Any], list[str], dict[str, Any]]:
    import numpy as np

    from memoptc.report.rows import size
    from memoptc.runtime.configuration import SESSION
    from memoptc.runtime.executed import executed_order, first_difference
    from memoptc.runtime.session import Session

    lines = []
    facts: dict[str, Any] = {"memory": memory, "runs": runs, "plans": []}
    with Session(model, memory=memory, memory_limit=limit, strict=strict, threads=threads) as session:
        names = [port.name for port in session.get_outputs()]
        seconds = []
        for _ in range(runs + (memory == "planned")):  # the first planned run only records
            start = time.perf_counter()
            values = session.run(None, feed)
            seconds.append(time.perf_counter() - start)
        facts["median_ms"] = float(np.median(seconds[-runs:]) * 1e3)
        lines.append(f"{facts['median_ms']:.2f} ms, median of {runs}")
        for plan in session.plans:
            bound = sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in plan.bound.values())
            facts["plans"].append({n: getattr(plan, n) for n in ("peak_bytes", "arena_bytes")})
            lines.append(
                f"recorded peak {size(plan.peak_bytes)} ({SESSION}); planned: every allocation inside "
                f"{size(plan.arena_bytes)} (floor {size(plan.plan.floor)}), outputs of {size(bound)} in the caller's "
                "arrays"
            )
        contract = session.contract
    if memory != "stock" and contract.options.file_order:
        wrong = first_difference(model, executed_order(model, feed, contract.options))
        facts["in_file_order"] = not wrong
        lines.append(f"not in the file's order: {wrong}" if wrong else "executed in the file's order, as contracted")
    if memory == "arena" and contract.arena_bytes:
        facts["arena_bytes"] = contract.arena_bytes
        lines.append(f"arena of {size(contract.arena_bytes)}, as contracted")
    return dict(zip(names, values, strict=True)), lines, facts


def _summary(name: str, value: Any) -> dict[str, Any]:
    """Type, shape, extremes and mean of an output, as far as it has numbers."""
    import numpy as np

    array = np.asarray(value)
    figures: dict[str, Any] = {"min": None, "mean": None, "max": None}
    if array.dtype.kind in "fiu" and array.size:
        wide = array.astype(np.float64)
        figures = {"min": wide.min(), "mean": wide.mean(), "max": wide.max()}
    return {"name": name, "type": str(array.dtype), "shape": list(array.shape), **figures}


def _print(found: dict[str, Any], lines: list[str]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from memoptc.cli.show import result_console

    console = result_console()
    table = Table("output", "type", "shape", "min", "mean", "max")
    for name, value in found.items():
        told = _summary(name, value)
        figures = ["" if told[k] is None else f"{told[k]:.4g}" for k in ("min", "mean", "max")]
        table.add_row(escape(name), told["type"], "x".join(map(str, told["shape"])) or "scalar", *figures)
    console.print(table)
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
