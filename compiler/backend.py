"""memoptc as an ONNX backend: `onnx.backend.base.Backend`, so that ONNX's own test suite runs through it.

`prepare` compiles the model in memory (verification is the suite's own job) and runs the result in stock
onnxruntime. `at_level(1)` gives the backend for another optimisation level.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
from onnx.backend.base import Backend, BackendRep

from memoptc.api import compile as compile_model
from memoptc.runtime.evaluate import Evaluator


class PreparedModel(BackendRep):
    """A compiled model, ready to run.

    Args:
        model: The model as memoptc gave it back.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self._evaluator = Evaluator(model, label="the compiled model")

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Run once.

        Args:
            inputs: Arrays in the order of the model's inputs, one array, or a mapping of name to array.
            kwargs: Ignored.

        Returns:
            All outputs, in the model's order.
        """
        names = list(self._evaluator.inputs)
        if isinstance(inputs, dict):
            feed = dict(inputs)
        elif isinstance(inputs, list | tuple):
            if len(inputs) > len(names):
                raise ValueError(f"{len(inputs)} inputs were given to a model of {len(names)}")
            feed = dict(zip(names, inputs, strict=False))  # those with a default may be left out
        else:
            feed = {names[0]: inputs}
        return tuple(self._evaluator.run(feed).values())


class MemoptcBackend(Backend):
    """Compiles with memoptc, runs in onnxruntime on the CPU."""

    level = 2

    @classmethod
    def is_compatible(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> bool:
        """True if the model can be prepared: every ONNX model can be tried."""
        return cls.supports_device(device)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """True if the device is the CPU."""
        return device.split(":")[0] == "CPU"

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> PreparedModel:
        """Compile a model and load the result."""
        result = compile_model(model, level=cls.level, verify="off", measure=False)
        return PreparedModel(result.model)

    @classmethod
    def run_model(cls, model: onnx.ModelProto, inputs: Any, device: str = "CPU", **kwargs: Any) -> tuple[Any, ...]:
        """Compile and run once."""
        return cls.prepare(model, device).run(inputs)

    @classmethod
    def run_node(
        cls,
        node: onnx.NodeProto,
        inputs: Sequence[Any],
        device: str = "CPU",
        outputs_info: Any = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """Run one node: wrapped into a model whose types are those of the arrays.

        Args:
            node: The node.
            inputs: An array for each operand that is not left out; for one that is named twice, the last counts.
            device: Ignored.
            outputs_info: Dtype and shape of each result that is not left out.
            kwargs: `opset_version` is that of the node's domain, the newest where not given; others are ignored.

        Raises:
            ValueError: `outputs_info` is missing; a model must declare its outputs' types.
        """
        if outputs_info is None:
            raise ValueError("run_node needs outputs_info: one (dtype, shape) per output")
        typed = onnx.helper.np_dtype_to_tensor_dtype
        feed = dict(zip(filter(None, node.input), inputs, strict=True))
        version = kwargs.get("opset_version") or _newest_opset(node.domain)
        graph = onnx.helper.make_graph(
            [node],
            "node",
            [onnx.helper.make_tensor_value_info(n, typed(a.dtype), a.shape) for n, a in feed.items()],
            [
                onnx.helper.make_tensor_value_info(n, typed(dtype), shape)
                for n, (dtype, shape) in zip(filter(None, node.output), outputs_info, strict=True)
            ],
        )
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid(node.domain, version)])
        return cls.run_model(model, feed, device)


def _newest_opset(domain: str) -> int:
    if domain in ("", "ai.onnx"):
        return onnx.defs.onnx_opset_version()
    known = [s.since_version for s in onnx.defs.get_all_schemas_with_history() if s.domain == domain]
    return max(known, default=1)


def at_level(level: int) -> type[MemoptcBackend]:
    """Give the backend that compiles at `-O<level>`."""
    return type(f"MemoptcBackendO{level}", (MemoptcBackend,), {"level": level})


prepare = MemoptcBackend.prepare
run_model = MemoptcBackend.run_model
run_node = MemoptcBackend.run_node
supports_device = MemoptcBackend.supports_device
is_compatible = MemoptcBackend.is_compatible
