"""DICOMweb: search an archive (QIDO-RS), take a series (WADO-RS), give it a segmentation (STOW-RS).

Requests go to the address in site.toml and nowhere else: no redirect is followed, no proxy or password of the
environment is used, an address in an answer is never called. TLS is verified, against ``keys/pacs-NAME.crt`` where that
is there.
"""

import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3
from dicomweb_client.api import DICOMwebClient
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset
from requests.adapters import HTTPAdapter

from wardround.client.cases.dicom.allowance import Allowance
from wardround.client.cases.dicom.archives import (
    Intake,
    PullLimits,
    RemoteSeries,
    Wanted,
    checked_uid,
    not_stored,
    remote_series,
    too_large,
)
from wardround.client.cases.dicom.headers import BROKEN, quiet
from wardround.client.cases.dicom.segmentation import encoded
from wardround.client.home import PacsSettings
from wardround.errors import AuthRefused, ConnectionFailed, DataError, UsageError, WardroundError

_PATIENCE_S = (10.0, 60.0)
_SMALL_ANSWER = 64 << 20
_PIECE = 1 << 16
_KINDS = ("application/dicom+json", "application/json", "multipart/related", "application/dicom")

# They write addresses, in which UIDs stand.
for _name in ("dicomweb_client", "requests", "urllib3"):
    logging.getLogger(_name).setLevel(logging.CRITICAL + 1)


class Pacs:
    """An archive that speaks DICOMweb.

    Parameters
    ----------
    settings
        With `dicomweb`.
    password
        Of `settings.user`.
    certificate
        PEM file of the authority that the archive's certificate comes from; None for those that every system knows.
    """

    def __init__(
        self,
        settings: PacsSettings,
        password: str = "",
        *,
        certificate: Path | None = None,
        limits: PullLimits | None = None,
    ) -> None:
        if not settings.dicomweb:
            raise UsageError(
                f"the archive {settings.name} has no DICOMweb", "site.toml names no `dicomweb` for it", "add it"
            )
        root = settings.dicomweb.rstrip("/")
        self._limits = limits or PullLimits()
        self._session = _Session(root)
        self._session.verify = True if certificate is None else str(certificate)
        if settings.user:
            self._session.auth = (settings.user, password)
        headers = {"Accept": "application/dicom+json", "Accept-Encoding": "identity"}
        self._client = DICOMwebClient(root, session=self._session, headers=headers, timeout=_PATIENCE_S)
        self._client.set_http_retry_params(retry=False)

    def find(self, wanted: Wanted) -> tuple[RemoteSeries, ...]:
        """See :class:`~wardround.client.cases.dicom.archives.Archive`.

        Raises
        ------
        AuthRefused, ConnectionFailed
            If the archive does not accept the account, or cannot be reached.
        DataError
            If its answer cannot be used.
        """
        fields = ["StudyDate", "NumberOfSeriesRelatedInstances", "Modality", "StudyInstanceUID"]
        with self._asking(_SMALL_ANSWER):
            answers = self._client.search_for_series(
                search_filters=wanted.filters, fields=fields, limit=self._limits.answers
            )
            found = [remote_series(Dataset.from_json(answer)) for answer in answers[: self._limits.answers]]
        # An archive that does not know a filter may leave it out.
        asked = [("study_uid", wanted.study_uid), ("series_uid", wanted.series_uid), ("modality", wanted.modality)]
        return tuple(
            one for one in found if one and all(not value or getattr(one, name) == value for name, value in asked)
        )

    def pull(self, series: RemoteSeries, folder: Path, told: Callable[[int, int], None] | None = None) -> int:
        """See :class:`~wardround.client.cases.dicom.archives.Archive`; raises as :meth:`find`."""
        intake = Intake(folder, series, self._limits, told)
        study, uid = checked_uid(series.study_uid), checked_uid(series.series_uid)
        with self._asking(self._limits.total_bytes, self._limits.object_bytes):
            for dataset in self._client.iter_series(study, uid, media_types=(("application/dicom", "*"),)):
                stream = BytesIO()
                dcmwrite(stream, dataset, enforce_file_format=True)
                intake.take(dataset, stream.getvalue())
                self._session.handled()
        return intake.end()

    def store(self, dataset: Dataset) -> None:
        """See :class:`~wardround.client.cases.dicom.archives.Archive`.

        Raises
        ------
        AuthRefused, ConnectionFailed
            As :meth:`find`.
        DataError
            If the archive does not say that it kept the object: some answer 200 to whatever they get.
        """
        whole = dcmread(BytesIO(encoded(dataset)))
        try:
            with self._asking(_SMALL_ANSWER):
                answer = self._client.store_instances([whole], study_instance_uid=str(whole.StudyInstanceUID))
                failed = answer.get("FailedSOPSequence") or []
                kept = {str(item.get("ReferencedSOPInstanceUID")) for item in answer.get("ReferencedSOPSequence") or []}
        except _Rejected as rejected:
            raise not_stored(f"it answered {rejected.status}") from None
        if failed:
            reason = failed[0].get("FailureReason")
            raise not_stored(f"its reason is {reason:#06x}" if isinstance(reason, int) else "it gave no reason")
        if str(whole.SOPInstanceUID) not in kept:
            raise not_stored("it does not say that it did")

    def close(self) -> None:
        """Let go of the connection."""
        self._session.close()

    @contextmanager
    def _asking(self, most: int, at_once: int | None = None) -> Iterator[None]:
        """Within the limits; whatever goes wrong becomes an error of ours, without an address or a UID."""
        try:
            with (
                Allowance(most if at_once is None else at_once, self._limits.seconds) as allowance,
                self._session.allowed(allowance, most),
                quiet(),
            ):
                yield
        except WardroundError:
            raise
        except requests.exceptions.SSLError:
            raise ConnectionFailed(
                "the archive's certificate is not accepted",
                "it comes from an authority that is not known here, or is for another name",
                "put the authority's certificate into keys/pacs-NAME.crt",
            ) from None
        except requests.exceptions.HTTPError as error:
            raise _refused(0 if error.response is None else error.response.status_code) from None
        except requests.exceptions.RequestException as error:
            raise ConnectionFailed(
                "the archive does not answer", type(error).__name__, "check `dicomweb` in site.toml, and the network"
            ) from None
        except BROKEN as error:
            raise DataError(
                "the archive's answer cannot be read", type(error).__name__, "ask those who run the archive"
            ) from None


