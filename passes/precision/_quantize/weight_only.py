"""Writing weights in blocks: operators of onnxruntime that read codes, or standard ones that decode them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from memoptc.ir import ops
from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.diagnostics import InternalError
from memoptc.ir.types import DType, TensorType
from memoptc.passes.precision._quantize.blocks import Blocks, encode, error_of, pack
from memoptc.passes.precision._quantize.numerics import weight_codes
from memoptc.passes.precision._quantize.places import (
    CONVOLUTIONS,
    GATHER,
    PRODUCTS,
    Weight,
    WeightUse,
)
from memoptc.passes.precision._quantize.rounding import Dampings, Rounded, nearer, round_blocks
from memoptc.passes.precision._quantize.tables import Table, make_table, read_table
from memoptc.runtime.kernels import gathers_codes, multiplies_codes
from memoptc.runtime.moments import Moments

RULE = "quantize-weights"
BLOCKED_SINCE = 21
"""Opset from which DequantizeLinear has a scale per block, and codes of 4 bits."""

PER_AXIS_SINCE = 13

WINDOW = 2
"""What stands for `WeightUse.columns` of convolutions."""

Memo: TypeAlias = dict[tuple[Any, ...], tuple[Blocks, float, float]]
"""Codes by the tensor's identity and how it is read; squared magnitudes of the weights and of what coding changed."""

_DTYPES = {(4, True): DType.INT4, (4, False): DType.UINT4, (8, True): DType.INT8, (8, False): DType.UINT8}

DECODER_BLOCK = 64
"""Weights of a decoder that share a scale in 8 bits: 8.5 bits a weight."""

_CODED_ACTIVATIONS = 4
"""`accuracy_level` of MatMulNBits: its kernel may compute with activations of 8 bits."""


