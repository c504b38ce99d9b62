"""Types of values: frozen, compared by content, every kind that ONNX has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

from onnx_ir import DataType

from memoptc.ir.dims import Dim, KnownDim, Sym, product, substitute

DType = DataType
Shape: TypeAlias = tuple[Dim, ...]


@dataclass(frozen=True)
class TensorType:
    """A dense tensor.

    Args:
        dtype: Element type; `DType.UNDEFINED` when it is not known.
        shape: Extents, outermost first; `None` when not even the rank is known.
        denotation: ONNX's optional meaning of the type and of each axis (empty when there is none).
    """

    dtype: DType
    shape: Shape | None = None
    denotation: str = ""
    axis_denotations: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.shape is not None:
            if not isinstance(self.shape, tuple):
                object.__setattr__(self, "shape", tuple(self.shape))
            for dim in self.shape:
                if not (dim is None or isinstance(dim, Sym | int)):
                    raise TypeError(f"a dimension is an int, a Sym or None, not {dim!r}")

    @property
    def rank(self) -> int | None:
        """Number of axes, `None` when unknown."""
        return None if self.shape is None else len(self.shape)

    @property
    def static_shape(self) -> tuple[int, ...] | None:
        """The shape when every extent is a known integer, else `None`."""
        if self.shape is None:
            return None
        dims = tuple(d for d in self.shape if isinstance(d, int))
        return dims if len(dims) == len(self.shape) else None

    @property
    def elements(self) -> Dim:
        """Number of elements; `None` when unknown."""
        return None if self.shape is None else _elements(self.shape)

    @property
    def nbytes(self) -> Dim:
        """Bytes of the elements, packed for types below 8 bits; `None` when unknown (strings, too)."""
        count = self.elements
        if count is None or self.dtype in (DType.UNDEFINED, DType.STRING):
            return None
        bits = self.dtype.bitwidth
        return count * (bits // 8) if bits % 8 == 0 else (count * bits + 7) // 8

    def with_shape(self, shape: Shape | None) -> TensorType:
        """Give the same type with another shape."""
        return TensorType(self.dtype, shape, self.denotation)

    def bind(self, bindings: Mapping[str, KnownDim]) -> TensorType:
        """Put extents in for symbols."""
        if self.shape is None:
            return self
        shape = tuple(d if d is None else substitute(d, bindings) for d in self.shape)
        return TensorType(self.dtype, shape, self.denotation, self.axis_denotations)


@dataclass(frozen=True)
class SparseTensorType:
    """A sparse tensor of the given element type and dense shape."""

    dtype: DType
    shape: Shape | None = None
    denotation: str = ""


@dataclass(frozen=True)
class SequenceType:
    """A sequence whose elements have one type; `elem` is `None` when it is not known."""

    elem: Type | None
    denotation: str = ""


@dataclass(frozen=True)
class OptionalType:
    """A value that may be missing at run time."""

    elem: Type | None
    denotation: str = ""


@dataclass(frozen=True)
class MapType:
    """A map from a scalar key type to a value type (ONNX-ML)."""

    key: DType
    value: Type | None
    denotation: str = ""


@dataclass(frozen=True)
class OpaqueType:
    """A type only its domain knows."""

    domain: str = ""
    name: str = ""
    denotation: str = ""


class Typed:
    """Something with a `type`, asked as a tensor: each answer is `None` for other kinds of value, and when unknown."""

    __slots__ = ()

    if TYPE_CHECKING:

        @property
        def type(self) -> Type | None:
            """The type as far as it is known."""

    @property
    def tensor_type(self) -> TensorType | None:
        """The type, when it is that of a dense tensor."""
        return as_tensor(self.type)

    @property
    def dtype(self) -> DType | None:
        """The element type of a tensor."""
        tensor = as_tensor(self.type)
        return None if tensor is None else tensor.dtype

    @property
    def shape(self) -> Shape | None:
        """The shape of a tensor whose rank is known."""
        tensor = as_tensor(self.type)
        return None if tensor is None else tensor.shape

    @property
    def is_integer(self) -> bool:
        """True if this is a tensor of integers (truth values are none)."""
        return self.dtype is not None and self.dtype.is_integer()

    @property
    def is_floating_point(self) -> bool:
        """True if this is a tensor of floating-point numbers."""
        return self.dtype is not None and self.dtype.is_floating_point()

    @property
    def is_shapeless(self) -> bool:
        """True if this may be a tensor, of unknown rank."""
        return is_shapeless(self.type)

    @property
    def static_shape(self) -> tuple[int, ...] | None:
        """The shape of a tensor all of whose extents are known integers."""
        tensor = as_tensor(self.type)
        return None if tensor is None else tensor.static_shape

    @property
    def rank(self) -> int | None:
        """Number of axes of a tensor."""
        tensor = as_tensor(self.type)
        return None if tensor is None else tensor.rank

    @property
    def nbytes(self) -> Dim:
        """Bytes of a tensor's elements (see `TensorType.nbytes`)."""
        tensor = as_tensor(self.type)
        return None if tensor is None else tensor.nbytes


def as_tensor(type_: Type | None) -> TensorType | None:
    """Give a type back when it is that of a dense tensor, else `None`."""
    return type_ if isinstance(type_, TensorType) else None


def is_shapeless(type_: Type | None) -> bool:
    """True if a type leaves open even the rank: it is not known, or that of a tensor without a shape."""
    return type_ is None or (isinstance(type_, TensorType) and type_.shape is None)


@lru_cache(maxsize=1 << 16)
def _elements(shape: Shape) -> Dim:
    known: list[KnownDim] = []
    for dim in shape:
        if dim == 0:
            return 0
        if dim is not None:
            known.append(dim)
    return product(known) if len(known) == len(shape) else None


Type: TypeAlias = TensorType | SparseTensorType | SequenceType | OptionalType | MapType | OpaqueType
