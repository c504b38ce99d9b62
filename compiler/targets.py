"""The targets: what numbers a compiled model uses."""

from __future__ import annotations

TARGETS = ("float32", "int8", "uint8", "int4", "mixed", "float16", "bfloat16", "float8")
INTEGERS = ("int8", "uint8", "int4", "mixed")
"""Targets that can be held to an accuracy, on data."""
CODED_BORDERS = ("int8", "uint8", "float16")
"""Targets whose models can take and give codes."""
HALF_FLOATS = ("float16", "bfloat16", "float8")
"""Targets of narrower floats."""
