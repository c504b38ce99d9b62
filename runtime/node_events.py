"""Kernel events from onnxruntime's profiler."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

_SUFFIX = "_kernel_time"


def node_events(path: str | os.PathLike[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read the file of a profiled session; give node names and events of kernels, as they ended.

    The file has a line for each event, and a loop has events for each of its rounds: one line is in memory at a time.

    Args:
        path: The file, as `InferenceSession.end_profiling` names it.
    """
    with open(path, encoding="utf-8") as file:
        for line in file:
            if _SUFFIX not in line:
                continue
            event = json.loads(line.rstrip().rstrip(",]"))
            if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX):
                yield event["name"].removesuffix(_SUFFIX), event
