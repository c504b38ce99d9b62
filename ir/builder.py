"""Builder: make ops the way the graph reads, `b.Relu(b.Conv(x, w, strides=[2, 2]))`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from memoptc.ir import ops
from memoptc.ir.core import NOWHERE, Graph, Loc, Op, Tensor, Value
from memoptc.ir.infer import infer_op
from memoptc.ir.ops.nearest import unknown_operator
from memoptc.ir.tensors import from_array
from memoptc.ir.types import DType, Type


class Builder:
    """Inserts new ops at one place of a graph, with result types inferred.

    `b.Name(operands..., attr=value)` makes an operator of standard ONNX, or of `com.microsoft` where only
    onnxruntime has it, and raises `AttributeError` for a name that neither has; `b.op(...)` makes any other.
    An operand may be a value, an array (becomes a constant), or `None` (an optional input that is not given).
    Special keywords start with an underscore: `_outputs` (number of results, default 1), `_name` (of the first
    result), `_type` (instead of inference).

    Args:
        graph: Where to build.
        before: Insert before this op; at the end of the graph when `None`.
        loc: Origin that new ops carry.
    """

    def __init__(self, graph: Graph, before: Op | None = None, loc: Loc = NOWHERE) -> None:
        self.graph = graph
        self.before = before
        self.loc = loc
        self.made: list[Op] = []

    def __getattr__(self, op_type: str) -> Callable[..., Any]:
        if op_type.startswith("_") or not op_type[:1].isupper():
            raise AttributeError(f"{op_type!r} is no operator: operator names start with a capital letter")
        if (fault := unknown_operator(op_type)) and not self._is_function(op_type):
            raise AttributeError(fault)

        def make(*operands: Value | npt.ArrayLike | None, **keywords: Any) -> Value | tuple[Value, ...]:
            special = {k: keywords.pop(k) for k in ("_outputs", "_name", "_type") if k in keywords}
            op = self.op(op_type, operands, keywords, **{k[1:]: v for k, v in special.items()})
            return op.result if len(op.results) == 1 else op.results

        return make

    def inside(self, region: Graph) -> Builder:
        """Make a builder at the end of a region, whose ops have the same origin."""
        return Builder(region, loc=self.loc)

    def _is_function(self, op_type: str) -> bool:
        """True if the model has a function of its own of that name."""
        model = self.graph.root.model
        return model is not None and any(key[:2] == ("", op_type) for key in model.functions)

    def op(
        self,
        op_type: str,
        operands: Sequence[Value | npt.ArrayLike | None] = (),
        attrs: dict[str, Any] | None = None,
        *,
        domain: str | None = None,
        outputs: int = 1,
        name: str = "",
        type: Type | Iterable[Type | None] | None = None,
        regions: dict[str, Graph] | None = None,
    ) -> Op:
        """Make one op and insert it.

        Args:
            op_type: Operator name.
            operands: Values, arrays (become constants) or `None` (not given; trailing ones are dropped).
            attrs: Attributes; those whose value is `None` are left out.
            domain: Operator domain; found by name when `None`.
            outputs: Number of results.
            name: Name of the first result, made unique when taken.
            type: Type of the result, or one per result; inferred when not given.
            regions: Subgraphs by attribute name.
        """
        given = list(operands)
        while given and given[-1] is None:
            given.pop()
        values = [self._value(v) for v in given]
        domain = ops.domain_of(op_type) if domain is None else domain
        plain = {k: _plain(v) for k, v in (attrs or {}).items() if v is not None}
        op = Op(op_type, values, (None,) * outputs, plain, regions, domain=domain, loc=self.loc)
        if name:
            op.result.name = self.graph.fresh_name(name)
        if domain and self.graph.root.model is not None:
            self.graph.info.opset_imports.setdefault(domain, 1)
        if self.before is None:
            self.graph.append(op)
        else:
            self.graph.insert_before(self.before, op)
        types = _types(type, outputs) if type is not None else infer_op(op)
        for result, found in zip(op.results, types, strict=True):
            result.type = found
        self.made.append(op)
        return op

    def const(self, content: npt.ArrayLike | Tensor, name: str = "", dtype: DType | None = None) -> Value:
        """Add a constant.

        Args:
            content: An array, a Python scalar (give `dtype` then), or an `onnx_ir` tensor.
            name: Its name; made unique when taken.
            dtype: Element type, where numpy has none of its own or the content is a Python number.
        """
        if not hasattr(content, "tofile") or isinstance(content, np.ndarray | np.generic):
            if dtype is not None and not isinstance(content, np.ndarray | np.generic):
                content = np.asarray(content, dtype.numpy())
            content = from_array(content, name, dtype)
        value = self.graph.const(content, name)  # type: ignore[arg-type]
        if value.op is not None:
            self.made.append(value.op)
        return value

    def _value(self, operand: Value | npt.ArrayLike | None) -> Value:
        if operand is None:
            return self.graph.absent()
        return operand if isinstance(operand, Value) else self.const(np.asarray(operand))


def _types(given: Any, outputs: int) -> Sequence[Type | None]:
    types = list(given) if isinstance(given, list | tuple) else [given]
    if len(types) != outputs:
        raise ValueError(f"{len(types)} types for {outputs} results")
    return types


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    elif isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool):
        return int(value)
    return tuple(_plain(v) for v in value) if isinstance(value, list | tuple) else value
