"""Inputs made up for a model: right element types, and symbolic extents that agree with each other.

Extents that depend on each other come from what the operators require (`memoptc.runtime.constraints`), values from the
roles that the graph shows (`memoptc.runtime.input_values`); `memoptc.runtime.feeds` tries which of them run.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

import numpy as np

from memoptc.ir.core import Graph
from memoptc.ir.diagnostics import InputError
from memoptc.ir.dims import Dim, Sym, free_symbols
from memoptc.ir.types import DType, MapType, OptionalType, SequenceType, TensorType, Type, as_tensor
from memoptc.runtime.constraints import Requirement
from memoptc.runtime.extent_search import solutions
from memoptc.runtime.input_values import InputValues, extent_of
from memoptc.runtime.recurrent_axes import with_recurrent_axes
from memoptc.runtime.roles import Role, find_roles
from memoptc.runtime.solve import gather, solve

# Extents to try, by what an axis looks like. The first suits most models and keeps a run small; later ones
# serve models that need more (five halvings, a window of 512 samples) and, after a success, test dynamism.
_LADDERS: dict[str, tuple[int, ...]] = {
    "batch": (2, 1, 3, 1, 1, 1, 1, 1, 4),
    "space": (64, 96, 128, 224, 256, 320, 512, 48, 33),
    "sequence": (16, 7, 32, 64, 128, 512, 256, 1, 3),
}
# Models that keep the past: steps after a past, a beginning, one step after a past; then as above.
_WITH_PAST: dict[str, tuple[int, ...]] = {
    "batch": (2, 1, 2, 1, 1, 1, 3, 1, 4),
    "space": _LADDERS["space"],
    "sequence": (16, 7, 1, 32, 64, 128, 256, 1, 3),
    "past": (16, 0, 9, 5, 0, 33, 0, 1, 8),
}
_ORDER = ("batch", "past", "sequence", "space")
_STEPS = 96
"""Halvings and doublings of extents until they agree."""
_LARGEST_EXTENT = 1 << 24
_COLOURS = 3
"""First extent of an input of rank 3 that is an image without a batch, as detectors take it."""


def by_symbol(graph: Graph, dims: Mapping[str, int]) -> dict[str, int]:
    """Give extents by symbol that are given by symbol or by the name that the file spells, such as `batch.size`."""
    shapes = [v.shape for v in graph.inputs if v.shape is not None]
    symbols = [d for shape in shapes for d in shape if isinstance(d, Sym) and d.name is not None]
    names = {s.spelling: s.name for s in symbols if s.spelling} | {s.name: s.name for s in symbols}
    return {names.get(name) or name: extent for name, extent in dims.items()}


def by_shapes(graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Give extents by symbol that are given as the shapes of inputs.

    Raises:
        InputError: there is no such input, it has another rank or extent, or two shapes contradict each other.
    """
    found: dict[str, int] = {}
    inputs = {v.name: v for v in graph.inputs}
    for name, shape in shapes.items():
        if name not in inputs:
            raise InputError(f"The model has no input {name!r}.", hint=f"Its inputs are {', '.join(inputs)}.")
        own = inputs[name].shape
        spelled = f"{name}:{','.join(map(str, shape))}"
        if own is None or len(own) != len(shape):
            rank = "unknown" if own is None else len(own)
            raise InputError(f"{spelled} has {len(shape)} axes, but the rank of the input is {rank}.")
        for axis, (dim, extent) in enumerate(zip(own, shape, strict=True)):
            if isinstance(dim, int):
                if dim != extent:
                    raise InputError(f"{spelled}: axis {axis} of the model is always {dim}.")
                continue
            symbol = dim.name if isinstance(dim, Sym) and dim.name is not None else f"{name}_d{axis}"
            if found.setdefault(symbol, extent) != extent:
                raise InputError(f"{spelled}: {symbol} is {extent} here and {found[symbol]} elsewhere.")
    return found


def check_symbols(types: Mapping[str, Type | None], dims: Mapping[str, int]) -> None:
    """Refuse extents that are of no open axis.

    Args:
        types: Of the inputs.
        dims: Extents by symbol, or by `input_dAXIS`.

    Raises:
        InputError: one names nothing that the inputs have.
    """
    classes = _classify(types, {})
    unknown = set(dims) - set(classes)
    if unknown:
        known = ", ".join(sorted(classes))
        raise InputError(
            f"{sorted(unknown)[0]!r} is not a symbolic dimension of the model's inputs.",
            hint=f"Its symbolic dimensions are: {known}." if known else "All of their extents are fixed.",
        )


