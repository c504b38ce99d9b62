"""Bounds within which two models count as the same: all that verification uses, each with its reason."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from memoptc.ir.diagnostics import InputError
from memoptc.runtime.accuracy import AccuracyTarget
from memoptc.runtime.compare import Difference, Totals

NOISE_MAX, NOISE_RMS = 8.0, 4.0
"""A candidate may lie this many times farther from float64 than the original does, at the worst element and in
root mean square. Two equally good summation orders differ by a factor of 2 to 3 in the worst element of a few
thousand; folding a scale into weights adds one rounding per weight. The root mean square varies less."""

NOISE_FLOOR_ULP = 16.0
"""Ulps of the output's largest magnitude that are always allowed: an original that happens to be exact (powers of
two, sums of small integers) must not forbid a rounding."""

TRUST = 10.0
"""The float64 twin counts only where the original lies within this many tolerances (below) of it. Else the twin
may be wrong or the model chaotic, and a multiple of that distance would excuse anything."""

UNIT_NOISE = {"float32": 2.0**-22}
"""Two ulps of 1: kernels such as Sigmoid err by that much in absolute terms, however small their results. Noise
below it is trusted up to `FARTHER` times farther: 2 % of the output's largest magnitude."""

FARTHER = 20.0
"""See `UNIT_NOISE`; also the farthest that an original's own two runs excuse a candidate."""

TOLERANCES = {"float64": 1e-11, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1, "float8": 0.5}
"""Largest difference per output element type relative to the output's largest magnitude, where there is no
twin. 1e-4 is about 800 ulps of float32; the farthest that onnxruntime itself lies from float64 on the models we
develop against is 2e-5. The narrow types are as much coarser as their ulps, with fewer of them, since their
sums are kept in float32. Where onnxruntime's own optimizer moves the original by more than an eighth of that,
`NOISE_MAX` times that movement is allowed instead, up to `TRUST` tolerances (`FARTHER` as many where it is no more
than `UNIT_NOISE`)."""


@dataclass(frozen=True)
class Gate:
    """Least accuracy of a model that is meant to be coarser.

    Args:
        sqnr_db: Signal to difference over all samples.
        cosine: Cosine over all samples.
        agreement: Part of equal elements, for outputs of integers (such as class numbers).
        accuracy_loss: How much the accuracy on labels may fall.
    """

    sqnr_db: float
    cosine: float
    agreement: float
    accuracy_loss: float


GATES = {
    "float16": Gate(35.0, 0.9995, 0.98, 0.005),
    "bfloat16": Gate(20.0, 0.99, 0.95, 0.01),
    "float8": Gate(10.0, 0.95, 0.80, 0.02),
    "int8": Gate(10.0, 0.95, 0.80, 0.02),
    "uint8": Gate(10.0, 0.95, 0.80, 0.02),
    "mixed": Gate(10.0, 0.95, 0.80, 0.02),
    "int4": Gate(6.0, 0.90, 0.70, 0.05),
}
"""A gate stops a broken model, not a coarse one: rounding every activation to 2^-11 leaves about 60 dB after one
layer and loses 10 to 20 dB over a deep net; one with 8 bits has 30 to 40 dB per layer and 15 to 30 dB at the end.
What falls below has a scale or a zero point wrong. Finer demands are the user's: `max_error`."""


@dataclass(frozen=True)
class Judge:
    """Decides whether a candidate differs too much.

    Args:
        bit_exact: Every output bit is the original's, in onnxruntime with its optimizer off.
        target: Number format the candidate was made for; `float32` means "the original's".
        max_error: Largest difference allowed, relative to the output's largest magnitude. It takes the place of
            noise, tolerance and gate.
        accuracy: What lossy passes were held to. It takes the place of noise, tolerance and gate, too.
        frozen: The candidate holds the kernels that onnxruntime's optimizer chose, which may compute with fewer bits
            (codes of 4 bits are multiplied by codes of 8): it is compared with the original as that optimizer runs it.

    Raises:
        InputError: unknown target.
    """

    bit_exact: bool = False
    target: str = "float32"
    max_error: float | None = None
    accuracy: AccuracyTarget | None = None
    frozen: bool = False

    def __post_init__(self) -> None:
        if self.target != "float32" and self.target not in GATES:
            raise InputError(f"{self.target!r} is not a target.", hint=f"Targets: float32, {', '.join(GATES)}.")

    @property
    def gate(self) -> Gate | None:
        """The gate, for a coarser target."""
        return GATES.get(self.target)

    @property
    def min_sqnr(self) -> float | None:
        """Least signal to difference, in decibels, of a coarser candidate; `None` for any."""
        if self.accuracy is not None:
            return self.accuracy.min_sqnr
        return None if self.gate is None else self.gate.sqnr_db

    @property
    def coarser(self) -> bool:
        """True if the candidate may differ by more than noise, and is judged as onnxruntime will run it."""
        return not self.bit_exact and (self.gate is not None or self.accuracy is not None)

    @property
    def asks_no_sqnr(self) -> bool:
        """True if something else than outputs decides about a coarser candidate, such as its perplexity."""
        return self.coarser and self.min_sqnr is None and self.max_error is None


