"""The base class of passes, and the facts of a compile that they may read."""

from __future__ import annotations

import inspect
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, dataclass_transform

from memoptc.allowance import PASSES, SEARCHES, Allowance
from memoptc.ir.budget import Meter
from memoptc.ir.core import Graph
from memoptc.ir.files import TemporaryFolder
from memoptc.ir.infer import Inference, infer_shapes
from memoptc.ir.pool import WeightPool
from memoptc.report.model import Decision
from memoptc.runtime.accuracy import AccuracyTarget
from memoptc.runtime.memory.plan import Plan


def _silent(text: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Limits:
    """Bound on the steps of one pass: a constant, and as much again for each op; beyond it the pass counts as endless.

    Args:
        steps: Changes of the graph, and what a pass counts with `Context.tick`.
        steps_per_op: The same for each op that the pass begins with.
        seconds: Run time.
        seconds_per_op: The same for each op.
        with_data: What run time is multiplied by where passes run the model on samples, or measure it.
    """

    steps: int = 100_000
    steps_per_op: int = 2_000
    seconds: float = 120.0
    seconds_per_op: float = 0.5
    with_data: float = 100.0

    def steps_for(self, ops: int) -> int:
        """Steps for a program of so many ops."""
        return self.steps + self.steps_per_op * ops

    def seconds_for(self, ops: int, context: Context) -> float:
        """Seconds for a program of so many ops."""
        runs = context.calibration is not None or context.validation is not None or context.slowdown is not None
        return (self.seconds + self.seconds_per_op * ops) * (self.with_data if runs else 1.0)


@dataclass(frozen=True)
class Precision:
    """Decisions of a precision search.

    Args:
        layers: A row for each layer: its name, operator, bytes, error alone, decision; empty when all are alike.
        reached: What came of it: setting, SQNR, metric.
    """

    layers: list[dict[str, Any]]
    reached: dict[str, Any]


@dataclass
class Artefacts:
    """Results of passes besides the graph.

    Args:
        plan: The planned arena.
        frozen: Whether the graph is as onnxruntime's optimizer left it.
        transposed: Whether products read transposes of large weights, which onnxruntime computes while loading.
        precision: What a search for numbers decided.
        reference: The graph before the first lossy pass, as a file in a pool: all of them are held against it.
        declined: Reasons for which rules did not apply, counted.
        trace: A `memoptc.rewrite.trace.Trace` that learns why rules do not fit, or `None`.
    """

    plan: Plan | None = None
    frozen: bool = False
    transposed: bool = False
    precision: Precision | None = None
    reference: tuple[WeightPool, Path] | None = None
    declined: Counter[str] = field(default_factory=Counter)
    trace: Any = None


@dataclass(frozen=True)
class Searched:
    """Replayable result of a search, to apply it again to an equal graph.

    Args:
        graph: The graph that came out.
        stats: What it counted.
        decisions: What it told the report.
        warnings: What it told the user.
        precision: The table of layers.
    """

    graph: Graph
    stats: Counter[str]
    decisions: list[Decision]
    warnings: list[str]
    precision: Precision | None


@dataclass
class Context:
    """Facts about one compile, and what passes leave for the report.

    Args:
        level: Optimisation level.
        target: Numbers asked for.
        stats: What the pass that runs did, counted; a pipeline starts a new counter for each pass.
        dims: Extents of symbolic dimensions to plan with.
        check: Extents to run models at, where those to plan with may be too large for that.
        calibration: Samples to observe (re-iterable), or `None`.
        validation: Samples to hold results against (re-iterable), or `None`.
        metric: What measures accuracy (see `memoptc.runtime.metric.Metric`), or `None`.
        force: Whether a missed target is only a warning.
        scratch: An existing folder for temporary files; one of its own, gone with the context, when not given.
        slowdown: Measures a graph: its run time over the original's; `None` when nothing is to be measured.
        say: Tells the user where a long pass stands.
        warnings: What the user must know; passes append.
        decisions: What was done and why; passes append.
        checkpoint: A folder in which searches keep what they measured and coded, or `None`.
        searched: What searches did in earlier attempts at the same compile, by search and content of the graph.
        artefacts: What passes make besides the graph.
        weights: The pool that models are written to at the moment, if passes share one.
        original: The model as it was given, if a pipeline starts with another: options of passes may use its names.
        limits: Bounds beyond which a pass is ended, its work taken back, and the compile goes on with a warning.
        meter: Counts the steps of the pass that runs.
        allowance: The time of the compile; without end where passes run outside of one.
    """

    level: int = 1
    target: str = "float32"
    stats: Counter[str] = field(default_factory=Counter)
    dims: Mapping[str, int] = field(default_factory=dict)
    check: Mapping[str, int] | None = None
    calibration: Any = None
    validation: Any = None
    metric: Any = None
    force: bool = False
    scratch: Path = Path()
    slowdown: Callable[[Graph], float] | None = None
    say: Callable[[str], None] = _silent
    warnings: list[str] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    artefacts: Artefacts = field(default_factory=Artefacts)
    weights: WeightPool | None = None
    checkpoint: Path | None = None
    searched: dict[str, Searched] = field(default_factory=dict)
    original: Graph | None = field(default=None, repr=False)
    limits: Limits = Limits()
    meter: Meter | None = field(default=None, repr=False)
    allowance: Allowance = field(default_factory=lambda: Allowance(math.inf), repr=False)
    _shapes: tuple[Graph, int, Inference] | None = field(default=None, init=False, repr=False)
    _folder: TemporaryFolder | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.scratch == Path():
            # Not the current folder: others may work there, under the same names.
            self._folder = TemporaryFolder()
            self.scratch = Path(self._folder.name)

    @property
    def run_dims(self) -> Mapping[str, int]:
        """Extents to run models at."""
        return self.dims if self.check is None else {**self.dims, **self.check}

    def tick(self, count: int = 1) -> None:
        """Count steps of a search that does not change the graph; what changes it is counted anyway.

        Raises:
            PassOverrun: the pass took more than it may; let it through.
        """
        if self.meter is not None:
            self.meter.step(count)

    def is_late(self, what: str) -> bool:
        """True if a search shall end with the best that it has, as the compile's time for searches is over.

        Args:
            what: What it leaves out, as the user shall read it.
        """
        return self.allowance.is_late(what, SEARCHES)

    @property
    def left_for_numbers(self) -> float:
        """Seconds that the compile has for a search for the numbers that were asked for."""
        return self.allowance.left(PASSES)

    def shapes(self, graph: Graph) -> Inference:
        """Infer shapes and known elements of integer vectors; once per version of the graph."""
        root = graph.root
        if self._shapes is None or self._shapes[0] is not root or self._shapes[1] != root.version:
            self.keep_shapes(root, infer_shapes(root))
        assert self._shapes is not None
        return self._shapes[2]

    def keep_shapes(self, graph: Graph, inference: Inference | None) -> None:
        """Keep what was inferred for this version of a graph; `None` forgets it."""
        self._shapes = None if inference is None else (graph, graph.version, inference)


@dataclass_transform(frozen_default=True)
class Pass:
    """A change to a program. Subclasses are frozen dataclasses by themselves: their fields are the options.

    The pass's name in pipelines is the class's in kebab case (`DropIdentity` is `drop-identity`), its module
    the same with underscores (`drop_identity.py`), its help the first line of its or its module's docstring.
    A pass keeps nothing between runs and need not say whether it changed anything.
    """

    name: ClassVar[str] = ""
    changes_interface: ClassVar[bool] = False
    """Whether the pass is there to change names, types or documentation of inputs and outputs."""
    changes_numbers: ClassVar[bool] = False
    """Whether the pass is there to write coarser numbers: a compile that runs late has more time for it."""
    runs_late: ClassVar[bool] = False
    """Whether it runs even when the compile's time is over: it is quick, and others leave to it what they replaced."""
    names_nodes: ClassVar[tuple[str, ...]] = ("exclude",)
    """Options that hold names of nodes or values, or operators: one that nothing in the model is called is an error."""
    kept: ClassVar[bool] = False
    """Whether nothing takes the pass back or leaves it out: without it there is no file, or not what was asked for."""

    @property
    def accuracy_target(self) -> AccuracyTarget | None:
        """Accuracy target of a lossy pass, which its outcome is verified by; `None` for one that keeps the numbers."""
        return None

    def weaker(self) -> Pass | None:
        """Give the pass to run instead where this one makes a model larger or slower; `None` leaves it out."""
        return None

    def stricter(self, missing: float | None = None) -> Pass | None:
        """Give the pass to run instead where a model fails its proof, which keeps more of the numbers; else `None`.

        Args:
            missing: Decibels that the model lacks; `None` where it fails for another reason.
        """
        return None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = cls.__dict__.get("run")
        if own is not None and list(inspect.signature(own).parameters)[1:] != ["graph", "context"]:
            raise TypeError(
                f"{cls.__name__}.run takes {inspect.signature(own)}; a pass defines run(self, graph, context), and "
                "counts what it did in context.stats."
            )
        cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", cls.__name__).lower()
        dataclass(frozen=True)(cls)

    def run(self, graph: Graph, context: Context) -> None:
        """Change the graph; count what was done in `context.stats`."""
        raise NotImplementedError(f"{type(self).__name__} has no run()")

    def __str__(self) -> str:
        """Spell the pass as in pipelines; options that have their default value are left out."""
        given = [
            f"{f.name}={spell(getattr(self, f.name))}"
            for f in fields(self)  # type: ignore[arg-type]
            if f.default_factory is not MISSING or getattr(self, f.name) != f.default
        ]
        return self.name + (f"{{{','.join(given)}}}" if given else "")


def spell(value: Any) -> str:
    """Spell an option's value as pipelines have it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, tuple):
        return f"[{','.join(spell(v) for v in value)}]"
    return "none" if value is None else repr(value)
