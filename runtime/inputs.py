"""Inputs made up for a model: right element types, consistent symbolic extents, indices inside their tables.

Values come from the roles that the graph shows (`memoptc.runtime.roles`). What cannot be read off the graph
is found by trial: the original is run, and other extents and safer values are tried until it runs.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from memoptc.ir.core import Graph
from memoptc.ir.diagnostics import InputError, MemoptcError
from memoptc.ir.dims import Dim, Sym
from memoptc.ir.infer import infer_shapes
from memoptc.ir.types import DType, MapType, OptionalType, SequenceType, TensorType, Type
from memoptc.runtime.evaluate import Evaluator
from memoptc.runtime.roles import Role, find_roles

# Extents to try, by what an axis looks like. The first suits most models and keeps a run small; later ones
# serve models that need more (five halvings, a window of 512 samples) and, after a success, test dynamism.
_LADDERS: dict[str, tuple[int, ...]] = {
    "batch": (2, 1, 3, 1, 1, 1, 1, 1, 4),
    "space": (64, 96, 128, 224, 256, 320, 512, 48, 33),
    "sequence": (16, 7, 32, 64, 128, 512, 256, 1, 3),
}
STYLES = ("typical", "small", "ones", "zeros")
_ATTEMPTS = 72


@dataclass(frozen=True)
class Generated:
    """One made-up feed.

    Args:
        feed: Input name -> value.
        dims: Extent per symbol; an axis without a name is `input_dAXIS`.
        style: How the values were chosen, one of `STYLES`.
        finite: Whether the original gave only finite numbers on it.
    """

    feed: dict[str, Any]
    dims: dict[str, int]
    style: str
    finite: bool = True


class InputMaker:
    """Makes feeds for one model, the same ones for the same seed.

    Args:
        graph: The model.
        dims: Extents that are decided: symbol (or `input_dAXIS`) -> extent.
        seed: Seed of all random values.

    Raises:
        InputError: `dims` names something the model's inputs do not have.
    """

    def __init__(self, graph: Graph, dims: Mapping[str, int] | None = None, seed: int = 0) -> None:
        defaulted = {value.name for value in graph.defaults}
        self.types = {v.name: v.type for v in graph.inputs if v.name not in defaulted}
        self.roles = find_roles(graph)
        self.seed = seed
        self.dims = dict(dims or {})
        self.classes = _classify(self.types)
        unknown = set(self.dims) - set(self.classes)
        if unknown:
            known = ", ".join(sorted(self.classes)) or "none"
            raise InputError(
                f"{sorted(unknown)[0]!r} is not a symbolic dimension of the model's inputs.",
                hint=f"Its symbolic dimensions are: {known}.",
            )

    @property
    def is_dynamic(self) -> bool:
        """Whether any extent is still open."""
        return any(name not in self.dims for name in self.classes)

    def bindings(self) -> Iterator[dict[str, int]]:
        """Extents for all symbols, likeliest first."""
        seen = set()
        unnamed = {name for name, (_, named) in self.classes.items() if not named}
        last = {f"{name}_d{len(t.shape) - 1}" for name, t in self.types.items() if _has_axes(t) and t.shape}
        for mixed in (False, True):
            for step in range(len(_LADDERS["batch"])):
                binding = {name: _LADDERS[kind][step] for name, (kind, _) in self.classes.items()}
                if mixed:  # axes without a name may have to agree with each other: most often as 1
                    binding.update({name: 1 for name in unnamed - last})
                binding.update(self.dims)
                key = tuple(binding.items())
                if key not in seen:
                    seen.add(key)
                    yield binding

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
            feed[name] = self._value(name, type_, binding, _Fill(self.roles[name], style, choice, seed, rng))
        return feed

    def _value(self, name: str, type_: Type | None, binding: Mapping[str, int], fill: _Fill) -> Any:
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
        shape = tuple(_evaluate(dim, f"{name}_d{axis}", binding) for axis, dim in enumerate(type_.shape or ()))
        return fill.array(type_, shape, binding)


class _Fill:
    """Values of one input."""

    def __init__(self, role: Role, style: str, choice: int, number: int, rng: np.random.Generator) -> None:
        self.role, self.style, self.choice, self.number, self.rng = role, style, choice, number, rng

    def array(self, type_: TensorType, shape: tuple[int, ...], binding: Mapping[str, int]) -> npt.NDArray[Any]:
        dtype = type_.dtype
        if dtype == DType.STRING:
            words = self.role.words or ["a", "b", "some words", ""]
            return np.asarray(self.rng.choice(np.asarray(words, object), shape), object).reshape(shape)
        if dtype == DType.BOOL:
            return {"ones": np.ones, "zeros": np.zeros}.get(self.style, self._coin)(shape, dtype=bool)
        if dtype.is_floating_point() and not self.role.extents:
            return self._floats(shape).astype(dtype.numpy())
        if dtype in (DType.COMPLEX64, DType.COMPLEX128):
            return (self._floats(shape) + 1j * self._floats(shape)).astype(dtype.numpy())
        return self._integers(dtype, shape, binding).astype(dtype.numpy())

    def _coin(self, shape: tuple[int, ...], dtype: type = bool) -> npt.NDArray[Any]:
        return self.rng.random(shape) < 0.5

    def _floats(self, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        role = self.role
        if role.fixed:
            return _spread(role.fixed[self.choice % len(role.fixed)], shape).astype(float)
        if self.style in ("ones", "zeros"):
            return np.full(shape, float(self.style == "ones"))
        if self.style == "small":
            return self.rng.uniform(0.1, 1.0, shape)
        if len(shape) <= 1 and role.compared and self.choice:
            return np.full(shape, role.compared[(self.choice - 1) % len(role.compared)])
        if len(shape) in (3, 4) and any(shape[axis] in (1, 3, 4) for axis in (-1, -3)):
            top = 255.0 if role.bytes_range else 1.0
            # every other feed leaves an image's range, to reach units that are silent inside it
            return top * (self.rng.standard_normal(shape) if self.number % 2 else self.rng.random(shape))
        return self.rng.standard_normal(shape)

    def _integers(self, dtype: DType, shape: tuple[int, ...], binding: Mapping[str, int]) -> npt.NDArray[Any]:
        role = self.role
        if self.style in ("ones", "zeros"):
            return np.full(shape, int(self.style == "ones"))
        if role.extents:
            high = min(_evaluate(extent, "", binding) for extent in role.extents)
            return self.rng.integers(0, max(1, min(high, 2) if self.style == "small" else high), shape)
        if role.fixed:
            return _spread(role.fixed[self.choice % len(role.fixed)], shape).astype(np.int64)
        if role.lengths and len(shape) <= 1:
            return self._lengths(shape, binding)
        if len(shape) <= 1 and role.compared:
            numbers = sorted(set(role.compared), reverse=True)
            return np.full(shape, int(numbers[self.choice % len(numbers)]))
        if role.mask or set(role.compared) & {0.0, 1.0}:
            return self._mask(shape)
        bits = dtype.bitwidth
        if bits <= 8 and self.style == "typical":
            low = -(1 << (bits - 1)) if dtype.is_signed() else 0
            return self.rng.integers(low, low + (1 << bits), shape)
        return self.rng.integers(0, 2 if self.style == "small" else 8, shape)

    def _lengths(self, shape: tuple[int, ...], binding: Mapping[str, int]) -> npt.NDArray[Any]:
        known = [_evaluate(dim, "", binding) for dim in self.role.lengths if dim is not None]
        known = [extent for extent in known if extent > 1]
        others = [extent for name, extent in binding.items() if extent > 1]
        full = min(known) if known else min(others, default=1)
        lengths = np.full(shape, full)
        if self.style == "typical" and lengths.size > 1:  # the first is full: models take the maximum
            lengths[1:] = self.rng.integers(max(1, full // 2), full + 1, lengths.size - 1)
        return lengths

    def _mask(self, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """Ones with zeros at the end of every row but the first, as padded batches have them."""
        mask = np.ones(shape, np.int64)
        if self.style == "typical" and len(shape) >= 2 and shape[-1] > 1:
            rows = mask.reshape(-1, shape[-1])
            for row in rows[1:]:
                row[int(self.rng.integers(shape[-1] // 2 + 1, shape[-1] + 1)) :] = 0
        return mask


def find_feeds(
    graph: Graph,
    original: Evaluator,
    *,
    count: int = 3,
    dims: Mapping[str, int] | None = None,
    seed: int = 0,
) -> list[Generated]:
    """Find feeds on which the original runs; with open dimensions, over several extents.

    Args:
        graph: The model.
        original: The same model in onnxruntime, for trials.
        count: How many feeds are wanted (at least 1).
        dims: Extents that are decided.
        seed: Seed of all random values.

    Returns:
        `count` feeds. Their extents differ as far as the model runs with several.

    Raises:
        InputError: no inputs were found on which the model runs.
    """
    maker = InputMaker(graph, dims, seed)
    first, error = _first(maker, original)
    if first is None:  # shapes that the model does not state may tell more
        infer_shapes(graph)
        maker = InputMaker(graph, dims, seed)
        first, error = _first(maker, original)
    if first is None:
        raise InputError(
            f"No inputs were found on which the model runs; the last attempt said: {error}",
            hint="Give real inputs with --validation (an .npz with one array per input).",
        )
    found, choice = [first[0]], first[1]
    sizes = [first[0].dims]
    if maker.is_dynamic:
        twice = {n: 2 if e == 1 and n not in maker.dims else e for n, e in first[0].dims.items()}
        for binding in (*itertools.islice(maker.bindings(), 12), twice):
            if len(found) >= count:
                break
            if binding not in sizes:
                more = _attempt(maker, original, binding, first[0].style, len(found), choice)
                if isinstance(more, Generated) and (more.finite or not first[0].finite):
                    found.append(more)
                    sizes.append(binding)
    number = len(found)
    while len(found) < count:
        binding = sizes[number % len(sizes)]
        feed = maker.make(binding, first[0].style, seed=number, choice=choice)
        found.append(Generated(feed, dict(binding), first[0].style, first[0].finite))
        number += 1
    return found


def _first(maker: InputMaker, original: Evaluator) -> tuple[tuple[Generated, int] | None, str]:
    choices = max([1, *(max(len(set(r.compared)), len(r.fixed)) for r in maker.roles.values())])
    fallback: tuple[Generated, int] | None = None
    error = ""
    attempts = 0
    for style in STYLES:
        for binding in maker.bindings():
            for choice in range(min(choices, 6)):
                attempts += 1
                if attempts > _ATTEMPTS:
                    return fallback, error
                found = _attempt(maker, original, binding, style, 0, choice)
                if isinstance(found, str):
                    error = found
                elif found.finite:
                    return (found, choice), ""
                elif fallback is None:
                    fallback = found, choice
    return fallback, error


def _attempt(
    maker: InputMaker, original: Evaluator, binding: dict[str, int], style: str, seed: int, choice: int
) -> Generated | str:
    feed = maker.make(binding, style, seed, choice)
    try:
        outputs = original.run(feed)
    except MemoptcError as error:
        return error.message
    return Generated(feed, dict(binding), style, all(_finite(value) for value in outputs.values()))


def _finite(value: Any) -> bool:
    if isinstance(value, list):
        return all(_finite(item) for item in value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "fc":
        return bool(np.isfinite(value).all())
    return True


def _classify(types: Mapping[str, Type | None]) -> dict[str, tuple[str, bool]]:
    """Say for each open extent what the axis looks like, and whether it has a name."""
    found: dict[str, tuple[str, bool]] = {}
    for name, type_ in types.items():
        while isinstance(type_, OptionalType | SequenceType):
            type_ = type_.elem
        if not isinstance(type_, TensorType) or type_.shape is None:
            continue
        rank = len(type_.shape)
        for axis, dim in enumerate(type_.shape):
            if isinstance(dim, int):
                continue
            if axis == 0 and rank > 1:
                kind = "batch"
            else:
                kind = "space" if rank >= 4 else "sequence"
            if _is_named(dim, f"{name}_d{axis}"):
                for symbol in sorted(dim.free):  # type: ignore[union-attr]
                    if kind == "batch" or symbol not in found:
                        found[symbol] = (kind, True)
            else:
                found[dim.name if isinstance(dim, Sym) and dim.name else f"{name}_d{axis}"] = (kind, False)
    return found


def _has_axes(type_: Type | None) -> TypeGuard[TensorType]:
    return isinstance(type_, TensorType) and bool(type_.shape)


def _is_named(dim: Dim, made_up: str) -> bool:
    """Whether an extent is a symbol of the model's author, and not made up for an axis without a name."""
    return isinstance(dim, Sym) and dim.name != made_up


def _evaluate(dim: Dim, place: str, binding: Mapping[str, int]) -> int:
    if isinstance(dim, int):
        return dim
    if isinstance(dim, Sym) and dim.free <= set(binding):
        return max(0, dim.evaluate(binding))
    return binding.get(place, 1)


def _spread(values: tuple[int | float, ...], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    count = int(np.prod(shape, dtype=np.int64))
    row = list(values[:count]) + [values[-1]] * max(0, count - len(values))
    return np.asarray(row[:count]).reshape(shape)
