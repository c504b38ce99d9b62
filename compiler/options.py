"""The options of one compile, checked when they are put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, fields
from numbers import Integral
from pathlib import Path
from typing import Any

from memoptc.allowance import parse_seconds
from memoptc.budget import Budget, BudgetLike
from memoptc.ir.diagnostics import InputError
from memoptc.ir.form_names import FORMS
from memoptc.option_fields import (
    GENERAL,
    MAX_EXTENT,
    check_values,
    option,
    parse_binding,
    parse_input_shape,
)
from memoptc.targets import CODED_BORDERS, TARGETS

MEMORY, NUMBERS, LOSSY, DATA, WRITING, PIPELINE, PROOF = (
    "Memory and speed",
    "Numbers and accuracy",
    "Smaller at an accuracy (--max-accuracy-loss, --min-sqnr; with --calibration)",
    "Data and sizes",
    "How the model is written",
    "Passes",
    "Proof and measurement",
)
"""Headings of `--help`."""

CODEBOOKS = (16, 256)
"""Numbers that a table of weights can have."""

LOSSY_OPTIONS = ("prune", "low_rank", "cluster", "prune_tokens", "early_exit")
"""Options that lose accuracy on purpose."""

ProgressCallback = Callable[[str, float | None], None]


def _silent(step: str, share: float | None = None) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Options:
    """Options of a compile: every field is a keyword of `memoptc.compile` and an option of the command.

    A new option is one field here. Its first argument is its help; `memoptc.option_fields` says what else there is.
    """

    level: int = option(
        "Optimisation level: 0 changes nothing, 1 no output bit, 2 may move the last bits, 3 takes memory first.",
        "-O",
        default=2,
        parse=int,
        least=0,
        most=3,
    )
    target: str = option("Numbers to use.", default="float32", choices=TARGETS)
    _: KW_ONLY
    calibration: Any = option(
        "Samples that scales, thresholds and what can go are chosen by: .npz, .npy, folder of .npz, or "
        "module:function.",
        metavar="DATA",
        group=DATA,
    )
    """Data that quantization observes: a path, `module:function`, or an iterable of feeds."""
    validation: Any = option(
        "As --calibration; to verify and to measure accuracy with.",
        "--validation",
        "--inputs",
        metavar="DATA",
        group=DATA,
    )
    """The calibration data when not given."""
    checkpoint: Path | None = option(
        "A folder in which searches keep what they measure and code; killed and run again, they go on from there.",
        parse=Path,
        metavar="FOLDER",
        group=DATA,
    )
    quantize_io: bool = option(
        "Inputs and outputs as codes (int8, uint8) or half (float16), too.", default=False, group=NUMBERS
    )
    """Only where the model codes them as a whole; they keep the caller's dtypes when not set."""
    cache: str = option(
        "Keys and values that a decoder keeps between steps; int8 needs --calibration and onnxruntime 1.32.",
        default="float32",
        choices=("float32", "int8"),
        group=NUMBERS,
    )
    """int8 changes the dtype of past and present; scales stand in the model's metadata (`memoptc.io`)."""
    device: str = option(
        "Profile to write and quantize for: x86-vnni, x86-avx2, arm64, wasm, or a .toml file.",
        default="auto",
        group=NUMBERS,
    )
    """A name (`memoptc.runtime.devices`), a `.toml` file, or `auto` for that of this machine."""
    memory_budget: BudgetLike = option(
        "The whole process must fit, e.g. 256MiB; or its parts: activations=64MiB,weights=100MiB.",
        metavar="SIZE",
        group=MEMORY,
    )
    """Need of the process, loading included; planned activations; stored weights (`memoptc.budget.Budget`)."""
    run_with: str | None = option(
        "Where the budget counts; either if not given.", choices=("stock", "session"), group=MEMORY
    )
    max_slowdown: float | None = option(
        "Largest accepted ratio of latencies, e.g. 1.2.", parse=float, least=0, group=MEMORY
    )
    """Of median latencies, candidate to control."""
    tune: bool = option(
        "Measure what tiling made, instead of relying on predicted run times (slow).", default=False, group=MEMORY
    )
    max_error: float | None = option(
        "Largest accepted error relative to an output's scale.", parse=float, least=0, group=NUMBERS
    )
    min_sqnr: float | None = option("Least signal to difference of every output, in dB.", parse=float, group=NUMBERS)
    """For targets of integers with calibration data: layers stay in float as far as that needs it."""
    max_accuracy_loss: float | None = option(
        "Largest accepted loss of the metric, e.g. 0.005.", parse=float, least=0, group=NUMBERS
    )
    """As `min_sqnr`."""
    metric: Any = option(
        "What measures accuracy; top-1 on labels if not given.", metavar="perplexity|MODULE:FUNCTION", group=NUMBERS
    )
    """The loss of a perplexity is that of its logarithm; a function is a `memoptc.runtime.metric.Metric`."""
    fallback: bool = option(
        "Whether layers may stay in float for that; else exit code 3 when it is not met.", default=True, group=NUMBERS
    )
    prune: float | None = option(
        "Remove up to this part of each layer's channels and hidden units, e.g. 0.3.",
        metavar="PART",
        parse=float,
        group=LOSSY,
    )
    """Of 1, exclusive; no more than the accuracy allows (pass `prune`)."""
    low_rank: bool = option("Products and convolutions as two thin ones.", default=False, group=LOSSY)
    """Where that saves bytes and the accuracy allows it (pass `factorize`)."""
    cluster: int | None = option(
        "Weights as indices into tables of 256 or 16 numbers: a smaller file, not less memory.",
        metavar="256|16",
        parse=int,
        group=LOSSY,
    )
    """Pass `cluster-weights`; with 16, weights that need more numbers get 256."""
    prune_tokens: bool = option("Drop tokens behind attention layers of encoders.", default=False, group=LOSSY)
    """As many as the accuracy allows (pass `prune-tokens`)."""
    early_exit: float | None = option(
        "Let a classifier end early; at most this share of inputs gets another likeliest class, e.g. 0.005.",
        metavar="SHARE",
        parse=float,
        group=LOSSY,
    )
    """Pass `early-exit`; labels are not needed."""
    dims: Mapping[str, int] = option(
        "Extent of a symbolic dimension for planning, measuring and verifying; the model stays dynamic.",
        "--dim",
        default={},
        parse=parse_binding,
        metavar="NAME=EXTENT",
        group=DATA,
    )
    input_shapes: tuple[str, ...] = option(
        "Extents of an input, --dim for each of its axes, e.g. x:1,3,224,224; may be repeated.",
        "--input-shape",
        default=(),
        metavar="INPUT:SHAPE",
        group=DATA,
    )
    freeze: Mapping[str, int] = option(
        "Make a symbolic dimension static, e.g. N=8.",
        default={},
        parse=parse_binding,
        metavar="NAME=EXTENT",
        group=DATA,
    )
    last_logits: bool = option(
        "Scores of a vocabulary for the last step only: [batch, 1, vocabulary].", default=False, group=WRITING
    )
    freeze_runtime: bool = option(
        "Make onnxruntime's own optimization part of the model; keeps our order.", default=False, group=WRITING
    )
    pack_weights: bool = option(
        "Weights beside the model, in this machine's layout, too, mapped when loading; chosen where it spares much.",
        default=False,
        group=WRITING,
    )
    form: str = option(
        "How the file is written: as it is, or inside a branch that avoids onnxruntime's second block of activations.",
        default="auto",
        choices=("auto", *FORMS),
        group=WRITING,
    )
    """`captured`: a branch with large weights outside of it; `shapeless`: one in which onnxruntime knows no shapes and
    keeps no buffer for a later value; `auto`: the form that needs least, from level 2 on."""
    external: str = option(
        "Weights in a file beside the model, which onnxruntime maps; auto: from a megabyte on.",
        default="auto",
        choices=("auto", "always", "never"),
        group=WRITING,
    )
    """`auto`: beside it also where they were beside the original's."""
    portable: bool = option(
        "Nothing laid out for this machine's processor (no --pack-weights).", default=False, group=WRITING
    )
    passes: str | None = option(
        "Run this pipeline instead of the level's; see `memoptc passes`.", metavar="PIPELINE", group=PIPELINE
    )
    skip_passes: tuple[str, ...] = option(
        "Leave a pass out; may be repeated.", "--skip-pass", default=(), metavar="NAME", group=PIPELINE
    )
    settings: tuple[str, ...] = option(
        "Set an option of a pass, e.g. fit.slowdown=1.2; may be repeated.",
        "--set",
        default=(),
        metavar="PASS.OPTION=VALUE",
        group=PIPELINE,
    )
    exclude: tuple[str, ...] = option(
        "Leave nodes in their numbers: a node's name, an operator, or a pattern of either; may be repeated.",
        default=(),
        metavar="NAME|TYPE|PATTERN",
        group=NUMBERS,
    )
    """For integers and for passes that lose accuracy; it is an error when nothing matches."""
    verify: str = option(
        "How much proof: none, a few samples, or all data and several sizes.",
        default="fast",
        choices=("off", "fast", "full"),
        group=PROOF,
    )
    measure: bool = option(
        "Measure memory and latency of both models.", "--measure/--no-measure", default=False, cli_default=True,
        group=PROOF,
    )  # fmt: skip
    """In fresh processes."""
    container: bool = option(
        "Find the smallest memory limit both models run in, too (slow).", default=False, group=PROOF
    )
    keep_worst: bool = option(
        "Keep the sample on which outputs differ most, in MODEL.worst.npz; a failed proof always does.",
        default=False,
        group=PROOF,
    )
    """It holds inputs as they were given; a report shows a few numbers of the outputs in any case."""
    time_limit: float | str | None = option(
        "Time for the compile, e.g. 5min: what does not fit is left out, and said; from the model's size if not given.",
        parse=parse_seconds,
        metavar="TIME",
        group=PROOF,
    )
    """Seconds, or text such as `90s`, `5min`, `1h`; writing and a proof are done in any case."""
    plugins: tuple[str, ...] = option(
        "Load passes or rules from a module, .py or .rules file; may be repeated.",
        "--plugin",
        default=(),
        metavar="MODULE",
        group=GENERAL,
    )
    jobs: int | None = option("Threads onnxruntime may use while measuring.", parse=int, least=1, group=PROOF)
    force: bool = option("Write the output even when a gate fails.", default=False)
    check_each: bool = option("Check numbers after each pass (slow); fills max_error.", default=False, group=PIPELINE)
    dump_dir: Path | None = option("Write the graph as .mir after each pass.", parse=Path, group=PIPELINE)
    progress: ProgressCallback = _silent
    """Called with a step's name and the share of the whole that is done."""

    def __post_init__(self) -> None:
        for name in ("dims", "freeze"):
            object.__setattr__(self, name, dict(getattr(self, name) or {}))
        Budget.of(self.memory_budget)
        if self.time_limit is not None:
            try:
                object.__setattr__(self, "time_limit", parse_seconds(self.time_limit))
            except ValueError as error:
                raise InputError(f"time_limit: {error}.") from None
        check_values(self)
        if not isinstance(self.passes, str | None):
            raise InputError(f"passes={self.passes!r} is no pipeline.", hint="Give its text, as str() writes it.")
        if self.run_with is not None and Budget.of(self.memory_budget).process is None:
            raise InputError(
                "A way of running is chosen for a budget of the whole process, and there is none.",
                hint="Add --memory-budget 256MiB, or leave --run-with out.",
            )
        if self.quantize_io and self.target not in CODED_BORDERS:
            raise InputError(
                f"Target {self.target} leaves inputs and outputs as they are.",
                hint=f"--quantize-io goes with --target {', '.join(CODED_BORDERS)}.",
            )
        if self.quantize_io and self.passes is not None:
            raise InputError("A pipeline of your own says all that runs.", hint="Put quantize-io into --passes.")
        if self.cache != "float32":
            self._check_cache()
        if self.pack_weights and self.form not in ("auto", "plain"):
            raise InputError(
                "Weights are packed for the model itself, not for a branch of it.",
                hint=f"Leave out --form {self.form}.",
            )
        if self.container and not self.measure:
            raise InputError("A container is measured.", hint="Leave --no-measure out, or --container.")
        if self.pack_weights and self.portable:
            raise InputError(
                "Packed weights are laid out for this machine's processor, a portable model's are not.",
                hint="Leave out --pack-weights or --portable.",
            )
        if self.external == "never" and self.pack_weights:
            raise InputError("Packed weights lie beside the model.", hint="Leave out --external never.")
        if self.metric not in (None, "perplexity") and self.max_accuracy_loss is None:
            raise InputError("A metric needs to know what may be lost of it.", hint="Add --max-accuracy-loss.")
        self._check_lossy()
        self._check_effect()
        for text in self.input_shapes:
            parse_input_shape(text)
        for name, extent in (*self.dims.items(), *self.freeze.items()):
            if isinstance(extent, bool) or not isinstance(extent, Integral) or not 0 <= int(extent) <= MAX_EXTENT:
                raise InputError(
                    f"Dimension {name} cannot be {extent!r}.", hint=f"Give a whole number up to {MAX_EXTENT}."
                )

    def _check_effect(self) -> None:
        """Refuse what nothing would come of."""
        coarser = self.target != "float32" or self.cache != "float32"
        searched = coarser or any(getattr(self, name) not in (None, False) for name in LOSSY_OPTIONS)
        own = self.passes is not None
        for asked, what, needs in (
            (own and self.freeze_runtime, "--freeze-runtime does nothing with --passes", "Put freeze-runtime into it."),
            (self.tune and self.level < 2 and not own, "--tune does nothing below -O2", "Leave it out, or add -O2."),
            (
                self.checkpoint is not None and not searched and not own,
                "--checkpoint does nothing without a search",
                "Leave it out, or name a --target.",
            ),
            (
                self.keep_worst and self.verify == "off",
                "--keep-worst does nothing with --verify off",
                "Leave one of them out.",
            ),
            (
                self.metric is not None and self.calibration is None and self.validation is None,
                "--metric does nothing without data",
                "Give some with --validation.",
            ),
        ):
            if asked:
                raise InputError(f"{what}.", hint=needs)

    def _check_lossy(self) -> None:
        asked = [n for n in LOSSY_OPTIONS if (value := getattr(self, n)) is not None and value is not False]
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in asked)
        if self.prune is not None and not 0 < self.prune < 1:
            raise InputError(
                f"--prune {self.prune:g} is no part of the units; it lies between 0 and 1.",
                hint="Say --prune 0.3, for instance.",
            )
        if self.early_exit is not None and not 0 <= self.early_exit < 1:
            raise InputError(f"{self.early_exit:g} is no share of inputs.", hint="Give one such as --early-exit 0.005.")
        if self.cluster not in (None, *CODEBOOKS):
            raise InputError(
                f"--cluster {self.cluster} is no size of a table that onnxruntime decodes.",
                hint="Use --cluster 256 or 16.",
            )
        if asked and self.calibration is None:
            raise InputError(
                f"{flags} needs data: samples show what the outputs can do without.",
                hint="Give some with --calibration.",
            )
        if asked and self.passes is not None:
            raise InputError(f"A pipeline of your own says all that runs, {flags} too.", hint="Leave out --passes.")
        if self.cluster is not None and (self.target != "float32" or self.freeze_runtime):
            raise InputError(
                "Tables are of float weights, which onnxruntime decodes while it loads.",
                hint="Leave out --cluster, or --target and --freeze-runtime.",
            )

    def _check_cache(self) -> None:
        if self.calibration is None:
            raise InputError("The scales of a cache in codes come from data.", hint="Add --calibration DATA.")
        if self.passes is not None:
            raise InputError("A pipeline of your own says all that runs.", hint="Put quantize-cache into --passes.")
        if self.target == "float32" and self.max_error is None:
            raise InputError(
                "A cache in codes moves outputs by more than float noise, which is all that target float32 allows.",
                hint="Add --max-error 0.05, say, or --target int8 or int4.",
            )

    @property
    def budget(self) -> Budget:
        """Memory budget that was asked for, parsed."""
        return Budget.of(self.memory_budget)

    def to_json(self) -> dict[str, Any]:
        """Give the options as plain values for the report."""
        found: dict[str, Any] = {}
        for f in (f for f in fields(self) if f.name != "progress"):
            value = getattr(self, f.name)
            if f.name in ("calibration", "validation", "metric") and value is not None and not isinstance(value, str):
                value = str(value) if isinstance(value, Path) else f"<{type(value).__name__}>"
            if isinstance(value, Budget):
                value = str(value)
            found[f.name] = dict(value) if isinstance(value, Mapping) else value
        return found
