"""Calibration and validation data: samples streamed one at a time from files, functions or Python iterables.

The rule for one array per input, in an `.npz` or `.npy`:

* *stacked*: at least one array has one axis more than its input. Axis 0 of every such array counts the
  samples, the rest is fed as it stands; arrays with exactly the input's rank are shared by all samples.
* *split*: every array has its input's rank. Axis 0 is cut into pieces of the input's batch size: the static
  extent, or 1 for a symbolic one. Inputs of rank 0 are shared. Where the inputs disagree on how many pieces
  there are (axis 0 is then no batch), the arrays together are one sample.

Files of a folder and dictionaries from Python follow the stacked rule, else each is one sample as it stands.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from memoptc.ir.diagnostics import InputError
from memoptc.ir.dims import Dim, Sym
from memoptc.ir.files import TemporaryFolder
from memoptc.ir.types import DType, OptionalType, TensorType, Type, as_tensor
from memoptc.runtime.npz import KINDS, ArrayFile, load_feed, one_line, save_feed
from memoptc.runtime.user_functions import guarded_items, load_function

Feeds: TypeAlias = Iterable[Mapping[str, Any]]
DataSource: TypeAlias = "str | os.PathLike[str] | Feeds | Callable[[], Feeds]"
"""`.npz`/`.npy` file, folder of `.npz`, `module:function`, iterable of feeds, or function giving one."""

LABEL_KEYS = ("labels", "label", "targets", "target", "y")
"""Names under which data may carry the right answers, when no input has that name."""


@dataclass(frozen=True)
class Sample:
    """A sample: a feed, its labels, and where it comes from.

    Args:
        feed: Input name -> value, checked against the model and cast to its element types.
        label: The right answer that came with it, or `None`.
        where: Where it comes from, for messages.
    """

    feed: dict[str, Any]
    label: npt.NDArray[Any] | None
    where: str


class Data:
    """Samples that can be walked again and again, holding one sample in memory at a time.

    Args:
        source: Where they come from (see `DataSource`).
        inputs: The model's input name -> type; `None` for a type that is not known.
        optional: Inputs that may be left out (they have defaults).
        completed: Adds to a sample what it lacks, where that follows from what it has.

    Raises:
        InputError: the source does not exist or cannot be read. Walking raises it, too, for a sample that
            does not fit the model, naming the file, the input and what was expected.
    """

    def __init__(
        self,
        source: DataSource,
        inputs: Mapping[str, Type | None],
        optional: Iterable[str] = (),
        completed: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None,
    ) -> None:
        self._inputs = dict(inputs)
        self._completed = completed
        self._optional = frozenset(optional)
        self._spool: TemporaryFolder | None = None
        self.name, self._open = self._resolve(source)

    def __iter__(self) -> Iterator[Sample]:
        empty = True
        for where, arrays in self._open():
            empty = False
            yield self._sample(where, arrays)
        if empty:
            raise InputError(f"{self.name} holds no samples.")

    def _resolve(self, source: DataSource) -> tuple[str, Callable[[], Iterator[tuple[str, dict[str, Any]]]]]:
        if isinstance(source, str | os.PathLike):
            text = os.fspath(source)
            path = Path(text)
            if path.is_dir():
                return text, lambda: self._folder(path)
            if path.suffix in (".npz", ".npy"):
                if not path.is_file():
                    raise InputError(f"{text}: no such file.", hint="Check the path of the data.")
                return text, lambda: self._file(path, split=True)
            module, colon, function = text.rpartition(":")
            if colon and module and function.isidentifier() and not path.exists():
                call = load_function(module, function)
                return text, lambda: self._dicts(guarded_items(_call(call, text), text), text)
            if not path.exists():
                raise InputError(
                    f"{text}: no such file or folder.",
                    hint="Data is an .npz or .npy file, a folder of .npz files, or module:function.",
                )
            raise InputError(
                f"{text} is neither an .npz or .npy file nor a folder.",
                hint="Data is an .npz or .npy file, a folder of .npz files, or module:function.",
            )
        if callable(source):
            give = source
            name = getattr(source, "__name__", "data function")
            return name, lambda: self._dicts(_call(give, name), name)
        name = "the data given"
        if isinstance(source, Mapping):
            raise InputError("The data is one dictionary.", hint="Give a list of dictionaries, one per sample.")
        if not isinstance(source, Iterable):
            raise InputError(
                f"The data is a {type(source).__name__}.",
                hint="Give a path, module:function, or an iterable of dictionaries.",
            )
        if iter(source) is source:  # gives its items once only: kept on disk while it is walked first
            return name, self._spooled(source, name)
        again = source
        return name, lambda: self._dicts(again, name)

    def _spooled(
        self, source: Iterable[Mapping[str, Any]], name: str
    ) -> Callable[[], Iterator[tuple[str, dict[str, Any]]]]:
        rest = iter(source)
        files: list[Path] = []

        def walk() -> Iterator[tuple[str, dict[str, Any]]]:
            index = 0
            while True:
                if index < len(files):
                    yield f"{name}, sample {index}", load_feed(files[index])
                else:
                    try:
                        item = next(rest)
                    except StopIteration:
                        return
                    if self._spool is None:
                        self._spool = TemporaryFolder("memoptc-data-")
                    file = Path(self._spool.name) / f"{len(files):08d}.npz"
                    where = f"{name}, sample {len(files)}"
                    save_feed(file, _mapping(item, where))
                    files.append(file)
                    yield where, dict(item)
                index += 1

        return lambda: _unstack_all(walk(), self._inputs)

    def _dicts(self, items: Iterable[Mapping[str, Any]], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
        pairs = ((f"{name}, sample {i}", _mapping(item, f"{name}, sample {i}")) for i, item in enumerate(items))
        yield from _unstack_all(pairs, self._inputs)

    def _folder(self, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
        files = sorted(folder.glob("*.npz"))
        if not files:
            raise InputError(f"{folder} holds no .npz file.")
        for file in files:
            yield from self._file(file, split=False)

    def _file(self, path: Path, *, split: bool) -> Iterator[tuple[str, dict[str, Any]]]:
        with ArrayFile(path, self._only_input()) as file:
            if KINDS not in file.headers:
                yield from _walk_file(file, self._inputs, split=split)
                return
        yield from _unstack_all([(str(path), load_feed(path))], self._inputs)

    def _only_input(self) -> str:
        required = [name for name in self._inputs if name not in self._optional]
        return required[0] if len(required) == 1 else ""

    def _sample(self, where: str, arrays: dict[str, Any]) -> Sample:
        label = None
        feed: dict[str, Any] = {}
        symbols: dict[str, tuple[int, str]] = {}
        if self._completed is not None and not self._inputs.keys() <= arrays.keys() | self._optional:
            arrays = self._completed(arrays)
        for name, value in arrays.items():
            if name in self._inputs:
                feed[name] = _checked(value, name, self._inputs[name], where, symbols)
            elif name in LABEL_KEYS:
                label = np.asarray(value)
            else:
                raise InputError(
                    f"{where}: {name!r} is not an input of the model.",
                    hint=f"The model's inputs are {_listing(self._inputs)}; labels are called 'labels'.",
                )
        for name in self._inputs:
            if name not in feed and name not in self._optional:
                raise InputError(
                    f"{where}: the input {name!r} is missing.",
                    hint=f"The model's inputs are {_listing(self._inputs)}; the data has {_listing(arrays)}.",
                )
        return Sample(feed, label, where)


def _walk_file(
    file: ArrayFile, inputs: Mapping[str, Type | None], *, split: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    shapes = {name: header[0] for name, header in file.headers.items()}
    pieces = _pieces(shapes, inputs, str(file.path), split=split)
    if pieces is None:
        yield str(file.path), {name: file.whole(name) for name in shapes}
        return
    count, sizes, drop = pieces
    shared = {name: file.whole(name) for name in shapes if name not in sizes}
    streams = {name: file.rows(name, size) for name, size in sizes.items()}
    for index in range(count):
        arrays = dict(shared)
        for name, stream in streams.items():
            piece = next(stream)
            arrays[name] = piece[0] if drop or name not in inputs else piece
        yield f"{file.path}, sample {index}", arrays


def _pieces(
    shapes: Mapping[str, tuple[int, ...]], inputs: Mapping[str, Type | None], where: str, *, split: bool
) -> tuple[int, dict[str, int], bool] | None:
    """Decide how arrays make samples (see the module's rule).

    Returns:
        Number of samples, piece size along axis 0 per array that is cut, and whether that axis disappears;
        `None` when the arrays are one sample.
    """
    ranks = {name: _rank(inputs[name]) for name in shapes if name in inputs}
    stacked = [name for name, rank in ranks.items() if rank is not None and len(shapes[name]) == rank + 1]
    labels = [name for name in shapes if name not in inputs and name in LABEL_KEYS]
    if stacked:
        counts = {name: shapes[name][0] for name in stacked}
        if len(set(counts.values())) != 1:
            listing = ", ".join(f"{name!r} {count}" for name, count in counts.items())
            raise InputError(f"{where}: the arrays hold different numbers of samples: {listing}.")
        count = counts[stacked[0]]
        return count, {name: 1 for name in (*stacked, *_countable(labels, shapes, count, where))}, True
    if not split or any(rank is None or rank != len(shapes[name]) for name, rank in ranks.items()):
        return None
    sizes: dict[str, int] = {}
    counts = {}
    for name, rank in ranks.items():
        if not rank:
            continue
        type_ = as_tensor(inputs[name])
        batch = type_.shape[0] if type_ is not None and type_.shape else None
        size = batch if isinstance(batch, int) else 1
        extent = shapes[name][0]
        if size == 0 or extent % size:
            raise InputError(
                f"{where}: the array {name!r} has extent {extent} on axis 0, but the model takes {size} at a time."
            )
        sizes[name], counts[name] = size, extent // size
    if len(set(counts.values())) != 1:
        return None
    count = next(iter(counts.values()))
    label_sizes = {name: 1 for name in _countable(labels, shapes, count, where)}
    return count, sizes | label_sizes, False


def _countable(labels: list[str], shapes: Mapping[str, tuple[int, ...]], count: int, where: str) -> list[str]:
    for name in labels:
        if not shapes[name] or shapes[name][0] != count:
            found = shapes[name][0] if shapes[name] else 1
            raise InputError(f"{where}: {found} {name} for {count} samples.")
    return labels


def _unstack_all(
    pairs: Iterable[tuple[str, dict[str, Any]]], inputs: Mapping[str, Type | None]
) -> Iterator[tuple[str, dict[str, Any]]]:
    for where, arrays in pairs:
        shapes = {n: np.shape(v) for n, v in arrays.items() if isinstance(v, np.ndarray)}
        pieces = _pieces({n: s for n, s in shapes.items() if n in inputs}, inputs, where, split=False)
        if pieces is None:
            yield where, arrays
            continue
        count, sizes, _ = pieces
        labels = [n for n in arrays if n not in inputs and np.shape(arrays[n])[:1] == (count,)]
        for index in range(count):
            yield (
                f"{where}.{index}",
                {n: v[index] if n in sizes or n in labels else v for n, v in arrays.items()},
            )


def _rank(type_: Type | None) -> int | None:
    tensor = as_tensor(type_)
    return None if tensor is None else tensor.rank


def _checked(value: Any, name: str, type_: Type | None, where: str, symbols: dict[str, tuple[int, str]]) -> Any:
    if isinstance(type_, OptionalType):
        return None if value is None else _checked(value, name, type_.elem, where, symbols)
    if not isinstance(type_, TensorType):
        return value
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InputError(f"{where}: the value for input {name!r} is not an array: {one_line(error)}.") from error
    array = _cast(array, name, type_.dtype, where)
    if type_.shape is not None:
        _check_shape(array.shape, name, type_.shape, where, symbols)
    if array.dtype.kind in "fcV" or type_.dtype.is_floating_point():
        wide = array if array.dtype.kind in "fc" else array.astype(np.float32)
        finite = np.isfinite(wide)
        if not finite.all():
            index = [int(i) for i in np.argwhere(~finite)[0]]
            raise InputError(
                f"{where}: input {name!r} holds {wide[tuple(index)]} at {index}; finite numbers were expected.",
                hint="Take such samples out of the data.",
            )
    return array


def _cast(array: npt.NDArray[Any], name: str, dtype: DType, where: str) -> npt.NDArray[Any]:
    if dtype == DType.UNDEFINED:
        return array
    if dtype == DType.STRING:
        if array.dtype.kind not in "USO":
            raise InputError(f"{where}: input {name!r} is {array.dtype}; strings were expected.")
        if array.dtype.kind == "S":
            array = np.char.decode(array, "utf-8")
        return array.astype(object)
    want = dtype.numpy()
    if array.dtype == want:
        return array
    if array.dtype.kind not in "biufc" or not np.can_cast(array.dtype, want, "safe"):
        raise InputError(
            f"{where}: input {name!r} is {array.dtype}; {want.name} was expected, which cannot hold every such value.",
            hint=f"Convert the data with .astype({want.name!r}).",
        )
    return array.astype(want)


def _check_shape(
    got: tuple[int, ...], name: str, want: tuple[Dim, ...], where: str, symbols: dict[str, tuple[int, str]]
) -> None:
    spelled = "[" + ", ".join("?" if d is None else str(d) for d in want) + "]"
    if len(got) != len(want):
        raise InputError(
            f"{where}: input {name!r} has shape {list(got)}, {len(got)} axes; {spelled}, {len(want)} axes, "
            "was expected."
        )
    for axis, (extent, dim) in enumerate(zip(got, want, strict=True)):
        if isinstance(dim, int) and extent != dim:
            raise InputError(
                f"{where}: input {name!r} has shape {list(got)}; {spelled} was expected (axis {axis} differs)."
            )
        if isinstance(dim, Sym) and dim.name is not None and dim.name != "?":
            known, other = symbols.setdefault(dim.name, (extent, name))
            if known != extent:
                raise InputError(
                    f"{where}: {dim.name} is {known} in input {other!r} but {extent} in input {name!r}; "
                    "the model says they are equal."
                )


def _call(function: Callable[[], Feeds], name: str) -> Feeds:
    result = function()
    if isinstance(result, Mapping) or not isinstance(result, Iterable):
        raise InputError(f"{name} gave a {type(result).__name__}; an iterable of dictionaries was expected.")
    return result


def _mapping(item: Any, where: str) -> dict[str, Any]:
    if not isinstance(item, Mapping):
        raise InputError(f"{where} is a {type(item).__name__}; a dictionary of input name to array was expected.")
    return dict(item)


def _listing(names: Iterable[str]) -> str:
    return ", ".join(repr(str(name)) for name in names) or "none"
