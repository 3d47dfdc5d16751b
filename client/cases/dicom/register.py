"""The register of a site: which series a case came from, with the original headers, for the site's eyes only.

::

    folder/
        register.sqlite  mode 0600, write-ahead log, every commit flushed

A case in the store has a number for a name and nothing but voxels and their place. Whatever identifies is here: the
UIDs of study, series and instances, and every header as it came, without pixels, so that a segmentation can go back to
the series that it was drawn on. The site's secret lies here as well; from it come the ids of cases, the UIDs of
de-identified objects and by how many days dates are moved. Whoever holds a copy of this file knows who is who.

An import enters its series first, then stores the case with its label, then marks the entry as complete. A crash in
between leaves an entry that is not complete, which the next import of the same series replaces.
"""

import hashlib
import hmac
import json
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from pydicom.dataset import Dataset

from wardround import files
from wardround.client.cases.dicom.headers import pack, unpack
from wardround.client.cases.volume import Volume
from wardround.errors import DataError, StorageError, UsageError

FOLDER = "dicom"
"""Name of the register's folder below that of the site."""
SCHEMA_VERSION = 1

_BUSY_TIMEOUT_S = 30
_SECRET_BYTES = 32
_LONGEST_SHIFT_DAYS = 3650

_SCHEMA = """
CREATE TABLE about (name TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE series (
    case_id TEXT PRIMARY KEY, series_uid TEXT NOT NULL, part TEXT NOT NULL, study_uid TEXT NOT NULL,
    frame_of_reference_uid TEXT NOT NULL, modality TEXT NOT NULL, grid TEXT NOT NULL, frames TEXT NOT NULL,
    resampled INTEGER NOT NULL, content TEXT NOT NULL, complete INTEGER NOT NULL, position INTEGER NOT NULL
);
CREATE UNIQUE INDEX series_by_uid ON series (series_uid, part);
CREATE TABLE instances (
    case_id TEXT NOT NULL REFERENCES series (case_id) ON DELETE CASCADE, position INTEGER NOT NULL,
    header BLOB NOT NULL, PRIMARY KEY (case_id, position)
);
CREATE TABLE uids (original TEXT PRIMARY KEY, replacement TEXT NOT NULL UNIQUE);
"""


@dataclass(frozen=True, eq=False)
class SourceSeries:
    """The series that a case came from.

    Parameters
    ----------
    case_id
        ``d`` and 16 hexadecimal digits.
    series_uid, study_uid, frame_of_reference_uid
        The originals; the last is empty where the headers name none.
    part
        Which volume of the series this is, as :mod:`~wardround.client.cases.dicom.series` split it; empty where the
        series is one volume.
    modality
        ``CT``, ``MR``, ``PT``.
    instances
        The original headers, file meta information included, without pixel data: one an instance, in the order in which
        slices first need them.
    frames
        Slice of the original stack, along the normal → (index into `instances`, frame from 0 in that instance).
    grid
        The grid of the case's volume (its array holds zeros): ``array[:, :, k].T`` lies on the rows and columns of
        frame ``k``, unless `resampled`.
    resampled
        Whether the volume was resampled, since the stack was tilted or uneven. It then has slices of its own, and
        `frames` are those of the original.
    """

    case_id: str
    series_uid: str
    study_uid: str
    frame_of_reference_uid: str
    part: str
    modality: str
    instances: tuple[Dataset, ...]
    frames: tuple[tuple[int, int], ...]
    grid: Volume
    resampled: bool = False


