"""Precision of one layer: what it computes in, and how its weights are stored."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeAlias


class LayerPrecision(StrEnum):
    """Precision that a product, convolution or table computes in and is stored in; reports print the values."""

    INT8 = "integer"
    """Weights and activations are 8-bit integers."""
    INT2_WEIGHTS = "2-bit weights"
    """Activations in float, weights in blocks of 2 bits, where bytes are what is asked for."""
    INT4_WEIGHTS = "4-bit weights"
    """Activations in float, weights in blocks of 4 bits."""
    INT8_WEIGHTS = "integer weights"
    """Activations in float, weights in 8 bits."""
    FLOAT = "float"


Assignment: TypeAlias = Mapping[str, LayerPrecision]
"""Name of a layer -> its precision."""
