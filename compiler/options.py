"""The options of one compile, checked when they are put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from memoptc.budget import Budget, BudgetLike
from memoptc.ir.diagnostics import InputError
from memoptc.ir.forms import FORMS

VERIFY_MODES = ("off", "fast", "full")
EXTERNAL = ("auto", "always", "never")
FORM_CHOICES = ("auto", *FORMS)

ProgressCallback = Callable[[str, float | None], None]


def _silent(step: str, share: float | None = None) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Options:
    """What a caller may ask of a compile; every field has a command-line option of the same name.

    Args:
        level: `-O0` changes nothing, `-O1` no output bit, `-O2` trades float noise for memory and speed at
            equal latency, `-O3` takes memory first.
        target: Numbers to use; see `memoptc.targets.TARGETS`.
        calibration: Data that quantization observes: a path, `module:function`, or an iterable of feeds.
        validation: Data to verify and to measure accuracy with; the calibration data when not given.
        quantize_io: Inputs and outputs in the dtypes that the model works with, where it codes them as a whole; the
            caller's dtypes when not set.
        device: Profile of the device to quantize for: a name (`memoptc.runtime.devices`), a `.toml` file, or `auto` for
            that of this machine.
        memory_budget: What must fit: `256MiB` (or bytes) for the need of the whole process, loading included;
            `activations=64MiB,weights=100MiB` for planned activations and stored weights (`memoptc.budget.Budget`).
        run_with: The way of running in which a process must fit: `stock` or `session`; either when not set.
        max_slowdown: Largest accepted ratio of median latencies, candidate to control.
        tune: Let passes measure what they made, instead of relying on predicted run times.
        max_error: Largest accepted error of an output relative to its scale.
        min_sqnr: Least signal to difference of every output in decibels, for targets of integers with calibration
            data: layers stay in float as far as that needs it.
        max_accuracy_loss: Largest accepted loss of the metric, as `min_sqnr`.
        metric: What measures accuracy: `perplexity` of a language model, whose loss is that of its logarithm;
            `module:function` or a function (see `memoptc.runtime.quality.Metric`); top-1 on labels that come with the
            data when not given.
        fallback: Whether layers may stay in float.
        dims: Extents of symbolic dimensions for planning, measuring and verifying.
        freeze: Extents that become part of the model.
        last_logits: Give scores of a vocabulary for the last step only: outputs become [batch, 1, vocabulary].
        freeze_runtime: Make onnxruntime's own optimization part of the model, so that it runs in our order.
        pack_weights: Write weights beside the model in the layouts of this machine's kernels, so that loading maps
            them; with `freeze_runtime`, and when compiling to a file.
        form: How the file is written: `plain`; `branch`, the model inside a branch that is always taken, which has no
            memory pattern in onnxruntime; `captured`, the same with large weights outside of it; or `auto`, the one of
            these that needs least (from level 2 on).
        external: `always`: weights in a file beside the model; `never`: inside it; `auto`: beside it where they were
            beside the original's, or take a megabyte or more.
        portable: Write nothing that is laid out for this machine's processor; excludes `pack_weights`.
        passes: Pipeline to run instead of the level's.
        skip_passes: Passes to leave out of it.
        settings: Options of its passes, as `pass.option=value`.
        verify: `off`, `fast` (few samples) or `full` (all data, several sizes).
        measure: Measure memory and latency of both models in fresh processes.
        container: Find the smallest container of both, too (slow; with `measure`).
        plugins: Modules, `.py` or `.rules` files with further passes and rules.
        jobs: Threads that onnxruntime may use while measuring.
        force: Give a result even when a gate fails.
        check_each: Check numbers after each pass.
        dump_dir: Folder for the graph as `.mir` after each pass.
        progress: Called with a step's name and the share of the whole that is done.
    """

    level: int = 2
    target: str = "float32"
    calibration: Any = None
    validation: Any = None
    quantize_io: bool = False
    device: str = "auto"
    memory_budget: BudgetLike = None
    run_with: str | None = None
    max_slowdown: float | None = None
    tune: bool = False
    max_error: float | None = None
    min_sqnr: float | None = None
    max_accuracy_loss: float | None = None
    metric: Any = None
    fallback: bool = True
    dims: Mapping[str, int] = field(default_factory=dict)
    freeze: Mapping[str, int] = field(default_factory=dict)
    last_logits: bool = False
    freeze_runtime: bool = False
    pack_weights: bool = False
    form: str = "auto"
    external: str = "auto"
    portable: bool = False
    passes: str | None = None
    skip_passes: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    verify: str = "fast"
    measure: bool = False
    container: bool = False
    plugins: tuple[str, ...] = ()
    jobs: int | None = None
    force: bool = False
    check_each: bool = False
    dump_dir: Path | None = None
    progress: ProgressCallback = _silent

    def __post_init__(self) -> None:
        from memoptc.targets import CODED_BORDERS, TARGETS

        Budget.of(self.memory_budget)
        if self.run_with not in (None, "stock", "session"):
            raise InputError(f"run_with={self.run_with!r} is unknown.", hint="Use stock or session.")
        if self.run_with is not None and Budget.of(self.memory_budget).process is None:
            raise InputError(
                "A way of running is chosen for a budget of the whole process, and there is none.",
                hint="Add --memory-budget 256MiB, or leave --run-with out.",
            )
        if self.level not in (0, 1, 2, 3):
            raise InputError(f"There is no level {self.level}.", hint="Levels are 0, 1, 2 and 3.")
        if self.target not in TARGETS:
            raise InputError(f"There is no target {self.target!r}.", hint=f"Targets are {', '.join(TARGETS)}.")
        if self.quantize_io and self.target not in CODED_BORDERS:
            raise InputError(
                f"Target {self.target} leaves inputs and outputs as they are.",
                hint=f"--quantize-io goes with --target {', '.join(CODED_BORDERS)}.",
            )
        if self.quantize_io and self.passes is not None:
            raise InputError("A pipeline of your own says all that runs.", hint="Put quantize-io into --passes.")
        if self.pack_weights and not self.freeze_runtime:
            raise InputError(
                "Weights are packed for a graph that onnxruntime runs as it is.", hint="Add --freeze-runtime."
            )
        if self.container and not self.measure:
            raise InputError("A container is measured.", hint="Leave --no-measure out, or --container.")
        if self.pack_weights and self.portable:
            raise InputError(
                "Packed weights are laid out for this machine's processor, a portable model's are not.",
                hint="Leave out --pack-weights or --portable.",
            )
        for option, value, known in (("form", self.form, FORM_CHOICES), ("external", self.external, EXTERNAL)):
            if value not in known:
                raise InputError(f"{option}={value!r} is unknown.", hint=f"Use {', '.join(known)}.")
        if self.external == "never" and self.pack_weights:
            raise InputError("Packed weights lie beside the model.", hint="Leave out --external never.")
        if self.metric not in (None, "perplexity") and self.max_accuracy_loss is None:
            raise InputError("A metric needs to know what may be lost of it.", hint="Add --max-accuracy-loss.")
        if self.verify not in VERIFY_MODES:
            raise InputError(f"verify={self.verify!r} is unknown.", hint=f"Use {', '.join(VERIFY_MODES)}.")
        for name, extent in (*self.dims.items(), *self.freeze.items()):
            if not isinstance(extent, int) or extent < 0:
                raise InputError(f"Dimension {name} cannot be {extent!r}.", hint="Give a whole number >= 0.")

    @property
    def budget(self) -> Budget:
        """What must fit."""
        return Budget.of(self.memory_budget)

    def to_json(self) -> dict[str, Any]:
        """Give the options as plain values for the report."""
        found: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name in ("progress",):
                continue
            if f.name in ("calibration", "validation", "metric") and value is not None and not isinstance(value, str):
                value = str(value) if isinstance(value, Path) else f"<{type(value).__name__}>"
            if isinstance(value, Budget):
                value = str(value)
            found[f.name] = dict(value) if isinstance(value, Mapping) else value
        return found
