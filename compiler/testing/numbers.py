"""Run two graphs in onnxruntime on hard numbers and compare: extents 0 and 1, NaN, infinities and -0.0, bit by bit."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir

from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.diagnostics import MemoptcError
from memoptc.ir.dims import free_symbols
from memoptc.ir.forms import WritingForm
from memoptc.ir.mapped import DataFile, MappedTensor
from memoptc.ir.onnx_io import to_proto, write_into
from memoptc.ir.tensors import tensor_type
from memoptc.ir.types import DType, TensorType
from memoptc.runtime.evaluate import Evaluator
from memoptc.runtime.judge import TOLERANCES
from memoptc.runtime.options import RunOptions

Feed = dict[str, npt.NDArray[Any]]
UNOPTIMIZED = RunOptions(optimize=False)
LEAST_SQNR = 20.0
"""Decibels by which outputs must exceed what coding them changed, where nobody asks for more."""

_LARGE = 1e18
"""Numbers from here on may overflow where sums and products of them come in another order."""

NOT_EMPTY = frozenset({"Conv", "ConvTranspose", "GRU", "LSTM", "RNN"})
"""Operators whose kernels end the process for extents of 0."""


def hard_feeds(graph: Graph, seed: int = 0, *, empty: bool = True) -> list[Feed]:
    """Feeds with all symbols different, all 1, all 0, and mixed; plain numbers and special ones.

    Args:
        graph: The graph, whose inputs have extents that are known or symbols.
        seed: For the numbers.
        empty: Also extents of 0. Some kernels of onnxruntime end the whole process then (see `NOT_EMPTY`).
    """
    symbols = sorted({s for v in graph.inputs for d in _shape(v) for s in free_symbols(d)})
    bindings = [{s: 2 + i for i, s in enumerate(symbols)}]
    if symbols:
        bindings += [dict.fromkeys(symbols, 1), {s: 1 + i % 2 for i, s in enumerate(symbols)}]
    if symbols and empty:
        bindings += [dict.fromkeys(symbols, 0), {s: i % 2 for i, s in enumerate(symbols)}]
    return [_feed(graph, b, seed + n, special) for b in bindings for n, special in enumerate((False, True))]


def tame_feeds(graph: Graph, count: int = 8) -> list[Feed]:
    """Feeds of plain numbers only, all symbols 4."""
    symbols = {s for v in graph.inputs for d in _shape(v) for s in free_symbols(d)}
    return [_feed(graph, dict.fromkeys(symbols, 4), seed, False) for seed in range(count)]


def feed_of(graph: Graph, binding: Mapping[str, int], seed: int = 0) -> Feed:
    """Plain numbers, with symbols bound."""
    return _feed(graph, binding, seed, False)


def _shape(value: Value) -> tuple[Any, ...]:
    return value.shape or ()


def _feed(graph: Graph, binding: Mapping[str, int], seed: int, special: bool) -> Feed:
    feed = {}
    for value in graph.inputs:
        type_ = value.tensor_type
        assert type_ is not None
        rng = np.random.default_rng([seed, zlib.crc32(value.name.encode())])
        shape = type_.bind(binding).static_shape
        assert shape is not None, f"%{value.name} has an extent that no symbol names"
        feed[value.name] = _numbers(rng, type_.dtype, shape, special)
    return feed


def _numbers(rng: np.random.Generator, dtype: DType, shape: tuple[int, ...], special: bool) -> npt.NDArray[Any]:
    if dtype == DType.STRING:
        return np.asarray(rng.choice(["", "a", "Straße"], shape), object)
    if dtype == DType.BOOL:
        return np.asarray(rng.integers(0, 2, shape), np.bool_)
    if dtype.is_integer():
        low = 0 if not dtype.is_signed() or not special else -3
        return np.asarray(rng.integers(low, 4, shape), dtype.numpy())
    numbers = np.asarray(rng.standard_normal(shape), dtype.numpy())
    if special:
        with np.errstate(over="ignore"):
            hard = np.asarray([np.nan, np.inf, -np.inf, -0.0, 0.0, 1e-40, 3.4e38], dtype.numpy())
        numbers = np.where(rng.random(shape) < 0.3, rng.choice(hard, shape), numbers).astype(dtype.numpy())
    return numbers


def run(graph: Graph, feed: Feed) -> dict[str, Any] | None:
    """Give the outputs without onnxruntime's optimizer; `None` when it refuses the feed."""
    try:
        return Evaluator(to_proto(graph), UNOPTIMIZED).run(feed)
    except MemoptcError:
        return None


def bits(value: Any) -> Any:
    """Key that two values share exactly when no bit differs, of NaN neither."""
    if isinstance(value, list | tuple):
        return [bits(v) for v in value]
    if value is None:
        return None
    array = np.asarray(value)
    if array.dtype.kind == "O":
        return array.shape, array.tolist()
    return array.shape, array.dtype.str, array.tobytes()


def with_external_weights(graph: Graph, folder: Path) -> Graph:
    """Give the graph with every weight in a data file in `folder`, as one that was read has them."""
    file = folder / "weights.data"
    places: list[tuple[Op, int, int, TensorType]] = []
    with open(file, "wb") as stream:
        for op in graph.walk("const"):
            tensor = op.attrs["value"]
            if tensor.dtype != DType.STRING and tensor.size:
                stream.write(b"\0" * (-stream.tell() % 64))
                start = stream.tell()
                places.append((op, start, stream.write(tensor.tobytes()), tensor_type(tensor)))
    held = DataFile(file)
    for op, offset, size, type_ in places:
        external = onnx_ir.ExternalTensor(
            file.name,
            offset,
            size,
            type_.dtype,
            shape=onnx_ir.Shape(type_.static_shape or ()),
            name=op.result.name or "w",
            base_dir=folder,
        )
        op.set_attr("value", MappedTensor(held, external))
    return graph


