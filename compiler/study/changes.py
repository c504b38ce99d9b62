"""The changes that a study tries: each alone, then one on top of the other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from memoptc.allowance import parse_seconds
from memoptc.ir.diagnostics import InputError
from memoptc.option_fields import check_values, option
from memoptc.targets import TARGETS

FUSION = (
    "inline-functions,(simplify,fold-constants{exact=false},fuse-conv-bn,share-common,drop-dead)*,plan-memory,lower"
)
TILING = "fit,plan-memory,lower"

ALONE, SEQUENCE = "alone", "in sequence"


@dataclass(frozen=True)
class Asked:
    """Request of a study.

    Args:
        targets: Tried alone, each, and at the end of the sequence.
        prune_tokens: A loss of the labels' top-1, for a row that drops and merges tokens; no such row if `None`.
        early_exit: A share of other likeliest classes, for a row with early exits; no such row if `None`.
        prune: A part of channels and hidden units, for a row without them; no such row if `None`.
        cascade: A small classifier, for a row that asks it first; no such row if `None`.
        max_disagreement: A share of other likeliest classes, for that row.
        feature_statistics: Whether there is a row that measures features that are zero.
        calibration: Data for targets that need it, as on the command line.
        validation: Data to compare with, as on the command line.
        dims: Extents of symbolic dimensions.
        plugins: Modules with further passes.
        threads: Threads of onnxruntime; 0 leaves the choice to it.
        repeats: Fresh ones; need is the median.
        seconds: About that.
        time_limit: In seconds; one that takes twice as long is stopped, and its row says so.
        slowdown: A ratio of latencies.
        deployment: In words.
        processes: On this machine.
        cluster: No cluster when empty.
        only: All rows when empty.
    """

    targets: tuple[str, ...] = option("Target to try; may be repeated.", "--target", default=(), choices=TARGETS)
    prune_tokens: float | None = option(
        "Also try --prune-tokens, at this loss of top-1.", default=None, parse=float, least=0, metavar="LOSS"
    )
    early_exit: float | None = option(
        "Also try --early-exit, at this share.", default=None, parse=float, least=0, metavar="SHARE"
    )
    prune: float | None = option("Also try --prune, at this part.", default=None, parse=float, metavar="PART")
    cascade: Path | None = option(
        "Also try a cascade: this small classifier first, MODEL where that is not sure.",
        default=None,
        parse=Path,
        metavar="SMALL",
    )
    max_disagreement: float = option(
        "With --cascade: share of inputs that may get another likeliest class.", default=0.005, parse=float
    )
    feature_statistics: bool = option(
        "Also measure which features a gate makes zero for a whole batch; changes nothing.", default=False
    )
    calibration: str | None = None
    validation: str | None = None
    dims: tuple[tuple[str, int], ...] = ()
    plugins: tuple[str, ...] = ()
    threads: int = 0
    repeats: int = option("Processes for each need.", default=3, parse=int, least=1)
    seconds: float = option("Timed runs of all rows together.", default=20.0, parse=float)
    time_limit: float = option("Time limit of each compile.", default=900.0, parse=parse_seconds, metavar="TIME")
    slowdown: float = option("Most latency to recommend.", "--max-slowdown", default=1.05, parse=float)
    deployment: str = option("Where the model shall run, for the evidence card.", default="", metavar="TEXT")
    processes: int = option("Compiles at a time.", default=1, parse=int, least=1)
    cluster: str = option(
        "Compile on the workers of this Dask scheduler, e.g. tcp://host:8786; measured is here.",
        default="",
        metavar="ADDRESS",
    )
    only: tuple[str, ...] = option("Try this row only, e.g. --only=-O2; may be repeated.", default=(), metavar="ROW")

    def __post_init__(self) -> None:
        check_values(self)
        if self.cascade is not None and self.cluster:
            raise InputError(
                "--cascade reads a second model, which is not sent to a cluster.", hint="Leave out --cluster."
            )

    def shared(self) -> list[str]:
        """Arguments of every compile: all rows are compared on the same data, and none is hidden."""
        limit = ["--time-limit", f"{self.time_limit:g}s"]
        return ["--no-measure", "--force", "--verify", "full", *limit, *self.common_arguments()]

    def common_arguments(self) -> list[str]:
        """Command-line arguments that a study and its compiles have in common."""
        words: list[str] = []
        given = {"--calibration": self.calibration, "--validation": self.validation, "--jobs": self.threads or None}
        for flag, value in given.items():
            words += [] if value is None else [flag, str(value)]
        for name, extent in self.dims:
            words += ["--dim", f"{name}={extent}"]
        for plugin in self.plugins:
            words += ["--plugin", plugin]
        return words


@dataclass(frozen=True)
class Change:
    """One row of a study.

    Args:
        name: How the row is called.
        kind: `alone` or `in sequence`.
        arguments: How the model is compiled; `None` for the untouched original.
        session: Run in `memoptc.runtime.Session`, else in onnxruntime as it comes.
    """

    name: str
    kind: str
    arguments: tuple[str, ...] | None
    session: bool = False


def changes(asked: Asked) -> list[Change]:
    """Give the rows of a study, without the control: each change alone, then the sequence for each target.

    Raises:
        InputError: `only` names none of them.
    """
    found = _all(asked)
    names = [change.name for change in found]
    for name in asked.only:
        if name not in names:
            raise InputError(
                f"The study has no row {name!r}.",
                hint=f"Rows are {', '.join(names)}; the original always is one, and --target adds a target's.",
            )
    return [change for change in found if not asked.only or change.name in asked.only]


def _all(asked: Asked) -> list[Change]:
    found = [
        Change("Session", ALONE, None, session=True),
        Change("fusion", ALONE, ("--passes", FUSION)),
        Change("tiling", ALONE, ("--passes", TILING)),
        *(Change(t, ALONE, ("-O0", "--target", t)) for t in asked.targets),
        *_less_work(asked),
        Change("-O1", SEQUENCE, ("-O1",)),
        Change("-O2", SEQUENCE, ("-O2",)),
        Change("-O3", SEQUENCE, ("-O3",)),
    ]
    levels: list[tuple[str, tuple[str, ...]]] = [("-O2", ("-O2",))]
    for target in asked.targets:
        levels.append((f"-O2 + {target}", ("-O2", "--target", target)))
        found.append(Change(levels[-1][0], SEQUENCE, levels[-1][1]))
    found += [Change(f"{name} + Session", SEQUENCE, words, session=True) for name, words in levels]
    return found


def _less_work(asked: Asked) -> list[Change]:
    """The rows that compute less, in any case or where the input is easy, each alone."""
    found = []
    if asked.prune_tokens is not None:
        limit = ("--max-accuracy-loss", f"{asked.prune_tokens:g}")
        found.append(Change("prune-tokens", ALONE, ("-O0", "--prune-tokens", *limit)))
    if asked.early_exit is not None:
        found.append(Change("early-exit", ALONE, ("-O0", "--early-exit", f"{asked.early_exit:g}")))
    if asked.prune is not None:
        found.append(Change("prune", ALONE, ("-O0", "--prune", f"{asked.prune:g}")))
    if asked.cascade is not None:
        from memoptc.levels import cascade_pipeline  # not needed for the help of the command

        pipeline = cascade_pipeline(asked.cascade, asked.max_disagreement)
        found.append(Change("cascade", ALONE, ("-O0", "--passes", pipeline)))
    if asked.feature_statistics:
        found.append(Change("feature-statistics", ALONE, ("-O0", "--passes", "feature-statistics,lower")))
    return found
