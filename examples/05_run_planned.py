"""Run a model in exactly its planned bytes: same bits, a fraction of the memory, and a limit that holds.

python examples/05_run_planned.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from memoptc.runtime import MemoryLimit, Session

MODEL = Path(__file__).parent / "models" / "digits_cnn.onnx"


def pictures(count: int) -> dict[str, np.ndarray]:
    """Made-up inputs."""
    return {"image": np.random.default_rng(0).random((count, 1, 8, 8), np.float32)}


def main() -> None:
    stock = Session(MODEL, memory="stock", threads=1)
    with Session(MODEL, memory="planned", threads=1, memory_limit="4MiB") as session:
        for count in (8, 8, 64, 64):
            # The first run of each batch size is recorded, the second one follows its plan.
            same = np.array_equal(session.run(None, pictures(count))[0], stock.run(None, pictures(count))[0])
            print(f"batch {count}: the same bits: {same}")
        for plan in session.plans:
            batch = plan.shapes["image"][0]
            count = len(plan.trace.sizes)
            print(f"batch {batch}: {count} allocations in {plan.arena_bytes} bytes, {plan.runs} planned run")
        try:
            session.run(None, pictures(4096))
        except MemoryLimit as error:
            print(f"batch 4096: {error.message}")
        print(f"still usable: {session.run(None, pictures(8))[0].shape}")


if __name__ == "__main__":
    main()
