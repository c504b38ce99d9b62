"""Every pass takes about three times the steps for three times the ops, whatever the shape of the graph."""

from __future__ import annotations

from collections.abc import Callable

import growing
import pytest

from memoptc.ir.core import Graph
from memoptc.ir.parser import parse
from memoptc.pass_base import Context
from memoptc.passes.memory._tile.reachability import Reachability
from memoptc.registry import find, names
from memoptc.testing import run_pass

DATA = frozenset(
    (
        "cascade cluster-weights early-exit equalize factorize feature-statistics mix-weights prune "
        "quantize-io quantize-search smooth split-outliers"
    ).split()
)
"""Passes that want samples, or codes that come from them."""
SEARCHES = frozenset({"fit", "freeze-runtime", "order", "quantize"})
"""Searches with bounds of their own, and what mostly runs onnxruntime; benchmarks/pass_growth.py has their figures."""
PASSES = [n for n in names() if n not in DATA | SEARCHES]
FACTOR = 3
GROWTH = {"flat": 1.35, "nested": 1.7}
"""Largest exponents. An op on level k of nesting is renamed, moved or looked up k times by some passes: levels are few,
since files hold about 30."""


def cost(name: str, graph: Graph, most: int) -> int:
    """Count the steps of a pass on a graph; gives up beyond `most`."""
    context = Context(dims={"N": 8})
    context.shapes(graph)
    pass_ = find(name)()
    return growing.steps(lambda: run_pass(pass_, graph, context), most)


@pytest.mark.parametrize("shape", growing.SHAPES)
def test_steps_grow_with_the_graph(shape: str) -> None:
    kind = "flat" if shape in growing.FLAT else "nested"
    small = 30 if kind == "flat" else 5
    slow = {}
    for name in PASSES:
        first = cost(name, growing.SHAPES[shape](small), 10**6)
        allowed = int(FACTOR ** GROWTH[kind] * first) + 100
        if cost(name, growing.SHAPES[shape](FACTOR * small), allowed) > allowed:
            slow[name] = (first, allowed)
    assert not slow, f"more than (steps at {small}, allowed at {FACTOR * small}): {slow}"


def shared_constant(n: int) -> Graph:
    """Products of one constant with one input each."""
    inputs = ", ".join(f"%x{i}: f32[2]" for i in range(n))
    lines = [f"%y{i} = Mul(%c, %x{i}) : f32[2]" for i in range(n)]
    outputs = ", ".join(f"%y{i}" for i in range(n))
    return _graph(inputs, ["%c = const() {value=[1.5,2.0]} : f32[2]", *lines], outputs, n)


def ladder_of_angles(n: int) -> Graph:
    """A rotary embedding whose angles are doubled again and again, by themselves."""
    lines = ["%l, %h = Split(%x) {axis=-1, num_outputs=2}", "%m = Neg(%h)", "%t = Concat(%m, %l) {axis=-1}"]
    lines += [f"%a{i + 1} = Add(%a{i}, %a{i})" for i in range(n)]
    lines += [f"%p = Mul(%x, %a{n})", f"%q = Mul(%t, %a{n})", "%y = Add(%p, %q)"]
    return _graph("%x: f32[1,2,3,8], %a0: f32[1,1,3,8]", lines, "%y", 1)


def half_dead(n: int) -> Graph:
    """Products one after the other, half of whose columns are zero."""
    weight = ",".join(str(i % 2) for i in range(32 * 32))
    lines = [f"%w{i} = const() {{value=[{weight}]}} : f32[32,32]" for i in range(n)]
    for i in range(n):
        lines += [
            f"%p{i} = MatMul(%{f'r{i - 1}' if i else 'x'}, %w{i}) : f32[2,32]",
            f"%r{i} = Relu(%p{i}) : f32[2,32]",
        ]
    return _graph("%x: f32[2,32]", lines, f"%r{n - 1}", 1)


def _graph(inputs: str, lines: list[str], outputs: str, count: int) -> Graph:
    body = "\n".join([*lines, f"return {outputs}"])
    return parse(f"graph @g({inputs}) -> ({', '.join(['f32[*]'] * count)}) {{\n{body}\n}}")


@pytest.mark.parametrize(("name", "make"), [
    ("drop-dead-channels", half_dead), ("fold-constants", shared_constant), ("fuse-rotary", ladder_of_angles),
])  # fmt: skip
def test_steps_of_one_pass(name: str, make: Callable[[int], Graph]) -> None:
    first = cost(name, make(30), 10**6)
    allowed = int(FACTOR ** GROWTH["flat"] * first) + 100
    assert cost(name, make(FACTOR * 30), allowed) <= allowed


def test_reachability_of_a_chain() -> None:
    short, long = (list(growing.chain(n).ops) for n in (100, FACTOR * 100))
    first, second = growing.steps(lambda: Reachability(short)), growing.steps(lambda: Reachability(long))
    assert second <= FACTOR ** GROWTH["flat"] * first
