"""A label that somebody accepted goes back to the archive, on the series that its case came from."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from wardround.client.cases.dicom.archives import Archive, read_password
from wardround.client.cases.dicom.register import Register
from wardround.client.cases.dicom.segmentation import Made, Origin, write_seg
from wardround.client.cases.store import CaseStore, DrawingRecord
from wardround.client.home import PacsSettings, SiteHome
from wardround.errors import DataError, UsageError

if TYPE_CHECKING:
    from highdicom.seg import Segmentation

_MADE: Mapping[str, Made] = {"proxy": "SEMIAUTOMATIC", "prediction": "SEMIAUTOMATIC", "whole": "MANUAL"}
"""A person guides or accepts what the model draws; a whole label is what another viewer's user answers for."""


def export_label(  # noqa: PLR0917 - what a label is, and where it goes
    home: SiteHome, store: CaseStore, register: Register, case_id: str, author: str, pacs: str | None = None
) -> Mapping[str, Any]:
    """Write a label as a segmentation and give it to an archive of site.toml.

    Parameters
    ----------
    pacs
        Name of the archive; None for the first.

    Returns
    -------
    Mapping
        ``case_id``, ``author``, ``archive`` (its name), ``segments`` and ``voxels``; no UID.

    Raises
    ------
    AuthRefused, ConnectionFailed
        If the archive does not accept the account, or cannot be reached.
    DataError
        If there is no such label, it does not count, its case did not come from DICOM, or the archive did not keep it.
    UsageError
        If site.toml names no such archive.
    """
    settings = archive_settings(home, pacs)
    segmentation = segmentation_of(home, store, register, case_id, author)
    archive = open_archive(home, settings)
    try:
        archive.store(segmentation)
    finally:
        archive.close()
    labels = store.label(case_id, author)
    return {
        "case_id": case_id,
        "author": author,
        "archive": settings.name,
        "segments": len(segmentation.SegmentSequence),
        "voxels": 0 if labels is None else int(np.count_nonzero(labels.array)),
    }


def segmentation_of(home: SiteHome, store: CaseStore, register: Register, case_id: str, author: str) -> "Segmentation":
    """The segmentation of a label that its author accepted and, where the site reviews, a reviewer approved.

    Raises
    ------
    DataError
        As :func:`export_label`.
    """
    record = exportable(home, store, case_id).get(author)
    labels = None if record is None else store.label(case_id, author)
    if record is None or labels is None:
        raise DataError(
            f"case {case_id} has no label of that author to export",
            "none was accepted" + (", or no reviewer has approved it" if home.workbench.review else ""),
            "accept it in the workbench",
        )
    origin = Origin(
        made=_MADE[record.source],
        author=author,
        model=record.model,
        round=record.round,
        when=datetime.fromisoformat(record.updated).astimezone(),
    )
    return write_seg(register.source(case_id), labels, home.workbench.labels, origin)


def exportable(home: SiteHome, store: CaseStore, case_id: str) -> dict[str, DrawingRecord]:
    """Whose labels of a case may leave for the archive: the accepted, or where the site reviews, the approved ones."""
    states = {"approved"} if home.workbench.review else {"accepted", "approved"}
    return {record.author: record for record in store.drawings(case_id) if record.state in states}


def archive_settings(home: SiteHome, name: str | None = None) -> PacsSettings:
    """An archive of site.toml: the one of that name, or the first.

    Raises
    ------
    UsageError
        If there is none.
    """
    found = [one for one in home.pacs if name in (None, one.name)]
    if not found:
        raise UsageError(
            "there is no such archive", "site.toml names no table [[pacs]] for it", "add it, or give another --pacs"
        )
    return found[0]


def open_archive(home: SiteHome, settings: PacsSettings) -> Archive:
    """Speak with an archive: by DICOMweb if it has an address for it, else by DIMSE."""
    if settings.dicomweb:
        from wardround.client.cases.dicom.pacs import Pacs

        certificate = home.keys / f"pacs-{settings.name}.crt"
        return Pacs(
            settings,
            read_password(home.pacs_password(settings.name)),
            certificate=certificate if certificate.exists() else None,
        )
    from wardround.client.cases.dicom.dimse import Dimse
    from wardround.client.cases.dicom.tls import make_contexts

    return Dimse(settings, tls=make_contexts(settings, home) if settings.dimse_tls else None)
