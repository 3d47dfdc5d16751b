"""The case store: a site's images and labels, safe against crashes, damage and a second process.

::

    folder/
        store.sqlite     one row a case, one row a label (SQLite in write-ahead mode, every commit flushed)
        store.lock       held shared while the store is open, exclusively while it is repaired
        volumes/         one .nii.gz a row, under a name that is used once

The order of every change is: the new file, flushed; then the row that names it; then the old file goes. A row
therefore always names a whole file, and a crash at any instruction leaves at most files that no row names. Whoever
opens the store and is alone removes these. Several processes may have one store open, on a local disk: neither SQLite's
write-ahead log nor the lock is dependable on network file systems.
"""

import fcntl
import hashlib
import json
import logging
import math
import os
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple, Self, cast, get_args

import numpy as np
import sqlalchemy as sa
from sqlalchemy.exc import DatabaseError, SQLAlchemyError

from wardround import files
from wardround.client.cases.nifti import MAX_LABEL, check_same_grid, decode_image, decode_labels, encode
from wardround.client.cases.volume import Volume
from wardround.errors import DataError, StorageError, UsageError

logger = logging.getLogger(__name__)

Role = Literal["stream", "test"]

SCHEMA_VERSION = 1
BUSY_TIMEOUT_S = 30

_VOLUMES = "volumes"

_metadata = sa.MetaData()

_cases = sa.Table(
    "cases",
    _metadata,
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("id", sa.String, nullable=False, unique=True),
    sa.Column("role", sa.String, nullable=False),
    sa.Column("grid", sa.String, nullable=False),  # JSON: shape and affine, which NIfTI would round to 32 bits
    sa.Column("content", sa.String, nullable=False),  # digest of voxels and grid, whatever the compression
    sa.Column("file", sa.String, nullable=False, unique=True),
    sa.Column("sha256", sa.String, nullable=False),
)

_labels = sa.Table(
    "labels",
    _metadata,
    sa.Column("case_id", sa.ForeignKey("cases.id"), primary_key=True),
    sa.Column("author", sa.String, primary_key=True),
    sa.Column("round", sa.Integer, nullable=False),
    sa.Column("effort", sa.Float, nullable=False),
    sa.Column("file", sa.String, nullable=False, unique=True),
    sa.Column("sha256", sa.String, nullable=False),
)


@dataclass(frozen=True)
class LabelRecord:
    """What is known of a stored label besides its voxels.

    Parameters
    ----------
    case_id, author
        Whose label of which case.
    round
        The federation's round in which it was accepted, 0 or above.
    effort
        What it cost to draw, in contour pixels, 0 or above; 0 for a label that came with the case.
    """

    case_id: str
    author: str
    round: int
    effort: float


class _CaseRow(NamedTuple):
    grid: str
    file: str
    sha256: str