class InputMaker:
    """Makes feeds for one model, the same ones for the same seed.

    Args:
        graph: The model.
        dims: Extents that are decided: symbol (or `input_dAXIS`) -> extent.
        seed: Seed of all random values.
        independent: Take every open axis for an extent of its own: names that a model states may be wrong.

    Raises:
        InputError: `dims` names something the model's inputs do not have.
    """

    def __init__(
        self, graph: Graph, dims: Mapping[str, int] | None = None, seed: int = 0, *, independent: bool = False
    ) -> None:
        defaulted = {value.name for value in graph.defaults}
        self.types = {v.name: v.type for v in graph.inputs if v.name not in defaulted}
        self.asked = by_symbol(graph, dims or {})
        self.seed = seed
        check_symbols(self.types, self.asked)
        inferred, found = graph.analysis(_analysed)
        self.typed = inferred
        """A copy of the model with inferred types."""
        self.roles = find_roles(inferred)
        self.names: dict[str, str] = {}
        if independent:
            self.types, self.names = independent_extents(self.types)
            inferred, found = graph.analysis(_analysed_independently)
            self.roles = find_roles(inferred)
        self.dims = {name: self.asked[of] for name, of in self.names.items() if of in self.asked} or self.asked
        classes = _classify(self.types, self.roles)
        self.solution = solve([*found, *self._positions()], self.dims, classes)
        self.classes = with_recurrent_axes(classes, inferred, self.solution.values)
        self.past = next((dim for dim in map(self._past_of, self.types) if dim is not None), None)

    def _past_of(self, name: str) -> Dim:
        """The extent that a cache grows along, if the input is one."""
        type_, role = self.types[name], self.roles[name]
        if not _has_axes(type_) or type_.shape is None:
            return None
        return next((type_.shape[axis] for axis in sorted(role.past_axes) if axis < len(type_.shape)), None)

    def _positions(self) -> Iterator[Requirement]:
        """Positions that follow the past lie inside the tables that they index."""
        past = next((dim for dim in map(self._past_of, self.types) if dim is not None), 0)
        for name, type_ in self.types.items():
            role = self.roles[name]
            if role.positions and _has_axes(type_) and type_.shape and type_.shape[-1] is not None:
                for extent in role.extents:
                    if extent is not None:
                        yield Requirement("at most", type_.shape[-1] + past, extent, f"positions {name}")

    @property
    def is_dynamic(self) -> bool:
        """True if any extent is still open."""
        return any(name not in self.solution.values for name in self.classes)

    def bindings(self) -> Iterator[dict[str, int]]:
        """Extents for all symbols, likeliest first: those that belong together before all others."""
        seen = set()
        unnamed = {name for name, (_, named) in self.classes.items() if not named}
        last = {f"{name}_d{len(t.shape) - 1}" for name, t in self.types.items() if _has_axes(t) and t.shape}
        kinds = {kind for kind, _ in self.classes.values()}
        ladders = _WITH_PAST if "past" in kinds else _LADDERS
        for solved in (True, False):
            for mixed in (False, True):
                for step in range(len(ladders["batch"])):
                    binding = {name: ladders[kind][step] for name, (kind, _) in self.classes.items()}
                    if mixed:  # axes without a name may have to agree with each other: most often as 1
                        binding.update({name: 1 for name in unnamed - last})
                    binding.update(self.dims)
                    for agreeing in self._agreeing_near(binding) if solved else (binding,):
                        key = tuple(agreeing.items())
                        if key not in seen:
                            seen.add(key)
                            yield agreeing

    def consistent(self, binding: Mapping[str, int]) -> dict[str, int] | None:
        """Make extents agree, as large as the bounds allow; `None` where no such extents are known.

        Args:
            binding: Extent per symbol, the largest wanted; dependent ones are worked out.
        """
        found = next(self._agreeing_near({**binding, **self.dims}), None)
        if found is None:
            return None
        # Halving stops below a bound that is no power of two: grow back to it, one symbol after the other.
        for name in [n for n in found if n not in self.solution.values and n not in self.dims]:
            low, high = found[name], binding.get(name, found[name])
            while low < high:
                middle = (low + high + 1) // 2
                trial = self._agreeing({**found, name: middle})
                if trial is None:
                    high = middle - 1
                else:
                    found, low = trial, middle
        return found

    def _agreeing(self, binding: Mapping[str, int]) -> dict[str, int] | None:
        """Complete extents without changing independent ones; `None` where a bound does not hold."""
        found = self.solution.complete({n: e for n, e in binding.items() if n not in self.solution.values})
        if not self.solution.holds(found):
            return None
        return {name: found[name] for name in binding if name in found}

    def _agreeing_near(self, binding: Mapping[str, int]) -> Iterator[dict[str, int]]:
        """Extents that agree, near to those wanted first; where no equation can be met, those that meet the bounds."""
        start = self._together(binding)
        if start is None:
            return
        found = 0
        independent = {name: extent for name, extent in start.items() if name not in self.solution.values}
        for extents in solutions(self.solution.equations, independent, self.dims):
            agreeing = self._agreeing(start | extents)
            if agreeing is not None:
                found += 1
                yield agreeing
        if not found:
            yield start

    def _together(self, binding: Mapping[str, int]) -> dict[str, int] | None:
        """Make extents agree: dependent ones follow; independent ones shrink, or grow where nothing is left to shrink.

        What has grown does not shrink again, so that the steps end: each halves or doubles an extent.
        """
        free = {name: extent for name, extent in binding.items() if name not in self.solution.values}
        grown: set[str] = set()
        for _ in range(_STEPS):
            found = self.solution.complete(free)
            broken = self.solution.broken(found)
            if broken is None:
                return {name: found[name] for name in binding if name in found}
            if not self._eased(broken, free, grown):
                return None
        return None

    def _eased(self, broken: Requirement, free: dict[str, int], grown: set[str]) -> bool:
        """Halve the largest extent on a bound's left side, else double the smallest that its right side grows with."""
        shrinking = [n for n in free_symbols(broken.left) - grown if free.get(n, 0) > 1 and n not in self.dims]
        if shrinking:
            free[max(sorted(shrinking), key=free.__getitem__)] //= 2
            return True
        right = broken.right
        if isinstance(right, int):
            return False
        doubled = {
            name: max(1, 2 * free[name]) for name in sorted(right.free) if name in free and name not in self.dims
        }
        now = right.evaluate(free)
        growing = [n for n, extent in doubled.items() if right.evaluate(free | {n: extent}) >= now]
        if not growing or min(doubled[n] for n in growing) > _LARGEST_EXTENT:
            return False
        smallest = min(growing, key=free.__getitem__)
        free[smallest] = doubled[smallest]
        grown.add(smallest)
        return True

    def named(self, binding: Mapping[str, int]) -> dict[str, int]:
        """Give a binding by the names that the model uses."""
        if not self.names:
            return dict(binding)
        found: dict[str, int] = {}
        for name, of in self.names.items():
            found.setdefault(of, binding[name])
        return found

    def make(
        self, binding: Mapping[str, int], style: str = "typical", seed: int = 0, choice: int = 0
    ) -> dict[str, Any]:
        """Make one feed.

        Args:
            binding: Extent per symbol, as `bindings` gives them.
            style: One of `STYLES`.
            seed: Number of the feed: others have other random values.
            choice: Which of the candidates to take where the graph compares an input with constants, or
                where several values suit.
        """
        feed = {}
        for name, type_ in self.types.items():
            rng = np.random.default_rng([self.seed, seed, zlib.crc32(name.encode())])
            feed[name] = self._value(
                name, type_, binding, InputValues(self.roles[name], self.past, style, choice, seed, rng)
            )
        return feed

    def nbytes(self, binding: Mapping[str, int]) -> int:
        """Bytes of the numbers of a feed."""
        total = 0
        for name, type_ in self.types.items():
            tensor = _innermost(type_)
            if tensor is not None and tensor.dtype not in (DType.STRING, DType.UNDEFINED):
                extents = (extent_of(dim, f"{name}_d{axis}", binding) for axis, dim in enumerate(tensor.shape or ()))
                total += math.prod(extents) * tensor.dtype.bitwidth // 8
        return total

    def _value(self, name: str, type_: Type | None, binding: Mapping[str, int], fill: InputValues) -> Any:
        if isinstance(type_, OptionalType):
            return self._value(name, type_.elem, binding, fill)
        if isinstance(type_, SequenceType):
            return [self._value(name, type_.elem, binding, fill) for _ in range(2)]
        if isinstance(type_, MapType):
            keys = fill.role.words[:4] or ["a", "b"] if type_.key == DType.STRING else [0, 1]
            return {key: fill.rng.random() if type_.value else 0 for key in keys}
        if not isinstance(type_, TensorType) or type_.dtype == DType.UNDEFINED:
            raise InputError(
                f"The input {name!r} is of a kind for which no values can be made up.",
                hint="Give real inputs with --validation.",
            )
        shape = tuple(extent_of(dim, f"{name}_d{axis}", binding) for axis, dim in enumerate(type_.shape or ()))
        return fill.array(type_, shape, binding)


