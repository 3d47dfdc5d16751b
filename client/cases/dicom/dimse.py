"""DIMSE: the older way to talk to an archive. C-ECHO, C-FIND, C-GET or C-MOVE, and C-STORE.

Images come by C-GET, over the association that asked for them: nothing listens at the site, and the archive need not
know its address. Many archives know C-MOVE only, where they call back: then, and only as long as a pull lasts,
:mod:`~wardround.client.cases.dicom.reception` listens. DIMSE knows no passwords; without TLS on both sides, use it
within a network that is trusted.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian
from pynetdicom import AE, build_role, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

from wardround.client.cases.dicom.allowance import Allowance
from wardround.client.cases.dicom.archives import (
    Intake,
    PullLimits,
    RemoteSeries,
    Wanted,
    checked_uid,
    not_stored,
    remote_series,
)
from wardround.client.cases.dicom.headers import BROKEN, quiet
from wardround.client.cases.dicom.kinds import VOLUME_CLASSES
from wardround.client.cases.dicom.reception import IMAGES, Place, reception, watched
from wardround.client.cases.dicom.segmentation import encoded
from wardround.client.cases.dicom.tls import Contexts
from wardround.client.home import PacsSettings
from wardround.errors import ConnectionFailed, DataError, UsageError, WardroundError

_SUCCESS, _PENDING, _CANNOT = 0x0000, (0xFF00, 0xFF01), 0xC000
_SMALL_ANSWER = 64 << 20
# What it says names peers and UIDs.
logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)


class Dimse:
    """An archive that speaks DIMSE.

    Parameters
    ----------
    settings
        With `aet`, `host` and `dimse_port`.
    tls
        For connections to the archive and from it; None for none. See :mod:`wardround.client.cases.dicom.tls`.
    """

    def __init__(
        self, settings: PacsSettings, *, limits: PullLimits | None = None, tls: Contexts | None = None
    ) -> None:
        if not (settings.host and settings.dimse_port):
            raise UsageError(
                f"the archive {settings.name} has no DIMSE", "site.toml names no `host` and `dimse-port`", "add them"
            )
        self._settings = settings
        if settings.dimse_tls and tls is None:
            raise UsageError(
                f"the archive {settings.name} is to be spoken with by TLS", "there are no certificates", "report it"
            )
        self._limits = limits or PullLimits()
        self._tls = tls

    def echo(self) -> None:
        """C-ECHO.

        Raises
        ------
        ConnectionFailed
            If the archive does not answer, or does not accept who calls.
        """
        with self._allowed() as allowance, self._associated(allowance, [Verification]) as link:
            _expect(link.send_c_echo(), "echo")

    def find(self, wanted: Wanted) -> tuple[RemoteSeries, ...]:
        """C-FIND at the level of series, within the studies that match.

        Raises
        ------
        ConnectionFailed
            As :meth:`echo`.
        DataError
            If the archive refuses the search.
        """
        studies = [wanted.study_uid] if wanted.study_uid else self._studies(wanted)
        found: list[RemoteSeries] = []
        for study in studies[: self._limits.answers]:
            query = _query("SERIES", StudyInstanceUID=study, SeriesInstanceUID=wanted.series_uid)
            query.Modality, query.NumberOfSeriesRelatedInstances = wanted.modality, None
            for answer in self._search(query):
                answer.StudyInstanceUID = study
                if (one := remote_series(answer)) is not None:
                    found.append(one)
        return tuple(
            one
            for one in found[: self._limits.answers]
            if wanted.series_uid in ("", one.series_uid) and wanted.modality in ("", one.modality)
        )

    def pull(self, series: RemoteSeries, folder: Path, told: Callable[[int, int], None] | None = None) -> int:
        """C-GET or C-MOVE of a series. See :class:`~wardround.client.cases.dicom.archives.Archive`.

        Raises as :meth:`find`, and UsageError if the port to listen on is taken.

        Notes
        -----
        pynetdicom can receive objects into files, but only into the system's folder for temporary ones, where a killed
        pull would leave a patient's images. They come into memory and go into `folder` at once.
        """
        intake = Intake(folder, series, self._limits, told)
        wrong: list[WardroundError] = []

        def take(event: evt.Event) -> int:
            data = b""
            try:
                if wrong:
                    return _CANNOT
                with quiet():
                    data = event.encoded_dataset()
                    intake.take(event.dataset, data)
            except WardroundError as error:
                wrong.append(error)
            except BROKEN as error:
                wrong.append(DataError("an image cannot be read", type(error).__name__, "ask for it again"))
            if wrong:
                # Whoever waits for the next message would wait long for one that cannot come any more.
                allowance.end()
                return _CANNOT
            allowance.handled(len(data))
            return _SUCCESS

        query = _query("SERIES", StudyInstanceUID=checked_uid(series.study_uid))
        query.SeriesInstanceUID = checked_uid(series.series_uid)
        last = Dataset()
        with self._allowed(self._limits.object_bytes) as allowance, ExitStack() as stack:
            handlers = [(evt.EVT_C_STORE, take)]
            if port := self._settings.move_port:
                its, model = self._settings, StudyRootQueryRetrieveInformationModelMove
                place = Place(port, its.our_aet, its.host, its.aet, its.dimse_port)
                stack.enter_context(reception(place, take, allowance, None if self._tls is None else self._tls.serving))
                link = stack.enter_context(self._associated(allowance, [model]))
                answers = link.send_c_move(query, its.our_aet, model)
            else:
                kinds, model = sorted(VOLUME_CLASSES), StudyRootQueryRetrieveInformationModelGet
                link = stack.enter_context(self._associated(allowance, [model], takes=kinds, handlers=handlers))
                answers = link.send_c_get(query, model)
            # It may say nothing until the last image has arrived; the allowance is what ends it.
            link.dimse_timeout = None
            for status, _ in answers:
                last = status
            if wrong:
                raise wrong[0]
            allowance.check()
            _expect(last, "images")
        return intake.end()

    def store(self, dataset: Dataset) -> None:
        """C-STORE.

        Raises
        ------
        ConnectionFailed
            As :meth:`echo`.
        DataError
            If the archive does not say that it kept the object.
        """
        whole = dcmread(BytesIO(encoded(dataset)))
        with (
            self._allowed() as allowance,
            self._associated(allowance, [whole.SOPClassUID], syntaxes=[ExplicitVRLittleEndian]) as link,
            quiet(),
        ):
            try:
                status = link.send_c_store(whole)
            except BROKEN as error:
                raise not_stored(type(error).__name__) from None
        if status.get("Status") != _SUCCESS:
            code = status.get("Status")
            raise not_stored("it did not answer" if code is None else f"its status is {code:#06x}")

    def close(self) -> None:
        """Nothing stays open between two questions."""

    def _studies(self, wanted: Wanted) -> list[str]:
        query = _query("STUDY", StudyInstanceUID="")
        query.PatientID, query.AccessionNumber, query.StudyDate = wanted.patient_id, wanted.accession, wanted.date
        found = []
        for answer in self._search(query):
            try:
                found.append(checked_uid(str(answer.StudyInstanceUID)))
            except (*BROKEN, UsageError):
                continue
        return found

    def _search(self, query: Dataset) -> list[Dataset]:
        answers: list[Dataset] = []
        kind = StudyRootQueryRetrieveInformationModelFind
        with self._allowed() as allowance, self._associated(allowance, [kind]) as link, quiet():
            status = Dataset()
            for status, answer in link.send_c_find(query, kind):
                if status and status.Status in _PENDING and answer is not None:
                    answers.append(answer)
                if len(answers) >= self._limits.answers:
                    link.abort()
                    return answers
            allowance.check()
            _expect(status, "search")
        return answers

    def _allowed(self, most: int = _SMALL_ANSWER) -> Allowance:
        return Allowance(most, self._limits.seconds)

    @contextmanager
    def _associated(
        self,
        allowance: Allowance,
        kinds: Sequence[Any],
        *,
        takes: Sequence[str] = (),
        syntaxes: Sequence[UID] = (),
        handlers: Sequence[tuple[Any, Any]] = (),
    ) -> Iterator[Association]:
        unit = AE(self._settings.our_aet)
        unit.connection_timeout, unit.acse_timeout = 10, 30
        unit.dimse_timeout = unit.network_timeout = 60
        for kind in kinds:
            unit.add_requested_context(kind, *([list(syntaxes)] if syntaxes else []))
        for kind in takes:
            unit.add_requested_context(kind, list(IMAGES))
        roles = [build_role(UID(kind), scp_role=True) for kind in takes]
        link = unit.associate(
            self._settings.host,
            self._settings.dimse_port,
            ae_title=self._settings.aet or "ANY-SCP",
            ext_neg=list(roles),
            evt_handlers=[*handlers, (evt.EVT_CONN_OPEN, watched(allowance))],
            tls_args=None if self._tls is None else (self._tls.calling, self._settings.host),
        )
        if not link.is_established:
            raise ConnectionFailed(
                "the archive does not answer",
                "nobody listens there, or it does not accept who calls" + (", or its certificate" if self._tls else ""),
                f"check `aet`, `host` and `dimse-port` in site.toml, and that it knows {self._settings.our_aet}",
            )
        try:
            if not {one.abstract_syntax for one in link.accepted_contexts} & set(kinds):
                raise DataError(
                    "the archive does not do this",
                    "it offers no such service",
                    "pull by C-MOVE, with `move-port` in site.toml, or use its DICOMweb",
                )
            yield link
        finally:
            if link.is_established:
                link.release()


def _query(level: str, **uids: str) -> Dataset:
    query = Dataset()
    query.QueryRetrieveLevel = level
    for name, value in uids.items():
        setattr(query, name, value)
    return query


def _expect(status: Dataset, what: str) -> None:
    code = status.get("Status") if status else None
    if code is None:
        raise ConnectionFailed(f"the archive broke off its {what}", "the connection was lost", "try again later")
    if code != _SUCCESS:
        raise DataError(f"the archive refused the {what}", f"its status is {code:#06x}", "ask those who run it")
