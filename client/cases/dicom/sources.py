"""A folder, a zip archive or one file of DICOM: nothing is unpacked to disk, no link followed, no size believed.

Names of files are often names of patients. They are used to open the file and for nothing else; what is skipped is
told by a reason and a number.
"""

import os
import stat
import struct
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from wardround.client.cases.dicom.headers import BROKEN
from wardround.errors import DataError

_DIRECTORY_END = struct.Struct("<4s4H2LH")
_DIRECTORY_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64 = struct.Struct("<4sLQL")
_LONGEST_COMMENT = 0xFFFF
_ENCRYPTED = 0x1
# The others are unpacked as a whole before zipfile cuts them to what was asked for.
_UNPACKED_IN_PIECES = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ZIP = b"PK\x03\x04"
_EMPTY_ZIP = b"PK\x05\x06"


@dataclass(frozen=True)
class Limits:
    """How much one source may hold.

    Parameters
    ----------
    files
        Files of a folder, or entries of an archive.
    file_bytes
        Of one file, unpacked; a larger one is skipped.
    archive_bytes
        Of all entries of an archive, unpacked.
    ratio
        Of an archive of more than 256 MiB: how many times larger it may get when it is unpacked. Images shrink to a
        half or a third, seldom to a twentieth.
    directory_bytes
        Of an archive's table of contents.
    """

    files: int = 200_000
    file_bytes: int = 2 << 30
    archive_bytes: int = 256 << 30
    ratio: float = 100.0
    directory_bytes: int = 128 << 20


_RATIO_FROM = 256 << 20


class SourceFile(Protocol):
    """One file of a source."""

    @property
    def size(self) -> int:
        """Its length in bytes, unpacked."""

    def read(self, at_most: int | None = None) -> bytes:
        """Its content, or so many bytes from its start; one of ``headers.BROKEN`` where that cannot be read."""