class _Rejected(DataError):
    """The archive refused what it was asked or given."""

    def __init__(self, status: int) -> None:
        super().__init__("the archive has refused the request", f"it answered {status}", "check the UIDs")
        self.status = status


class _Session(requests.Session):
    """Talks to one origin, below one path, and counts what it gets."""

    def __init__(self, root: str) -> None:
        super().__init__()
        self.trust_env = False
        self._root = urlsplit(root)
        self._allowance: Allowance | None = None
        self._left = self._waiting = 0
        for scheme in ("http://", "https://"):
            self.mount(scheme, _Watched(self._watch))

    @contextmanager
    def allowed(self, allowance: Allowance, most: int) -> Iterator[None]:
        """So many bytes in all, and as long and as many at once as the allowance says."""
        self._allowance, self._left, self._waiting = allowance, most, 0
        try:
            yield
        finally:
            self._allowance = None
            # A connection of the next question belongs to that one's allowance.
            self.close()

    def handled(self) -> None:
        """What came so far is in memory no longer."""
        if self._allowance is not None:
            self._allowance.handled(self._waiting)
        self._waiting = 0

    def _watch(self, connection: socket.socket) -> None:
        if self._allowance is not None:
            self._allowance.watch(connection)

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        """Send it there, or raise."""
        aim = urlsplit(request.url or "")
        if (aim.scheme, aim.netloc) != (self._root.scheme, self._root.netloc) or not aim.path.startswith(
            f"{self._root.path}/"
        ):
            raise ConnectionFailed(
                "a request would have left the archive", "its address is not below `dicomweb` of site.toml", "report it"
            )
        # dicomweb-client leaves the port out.
        request.headers["Host"] = self._root.netloc
        response = super().send(request, **(options | {"allow_redirects": False, "stream": True}))
        if response.is_redirect or 300 <= response.status_code < 400:
            response.close()
            raise ConnectionFailed(
                "the archive sends the request elsewhere",
                "redirects are not followed",
                "put the archive's final address into site.toml",
            )
        kind = response.headers.get("Content-Type", "").split(";")[0].strip().lower()
        empty = response.status_code == HTTPStatus.NO_CONTENT or response.headers.get("Content-Length") == "0"
        if response.status_code < 400 and kind not in _KINDS and not empty:
            response.close()
            raise DataError(
                "the archive's answer cannot be read", "it is not of a kind of DICOMweb", "check `dicomweb`"
            )
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            response.close()
            raise DataError(
                "the archive's answer cannot be read", "it is packed, which nobody asked for", "check `dicomweb`"
            )
        pieces = response.iter_content

        def counted(chunk_size: int | None = 1, decode_unicode: bool = False) -> Iterator[Any]:
            for piece in pieces(min(chunk_size or _PIECE, _PIECE)):
                self._left -= len(piece)
                if self._left < 0:
                    response.close()
                    raise too_large()
                self._waiting += len(piece)
                if self._allowance is not None:
                    self._allowance.got(len(piece))
                yield piece

        response.iter_content = counted  # type: ignore[method-assign]
        return response


class _Watched(HTTPAdapter):
    """Tells of every connection as soon as it is there: headers can be sent slowly, too."""

    def __init__(self, watch: Callable[[socket.socket], None]) -> None:
        self._tell = watch
        super().__init__()

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        """Make the pool, of connections that are told of."""
        super().init_poolmanager(*args, **options)
        tell = self._tell

        class Plain(urllib3.connection.HTTPConnection):
            def connect(self) -> None:
                super().connect()
                tell(self.sock)

        class Encrypted(urllib3.connection.HTTPSConnection):
            def connect(self) -> None:
                super().connect()
                tell(self.sock)

        class PlainPool(urllib3.HTTPConnectionPool):
            ConnectionCls = Plain

        class EncryptedPool(urllib3.HTTPSConnectionPool):
            ConnectionCls = Encrypted

        self.poolmanager.pool_classes_by_scheme = {"http": PlainPool, "https": EncryptedPool}


def _refused(status: int) -> WardroundError:
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return AuthRefused(
            "the archive does not accept the site's account", f"it answered {status}",
            "check `user` in site.toml and keys/pacs-NAME",
        )  # fmt: skip
    if status >= 500:
        return ConnectionFailed("the archive has failed", f"it answered {status}", "try again later")
    return _Rejected(status)
