"""Signals, text and tables of features."""

from __future__ import annotations

from memoptc.ir.ops.definition import Operator, define
from memoptc.ir.ops.schema import MICROSOFT

OPERATORS: tuple[Operator, ...] = (
    *define("BlackmanWindow HammingWindow HannWindow MelWeightMatrix"),
    *define("DFT STFT", unchecked_ranks=True),
    *define("RegexFullMatch StringConcat StringNormalizer StringSplit TfIdfVectorizer"),
    *define("Irfft Rfft Tokenizer", MICROSOFT),
)
