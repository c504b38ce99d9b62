"""Damages files: bytes of any format, and fields of protobufs."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
from google.protobuf.descriptor import FieldDescriptor
from onnx import numpy_helper

Rng = np.random.Generator

_NUMBERS = (-1, 0, 1, 2, 7, 255, 2**31 - 1, -(2**31), 2**40, 2**63 - 1, -(2**63))
_WHOLE = {
    FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_INT64, FieldDescriptor.TYPE_UINT64, FieldDescriptor.TYPE_UINT32,
}  # fmt: skip


def damaged(data: bytes, r: Rng) -> bytes:
    """Cut, flip, repeat, insert or overwrite."""
    out = bytearray(data)
    for _ in range(int(r.integers(1, 4))):
        at = int(r.integers(len(out) + 1))
        match int(r.integers(6)):
            case 0:
                del out[at:]
            case 1 if out:
                out[at % len(out)] ^= 1 << int(r.integers(8))
            case 2:
                out[at:at] = out[at : at + int(r.integers(1, 50))]
            case 3:
                out[at:at] = bytes(r.integers(0, 256, int(r.integers(1, 12)), np.uint8))
            case 4:
                out[at : at + 9] = b"\xff" * 8 + b"\x7f"
            case _:
                del out[at : at + int(r.integers(1, 30))]
    return bytes(out)


def edited(model: onnx.ModelProto, r: Rng) -> onnx.ModelProto:
    """Give a copy in which a few fields, anywhere, hold something else."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for _ in range(int(r.integers(1, 4))):
        fields: list[tuple[Any, FieldDescriptor]] = []
        texts: list[str] = []
        _collect(copy, fields, texts)
        if not fields:
            break
        message, field = fields[int(r.integers(len(fields)))]
        _edit(message, field, texts, r)
    return copy


def _collect(message: Any, fields: list[tuple[Any, FieldDescriptor]], texts: list[str]) -> None:
    for field, value in message.ListFields():
        fields.append((message, field))
        many = value if _repeated(field) else [value]
        for item in many:
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                _collect(item, fields, texts)
            elif field.type == FieldDescriptor.TYPE_STRING:
                texts.append(item)


def _repeated(field: FieldDescriptor) -> bool:
    repeated = getattr(field, "is_repeated", None)
    return bool(field.label == FieldDescriptor.LABEL_REPEATED if repeated is None else repeated)


def _edit(message: Any, field: FieldDescriptor, texts: list[str], r: Rng) -> None:
    if _repeated(field):
        values = getattr(message, field.name)
        at = int(r.integers(len(values)))
        way = int(r.integers(3))
        if way == 0:
            del values[at]
        elif way == 1 and field.type == FieldDescriptor.TYPE_MESSAGE:
            values.add().CopyFrom(values[at])
        elif field.type != FieldDescriptor.TYPE_MESSAGE:
            value = _other(field, values[at], texts, r)
            values.append(value) if way == 1 else values.__setitem__(at, value)
        return
    if field.type == FieldDescriptor.TYPE_MESSAGE or r.random() < 0.2:
        message.ClearField(field.name)
        return
    setattr(message, field.name, _other(field, getattr(message, field.name), texts, r))


def _other(field: FieldDescriptor, value: Any, texts: list[str], r: Rng) -> Any:
    if field.type in _WHOLE:
        number = int(r.choice(np.asarray(_NUMBERS, object)))
        bits = 31 if field.type in (FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_UINT32) else 63
        unsigned = field.type in (FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_UINT64)
        return max(0 if unsigned else -(2**bits), min(number, 2**bits - 1))
    if field.type == FieldDescriptor.TYPE_ENUM:
        return int(r.choice([v.number for v in field.enum_type.values]))
    if field.type == FieldDescriptor.TYPE_STRING:
        return str(r.choice([*texts, "", "é\n%\"'", "../../x", "a" * 300]))
    if field.type == FieldDescriptor.TYPE_BYTES:
        return damaged(value, r)
    return float(r.choice([0.0, -1.0, np.inf, np.nan, 1e30]))


def models() -> list[onnx.ModelProto]:
    """A model with weights of several dtypes; one with branches, a loop and a function."""
    plain = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> net (float[N, 3, 8, 8] x) => (float[N, 5] y) {
             a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w1)
             q = QuantizeLinear (a, scale, zero)
             d = DequantizeLinear (q, scale, zero)
             b = BatchNormalization (d, one, none, none, one)
             c = Relu (b)
             p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (c)
             f = Reshape (p, shape)
             g, h = Split <axis = 1> (f, parts)
             k = MatMul (h, w2)
             y = Clip (k, low, high)
           }"""
    )
    r = np.random.default_rng(0)
    weights: dict[str, npt.NDArray[Any]] = {
        "w1": r.standard_normal((4, 3, 3, 3)).astype(np.float32), "scale": np.float32(0.1), "zero": np.uint8(3),
        "one": np.ones(4, np.float32), "none": np.zeros(4, np.float32), "shape": np.asarray([0, -1]),
        "parts": np.asarray([14, 50]), "w2": r.standard_normal((50, 5)).astype(np.float32), "low": np.float32(-1),
        "high": np.float32(1),
    }  # fmt: skip
    plain.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), n) for n, a in weights.items())
    nested = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17, "own": 1]> 
           net (float[N, 4] x, int64 n) => (float[A, B] y, seq(float[N, 4]) s) {
             zero = Constant <value = int64 {0}> ()
             c = Greater (n, zero)
             z = If (c) <then_branch = t () => (r) { r = own.twice <k = 2.0> (x) },
                         else_branch = e () => (q) { m = Neg (x) q = Exp (m) }>
             l, all = Loop (n, c, z) <
               body = b (int64 i, bool go, float[N, 4] v) => (bool on, float[N, 4] w, float[N, 4] w2) {
                on = Identity (go) w = Add (v, x) w2 = Abs (w) }>
             sh = Shape (l)
             y = Reshape (all, two)
             s = SequenceConstruct (l, z)
             two = Constant <value = int64[2] {-1, 4}> ()
           }
           <domain: "own", opset_import: ["": 17]> twice <k> (a) => (b) {
             f = Constant <value_float: float = @k> ()
             b = Mul (a, f)
           }"""
    )
    return [plain, nested]
