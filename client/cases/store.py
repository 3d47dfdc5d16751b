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

from collections.abc import Mapping
from contextlib import ExitStack
from typing import get_args

import sqlalchemy as sa

from wardround.client.cases import rows
from wardround.client.cases.drawings import Drawing
from wardround.client.cases.rows import DrawingRecord, LabelRecord, Role, Verdict
from wardround.client.cases.volume import Volume
from wardround.client.cases.volume_store import VolumeStore
from wardround.errors import UsageError

__all__ = ["CaseStore", "DrawingRecord", "LabelRecord", "Role", "Verdict"]


class CaseStore(VolumeStore):
    """The cases, labels and drawings of one site.

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
            with self._database.writing() as connection:
                if accepted:
                    row["turn"] = 1 + (connection.scalar(sa.select(sa.func.max(rows.drawings.c.turn))) or 0)
                    values = {"round": drawing.round, "effort": drawing.effort_contour, "file": file, "sha256": sha256}
                    old = rows.replace_row(
                        connection, rows.labels, case_id=drawing.case_id, author=drawing.author, **values
                    )
                rows.replace_row(connection, rows.drawings, **row)
        if old is not None:
            self._files.discard(old.file)

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
        with self._database.reading() as connection:
            return rows.drawing_in(connection, case_id, author)

    def drawings(self, case_id: str | None = None) -> tuple[DrawingRecord, ...]:
        """What is known of all drawings, or of those of one case: cases in the order of :meth:`cases`, then authors."""
        query = sa.select(*rows.RECORD).join(rows.cases).order_by(rows.cases.c.position, rows.drawings.c.author)
        if case_id is not None:
            query = query.where(rows.drawings.c.case_id == case_id)
        with self._database.reading() as connection:
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
        with self._database.writing() as connection:
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
        with self._database.reading() as connection:
            return rows.counting(connection, review)

    def settled(self, case_id: str, author: str) -> tuple[Drawing, bytes] | None:
        """An author's accepted or approved drawing and the label that was accepted with it, as they are at one moment.

        Returns
        -------
        tuple or None
            The drawing and its label as :meth:`label_bytes` gives it; None where there is none that is accepted.

        Raises
        ------
        StorageError
            If what is stored is damaged.
        """
        missing: str | None = None
        while True:
            with self._database.reading() as connection:
                drawing = rows.drawing_in(connection, case_id, author)
                label = connection.execute(
                    sa.select(rows.labels).where(rows.mine(rows.labels, case_id, author))
                ).one_or_none()
            if drawing is None or label is None or drawing.state not in ("accepted", "approved"):
                return None
            data = self._files.verified(label.file, label.sha256)
            if data is not None:
                return drawing, data
            if label.file == missing:
                raise self._files.damaged(label.file, "it is gone")
            missing = label.file  # Its author may have accepted it anew meanwhile: then the row has changed.

    def remove(self, case_id: str) -> bool:
        """Remove a case with all that was drawn on it, durably; whether there was one.

        Raises
        ------
        StorageError
            If the disk is full or not writable; the store is then as it was.
        """
        with self._database.writing() as connection:
            gone = rows.remove_case(connection, case_id)
        for file in gone:
            self._files.discard(file)
        return bool(gone)
