"""Sessions of MONAI Label: an image that a viewer sends to have it segmented, and that never becomes a case.

An image lies in a folder that only the site can read, under a name of ours, until it expires, its owner removes it or
the workbench starts again. Whoever has not sent it does not get it.
"""

import shutil
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wardround import files
from wardround.client.cases import nifti
from wardround.client.cases.volume import Volume
from wardround.client.workbench.monai_label.replies import Refused

FILE = "image.nii.gz"
EXPIRY = 3600
"""Seconds without use after which an image goes, where a client asks for nothing else."""
LONGEST = 24 * 3600
MOST = 8
"""Sessions of one person; the one used longest ago makes room."""


@dataclass(frozen=True)
class Session:
    """An image that was sent.

    Parameters
    ----------
    id
        A random UUID.
    owner
        Who sent it.
    created, used
        Seconds since 1970.
    expiry
        Seconds after `used`.
    """

    id: str
    owner: str
    created: float
    used: float
    expiry: int

    def info(self) -> dict[str, Any]:
        """As MONAI Label describes it, without a path of the server and without the name of the file that was sent."""
        return {
            "name": self.id,
            "path": "",
            "image": FILE,
            "meta": {},
            "create_ts": int(self.created),
            "last_access_ts": int(self.used),
            "expiry": self.expiry,
        }


class Sessions:
    """All sessions of a workbench.

    Parameters
    ----------
    folder
        Emptied at once: what an earlier process kept belongs to nobody any more.
    clock
        Seconds since 1970.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._clock = clock
        self._lock = threading.Lock()
        self._sessions: dict[str, Session] = {}
        shutil.rmtree(folder, ignore_errors=True)

    @property
    def folder(self) -> Path:
        """Where images lie; only the site can read it."""
        return self._folder

    def create(self, owner: str, image: Volume, expiry: int = 0) -> Session:
        """Keep an image for its owner."""
        now = self._clock()
        session = Session(str(uuid.uuid4()), owner, now, now, min(expiry, LONGEST) if expiry > 0 else EXPIRY)
        folder = self._folder / session.id
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.mkdir(mode=0o700)
        except OSError as error:
            raise files.storage_error(error, folder) from error
        try:
            files.write_bytes(folder / FILE, nifti.encode(image))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        with self._lock:
            self._sessions[session.id] = session
            owned = sorted((one for one in self._sessions.values() if one.owner == owner), key=lambda one: one.used)
            for old in owned[:-MOST]:
                self._forget(old.id)
        return session

    def get(self, session_id: str, owner: str, *, touch: bool = True) -> Session:
        """A session of `owner`.

        Raises
        ------
        Refused
            With 404, if there is none, it has expired, or it is somebody else's.
        """
        now = self._clock()
        with self._lock:
            for old in [one.id for one in self._sessions.values() if one.used + one.expiry < now]:
                self._forget(old)
            session = self._sessions.get(session_id)
            if session is None or session.owner != owner:
                raise Refused(404, "there is no such session", "it has expired or was removed", "send the image again")
            if touch:
                session = self._sessions[session_id] = replace(session, used=now)
            return session

    def file(self, session: Session) -> bytes:
        """The image as it is kept, ``.nii.gz``."""
        try:
            return (self._folder / session.id / FILE).read_bytes()
        except FileNotFoundError as error:
            raise Refused(404, "there is no such session", "it has expired or was removed", "send it again") from error

    def image(self, session: Session) -> Volume:
        """The image: float32, affine in LPS millimetres."""
        return nifti.decode_image(self.file(session), Path(FILE))

    def remove(self, session_id: str, owner: str) -> Session:
        """End a session of `owner`, and return what it was."""
        session = self.get(session_id, owner)
        with self._lock:
            self._forget(session_id)
        return session

    def _forget(self, session_id: str) -> None:
        self._sessions.pop(session_id, None)
        shutil.rmtree(self._folder / session_id, ignore_errors=True)
