"""Operators that quantization treats apart, whatever the device."""

from __future__ import annotations

RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
"""Stay in float: errors add up over the steps."""
