"""DIMSE: the older way to talk to an archive. C-ECHO, C-FIND, C-GET and C-STORE, always as the one who calls.

Images come by C-GET, over the association that asked for them: nothing listens at the site, and the archive need not
know its address. DIMSE itself has neither passwords nor encryption; use it within a network that is trusted.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import UID, AllTransferSyntaxes, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian
from pynetdicom import AE, build_role, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    Verification,
)

from wardround.client.cases.dicom.archives import (
    Intake,
    PullLimits,
    RemoteSeries,
    Wanted,
    checked_uid,
    not_stored,
    remote_series,
    too_slow,
)
from wardround.client.cases.dicom.headers import BROKEN, quiet
from wardround.client.cases.dicom.segmentation import encoded
from wardround.client.cases.dicom.series import VOLUME_CLASSES
from wardround.client.home import PacsSettings
from wardround.errors import ConnectionFailed, DataError, UsageError, WardroundError

OUR_TITLE = "WARDROUND"

_SUCCESS, _PENDING, _CANNOT = 0x0000, (0xFF00, 0xFF01), 0xC000
# What it says names peers and UIDs.
logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)


class Dimse:
    """An archive that speaks DIMSE.

    Parameters
    ----------
    settings
        With `aet`, `host` and `dimse_port`.
    """

    def __init__(self, settings: PacsSettings, *, limits: PullLimits | None = None) -> None:
        if not (settings.host and settings.dimse_port):
            raise UsageError(
                f"the archive {settings.name} has no DIMSE", "site.toml names no `host` and `dimse-port`", "add them"
            )
        self._settings = settings
        self._limits = limits or PullLimits()

    def echo(self) -> None:
        """C-ECHO.

        Raises
        ------
        ConnectionFailed
            If the archive does not answer, or does not accept who calls.
        """
        with self._associated([Verification]) as link:
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
        """C-GET of a series. See :class:`~wardround.client.cases.dicom.archives.Archive`; raises as :meth:`find`."""
        intake = Intake(folder, series, self._limits, told)
        wrong: list[WardroundError] = []
        until = time.monotonic() + self._limits.seconds

        def take(event: evt.Event) -> int:
            try:
                if wrong:
                    return _CANNOT
                if time.monotonic() > until:
                    raise too_slow()
                with quiet():
                    intake.take(event.dataset, event.encoded_dataset())
            except WardroundError as error:
                wrong.append(error)
            except BROKEN as error:
                wrong.append(DataError("an image cannot be read", type(error).__name__, "ask for it again"))
            if wrong:
                # Whoever waits for the next message would wait long for one that cannot come any more.
                event.assoc.dimse_timeout = 0.1
                event.assoc.abort()
            return _CANNOT if wrong else _SUCCESS

        query = _query("SERIES", StudyInstanceUID=checked_uid(series.study_uid))
        query.SeriesInstanceUID = checked_uid(series.series_uid)
        kinds = sorted(VOLUME_CLASSES)
        with self._associated(
            [StudyRootQueryRetrieveInformationModelGet], takes=kinds, handlers=[(evt.EVT_C_STORE, take)]
        ) as link:
            last = Dataset()
            for status, _ in link.send_c_get(query, StudyRootQueryRetrieveInformationModelGet):
                last = status
                if time.monotonic() > until:
                    wrong.append(too_slow())
                    link.abort()
                    break
        if wrong:
            raise wrong[0]
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
        with self._associated([whole.SOPClassUID], syntaxes=[ExplicitVRLittleEndian]) as link, quiet():
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
        until = time.monotonic() + self._limits.seconds
        with self._associated([StudyRootQueryRetrieveInformationModelFind]) as link, quiet():
            status = Dataset()
            for status, answer in link.send_c_find(query, StudyRootQueryRetrieveInformationModelFind):
                if status and status.Status in _PENDING and answer is not None:
                    answers.append(answer)
                if len(answers) >= self._limits.answers:
                    link.abort()
                    return answers
                if time.monotonic() > until:
                    link.abort()
                    raise too_slow()
        _expect(status, "search")
        return answers

    @contextmanager
    def _associated(
        self,
        kinds: Sequence[Any],
        *,
        takes: Sequence[str] = (),
        syntaxes: Sequence[UID] = (),
        handlers: Sequence[tuple[Any, Any]] = (),
    ) -> Iterator[Association]:
        unit = AE(OUR_TITLE)
        unit.connection_timeout, unit.acse_timeout = 10, 30
        unit.dimse_timeout = unit.network_timeout = 60
        for kind in kinds:
            unit.add_requested_context(kind, *([list(syntaxes)] if syntaxes else []))
        images = [one for one in AllTransferSyntaxes if one != DeflatedExplicitVRLittleEndian]
        for kind in takes:
            unit.add_requested_context(kind, images)
        roles = [build_role(UID(kind), scp_role=True) for kind in takes]
        link = unit.associate(
            self._settings.host,
            self._settings.dimse_port,
            ae_title=self._settings.aet or "ANY-SCP",
            ext_neg=list(roles),
            evt_handlers=list(handlers),
        )
        if not link.is_established:
            raise ConnectionFailed(
                "the archive does not answer",
                "nobody listens there, or it does not accept who calls",
                f"check `aet`, `host` and `dimse-port` in site.toml, and that it knows {OUR_TITLE}",
            )
        try:
            if not link.accepted_contexts:
                raise DataError("the archive does not do this", "it offers no such service", "use its DICOMweb")
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
