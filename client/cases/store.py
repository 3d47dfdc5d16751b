"""The case store: a site's images, labels and drawings, safe against crashes, damage and a second process.

::

    folder/
        store.sqlite     one row a case, a label, a drawing (SQLite in write-ahead mode, every commit flushed)
        store.lock       held shared while the store is open, exclusively while it is repaired
        volumes/         one .nii.gz an image or label, under a name that is used once

The order of every change is: the new file, flushed; then the row that names it; then the old file goes. A row
therefore always names a whole file, and a crash at any instruction leaves at most files that no row names. Whoever
opens the store and is alone removes these. Several processes may have one store open, on a local disk: neither SQLite's
write-ahead log nor the lock is dependable on network file systems.

A drawing lies in its row. It and the label that its author accepted change together or not at all.
"""

import fcntl
import hashlib
import logging
import math
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self, cast, get_args

import numpy as np
import sqlalchemy as sa
from sqlalchemy.exc import DatabaseError, SQLAlchemyError

from wardround import files
from wardround.client.cases import rows
from wardround.client.cases.drawings import Drawing
from wardround.client.cases.nifti import MAX_LABEL, check_same_grid, decode_image, decode_labels, encode
from wardround.client.cases.rows import DrawingRecord, LabelRecord, Role, Verdict
from wardround.client.cases.volume import Volume
from wardround.errors import DataError, StorageError, UsageError

logger = logging.getLogger(__name__)

__all__ = ["CaseStore", "DrawingRecord", "LabelRecord", "Role", "Verdict"]

