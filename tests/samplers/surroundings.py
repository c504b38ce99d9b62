"""Edits of whole models: other types and codes, names and scopes that passes must not take for something else.

Every edit is a function of a model and a numpy generator that changes the model and gives whether it did. What comes
out may be a model that onnxruntime refuses; whoever draws it finds out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from memoptc.ir.infer import infer_shapes
from memoptc.ir.onnx_io import read_onnx
from samplers.sample import pick

Edit = Callable[[ModelProto, Any], bool]
FLOAT = int(TensorProto.FLOAT)
OTHERS = (TensorProto.FLOAT16, TensorProto.FLOAT16, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
_CASTS = {
    TensorProto.FLOAT16: 6,
    TensorProto.DOUBLE: 6,
    TensorProto.INT32: 6,
    TensorProto.BFLOAT16: 13,
    TensorProto.FLOAT8E4M3FN: 19,
    TensorProto.FLOAT8E5M2: 19,
    TensorProto.INT4: 21,
    TensorProto.UINT4: 21,
    TensorProto.STRING: 9,
}
"""Types that a float can pass through, and the first opset that may say so."""
_CODES = {
    TensorProto.INT8: (np.int8, 10),
    TensorProto.UINT8: (np.uint8, 10),
    TensorProto.INT32: (np.int32, 10),
    TensorProto.FLOAT8E4M3FN: (ml_dtypes.float8_e4m3fn, 19),
    TensorProto.FLOAT8E5M2: (ml_dtypes.float8_e5m2, 19),
    TensorProto.INT4: (ml_dtypes.int4, 21),
    TensorProto.UINT4: (ml_dtypes.uint4, 21),
    TensorProto.INT16: (np.int16, 21),
    TensorProto.UINT16: (np.uint16, 21),
}
"""Types that weights can have codes in: of numpy, and the first opset."""
ODD = ("a b", "ä/ö", "%x", '"q"', "::", "a.b:0", "0", "x\ty", "const_0", "absent", "return", "v0", "y_1", "-", "{n}")


def opset_of(model: ModelProto) -> int:
    """The version of standard ONNX that a model asks for."""
    return next((i.version for i in model.opset_import if not i.domain), 1)


def graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """A graph and all that are inside it."""
    yield graph
    for node in graph.node:
        for attr in node.attribute:
            for inner in (attr.g, *attr.graphs) if attr.type in (5, 10) else ():
                yield from graphs(inner)


def fresh(model: ModelProto, hint: str) -> str:
    """A name that no graph of the model has."""
    taken = {n for g in graphs(model.graph) for node in g.node for n in (*node.input, *node.output)}
    taken |= {v.name for g in graphs(model.graph) for v in (*g.input, *g.initializer, *g.output)}
    return next(name for i in range(10_000) if (name := f"{hint}{i}") not in taken)


def dtypes(model: ModelProto) -> dict[str, int]:
    """Element types of the tensors of the main graph, as far as they are known."""
    graph = read_onnx(model)
    infer_shapes(graph)
    values = [*graph.inputs, *(v for op in graph.ops for v in op.results)]
    return {v.name: int(v.dtype) for v in values if v.dtype is not None}


def renamed(nodes: Any, prefix: str) -> list[NodeProto]:
    """Copies of nodes, with all that they and their subgraphs define under other names."""
    holder = GraphProto(node=nodes)
    known = {o for g in graphs(holder) for n in g.node for o in n.output if o}
    known |= {v.name for g in graphs(holder) for v in (*g.input, *g.initializer)}
    _rename(holder, {name: prefix + name for name in known})
    for node in holder.node:
        node.name = prefix + node.name if node.name else ""
    return list(holder.node)


def _rename(graph: GraphProto, names: dict[str, str]) -> None:
    """Give values other names, in subgraphs, too."""
    for g in graphs(graph):
        for node in g.node:
            node.input[:] = [names.get(x, x) for x in node.input]
            node.output[:] = [names.get(x, x) for x in node.output]
        for value in (*g.input, *g.output, *g.initializer, *g.value_info):
            value.name = names.get(value.name, value.name)


def _weights(model: ModelProto) -> list[TensorProto]:
    """Float weights that are no inputs."""
    inputs = {v.name for v in model.graph.input}
    return [t for t in model.graph.initializer if t.data_type == FLOAT and t.name not in inputs]


def _put_before(model: ModelProto, name: str, nodes: list[NodeProto]) -> None:
    """Let nodes, the last of which gives `name`, come first."""
    for node in reversed(nodes):
        model.graph.node.insert(0, node)


# -- types and codes ---------------------------------------------------------------------------------------------


def retyped(model: ModelProto, r: Any) -> bool:
    """Let everything that is float32 have another float type."""
    to = pick(r, *OTHERS)
    array_type = helper.tensor_dtype_to_np_dtype(to)
    for graph in graphs(model.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.HasField("tensor_type") and value.type.tensor_type.elem_type == FLOAT:
                value.type.tensor_type.elem_type = to
        tensors = [*graph.initializer, *(a.t for n in graph.node for a in n.attribute if a.type == 4)]
        for tensor in tensors:
            if tensor.data_type == FLOAT:
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(array_type), tensor.name))
        for node in graph.node:
            for attr in node.attribute:
                if attr.name in ("to", "dtype") and attr.i == FLOAT:
                    attr.i = to
    return True


def weight_coded(model: ModelProto, r: Any) -> bool:
    """Store a weight as codes, per tensor, per channel or per block, or in a narrow float type behind a Cast."""
    known, opset = _weights(model), opset_of(model)
    known = [t for t in known if 0 < int(np.prod(t.dims)) <= 65536]
    if not known:
        return False
    tensor = pick(r, *known)
    array, name = numpy_helper.to_array(tensor), tensor.name
    codes = fresh(model, "codes")
    if r.random() < 0.25:
        to = pick(
            r, *(t for t in (TensorProto.FLOAT16, TensorProto.BFLOAT16) if _CASTS[t] <= opset), TensorProto.DOUBLE
        )
        narrow = array.astype(helper.tensor_dtype_to_np_dtype(to))
        tensor.CopyFrom(numpy_helper.from_array(narrow, codes))
        _put_before(model, name, [helper.make_node("Cast", [codes], [name], to=FLOAT)])
        return True
    domain = "com.microsoft" if r.random() < 0.2 else ""
    choices = [t for t, (_, first) in _CODES.items() if first <= (21 if domain and t not in (17, 19) else opset)]
    if not choices:
        return False
    to = pick(r, *choices)
    kind = _CODES[to][0]
    info: Any = ml_dtypes.finfo(kind) if to in (17, 19) else ml_dtypes.iinfo(kind)
    axis, block, attrs = None, 0, {}
    if array.ndim and r.random() < 0.6 and (opset >= 13 or domain):
        axis = int(r.integers(array.ndim))
        attrs["axis"] = axis - (array.ndim if r.random() < 0.3 else 0)
        if (opset >= 21 or domain) and r.random() < 0.4 and array.shape[axis] % 2 == 0:
            attrs["block_size"] = block = 2 if r.random() < 0.5 else array.shape[axis]
    if block and axis is not None:
        split = array.reshape(*array.shape[:axis], -1, block, *array.shape[axis + 1 :])
        scale = np.abs(split).max(axis + 1)
        wide = np.repeat(scale, block, axis)
    elif axis is not None:
        scale = np.abs(array).max(tuple(a for a in range(array.ndim) if a != axis))
        wide = scale.reshape([-1 if a == axis else 1 for a in range(array.ndim)])
    else:
        scale = wide = np.asarray(np.abs(array).max())
    top = float(info.max) if to in (17, 19) else float(min(info.max, 1 << 20))
    low, middle = float(info.min), (0 if float(info.min) < 0 else int(top) // 2 + 1)
    unit = np.where(scale > 0, scale / (top / 2 if middle else top), 1).astype(np.float32)
    exact = np.where(wide > 0, wide / (top / 2 if middle else top), 1)
    found = np.clip(array / exact + middle, low, top)
    found = found.astype(kind) if to in (17, 19) else np.rint(found).astype(np.int64).astype(kind)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(found), codes))
    inputs = [codes, fresh(model, "unit")]
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(unit, np.float32), inputs[1]))
    if (middle or r.random() < 0.5) and to != TensorProto.INT32:
        inputs.append(fresh(model, "zero"))
        zero = np.full(unit.shape, middle).astype(kind)
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(zero), inputs[2]))
    _put_before(model, name, [helper.make_node("DequantizeLinear", inputs, [name], domain=domain, **attrs)])
    if domain and all(i.domain != domain for i in model.opset_import):
        model.opset_import.add(domain=domain, version=1)
    return True


def through(model: ModelProto, r: Any) -> bool:
    """Let one edge pass through another type, a sequence, an optional, or an op that gives the same."""
    types, opset = dtypes(model), opset_of(model)
    edges = [(n, j) for n in model.graph.node for j, x in enumerate(n.input) if types.get(x) == FLOAT]
    if not edges:
        return False
    node, j = edges[int(r.integers(len(edges)))]
    x, a, b = node.input[j], fresh(model, "there"), fresh(model, "back")
    way = int(r.integers(5))
    if way == 0 and opset >= 11:
        index = fresh(model, "at")
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(pick(r, 0, -1)), index))
        nodes = [helper.make_node("SequenceConstruct", [x, x], [a]), helper.make_node("SequenceAt", [a, index], [b])]
    elif way == 1 and opset >= 15:
        nodes = [helper.make_node("Optional", [x], [a]), helper.make_node("OptionalGetElement", [a], [b])]
    elif way == 2:
        nodes = [helper.make_node("Identity", [x], [a]), helper.make_node("Dropout", [a], [b, fresh(model, "mask")])]
    else:
        to = pick(r, *(t for t, first in _CASTS.items() if first <= opset))
        more = {"saturate": 0} if to in (17, 19) and r.random() < 0.5 else {}
        nodes = [helper.make_node("Cast", [x], [a], to=to, **more), helper.make_node("Cast", [a], [b], to=FLOAT)]
    node.input[j] = b
    at = list(model.graph.node).index(node)
    for new in reversed(nodes):
        model.graph.node.insert(at, new)
    return True


def opset_raised(model: ModelProto, r: Any) -> bool:
    """Ask for a newer opset, as ONNX's own converter writes it."""
    to = pick(r, 13, 18, 19, 21, 22, 23)
    if to <= opset_of(model) or any(len(g.sparse_initializer) for g in graphs(model.graph)):
        return False
    try:
        made = onnx.version_converter.convert_version(model, to)
    except Exception:  # of C++, without a class of its own
        return False
    model.CopyFrom(made)
    model.ir_version = max(model.ir_version, 10)
    return True