class CaseStore:
    """The cases and labels of one site.

    Parameters
    ----------
    folder
        Made where absent. On opening, the remains of a crash are removed if no other process has the store open.

    Raises
    ------
    StorageError
        If the folder is not writable, the disk is full, or what lies there is damaged or of a newer version.

    Notes
    -----
    A store may be used by several threads, and one folder by several processes. It must be opened after a fork, not
    before: SQLite connections do not survive one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._volumes = folder / _VOLUMES
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._volumes.mkdir(mode=0o700, exist_ok=True)
            self._lock: int | None = os.open(folder / "store.lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise files.storage_error(error, folder) from error
        self._engine = _make_engine(folder / "store.sqlite")
        self._writer = self._engine.execution_options(writes=True)
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def add_case(self, case_id: str, volume: Volume, role: Role = "stream") -> None:
        """Store the image of a case, durably; adding the same content again changes nothing.

        Parameters
        ----------
        case_id
            Not empty.
        volume
            Shape ``(I, J, K)``, finite intensities, stored as float32.
        role
            ``stream`` for a case to learn from, ``test`` for one to be tested on.

        Raises
        ------
        DataError
            If other content, or the same in another role, is stored under this id, or the intensities are not finite.
        StorageError
            If the disk is full or not writable; the store is then as it was.
        """
        if not case_id:
            raise UsageError("a case needs an id", "an empty one was given", "name the case")
        if role not in get_args(Role):
            raise UsageError(f"{role} is no role of a case", "a case is `stream` or `test`", "give one of the two")
        if not np.isfinite(image := volume.array.astype(np.float32)).all():
            raise DataError(
                f"case {case_id} holds voxels that are NaN or infinite",
                "a processing step divided by zero, or the values exceed 32-bit floats",
                "repair the image, or leave this case out",
            )
        volume = volume.with_array(image)
        content = _digest(volume)
        with self._reading() as connection:
            if self._is_stored(connection, case_id, role, content):
                return
        with self._new_file("image", volume) as (file, sha256), self._writing() as connection:
            # Another process may have added the case while the file was being written.
            if not self._is_stored(connection, case_id, role, content):
                values = {"id": case_id, "role": role, "grid": _grid_to_json(volume), "content": content}
                connection.execute(_cases.insert().values(**values, file=file, sha256=sha256))

    def cases(self, role: Role | None = None) -> tuple[str, ...]:
        """Ids of the stored cases, or of those in one role, in the order in which they were added."""
        query = sa.select(_cases.c.id).order_by(_cases.c.position)
        if role is not None:
            query = query.where(_cases.c.role == role)
        with self._reading() as connection:
            return tuple(connection.scalars(query))

    def labelled(self, author: str) -> frozenset[str]:
        """Ids of the cases of which `author` has saved a label."""
        with self._reading() as connection:
            return frozenset(connection.scalars(sa.select(_labels.c.case_id).where(_labels.c.author == author)))

    def image(self, case_id: str) -> Volume:
        """The image of a case: float32, on the very grid it was added with.

        Raises
        ------
        DataError
            If there is no such case.
        StorageError
            If the file is missing or is not what was written.
        """
        row = self._case_row(case_id)
        data = self._verified(row.file, row.sha256)
        if data is None:
            raise self._damaged(row.file, "it is gone")
        return _on_grid(row.grid, decode_image(data, self._volumes / row.file))

    def save_label(self, case_id: str, labels: Volume, author: str, round: int, effort: float) -> None:
        """Store an author's label of a case in place of the same author's earlier one, atomically and durably.

        Parameters
        ----------
        labels
            On the grid of the case's image; integers 0 … 254, stored as uint8.
        author
            Not empty. Labels of different authors do not touch each other.
        round, effort
            As in :class:`LabelRecord`.

        Raises
        ------
        DataError
            If there is no such case or the values are no labels.
        GeometryError
            If the label is not on the image's grid.
        StorageError
            If the disk is full or not writable; the earlier label is then still there.
        """
        if not author or round < 0 or not (effort >= 0 and math.isfinite(effort)):
            raise UsageError(
                f"cannot store a label of author {author!r}, round {round}, effort {effort}",
                "an author has a name, and round and effort are 0 or above",
                "correct the call",
            )
        labels = _as_labels(labels, case_id)
        grid = _grid_from_json(self._case_row(case_id).grid)
        check_same_grid(grid, labels, f"the label of case {case_id}")
        mine = (_labels.c.case_id == case_id) & (_labels.c.author == author)
        with self._new_file("label", grid.with_array(labels.array)) as (file, sha256), self._writing() as connection:
            old = connection.scalar(sa.select(_labels.c.file).where(mine))
            connection.execute(_labels.delete().where(mine))
            values = {"case_id": case_id, "author": author, "round": round, "effort": effort}
            connection.execute(_labels.insert().values(**values, file=file, sha256=sha256))
        if old is not None:
            self._discard(old)

    def label(self, case_id: str, author: str) -> Volume | None:
        """An author's label of a case (uint8, on the image's grid); None where that author has saved none.

        Raises
        ------
        DataError
            If there is no such case.
        StorageError
            If the file is missing or is not what was written.
        """
        grid = self._case_row(case_id).grid
        query = sa.select(_labels).where((_labels.c.case_id == case_id) & (_labels.c.author == author))
        missing: str | None = None
        while True:
            with self._reading() as connection:
                row = connection.execute(query).one_or_none()
            if row is None:
                return None
            if row.file == missing:
                raise self._damaged(row.file, "it is gone")
            data = self._verified(row.file, row.sha256)
            if data is not None:
                return _on_grid(grid, decode_labels(data, self._volumes / row.file))
            # Another process may have replaced the label between the row and the file: then the row has changed.
            missing = row.file

    def labels(self, case_id: str) -> tuple[LabelRecord, ...]:
        """What is stored of the labels of a case, by author."""
        columns = (_labels.c.case_id, _labels.c.author, _labels.c.round, _labels.c.effort)
        query = sa.select(*columns).where(_labels.c.case_id == case_id).order_by(_labels.c.author)
        with self._reading() as connection:
            return tuple(LabelRecord(*row) for row in connection.execute(query))

    def close(self) -> None:
        """Let go of the store. Closing twice is allowed; any other use afterwards raises UsageError."""
        self._engine.dispose()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> None:
        """Take the shared lock; repair first if nobody else has the store open, and make the tables where absent."""
        lock = cast(int, self._lock)
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                fcntl.flock(lock, fcntl.LOCK_SH)
            else:
                self._create_tables()
                self._repair()
                # Not one step, so a third process may come between: it would find nothing left to repair.
                fcntl.flock(lock, fcntl.LOCK_SH)
            if self._version() == SCHEMA_VERSION:
                return
            # Whoever held the lock died before it had made the tables: take its place.
            fcntl.flock(lock, fcntl.LOCK_UN)

    def _version(self) -> int:
        with self._reading() as connection:
            version = int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())
        if version > SCHEMA_VERSION:
            raise StorageError(
                f"cannot open the case store {self._folder}",
                "it was written by a newer version of Wardround",
                "update Wardround",
            )
        return version

    def _create_tables(self) -> None:
        if self._version() == SCHEMA_VERSION:
            return
        with self._translated(), closing(self._engine.raw_connection()) as raw:
            raw.cursor().execute("PRAGMA journal_mode = WAL")  # kept in the file; not possible within a transaction
        with self._writing() as connection:
            _metadata.create_all(connection)
            connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _repair(self) -> None:
        with self._reading() as connection:
            named = set(connection.scalars(sa.union_all(sa.select(_cases.c.file), sa.select(_labels.c.file))))
        try:
            files.sweep(self._volumes)
            ours = [path for kind in ("image", "label") for path in self._volumes.glob(f"{kind}-*.nii.gz")]
            orphans = [path for path in ours if path.name not in named]
            for path in orphans:
                path.unlink()
        except OSError as error:
            raise files.storage_error(error, self._volumes) from error
        if orphans:
            logger.info("removed %d files that an interrupted change left in the case store", len(orphans))

    def _case_row(self, case_id: str) -> _CaseRow:
        query = sa.select(_cases.c.grid, _cases.c.file, _cases.c.sha256).where(_cases.c.id == case_id)
        with self._reading() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            raise DataError(
                f"there is no case {case_id} in {self._folder}", "it was never added", "add the case, or check its id"
            )
        return _CaseRow(*row)

    def _is_stored(self, connection: sa.Connection, case_id: str, role: Role, content: str) -> bool:
        query = sa.select(_cases.c.role, _cases.c.content).where(_cases.c.id == case_id)
        row = connection.execute(query).one_or_none()
        if row is None:
            return False
        if (row.role, row.content) == (role, content):
            return True
        raise DataError(
            f"case {case_id} is in {self._folder} already",
            "with another image" if row.content != content else f"as a case of the role {row.role}",
            "give the new case another id",
        )

    @contextmanager
    def _new_file(self, kind: str, volume: Volume) -> Iterator[tuple[str, str]]:
        """Write a volume; the block stores the row that names it. The file goes if no row names it in the end."""
        data = encode(volume)
        # Never a name used before: a reader that has the old row must not find the new file under it.
        file = f"{kind}-{uuid.uuid4().hex}.nii.gz"
        self._check_open()
        try:
            files.write_bytes(self._volumes / file, data)
            yield file, hashlib.sha256(data).hexdigest()
        finally:
            if not self._is_named(file):
                self._discard(file)

    def _is_named(self, file: str) -> bool:
        """Whether a row names `file`; yes where that cannot be found out, as the next opening will know."""
        either = sa.union_all(*(sa.select(table.c.file).where(table.c.file == file) for table in (_cases, _labels)))
        try:
            with self._reading() as connection:
                return connection.scalar(either) is not None
        except StorageError:
            return True

    def _discard(self, file: str) -> None:
        try:
            (self._volumes / file).unlink(missing_ok=True)
        except OSError:
            logger.warning("a file that is no longer needed could not be removed; the next opening will try again")

    def _verified(self, file: str, sha256: str) -> bytes | None:
        """The bytes of a stored file; None where it is gone."""
        try:
            data = (self._volumes / file).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._damaged(file, error.strerror or type(error).__name__) from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise self._damaged(file, "its checksum is not the one that was written")
        return data

    def _damaged(self, file: str, cause: str) -> StorageError:
        return StorageError(
            f"cannot read {self._volumes / file}",
            cause,
            "check the disk, restore this file from a backup, or import the case into a new store",
        )

    def _check_open(self) -> None:
        if self._lock is None:
            raise UsageError("the case store is closed", "it was used after close()", "open it again")

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        self._check_open()
        with self._translated(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        """A transaction that holds SQLite's write lock from its start, so that what it reads stays true."""
        self._check_open()
        with self._translated(), self._writer.begin() as connection:
            yield connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            cause = str(error.orig) if isinstance(error, DatabaseError) else type(error).__name__
            if "full" in cause:
                fix = "free some space and run the same command again"
            elif "locked" in cause:
                fix = "wait until the other process is done, or stop it"
            else:
                fix = "check the disk, or restore the store from a backup"
            raise StorageError(f"cannot use the case store {self._folder}", cause, fix) from error