def _innermost(type_: Type | None) -> TensorType | None:
    """The type of the tensors that an input is, or holds as a sequence or optional."""
    while isinstance(type_, SequenceType | OptionalType):
        type_ = type_.elem
    return as_tensor(type_)


def _analysed(graph: Graph) -> tuple[Graph, list[Requirement]]:
    """A copy with inferred types, and what its operators require."""
    return gather(graph, _classify({v.name: v.type for v in graph.inputs}, {}))


def _analysed_independently(graph: Graph) -> tuple[Graph, list[Requirement]]:
    """The same of the model with an extent of its own for every open axis."""
    defaulted = {value.name for value in graph.defaults}
    types, names = independent_extents({v.name: v.type for v in graph.inputs if v.name not in defaulted})
    return gather(_retyped(graph, types), names)


def independent_extents(types: Mapping[str, Type | None]) -> tuple[dict[str, Type | None], dict[str, str]]:
    """Give every open axis a symbol of its own, named after its input; and the model's symbol for each of those."""
    found: dict[str, Type | None] = {}
    names: dict[str, str] = {}
    for name, type_ in types.items():
        tensor = as_tensor(type_)
        if tensor is None or tensor.shape is None:
            found[name] = type_
            continue
        shape: list[Dim] = []
        for axis, dim in enumerate(tensor.shape):
            own = f"{re.sub(r'[^0-9A-Za-z_]', '_', name)}_d{axis}"
            shape.append(dim if isinstance(dim, int) else Sym(own if own[0].isalpha() else f"v{own}"))
            if isinstance(shape[-1], Sym) and shape[-1].name is not None:
                names[shape[-1].name] = dim.name if isinstance(dim, Sym) and dim.name else shape[-1].name
        found[name] = TensorType(tensor.dtype, tuple(shape))
    return found, names