# -- names, weights and scopes -----------------------------------------------------------------------------------


def odd_names(model: ModelProto, r: Any) -> bool:
    """Give values names of odd characters, or such as passes make, and nodes none, or those of values."""
    shown = {v.name for v in (*model.graph.input, *model.graph.output)}
    inner = [o for g in graphs(model.graph) for n in g.node for o in n.output if o and o not in shown]
    inner += [t.name for t in model.graph.initializer if t.name not in shown]
    inner = sorted(set(inner))
    free = [n for n in ODD if n not in inner and n not in shown]
    chosen = list(r.permutation(inner)[: len(free)])
    if not chosen:
        return False
    _rename(model.graph, dict(zip(chosen, r.permutation(free).tolist(), strict=False)))
    if r.random() < 0.5:
        free = r.permutation([*ODD, *chosen]).tolist() if r.random() < 0.5 else []
        for g in graphs(model.graph):
            for node in g.node:
                node.name = free.pop() if free else ""
    return True


def weight_replaceable(model: ModelProto, r: Any) -> bool:
    """Let weights be inputs, too, which callers may leave out."""
    known = _weights(model)
    for tensor in known:
        if r.random() < 0.5:
            model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return bool(known)


def weight_as_node(model: ModelProto, r: Any) -> bool:
    """Write a weight as a Constant, whose value may lie sparse, or let it pass through an Identity."""
    known = _weights(model)
    if not known:
        return False
    tensor = pick(r, *known)
    name, kept = tensor.name, TensorProto()
    kept.CopyFrom(tensor)
    if r.random() < 0.5:
        tensor.name = fresh(model, "plain")
        _put_before(model, name, [helper.make_node("Identity", [tensor.name], [name])])
    else:
        model.graph.initializer.remove(tensor)
        _put_before(model, name, [helper.make_node("Constant", [], [name], value=kept)])
    return True


