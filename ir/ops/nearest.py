"""Names that no operator has, and which one was probably meant."""

from __future__ import annotations

import difflib
from functools import cache

import onnx.defs

from memoptc.ir.ops.schema import MICROSOFT
from memoptc.ir.ops.table import TABLE, definition_of, names_where


@cache
def unknown_operator(op_type: str, domain: str = "") -> str:
    """Say that there is no such operator, naming a close one; `""` when there is, or nothing is known of its domain.

    Args:
        op_type: Its name.
        domain: Its domain; without one, onnxruntime's own operators count, too.
    """
    # Of other domains, onnxruntime's among them, not all operators are known. The installed onnx may be older than
    # the table.
    if domain or f"{MICROSOFT}::{op_type}" in TABLE or definition_of(op_type).known:
        return ""
    known = {s.name for s in onnx.defs.get_all_schemas() if not s.domain} | names_where(lambda o: True, MICROSOFT)
    close = difflib.get_close_matches(op_type, sorted(known), n=1)
    guess = f"did you mean {close[0]}?" if close else "name its domain if it is a custom one"
    return f"there is no operator {op_type!r}; {guess}"