class Register:
    """The map between cases and original series of one site.

    Parameters
    ----------
    folder
        Made where absent, for this user only. A new register draws a new secret.

    Raises
    ------
    StorageError
        If the folder is not writable, the disk is full, or what lies there is damaged or of a newer version.

    Notes
    -----
    May be used by several threads, and one folder by several processes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        path = folder / "register.sqlite"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # SQLite gives its log the mode of the file itself.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as error:
            raise files.storage_error(error, folder) from error
        try:
            with self._translated():
                self._connection = sqlite3.connect(
                    path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
                )
                for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "secure_delete = ON"):
                    self._connection.execute(f"PRAGMA {pragma}").fetchall()
                self._secret = self._prepare()
        except BaseException:
            self.close()
            raise

    def case_id(self, series_uid: str, part: str = "") -> str:
        """The id of the case of a series: always the same at this site, and without the secret it says nothing."""
        return "d" + self._keyed(f"{series_uid}\n{part}" if part else series_uid).hex()[:16]

    def case_of_series(self, series_uid: str) -> str | None:
        """The first case of an imported series; None where it was not imported, or its import did not end."""
        return next(iter(self.cases_of_series(series_uid)), None)

    def cases_of_series(self, series_uid: str) -> tuple[str, ...]:
        """All cases of an imported series, one for each volume in it, in the order in which they were imported."""
        rows = self._read(
            "SELECT case_id FROM series WHERE series_uid = ? AND complete ORDER BY position", (series_uid,)
        )
        return tuple(row[0] for row in rows)

    def series_of(self, case_id: str) -> tuple[str, str] | None:
        """Study and series under which a viewer finds a case in an archive, voxel for voxel; None where it does not.

        A case that did not come from DICOM has no series, and one that was resampled has other voxels.
        """
        query = "SELECT study_uid, series_uid FROM series WHERE case_id = ? AND complete AND NOT resampled"
        return next(((row[0], row[1]) for row in self._read(query, (case_id,))), None)

    def cases(self) -> tuple[str, ...]:
        """Ids of all cases whose import has ended, in the order in which they were imported."""
        return tuple(row[0] for row in self._read("SELECT case_id FROM series WHERE complete ORDER BY position"))

    def source(self, case_id: str) -> SourceSeries:
        """Where a case came from, with its original headers.

        Raises
        ------
        DataError
            If the case did not come from DICOM, or its import did not end: what is entered may not be what is stored.
        StorageError
            If what was written is damaged.
        """
        # One transaction: another process may be writing this case's entry anew.
        with self._transaction(write=False) as connection:
            row = connection.execute(
                "SELECT series_uid, study_uid, frame_of_reference_uid, part, modality, frames, grid, resampled "
                "FROM series WHERE case_id = ? AND complete",
                (case_id,),
            ).fetchone()
            headers = connection.execute(
                "SELECT header FROM instances WHERE case_id = ? ORDER BY position", (case_id,)
            ).fetchall()
        if row is None:
            raise DataError(
                f"case {case_id} is not in the register",
                "it did not come from DICOM, or its import did not end",
                "import its series, again if need be",
            )
        grid = json.loads(row[6])
        return SourceSeries(
            case_id=case_id,
            series_uid=row[0],
            study_uid=row[1],
            frame_of_reference_uid=row[2],
            part=row[3],
            modality=row[4],
            instances=tuple(unpack(header, self._folder) for (header,) in headers),
            frames=tuple((instance, frame) for instance, frame in json.loads(row[5])),
            grid=Volume(np.broadcast_to(np.uint8(0), grid["shape"]), np.array(grid["affine"])),
            resampled=bool(row[7]),
        )

    def enter(self, source: SourceSeries, content: str) -> bool:
        """Enter a series before its case is stored; entering the same again changes nothing.

        Parameters
        ----------
        content
            Digest of the voxels and their place: what makes two imports the same.

        Returns
        -------
        bool
            Whether its import had ended before, so that nothing is left to do here.

        Raises
        ------
        DataError
            If the same series was imported with other content.
        """
        headers = [pack(header) for header in source.instances]
        grid = json.dumps({"shape": source.grid.shape, "affine": source.grid.affine.tolist()})
        with self._transaction() as connection:
            old = connection.execute(
                "SELECT content, complete FROM series WHERE case_id = ?", (source.case_id,)
            ).fetchone()
            if old is not None and old[1]:
                if old[0] == content:
                    return True
                raise DataError(
                    f"the series of case {source.case_id} was imported before, with other images",
                    "images were added, are missing or were changed since then, or it is resampled in another way",
                    "import it as it was; a changed series needs a series UID of its own",
                )
            connection.execute("DELETE FROM series WHERE case_id = ?", (source.case_id,))
            connection.execute(
                "INSERT INTO series VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, "
                "(SELECT COALESCE(MAX(position), 0) + 1 FROM series))",
                (
                    source.case_id, source.series_uid, source.part, source.study_uid, source.frame_of_reference_uid,
                    source.modality, grid, json.dumps(source.frames), int(source.resampled), content,
                ),
            )  # fmt: skip
            connection.executemany(
                "INSERT INTO instances VALUES (?, ?, ?)",
                [(source.case_id, position, header) for position, header in enumerate(headers)],
            )
        return False

    def complete(self, case_id: str, content: str) -> None:
        """Note that the case of an entered series is in the store, with the content that was entered.

        Raises
        ------
        DataError
            If another process entered the series with other content meanwhile.
        """
        with self._transaction() as connection:
            done = connection.execute(
                "UPDATE series SET complete = 1 WHERE case_id = ? AND content = ?", (case_id, content)
            )
            if not done.rowcount:
                raise DataError(
                    f"the series of case {case_id} is being imported twice",
                    "another process imports it with other images",
                    "import it again when no other import runs",
                )

    def forget(self, case_id: str) -> bool:
        """Remove the entry of a case with all its headers; whether there was one. Remove the case itself first.

        The UIDs in de-identified copies that were made of it stay known: the copies are elsewhere already.
        """
        with self._transaction() as connection:
            found = connection.execute("DELETE FROM series WHERE case_id = ?", (case_id,)).rowcount > 0
        # The log still holds the pages as they were.
        with self._lock, self._translated():
            if self._connection is not None:
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return found

    def new_uid(self, uid: str) -> str:
        """What a UID is replaced by in de-identified objects: always the same at this site. It is written down here."""
        # A UUID in decimal below 2.25 (PS3.5, B.2), of version 8: its bits are ours.
        bits = int.from_bytes(self._keyed(f"uid:{uid}")[:16], "big")
        bits = bits & ~(0xF << 76) | 8 << 76
        bits = bits & ~(0x3 << 62) | 2 << 62
        replacement = f"2.25.{bits}"
        if self.original_uid(replacement) is None:
            with self._transaction() as connection:
                connection.execute("INSERT OR IGNORE INTO uids VALUES (?, ?)", (uid, replacement))
        return replacement

    def original_uid(self, replacement: str) -> str | None:
        """The UID that `replacement` stands for; None where it stands for none."""
        rows = self._read("SELECT original FROM uids WHERE replacement = ?", (replacement,))
        return str(rows[0][0]) if rows else None

    def pseudonym(self, patient: str) -> str:
        """What a patient's ID is replaced by: ``p`` and 16 hexadecimal digits, always the same for that patient."""
        return "p" + self._keyed(f"patient:{patient}").hex()[:16]

    def date_shift(self, patient: str) -> int:
        """By how many days the dates of one patient are moved: 1 to 3650 back, always the same for that patient."""
        number = int.from_bytes(self._keyed(f"dates:{patient}")[:8], "big")
        return -(1 + number % _LONGEST_SHIFT_DAYS)

    def close(self) -> None:
        """Let go of the file; a second time does nothing."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _keyed(self, text: str) -> bytes:
        return hmac.new(self._secret, text.encode(), hashlib.sha256).digest()

    def _prepare(self) -> bytes:
        """Make the tables where there are none; the secret."""
        with self._transaction() as connection:
            if not connection.execute("SELECT 1 FROM sqlite_master").fetchone():
                for statement in _SCHEMA.split(";"):
                    connection.execute(statement)
                about = [("version", SCHEMA_VERSION), ("secret", secrets.token_bytes(_SECRET_BYTES))]
                connection.executemany("INSERT INTO about VALUES (?, ?)", about)
            found: dict[str, Any] = dict(connection.execute("SELECT name, value FROM about").fetchall())
        if found.get("version") != SCHEMA_VERSION or len(found.get("secret", b"")) != _SECRET_BYTES:
            raise StorageError(
                f"cannot use the register {self._folder}",
                f"it is not of version {SCHEMA_VERSION}: a newer Wardround made it, or it is damaged",
                "update Wardround, or restore the register from a backup",
            )
        return bytes(found["secret"])

    def _read(self, query: str, values: tuple[Any, ...] = ()) -> list[Any]:
        with self._transaction(write=False) as connection:
            return connection.execute(query, values).fetchall()

    @contextmanager
    def _transaction(self, *, write: bool = True) -> Iterator[sqlite3.Connection]:
        with self._lock:
            if self._connection is None:
                raise UsageError("the register is closed", "it was used after close()", "open it again")
            with self._translated():
                self._connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
                try:
                    yield self._connection
                    self._connection.execute("COMMIT")
                except BaseException:
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                    raise

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorname", "") or ""
            if "FULL" in code:
                cause, fix = "the disk is full or over quota", "free some space and run the same command again"
            elif "BUSY" in code or "LOCKED" in code:
                cause, fix = "another process holds it", "wait until the other process is done, or stop it"
            else:
                cause, fix = code or type(error).__name__, "check the disk, or restore the register from a backup"
            raise StorageError(f"cannot use the register {self._folder}", cause, fix) from error
