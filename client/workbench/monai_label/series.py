"""DICOM in and out of the protocol: a series that is sent for a session, and a mask as a DICOM segmentation."""

import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from wardround.client.cases.volume import Volume
from wardround.client.workbench.monai_label.desk import Desk
from wardround.client.workbench.monai_label.replies import Refused
from wardround.errors import DataError

ZIP = b"PK\x03\x04"
UNPACKED_LIMIT = 4 << 30
"""Bytes of an archive's files, unpacked."""
MOST_FILES = 4096
"""Of one series."""


def is_dicom(files: Sequence[bytes]) -> bool:
    """Whether files that were sent are a series: several, an archive, or one with DICOM's mark."""
    return len(files) > 1 or files[0].startswith(ZIP) or files[0][128:132] == b"DICM"


def read_dicom(files: Sequence[bytes], folder: Path) -> Volume:
    """The volume of one DICOM series.

    Parameters
    ----------
    files
        The files of a series, or one zip archive of them, or one file with all frames.
    folder
        Only the site can read it. The files lie there while they are read, under names of ours.

    Returns
    -------
    Volume
        float32, ``[column, row, slice]``, affine in LPS millimetres.

    Raises
    ------
    DataError
        If they hold no volume, or more than one.
    SeriesRefused
        If the slices make no even volume.
    """
    from wardround.client.cases.dicom.importing import read_volume
    from wardround.client.cases.dicom.kinds import REASONS
    from wardround.client.cases.dicom.series import find_series
    from wardround.client.cases.dicom.sources import Limits

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="series-", dir=folder) as name:
        for number, data in enumerate(files):
            (Path(name) / str(number)).write_bytes(data)
        source = Path(name) / "0" if len(files) == 1 else Path(name)
        report = find_series(source, Limits(files=MOST_FILES, file_bytes=1 << 30, archive_bytes=UNPACKED_LIMIT))
        if len(report.volumes) != 1:
            skipped = "; ".join(f"{count} {REASONS[reason]}" for reason, count in report.skipped.items())
            raise DataError(
                f"a session takes one volume, and {len(report.volumes)} were sent",
                skipped or "there are several series, or a series of several volumes",
                "send the files of one series, or a zip archive of them",
            )
        return read_volume(report.volumes[0])


def check_series(desk: Desk, case_id: str | None) -> None:
    """Refuse what cannot be answered with a DICOM segmentation, before anything is computed."""
    if desk.register is None or not desk.identified:
        raise Refused(
            409,
            "no DICOM segmentation is given here",
            "it says who the patient is, and this site opens its archive to no viewer",
            "set `ohif` and [[pacs]] in site.toml, or ask for `output=image`",
        )
    try:
        if case_id is not None:
            desk.register.source(case_id)
            return
    except DataError:
        pass
    raise Refused(409, "there is no series to segment", "the image did not come from DICOM", "ask for `output=image`")


def segmentation(desk: Desk, case_id: str, labels: Volume, names: Sequence[str], author: str, *, drawn: bool) -> bytes:
    """The bytes of a DICOM segmentation of a case's own series.

    Parameters
    ----------
    labels
        On the grid of the case.
    names
        Of labels 1, 2, …
    author
        Who asked; named as the author only where a person has drawn.
    drawn
        Whether a person has drawn on it; else it is the model's alone.
    """
    from wardround.client.cases.dicom.segmentation import Origin, encoded, write_seg

    assert desk.register is not None, "it was checked"
    progress = desk.studio.progress(author)
    origin = Origin(
        made="SEMIAUTOMATIC" if drawn else "AUTOMATIC",
        author=author if drawn else "",
        model=progress.model,
        round=progress.round,
        when=datetime.fromtimestamp(int(time.time()), UTC).astimezone(),
    )
    return encoded(write_seg(desk.register.source(case_id), labels, names, origin))