@dataclass
class WeightFormat:
    """Format that weights are quantized to.

    Args:
        bits: 2, 4 or 8.
        block: Weights that share a scale.
        symmetric: Whether 0 always has the middle code.
        form: "nbits" or "dq".
        opset: Version of the standard operators in force.
        search: Search for scales, or round plainly.
        activations: 8 where the kernel codes the other operand, else 32.
        decode: When weights of operators without a kernel for codes are decoded: in each "run", from blocks, or at
            "load", from tables: they then take the memory of floats, and no time.
    """

    bits: int
    block: int
    symmetric: bool
    form: str
    opset: int
    search: bool = True
    activations: int = 32
    decode: str = "run"

    def why_not(self, weight: Weight, site: WeightUse) -> str:
        """Say why a site cannot be written in this form; `""` when it can."""
        if site.whole and self.decode == "run":
            return site.whole
        if site.decoded or site.op.op_type == GATHER:
            return "no operator that decodes weights as a whole knows 2 bits" if self.bits == 2 and site.decoded else ""
        tensor = weight.value.tensor
        if tensor is not None and self._bytes(tuple(tensor.shape.numpy()), site.columns) >= weight.bytes:
            return f"in blocks of {self.block} its codes would take as many bytes"
        if self.form == "nbits":
            known = multiplies_codes(self.bits)
            return "" if known else f'this onnxruntime has no MatMulNBits for {self.bits} bits (form="dq" needs none)'
        if self.opset < BLOCKED_SINCE:
            return f"blocks need opset {BLOCKED_SINCE}, the model has {self.opset} (raise-opset{{to=21,below=21}})"
        return ""

    def _bytes(self, shape: tuple[int, ...], columns: int) -> int:
        """Bytes of a matrix in codes, with scales and zero points."""
        blocks = shape[1 - columns] * -(-shape[columns] // self.block)
        zeros = 0 if self.symmetric else blocks * self.bits // 8
        return blocks * (self.block * self.bits // 8 + 4) + zeros


@dataclass
class Writer:
    """Replaces the readers of one weight after the other.

    Args:
        plan: How.
        stats: Counts what was done.
        signal: Squared magnitude of all weights coded so far.
        noise: Squared magnitude of what coding changed.
        rounded: What rounding by data gained, for each matrix where moments were at hand.
        memo: Codes to use and to add to, for many copies of one graph; `None` keeps them for one weight only.
        tables: The same for tables, by the tensor's identity and bits of an index.
        dampings: What rounding earlier weights has shown.
    """

    plan: WeightFormat
    stats: Counter[str]
    signal: float = 0.0
    noise: float = 0.0
    rounded: list[Rounded] = field(default_factory=list)
    memo: Memo | None = None
    tables: dict[tuple[int, int], Table] | None = None
    dampings: Dampings = field(default_factory=Dampings)
    _moments: Mapping[int, Moments] = field(default_factory=dict)
    _codes: Memo = field(default_factory=dict)
    _values: dict[tuple[Any, ...], Value] = field(default_factory=dict)
    _counted: set[tuple[Any, ...]] = field(default_factory=set)

    def write(self, weight: Weight, moments: Mapping[int, Moments] | None = None, *, channels: bool = False) -> int:
        """Replace every reader of a weight; the weight is then unused. Give the bytes of the codes.

        Args:
            weight: What to code.
            moments: X^T X of what its columns meet, by `WeightUse.columns` (`WINDOW` for convolutions).
            channels: Instead of blocks: int8 with one scale per channel, in standard operators.
        """
        self._moments = moments or {}
        if self.memo is None:
            self._codes.clear()
        else:
            self._codes = self.memo
        self._values.clear()
        for site in weight.sites:
            op = site.op
            if op.graph is None:
                raise InternalError(f"{op.key} is in no graph")
            builder = Builder(op.graph, before=op, loc=op.loc.union(rule=RULE))
            if site.decoded and self.plan.decode == "load":
                op.set_operand(site.index, self._table(builder, weight, site, 8 if channels else self.plan.bits))
            elif channels and op.op_type != GATHER:
                self._decode_channels(builder, weight, site)
            elif channels:
                self._replace(op, self._row_lookup(builder, weight, op))
            elif op.op_type in CONVOLUTIONS:
                op.set_operand(1, self._window(builder, weight))
            elif op.op_type == GATHER:
                self._replace(op, self._lookup(builder, weight, op))
            elif self.plan.form == "nbits":
                self._replace(op, self._product(builder, weight, site))
            else:
                self._decode_in_place(builder, weight, site)
            self.stats[f"quantized {op.op_type}"] += 1
        return sum(v.nbytes for v in self._values.values() if isinstance(v.nbytes, int))

    def _replace(self, op: Op, made: Value) -> None:
        made.type = op.result.type
        if made.op is not None:
            made.op.name = op.name
        op.replace_by(made)

    # -- codes ----------------------------------------------------------------------------------------

    def _matrix(self, weight: Weight, columns: int, factor: float) -> Blocks:
        """The weight as a matrix whose rows are the sums' results."""
        key = (id(weight.value.tensor), columns, factor)
        if key not in self._codes:
            content = weight.numpy() if factor == 1.0 else weight.numpy() * np.float32(factor)
            rows = np.ascontiguousarray(content if columns == 1 else content.T)
            self._codes[key] = self._encode(rows, rows, self.plan.block, columns)
        return self._known(key)

    def _known(self, key: tuple[Any, ...]) -> Blocks:
        blocks, signal, noise = self._codes[key]
        if key not in self._counted:
            self._counted.add(key)
            self.signal += signal
            self.noise += noise
        return blocks

    def _encode(
        self, rows: npt.NDArray[np.float32], results: npt.NDArray[np.float32], block: int, columns: int
    ) -> tuple[Blocks, float, float]:
        """Code rows of blocks; `results` are the same weights, in rows of one result each."""
        plan = self.plan
        blocks = encode(rows, plan.bits, block, symmetric=plan.symmetric, search=plan.search)
        if columns in self._moments:
            moments = self._moments[columns]
            if plan.search and rows is results:
                known = np.diag(moments.fit)
                other = encode(rows, plan.bits, block, symmetric=plan.symmetric, importance=known)
                blocks = nearer(rows, blocks, other, moments)
            blocks, gained = round_blocks(results, blocks, moments, self.dampings)
            self.rounded.append(gained)
        return blocks, *error_of(rows, blocks)

    def _const(self, weight: Weight, content: npt.NDArray[Any], suffix: str, key: object) -> Value:
        """A constant beside the weight, made once."""
        known = (suffix, key)
        if known not in self._values:
            graph: Graph = weight.value.graph
            self._values[known] = Builder(graph).const(content, f"{weight.value.name}_{suffix}")
        return self._values[known]

    # -- products -------------------------------------------------------------------------------------

    def _product(self, builder: Builder, weight: Weight, site: WeightUse) -> Value:
        """Give onnxruntime's own product with codes."""
        blocks, op = self._matrix(weight, site.columns, site.factor), site.op
        key = (site.columns, site.factor)
        operands: list[Value | None] = [
            op.operand,
            self._const(weight, blocks.packed(), f"q{blocks.bits}", key),
            self._const(weight, blocks.scales, "scales", key),
            None if blocks.symmetric else self._const(weight, blocks.packed_zeros(), "zeros", key),
        ]
        attrs = {"K": blocks.columns, "N": len(blocks.scales), "bits": blocks.bits, "block_size": blocks.block}
        if self.plan.activations == 8:
            attrs["accuracy_level"] = _CODED_ACTIVATIONS
        bias = op.input(2) if op.op_type == "Gemm" else None
        beta = float(op.attrs.get("beta", 1.0))
        row = _row(bias, attrs["N"])
        if row is not None:
            content = row if beta == 1.0 else row * np.float32(beta)
            given = bias if beta == 1.0 and bias is not None and _is_row(bias, attrs["N"]) else None
            operands += [None, given if given is not None else builder.const(content, f"{weight.value.name}_bias")]
        result = builder.op("MatMulNBits", operands, attrs, domain=ops.MICROSOFT, type=op.result.type).result
        if bias is not None and row is None:
            scaled = bias if beta == 1.0 else builder.op("Mul", [bias, np.float32(beta)], type=bias.type).result
            result = builder.op("Add", [result, scaled], type=op.result.type).result
        return result

    def _decode_in_place(self, builder: Builder, weight: Weight, site: WeightUse) -> None:
        """Put a standard DequantizeLinear with blocks before the op, in the layout that the weight has."""
        blocks, op = self._matrix(weight, site.columns, 1.0), site.op
        turned = site.columns == 0
        parts = self._parts(weight, blocks, blocks.codes[:, : blocks.columns], blocks.scales, blocks.zeros, turned)
        attrs = {"axis": site.columns, "block_size": blocks.block}
        real = builder.op("DequantizeLinear", parts, attrs, domain="", type=weight.value.type).result
        self._put(builder, weight, op, real)

    def _decode_channels(self, builder: Builder, weight: Weight, site: WeightUse) -> None:
        """Put a DequantizeLinear with a scale per row of results before the op; onnxruntime multiplies such codes."""
        op, content = site.op, weight.numpy()
        axis = 0 if op.op_type in CONVOLUTIONS else 1 - site.columns
        found = weight_codes(content, axis, DType.INT8)
        spread = found.scales.reshape([-1 if i == axis else 1 for i in range(content.ndim)])
        self._count(content, found.codes * spread)
        parts = [
            self._const(weight, array, name, ("channels", axis))
            for name, array in (("codes", found.codes), ("scales", found.scales), ("zeros", found.zero_points))
        ]
        domain = "" if self.plan.opset >= PER_AXIS_SINCE else ops.MICROSOFT
        real = builder.op("DequantizeLinear", parts, {"axis": axis}, domain=domain, type=weight.value.type).result
        self._put(builder, weight, op, real)

    def _count(self, content: npt.NDArray[np.float32], real: npt.NDArray[np.floating]) -> None:
        self.signal += float(np.square(content, dtype=np.float64).sum())
        self.noise += float(np.square(content - real, dtype=np.float64).sum())

    def _put(self, builder: Builder, weight: Weight, op: Op, real: Value) -> None:
        """Let an op read what was decoded; a Transpose between them stays, and reads it instead."""
        through = op.operands[1]
        if through is not weight.value:
            assert through.op is not None
            real = builder.op("Transpose", [real], dict(through.op.attrs), type=through.type).result
        op.set_operand(1, real)

    def _parts(
        self,
        weight: Weight,
        blocks: Blocks,
        codes: npt.NDArray[np.uint8],
        scales: npt.NDArray[np.float32],
        zeros: npt.NDArray[np.uint8],
        turned: bool,
    ) -> list[Value]:
        """Operands of a DequantizeLinear: codes, scales, and zero points where they differ."""
        dtype = _DTYPES[blocks.bits, blocks.symmetric]
        middle = 2 ** (blocks.bits - 1) if blocks.symmetric else 0
        real = (codes.astype(np.int16) - middle).astype(dtype.numpy())
        arrays = [("codes", real), ("scales", scales)]
        if not blocks.symmetric:
            arrays.append(("zeros", zeros.astype(dtype.numpy())))
        return [
            self._const(weight, np.ascontiguousarray(array.T if turned else array), f"{name}", ("dq", turned))
            for name, array in arrays
        ]

    # -- convolutions ---------------------------------------------------------------------------------

    def _window(self, builder: Builder, weight: Weight) -> Value:
        """Decode rows of one block each, and give them the weight's shape."""
        content = weight.numpy()
        length = int(np.prod(content.shape[1:]))
        block = near_divisor(length, self.plan.block)
        key = (id(weight.value.tensor), WINDOW, 1.0)
        if key not in self._codes:
            results = content.reshape(len(content), -1)
            self._codes[key] = self._encode(content.reshape(-1, block), results, block, WINDOW)
        blocks = self._known(key)
        scales, zeros = blocks.scales.reshape(-1), blocks.zeros.reshape(-1)
        parts = self._parts(weight, blocks, blocks.codes, scales, zeros, False)
        standard = self.plan.opset >= (BLOCKED_SINCE if blocks.bits == 4 else PER_AXIS_SINCE)
        domain = "" if standard else ops.MICROSOFT
        rows = TensorType(DType.FLOAT, blocks.codes.shape)
        real = builder.op("DequantizeLinear", parts, {"axis": 0}, domain=domain, type=rows).result
        shape = self._const(weight, np.asarray(content.shape, np.int64), "shape", ())
        return builder.op("Reshape", [real, shape], type=weight.value.type).result

    def _table(self, builder: Builder, weight: Weight, site: WeightUse, bits: int) -> Value:
        """Decode while loading."""
        known = {} if self.tables is None else self.tables
        key = (id(weight.value.tensor), bits)
        if key not in known:
            seen = self._moments.get(WINDOW) if site.op.op_type in CONVOLUTIONS else None
            importance = None if seen is None else np.diag(seen.fit)
            known[key] = make_table(weight.numpy(), bits, self.plan.opset, importance)
        table = known[key]
        if key not in self._counted:
            self._counted.add(key)
            self.signal += table.signal
            self.noise += table.noise
        numbers = self._const(weight, table.numbers, "table", bits)
        indices = self._const(weight, table.indices, "indices", bits)
        pairs = table.numbers.ndim == 2
        shape = self._const(weight, np.asarray(table.shape, np.int64), "shape", ()) if pairs else None
        return read_table(builder, numbers, indices, shape, weight.value.type)

    # -- lookups --------------------------------------------------------------------------------------

    def _lookup(self, builder: Builder, weight: Weight, op: Op) -> Value:
        """Give rows of a table, decoded after the lookup."""
        columns = weight.numpy().shape[1]
        whole = columns * self.plan.bits % 8 == 0
        if self.plan.form != "nbits" or not whole or not gathers_codes(self.plan.bits):
            return self._row_lookup(builder, weight, op)
        blocks = self._matrix(weight, 1, 1.0)
        if columns % blocks.block == 0 and any(_reads_as_table(site) for site in weight.sites):
            found = self._shared_lookup(builder, weight, blocks, op)
            if found is not None:
                return found
        packed = blocks.packed().reshape(len(blocks.scales), -1)[:, : columns * blocks.bits // 8]
        operands: list[Value | None] = [
            self._const(weight, np.ascontiguousarray(packed), f"rows{blocks.bits}", ()),
            op.operands[1],
            self._const(weight, blocks.scales, "scales", (1, 1.0)),
            None if blocks.symmetric else self._const(weight, blocks.packed_zeros(), "zeros", (1, 1.0)),
        ]
        attrs = {"gather_axis": 0, "quantize_axis": 1, "block_size": blocks.block, "bits": blocks.bits}
        return builder.op("GatherBlockQuantized", operands, attrs, domain=ops.MICROSOFT, type=op.result.type).result

    def _shared_lookup(self, builder: Builder, weight: Weight, blocks: Blocks, op: Op) -> Value | None:
        """Give rows of a table whose codes a product reads, too: one constant, each block an axis of its own.

        GatherBlockQuantized then takes the zero point of each block in a byte of its own, so that those of 4 bits are
        there twice; `None` where the rank of the indices is not known, which the shape of the result needs.
        """
        result = op.result.tensor_type
        if result is None or result.shape is None:
            return None
        rows, count = blocks.scales.shape
        key = (1, 1.0)
        scales = self._const(weight, blocks.scales, "scales", key)
        cubic = builder.const(np.array([rows, count, 1], np.int64))
        zeros = None
        if not blocks.symmetric and blocks.bits == 8:
            flat = self._const(weight, blocks.packed_zeros(), "zeros", key)
            zeros = builder.op("Reshape", [flat, cubic], type=TensorType(DType.UINT8, (rows, count, 1))).result
        elif not blocks.symmetric:
            zeros = self._const(weight, pack(blocks.zeros[..., None], blocks.bits), "row_zeros", key)
        operands: list[Value | None] = [
            self._const(weight, blocks.packed(), f"q{blocks.bits}", key),
            op.operands[1],
            builder.op("Reshape", [scales, cubic], type=TensorType(DType.FLOAT, (rows, count, 1))).result,
            zeros,
        ]
        attrs = {"gather_axis": 0, "quantize_axis": 2, "block_size": blocks.block, "bits": blocks.bits}
        type_ = TensorType(DType.FLOAT, (*result.shape[:-1], count, blocks.block))
        picked = builder.op("GatherBlockQuantized", operands, attrs, domain=ops.MICROSOFT, type=type_).result
        shape = builder.const(np.array([0] * (len(result.shape) - 1) + [blocks.columns], np.int64))
        return builder.op("Reshape", [picked, shape], type=result).result

    def _row_lookup(self, builder: Builder, weight: Weight, op: Op) -> Value:
        """Look up int8 rows and their scales: standard operators only, of any opset."""
        rows = weight.numpy()
        found = weight_codes(rows, 0, DType.INT8)
        self._count(rows, found.codes.astype(np.float32) * found.scales[:, None])
        codes = self._const(weight, found.codes, "rows8", ())
        scales = self._const(weight, np.ascontiguousarray(found.scales[:, None]), "row_scales", ())
        result, shape = op.result.type, op.result.shape
        one = None if shape is None else (*shape[:-1], 1)
        picked = builder.op("Gather", [codes, op.operands[1]], {"axis": 0}, type=TensorType(DType.INT8, shape))
        scale = builder.op("Gather", [scales, op.operands[1]], {"axis": 0}, type=TensorType(DType.FLOAT, one))
        wide = builder.op("Cast", [picked.result], {"to": int(DType.FLOAT)}, type=result)
        return builder.op("Mul", [wide.result, scale.result], type=result).result


def _reads_as_table(site: WeightUse) -> bool:
    """True if a product reads a weight in the orientation in which a lookup does."""
    return site.op.op_type in PRODUCTS and site.columns == 1 and site.factor == 1.0


def near_divisor(length: int, block: int) -> int:
    """Give the divisor of `length` nearest to `block` (as a ratio), at most twice as large; else `length` itself.

    Blocks of equal size need no padding. Divisors below half of the block spend more on scales than they gain.
    """
    fitting = [d for d in range(max(1, block // 2), 2 * block + 1) if length % d == 0]
    return min(fitting, key=lambda d: (max(d / block, block / d), d)) if fitting else length


def _is_row(bias: Value, columns: int) -> bool:
    return bias.static_shape == (columns,)


def _row(bias: Value | None, columns: int) -> npt.NDArray[np.float32] | None:
    """A constant bias that is the same in every row, as one row; `None` for any other."""
    if bias is None or bias.tensor is None:
        return None
    shape = tuple(bias.tensor.shape.numpy())
    if bias.tensor.dtype != DType.FLOAT or len(shape) > 2 or (len(shape) == 2 and shape[0] != 1):
        return None
    content = np.asarray(bias.tensor.numpy(), np.float32).reshape(-1)
    return np.ascontiguousarray(np.broadcast_to(content, (columns,)))
