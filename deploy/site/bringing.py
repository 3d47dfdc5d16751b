"""`wardround site import` of DICOM, and `deidentify`: what is found, what is left out and why, and what came of it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from wardround.client.cases.dicom.headers import is_dicom
from wardround.client.home import SiteHome
from wardround.errors import DataError, SeriesRefused, UsageError

if TYPE_CHECKING:
    from wardround.client.cases.dicom.importing import Handling
    from wardround.client.cases.dicom.register import Register
    from wardround.client.cases.dicom.segments import Overlaps
    from wardround.client.cases.dicom.series import FoundVolume
    from wardround.client.cases.store import CaseStore, Role
    from wardround.client.cases.volume import Volume

MOST_LABEL_BYTES = 2 << 30
_ARCHIVES = (b"PK\x03\x04", b"PK\x05\x06")

RETAINABLE: Mapping[str, str] = {
    "uids": "retain_uids",
    "device": "retain_device_identity",
    "institution": "retain_institution_identity",
    "patient": "retain_patient_characteristics",
}
"""What ``wardround site deidentify --retain`` takes → the option of the profile."""

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
    overlap: "Overlaps" = "refuse",
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
    from wardround.client.removal import finish_removal

    if label is None and role == "test":
        raise UsageError("a case to be tested on needs a label", "none was given to compare with", "give --label")
    with progress(terminal, "looking through files") as told:
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
        finish_removal(home, store)  # Before the same case comes anew, which must not be what is removed.
        for number, volume in enumerate(report.volumes, start=1):
            case_id = register.case_id(volume.series_uid, volume.part)
            known = case_id in register.cases()
            try:
                with progress(terminal, f"volume {number} of {len(report.volumes)}") as told:
                    labelled = _import(
                        store, register, volume, role, label, home.workbench.labels, uneven, tilt, overlap, told
                    )
            except DataError as error:
                refused += 1
                reason = error.reason if isinstance(error, SeriesRefused) else "not-usable"
                terminal.print(f"{case_id} was not imported: {reason}", markup=False)
                for part in (error.problem, error.cause, error.fix):
                    terminal.print(f"  {part}", markup=False)
                continue
            new += not known
            what = (
                "known already" + labelled * "; its label is new"
                if known
                else f"{volume.modality or 'volume'} of {len(volume.frames)} slices"
            )
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
    names: Sequence[str],
    uneven: "Handling",
    tilt: "Handling",
    overlap: "Overlaps",
    told: Told,
) -> bool:
    """Import one volume; whether a label was stored with it, or added to it."""
    from wardround.client.arrivals import IMPORTED, REFERENCE
    from wardround.client.cases.dicom.importing import import_series, read_series
    from wardround.client.intake import add_label

    labels = None
    if label is not None:
        # Before anything is stored: a case to be tested on is never there without its label.
        image, source = read_series(register, volume, uneven=uneven, tilt=tilt)
        labels = read_label(label, image, names, source.frame_of_reference_uid, overlap)
    new = []

    def add(case_id: str) -> None:
        if labels is not None:
            new.append(add_label(store, case_id, labels, REFERENCE if role == "test" else IMPORTED))

    import_series(store, register, volume, role, uneven=uneven, tilt=tilt, told=told, then=add)
    return any(new)


def read_label(
    path: Path,
    image: "Volume",
    names: Sequence[str] = (),
    frame_of_reference: str = "",
    overlap: "Overlaps" = "refuse",
) -> "Volume":
    """A label of an image: NIfTI on its grid, DICOM SEG, or an RT Structure Set.

    Parameters
    ----------
    names
        Of labels 1, 2, …; structures of DICOM that have these names become these labels.
    frame_of_reference
        UID of the image's; empty if unknown.
    overlap
        What becomes of a voxel in two structures of DICOM: refused, or the lowest or highest of their labels.

    Raises
    ------
    DataError
        If it cannot be read, or does not lie on the image.
    """
    from wardround.client.cases.dicom.headers import read_all
    from wardround.client.cases.dicom.rtstruct import STRUCTURE_SET, read_rtstruct
    from wardround.client.cases.dicom.segments import damaged, read_seg
    from wardround.client.cases.nifti import check_same_grid, read_labels

    if not path.is_file() or not holds_dicom(path):
        labels = read_labels(path)
        check_same_grid(image, labels, str(path))
        return labels
    if path.stat().st_size > MOST_LABEL_BYTES or (dataset := read_all(path.read_bytes())) is None:
        raise damaged()
    if dataset.get("SOPClassUID") == STRUCTURE_SET:
        return read_rtstruct(dataset, image, names=names, frame_of_reference=frame_of_reference, overlaps=overlap)
    return read_seg(dataset, image, names=names, frame_of_reference=frame_of_reference, overlaps=overlap)


def _left_out(skipped: Mapping[str, int]) -> str:
    from wardround.client.cases.dicom.kinds import REASONS

    told = ", ".join(f"{REASONS[reason]} ({count})" for reason, count in sorted(skipped.items()))
    return f"; left out: {told}" if told else ""


@contextmanager
def progress(terminal: Console, what: str) -> Iterator[Told]:
    """A bar, where there is a terminal to show it on."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=terminal, transient=True, disable=not terminal.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def copy_without_patient(
    home: SiteHome, source: Path, target: Path, terminal: Console, *, retain: Sequence[str], dates: str, words: bool
) -> None:
    """Write de-identified copies of the images of a folder, an archive or a file.

    Parameters
    ----------
    retain
        Some of :data:`RETAINABLE`.
    dates
        ``remove``, ``shift`` or ``keep``.
    words
        Whether descriptions are kept as far as they are words of imaging.

    Raises
    ------
    DataError
        If there is no volume in `source`, or a file of one cannot be copied.
    UsageError
        If `target` is not empty, or something cannot be retained.
    """
    from wardround.client.cases.dicom.copies import write_copies
    from wardround.client.cases.dicom.deidentify import Dates, Options
    from wardround.client.cases.dicom.register import FOLDER, Register
    from wardround.client.cases.dicom.series import find_series

    if unknown := [what for what in retain if what not in RETAINABLE]:
        raise UsageError(f"{unknown[0]} cannot be retained", f"one of {', '.join(RETAINABLE)} can", "give one of these")
    options = Options(
        **{RETAINABLE[what]: True for what in retain}, dates=cast("Dates", dates), clean_descriptors=words
    )
    with progress(terminal, "looking through files") as told:
        report = find_series(source, told=told)
    if not report.volumes:
        raise DataError(
            f"there is no volume in {source}", "nothing in it is a stack of CT, MR or PET images", "check the path"
        )
    with Register(home.site / FOLDER) as register, progress(terminal, "writing copies") as told:
        count = write_copies(report, target, options, register, told)
    terminal.print(f"{count} images of {len(report.volumes)} volumes copied{_left_out(report.skipped)}")
