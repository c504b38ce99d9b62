"""Cases of the passes, changed a little and put into other surroundings: what a pass looks for, and near-misses.

A draw takes the graph of one `.mir` case, makes up to three edits (an op between two others, another constant or
attribute, a weight that is an input, a value that is an output too, an axis that is open, a copy of the whole beside
it, all of it inside a branch or the body of a Loop), and gives the model with feeds under several bindings.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from memoptc.ir.diagnostics import InputError
from memoptc.ir.onnx_io import read_onnx, to_proto
from memoptc.testing.cases import Case, read_case
from memoptc.testing.numbers import NOT_EMPTY, Feed, feed_of, hard_feeds
from samplers.sample import Rng, pick
from samplers.surroundings import SURROUNDINGS, Edit, dtypes, fresh, opset_of, renamed

CASES = Path(__file__).resolve().parent.parent / "cases"
MOST_BYTES = 1 << 22
"""Larger models are left out."""
_UNARY = ("Relu", "Neg", "Identity", "Abs", "Sigmoid")
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)


@dataclass
class NearMiss:
    """A model made of a case.

    Args:
        name: Pass and file of the case.
        pipeline: Of the case.
        model: After the edits.
        edits: Their names.
        feeds: Plain numbers under several bindings; the first one need not run.
        hard: The same with NaN, infinities and -0.0.
    """

    name: str
    pipeline: str
    model: onnx.ModelProto
    edits: list[str] = field(default_factory=list)
    feeds: list[Feed] = field(default_factory=list)
    hard: list[Feed] = field(default_factory=list)


@cache
def cases() -> tuple[tuple[str, Case, bytes], ...]:
    """Give name, case and model of each case whose inputs have extents that are known or symbols."""
    made = []
    for file in sorted(CASES.rglob("*.mir")):
        case = read_case(file)
        graph = case.graph()
        if all(v.shape is not None and None not in v.shape for v in graph.inputs):
            proto = to_proto(graph)
            if all(i.domain != "com.microsoft" for i in proto.opset_import):
                proto.opset_import.add(domain="com.microsoft", version=1)
            model = proto.SerializeToString()
            if len(model) < MOST_BYTES:
                made.append((f"{file.parent.name}/{file.stem}", case, model))
    return tuple(made)


def near_miss(r: Rng, only: str = "") -> NearMiss:
    """Draw a case (of the pass `only`, where that is given) and edit it."""
    choices = [c for c in cases() if c[0].startswith(f"{only}/" if only else "")]
    passes = sorted({name.split("/")[0] for name, _, _ in choices})
    one = passes[int(r.integers(len(passes)))]  # each pass as often as any other, however many cases it has
    name, case, data = pick(r, *(c for c in choices if c[0].startswith(f"{one}/")))
    made = NearMiss(name, str(case.pipeline), onnx.ModelProto.FromString(data))
    made.edits = edited(made.model, r, int(r.integers(4)))
    graph = read_onnx(made.model)
    symbols = [s for s in _symbols(made.model) if s not in case.dims]
    empty = not any(op.op_type in NOT_EMPTY for op in graph.walk())
    for n, extent in enumerate((4, 2, 1, 3, 6, 8, *([0] if empty else []))):
        mixed = {s: int(r.choice([extent, 1, 2, 5])) if n % 2 else extent for s in symbols}
        made.feeds.append(feed_of(graph, {**case.dims, **mixed}, n))
    made.hard = hard_feeds(graph, empty=empty)[1::2]
    for feed in (*made.feeds, *made.hard):
        for weight in graph.defaults:  # a compile makes them constants
            feed.pop(weight.name, None)
    return made


def edited(model: onnx.ModelProto, r: Rng, count: int) -> list[str]:
    """Change a model by so many edits at most; gives the names of those that did something."""
    drawn = [EDITS[int(r.integers(len(EDITS)))] for _ in range(count)]
    return [edit.__name__ for edit in drawn if edit(model, r)]


def fitted(model: onnx.ModelProto, feeds: list[Feed], r: Rng) -> list[Feed]:
    """Feeds for a model that edits have changed: of the types that it asks for now, with numbers for new inputs.

    Raises:
        InputError: an input is new, and its extents are not all known.
    """
    defaults = {t.name for t in model.graph.initializer}
    found: list[Feed] = [{} for _ in feeds]
    for value in model.graph.input:
        if value.name in defaults or not value.type.HasField("tensor_type"):
            continue
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        shape = [d.dim_value for d in value.type.tensor_type.shape.dim if d.HasField("dim_value")]
        if len(shape) != len(value.type.tensor_type.shape.dim) and any(value.name not in f for f in feeds):
            raise InputError(f"{value.name} is new and its extents are open.")
        for number, feed in enumerate(feeds):
            array = feed.get(value.name)
            if array is None:
                array = np.asarray(number % 2 == 0) if dtype == np.bool_ else r.standard_normal(shape)
            found[number][value.name] = array if array.dtype.kind in "OU" else np.asarray(array).astype(dtype)
    return found


def input_wrapped(model: onnx.ModelProto, r: Rng, feeds: Iterable[Feed]) -> str:
    """Let an input be an optional, or the first of a sequence, and feeds with it; gives a name, or "" if not."""
    defaults = {t.name for t in model.graph.initializer}
    tensors = [v for v in model.graph.input if v.type.HasField("tensor_type") and v.name not in defaults]
    opset = opset_of(model)
    if not tensors or opset < 11:
        return ""
    value = tensors[int(r.integers(len(tensors)))]
    name, listed = value.name, opset < 18 or r.random() < 0.5
    outer, kind = fresh(model, f"{name}_outer"), onnx.TypeProto()
    (kind.sequence_type if listed else kind.optional_type).elem_type.CopyFrom(value.type)
    value.name = outer
    value.type.CopyFrom(kind)
    if listed:
        first = fresh(model, "first")
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(0, np.int64), first))
        model.graph.node.insert(0, helper.make_node("SequenceAt", [outer, first], [name]))
    else:
        model.graph.node.insert(0, helper.make_node("OptionalGetElement", [outer], [name]))
    for feed in feeds:
        if name in feed:
            array = feed.pop(name)
            feed[outer] = [array, array] if listed else array
    return "input_listed" if listed else "input_optional"


def _symbols(model: onnx.ModelProto) -> list[str]:
    return sorted({d.dim_param for v in model.graph.input for d in v.type.tensor_type.shape.dim if d.dim_param})


# -- edits: each gives whether it did anything ------------------------------------------------------------------


def op_between(model: onnx.ModelProto, r: Rng) -> bool:
    """Put an element-wise op into one edge."""
    types = dtypes(model)
    edges = [(i, j) for i, n in enumerate(model.graph.node) for j, x in enumerate(n.input) if types.get(x) in _FLOATS]
    if not edges:
        return False
    i, j = edges[int(r.integers(len(edges)))]
    node, made = model.graph.node[i], fresh(model, "between")
    new = helper.make_node(pick(r, *_UNARY), [node.input[j]], [made])
    node.input[j] = made
    model.graph.node.insert(i, new)
    return True


def value_shown(model: onnx.ModelProto, r: Rng) -> bool:
    """Make a value an output, too."""
    shown = {o.name for o in model.graph.output}
    values = [o for n in model.graph.node for o in n.output if o and o not in shown]
    if not values:
        return False
    model.graph.output.append(helper.make_empty_tensor_value_info(values[int(r.integers(len(values)))]))
    return True


def other_constant(model: onnx.ModelProto, r: Rng) -> bool:
    """Change numbers of a weight."""
    small = [t for t in model.graph.initializer if 0 < np.prod(t.dims) <= 4096 and t.data_type not in (8, 22, 21)]
    if not small:
        return False
    tensor = small[int(r.integers(len(small)))]
    array = numpy_helper.to_array(tensor).copy()
    flat = array.reshape(-1)
    if array.dtype.kind == "f":
        flat[:] = flat * array.dtype.type(pick(r, 0.0, -1.0, 0.5, 1.001))
    elif array.dtype.kind in "iu":
        flat[int(r.integers(flat.size))] += array.dtype.type(1)
    elif array.dtype.kind == "b":
        flat[int(r.integers(flat.size))] ^= True
    else:
        return False
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return True


def other_attribute(model: onnx.ModelProto, r: Rng) -> bool:
    """Change or drop an attribute."""
    places = [(n, i) for n in model.graph.node for i, a in enumerate(n.attribute) if a.type in (1, 2, 7)]
    if not places:
        return False
    node, i = places[int(r.integers(len(places)))]
    attr = node.attribute[i]
    if r.random() < 0.3:
        del node.attribute[i]
    elif attr.type == 1:
        attr.f *= pick(r, 0.5, -1.0, 2.0)
    elif attr.type == 2:
        attr.i += pick(r, 1, -1)
    elif attr.ints:
        attr.ints[int(r.integers(len(attr.ints)))] += pick(r, 1, -1)
    return True


def weight_as_input(model: onnx.ModelProto, r: Rng) -> bool:
    """Make a weight an input."""
    known = {v.name for v in model.graph.input}
    weights = [i for i, t in enumerate(model.graph.initializer) if t.data_type in _FLOATS and t.name not in known]
    if not weights:
        return False
    i = weights[int(r.integers(len(weights)))]
    tensor = model.graph.initializer[i]
    model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    del model.graph.initializer[i]
    return True


def axis_opened(model: onnx.ModelProto, r: Rng) -> bool:
    """Make an extent of an input a symbol, of its own or one that is there already."""
    dims = [d for v in model.graph.input for d in v.type.tensor_type.shape.dim if not d.dim_param]
    if not dims:
        return False
    dims[int(r.integers(len(dims)))].dim_param = pick(r, "Q", *_symbols(model))
    _forget_extents((*model.graph.output, *model.graph.value_info))
    return True


def _forget_extents(values: Iterable[onnx.ValueInfoProto]) -> None:
    for value in values:
        if value.type.HasField("tensor_type"):  # reading what is not there would make a type without elements
            value.type.tensor_type.ClearField("shape")


def ends_covered(model: onnx.ModelProto, r: Rng) -> bool:
    """Put element-wise ops before the inputs' uses and behind the outputs."""
    op, types = pick(r, *_UNARY), dtypes(model)
    new = {v.name: fresh(model, f"in_{v.name}") for v in model.graph.input if types.get(v.name) in _FLOATS}
    if not new:
        return False
    for node in model.graph.node:
        for j, name in enumerate(node.input):
            node.input[j] = new.get(name, name)
    for name, made in new.items():
        model.graph.node.insert(0, helper.make_node(op, [name], [made]))
    return True


