"""The result of verification, as the report has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Verification:
    """Outcome of a verification.

    Args:
        passed: Whether the candidate may be handed out (also where `mode` is `off`: nothing was looked at).
        mode: `off`, `fast` or `full`.
        inputs: Where the samples came from: `random`, `calibration`, `validation`, or `none`.
        samples: How many there were.
        outputs: The report's entry per output.
        worst_sample: File with inputs and both outputs of the sample that differs most, or `None`.
        judged_by: What decided, per output name.
        failures: One sentence per output that failed, worst first.
        notes: What a reader should know (nondeterminism, no float64 twin, extents tried).
        nondeterministic: Whether the original differs from itself.
        accuracy: Accuracy on labels of both models, where the data has labels; or the metric asked for, with its name.
        example: Where outputs differ most (`memoptc.runtime.example.farthest`), or `None` where no bit differs.
        target: The accuracy that lossy passes were held to, in words, where that is what decided.
        other_way: Both models with onnxruntime's optimizer switched the other way: its state, `optimizer` (`on` or
            `off`), and `max_abs`, the largest absolute difference; `None` where that was not run.
    """

    passed: bool
    mode: str
    inputs: str = "none"
    samples: int = 0
    outputs: tuple[dict[str, Any], ...] = ()
    worst_sample: str | None = None
    judged_by: dict[str, str] = field(default_factory=dict)
    failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    nondeterministic: bool = False
    accuracy: dict[str, Any] | None = None
    example: dict[str, Any] | None = None
    target: str | None = None
    other_way: dict[str, Any] | None = None

    @property
    def failed(self) -> bool:
        """True if something was looked at, and may not be handed out."""
        return self.mode != "off" and not self.passed

    @property
    def worst(self) -> str:
        """The sentence about the output that failed worst; empty where none did."""
        return self.failures[0] if self.failures else ""

    @property
    def max_error(self) -> float | None:
        """Largest absolute difference over all outputs; `None` when nothing was compared."""
        found = [o["max_abs"] for o in self.outputs if o["max_abs"] is not None]
        return max(found) if found else None

    def to_json(self) -> dict[str, Any]:
        """Give the report's `verification` object."""
        plain = dict(self.__dict__)
        for key in ("outputs", "failures", "notes"):
            plain[key] = list(plain[key])
        return plain

    @staticmethod
    def from_json(plain: Mapping[str, Any]) -> Verification:
        """Read what `to_json` gave."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()}
        return Verification(**fields)