def _loaded(graph: Graph, folder: Path | None) -> Evaluator:
    if folder is None:
        return Evaluator(to_proto(graph), UNOPTIMIZED)
    # onnxruntime reads shapes, axes and the like while loading, and refuses them in a data file.
    write_into(graph, folder / "model.onnx", WritingForm(external=True), threshold=80)
    return Evaluator(folder / "model.onnx", UNOPTIMIZED)


def compare(
    before: Graph,
    after: Graph,
    *,
    exact: bool,
    seed: int = 0,
    feeds: list[Feed] | None = None,
    folder: Path | None = None,
) -> int:
    """Hold two graphs against each other on hard feeds; feeds that the first one refuses do not count.

    Args:
        before: The first one.
        after: The second one.
        exact: Compare bits.
        seed: For the numbers.
        feeds: These instead of hard ones.
        folder: Where to write the second one, with its weights in a data file; else they are inline.

    Raises:
        AssertionError: an output differs.

    Returns:
        How many feeds counted.
    """
    __tracebackhide__ = True  # pytest shows the message, not this code
    empty = not any(op.op_type in NOT_EMPTY for op in before.walk())
    old, new = _loaded(before, None), _loaded(after, folder)
    counted = 0
    for feed in feeds if feeds is not None else hard_feeds(before, seed, empty=empty):
        try:
            expected = old.run(feed)
        except MemoptcError:
            continue
        counted += 1
        found = new.run(feed)
        shapes = {k: v.shape for k, v in feed.items()}
        assert list(expected) == list(found)
        for name, value in expected.items():
            if exact and bits(value) != bits(found[name]):
                raise AssertionError(
                    f"{name} differs for {shapes}:\n{value}\n{found[name]}\nEvery bit must stay here; a pass that "
                    "may move the last ones says `// numbers: close` in its case, or `close: NAME` in memoptc_numbers."
                )
            if not exact:
                _assert_close(name, value, found[name], finite=_is_plain(feed))
    return counted


def _is_plain(feed: Feed) -> bool:
    """True if no number of a feed is NaN, infinite, or so large that another order of sums may overflow."""
    floats = (v.astype(np.float64) for v in feed.values() if DType.from_numpy(v.dtype).is_floating_point())
    return all(bool((np.abs(v) < _LARGE).all()) for v in floats)


def compare_coded(
    before: Graph, after: Graph, feeds: list[Feed], folder: Path | None = None, least: float = LEAST_SQNR
) -> int:
    """Hold a graph in float against its coded form: each output's signal to difference over all feeds.

    Args:
        before: The graph in float.
        after: Its coded form.
        feeds: Inputs for both.
        folder: Where to write the second one, with its weights in a data file; else they are inline.
        least: Least signal to difference of each output, in dB.

    Raises:
        AssertionError: an output is below that.

    Returns:
        How many feeds counted.
    """
    old, new = _loaded(before, None), _loaded(after, folder)
    pairs = [(old.run(feed), new.run(feed)) for feed in feeds]
    for name in pairs[0][0]:
        for one, two in pairs:
            assert np.shape(one[name]) == np.shape(two[name]), f"output {name} has another shape"
        a = np.concatenate([np.ravel(one[name]) for one, _ in pairs]).astype(np.float64)
        b = np.concatenate([np.ravel(two[name]) for _, two in pairs]).astype(np.float64)
        noise = float(np.mean((a - b) ** 2))
        sqnr = 10 * np.log10(float(np.mean(a**2)) / noise) if noise else np.inf
        assert sqnr > least, f"output {name}: {sqnr:.1f} dB, wanted more than {least:g}"
    return len(pairs)


def _assert_close(name: str, one: Any, two: Any, *, finite: bool) -> None:
    """Hold two values against each other; `finite`: what is NaN or infinite in one must be the same in the other."""
    __tracebackhide__ = True
    if isinstance(one, list):
        assert len(one) == len(two), f"{name} has another length"
        for number, (a, b) in enumerate(zip(one, two, strict=True)):
            _assert_close(f"{name}[{number}]", a, b, finite=finite)
        return
    a, b = np.asarray(one), np.asarray(two)
    if a.dtype.kind in "ObSU":  # strings, truth values, optionals without a value
        assert bits(one) == bits(two), f"{name}:\n{a}\n{b}"
        return
    assert a.shape == b.shape, name
    assert a.dtype == b.dtype, name
    wide, other = a.astype(np.float64), b.astype(np.float64)
    usual = np.isfinite(wide) & np.isfinite(other)
    if finite:
        assert np.array_equal(wide[~usual], other[~usual], equal_nan=True), f"{name}, where not finite:\n{a}\n{b}"
    largest = float(np.abs(wide[usual]).max(initial=0.0))
    tolerance = TOLERANCES.get(str(a.dtype), 0.0) * max(largest, 1.0)
    assert float(np.abs(wide[usual] - other[usual]).max(initial=0.0)) <= tolerance, f"{name}:\n{a}\n{b}"
