"""Counts of ONNX's backend suite: what stock onnxruntime passes, and what passes through memoptc at each level.

python benchmarks/backend.py
"""

from __future__ import annotations

import collections
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "backend"))
import test_onnx_backend as suite

from memoptc.backend import at_level


def main() -> None:
    """Print the counts."""
    counts: collections.Counter[str] = collections.Counter()
    for case in suite.cases():
        counts["cases"] += 1
        model = suite.model_of(case)
        graph = suite.parse(suite.print_graph(suite.read_onnx(model)))
        counts["unchanged through text"] += suite.normal(suite.to_proto(graph)) == suite.normal(model)
        data = suite.data_of(case, model)
        if not suite.stock(case, model, data):
            continue
        counts["stock onnxruntime"] += 1
        for level in (0, 1, 2):
            try:
                counts[f"-O{level}"] += suite.passes(at_level(level).prepare(model).run, case, data)
            except Exception as e:
                print(f"{case.name} -O{level}: {type(e).__name__}: {e}")
    for name, count in counts.items():
        print(f"{name:24} {count}")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