@dataclass
class Evidence:
    """All that was seen of one output.

    Args:
        totals: Original against candidate.
        dtype: Element type, `""` for other kinds than tensors.
        pairs: Original against candidate, per sample.
        noise: Original against float64, for the samples the twin ran on (several where it was run several ways).
        errors: Candidate against float64, for the same samples.
        own: Original against itself with onnxruntime's optimizer switched the other way.
    """

    totals: Totals
    dtype: str = ""
    pairs: list[Difference] = field(default_factory=list)
    noise: list[Difference] = field(default_factory=list)
    errors: list[Difference] = field(default_factory=list)
    own: list[Difference] = field(default_factory=list)


def dtype_name(value: Any) -> str:
    """Name the element type as the tables spell it."""
    name = np.asarray(value).dtype.name if value is not None else ""
    return "float8" if name.startswith("float8") else {"complex64": "float32", "complex128": "float64"}.get(name, name)


def judge_output(evidence: Evidence, judge: Judge) -> tuple[str, str]:
    """Judge one output.

    Returns:
        Why it fails (`""` when it passes), and by what it was judged.
    """
    totals = evidence.totals
    if totals.faults:
        return totals.faults[0], "structure"
    if totals.exact:
        return "", "bits"
    if judge.bit_exact:
        return f"{totals.mismatches} of {totals.elements} elements differ, by up to {totals.max_abs:.3g}", "bits"
    if judge.max_error is not None and not totals.lossless:
        found = max((d.max_abs / d.scale if d.scale else math.inf for d in evidence.pairs if d.max_abs), default=0.0)
        fails = found > judge.max_error
        return f"relative error {found:.3g}, allowed {judge.max_error:.3g}" if fails else "", "max_error"
    if judge.accuracy is not None:
        return judge.accuracy.fault(totals), "accuracy target"
    if judge.gate is not None:
        return _gate(totals, judge.gate), "accuracy gate"
    if totals.lossless:
        return _lossless(evidence), "equality"
    return _float(evidence)


def judge_other_way(evidence: Evidence, main: Evidence | None, judge: Judge) -> str:
    """Judge one output of both models with onnxruntime's optimizer switched the other way; say why it fails, or `""`.

    Kernels may differ there, so bits are never asked for. Where no float64 run tells the original's noise, the
    distance between its own two runs does: a candidate no farther from it than it lies from itself passes, as far as
    `FARTHER` times what is trusted (2 % for float32).

    Args:
        evidence: Of the runs with the optimizer switched.
        main: Of the runs before, whose noise holds here, too.
        judge: What is asked of the candidate.
    """
    if judge.coarser and judge.max_error is None:
        return _as_before(evidence, main, judge)
    if main is not None:
        evidence.noise, evidence.errors, evidence.own = main.noise, main.errors, main.own
    fault, by = judge_output(evidence, Judge(target=judge.target, max_error=judge.max_error))
    own = evidence.own
    if by == "tolerance" and own and not evidence.noise and not any(d.fault for d in own):
        most = TRUST * FARTHER * TOLERANCES.get(evidence.dtype, TOLERANCES["float32"])
        return fault if _relative(evidence.pairs, "max_abs") > min(_relative(own, "max_abs"), most) else ""
    return fault


AS_BEFORE = 3.0
"""Decibels that a coarser candidate may lose when onnxruntime's optimizer is switched the other way: samples are few
there, so what all samples are held to need not hold on them, but nothing may break."""

USUAL_SQNR = 20.0
"""Decibels from which on nothing is broken, where no SQNR is asked for."""


def _as_before(evidence: Evidence, main: Evidence | None, judge: Judge) -> str:
    """Judge a coarser candidate with the optimizer switched by what it is without, on the same samples."""
    totals = evidence.totals
    if totals.faults or main is None or totals.lossless:
        return judge_output(evidence, judge)[0]
    before = Totals(totals.name)
    for pair in main.pairs[: len(evidence.pairs)]:
        before.add(pair)
    asked = USUAL_SQNR if judge.min_sqnr is None else judge.min_sqnr
    enough = min(asked, before.sqnr_db - AS_BEFORE)
    low = not totals.sqnr_db >= enough
    return f"SQNR {totals.sqnr_db:.1f} dB instead of {before.sqnr_db:.1f} dB" if low else ""


def judge_last_step(at_once: Difference, step: Difference, judge: Judge) -> str:
    """Judge the last of several steps over a cache by the same token scored with all before it at once; say why it
    fails, or `""`.

    Where no SQNR is asked for, this is what a broken cache shows in: a metric of whole texts reads none.

    Args:
        at_once: Original against candidate, all tokens at once.
        step: The same, the last of several steps.
        judge: What is asked of the candidate.
    """
    before, after = Totals(""), Totals("")
    before.add(at_once)
    after.add(step)
    usual = USUAL_SQNR if judge.gate is None else judge.gate.sqnr_db
    if after.exact or after.sqnr_db >= min(usual, before.sqnr_db - AS_BEFORE):
        return ""
    return f"SQNR {after.sqnr_db:.1f} dB over the cache instead of {before.sqnr_db:.1f} dB with all tokens at once"


