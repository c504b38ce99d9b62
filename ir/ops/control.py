"""Operators that run subgraphs, sequences and optionals, and the markers of the IR itself."""

from __future__ import annotations

from memoptc.ir.ops.definition import Family, Operator, also, define
from memoptc.ir.ops.parameters import Mask, Setting

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
OPERATORS = also(OPERATORS, "If Loop Scan", ort_forgets_symbols=True)
OPERATORS = also(OPERATORS, "If", parameters={0: Mask()})
OPERATORS = also(OPERATORS, "Loop", parameters={0: Setting((3,))})
OPERATORS = also(OPERATORS, "SequenceAt SequenceErase", parameters={1: Setting((0,))})
OPERATORS = also(OPERATORS, "SplitToSequence", parameters={1: Setting((1,))})
