"""The report as data. Its JSON form is a contract: `schema.json` beside this file describes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memoptc.plain_values import plain
from memoptc.report import verdict as judged
from memoptc.report.evidence import card
from memoptc.report.facts import Curve, Decision, PassRecord, ReportFacts, Side
from memoptc.report.verdict import Worse

__all__ = ["SCHEMA_VERSION", "Curve", "Decision", "PassRecord", "Report", "Side"]

SCHEMA_VERSION = 1


@dataclass
class Report(ReportFacts):
    """The report: its facts, what they come to, and its JSON form."""

    @property
    def verdict(self) -> str:
        """The outcome in one sentence: need, latency, and whether the outputs are those of the original."""
        return judged.verdict(self)

    @property
    def name(self) -> str:
        """The model's file name."""
        return Path(self.model.get("path") or "model").name

    @property
    def worse(self) -> list[Worse]:
        """Measured figures that got worse, each with its reason."""
        return judged.worse(self)

    def to_json(self) -> dict[str, Any]:
        """Give the JSON form (plain dicts and lists; NaN and infinities as strings)."""
        found: dict[str, Any] = plain(
            {
                "schema_version": SCHEMA_VERSION,
                "verdict": self.verdict,
                "worse": [vars(w) for w in self.worse],
                "evidence": dict(card(self)),
                "model": self.model,
                "options": self.options,
                "control": self.control.to_json(),
                "candidate": self.candidate.to_json(),
                "passes": [vars(p) for p in self.passes],
                "verification": self.verification,
                "accuracy": self.accuracy,
                "kernels": self.kernels,
                "decisions": [vars(d) for d in self.decisions],
                "warnings": self.warnings,
                "sizes": self.sizes,
                "environment": self.environment,
                "precision": self.precision,
                "inputs": self.inputs,
                "artefacts": self.artefacts,
                "command": self.command,
                "decoder": self.decoder,
                "seconds": round(self.seconds, 3),
            }
        )
        return found