def _retyped(graph: Graph, types: Mapping[str, Type | None]) -> Graph:
    copy = graph.clone()
    for value in copy.inputs:
        value.type = types.get(value.name, value.type)
    return copy


def _classify(types: Mapping[str, Type | None], roles: Mapping[str, Role]) -> dict[str, tuple[str, bool]]:
    """Say for each open extent what the axis looks like, and whether it has a name."""
    found: dict[str, tuple[str, bool]] = {}
    for name, type_ in types.items():
        while isinstance(type_, OptionalType | SequenceType):
            type_ = type_.elem
        tensor = _innermost(type_)
        if tensor is None or tensor.shape is None:
            continue
        rank = len(tensor.shape)
        for axis, dim in enumerate(tensor.shape):
            if isinstance(dim, int):
                continue
            if axis == 0 and rank > 1:
                kind = "batch"
            else:
                kind = "space" if rank >= 4 or (rank == 3 and tensor.shape[0] == _COLOURS) else "sequence"
            if name in roles and axis in roles[name].past_axes:
                kind = "past"
            if _is_named(dim, f"{name}_d{axis}"):
                for symbol in sorted(dim.free):
                    if symbol not in found or _ORDER.index(kind) < _ORDER.index(found[symbol][0]):
                        found[symbol] = (kind, True)
            else:
                found[dim.name if isinstance(dim, Sym) and dim.name else f"{name}_d{axis}"] = (kind, False)
    return found


def _has_axes(type_: Type | None) -> TypeGuard[TensorType]:
    return isinstance(type_, TensorType) and bool(type_.shape)


def _is_named(dim: Dim, made_up: str) -> TypeGuard[Sym]:
    """True if an extent is a symbol of the model's author, and not made up for an axis without a name."""
    return isinstance(dim, Sym) and dim.name != made_up