def empty_operands(model: ModelProto, r: Any) -> bool:
    """Spell optional operands and results that are left out as empty names."""
    done = False
    for graph in graphs(model.graph):
        for node in graph.node:
            if node.domain or not onnx.defs.has(node.op_type) or r.random() < 0.3:
                continue
            schema = onnx.defs.get_schema(node.op_type, opset_of(model))
            for values, formal in ((node.input, schema.inputs), (node.output, schema.outputs)):
                optional = onnx.defs.OpSchema.FormalParameterOption.Optional
                while len(values) < len(formal) and formal[len(values)].option == optional:
                    values.append("")
                    done = True
    return done


def in_function(model: ModelProto, r: Any) -> bool:
    """Put all ops into a function of the model's own, an attribute of which comes from the call; sometimes nested."""
    made = {o for n in model.graph.node for o in n.output}
    if not made or model.functions or opset_of(model) < 8 or any(o.name not in made for o in model.graph.output):
        return False
    given = [v.name for v in model.graph.input]
    given += [t.name for t in model.graph.initializer if t.name not in given]
    results = [o.name for o in model.graph.output]
    nodes = renamed(model.graph.node, "f_")
    attrs: dict[str, Any] = {}
    places = [a for n in nodes for a in n.attribute if a.type in (1, 2, 7) and a.name not in ("to", "dtype")]
    if places and r.random() < 0.7:
        attr = pick(r, *places)
        attrs["alpha"] = helper.get_attribute_value(attr)
        name, kind = attr.name, attr.type
        attr.Clear()
        attr.name, attr.type, attr.ref_attr_name = name, kind, "alpha"
    outputs = [f"f_{n}" for n in results]
    imports = list(model.opset_import)
    body = helper.make_function("local", "Whole", given, outputs, nodes, imports, list(attrs))
    del model.graph.node[:], model.graph.value_info[:]
    model.functions.append(body)
    model.graph.node.append(helper.make_node("Whole", given, results, domain="local", **attrs))
    model.opset_import.add(domain="local", version=1)
    if r.random() < 0.4:
        call = helper.make_node("Whole", given, outputs, domain="local", **attrs)
        outer = helper.make_function("local", "Outer", given, outputs, [call], list(model.opset_import))
        model.functions.append(outer)
        del model.graph.node[0]
        model.graph.node.append(helper.make_node("Outer", given, results, domain="local"))
    model.ir_version = max(model.ir_version, 8)
    return True


def unused_beside(model: ModelProto, r: Any) -> bool:
    """Add what nothing uses: an input, a weight, ops, notes, and types that ONNX infers."""
    name = fresh(model, "idle")
    model.graph.initializer.append(numpy_helper.from_array(np.ones((2, 2), np.float32), name))
    model.graph.node.append(helper.make_node("MatMul", [name, name], [fresh(model, "idle_product")]))
    model.graph.doc_string = model.doc_string = "ü\n'"
    model.metadata_props.add(key="k", value="v")
    if r.random() < 0.5:
        try:
            model.CopyFrom(onnx.shape_inference.infer_shapes(model, data_prop=True))
        except Exception:  # of C++, without a class of its own
            return True
    return True


SURROUNDINGS: tuple[Edit, ...] = (
    retyped,
    weight_coded,
    weight_coded,
    through,
    opset_raised,
    odd_names,
    weight_replaceable,
    weight_as_node,
    empty_operands,
    in_function,
    unused_beside,
)
