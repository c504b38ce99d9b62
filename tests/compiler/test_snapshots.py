"""A pipeline that begins like an earlier one goes on where they part, and gives what running it all gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from memoptc import snapshots
from memoptc.compilation import Compilation
from memoptc.ir.core import Graph
from memoptc.ir.printer import print_graph
from memoptc.manager import PassFailed
from memoptc.options import Options
from memoptc.pass_base import Context, Pass
from memoptc.pipeline import Pipeline, parse
from memoptc.snapshots import Snapshots
from memoptc.steps.run import Compiled, Start, run_passes

MODEL = Path(__file__).parents[2] / "examples" / "models" / "digits_cnn.onnx"
STEPS = (
    "inline-functions,(simplify,fold-constants,drop-dead)*,fuse-conv-bn,drop-dead,order,fit{ignore=0},plan-memory,lower"
)


class BreakDown(Pass):
    """Raises; not found by name, since it is defined here."""

    def run(self, graph: Graph, context: Context) -> None:
        """Fail."""
        raise ValueError("broken")


@pytest.fixture
def compilation(tmp_path: Path) -> Compilation:
    return Compilation.of(MODEL, Options(level=2, measure=False, dims={"batch": 64}), tmp_path)


def outcome(compiled: Compiled) -> object:
    """All that a compile goes on with, times left out."""
    records = [(r.name, r.nodes_before, r.nodes_after, r.planned_peak_bytes, r.stats) for r in compiled.passes]
    text = print_graph(compiled.graph, weights="elide")
    return text, records, compiled.changed, compiled.warnings, compiled.decisions, compiled.artefacts.plan


@pytest.mark.parametrize(("dropped", "shared"), [("fit", 5), ("order", 4), ("fuse-conv-bn", 0)])
def test_what_an_edit_leaves_alone_does_not_run_again(
    compilation: Compilation, dropped: str, shared: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "COPY_SHARE", 0)
    steps, made = parse(STEPS), Snapshots()
    first = outcome(run_passes(compilation, steps, Start(snapshots=made)))
    edited = steps.without({next(i for i, p in enumerate(steps.passes()) if p.name == dropped)})
    known = made.before(edited)
    assert (known.items if known else ()) == steps.items[:shared]  # the latest snapshots are kept
    resumed = run_passes(compilation, edited, Start(snapshots=made))
    assert outcome(resumed) == outcome(run_passes(compilation, edited, Start()))
    assert outcome(run_passes(compilation, steps, Start(snapshots=made))) == first  # a snapshot serves more than once


def test_what_breaks_behind_a_snapshot_is_reproduced_from_the_start(
    compilation: Compilation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(snapshots, "COPY_SHARE", 0)
    monkeypatch.chdir(tmp_path)
    steps, made = parse("simplify,drop-dead,order,lower"), Snapshots()
    run_passes(compilation, steps, Start(snapshots=made))
    broken = Pipeline((*steps.items[:3], BreakDown()))
    assert made.before(broken) is not None
    with pytest.raises(PassFailed, match="broken") as failure:
        run_passes(compilation, broken, Start(snapshots=made))
    assert failure.value.index == 3
    assert failure.value.rest == (BreakDown(),)
    assert "break-down" in (tmp_path / "memoptc-reproducer-break-down.mir").read_text()
