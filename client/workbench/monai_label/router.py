"""The whole protocol as one router."""

from pathlib import Path

from fastapi import APIRouter

from wardround.client.cases.dicom.register import FOLDER, Register
from wardround.client.cases.store import CaseStore
from wardround.client.home import SiteHome
from wardround.client.workbench.access import Access
from wardround.client.workbench.monai_label.archive import Archive, archive_router
from wardround.client.workbench.monai_label.desk import Desk, SeriesRegister, read_secret
from wardround.client.workbench.monai_label.inference import inference_router
from wardround.client.workbench.monai_label.ohif import ohif_router
from wardround.client.workbench.monai_label.service import auth_router, info_router, log_lines, log_router
from wardround.client.workbench.monai_label.sessions import Sessions
from wardround.client.workbench.monai_label.tasks import idle_router, train_router
from wardround.client.workbench.monai_label.work import datastore_router, sample_router, session_router
from wardround.client.workbench.studio import Studio
from wardround.errors import DataError


def make_router(studio: Studio, store: CaseStore, home: SiteHome, access: Access) -> APIRouter:
    """The protocol of a site, as its settings say: see :func:`protocol_router`."""
    settings = home.workbench
    archive = None
    if home.pacs and settings.ohif:
        # OHIF knows one archive: the first. Without OHIF nobody needs a way to it, and there is none.
        pacs = home.pacs[0]
        archive = Archive(pacs.dicomweb, pacs.user, _password(home.pacs_password(pacs.name)) if pacs.user else "")
    ohif = home.path / settings.ohif if settings.ohif else None
    register = Register(home.site / FOLDER)
    return protocol_router(
        studio, store, access, folder=home.site / "viewers", register=register, archive=archive, ohif=ohif
    )


def protocol_router(
    studio: Studio,
    store: CaseStore,
    access: Access,
    *,
    folder: Path,
    register: SeriesRegister | None = None,
    archive: Archive | None = None,
    ohif: Path | None = None,
) -> APIRouter:
    """Everything that 3D Slicer's plug-in, OHIF and MONAI's own client call.

    Parameters
    ----------
    studio, store
        Of the site.
    access
        Who may come in, and as what.
    folder
        Where sessions and a secret of the protocol's own lie; only the site may read it.
    register
        Which case came from which DICOM series.
    archive
        Where OHIF's DICOMweb requests go.
    ohif
        Folder of a built OHIF.

    Returns
    -------
    APIRouter
        For the root of an application: MONAI Label's paths have no prefix.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    desk = Desk(
        studio,
        store,
        access,
        Sessions(folder / "sessions"),
        read_secret(folder / "secret"),
        register,
        identified=archive is not None,
    )
    router = APIRouter()
    for part in (
        auth_router(desk),
        info_router(desk),
        inference_router(desk),
        sample_router(desk),
        datastore_router(desk),
        session_router(desk),
        train_router(desk),
        idle_router(desk),
        log_router(desk, log_lines()),
        archive_router(desk, archive),
        ohif_router(desk, ohif),
    ):
        router.include_router(part)
    return router


def _password(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise DataError(
            f"cannot read {file}", "it holds the password of the archive", "put the password there, with mode 600"
        ) from error
