"""Methods that `Session` has from `InferenceSession`, with errors translated and weights that stream served."""

from __future__ import annotations

from functools import wraps
from typing import Any

import onnxruntime as ort

from memoptc.runtime.errors import translated
from memoptc.runtime.in_flight import in_flight
from memoptc.runtime.streaming import paged, paged_later

FORWARDED = (
    "create_ortvalue_from_shape_and_type", "end_profiling", "get_input_epdevices", "get_input_memory_infos",
    "get_modelmeta", "get_output_memory_infos", "get_overridable_initializers", "get_profiling_start_time_ns",
    "get_provider_graph_assignment_info", "get_session_options", "get_tuning_results", "io_binding",
    "release_captured_graph", "run_async", "run_with_iobinding", "run_with_ort_values", "run_with_ortvaluevector",
    "set_ep_dynamic_options", "set_tuning_results",
)  # fmt: skip
"""Methods of onnxruntime's sessions that are handed on, with their arguments and errors."""


def forward_all(session_class: type[Any]) -> None:
    """Give a session class those methods that the installed onnxruntime has, each in a session of its Python kind."""
    for name in FORWARDED:
        if hasattr(ort.InferenceSession, name):
            setattr(session_class, name, _forwarded(session_class, name))


def _forwarded(session_class: type[Any], name: str) -> Any:
    method = getattr(ort.InferenceSession, name)

    @wraps(method)
    def call(self: Any, *arguments: Any, **named: Any) -> Any:
        self._check_open()
        self._need_python(name)
        if name == "run_async":
            arguments, named = paged_later(self._pager, arguments, named)
        with in_flight, translated(self.memory_limit), paged(self._pager if "run" in name else None):
            return method(self, *arguments, **named)

    call.__module__, call.__qualname__ = session_class.__module__, f"{session_class.__name__}.{name}"
    return call
