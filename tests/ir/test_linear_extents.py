"""Extents that are computed without sympy are what sympy makes of them, and models with no others never import it."""

from __future__ import annotations

import importlib
import itertools
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx_ir
import pytest
from onnx_shape_inference._ops import _utils

from memoptc.ir import corrections, linear_extents

corrections.install()
SYMPY: Any = importlib.import_module("sympy")  # of the engine, none of memoptc's

TEXTS = (
    "batch",
    "-batch",
    "96*batch",
    "-6*batch",
    "_d1",
    "été",
    "N.x",
    "and",
    "batch + 1",
    "Max(0, batch)",
    "floor(h/2) + 1",
    "h/2",
    "a*b + c",
    None,
)
NUMBERS = (0, 1, -1, 2, 3, 96, 192)


@pytest.mark.parametrize("name", ["__add__", "__sub__", "__mul__", "__floordiv__", "__mod__"])
def test_operators_spell_as_sympy_does(name: str) -> None:
    """Whatever is not answered is left to onnx-ir, errors included."""
    compared = 0
    for text, number in itertools.product(TEXTS, NUMBERS):
        try:
            wanted = _by_sympy(name, text, number)
        except Exception as error:
            with pytest.raises(type(error)):
                getattr(onnx_ir.SymbolicDim(text), name)(number)
            continue
        for _ in range(2):  # what was asked before is remembered
            assert getattr(onnx_ir.SymbolicDim(text), name)(number).value == wanted, (name, text, number)
        compared += 1
    assert compared > len(NUMBERS) * 5


def test_sequences_of_operators_spell_as_sympy_does() -> None:
    """Extents as convolutions, pools and slices make them of each other, negative ones and nested floors included."""
    rng, answered = random.Random(0), 0
    for _ in range(60):
        text = rng.choice(("height", "_d1"))
        for _ in range(8):
            name = rng.choice(("__add__", "__sub__", "__rsub__", "__mul__", "__floordiv__", "__floordiv__"))
            number = rng.choice((1, 2, 3, -1, 4, 7, -2))
            answered += linear_extents.linear(text) is not None
            wanted = _by_sympy(name, text, number)
            assert wanted is not None
            if wanted.lstrip("-").isdigit():
                break
            assert getattr(onnx_ir.SymbolicDim(text), name)(number).value == wanted, (name, text, number)
            positive = str(SYMPY.Max(0, onnx_ir.SymbolicDim(wanted)._expr))
            found = _utils.max_dim(0, onnx_ir.SymbolicDim(wanted))
            assert getattr(found, "value", str(found)) == positive, wanted
            text = positive if rng.random() < 0.4 and not positive.isdigit() else wanted
    assert answered > 300


def _by_sympy(name: str, text: str | None, number: int) -> str | None:
    extent = onnx_ir.SymbolicDim(text)
    if extent._expr is None:
        return None
    return str(SYMPY.sympify(getattr(extent._expr, name)(number)))


def test_negation_symbols_and_maximum() -> None:
    """Signs turn around, and an extent is never negative."""
    assert (-onnx_ir.SymbolicDim("batch")).value == "-batch"
    assert (-onnx_ir.SymbolicDim("-6*batch")).value == "6*batch"
    assert onnx_ir.SymbolicDim("96*batch").free_symbols() == {"batch"}
    assert onnx_ir.SymbolicDim("a*b + c").free_symbols() == {"a", "b", "c"}
    found = _utils.max_dim(0, onnx_ir.SymbolicDim("2*batch"))
    assert isinstance(found, onnx_ir.SymbolicDim)
    assert found.value == "2*batch"
    assert str(_utils.max_dim(0, onnx_ir.SymbolicDim("-2*batch"))) != "-2*batch"
    half = onnx_ir.SymbolicDim("floor(h/2) - 1")
    assert _utils.min_dim(half, half) == half
    assert _utils.min_dim(half, onnx_ir.SymbolicDim("h")) not in (half, "h")


SCRIPT = """
import sys
from memoptc.ir.infer import infer_shapes
from memoptc.ir.onnx_io import read_onnx
assert not infer_shapes(read_onnx(sys.argv[1])).failure
assert "sympy.core" not in sys.modules
import sympy.polys.polytools, sympy
from sympy import Symbol
assert sympy.polys.polytools.Poly is sympy.Poly and str(Symbol("x") + 3) == "x + 3"
assert sympy.__version__ and sympy.__spec__.loader is sympy.__loader__
import onnx_ir
assert (onnx_ir.SymbolicDim("a") + onnx_ir.SymbolicDim("b")).value == "a + b"
"""


def test_sympy_is_imported_when_it_is_needed() -> None:
    """Inference of a batch of pictures does without; what uses sympy afterwards gets all of it."""
    model = Path(__file__).resolve().parents[2] / "examples" / "models" / "digits_cnn.onnx"
    subprocess.run([sys.executable, "-c", SCRIPT, str(model)], check=True)
