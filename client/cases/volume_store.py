"""The cases of a site, and labels of them: images and labels as files, a row for each.

The lower half of :mod:`wardround.client.cases.store`, which says what holds for all of it.
"""

import math
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self, get_args

import numpy as np
import sqlalchemy as sa

from wardround import files
from wardround.client.cases import rows
from wardround.client.cases.database import Database
from wardround.client.cases.nifti import MAX_LABEL, check_same_grid, decode_image, decode_labels
from wardround.client.cases.rows import LabelRecord, Role
from wardround.client.cases.volume import Volume
from wardround.client.cases.volume_files import VolumeFiles
from wardround.errors import DataError, StorageError, UsageError


class _CaseRow(NamedTuple):
    grid: str
    content: str
    file: str
    sha256: str


class VolumeStore:
    """Images and labels of one site.

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
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise files.storage_error(error, folder) from error
        self._files = VolumeFiles(folder / "volumes", self._is_named)
        self._database = Database(folder)
        try:
            self._database.open(self._repair)
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
        with self._database.reading() as connection:
            if self._is_stored(connection, case_id, role, content):
                return
        with self._new_file("image", volume) as (file, sha256), self._database.writing() as connection:
            # Another process may have added the case while the file was being written.
            if not self._is_stored(connection, case_id, role, content):
                values = {"id": case_id, "role": role, "grid": rows.grid_to_json(volume), "content": content}
                connection.execute(rows.cases.insert().values(**values, file=file, sha256=sha256))

    def cases(self, role: Role | None = None) -> tuple[str, ...]:
        """Ids of the stored cases, or of those in one role, in the order in which they were added."""
        query = sa.select(rows.cases.c.id).order_by(rows.cases.c.position)
        if role is not None:
            query = query.where(rows.cases.c.role == role)
        with self._database.reading() as connection:
            return tuple(connection.scalars(query))

    def labelled(self, author: str) -> frozenset[str]:
        """Ids of the cases of which `author` has saved a label."""
        with self._database.reading() as connection:
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
        data = self._files.verified(row.file, row.sha256)
        if data is None:
            self._case_row(case_id)  # Another process may have removed the case meanwhile.
            raise self._files.damaged(row.file, "it is gone")
        return rows.on_grid(row.grid, decode_image(data, self._files.folder / row.file))

    def grid(self, case_id: str) -> Volume:
        """Shape and affine of a case, with zeros for voxels; nothing is read but a row.

        Raises
        ------
        DataError
            If there is no such case.
        """
        return rows.grid_from_json(self._case_row(case_id).grid)

    def content(self, case_id: str) -> str:
        """SHA-256 of the voxels and the grid of a case, in hexadecimal: another one under the same id is told by it.

        Raises
        ------
        DataError
            If there is no such case.
        """
        return self._case_row(case_id).content

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
        with self._new_file("label", on_grid) as (file, sha256), self._database.writing() as connection:
            old = rows.replace_row(connection, rows.labels, **values, file=file, sha256=sha256)
        if old is not None:
            self._files.discard(old.file)

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
        return None if found is None else rows.on_grid(grid, decode_labels(found[1], self._files.folder / found[0]))

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
        with self._database.reading() as connection:
            return tuple(LabelRecord(*row) for row in connection.execute(query))

    def close(self) -> None:
        """Let go of the store. Closing twice is allowed; any other use afterwards raises UsageError."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _repair(self) -> None:
        with self._database.reading() as connection:
            self._files.keep_only(rows.files_in(connection))

    def _case_row(self, case_id: str) -> _CaseRow:
        query = sa.select(*(rows.cases.c[name] for name in _CaseRow._fields)).where(rows.cases.c.id == case_id)
        with self._database.reading() as connection:
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
            with self._database.reading() as connection:
                row = connection.execute(query).one_or_none()
            if row is None:
                return None
            if row.file == missing:
                raise self._files.damaged(row.file, "it is gone")
            data = self._files.verified(row.file, row.sha256)
            if data is not None:
                return row.file, data
            # Another process may have replaced the label between the row and the file: then the row has changed.
            missing = row.file

    def _new_file(self, kind: str, volume: Volume) -> AbstractContextManager[tuple[str, str]]:
        self._database.check_open()
        return self._files.new(kind, volume)

    def _is_named(self, file: str) -> bool:
        """Whether a row names `file`; yes where that cannot be found out, as the next opening will know."""
        either = sa.union_all(
            *(sa.select(table.c.file).where(table.c.file == file) for table in (rows.cases, rows.labels))
        )
        try:
            with self._database.reading() as connection:
                return connection.scalar(either) is not None
        except StorageError:
            return True


def _as_labels(labels: Volume, case_id: str) -> Volume:
    array = labels.array
    if array.dtype.kind not in "biu" or int(array.min()) < 0 or int(array.max()) > MAX_LABEL:
        raise DataError(
            f"the label of case {case_id} does not hold integers of 0 … {MAX_LABEL}",
            "probabilities or an image were given in place of a label",
            "store the label values",
        )
    return labels.with_array(array.astype(np.uint8))
