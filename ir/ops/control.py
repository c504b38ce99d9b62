"""Operators that run subgraphs, sequences and optionals, and the markers of the IR itself."""

from __future__ import annotations

from memoptc.ir.ops.definition import Family, Operator, also, define

OPERATORS: tuple[Operator, ...] = (
    *define("If Loop Scan SequenceMap", family=Family.CONTROL),
    *define(
        "ConcatFromSequence Optional OptionalGetElement OptionalHasElement SequenceAt SequenceConstruct SequenceEmpty "
        "SequenceErase SequenceInsert SequenceLength SplitToSequence",
        family=Family.SEQUENCE,
    ),
    *define("const absent sparse_const"),
    *define("return", pure=False, removable=False),
)
OPERATORS = also(OPERATORS, "If Loop Scan", loses_symbols=True)
