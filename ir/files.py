"""Output files appear whole or not at all, also when the process is killed; what is no plain file stays what it is."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tempfile
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

from memoptc.ir.diagnostics import InputError

try:
    import fcntl
except ImportError:  # no such locks there: what killed runs leave stays
    fcntl = None  # type: ignore[assignment]

_STAGING_PREFIX = ".memoptc-"
_SCRATCH_PREFIX = "memoptc-"
_LOCK = ".lock"

_YOUNG = 60.0
"""Seconds for which a folder without a lock may still be in the making."""

_SWEPT: set[str] = set()


@contextlib.contextmanager
def reading(path: str | os.PathLike[str], kind: str) -> Iterator[None]:
    """Tell what is wrong with a file that a user named, while it is read.

    Args:
        path: The file.
        kind: The ending that such files have, for messages.

    Raises:
        InputError: it is not there, a folder, or cannot be read.
    """
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path}: no such file.", hint="Check the path.") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder.", hint=f"Name the {kind} file inside it.") from None
    except OSError as e:
        raise InputError(f"{path} cannot be read: {e.strerror}.") from None


class TemporaryFolder(tempfile.TemporaryDirectory[str]):
    """A folder for temporary files. It goes with this object; when the process is killed, with the next one made.

    A lock says that its process lives, and the system gives that back however the process ends.

    Args:
        prefix: How its name begins.
        parent: Where it lies; the system's folder for temporary files when not given.
    """

    def __init__(self, prefix: str = _SCRATCH_PREFIX, parent: Path | None = None) -> None:
        where = os.fspath(parent) if parent is not None else tempfile.gettempdir()
        _remove_abandoned(where, prefix)
        super().__init__(prefix=prefix, dir=where, ignore_cleanup_errors=True)
        if fcntl is not None:
            # Locked before it has its name: whoever sees it unlocked takes the folder for abandoned.
            new = os.path.join(self.name, f"{_LOCK}.new")
            lock = os.open(new, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            with contextlib.suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.rename(new, os.path.join(self.name, _LOCK))
            self._unlock = weakref.finalize(self, os.close, lock)

    def cleanup(self) -> None:
        """Remove the folder now."""
        super().cleanup()
        if fcntl is not None:
            self._unlock()


def _remove_abandoned(where: str, prefix: str) -> None:
    """Remove folders whose processes are gone; looked for once per process and place."""
    if fcntl is None or where in _SWEPT:
        return
    _SWEPT.add(where)
    with contextlib.suppress(OSError), os.scandir(where) as entries:
        for entry in entries:
            if entry.name.startswith((_STAGING_PREFIX, _SCRATCH_PREFIX)) and entry.is_dir(follow_symlinks=False):
                with contextlib.suppress(OSError):
                    _remove_if_abandoned(entry)


def _remove_if_abandoned(entry: os.DirEntry[str]) -> None:
    found = entry.stat(follow_symlinks=False)
    if found.st_uid != os.getuid():
        return
    try:
        lock = os.open(os.path.join(entry.path, _LOCK), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        if time.time() - found.st_mtime > _YOUNG:
            os.rmdir(entry.path)  # only when it is empty: it may be somebody else's
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(entry.path, ignore_errors=True)
    finally:
        os.close(lock)


def atomic_write(path: Path, content: bytes) -> None:
    """Write one file whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    with staged(path) as inner:
        inner.write_bytes(content)


@contextlib.contextmanager
def staged(output: Path) -> Iterator[Path]:
    """Give the path to write an output to; it appears at `output`, with all beside it, when no error is raised.

    Links are followed: what is written lies beside the file that `output` leads to. A file that is there already keeps
    its mode. What is no plain file (a device, a pipe) is written through; nothing can lie beside it.

    Raises:
        InputError: `output` cannot be written, is a folder, or is no plain file and would need others beside it.
    """
    plain = not stands_alone(output)
    real = Path(os.path.realpath(output)) if plain else output
    if output.is_dir():
        raise InputError(f"{output} is a folder.", hint="Name a file to write.")
    try:
        folder = TemporaryFolder(_STAGING_PREFIX, real.parent) if plain else TemporaryFolder()
    except OSError as e:
        raise _cannot_write(output, e) from None
    try:
        with folder as name:
            yield Path(name) / real.name
            if plain:
                _publish(Path(name), real)
            elif not discards(output):
                for beside in (f"{real.name}.data", f"{real.stem}.npz"):
                    if os.path.exists(os.path.join(name, beside)):
                        raise InputError(
                            f"{output} is no plain file: weights cannot lie beside it.", hint="Name a file."
                        )
                _write_through(Path(name) / real.name, real)
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EPIPE):
            raise _cannot_write(output, e) from e
        raise


