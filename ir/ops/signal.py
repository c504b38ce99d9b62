"""Signals, text and tables of features."""

from __future__ import annotations

from memoptc.ir.ops.definition import Operator, define
from memoptc.ir.ops.schema import MICROSOFT

OPERATORS: tuple[Operator, ...] = (
    *define("BlackmanWindow DFT HammingWindow HannWindow MelWeightMatrix STFT"),
    *define("RegexFullMatch StringConcat StringNormalizer StringSplit TfIdfVectorizer"),
    *define("Irfft Rfft Tokenizer", MICROSOFT),
)
