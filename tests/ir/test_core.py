"""Use-def chains, lists that may be changed while walked, versions, names, captures, copies."""

from __future__ import annotations

import numpy as np
import pytest

from memoptc.ir.core import Graph, ModelInfo, Op, Output
from memoptc.ir.diagnostics import InternalError
from memoptc.ir.tensors import from_array
from memoptc.ir.types import DType, TensorType

F32 = TensorType(DType.FLOAT, (2,))


def chain(n: int) -> Graph:
    graph = Graph("chain", ModelInfo())
    value = graph.add_input("x", F32)
    for _ in range(n):
        value = graph.append(Op("Relu", [value], [F32])).result
    graph.set_outputs([value], [Output("y", F32)])
    return graph


def test_replace_by_reaches_operands_and_outputs_alike() -> None:
    graph = chain(3)
    a, b, c = graph.ops
    c.result.replace_by(a.result)
    assert graph.outputs == (a.result,)
    assert graph.outputs_info[0].name == "y"
    c.erase()
    b.erase()
    assert a.result.users == (graph.terminator,)
    assert len(graph) == 1


def test_erase_refuses_while_used() -> None:
    graph = chain(2)
    first = next(iter(graph.ops))
    with pytest.raises(InternalError, match="used by Relu"):
        first.erase()


def test_operands_change_only_through_methods() -> None:
    graph = chain(1)
    (op,) = graph.ops
    with pytest.raises(AttributeError, match="set_operand"):
        op.operands = ()
    with pytest.raises(TypeError):
        op.attrs["axis"] = 1  # type: ignore[index]


def test_same_value_twice_is_two_uses() -> None:
    graph = chain(1)
    (x,) = graph.inputs
    add = graph.append(Op("Add", [x, x], [F32]))
    assert [(o, i) for o, i in x.uses if o is add] == [(add, 0), (add, 1)]
    other = graph.outputs[0]
    add.set_operand(1, other)
    assert add.operands == (x, other)
    assert [(o, i) for o, i in x.uses if o is add] == [(add, 0)]


def test_walk_survives_erasure_insertion_and_moves() -> None:
    graph = chain(6)
    ops = list(graph.ops)
    seen = []
    for op in graph.ops:
        seen.append(op)
        if op is ops[1]:
            for dead in (ops[3], ops[2]):
                dead.result.replace_by(dead.operand)
                dead.erase()
            graph.insert_after(op, Op("Neg", [op.result], [F32]))
    assert [o.op_type for o in seen] == ["Relu", "Relu", "Neg", "Relu", "Relu"]
    for op in graph.ops:
        if op is ops[0]:
            op.move_before(ops[5])
    assert list(graph.ops).index(ops[0]) == list(graph.ops).index(ops[5]) - 1


def test_version_grows_with_changes_in_regions() -> None:
    graph = chain(1)
    cond = graph.add_input("cond", TensorType(DType.BOOL, ()))
    body = Graph("then")
    body.set_outputs([graph.inputs[0]])
    graph.append(Op("If", [cond], [F32], regions={"then_branch": body}))
    before = graph.version
    relu = body.append(Op("Relu", [graph.inputs[0]], [F32]))
    body.set_outputs([relu.result])
    assert graph.version > before
    assert body.captures() == (graph.inputs[0],)
    assert [o.op_type for o in graph.walk()] == ["Relu", "If", "Relu"]


def test_erasing_an_op_releases_what_its_regions_used() -> None:
    graph = chain(1)
    cond = graph.add_input("cond", TensorType(DType.BOOL, ()))
    body = Graph("then")
    inner = body.append(Op("Relu", [graph.inputs[0]], [F32]))
    body.set_outputs([inner.result])
    op = graph.append(Op("If", [cond], [F32], regions={"then_branch": body}))
    assert inner in graph.inputs[0].users
    op.erase()
    assert inner not in graph.inputs[0].users
    assert not cond.has_uses


def test_fresh_names_are_unique_in_the_whole_model() -> None:
    graph = chain(3)
    names = [op.result.name for op in graph.ops]
    assert len(set(names)) == 3
    assert graph.fresh_name("x") == "x_1"
    assert graph.fresh_name("y") == "y_1"


def test_analysis_is_computed_once_per_version() -> None:
    graph, calls = chain(1), []

    def count(g: Graph) -> int:
        calls.append(1)
        return len(g)

    assert (graph.analysis(count), graph.analysis(count), len(calls)) == (1, 1, 1)
    graph.append(Op("Relu", [graph.inputs[0]], [F32]))
    assert (graph.analysis(count), len(calls)) == (2, 2)


def test_clone_shares_tensors_and_nothing_else() -> None:
    graph = chain(1)
    weight = graph.const(from_array(np.ones(2, np.float32)), "w")
    add = graph.append(Op("Add", [graph.outputs[0], weight], [F32]))
    graph.set_outputs([add.result])
    copy = graph.clone()
    assert [o.op_type for o in copy.ops] == ["const", "Relu", "Add"]
    assert next(iter(copy.ops)).attrs["value"] is weight.tensor
    assert not {o for o in copy.ops} & {o for o in graph.ops}
    assert copy.outputs[0].graph is copy


def test_reorder_takes_permutations_only() -> None:
    graph = chain(2)
    a, b = graph.ops
    graph.reorder([b, a])
    assert list(graph.ops) == [b, a]
    with pytest.raises(InternalError, match="permutation"):
        graph.reorder([a, a])


def test_an_op_that_moves_out_gets_a_new_name_where_its_own_is_taken() -> None:
    top, region = Graph("top", ModelInfo()), Graph("region")
    x = top.add_input("x", TensorType(DType.FLOAT, (2,)))
    owner = top.append(Op("If", [x], result_names=["y"], regions={"then_branch": region}))
    inner = [region.append(Op("Relu", [x], result_names=[name])) for name in ("r", "y", "x", "only")]
    later = top.append(Op("Abs", [x], result_names=["r"]))
    for op in inner:
        op.move_before(owner)
    names = [op.result.name for op in top.ops]
    assert len({*names, "x"}) == len(names) + 1
    assert (later.result.name, owner.result.name, inner[3].result.name) == ("r", "y", "only")
    inner[0].result.name = "free"
    region.append(Op("Neg", [x], result_names=["free"])).move_after(later)
    assert later.next is not None
    assert later.next.result.name != "free"


def test_uses_are_counted_by_operand_and_the_outputs_are_some() -> None:
    graph = chain(2)
    first, second = graph.ops
    assert (first.result.use_count, first.result.single_use, second.result.single_use) == (1, True, True)
    both = graph.append(Op("Add", [first.result, first.result], [F32]))
    assert (first.result.use_count, first.result.single_use) == (3, False)
    assert (both.result.use_count, both.result.single_use, both.result.has_uses) == (0, False, False)
