"""Copies of models with weights packed ahead, kept in a folder: the file that is shipped stays small, loading maps.

A copy holds both layouts, as onnxruntime packs each weight anew while it loads, and looks for the hash of what comes
out. A copy is found by the name of the model and what its files contain, the version of onnxruntime and the processor;
the folder, or a part of it, may be removed at any time that no session has a copy open: the next one makes it anew.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import onnxruntime as ort

from memoptc.ir.diagnostics import InputError
from memoptc.ir.files import open_plain
from memoptc.runtime.external_weights import data_files

_PIECE = 1 << 20


def packed_copy(model: str, folder: str | os.PathLike[str]) -> str:
    """Give the path of the copy of a model whose weights are packed ahead; it is made where there is none.

    The making is done in a process of its own, which loads the model once: its memory is the model's, packed.

    Args:
        model: Path of the model.
        folder: Where copies are kept; made where there is none. A copy takes the weights' bytes a little more than
            twice.

    Raises:
        InputError: the folder cannot be written, a file of weights is missing, is no plain file or lies outside of the
            model's folder, or onnxruntime cannot load the model.
    """
    place = Path(folder)
    try:
        copy = place / _key(model) / os.path.basename(model)
        if not _is_whole(copy):
            place.mkdir(parents=True, exist_ok=True)
            _make(os.path.abspath(model), copy)
    except OSError as error:
        raise InputError(
            f"No packed copy of {os.path.basename(model)} can be kept in {place}: {error.strerror or error}.",
            hint="Name a folder that can be written, or leave packed_cache out.",
        ) from None
    return os.fspath(copy)


def _is_whole(copy: Path) -> bool:
    """True if a copy and its weights are there; what cleans folders up may take the one and leave the other."""
    return copy.is_file() and all(file.is_file() for file in data_files(copy).values())


def _make(model: str, copy: Path) -> None:
    from memoptc.ir.files import TemporaryFolder  # only the first load pays for it
    from memoptc.runtime import isolated

    with TemporaryFolder(parent=copy.parent.parent) as scratch:
        isolated.ask(
            "memoptc.runtime.packed_cache", {"model": model, "copy": str(copy), "scratch": scratch}, Path(scratch)
        )


def _key(model: str) -> str:
    """Digest of all that a copy depends on."""
    name = os.path.basename(model)  # a copy has the model's
    digest = hashlib.sha256("\0".join((ort.__version__, platform.machine(), _processor(), "")).encode())
    digest.update(os.fsencode(name))
    for location, file in {"": Path(model), **data_files(model)}.items():
        found = hashlib.sha256()
        try:
            with os.fdopen(open_plain(file), "rb", buffering=0) as opened:
                while piece := opened.read(_PIECE):
                    found.update(piece)
        except OSError:
            raise InputError(
                f"{name}: the external data file {location!r:.200} is missing, or no plain file.",
                hint="Put it beside the model.",
            ) from None
        digest.update(found.digest())
    return digest.hexdigest()[:32]


def _processor() -> str:
    """What says which kernels onnxruntime chooses: on Linux the processor's name and abilities."""
    try:
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(line for line in lines if line.startswith(wanted))


def _work(request: dict[str, Any]) -> dict[str, Any]:
    """Make a copy; whole or not at all, and once, also where several processes try."""
    from memoptc.ir.merge import merge_models
    from memoptc.runtime.pack_ahead import append_packed

    model, copy, scratch = (Path(request[name]) for name in ("model", "copy", "scratch"))
    made = scratch / "made"
    (written,) = merge_models([model], made).models
    added = append_packed(written, scratch)
    for file in made.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    if copy.parent.exists() and not _is_whole(copy):
        with suppress(FileNotFoundError):  # another process has the same in hand
            os.rename(copy.parent, scratch / "remains")
    try:
        os.rename(made, copy.parent)
    except OSError:
        if not _is_whole(copy):  # else another process was faster
            raise
    return {"bytes": added}


if __name__ == "__main__":
    from memoptc.runtime import isolated

    isolated.answer(_work, *sys.argv[1:3])