@dataclass(frozen=True)
class _Plain:
    path: Path
    size: int

    def read(self, at_most: int | None = None) -> bytes:
        # What was a file when it was listed may be a link, a pipe or much longer by now.
        with os.fdopen(os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as stream:
            return stream.read(self.size if at_most is None else min(at_most, self.size))


@dataclass(frozen=True)
class _Packed:
    archive: zipfile.ZipFile
    entry: zipfile.ZipInfo

    @property
    def size(self) -> int:
        return self.entry.file_size

    def read(self, at_most: int | None = None) -> bytes:
        # Never more than was declared, whatever comes out.
        left = self.size if at_most is None else min(at_most, self.size)
        try:
            with self.archive.open(self.entry) as stream:
                return stream.read(left)
        except zipfile.BadZipFile:
            raise ValueError("an entry of an archive is damaged") from None  # whose text holds its name


@dataclass(frozen=True)
class Listing:
    """The files of a source in the order of their names, and how many were left out for which reason."""

    files: tuple[SourceFile, ...]
    skipped: Counter[str] = field(default_factory=Counter)


def list_files(source: Path, limits: Limits | None = None) -> Listing:
    """List what may be read in a folder, an archive or a single file.

    Reasons for leaving out: ``symlink``, ``not-a-file`` (a pipe, a device), ``empty``, ``too-large``, ``encrypted``,
    ``unreadable``, ``compression`` (an entry of an archive that is packed otherwise than by deflate).

    Raises
    ------
    DataError
        If there is nothing of that name, or it holds more than `limits` allow.
    """
    limits = limits or Limits()
    try:
        if source.is_dir():
            return _folder(source, limits)
        with source.open("rb") as stream:
            magic = stream.read(4)
        if magic in (_ZIP, _EMPTY_ZIP):
            return _archive(source, limits)
        return _checked([(source, source.stat())], limits)
    except OSError as error:
        raise DataError(
            f"cannot read {source}", error.strerror or type(error).__name__, "check the path and its permissions"
        ) from error


def _folder(folder: Path, limits: Limits) -> Listing:
    found: list[tuple[Path, os.stat_result | str]] = []
    for path in _walk(folder):
        if len(found) >= limits.files:
            raise _too_many(limits)
        try:
            found.append((path, path.lstat()))
        except OSError:
            found.append((path, "unreadable"))
    return _checked(sorted(found, key=lambda one: one[0]), limits)


def _walk(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder, followlinks=False):
        for name in names:
            yield Path(place) / name
        for name in folders:
            # A link to a folder is no folder to go into, and is told of.
            if (Path(place) / name).is_symlink():
                yield Path(place) / name


def _checked(found: Sequence[tuple[Path, os.stat_result | str]], limits: Limits) -> Listing:
    files: list[SourceFile] = []
    skipped: Counter[str] = Counter()
    for path, about in found:
        if isinstance(about, str):
            skipped[about] += 1
        elif stat.S_ISLNK(about.st_mode):
            skipped["symlink"] += 1
        elif not stat.S_ISREG(about.st_mode):
            skipped["not-a-file"] += 1
        elif reason := _size_reason(about.st_size, limits):
            skipped[reason] += 1
        else:
            files.append(_Plain(path, about.st_size))
    return Listing(tuple(files), skipped)


def _archive(path: Path, limits: Limits) -> Listing:
    entries, directory = _table_of_contents(path)
    if entries > limits.files:
        raise _too_many(limits)
    if directory > limits.directory_bytes:
        raise _bomb(path, f"its table of contents alone has {directory} bytes")
    try:
        archive = zipfile.ZipFile(path)
    except (*BROKEN, zipfile.BadZipFile):
        raise DataError(
            f"cannot read {path} as a zip archive", "it is damaged or cut short", "copy it again, or unpack it"
        ) from None
    listed = [entry for entry in archive.infolist() if not entry.is_dir()]
    if len(listed) > limits.files:
        raise _too_many(limits)
    total = sum(entry.file_size for entry in listed)
    if total > limits.archive_bytes or (total > _RATIO_FROM and total > limits.ratio * path.stat().st_size):
        raise _bomb(path, f"it would unpack to {total} bytes")
    files: list[SourceFile] = []
    skipped: Counter[str] = Counter()
    for entry in sorted(listed, key=lambda one: (one.filename, one.header_offset)):
        if stat.S_ISLNK(entry.external_attr >> 16):
            skipped["symlink"] += 1
        elif entry.flag_bits & _ENCRYPTED:
            skipped["encrypted"] += 1
        elif entry.compress_type not in _UNPACKED_IN_PIECES:
            skipped["compression"] += 1
        elif reason := _size_reason(entry.file_size, limits):
            skipped[reason] += 1
        else:
            files.append(_Packed(archive, entry))
    return Listing(tuple(files), skipped)


def _table_of_contents(path: Path) -> tuple[int, int]:
    """Entries and bytes of an archive's table of contents, as its end says: zipfile reads all of it at once."""
    with path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        start = stream.seek(max(0, size - _LONGEST_COMMENT - _DIRECTORY_END.size - _LOCATOR_64.size))
        tail = stream.read()
        at = tail.rfind(_EMPTY_ZIP)
        if at < 0 or len(tail) - at < _DIRECTORY_END.size:
            return 0, 0  # zipfile will say so
        _, _, _, _, entries, directory, _, _ = _DIRECTORY_END.unpack_from(tail, at)
        if at >= _LOCATOR_64.size and tail[at - _LOCATOR_64.size :].startswith(b"PK\x06\x07"):
            stream.seek(min(start + at, _LOCATOR_64.unpack_from(tail, at - _LOCATOR_64.size)[2]))
            end = stream.read(_DIRECTORY_END_64.size)
            if len(end) == _DIRECTORY_END_64.size and end.startswith(b"PK\x06\x06"):
                fields = _DIRECTORY_END_64.unpack(end)
                entries, directory = max(entries, fields[7]), max(directory, fields[8])
    return entries, directory if directory != 0xFFFFFFFF else size


def _size_reason(size: int, limits: Limits) -> str:
    return "empty" if size == 0 else "too-large" if size > limits.file_bytes else ""


def _too_many(limits: Limits) -> DataError:
    return DataError(
        "there are too many files", f"at most {limits.files} are read at once", "import the folders below one by one"
    )


def _bomb(path: Path, cause: str) -> DataError:
    return DataError(f"{path} is not unpacked", cause, "unpack it yourself if you trust it, and import the folder")