def missing_decibels(outputs: Iterable[Mapping[str, Any]], gate: Gate | None, min_sqnr: float | None) -> float | None:
    """Give the decibels that the worst output lacks; `None` where none lacks any, or nothing is asked in decibels.

    A cosine c stands for noise of 1 / c^2 - 1, as that of what is rounded hardly depends on the signal.

    Args:
        outputs: Of a verification.
        gate: What is asked where nobody says anything.
        min_sqnr: Signal to difference that is asked for, in decibels; the gate's if not given.
    """
    if gate is None and min_sqnr is None:
        return None
    asked = min_sqnr if min_sqnr is not None else gate.sqnr_db if gate is not None else 0.0
    if gate is not None and min_sqnr is None:
        asked = max(asked, -10 * math.log10(1 / gate.cosine**2 - 1))
    found = [float(o["sqnr_db"]) for o in outputs if o.get("sqnr_db") is not None]
    missing = max((asked - sqnr for sqnr in found), default=0.0)
    return missing if missing > 0 else None


def _gate(totals: Totals, gate: Gate) -> str:
    if totals.lossless:
        low = totals.agreement < gate.agreement
        return f"{totals.agreement:.1%} of the elements agree, {gate.agreement:.0%} are asked for" if low else ""
    if not totals.sqnr_db >= gate.sqnr_db:  # NaN, where squares are infinite, is not enough either
        return f"SQNR {totals.sqnr_db:.1f} dB, {gate.sqnr_db:.0f} dB are asked for"
    if not totals.cosine >= gate.cosine:
        return f"cosine {totals.cosine:.4f}, {gate.cosine} is asked for"
    return ""


def _lossless(evidence: Evidence) -> str:
    """Integers: equal, but for as many (times `NOISE_RMS`) as rounding already flips in the original."""
    noise = [d for d in evidence.noise if not d.fault]
    flipped, looked_at = (sum(getattr(d, key) for d in noise) for key in ("mismatches", "elements"))
    wrong = sum(d.mismatches for d in evidence.errors if not d.fault)
    totals = evidence.totals
    # Samples that the twin did not run on, too: the two lie apart by what each is away from float64.
    apart = (NOISE_RMS + 1.0) * flipped * totals.elements / max(looked_at, 1)
    if flipped and wrong <= NOISE_RMS * flipped and totals.mismatches <= apart:
        return ""
    return f"{totals.mismatches} of {totals.elements} elements differ"


def _float(evidence: Evidence) -> tuple[str, str]:
    tolerance = TOLERANCES.get(evidence.dtype, TOLERANCES["float32"])
    noise_max, noise_rms = (_relative(evidence.noise, key) for key in ("max_abs", "rms"))
    trusted = evidence.noise and not any(d.fault for d in (*evidence.noise, *evidence.errors))
    coarse = max((d.max_abs for d in evidence.noise), default=0.0) > UNIT_NOISE.get(evidence.dtype, 0.0)
    if not trusted or noise_max > TRUST * tolerance * (1 if coarse else FARTHER):
        own = [d for d in evidence.own if not d.fault]
        coarse = max((d.max_abs for d in own), default=0.0) > UNIT_NOISE.get(evidence.dtype, 0.0)
        most = TRUST * tolerance * (1 if coarse else FARTHER)
        bound = max(tolerance, min(NOISE_MAX * _relative(own, "max_abs"), most))
        return _within(evidence.pairs, bound, "of its largest magnitude, the tolerance for it is"), "tolerance"
    floor = NOISE_FLOOR_ULP * {"float64": 2.0**-52, "float16": 2.0**-10, "bfloat16": 2.0**-7}.get(
        evidence.dtype, 2.0**-23
    )
    bound = NOISE_MAX * noise_max + floor
    what = "of its largest magnitude away from float64, where the original's noise allows"
    fault = _within(evidence.errors, bound, what)
    if not fault:
        found, allowed = _relative(evidence.errors, "rms"), NOISE_RMS * noise_rms + floor
        if found > allowed:
            fault = f"{found:.3g} {what} {allowed:.3g} in root mean square"
    if not fault:  # samples that the twin did not run on
        fault = _within(evidence.pairs, bound + noise_max, "of its largest magnitude, the noise of the original allows")
    return fault, "float64 noise"


def _within(pairs: Sequence[Difference], bound: float, what: str) -> str:
    found = _relative(pairs, "max_abs")
    return f"differs by {found:.3g} {what} {bound:.3g}" if found > bound else ""


def _relative(differences: Sequence[Difference], key: str) -> float:
    """The largest over samples, each relative to the largest magnitude of its reference."""
    worst = 0.0
    for found in differences:
        error = float(getattr(found, key))
        worst = max(worst, error / found.scale if found.scale else (math.inf if error else 0.0))
    return worst
