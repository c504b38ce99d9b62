"""The model that onnxruntime makes of another one when it loads it, in a process of its own: loading may end that."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from memoptc.runtime.child import environment, python
from memoptc.runtime.options import RunOptions


def write_optimized(model: Path, written: Path) -> bool:
    """Write what onnxruntime optimizes a model to on this machine; False where it refuses it, or does not survive it.

    Args:
        model: The path.
        written: Where to; large weights go into `weights.data` beside it.
    """
    command = python("-m", __name__, str(model), str(written))
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False, env=environment())
    return done.returncode == 0 and written.is_file()


def _main(model: str, written: str) -> None:
    import onnxruntime

    options = RunOptions().session_options()
    options.optimized_model_filepath = written
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.data")
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    _main(*sys.argv[1:])
