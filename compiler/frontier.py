"""Frontier of need and latency: the same model compiled for smaller and smaller memory budgets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from memoptc.api import compile_file
from memoptc.ir.diagnostics import GateError, MemoptcError
from memoptc.ir.files import TemporaryFolder
from memoptc.options import Options
from memoptc.runtime.contract import contract_path
from memoptc.runtime.measure import measure
from memoptc.runtime.measured_contract import make_contract
from memoptc.runtime.native.session import NativeSession
from memoptc.runtime.options import RunOptions
from memoptc.runtime.session import MemoryLimit, Session
from memoptc.samples import Inputs
from memoptc.source import load

SHARES = (1.0, 0.75, 0.5, 0.35, 0.25, 0.18, 0.12, 0.09, 0.06, 0.045, 0.03, 0.02, 0.015, 0.01)
"""Budgets as shares of the planned peak of the original."""


LESS, LEAST = 0.8, 0.55
"""How much less is asked for when runs need more than planned, and from where on that is given up."""


@dataclass
class Point:
    """A point of the frontier: a budget, and the model that was compiled for it.

    Args:
        budget_bytes: What was asked for.
        planned_bytes: What the compiled model needs, as planned.
        holder: What keeps it there, where the budget is out of reach.
        verified: Whether its outputs are those of the original, within the limits of the target.
        max_error: Largest absolute error of an output.
        held: Whether runs kept to the plan under a limit of so many bytes (and the kernels' layouts of the weights);
            `None` when that was not tried.
        run_peak_bytes: Highest resident memory over the loaded model in stock onnxruntime.
        latency_ms: Median.
        nodes: Nodes of the model.
    """

    budget_bytes: int
    planned_bytes: int
    holder: str = ""
    verified: bool | None = None
    max_error: float | None = None
    held: bool | None = None
    run_peak_bytes: int | None = None
    latency_ms: float | None = None
    nodes: int = 0

    @property
    def reached(self) -> bool:
        """True if the budget is kept."""
        return self.planned_bytes <= self.budget_bytes


@dataclass
class Frontier:
    """All points of a model, from the largest budget to the smallest that was tried.

    Args:
        model: What it is called.
        planned_bytes: The original's planned peak.
        run_peak_bytes: The original's highest resident memory over the loaded model.
        latency_ms: The original's median.
        points: One per budget.
    """

    model: str
    planned_bytes: int
    run_peak_bytes: int | None = None
    latency_ms: float | None = None
    points: list[Point] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Give plain values."""
        return asdict(self)


def frontier(
    model: str | Path,
    options: Options,
    *,
    shares: Sequence[float] = SHARES,
    seconds: float = 10.0,
    say: Callable[[str, float | None], None] = lambda _, __: None,
) -> Frontier:
    """Compile a model for smaller and smaller budgets, until one is out of reach; verify and enforce each.

    Args:
        model: The file.
        options: For every compile; budget and measuring are set here.
        shares: Budgets as shares of the original's planned peak, falling.
        seconds: About how long all timed runs together may take; 0 measures nothing.
        say: Progress.

    Raises:
        InputError: the model or an option cannot be used.
    """
    model = Path(model)
    with TemporaryFolder("memoptc-frontier-") as folder:
        source = load(model, Path(folder))
        feed = Inputs(source, options).feed
        found: Frontier | None = None
        files: list[Path] = []
        for number, share in enumerate(shares):
            say(f"budget {share:.0%}", number / (len(shares) + 1))
            path = Path(folder) / f"{number}.onnx"
            if found is None:
                found = Frontier(model.name, _planned(model, options, path))
            point = _compile_for_budget(model, path, int(found.planned_bytes * share), options, feed)
            found.points.append(point)
            files.append(path)
            if not point.reached:
                break
        assert found is not None
        if seconds:
            say("measuring", len(shares) / (len(shares) + 1))
            _measure(found, model, files, feed, options, seconds)
        return found


def _planned(model: Path, options: Options, path: Path) -> int:
    """The original's planned peak."""
    plain = _fields(replace(options, level=0, target="float32", passes=None, freeze_runtime=False, verify="off"))
    return compile_file(model, path, **plain).figures.planned_peak_bytes or 0


def _fields(options: Options) -> dict[str, Any]:
    return {**vars(options), "measure": False}


def _compile_for_budget(model: Path, path: Path, budget: int, options: Options, feed: dict[str, Any]) -> Point:
    """Compile for a budget; where onnxruntime, which has a mind of its own, needs more than the plan, for less."""
    asked = budget
    while True:
        point = _point(model, path, asked, options)
        point.budget_bytes = budget
        make_contract(path, feed, threads=options.jobs or 0).save(contract_path(path))
        if not point.reached or not point.verified:
            return point
        # Workspace is planned for one thread.
        point.held = _holds(path, feed, budget, options.jobs or 1)
        if point.held is not False or asked < budget * LEAST:
            return point
        asked = int(asked * LESS)


def _point(model: Path, path: Path, budget: int, options: Options) -> Point:
    asked = replace(options, memory_budget=f"activations={budget}", force=True)
    try:
        result = compile_file(model, path, **_fields(asked))
    except GateError:
        return Point(budget, budget + 1, "verification failed", verified=False)
    figures, proof = result.figures, result.verification
    need = (result.plan.arena_bytes if result.plan is not None else figures.planned_peak_bytes) or 0
    holder = next((d.what for d in reversed(result.decisions) if d.what.startswith("stopped")), "")
    return Point(
        budget,
        need,
        holder if need > budget else "",
        None if proof is None else proof.passed,
        None if proof is None else proof.max_error,
        nodes=figures.nodes,
    )


def _holds(path: Path, feed: dict[str, Any], budget: int, threads: int) -> bool | None:
    """True if three planned runs stay below the budget and what the kernels' layouts of the weights take."""
    try:
        native = NativeSession(path, RunOptions(threads=threads))
        packed = native.load_peak_bytes
        native.close()
        with Session(path, memory="planned", memory_limit=max(budget + packed, 1 << 16), strict=True) as session:
            for _ in range(3):
                session.run(None, feed)
        return True
    except MemoryLimit:
        return False
    except MemoptcError:
        return None


def _measure(
    found: Frontier, model: Path, files: Sequence[Path], feed: dict[str, Any], options: Options, seconds: float
) -> None:
    run = RunOptions(threads=options.jobs or 0)
    first, *others = measure([model, *files], feed, options=run, seconds=seconds)
    found.run_peak_bytes, found.latency_ms = first.run_peak_bytes, first.latency_ms["p50"]
    for point, measured in zip(found.points, others, strict=True):
        point.run_peak_bytes, point.latency_ms = measured.run_peak_bytes, measured.latency_ms["p50"]
