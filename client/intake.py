"""How cases come into a live site.

Cases are imported with or without a label. A label that comes with a case to be tested on is its reference, and nothing
is learnt from it; one that comes with any other case answers the questions of the loop, slice by slice, as long as no
person does.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wardround.client.arrivals import IMPORTED, REFERENCE
from wardround.client.cases.dataset import load_dataset
from wardround.client.cases.nifti import check_same_grid, read_image, read_labels
from wardround.client.cases.store import CaseStore, Role
from wardround.client.cases.volume import Volume
from wardround.client.home import SiteHome
from wardround.errors import DataError, UsageError
from wardround.files import write_text

STORE = "store"
"""Folder of the case store below that of the site."""
AUTHOR = "wardround"
"""Author of the labels that the loop accepts."""


@dataclass(frozen=True)
class NewCase:
    """The files of one case to import; `label` is None where it has none."""

    id: str
    image: Path
    label: Path | None


def make_live_site(home: SiteHome, name: str) -> None:
    """Write what makes the site's folder one; cases that are there stay."""
    home.site.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_text(home.site / "site.json", json.dumps({"name": name, "author": AUTHOR, "store": STORE}, indent=1))


def cases_of(data_set: Path, only: Sequence[str] = ()) -> list[NewCase]:
    """The cases of a data set, or those named in `only`, in that order.

    Raises
    ------
    DataError
        If it is no data set, or has no such case.
    """
    cases = load_dataset(data_set).cases
    if missing := [name for name in only if name not in cases]:
        raise DataError(f"{data_set} has no case {missing[0]}", "dataset.json does not name it", "check the id")
    return [NewCase(cases[name].id, cases[name].image, cases[name].label) for name in (only or cases)]


@dataclass(frozen=True)
class Imported:
    """What became of a case: whether anything was new, and how many classes (background included) its label needs."""

    new: bool
    classes: int


def import_case(store: CaseStore, case: NewCase, role: Role) -> Imported:
    """Take one case into the store, whole: image first, then its label; a second time changes nothing.

    Raises
    ------
    DataError
        If a file cannot be used, or another image is stored under this id.
    UsageError
        If a case to be tested on has no label.
    """
    if case.label is None and role == "test":
        raise UsageError(
            f"case {case.id} has no label", "a case to be tested on needs one to compare with", "give --label"
        )
    image = read_image(case.image)
    author = REFERENCE if role == "test" else IMPORTED
    known = case.id in store.cases()
    if case.label is None:
        store.add_case(case.id, image, role)
        return Imported(not known, 0)
    label = read_labels(case.label)
    check_same_grid(image, label, str(case.label))
    classes = int(label.array.max()) + 1
    store.add_case(case.id, image, role)
    return Imported(add_label(store, case.id, label, author), classes)


def add_label(store: CaseStore, case_id: str, label: Volume, author: str) -> bool:
    """Store the label that came with a case; whether it is new. One that is there is never replaced.

    Raises
    ------
    DataError
        If that author has another label of this case already.
    """
    if case_id in store.labelled(author):
        old = store.label(case_id, author)
        assert old is not None
        if (old.array == label.array).all():
            return False
        raise DataError(
            f"case {case_id} has another label already",
            "a round may have learnt from it, and could not be repeated if it changed",
            "import it under another id",
        )
    store.save_label(case_id, label, author=author, round=0, effort=0.0)
    return True
