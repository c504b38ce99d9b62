"""How each operator with an iteration space is applied to a value: `MOVES`, for tests/tileable.py."""

from tileable_moves import elementwise, layout, sums, windows
from tileable_moves.registry import MOVES

__all__ = ["MOVES", "elementwise", "layout", "sums", "windows"]
