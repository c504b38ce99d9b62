"""Content of a report: the two models, what passes did, what was measured and proven."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from memoptc.runtime.memory.plan import Plan


@dataclass
class Curve:
    """Planned bytes alive at each step of one run.

    Args:
        live_bytes: Bytes alive while step i executes.
        labels: What executes at step i (operator and node name).
    """

    live_bytes: list[int] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)


@dataclass
class Side:
    """One of the two models: the untouched original (control) or what came out (candidate).

    Args:
        file_bytes: Model file and external data together.
        weight_bytes: Weights as stored.
        nodes: Nodes of all graphs, weights not counted.
        planned_peak_bytes: Most activation bytes alive at once in file order; `None` when sizes are unknown.
        floor_bytes: What no placement can go below, for that order.
        arena_bytes: Size of the planned arena.
        predicted_need_bytes: What a process with stock onnxruntime is predicted to need.
        measured: What a fresh process needed (`need_bytes`, its `parts`, `latency_ms`, ...).
        session: The same in `memoptc.runtime.Session`, by tier, its default one first; `None` when not measured.
        alive: What is alive at the planned peak, largest first: names and bytes.
        curve: Planned bytes over the run.
        plan: The planned arena, for pictures; not part of the JSON form.
    """

    file_bytes: int = 0
    weight_bytes: int = 0
    nodes: int = 0
    planned_peak_bytes: int | None = None
    floor_bytes: int | None = None
    arena_bytes: int | None = None
    predicted_need_bytes: int | None = None
    measured: dict[str, Any] | None = None
    session: dict[str, dict[str, Any]] | None = None
    alive: list[dict[str, Any]] = field(default_factory=list)
    curve: Curve | None = None
    plan: Plan | None = None

    def to_json(self) -> dict[str, Any]:
        """Give the JSON form."""
        found = {k: getattr(self, k) for k in self.__dataclass_fields__ if k not in ("curve", "plan")}
        found["curve"] = None if self.curve is None else vars(self.curve)
        return found


@dataclass
class PassRecord:
    """Record of one pass. `max_error` is filled when numbers were checked after each pass."""

    name: str
    seconds: float
    nodes_before: int
    nodes_after: int
    planned_peak_bytes: int | None = None
    weight_bytes: int = 0
    max_error: float | None = None
    stats: dict[str, int] = field(default_factory=dict)


def stats_by_pass(passes: Iterable[tuple[str, Mapping[str, int]]]) -> dict[str, dict[str, int]]:
    """Sum up what each pass did, however often it ran: name -> what -> how often; idle ones have nothing.

    Args:
        passes: Names and statistics of passes as they ran.
    """
    found: dict[str, dict[str, int]] = {}
    for name, stats in passes:
        counts = found.setdefault(name, {})
        for what, count in stats.items():
            counts[what] = counts.get(what, 0) + count
    return found


@dataclass
class Decision:
    """One choice of the compiler: what it did, why, what it gains (bytes) and costs."""

    step: str
    what: str
    why: str
    gain_bytes: int | None = None
    cost: str = ""


@dataclass
class ReportFacts:
    """Everything a compile did and measured; `schema.json` describes the JSON form.

    Args:
        model: `path`, `sha256`, `opset`, `nodes`.
        options: The options in force, as given or by default.
        verification: Outcome of the proof, with `mode` (`off`, `fast` or `full`).
        accuracy: A task figure before and after, where the data carries labels.
        kernels: Which nodes of a quantized candidate onnxruntime runs on integers, and which fall back to float.
        sizes: `planned` and `run`: extents of symbolic dimensions that planned figures hold for, and that both models
            were run at; `chosen`: those that nobody gave; `configuration`: what planned figures are for.
        environment: Versions and threads that the measurements hold for.
        precision: Where integers were searched for: `layers` (layer, op, bytes, error alone, decision; empty when
            accuracy was met with all alike) and `reached` (setting, SQNR, metric).
        inputs: Data that was used, `calibration` and `validation`: `name`, `sha256` (`None` where it is no file).
        artefacts: Files that were written: `name`, `bytes`, `sha256`; the model first.
        command: The command line that repeats it.
        decoder: Of a language model: layers, heads, vocabulary and cache, in one line.
    """

    model: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    control: Side = field(default_factory=Side)
    candidate: Side = field(default_factory=Side)
    passes: list[PassRecord] = field(default_factory=list)
    verification: dict[str, Any] = field(default_factory=dict)
    accuracy: dict[str, Any] | None = None
    kernels: dict[str, Any] | None = None
    decisions: list[Decision] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    sizes: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    precision: dict[str, Any] | None = None
    inputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    artefacts: list[dict[str, Any]] = field(default_factory=list)
    command: str = ""
    decoder: str | None = None
    seconds: float = 0.0
