"""The definition of an operator: traits, iteration space, weight layout, kernels, cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, TypeAlias

import onnx.defs

from memoptc.ir.core import Op, Value
from memoptc.ir.ops.axis import Axis
from memoptc.ir.ops.double import Lowering
from memoptc.ir.ops.parameters import Parameter
from memoptc.ir.ops.sample import Sampler, broadcasting
from memoptc.ir.ops.sizes import Sizes

ShapeOf: TypeAlias = Callable[[Value], tuple[int, ...]]
"""Gives a value's extents as numbers; `()` for a scalar or an unknown rank."""


class Arity(Enum):
    """Number of data operands of an element-wise operator."""

    UNARY = "one; further operands are scalars, such as Clip's bounds"
    BINARY = "two, which broadcast against each other"
    VARIADIC = "any number, which broadcast against each other"


class IntegerKernel(Enum):
    """Condition for an 8-bit integer kernel of onnxruntime between DequantizeLinear and QuantizeLinear."""

    FIRST_OPERAND = "when operand 0 is quantized"
    ALL_OPERANDS = "when all data operands are quantized"
    FLOAT_RESULT = "when all data operands are quantized; the result may stay float"


class Family(Enum):
    """Groups of operators that passes treat alike beyond their traits."""

    CONVOLUTION = "sliding windows over weights"
    MATMUL = "matrix products"
    RECURRENT = "LSTM, GRU, RNN: rounding errors of weights add up over the steps"
    REDUCTION = "reductions along axes"
    POOL = "windows without weights"
    NORMALIZATION = "scaled by statistics of the operand"
    ATTENTION = "softmax(query key) value"
    CONTROL = "runs subgraphs"
    SEQUENCE = "makes or reads sequences and optionals"
    COMPARISON = "compares two operands"
    CODING = "from floats to codes, and back"


class Blocked(Enum):
    """Condition under which onnxruntime leaves a value in blocks of channels (NCHWc) through an operator."""

    ALWAYS = "whatever else it takes"
    ONE_RESULT = "when there is one result"
    ALL_ALIKE = "when all operands are blocked and have the same shape"


@dataclass(frozen=True, slots=True)
class WeightLayout:
    """Layout of the weight of a product, a convolution or a lookup, attributes taken into account.

    Every element of the result is a sum of `data * weight` over the weight's `input_axis` (and its taps).

    Args:
        weight: Which operand the weight is.
        output_axis: The weight's axis of output channels: one slice for each column or channel of the result.
        input_axis: The weight's axis of input channels, along which products are summed (divided by `groups`).
        data: Which operand is multiplied with the weight.
        data_axis: That operand's axis of input channels; counted from the end when negative.
        result_axis: The result's axis of output channels; counted from the end when negative.
        bias: Which operand is added, one number per output channel; `None` when there can be none.
        groups: Input and output channels fall into so many independent groups.
        taps: Axes of the weight that a window slides over.
        scale: What products are multiplied by (`alpha` of Gemm).
        bias_scale: What the bias is multiplied by (`beta` of Gemm).
    """

    weight: int
    output_axis: int
    input_axis: int
    data: int = 0
    data_axis: int = -1
    result_axis: int = -1
    bias: int | None = None
    groups: int = 1
    taps: tuple[int, ...] = ()
    scale: float = 1.0
    bias_scale: float = 1.0

    @property
    def is_plain(self) -> bool:
        """True if the result is `data x weight + bias`, nothing transposed on the data's side and nothing scaled."""
        return self.scale == self.bias_scale == 1.0 and self.data_axis in (-1, 1)


