"""Where images from an archive lie while they are imported, under a patient's name: not a moment longer than needed."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wardround import files
from wardround.client.home import SiteHome
from wardround.errors import UsageError

PULLED = "pulled"
"""Folder below that of the site; empty but for a lock when nothing is pulled."""


@contextmanager
def pulled_folder(home: SiteHome) -> Iterator[Path]:
    """An empty folder that is gone afterwards; what a killed pull left goes first.

    Raises
    ------
    StorageError
        If the disk is full or not writable.
    UsageError
        If another process is pulling.
    """
    place = home.site / PULLED
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise files.storage_error(error, place) from error
    with _alone(place, files.LOCK_PATIENCE_S) as alone:
        if not alone:
            raise UsageError("a pull is running already", "another process does it", "wait until it is done")
        files.sweep(place, deep=False)
        with tempfile.TemporaryDirectory(prefix=files.PREFIX, dir=place) as folder:
            yield Path(folder)


def sweep_pulled(home: SiteHome) -> None:
    """Remove what a killed pull left; nothing where one is running.

    Raises
    ------
    StorageError
        If the folder cannot be used.
    """
    place = home.site / PULLED
    if not place.is_dir():
        return
    with _alone(place, 0.0) as alone:
        if alone:
            files.sweep(place, deep=False)


@contextmanager
def _alone(place: Path, patience_s: float) -> Iterator[bool]:
    """Whether no other process uses the folder, which it then cannot until the end of the block."""
    try:
        handle = os.open(place / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise files.storage_error(error, place) from error
    try:
        try:
            files.lock_alone(handle, patience_s)
            alone = True
        except BlockingIOError:
            alone = False
        yield alone
    finally:
        os.close(handle)
