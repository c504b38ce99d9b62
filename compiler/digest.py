"""SHA-256 of files and of data, by which a report says what it was made of."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def digest(files: Sequence[Path]) -> str:
    """Hash files: one as `sha256sum` does, several as the hash of their hashes in order."""
    hashes = []
    for file in files:
        with open(file, "rb") as stream:
            hashes.append(hashlib.file_digest(stream, "sha256"))
    if len(hashes) == 1:
        return hashes[0].hexdigest()
    return hashlib.sha256(b"".join(h.digest() for h in hashes)).hexdigest()


def data_files(data: Any) -> list[Path]:
    """Give the files that data is read from; none where it comes from a function or from memory."""
    if not isinstance(data, str | os.PathLike):
        return []
    path = Path(data)
    return [path] if path.is_file() else sorted(path.glob("*.npz")) if path.is_dir() else []


def data_facts(data: Any) -> dict[str, Any] | None:
    """Name data and hash it: `name`, and `sha256` where it is files; `None` without data."""
    if data is None:
        return None
    name = Path(data).name if isinstance(data, str | os.PathLike) else f"<{type(data).__name__}>"
    files = data_files(data)
    return {"name": name, "sha256": digest(files) if files else None}
