"""Metadata by which ops that tiling made are known."""

from __future__ import annotations

from memoptc.ir.infer import PIECES

TILED = PIECES
"""Of ops that are part of a tile: they are not cut again."""

REMATERIALISED = "memoptc.remat"
"""Of ops that are rematerialised: copies of other ops."""
