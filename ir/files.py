"""Output files appear whole or not at all, also when the process is killed."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from memoptc.ir.diagnostics import InputError

_STAGING_PREFIX = ".memoptc-"


def atomic_write(path: Path, content: bytes) -> None:
    """Write one file whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    with staging(path) as folder:
        (folder / path.name).write_bytes(content)
        publish(folder, path.parent)


@contextlib.contextmanager
def staging(output: Path) -> Iterator[Path]:
    """Give a hidden folder beside `output` to write into; it is gone afterwards, whatever happens.

    Raises:
        InputError: the folder of `output` does not exist or cannot be written, or the disk is full.
    """
    parent = output.parent if str(output.parent) else Path()
    if output.is_dir():
        raise InputError(f"{output} is a folder.", hint="Name a file to write.")
    try:
        folder = Path(tempfile.mkdtemp(prefix=_STAGING_PREFIX, dir=parent))
    except OSError as e:
        raise _cannot_write(output, e) from None
    try:
        yield folder
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES):
            raise _cannot_write(output, e) from e
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, into: Path, last: str = "") -> None:
    """Move every file of a staging folder to where it belongs, each in one step.

    Args:
        folder: The staging folder.
        into: A folder on the same file system.
        last: Name of the file that refers to the others and therefore moves last.
    """
    names = sorted((p.name for p in folder.iterdir()), key=lambda n: (n == last, n))
    for name in names:
        with open(folder / name, "rb") as f:
            os.fsync(f.fileno())
    for name in names:
        os.replace(folder / name, into / name)


def refuse_overwriting(output: Path, inputs: list[Path]) -> None:
    """Refuse an output that is one of the inputs, or whose weights would be written over one of them.

    Raises:
        InputError: it is, directly or through a link.
    """
    for written in (output, output.with_name(f"{output.name}.data")):
        for path in inputs:
            if written.exists() and path.exists() and os.path.samefile(written, path):
                raise InputError(
                    f"{written} is also an input; writing it would destroy it.",
                    hint="Choose another name with -o.",
                )


def _cannot_write(path: Path, e: OSError) -> InputError:
    what = "there is no space left" if e.errno == errno.ENOSPC else (e.strerror or str(e)).lower()
    return InputError(f"{path} cannot be written: {what}.", hint="Choose another place with -o.")
