"""The case store's volumes on disk: files under names that are used once, each of which a row names or nobody does."""

import hashlib
import logging
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from wardround import files
from wardround.client.cases.nifti import encode
from wardround.client.cases.volume import Volume
from wardround.errors import StorageError

logger = logging.getLogger(__name__)

_KINDS = ("image", "label")


class VolumeFiles:
    """A folder of ``.nii.gz`` files.

    Parameters
    ----------
    folder
        Made where absent.
    is_named
        Whether a row names a file; yes where that cannot be found out.

    Raises
    ------
    StorageError
        If it is not writable.
    """

    def __init__(self, folder: Path, is_named: Callable[[str], bool]) -> None:
        self.folder = folder
        self._is_named = is_named
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise files.storage_error(error, folder) from error

    @contextmanager
    def new(self, kind: str, volume: Volume) -> Iterator[tuple[str, str]]:
        """Write a volume; the block stores the row that names it. The file goes if no row names it in the end.

        Yields
        ------
        tuple
            Name and SHA-256 of the file.
        """
        data = encode(volume)
        # Never a name used before: a reader that has the old row must not find the new file under it.
        file = f"{kind}-{uuid.uuid4().hex}.nii.gz"
        try:
            files.write_bytes(self.folder / file, data)
            yield file, hashlib.sha256(data).hexdigest()
        finally:
            if not self._is_named(file):
                self.discard(file)

    def discard(self, file: str) -> None:
        """Remove a file that no row names any more; the next opening does it where it cannot be done now."""
        try:
            (self.folder / file).unlink(missing_ok=True)
        except OSError:
            logger.warning("a file that is no longer needed could not be removed; the next opening will try again")

    def keep_only(self, named: Collection[str]) -> None:
        """Remove what interrupted changes left: files that are not `named`. Only where nobody else writes.

        Raises
        ------
        StorageError
            If they cannot be removed.
        """
        try:
            files.sweep(self.folder)
            ours = [path for kind in _KINDS for path in self.folder.glob(f"{kind}-*.nii.gz")]
            orphans = [path for path in ours if path.name not in named]
            for path in orphans:
                path.unlink()
        except OSError as error:
            raise files.storage_error(error, self.folder) from error
        if orphans:
            logger.info("removed %d files that an interrupted change left in the case store", len(orphans))

    def verified(self, file: str, sha256: str) -> bytes | None:
        """The bytes of a file; None where it is gone.

        Raises
        ------
        StorageError
            If it cannot be read, or is not what was written.
        """
        try:
            data = (self.folder / file).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self.damaged(file, error.strerror or type(error).__name__) from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise self.damaged(file, "its checksum is not the one that was written")
        return data

    def damaged(self, file: str, cause: str) -> StorageError:
        """That a file cannot be read."""
        return StorageError(
            f"cannot read {self.folder / file}",
            cause,
            "check the disk, restore this file from a backup, or import the case into a new store",
        )
