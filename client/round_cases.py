"""What the rounds of a live site learn from: labels that were imported with the cases, and what people drew.

A person may draw on, or a reviewer change a verdict, at any time. A round that is asked for again must answer the same.
Before it learns, what counts of each of its cases is therefore copied beside what its run remembers::

    folder/drawn/round-00003/
        cases.json        the cases of round 3, and whether each has a drawing
        0000.npz          what was drawn on the first of them
        0000.nii.gz       the label that was accepted with it
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wardround.client.arrivals import IMPORTED
from wardround.client.cases.drawing_file import decode, encode
from wardround.client.cases.drawings import Drawing
from wardround.client.cases.nifti import check_classes, decode_labels
from wardround.client.cases.store import CaseStore
from wardround.client.cases.volume import Volume
from wardround.errors import DataError, StorageError
from wardround.files import new_folder, remove_folder
from wardround.strategies.plan import RoundPlan

KEPT = 2
"""Copies of so many rounds are kept: a site can repeat no earlier one, see :mod:`wardround.client.learning.state`."""

_CASES = "cases.json"
_FORMAT = 1
_LABELS_IN_MEMORY = 8


@dataclass(frozen=True)
class _Begun:
    """A round's cases: those that were asked for, and the files of those that have anything to learn from."""

    folder: Path
    asked: tuple[str, ...]
    files: dict[str, str | None]


class RoundCases:
    """The cases of one round after the other, as people had drawn them when it began. One thread uses it.

    Parameters
    ----------
    store
        Of the site.
    review
        Whether a drawing counts only if a reviewer approved it.
    """

    def __init__(self, store: CaseStore, review: bool = False) -> None:
        self._store = store
        self._review = review
        self._begun = _Begun(Path(), (), {})
        self._labels: dict[str, Volume] = {}

    def waiting(self) -> list[str]:
        """Ids of all cases that a round may learn from, in the order in which they came."""
        known = self._store.labelled(IMPORTED) | set(self._store.counting(self._review))
        return [case_id for case_id in self._store.cases("stream") if case_id in known]

    def begin(self, folder: Path, round_: int, cases: Sequence[str]) -> list[str]:
        """Begin a round, or begin it again as it was.

        Parameters
        ----------
        folder
            Of the run.
        cases
            Ids of those that the round takes.

        Returns
        -------
        list of str
            Those of `cases` that have something to learn from. A drawing may have been withdrawn since it counted, and
            a case removed from the store: a round that is begun again does without it.

        Raises
        ------
        StorageError
            If the disk is full or not writable, or what was kept for the round is damaged.
        """
        place = folder / "drawn" / f"round-{round_:05d}"
        begun = _read(place) if place.exists() else None
        if begun is not None and not self._is_of(begun, cases):
            remove_folder(place)  # The round had not begun to learn when its cases went to another one.
            begun = None
        if begun is None:
            self._keep(place, cases)
            begun = _read(place)
        for path in sorted(place.parent.glob("round-*"))[:-KEPT]:
            if path != place:
                remove_folder(path)
        self._begun = begun
        self._labels.clear()
        there = frozenset(self._store.cases("stream"))
        return [case_id for case_id in begun.files if case_id in there]

    def drawing(self, case_id: str, plan: RoundPlan) -> Drawing | None:
        """What to live through again on a case of this round; None where its label answers what the plan asks.

        The label answers where it came from elsewhere, as an imported or a whole one, where nothing was drawn, and
        where the plan learns from dense labels.
        """
        file = self._begun.files[case_id]
        if file is None or plan.supervision == "dense":
            return None
        drawing = decode(_bytes(self._begun.folder / f"{file}.npz"))
        return drawing if drawing.source != "whole" and drawing.in_groups(1) else None

    def label(self, case_id: str) -> Volume:
        """The label that answers for a case of this round.

        Raises
        ------
        DataError
            If there is none.
        StorageError
            If it cannot be read.
        """
        if case_id not in self._labels:
            if len(self._labels) == _LABELS_IN_MEMORY:
                del self._labels[next(iter(self._labels))]
            self._labels[case_id] = self._read_label(case_id)
        return self._labels[case_id]

    def check(self, case_id: str, plan: RoundPlan) -> None:
        """Make sure that the plan knows all structures of a case of this round.

        Whole labels are looked at as a whole, and not as they are asked for: whether a round fails must not depend on
        which slices these are.

        Raises
        ------
        LabelError
            If it does not.
        """
        drawing = self.drawing(case_id, plan)
        if drawing is not None:
            highest = Volume(np.full((1, 1, 1), drawing.classes - 1, np.uint8), np.eye(4))
            check_classes(highest, plan.labels, f"what was drawn on case {case_id}")
            return
        whose = "imported" if self._begun.files[case_id] is None else "accepted"
        check_classes(self.label(case_id), plan.labels, f"the {whose} label of case {case_id}")

    def _is_of(self, begun: _Begun, cases: Sequence[str]) -> bool:
        """Whether `begun` was made for these cases, or for these and some that were removed since."""
        if tuple(cases) in (begun.asked, tuple(begun.files)):
            return True
        there = frozenset(self._store.cases("stream"))
        return any(tuple(cases) == tuple(one for one in of if one in there) for of in (begun.asked, tuple(begun.files)))

    def _read_label(self, case_id: str) -> Volume:
        file = self._begun.files.get(case_id)
        if file is not None:
            path = self._begun.folder / f"{file}.nii.gz"
            return decode_labels(_bytes(path), path)
        label = self._store.label(case_id, IMPORTED)
        if label is None:
            raise DataError("a case has no imported label", "it was imported without one", "import its label")
        return label

    def _keep(self, place: Path, cases: Sequence[str]) -> None:
        """Copy what counts of the cases, all of it or nothing."""
        counting = self._store.counting(self._review)
        imported = self._store.labelled(IMPORTED)
        files: dict[str, str | None] = {}
        with new_folder(place) as folder:
            for number, case_id in enumerate(cases):
                author = counting.get(case_id)
                # Its author may have begun to draw on it, or accepted it anew, since it was counted.
                settled = None if author is None else self._store.settled(case_id, author)
                if settled is not None and (settled[0].state == "approved" or not self._review):
                    drawing, label = settled
                    files[case_id] = name = f"{number:04d}"
                    (folder / f"{name}.npz").write_bytes(encode(drawing))
                    (folder / f"{name}.nii.gz").write_bytes(label)
                elif case_id in imported:
                    files[case_id] = None
            content = {"format": _FORMAT, "asked": list(cases), "cases": files}
            (folder / _CASES).write_text(json.dumps(content, indent=1), encoding="utf-8")


def _read(place: Path) -> _Begun:
    try:
        content = json.loads((place / _CASES).read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise ValueError("another format")
        return _Begun(place, tuple(content["asked"]), dict(content["cases"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(place, error) from error


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> StorageError:
    return StorageError(
        f"cannot read {path}",
        f"what was kept for a round is damaged or of a newer version ({type(error).__name__})",
        "bring it back from a copy, or start a new run",
    )
