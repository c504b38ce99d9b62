"""Copies of models with weights packed ahead, kept in a folder: the file that is shipped stays small, loading maps.

A copy holds both layouts, as onnxruntime packs each weight anew while it loads, and looks for the hash of what comes
out. A copy is found by what the model's files contain, the version of onnxruntime and the processor; the folder may be
removed at any time that no session has a copy open, which is made anew by the next one.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

import onnxruntime as ort

from memoptc.ir.diagnostics import InputError

_LOCATION = re.compile(rb"\x0a\x08location\x12")
"""How an entry of external data begins that names a file: key 1, `location`, and the tag of the value."""

_PIECE = 1 << 20


def packed_copy(model: str, folder: str | os.PathLike[str]) -> str:
    """Give the path of the copy of a model whose weights are packed ahead; it is made where there is none.

    The making is done in a process of its own, which loads the model once: its memory is the model's, packed.

    Args:
        model: Path of the model.
        folder: Where copies are kept; made where there is none. A copy takes the weights' bytes a little more than
            twice.

    Raises:
        InputError: the folder cannot be written, or onnxruntime cannot load the model.
    """
    place = Path(folder)
    try:
        copy = place / _key(model) / os.path.basename(model)
        if not copy.is_file():
            place.mkdir(parents=True, exist_ok=True)
            _make(os.path.abspath(model), copy)
    except OSError as error:
        raise InputError(
            f"No packed copy of {os.path.basename(model)} can be kept in {place}: {error.strerror or error}.",
            hint="Name a folder that can be written, or leave packed_cache out.",
        ) from None
    return os.fspath(copy)


def _make(model: str, copy: Path) -> None:
    from memoptc.ir.files import TemporaryFolder  # only the first load pays for it
    from memoptc.runtime import isolated

    with TemporaryFolder(parent=copy.parent.parent) as scratch:
        isolated.ask(
            "memoptc.runtime.packed_cache", {"model": model, "copy": str(copy), "scratch": scratch}, Path(scratch)
        )


def _key(model: str) -> str:
    """Digest of all that a copy depends on."""
    digest = hashlib.sha256("\0".join((ort.__version__, platform.machine(), _processor())).encode())
    folder = os.path.dirname(os.path.abspath(model))
    with open(model, "rb") as opened:
        # mapped, as weights may be inside
        inside = os.fstat(opened.fileno()).st_size
        named = locations(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)) if inside else []
    for file in (model, *(os.path.join(folder, name) for name in named)):
        found = hashlib.sha256()
        try:
            with open(file, "rb", buffering=0) as opened:
                while piece := opened.read(_PIECE):
                    found.update(piece)
        except (OSError, ValueError):
            continue  # bytes of a weight that look like a name
        digest.update(found.digest())
    return digest.hexdigest()[:32]


def locations(content: bytes | mmap.mmap) -> list[str]:
    """Names of the files that a serialized model's weights lie in, wherever in it they are, each once, sorted."""
    found = set()
    for start in (match.end() for match in _LOCATION.finditer(content)):
        size, shift, at = 0, 0, start
        while at < len(content) and shift < 21:
            size, shift, at = size | (content[at] & 0x7F) << shift, shift + 7, at + 1
            if content[at - 1] < 0x80:
                break
        found.add(content[at : at + size].decode("utf-8", "replace"))
    return sorted(found)


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
    try:
        os.rename(made, copy.parent)
    except OSError:
        if not copy.is_file():  # else another process was faster
            raise
    return {"bytes": added}


if __name__ == "__main__":
    from memoptc.runtime import isolated

    isolated.answer(_work, *sys.argv[1:3])
