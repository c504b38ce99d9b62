"""Compile a model for a memory budget, and run it under that limit: `python examples/06_fit_a_budget.py`.

Convolutions and the operators around them are computed piece by piece, so that what makes the peak never exists whole.
The budget is kept at the batch size that `dims` names; the compiled model still takes every other one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

import memoptc
from memoptc.runtime import MemoryLimit, Session

MODEL = Path(__file__).parent / "models" / "digits_cnn.onnx"
BATCH = 256
BUDGET = 3 << 20


def main() -> None:
    result = memoptc.compile(MODEL, memory_budget=f"activations={BUDGET}", dims={"batch": BATCH})
    before, after = result.report.control, result.report.candidate
    print(f"planned peak: {before.planned_peak_bytes} -> {after.planned_peak_bytes} bytes, budget {BUDGET}")
    print(f"nodes: {before.nodes} -> {after.nodes}")

    pictures = {"image": np.random.default_rng(0).random((BATCH, 1, 8, 8), np.float32)}
    (expected,) = Session(MODEL, memory="stock", threads=1).run(None, pictures)
    for name, model in (("original", MODEL), ("compiled", result.model)):
        with Session(model, memory="planned", threads=1, memory_limit=BUDGET) as session:
            try:
                (found,) = session.run(None, pictures)
                print(f"{name}: ran in {BUDGET} bytes, largest difference {np.abs(found - expected).max():g}")
            except MemoryLimit as error:
                print(f"{name}: {error.message}")


if __name__ == "__main__":
    main()
