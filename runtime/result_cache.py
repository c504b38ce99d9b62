"""Results of a search in a folder: a compile that was killed and begins anew measures and codes nothing twice."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from memoptc.ir.diagnostics import InputError
from memoptc.ir.files import staged
from memoptc.runtime.data import Sample

FILE = "measured.jsonl"


class ResultCache:
    """Records and arrays by key; a key is a digest of all that they follow from.

    So a folder may hold results of other models, data and options: none of those is ever used.

    Args:
        folder: Where they lie; made when it does not exist.

    Raises:
        InputError: the folder cannot be made, or its file cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._file = folder, folder / FILE
        self._records: dict[str, dict[str, Any]] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lines = self._file.read_text("utf-8").splitlines() if self._file.exists() else []
        except (OSError, ValueError) as error:
            raise InputError(f"{folder} cannot keep results: {error}.", hint="Name another folder.") from error
        for line in lines:
            try:
                key, record = json.loads(line)
            except (ValueError, TypeError):  # the line that was written when the process was killed
                continue
            self._records[key] = record

    @staticmethod
    def key(*parts: object) -> str:
        """Digest of these, which tell apart by their `repr`, and of the versions that made the results."""
        versions = onnxruntime.__version__, importlib.metadata.version("memoptc")
        return hashlib.sha256(repr((*versions, *parts)).encode()).hexdigest()

    def get_record(self, key: str) -> dict[str, Any] | None:
        """The record of a key, if there is one."""
        return self._records.get(key)

    def put_record(self, key: str, record: dict[str, Any]) -> None:
        """Add a record; it is on disk when this returns."""
        self._records[key] = record
        with open(self._file, "a", encoding="utf-8") as file:
            file.write(f"\n{json.dumps([key, record])}\n")  # behind a line that was cut short, too
            file.flush()
            os.fsync(file.fileno())

    def get_arrays(self, key: str) -> dict[str, npt.NDArray[Any]] | None:
        """The arrays of a key, if there are any."""
        path = self._folder / f"{key}.npz"
        if not path.exists():
            return None
        with np.load(path, allow_pickle=False) as found:
            return dict(found)

    def put_arrays(self, key: str, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Write arrays, whole or not at all."""
        with staged(self._folder / f"{key}.npz") as path:
            np.savez(path, **arrays)  # type: ignore[arg-type]  # its stub takes the arrays for `allow_pickle`


def add_sample(digest: hashlib._Hash, sample: Sample) -> None:
    """Add the inputs of a sample to a digest."""
    for name, value in sorted(sample.feed.items()):
        digest.update(name.encode())
        if isinstance(value, np.ndarray) and value.dtype != object:
            digest.update(f"{value.dtype}{value.shape}".encode())
            digest.update(value.tobytes())
        else:
            digest.update(_listed(value).encode())


def _listed(value: Any) -> str:
    """Every element of strings, sequences and optionals; the `repr` of a long array leaves most of them out."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape}{value.tolist()}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_listed, value))}]"
    return repr(value)


def fingerprint(samples: Iterable[Sample]) -> str:
    """Digest of the inputs and labels of samples."""
    digest = hashlib.sha256()
    for sample in samples:
        add_sample(digest, sample)
        label = None if sample.label is None else np.asarray(sample.label).tolist()
        digest.update(repr(label).encode())
    return digest.hexdigest()