Space: TypeAlias = Callable[[Op], list[Axis]]


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator: everything that passes and analyses need to know of it.

    Args:
        key: Name, with its domain in front outside of standard ONNX (`com.microsoft::FusedConv`).
        known: There is a definition or an ONNX schema; otherwise every answer is the careful one.
        pure: A function of operands and attributes: may be merged, folded, recomputed. Operators with regions are pure
            when everything inside is.
        removable: May be dropped when no result is used.
        arity: For element-wise operators: how many operands.
        commutative: Operands 0 and 1 may be exchanged without changing a bit.
        view: The operand whose bytes result 0 shares, else `None`: onnxruntime shares the buffer.
        moves: Result elements are elements of operand 0 (of any, for Concat), moved or repeated: nothing is computed.
        in_place: Operands that result 0 overwrites when they die there and have the same shape and element size: what
            onnxruntime's CPU kernels really do, recorded allocation by allocation with 1.31.1.
        homogeneous: f(s x) = s f(x) for positive factors s per channel.
        affine: Operands, one number per channel each, that result 0 is multiplied by and shifted by, in this order.
        affine_axis: Axis of these channels in result 0.
        packs_weights: onnxruntime re-packs a constant operand at load time and runs another kernel than for a computed
            one, whose sums differ in the last bits: making such an operand constant is no exact change.
        packed: Operands that onnxruntime's CPU kernel packs while a session loads, when they are constants.
        packs_matrices: Of these it packs matrices only, and reads stacks of matrices as they are.
        blocked: When its result stays in blocks of channels, as onnxruntime lays out convolutions.
        ort_forgets_symbols: onnxruntime's own shape inference does not carry symbolic extents through it.
        ort_passes_codes: onnxruntime moves a DequantizeLinear from before to behind it, a QuantizeLinear the other way.
        rounds_by_position: onnxruntime's kernel rounds an element by where it lies: whole vector registers otherwise
            than the rest.
        integer: Whether onnxruntime has an 8-bit integer kernel.
        joins_convolution: onnxruntime computes it inside the convolution, normalization or Gemm whose result it takes.
        joins_blocked: The same of convolutions in blocks of channels alone.
        unchecked_ranks: onnxruntime's kernel ends the process on operands of a wrong rank instead of failing.
        arithmetic: Time that its arithmetic takes, as a multiple of moving its bytes out of a cache.
        on_codes: It computes on 8-bit codes itself, and takes or gives them.
        decodes_weight: It computes in float with a weight in codes, of which it takes scales or a table of numbers.
        reads_extents: Its result follows from the extents of its operand, whatever the elements.
        optional_results: Result 0 is computed the same way whether or not the others are wanted. MaxPool's is not (it
            takes NaN otherwise), nor BatchNormalization's (its other results mean training before opset 14).
        float32_statistics: Results behind the first are in the precision of its sums, whatever its operands are.
        captured: Weight that its kernel reads from an outer graph as it does from its own. Convolutions have none:
            onnxruntime lays them out in blocks of channels only from their own graph.
        family: What it is treated with.
        space: Gives the axes along which the result can be computed piece by piece.
        accumulates: Gives the axes that it accumulates along and that can be split into partial results.
        layout: Gives where its weight lies, `None` where these attributes allow no single answer.
        multiplications: Gives how many multiplications one run takes.
        workspace: Gives the bytes that onnxruntime's CPU kernel allocates besides operands and results while it runs,
            recorded for varied shapes (`tests/memory/test_recorded.py` holds it against the recorder); without one,
            the kernel needs nothing worth counting, or was not looked at.
        integer_workspace: The same for the integer kernel that it becomes between codes.
        types_like: Name and version of the operator of standard ONNX whose results have the same types, for operators
            that the inference does not know.
        double: Builds the same in float64 from other operators, where onnxruntime has no float64 kernel; operators of
            `com.microsoft` without it have no float64 form.
        equal_extents: Pairs of axes, each (operand, axis), that have to be as long as each other by a rule of the
            operator's own (boxes and their scores), which inference leaves to a run.
        stays_float32: What it computes is defined by rounding to few bits, or by a choice among elements: it stays in
            float32, between casts.
        float32_operands: Operands that are float32 even in the operator's float64 form.
        parameters: Operands that say what it does, by index: what their values mean.
        sample: Draws random valid instances; property tests hold every other fact against onnxruntime on them.
    """

    key: str
    known: bool = True
    pure: bool = True
    removable: bool = True
    arity: Arity | None = None
    commutative: bool = False
    view: int | None = None
    moves: bool = False
    in_place: tuple[int, ...] = ()
    homogeneous: bool = False
    affine: tuple[int, ...] = ()
    affine_axis: int = -1
    packs_weights: bool = False
    packed: tuple[int, ...] = ()
    packs_matrices: bool = False
    blocked: Blocked | None = None
    ort_forgets_symbols: bool = False
    ort_passes_codes: bool = False
    rounds_by_position: bool = False
    integer: IntegerKernel | None = None
    joins_convolution: bool = False
    joins_blocked: bool = False
    unchecked_ranks: bool = False
    arithmetic: float = 1.0
    on_codes: bool = False
    decodes_weight: bool = False
    reads_extents: bool = False
    optional_results: bool = False
    float32_statistics: bool = False
    captured: int | None = None
    family: Family | None = None
    space: Space | None = None
    accumulates: Space | None = None
    layout: Callable[[Op], WeightLayout | None] | None = None
    multiplications: Callable[[Op, ShapeOf], float] | None = None
    workspace: Callable[[Sizes], int] | None = None
    integer_workspace: Callable[[Sizes], int] | None = None
    types_like: tuple[str, int] | None = None
    double: Lowering | None = None
    equal_extents: tuple[tuple[tuple[int, int], tuple[int, int]], ...] = ()
    stays_float32: bool = False
    float32_operands: tuple[int, ...] = ()
    parameters: Mapping[int, Parameter] = field(default_factory=dict, hash=False)
    sample: Sampler | None = None

    @property
    def elementwise(self) -> bool:
        """True if result elements depend on the elements at the same (broadcast) position only."""
        return self.arity is not None

    @property
    def sampler(self) -> Sampler | None:
        """Its `sample`, or for element-wise operators of standard ONNX the one that follows from their operands."""
        if self.sample is not None or self.arity is None or self.domain or not onnx.defs.has(self.name):
            return self.sample
        return broadcasting(self.name, 1 if self.arity is Arity.UNARY else 2)

    @property
    def name(self) -> str:
        """The operator's name without its domain."""
        return self.key.rpartition("::")[2]

    @property
    def domain(self) -> str:
        """The operator's domain; `""` for standard ONNX."""
        return self.key.rpartition("::")[0]


def define(names: str, domain: str = "", **facts: Any) -> tuple[Operator, ...]:
    """Define operators that share all facts.

    Args:
        names: Their names, separated by blanks.
        domain: Their domain.
        facts: Fields of `Operator`.
    """
    prefix = f"{domain}::" if domain else ""
    return tuple(Operator(prefix + name, **facts) for name in names.split())


def also(operators: tuple[Operator, ...], names: str, domain: str = "", **facts: Any) -> tuple[Operator, ...]:
    """Give definitions, those of some operators with further facts.

    Args:
        operators: Definitions.
        names: Their names, separated by blanks.
        domain: Their domain.
        facts: Fields of `Operator`.

    Raises:
        ValueError: one of the names is not among them.
    """
    prefix = f"{domain}::" if domain else ""
    named = {prefix + name for name in names.split()}
    if missing := named - {o.key for o in operators}:
        raise ValueError(f"no definition of {', '.join(sorted(missing))}")
    return tuple(replace(o, **facts) if o.key in named else o for o in operators)
