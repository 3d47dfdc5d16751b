"""Files that are either wholly there or not there at all.

A file is written beside its final name, flushed to the disk and renamed; a folder is built under a temporary name and
renamed. A crash at any instruction leaves the old state, and at most a name that starts with ``.tmp-``, which
:func:`sweep` removes at the next start. Files of settings, which people write, are only read here.
"""

import errno
import fcntl
import os
import shutil
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from wardround.errors import DataError, StorageError

PREFIX = ".tmp-"
LOCK_PATIENCE_S = 1.0
"""For how long a lock is tried. Whoever only looks whether it is held holds it for an instant as well."""


def storage_error(error: OSError, path: Path) -> StorageError:
    """Turn an operating-system error on `path` into one with a cause and a fix."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(
            f"cannot write {path}", "the disk is full or over quota", "free some space and run the same command again"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StorageError(f"cannot write {path}", "it is not writable for this user", "choose another folder")
    return StorageError(f"cannot write {path}", error.strerror or type(error).__name__, "check the disk and the path")


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Write the file `path` piece by piece: it replaces what is there when the block ends without an error.

    Yields
    ------
    BinaryIO
        A stream to write into, which can be read and searched as well.

    Raises
    ------
    StorageError
        If the disk is full or the folder is not writable; the old content is then still there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=PREFIX, dir=path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(handle, "w+b") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise storage_error(error, path) from error


def write_bytes(path: Path, data: bytes) -> None:
    """Replace the file `path` by `data`, atomically and durably.

    Raises
    ------
    StorageError
        If the disk is full or the folder is not writable; the old content is then still there.
    """
    with new_file(path) as stream:
        stream.write(data)


def write_text(path: Path, text: str) -> None:
    """Replace the text file `path` by `text` (UTF-8), atomically and durably."""
    write_bytes(path, text.encode())


def read_settings(path: Path, whose: str, made_by: str) -> dict[str, Any]:
    """What a TOML file of settings says, which lies in the folder of what it sets.

    Parameters
    ----------
    whose
        Such as ``a site``: what the folder would be the home of.
    made_by
        The command that makes such a folder.

    Raises
    ------
    DataError
        If there is no such file, or it cannot be read.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(
            f"{path.parent} is not the home of {whose}", f"it has no {path.name}", f"make one with `{made_by}`"
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}", str(error), "correct the file, or take it from a copy") from error


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Build the folder `path` as a whole: it appears under its name only when the block ends without an error.

    Yields
    ------
    Path
        A temporary folder beside `path` to write into.

    Raises
    ------
    StorageError
        If `path` already holds something: a folder is never replaced, since no rename can do that in one step.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=PREFIX, dir=path.parent))
    except OSError as error:
        raise storage_error(error, path) from error
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
        _sync_folder(temporary)
        temporary.rename(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise storage_error(error, path) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove the folder `path` in one step: its name goes first, the rest under a name that :func:`sweep` knows."""
    try:
        doomed = Path(tempfile.mkdtemp(prefix=PREFIX, dir=path.parent))
        path.rename(doomed / path.name)
    except OSError as error:
        raise storage_error(error, path) from error
    shutil.rmtree(doomed, ignore_errors=True)


def sweep(folder: Path, *, deep: bool = True) -> None:
    """Remove what a crash left half-written in `folder` and, if `deep`, below. Call only where nobody else writes."""
    for leftover in list(folder.rglob(f"{PREFIX}*") if deep else folder.glob(f"{PREFIX}*")):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def lock_alone(handle: int, patience_s: float = LOCK_PATIENCE_S) -> None:
    """Lock an open file against all others, or see that another process has it for longer than a look takes.

    Raises
    ------
    BlockingIOError
        If it is held.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock file `path`; one that is not there is not held.

    Raises
    ------
    StorageError
        If the file cannot be opened.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StorageError(f"cannot open {path}", error.strerror or "", "check who owns the folder") from error
    try:
        # Shared, so that several who only look do not see each other.
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(handle)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