def written_files(output: Path, files: list[Path]) -> list[Path]:
    """Say where the files of a staging folder are now."""
    if stands_alone(output):
        return [output]
    return [
        Path(os.path.realpath(output)).with_name(f.name) if output.is_symlink() else output.with_name(f.name)
        for f in files
    ]


def stands_alone(output: Path) -> bool:
    """True if nothing can lie beside an output, because it is a device or a pipe."""
    return not output.is_dir() and not _is_plain(output)


def discards(output: Path) -> bool:
    """True if an output is the device that forgets what is written to it."""
    return os.path.exists(output) and os.path.samefile(output, os.devnull)


def data_file(folder: Path, location: str, link_target: Path | None = None) -> Path | None:
    """Give the file that a model names as one of its data files; `None` where that lies outside of its folder.

    Args:
        folder: The model's.
        location: Path below it, as the model states it.
        link_target: Folder of the file that the model's name is a link to, if it is one: links of data files may lead
            there, too, as in caches of downloads.
    """
    base = folder.resolve()
    roots = [base, *([link_target] if link_target is not None else [])]
    try:
        path = (base / location).resolve()
        named = Path(os.path.normpath(base / location))
    except (OSError, ValueError):  # ValueError: a name with a zero byte
        return None
    if not location or path == base or Path(location).is_absolute() or not named.is_relative_to(base):
        return None
    return path if any(path.is_relative_to(root) for root in roots) else None


def linked_folder(path: Path) -> Path | None:
    """Give the folder of the file that a symbolic link leads to; `None` for what is none."""
    return path.resolve().parent if path.is_symlink() else None


def open_plain(path: Path) -> int:
    """Open a file to read, and give its descriptor.

    Raises:
        OSError: it cannot be opened, or is a device, a pipe or a folder.
    """
    # Opening a pipe would wait for its writer.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "no plain file", str(path))
    return descriptor


def _is_plain(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return True  # not there yet


def _publish(folder: Path, output: Path) -> None:
    """Move every file of a staging folder to where it belongs, each in one step; the one that refers to others last."""
    names = sorted((p.name for p in folder.iterdir() if p.name != _LOCK), key=lambda n: (n == output.name, n))
    for name in names:
        with open(folder / name, "rb") as f:
            os.fsync(f.fileno())
    for name in names:
        _replace(folder / name, output.parent / name)


def _replace(file: Path, target: Path) -> None:
    if stands_alone(target):
        _write_through(file, target)
        return
    real = Path(os.path.realpath(target))
    with contextlib.suppress(FileNotFoundError):
        held = real.stat()
        os.chmod(file, stat.S_IMODE(held.st_mode))
        if hasattr(os, "chown") and (held.st_uid, held.st_gid) != (file.stat().st_uid, file.stat().st_gid):
            with contextlib.suppress(OSError):
                os.chown(file, held.st_uid, held.st_gid)
                os.chmod(file, stat.S_IMODE(held.st_mode))
    try:
        os.replace(file, real)
    except OSError as e:
        if e.errno != errno.EXDEV:
            raise
        # A link that leads to another file system.
        with TemporaryFolder(_STAGING_PREFIX, real.parent) as near:
            shutil.copy2(file, Path(near) / real.name)
            os.replace(Path(near) / real.name, real)


def _write_through(file: Path, target: Path) -> None:
    with open(file, "rb") as source, open(target, "wb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)


def refuse_overwriting(output: Path, inputs: list[Path]) -> None:
    """Refuse an output that is one of the inputs, or whose weights would be written over one of them.

    Raises:
        InputError: it is, directly or through a link.
    """
    real = Path(os.path.realpath(output))
    for written in (output, real.with_name(f"{real.name}.data")):
        for path in inputs:
            if written.exists() and path.exists() and os.path.samefile(written, path):
                raise InputError(
                    f"{written} is also an input; writing it would destroy it.",
                    hint="Choose another name with -o.",
                )


def _cannot_write(path: Path, e: OSError) -> InputError:
    what = "there is no space left" if e.errno == errno.ENOSPC else (e.strerror or str(e)).lower()
    return InputError(f"{path} cannot be written: {what}.", hint="Choose another place with -o.")
