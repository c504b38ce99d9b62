"""`RunOptions`: options of a run in onnxruntime, their form in its Python package, its errors in one sentence.

Imported by `memoptc.runtime.Session`, so it needs nothing beyond onnxruntime and the standard library.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeAlias

import onnxruntime as ort

Feed: TypeAlias = Mapping[str, Any]
"""Input name -> numpy array (ml_dtypes for bfloat16 and the like), list (sequence), dict (map) or `None`."""

registration = threading.Lock()
"""The environment has one allocator per device, and a session keeps the one that was there when it was made: hold this
while one is registered and the session made."""

FOLDER_KEY = "session.model_external_initializers_file_folder_path"
PACKING_KEY = "session.disable_prepacking"
ENUMERATIONS = {
    "graph_optimization_level": "GraphOptimizationLevel",
    "execution_order": "ExecutionOrder",
    "execution_mode": "ExecutionMode",
}
"""Attributes of `SessionOptions` whose values are enumerations -> the enumeration's name in `onnxruntime`."""


@dataclass(frozen=True)
class RunOptions:
    """Settings that onnxruntime runs a model with. The defaults are onnxruntime's own, but for one thread.

    Args:
        optimize: Let onnxruntime optimize the graph (its default level), or run it as it is written.
        threads: Intra-op threads; 0 leaves the choice to onnxruntime.
        mem_pattern: `enable_mem_pattern`.
        mem_reuse: `enable_mem_reuse`.
        arena: `enable_cpu_mem_arena`.
        file_order: Execute in the file's order (`PRIORITY_BASED`) instead of onnxruntime's.
        disabled_optimizers: Names of onnxruntime optimizers not to run.
        config: Session configuration entries.
    """

    optimize: bool = True
    threads: int = 1
    mem_pattern: bool = True
    mem_reuse: bool = True
    arena: bool = True
    file_order: bool = False
    disabled_optimizers: tuple[str, ...] = ()
    config: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def to_json(self) -> dict[str, Any]:
        """Give a plain dictionary that `RunOptions(**d)` reads back."""
        plain = dict(self.__dict__)
        plain["config"] = dict(self.config)
        plain["disabled_optimizers"] = list(self.disabled_optimizers)
        return plain

    def native(self) -> dict[str, Any]:
        """Give attributes of onnxruntime's `SessionOptions`, enumerations by name."""
        attributes = {
            "log_severity_level": 4,
            "graph_optimization_level": "ORT_ENABLE_ALL" if self.optimize else "ORT_DISABLE_ALL",
            "intra_op_num_threads": self.threads,
            "enable_mem_pattern": self.mem_pattern,
            "enable_mem_reuse": self.mem_reuse,
            "enable_cpu_mem_arena": self.arena,
        }
        return attributes | ({"execution_order": "PRIORITY_BASED"} if self.file_order else {})

    def session_options(self) -> ort.SessionOptions:
        """Give the same as onnxruntime's own options, with its log silenced."""
        return session_options(self.native(), self.config)


STOCK = RunOptions()
"""onnxruntime's own choices."""

FRUGAL = RunOptions(threads=0, mem_pattern=False, mem_reuse=False)
"""Options under which onnxruntime keeps no more than what is alive: no pattern block beside the arena, no buffer that
stays because another value of its shape will come."""


def session_options(attributes: Mapping[str, Any], config: Mapping[str, str]) -> ort.SessionOptions:
    """Make onnxruntime's options.

    Args:
        attributes: Attribute of `SessionOptions` -> value; enumerations by their member's name.
        config: Session configuration entries.
    """
    options = ort.SessionOptions()
    for key, value in attributes.items():
        setattr(options, key, getattr(getattr(ort, ENUMERATIONS[key]), value) if key in ENUMERATIONS else value)
    for key, entry in config.items():
        options.add_session_config_entry(key, entry)
    return options


def way_out(error: BaseException) -> str:
    """Say how to go on where onnxruntime has no kernel for a type; `""` for any other failure."""
    if "Could not find an implementation for" not in str(error):
        return ""
    return (
        "There is no kernel for an operator on this type, as for most on bfloat16. "
        "`memoptc opt MODEL --passes 'widen-half{smallest=0,interface=true}' -o WIDE.onnx` "
        "makes all that has 16 bits float32."
    )


def clean_message(error: BaseException) -> str:
    """Give onnxruntime's message as part of a sentence: one line, no error codes, no C++ source places."""
    text = " ".join(str(error).split())
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ", "", text)
    text = re.sub(r"(/|[A-Za-z]:\\)\S*?\.(cc|h|cpp):\d+ ", "", text)
    text = re.sub(
        r"Non-zero status code returned while running (\S+) node\. Name:'([^']*)' Status Message: ",
        r"node '\2' (\1): ",
        text,
    )
    text = re.sub(r"Load model from \S+ failed:", "", text)
    return text.rstrip(" .") or type(error).__name__
