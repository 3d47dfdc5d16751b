"""`wardround site pull` and `wardround site export`: images come from an archive, accepted labels go back to it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from wardround import files
from wardround.client.home import SiteHome
from wardround.deploy.site.bringing import import_dicom, progress
from wardround.deploy.site.pulled import pulled_folder
from wardround.errors import DataError, UsageError

if TYPE_CHECKING:
    from wardround.client.cases.dicom.archives import Archive
    from wardround.client.cases.dicom.importing import Handling
    from wardround.client.cases.dicom.segments import Overlaps
    from wardround.client.cases.store import Role

_KEYS = {"patient": "patient_id", "accession": "accession", "modality": "modality", "date": "date"}


def search(home: SiteHome, terminal: Console, pacs: str | None, find: Sequence[str]) -> None:
    """List the series of an archive that match ``key=value``.

    Raises
    ------
    UsageError
        If there is no such archive, or a key is unknown.
    """
    from wardround.client.cases.dicom.archives import Wanted

    given: dict[str, str] = {}
    for one in find:
        key, sign, value = one.partition("=")
        if key not in _KEYS or not (sign and value):
            raise UsageError(
                "--find takes key=value", f"the keys are {', '.join(_KEYS)}", "for example --find modality=CT"
            )
        given[_KEYS[key]] = value
    with _opened(home, pacs) as archive:
        found = archive.find(Wanted(**given))
    table = Table("study", "series", "modality", "date", "images", box=None)
    for series in found:
        count = str(series.instances or "?")
        table.add_row(series.study_uid, series.series_uid, series.modality, series.date, count)
    terminal.print(table if found else "the archive has no such series")


def pull(  # noqa: PLR0917 - one parameter an option
    home: SiteHome,
    terminal: Console,
    pacs: str | None,
    series: str | None,
    study: str | None,
    role: "Role" = "stream",
    label: Path | None = None,
    uneven: "Handling" = "refuse",
    tilt: "Handling" = "refuse",
    overlap: "Overlaps" = "refuse",
) -> None:
    """Take a series, or all CT, MR and PET of a study, from an archive and import them.

    What came is kept in the site's folder as long as the import lasts, and never in part.

    Raises
    ------
    DataError
        If there is no such series, it did not come whole, or one was refused; others of a study are then imported.
    UsageError
        If a label is given for more than one series.
    """
    from wardround.client.cases.dicom.archives import MODALITIES, Wanted

    wanted = Wanted(study_uid=study or "", series_uid=series or "")
    with _opened(home, pacs) as archive:
        found = [one for one in archive.find(wanted) if series or one.modality in MODALITIES]
        if not found:
            raise DataError("the archive has no such series", "", "look for it with --find")
        if label is not None and len(found) > 1:
            raise UsageError("--label is for one series", f"{len(found)} were found", "pull that series alone")
        refused = 0
        for one in found:
            try:
                with pulled_folder(home) as folder:
                    with progress(terminal, "images") as told:
                        archive.pull(one, folder, told)
                    import_dicom(
                        home, folder, terminal, role=role, label=label, uneven=uneven, tilt=tilt, overlap=overlap
                    )
            except DataError as error:
                if len(found) == 1:
                    raise
                refused += 1
                for part in (error.problem, error.cause, error.fix):
                    terminal.print(f"  {part}", markup=False)
    if refused:
        raise DataError(
            f"{refused} of {len(found)} series were not imported", "the reasons stand above", "the others were"
        )


def export(home: SiteHome, terminal: Console, case_id: str, author: str | None, to: str | None) -> None:
    """Write an accepted label as DICOM SEG: to an archive of site.toml, or into a new file ``….dcm``.

    Raises
    ------
    DataError
        If there is no such label, or the archive did not keep it.
    UsageError
        If it is unclear whose label is meant, or where it shall go.
    """
    from wardround.client.cases.dicom.export import export_label, exportable, segmentation_of
    from wardround.client.cases.dicom.register import FOLDER, Register
    from wardround.client.cases.dicom.segmentation import encoded
    from wardround.client.cases.store import CaseStore
    from wardround.client.intake import STORE

    file = None if to is None or any(to == one.name for one in home.pacs) else Path(to)
    if file is not None and (file.suffix != ".dcm" or file.exists()):
        raise UsageError(
            f"cannot export to {to}", "it is no archive of site.toml, and no new file that ends in .dcm", "give another"
        )
    with Register(home.site / FOLDER) as register, CaseStore(home.site / STORE) as store:
        authors = sorted(exportable(home, store, case_id)) if author is None else [author]
        if len(authors) > 1:
            raise UsageError(
                f"case {case_id} has labels of {len(authors)} people", ", ".join(authors), "choose with --author"
            )
        chosen = authors[0] if authors else ""
        if file is not None:
            files.write_bytes(file, encoded(segmentation_of(home, store, register, case_id, chosen)))
            terminal.print(f"the segmentation is in {file}", markup=False)
            return
        done = export_label(home, store, register, case_id, chosen, to)
    terminal.print(
        f"{done['archive']} keeps the label of {done['author']}: {done['segments']} segments, {done['voxels']} voxels",
        markup=False,
    )


@contextmanager
def _opened(home: SiteHome, pacs: str | None) -> "Iterator[Archive]":
    from wardround.client.cases.dicom.export import archive_settings, open_archive

    archive = open_archive(home, archive_settings(home, pacs))
    try:
        yield archive
    finally:
        archive.close()
