"""LSTM and GRU in float64, as a Scan over time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from memoptc.ir.core import Graph, Op, Output, Value
from memoptc.ir.ops.double import NoDouble, OpBuilder, f64, i64, text_attr
from memoptc.ir.types import DType, TensorType

_ACTIVATIONS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh")}


def recurrent(b: OpBuilder, op: Op) -> Sequence[Value | None]:
    """An LSTM or GRU as a Scan over time, one per direction."""
    direction = text_attr(op, "direction", "forward")
    reverses = {"forward": [0], "reverse": [1], "bidirectional": [0, 1]}[direction]
    named = tuple(a if isinstance(a, str) else a.decode() for a in op.attrs.get("activations", ()))
    odd = any(op.attrs.get(key) for key in ("activation_alpha", "activation_beta", "clip", "layout"))
    odd = odd or named not in ((), _ACTIVATIONS[op.op_type] * len(reverses))
    if odd or op.input(7) is not None or op.attrs.get("input_forget"):
        raise NoDouble(f"{op.op_type} {op.name!r} with peepholes, clipping or other activations")
    ends = [_one_way(b, op, number, reverse) for number, reverse in enumerate(reverses)]
    steps, *lasts = zip(*ends, strict=True)
    return [_join(b, steps, 1), *(_join(b, last, 0) for last in lasts)]


def _join(b: OpBuilder, parts: Sequence[Value], axis: int) -> Value:
    parts = [b.Unsqueeze(part, i64(axis)) for part in parts]
    result: Value = b.Concat(*parts, axis=axis)
    return result


def _one_way(b: OpBuilder, op: Op, number: int, reverse: int) -> list[Value]:
    """Give all steps [T, N, H], then the last state(s) [N, H] of direction `number`."""

    def pick(value: Value | None) -> Value | None:
        return None if value is None else b.Gather(value, np.asarray(number, np.int64), axis=0)

    x, lengths = op.operand, op.input(4)
    lstm, hidden = op.op_type == "LSTM", op.attrs["hidden_size"]
    rows = (4 if lstm else 3) * hidden
    shape = b.Shape(x)
    weights = [b.Transpose(pick(matrix), perm=[1, 0]) for matrix in op.operands[1:3]]
    bias = pick(op.input(3)) or b.const(np.zeros(2 * rows))
    weights += b.Split(bias, i64(rows, rows), axis=0, _outputs=2)
    zeros = b.Expand(f64(0.0), b.Concat(b.Slice(shape, i64(1), i64(2), i64(0)), i64(hidden), axis=0))
    starts = [pick(op.input(k)) or zeros for k in ((5, 6) if lstm else (5,))]
    fed = [x]
    if lengths is not None:  # steps past the end of a sequence leave its state alone and give 0
        steps = b.Range(i64(0)[0], b.Gather(shape, i64(0)[0], axis=0), i64(1)[0])
        alive = b.Less(b.Unsqueeze(steps, i64(1)), b.Unsqueeze(b.Cast(lengths, to=int(DType.INT64)), i64(0)))
        fed.append(b.Unsqueeze(alive, i64(2)))
    body = Graph("step")
    attrs = {
        "num_scan_inputs": len(fed),
        "scan_input_directions": (reverse,) * len(fed),
        "scan_output_directions": (reverse,),
    }
    double = TensorType(DType.DOUBLE, (None, hidden))  # onnxruntime's Scan wants the rank of every result
    scan = Op(
        "Scan",
        [*starts, *fed],
        [*[double] * len(starts), TensorType(DType.DOUBLE, (None, None, hidden))],
        attrs,
        {"body": body},
    )
    b.graph.insert_before(op, scan)
    held = [body.add_input(body.fresh_name(f"state{k}"), double) for k in range(len(starts))]
    part = body.add_input(body.fresh_name("x_t"), TensorType(DType.DOUBLE, (None, None)))
    step = b.inside(body)
    last = bool(op.attrs.get("linear_before_reset", 0))
    new = _lstm_step(step, part, held, weights, hidden) if lstm else [
        _gru_step(step, part, held[0], weights, hidden, reset_last=last)
    ]  # fmt: skip
    seen = step.Identity(new[0])
    if lengths is not None:
        on = body.add_input(body.fresh_name("alive"), TensorType(DType.BOOL))
        new = [step.Where(on, value, old) for value, old in zip(new, held, strict=True)]
        seen = step.Where(on, seen, f64(0.0))
    body.set_outputs([*new, seen], [Output(value.name, double) for value in (*new, seen)])
    return [scan.results[-1], *scan.results[:-1]]


def _lstm_step(b: OpBuilder, x: Value, held: Sequence[Value], weights: Sequence[Value], hidden: int) -> list[Value]:
    """One step; the gates lie in the order i, o, f, c."""
    w, r, wb, rb = weights
    sums = b.Add(b.Add(b.MatMul(x, w), wb), b.Add(b.MatMul(held[0], r), rb))
    i, o, f, c = b.Split(sums, i64(*[hidden] * 4), axis=1, _outputs=4)
    cell = b.Add(b.Mul(b.Sigmoid(f), held[1]), b.Mul(b.Sigmoid(i), b.Tanh(c)))
    return [b.Mul(b.Sigmoid(o), b.Tanh(cell)), cell]


def _gru_step(b: OpBuilder, x: Value, h: Value, weights: Sequence[Value], hidden: int, *, reset_last: bool) -> Value:
    """One step; the gates lie in the order z, r, h."""
    w, r, wb, rb = weights
    thirds = i64(*[hidden] * 3)
    xz, xr, xh = b.Split(b.Add(b.MatMul(x, w), wb), thirds, axis=1, _outputs=3)
    rz, rr, rh = b.Split(r, thirds, axis=1, _outputs=3)
    bz, br, bh = b.Split(rb, thirds, axis=0, _outputs=3)
    z = b.Sigmoid(b.Add(xz, b.Add(b.MatMul(h, rz), bz)))
    reset = b.Sigmoid(b.Add(xr, b.Add(b.MatMul(h, rr), br)))
    if reset_last:
        back = b.Mul(reset, b.Add(b.MatMul(h, rh), bh))
    else:
        back = b.Add(b.MatMul(b.Mul(reset, h), rh), bh)
    new: Value = b.Add(b.Mul(b.Sub(f64(1.0), z), b.Tanh(b.Add(xh, back))), b.Mul(z, h))
    return new