def copy_beside(model: onnx.ModelProto, r: Rng) -> bool:
    """Compute everything a second time, of the same inputs and weights."""
    if not _plain(model) or any(o.name.startswith("again_") for o in model.graph.output):
        return False
    copies = renamed(model.graph.node, "again_")
    model.graph.node.extend(copies)
    model.graph.output.extend(helper.make_empty_tensor_value_info(f"again_{o.name}") for o in list(model.graph.output))
    return True


def in_branch(model: onnx.ModelProto, r: Rng) -> bool:
    """Put all ops into the branches of an If, which capture inputs and weights."""
    if not _plain(model):
        return False
    names, flag = [o.name for o in model.graph.output], fresh(model, "flag")
    branches = {}
    for key, prefix in (("then_branch", "t_"), ("else_branch", "e_")):
        shown = [helper.make_empty_tensor_value_info(prefix + n) for n in names]
        branches[key] = helper.make_graph(renamed(model.graph.node, prefix), key, [], shown)
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.append(helper.make_node("If", [flag], names, **branches))
    model.graph.input.append(helper.make_tensor_value_info(flag, TensorProto.BOOL, []))
    return True


def in_loop(model: onnx.ModelProto, r: Rng) -> bool:
    """Put all ops into the body of a Loop, which collects what they give."""
    if not _plain(model):
        return False
    names, trips = [o.name for o in model.graph.output], fresh(model, "trips")
    nodes = [*renamed(model.graph.node, "b_"), helper.make_node("Identity", ["on"], ["on_still"])]
    inputs = [helper.make_tensor_value_info(n, t, []) for n, t in (("i", TensorProto.INT64), ("on", TensorProto.BOOL))]
    shown = [helper.make_tensor_value_info("on_still", TensorProto.BOOL, [])]
    shown += [helper.make_empty_tensor_value_info(f"b_{n}") for n in names]
    body = helper.make_graph(nodes, "body", inputs, shown)
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(pick(r, 0, 1, 2), np.int64), trips))
    model.graph.node.append(helper.make_node("Loop", [trips, ""], names, body=body))
    _forget_extents(model.graph.output)
    return True


def _plain(model: onnx.ModelProto) -> bool:
    """Whether all ops can go into a graph of their own: outputs are what ops make."""
    made = {o for n in model.graph.node for o in n.output}
    return bool(made) and all(o.name in made for o in model.graph.output)


EDITS: tuple[Edit, ...] = (
    op_between,
    op_between,
    value_shown,
    other_constant,
    other_attribute,
    weight_as_input,
    axis_opened,
    ends_covered,
    copy_beside,
    in_branch,
    in_loop,
    *SURROUNDINGS,
)
