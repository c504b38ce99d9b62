"""What a sampler gives: one or a few nodes with the arrays that go in; and the models that are made of it.

A sampler is a function of a numpy generator that gives a `Sample`: an operator under random attributes with operands
that fit. `instance` turns it into a model with symbolic extents and parameters that are weights, inputs or the shapes
of other inputs, and into feeds under several bindings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array: TypeAlias = npt.NDArray[Any]
Rng: TypeAlias = np.random.Generator
Feed: TypeAlias = dict[str, Array]
Sampler: TypeAlias = "Callable[[Rng], Sample]"

EXTENTS = (1, 2, 3, 4, 5, 6, 7, 9)
FAR = np.iinfo(np.int64).max


@dataclass
class Operand:
    """An operand of a sample.

    Args:
        array: What goes in.
        weight: An initializer rather than an input.
        param: Small integers that say what the operator does (sizes, axes, ...): an initializer, or computed.
        fixed: Axes whose extent attributes or other operands decide; they get no symbols.
    """

    array: Array
    weight: bool = False
    param: bool = False
    fixed: bool = False


@dataclass
class Sample:
    """Nodes and their operands by name; every value that the nodes name is compared.

    Args:
        nodes: In order.
        operands: By name.
        opset: Of standard ONNX.
        empty: Whether extents may be 0; kernels of onnxruntime end the process where not.
        random: Whether the numbers differ from run to run.
    """

    nodes: list[onnx.NodeProto]
    operands: dict[str, Operand]
    opset: int = 18
    empty: bool = True
    random: bool = False

    @property
    def op_type(self) -> str:
        """Domain and name of the operator that the sample is of: the last node's."""
        node = self.nodes[-1]
        return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


def one(
    op_type: str,
    operands: Sequence[Operand | Array | None],
    *,
    opset: int = 18,
    domain: str = "",
    outputs: int = 1,
    empty: bool = True,
    random: bool = False,
    **attrs: Any,
) -> Sample:
    """A sample of one node; attributes that are `None` are left out."""
    named: dict[str, Operand] = {}
    names = []
    for index, operand in enumerate(operands):
        if operand is None:
            names.append("")
            continue
        names.append(f"x{index}")
        named[names[-1]] = operand if isinstance(operand, Operand) else Operand(operand)
    given = {name: value for name, value in attrs.items() if value is not None}
    node = helper.make_node(op_type, names, [f"y{i}" for i in range(outputs)], domain=domain, **given)
    return Sample([node], named, opset, empty, random)


def weight(array: Array) -> Operand:
    """A weight."""
    return Operand(array, weight=True)


def param(*values: int) -> Operand:
    """Integers that say what the operator does."""
    return Operand(np.asarray(values, np.int64), param=True)


def fixed(array: Array) -> Operand:
    """An input whose extents are no symbols."""
    return Operand(array, fixed=True)


# -- numbers -----------------------------------------------------------------------------------------------


def extent(r: Rng) -> int:
    """An extent; 0 is rare."""
    return 0 if r.random() < 0.03 else int(r.choice(EXTENTS))


def extents(r: Rng, rank: int) -> tuple[int, ...]:
    """Extents of a value of a rank."""
    return tuple(extent(r) for _ in range(rank))


def floats(r: Rng, *shape: int) -> Array:
    """Plain numbers."""
    return np.asarray(r.standard_normal(shape), np.float32)


def whole(r: Rng, low: int, high: int, *shape: int, dtype: Any = np.int64) -> Array:
    """Integers in [low, high)."""
    return np.asarray(r.integers(low, max(high, low + 1), shape), dtype)


def flags(r: Rng, *shape: int) -> Array:
    """Truth values."""
    return np.asarray(r.random(shape) < 0.5)


def maybe(r: Rng, value: Any, chance: float = 0.5) -> Any:
    """A value, or `None`."""
    return value if r.random() < chance else None


def pick(r: Rng, *choices: Any) -> Any:
    """One of some."""
    return choices[int(r.integers(len(choices)))]


def axis_of(r: Rng, rank: int) -> int:
    """An axis, counted from either end."""
    return int(r.integers(-rank, rank))


# -- models ------------------------------------------------------------------------------------------------


@dataclass
class Instance:
    """A model and what to run it with.

    Args:
        model: Outputs are not declared; every value that a node makes can be one.
        feeds: The first fits; others may be refused.
        values: Names of the values to compare, whose order is that of the nodes.
    """

    model: onnx.ModelProto
    feeds: list[Feed]
    values: list[str] = field(default_factory=list)


