"""Choose the next token from scores: the best one, or at random among the likeliest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from memoptc.ir.diagnostics import InputError


@dataclass(frozen=True)
class Sampler:
    """Choice of tokens; with neither temperature nor `top_k` nor `top_p`, the best one is taken.

    Args:
        temperature: What scores are divided by; 0 takes the best. 1 where only `top_k` or `top_p` is given.
        top_k: Choose among so many tokens with the highest scores; 0 for all.
        top_p: Choose among the likeliest tokens that together have this probability; 1 for all.

    Raises:
        InputError: a value is out of its range.
    """

    temperature: float | None = None
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        for name, value, good, range_ in (
            ("temperature", self.temperature, self.temperature is None or self.temperature >= 0, "0 or more"),
            ("top_k", self.top_k, self.top_k >= 0, "0 or more"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1"),
        ):
            if not good:
                raise InputError(f"{name} is {value}.", hint=f"It has to be {range_}.")

    @property
    def greedy(self) -> bool:
        """True if the best token is taken, so that nothing is random."""
        if self.temperature is None:
            return self.top_k in (0, 1) and self.top_p == 1
        return self.temperature == 0 or self.top_k == 1

    def choose(self, scores: npt.NDArray[Any], rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """Choose a token for each row of scores, [batch, vocabulary]."""
        if self.greedy:
            return np.asarray(np.argmax(scores, axis=-1), np.int64)
        return np.asarray([self._one(row.astype(np.float64), rng) for row in scores], np.int64)

    def _one(self, scores: npt.NDArray[np.float64], rng: np.random.Generator) -> int:
        order = np.argsort(-scores, kind="stable")
        if self.top_k:
            order = order[: self.top_k]
        kept = scores[order] / (1.0 if self.temperature is None else self.temperature)
        chances = np.exp(kept - kept[0])
        chances /= chances.sum()
        if self.top_p < 1:  # the token that reaches the sum is the last one
            count = int(np.searchsorted(np.cumsum(chances), self.top_p)) + 1
            order, chances = order[:count], chances[:count] / chances[:count].sum()
        return int(rng.choice(order, p=chances))