def _make_engine(path: Path) -> sa.Engine:
    # The driver must not open transactions of its own: it would begin them without the write lock.
    engine = sa.create_engine(
        sa.URL.create("sqlite", database=str(path)),
        connect_args={"timeout": BUSY_TIMEOUT_S, "isolation_level": None},
    )

    @sa.event.listens_for(engine, "connect")
    def configure(connection: sa.engine.interfaces.DBAPIConnection, _: object) -> None:
        cursor = connection.cursor()
        for pragma in ("synchronous = FULL", "foreign_keys = ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _as_labels(labels: Volume, case_id: str) -> Volume:
    array = labels.array
    if array.dtype.kind not in "biu" or int(array.min()) < 0 or int(array.max()) > MAX_LABEL:
        raise DataError(
            f"the label of case {case_id} does not hold integers of 0 … {MAX_LABEL}",
            "probabilities or an image were given in place of a label",
            "store the label values",
        )
    return labels.with_array(array.astype(np.uint8))


def _digest(volume: Volume) -> str:
    digest = hashlib.sha256(_grid_to_json(volume).encode())
    digest.update(np.ascontiguousarray(volume.array).tobytes())
    return digest.hexdigest()


def _grid_to_json(volume: Volume) -> str:
    # Adding 0 turns -0.0 into 0.0: the same grid must give the same text.
    return json.dumps({"shape": volume.shape, "affine": (volume.affine + 0.0).tolist()})


def _grid_from_json(text: str) -> Volume:
    grid = json.loads(text)
    return Volume(np.broadcast_to(np.uint8(0), grid["shape"]), np.array(grid["affine"], dtype=np.float64))


def _on_grid(grid: str, volume: Volume) -> Volume:
    return _grid_from_json(grid).with_array(volume.array)
