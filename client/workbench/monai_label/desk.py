"""What the routes of the protocol share: who asks, which case is meant, and the studio behind it all."""

import contextlib
import hashlib
import hmac
import json
import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from wardround import files
from wardround.client.cases import nifti
from wardround.client.cases.store import CaseStore
from wardround.client.workbench.access import Access
from wardround.client.workbench.monai_label.replies import Refused
from wardround.client.workbench.monai_label.sessions import Sessions
from wardround.client.workbench.studio import Studio
from wardround.client.workbench.views import CaseView
from wardround.errors import DataError

if TYPE_CHECKING:
    from wardround.client.cases.dicom.register import SourceSeries

POINTS = "wardround"
SCRIBBLES = "wardround_scribbles"
AUTOMATIC = "wardround_auto"
MODELS = (POINTS, SCRIBBLES, AUTOMATIC)
PARAMS_LIMIT = 8 << 20
UPLOAD_LIMIT = 1 << 30
TICKET_S = 600
_KEPT_IMAGES = 4
_IMAGE_ID = re.compile(r"[^\x00-\x1f\x7f]{1,256}")


class SeriesRegister(Protocol):
    """Which case came from which DICOM series."""

    def case_of_series(self, uid: str) -> str | None:
        """The case of a SeriesInstanceUID."""

    def series_of(self, case_id: str) -> tuple[str, str] | None:
        """Study and series under which a viewer finds a case, voxel for voxel; None where it does not."""

    def source(self, case_id: str) -> "SourceSeries":
        """The series of a case with its headers; DataError where there is none."""


@dataclass(eq=False)
class Desk:
    """What every route works with.

    Parameters
    ----------
    studio, store
        Of the site.
    access
        Who may do what.
    sessions
        Images that belong to no case.
    secret
        With which names that viewers give to their images are turned into case ids.
    register
        Of DICOM series, if the site has one.
    clock
        Seconds since 1970.
    identified
        Whether those who are signed in may read in the archive whose images these are: where OHIF is served.
    """

    studio: Studio
    store: CaseStore
    access: Access
    sessions: Sessions
    secret: bytes
    register: SeriesRegister | None = None
    clock: Callable[[], float] = time.time
    identified: bool = False
    _files: OrderedDict[str, bytes] = field(init=False, default_factory=OrderedDict)
    _lock: threading.Lock = field(init=False, default_factory=threading.Lock)

    def upload_id(self, name: str) -> str:
        """The id of a case that a viewer called `name`, which may hold a patient's: the same for the same name."""
        return "u" + hmac.new(self.secret, f"upload\0{name}".encode(), hashlib.sha256).hexdigest()[:16]

    def case(self, image: str, user: str) -> CaseView:
        """The case that an image id means: ours, a SeriesInstanceUID, or what a viewer called the image that it sent.

        Raises
        ------
        Refused
            With 404, if it means none. A path on this machine never does.
        """
        for case_id in self._candidates(image):
            with contextlib.suppress(DataError):
                return self.studio.case(case_id, user)
        raise Refused(404, "there is no such image", "the id is none of a case, nor of a series that was imported")

    def ticketed(self, case_id: str) -> str:
        """An id of a case that is good for loading its image, without a token, for some minutes.

        3D Slicer's plug-in loads the image of its next sample by a bare address, which holds the id and nothing else,
        whatever it has signed in with.
        """
        expiry = f"{int(self.clock()) + TICKET_S:x}"
        return f"{case_id}~{expiry}~{self._signature(case_id, expiry)}"

    def ticket(self, image: str) -> tuple[str, bool] | None:
        """The case of an id that :meth:`ticketed` made, and whether it still opens the image; None for any other."""
        case_id, *rest = image.rsplit("~", 2)
        if len(rest) != 2 or not hmac.compare_digest(rest[1].encode(), self._signature(case_id, rest[0]).encode()):
            return None
        return case_id, self.clock() < int(rest[0], 16)

    def image_file(self, case_id: str) -> bytes:
        """The image of a case as ``.nii.gz``; equal for equal images."""
        with self._lock:
            if case_id in self._files:
                self._files.move_to_end(case_id)
                return self._files[case_id]
        data = nifti.encode(self.studio.image(case_id))
        with self._lock:
            self._files[case_id] = data
            while len(self._files) > _KEPT_IMAGES:
                self._files.popitem(last=False)
        return data

    def _signature(self, case_id: str, expiry: str) -> str:
        return hmac.new(self.secret, f"ticket\0{case_id}\0{expiry}".encode(), hashlib.sha256).hexdigest()

    def _candidates(self, image: str) -> tuple[str, ...]:
        known = self.ticket(image)
        if known is not None:
            return (known[0],)
        if not _IMAGE_ID.fullmatch(image):
            return ()
        series = self.register.case_of_series(image) if self.register is not None else None
        if self.register is not None and series is not None and self.register.series_of(series) is None:
            raise Refused(
                409,
                "the case has other voxels than its series",
                "the series was resampled when it was imported",
                "draw on it in the workbench's own page",
            )
        return image, *((series,) if series else ()), self.upload_id(image)


def params_of(text: str | None) -> dict[str, Any]:
    """The ``params`` of a request.

    Raises
    ------
    Refused
        With 400, if they are no JSON object.
    """
    if text and len(text) > PARAMS_LIMIT:
        raise Refused(413, "`params` is too large", f"it may have {PARAMS_LIMIT >> 20} MiB")
    try:
        found = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        raise Refused(400, "`params` is no JSON", "", "send a JSON object as text") from error
    if not isinstance(found, dict):
        raise Refused(400, "`params` is no JSON object", "", 'send a JSON object as text, such as `{"label": "…"}`')
    return found


def checked_model(model: str) -> str:
    """`model`, if there is such a one."""
    if model not in MODELS:
        raise Refused(404, "there is no such model", "", f"use {', '.join(MODELS)}")
    return model


def series_fields(register: SeriesRegister | None, case_id: str) -> Mapping[str, str]:
    """What OHIF needs to open a case: the two UIDs of its series, and nothing else of its header."""
    found = register.series_of(case_id) if register is not None else None
    return {} if found is None else {"StudyInstanceUID": found[0], "SeriesInstanceUID": found[1]}


def read_secret(path: Path) -> bytes:
    """The secret in a file that only the site can read; made where absent."""
    try:
        found = bytes.fromhex(path.read_text(encoding="ascii"))
    except FileNotFoundError:
        found = secrets.token_bytes(32)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        files.write_text(path, found.hex())
        path.chmod(0o600)
    return found