_VOLUMES = "volumes"


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
        self._engine = rows.make_engine(folder / "store.sqlite")
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
        content = rows.digest_of(volume)
        with self._reading() as connection:
            if self._is_stored(connection, case_id, role, content):
                return
        with self._new_file("image", volume) as (file, sha256), self._writing() as connection:
            # Another process may have added the case while the file was being written.
            if not self._is_stored(connection, case_id, role, content):
                values = {"id": case_id, "role": role, "grid": rows.grid_to_json(volume), "content": content}
                connection.execute(rows.cases.insert().values(**values, file=file, sha256=sha256))

    def cases(self, role: Role | None = None) -> tuple[str, ...]:
        """Ids of the stored cases, or of those in one role, in the order in which they were added."""
        query = sa.select(rows.cases.c.id).order_by(rows.cases.c.position)
        if role is not None:
            query = query.where(rows.cases.c.role == role)
        with self._reading() as connection:
            return tuple(connection.scalars(query))

    def labelled(self, author: str) -> frozenset[str]:
        """Ids of the cases of which `author` has saved a label."""
        with self._reading() as connection:
            return frozenset(connection.scalars(sa.select(rows.labels.c.case_id).where(rows.labels.c.author == author)))

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
        return rows.on_grid(row.grid, decode_image(data, self._volumes / row.file))

    def grid(self, case_id: str) -> Volume:
        """Shape and affine of a case, with zeros for voxels; nothing is read but a row.

        Raises
        ------
        DataError
            If there is no such case.
        """
        return rows.grid_from_json(self._case_row(case_id).grid)

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
        on_grid = self._checked_label(case_id, labels)
        values = {"case_id": case_id, "author": author, "round": round, "effort": effort}
        with self._new_file("label", on_grid) as (file, sha256), self._writing() as connection:
            old = rows.replace_row(connection, rows.labels, **values, file=file, sha256=sha256)
        if old is not None:
            self._discard(old.file)

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
        found = self._label_file(case_id, author)
        return None if found is None else rows.on_grid(grid, decode_labels(found[1], self._volumes / found[0]))

    def label_bytes(self, case_id: str, author: str) -> bytes | None:
        """An author's label of a case as it is stored, a .nii.gz file; None where that author has saved none.

        Raises
        ------
        DataError, StorageError
            As :meth:`label`.
        """
        self._case_row(case_id)
        found = self._label_file(case_id, author)
        return None if found is None else found[1]

    def labels(self, case_id: str) -> tuple[LabelRecord, ...]:
        """What is stored of the labels of a case, by author."""
        columns = (rows.labels.c.case_id, rows.labels.c.author, rows.labels.c.round, rows.labels.c.effort)
        query = sa.select(*columns).where(rows.labels.c.case_id == case_id).order_by(rows.labels.c.author)
        with self._reading() as connection:
            return tuple(LabelRecord(*row) for row in connection.execute(query))

    def save_drawing(self, drawing: Drawing, label: Volume | None = None) -> None:
        """Store a drawing in place of the same author's earlier one of that case, and its label: both, or neither.

        Parameters
        ----------
        drawing
            An ``open``, ``skipped`` or ``accepted`` one; a verdict is given by :meth:`review`.
        label
            Of an accepted drawing, and of no other; as in :meth:`save_label`. It is stored under the drawing's author.
            A label that was accepted before stays while its author draws on.

        Raises
        ------
        DataError
            If there is no such case, or the label holds no labels.
        GeometryError
            If the label is not on the image's grid.
        StorageError
            If the disk is full or not writable; the earlier drawing and label are then still there.
        UsageError
            If the drawing does not lie in the image, or label and state do not belong together.
        """
        accepted = drawing.state == "accepted"
        given = "without" if label is None else "with"
        if drawing.state in get_args(Verdict) or accepted != (label is not None):
            raise UsageError(
                f"a drawing that is {drawing.state} cannot be stored {given} a label",
                "an accepted one has a label, an open or skipped one has none, and a verdict is a reviewer's",
                "accept it with its label, or review it",
            )
        if accepted and drawing.source == "proxy" and not drawing.in_groups(1):
            raise UsageError(
                "there is nothing to accept",
                "nothing was drawn on this case yet, or all of it was erased",
                "draw a slice first",
            )
        grid = rows.grid_from_json(self._case_row(drawing.case_id).grid)
        if not drawing.fits(grid.shape):
            raise UsageError(
                "the drawing does not lie in the image of its case",
                "it was drawn on another case",
                "draw on the case that is stored",
            )
        row = rows.columns_of(drawing)
        with ExitStack() as stack:
            file = sha256 = old = None
            if label is not None:
                labels = self._checked_label(drawing.case_id, label)
                file, sha256 = stack.enter_context(self._new_file("label", labels))
            with self._writing() as connection:
                if accepted:
                    row["turn"] = 1 + (connection.scalar(sa.select(sa.func.max(rows.drawings.c.turn))) or 0)
                    values = {"round": drawing.round, "effort": drawing.effort_contour, "file": file, "sha256": sha256}
                    old = rows.replace_row(
                        connection, rows.labels, case_id=drawing.case_id, author=drawing.author, **values
                    )
                rows.replace_row(connection, rows.drawings, **row)
        if old is not None:
            self._discard(old.file)

    def drawing(self, case_id: str, author: str) -> Drawing | None:
        """What an author drew on a case; None where that author has drawn nothing.

        Raises
        ------
        DataError
            If there is no such case.
        StorageError
            If what is stored is damaged.
        """
        self._case_row(case_id)
        with self._reading() as connection:
            return rows.drawing_in(connection, case_id, author)

    def drawings(self, case_id: str | None = None) -> tuple[DrawingRecord, ...]:
        """What is known of all drawings, or of those of one case: cases in the order of :meth:`cases`, then authors."""
        query = sa.select(*rows.RECORD).join(rows.cases).order_by(rows.cases.c.position, rows.drawings.c.author)
        if case_id is not None:
            query = query.where(rows.drawings.c.case_id == case_id)
        with self._reading() as connection:
            return tuple(DrawingRecord(*row) for row in connection.execute(query))

    def review(
        self, case_id: str, author: str, *, by: str, verdict: Verdict, reason: str = "", seen: str | None = None
    ) -> None:
        """Approve or reject an accepted drawing; a verdict may be changed, and ends when its author draws on.

        Parameters
        ----------
        by
            Who says so; not empty.
        reason
            One of :data:`~wardround.client.cases.drawings.REASONS`.
        seen
            `updated` of the record that was looked at: a verdict on it is none on what was accepted since. None judges
            whatever is there.

        Raises
        ------
        UsageError
            If there is no such drawing, it is not accepted, or it has changed since it was looked at.
        """
        if not by or verdict not in get_args(Verdict):
            raise UsageError(
                "this is no review", "it names nobody, or no verdict", "say who approves or rejects the label"
            )
        with self._writing() as connection:
            rows.judge(connection, case_id, author, by, verdict, reason, seen)

    def counting(self, review: bool) -> Mapping[str, str]:
        """Whose drawing of a case a round learns from: case id → author, in the order of :meth:`cases`.

        An approved one goes before an accepted one, and what was accepted first before what was later. Cases to be
        tested on are not among them, nor are cases of which nobody's drawing counts.

        Parameters
        ----------
        review
            Whether only approved ones count.
        """
        with self._reading() as connection:
            return rows.counting(connection, review)

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
            if self._version():
                # A process of an earlier version may have the store open: a further table does not concern it.
                self._create_tables()
                return
            # Whoever held the lock died before it had made the tables: take its place.
            fcntl.flock(lock, fcntl.LOCK_UN)

    def _version(self) -> int:
        with self._reading() as connection:
            version = int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())
        if version > rows.SCHEMA_VERSION:
            raise StorageError(
                f"cannot open the case store {self._folder}",
                "it was written by a newer version of Wardround",
                "update Wardround",
            )
        return version

    def _create_tables(self) -> None:
        """Make the tables that are missing: all of them, or those that came after the version of this store."""
        if self._version() == rows.SCHEMA_VERSION:
            return
        with self._translated(), closing(self._engine.raw_connection()) as raw:
            raw.cursor().execute("PRAGMA journal_mode = WAL")  # kept in the file; not possible within a transaction
        with self._writing() as connection:
            rows.metadata.create_all(connection)
            connection.exec_driver_sql(f"PRAGMA user_version = {rows.SCHEMA_VERSION}")

    def _repair(self) -> None:
        with self._reading() as connection:
            named = set(connection.scalars(sa.union_all(sa.select(rows.cases.c.file), sa.select(rows.labels.c.file))))
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
        query = sa.select(rows.cases.c.grid, rows.cases.c.file, rows.cases.c.sha256).where(rows.cases.c.id == case_id)
        with self._reading() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            raise DataError(
                f"there is no case {case_id} in {self._folder}", "it was never added", "add the case, or check its id"
            )
        return _CaseRow(*row)

    def _is_stored(self, connection: sa.Connection, case_id: str, role: Role, content: str) -> bool:
        query = sa.select(rows.cases.c.role, rows.cases.c.content).where(rows.cases.c.id == case_id)
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

    def _checked_label(self, case_id: str, labels: Volume) -> Volume:
        labels = _as_labels(labels, case_id)
        grid = rows.grid_from_json(self._case_row(case_id).grid)
        check_same_grid(grid, labels, f"the label of case {case_id}")
        return grid.with_array(labels.array)

    def _label_file(self, case_id: str, author: str) -> tuple[str, bytes] | None:
        """Name and content of the file of a label; None where there is none."""
        query = sa.select(rows.labels).where(rows.mine(rows.labels, case_id, author))
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
                return row.file, data
            # Another process may have replaced the label between the row and the file: then the row has changed.
            missing = row.file

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
        either = sa.union_all(
            *(sa.select(table.c.file).where(table.c.file == file) for table in (rows.cases, rows.labels))
        )
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


def _as_labels(labels: Volume, case_id: str) -> Volume:
    array = labels.array
    if array.dtype.kind not in "biu" or int(array.min()) < 0 or int(array.max()) > MAX_LABEL:
        raise DataError(
            f"the label of case {case_id} does not hold integers of 0 … {MAX_LABEL}",
            "probabilities or an image were given in place of a label",
            "store the label values",
        )
    return labels.with_array(array.astype(np.uint8))