def instance(sample: Sample, r: Rng) -> Instance:
    """Make a model of a sample: which extents are symbols, and where parameters come from, is drawn."""
    nodes, weights, inputs = list(sample.nodes), [], []
    feeds: list[Feed] = [{}]
    symbols: dict[str, int] = {}
    shared = r.random() < 0.5
    dims: dict[str, list[int | str | None]] = {}
    styles = ("static", "symbols", "symbols", "symbols", "rank", "unknown")
    style = styles[int(r.integers(len(styles)))]
    computed: dict[str, Array] = {}
    for name, operand in sample.operands.items():
        way = r.random()
        if operand.weight or (operand.param and way < 0.6):
            weights.append(numpy_helper.from_array(operand.array, name))
            continue
        is_shape = operand.param and operand.array.dtype == np.int64 and operand.array.ndim == 1
        # Such a shape must be one that an input can have.
        is_shape = is_shape and operand.array.size > 0 and 0 <= operand.array.min() and operand.array.max() < 100
        if is_shape and way > 0.8 and operand.array.prod() < 1e4:
            # The parameter is the shape of another input, whose extents are symbols.
            source = f"{name}_shape"
            nodes.insert(0, helper.make_node("Shape", [source], [name]))
            name, operand = source, Operand(np.zeros(tuple(operand.array), np.float32))
        elif operand.param:
            computed[name] = operand.array
        feeds[0][name] = operand.array
        dims[name] = [
            _extent_symbol(d, symbols, shared, r)
            if style == "symbols" and not operand.fixed and not operand.param
            else d
            for d in operand.array.shape
        ]
        shape: list[int | str | None] | None = dims[name]
        if style == "rank" and not operand.fixed:
            shape = [None] * operand.array.ndim
        elif style == "unknown" and not operand.fixed and not operand.param:
            shape = None
        inputs.append(helper.make_tensor_value_info(name, _dtype(operand.array), shape))
    for binding in _bindings(symbols, r, empty=sample.empty):
        feeds.append({name: _redrawn(a, dims[name], binding, r) for name, a in feeds[0].items()})
    for name, array in computed.items():
        for other in _other_params(array, r):
            feeds.append({**feeds[0], name: other})
    values = [o for node in nodes for o in node.output if o]
    graph = helper.make_graph(nodes, "sample", inputs, [], weights)
    domains = sorted({n.domain for n in nodes if n.domain})
    imports = [helper.make_opsetid("", sample.opset), *(helper.make_opsetid(d, _VERSIONS.get(d, 1)) for d in domains)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    return Instance(model, feeds, values)


_VERSIONS = {"ai.onnx.ml": 5}


def _dtype(array: Array) -> int:
    return int(TensorProto.STRING) if array.dtype.kind in "OU" else int(helper.np_dtype_to_tensor_dtype(array.dtype))


def _extent_symbol(d: int, symbols: dict[str, int], shared: bool, r: Rng) -> int | str:
    if r.random() < 0.3:
        return d
    if shared:
        same = [s for s, e in symbols.items() if e == d]
        if same:
            return same[0]
    name = f"S{len(symbols)}"
    symbols[name] = d
    return name


def _bindings(symbols: dict[str, int], r: Rng, *, empty: bool) -> list[dict[str, int]]:
    if not symbols:
        return []
    least = 0 if empty else 1
    found = [dict.fromkeys(symbols, least), dict.fromkeys(symbols, 1)]
    for _ in range(4):
        name = list(symbols)[int(r.integers(len(symbols)))]
        found.append({**symbols, name: int(r.choice([least, 1, 2, symbols[name] + 1, symbols[name] + 3, 8]))})
    found.append({s: int(r.integers(least, 6)) for s in symbols})
    return found


def _redrawn(array: Array, dims: list[int | str | None], binding: dict[str, int], r: Rng) -> Array:
    shape = tuple(binding[d] if isinstance(d, str) else array.shape[i] for i, d in enumerate(dims))
    if shape == array.shape:
        return array
    if not array.size:
        return np.zeros(shape, array.dtype) if array.dtype.kind not in "OU" else np.full(shape, "a", object)
    return np.asarray(r.choice(array.reshape(-1), shape), array.dtype)


def _other_params(array: Array, r: Rng) -> list[Array]:
    found = [array[::-1].copy()] if array.ndim == 1 and array.size > 1 else []
    if array.dtype.kind == "i" and array.size:
        # Sums stay what they were, and not.
        index = int(r.integers(array.size))
        moved = array.reshape(-1).copy()
        moved[index] += 1
        found.append(moved.reshape(array.shape))
        if array.size > 1:
            moved = moved.copy()
            moved[(index + 1) % array.size] -= 1
            found.append(moved.reshape(array.shape))
    return found
