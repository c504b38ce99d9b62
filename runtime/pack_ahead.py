"""Weights laid out ahead in the way in which kernels read them: loading maps the layout instead of making a copy.

onnxruntime packs weights while it loads, into anonymous memory, and lets go of the original. It can write what it
packed into the data file of an optimized model, with a note in each weight's entries, `prepacked_N`: the operator and a
hash of the packed bytes. Here these notes and bytes are added to a model that onnxruntime still optimizes itself. When
it loads that, it packs each weight, finds its hash among the notes, and maps the part of the file in place of the copy.
On a processor whose kernels pack differently no hash is found, and the copy stays: the same results, no memory saved.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, BinaryIO

import onnx

from memoptc.ir.files import TemporaryFolder
from memoptc.ir.onnx_data import PAGE, PIECE
from memoptc.ir.packed_notes import PACKED_NOTE, PACKED_PART
from memoptc.runtime import isolated
from memoptc.runtime.freeze import save_packed


def pack_ahead(model: Path, scratch: Path) -> int:
    """Append what kernels pack of a model's weights to the data file in which these lie; give its bytes.

    Only weights of the main graph are looked at. The work is done in a process of its own, whose memory holds the
    weights and their copies.

    Args:
        model: A model that onnxruntime optimizes while it loads, with large weights in one file beside it; both files
            are changed.
        scratch: An existing folder for temporary files, for about twice the weights.

    Raises:
        InputError: onnxruntime cannot load the model.
    """
    with TemporaryFolder(parent=scratch) as name:
        request = {"model": str(model.absolute()), "folder": name}
        return int(isolated.ask("memoptc.runtime.pack_ahead", request, Path(name))["bytes"])


def append_packed(model: Path, folder: Path) -> int:
    """As `pack_ahead`, in this process."""
    optimized, data = folder / "optimized.onnx", folder / "optimized.data"
    save_packed(model, optimized, data.name, optimize=True)
    packed = _notes(onnx.load(optimized, load_external_data=False))
    proto = onnx.load(model, load_external_data=False)
    written: dict[str, str] = {}
    outside = [tensor for tensor in proto.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    if not outside or not any(packed.values()):
        return 0
    beside = model.with_name(next(e.value for e in outside[0].external_data if e.key == "location"))
    before = beside.stat().st_size
    with data.open("rb") as source, beside.open("ab") as target:
        for tensor in outside:
            kept = [entry for entry in tensor.external_data if not entry.key.startswith(PACKED_NOTE)]
            del tensor.external_data[:]
            tensor.external_data.extend(kept)  # what was packed for another processor is of no use here
            for index, note in enumerate(packed.get(tensor.name, [])):
                key = note.partition("|")[0]
                if key not in written:
                    written[key] = PACKED_PART.sub(lambda part: _moved(part, source, target), note)
                tensor.external_data.add(key=f"{PACKED_NOTE}{index}", value=written[key])
    model.write_bytes(proto.SerializeToString(deterministic=True))
    return beside.stat().st_size - before


def _notes(model: onnx.ModelProto) -> dict[str, list[str]]:
    """The notes of each weight of the main graph."""
    return {
        tensor.name: [entry.value for entry in tensor.external_data if entry.key.startswith(PACKED_NOTE)]
        for tensor in model.graph.initializer
    }


def _moved(part: re.Match[str], source: BinaryIO, target: BinaryIO) -> str:
    """Copy a part to the end of a file, from a page's start on, in pieces as small as those of the weights."""
    source.seek(int(part[1]))
    target.write(b"\0" * (-target.tell() % PAGE))
    at, left = target.tell(), int(part[2])
    while left:
        piece = source.read(min(left, PIECE))
        if not piece:
            raise EOFError(f"{source.name} ends {left} bytes before a packed weight does")
        target.write(piece)
        target.flush()
        left -= len(piece)
    return f"|{at};{part[2]};"


def _work(request: dict[str, Any]) -> dict[str, Any]:
    return {"bytes": append_packed(Path(request["model"]), Path(request["folder"]))}


if __name__ == "__main__":
    isolated.answer(_work, *sys.argv[1:3])
