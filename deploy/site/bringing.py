"""`wardround site import` of DICOM: what is found, what is left out and why, and which cases came of it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from wardround.client.cases.dicom.headers import is_dicom
from wardround.client.home import SiteHome
from wardround.errors import DataError, SeriesRefused, UsageError

if TYPE_CHECKING:
    from wardround.client.cases.dicom.importing import Handling
    from wardround.client.cases.dicom.register import Register
    from wardround.client.cases.dicom.series import FoundVolume
    from wardround.client.cases.store import CaseStore, Role
    from wardround.client.cases.volume import Volume

_ARCHIVES = (b"PK\x03\x04", b"PK\x05\x06")

Told = Callable[[int, int], None]


def holds_dicom(source: Path) -> bool:
    """Whether `source` is taken as DICOM: a folder that is no data set, an archive, or a DICOM file."""
    if source.is_dir():
        return not (source / "dataset.json").exists()
    try:
        with source.open("rb") as stream:
            start = stream.read(132)
    except OSError:
        return False
    return start.startswith(_ARCHIVES) or is_dicom(start)


def import_dicom(
    home: SiteHome,
    source: Path,
    terminal: Console,
    *,
    role: "Role" = "stream",
    label: Path | None = None,
    uneven: "Handling" = "refuse",
    tilt: "Handling" = "refuse",
) -> None:
    """Take every volume of a folder, an archive or a file into the site's store.

    One volume that is refused does not keep the others out; at the end it is an error.

    Raises
    ------
    DataError
        If there is no volume, or one was refused; the others are then imported.
    UsageError
        If a label is given for more than one volume, or none for one to be tested on.
    """
    from wardround.client.cases.dicom.register import FOLDER, Register
    from wardround.client.cases.dicom.series import find_series
    from wardround.client.cases.store import CaseStore
    from wardround.client.intake import STORE

    if label is None and role == "test":
        raise UsageError("a case to be tested on needs a label", "none was given to compare with", "give --label")
    with _progress(terminal, "looking through files") as told:
        report = find_series(source, told=told)
    terminal.print(f"{len(report.volumes)} volumes in {report.files} files{_left_out(report.skipped)}")
    if not report.volumes:
        raise DataError(
            f"there is no volume in {source}", "nothing in it is a stack of CT, MR or PET images", "check the path"
        )
    if label is not None and len(report.volumes) > 1:
        raise UsageError(
            "--label is for one volume", f"{len(report.volumes)} were found", "import the folder of that series alone"
        )
    new = refused = 0
    with Register(home.site / FOLDER) as register, CaseStore(home.site / STORE) as store:
        for number, volume in enumerate(report.volumes, start=1):
            case_id = register.case_id(volume.series_uid, volume.part)
            known = case_id in register.cases()
            try:
                with _progress(terminal, f"volume {number} of {len(report.volumes)}") as told:
                    _import(store, register, volume, role, label, uneven, tilt, told)
            except SeriesRefused as error:
                refused += 1
                terminal.print(f"{case_id} was not imported: {error.reason}", markup=False)
                for part in (error.problem, error.cause, error.fix):
                    terminal.print(f"  {part}", markup=False)
                continue
            new += not known
            what = "known already" if known else f"{volume.modality or 'volume'} of {len(volume.frames)} slices"
            terminal.print(f"{case_id} {what}", markup=False)
    kind = "to be tested on" if role == "test" else "to learn from"
    terminal.print(f"{new} new of {len(report.volumes)} cases {kind}")
    if refused:
        raise DataError(
            f"{refused} of {len(report.volumes)} volumes were not imported",
            "the reasons stand above",
            "read there what helps; what could be imported was",
        )


def _import(  # noqa: PLR0917 - what import_dicom was told
    store: "CaseStore",
    register: "Register",
    volume: "FoundVolume",
    role: "Role",
    label: Path | None,
    uneven: "Handling",
    tilt: "Handling",
    told: Told,
) -> None:
    from wardround.client.arrivals import IMPORTED, REFERENCE
    from wardround.client.cases.dicom.importing import import_series, read_series
    from wardround.client.intake import add_label

    labels = None
    if label is not None:
        # Before anything is stored: a case to be tested on is never there without its label.
        image, _ = read_series(register, volume, uneven=uneven, tilt=tilt)
        labels = _label(label, image)
    case_id = import_series(store, register, volume, role, uneven=uneven, tilt=tilt, told=told)
    if labels is not None:
        add_label(store, case_id, labels, REFERENCE if role == "test" else IMPORTED)


def _label(path: Path, image: "Volume") -> "Volume":
    from wardround.client.cases.nifti import check_same_grid, read_labels

    labels = read_labels(path)
    check_same_grid(image, labels, str(path))
    return labels


def _left_out(skipped: Mapping[str, int]) -> str:
    from wardround.client.cases.dicom.series import REASONS

    told = ", ".join(f"{REASONS[reason]} ({count})" for reason, count in sorted(skipped.items()))
    return f"; left out: {told}" if told else ""


@contextmanager
def _progress(terminal: Console, what: str) -> Iterator[Told]:
    """A bar, where there is a terminal to show it on."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=terminal, transient=True, disable=not terminal.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
