"""What can be asked of an archive of images, whichever way it speaks: DICOMweb or DIMSE.

An archive is one that site.toml names; no address comes from anywhere else. What it sends is believed in nothing: not
in size, not in kind, and not in being what was asked for.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydicom.dataset import Dataset

from wardround.client.cases.dicom.headers import BROKEN, quiet
from wardround.errors import ConnectionFailed, DataError, StorageError, UsageError
from wardround.files import storage_error

MODALITIES = ("CT", "MR", "PT")
_UID = re.compile(r"(?!.*\.\.)[0-2](\.[0-9]+)+")
_LONGEST_UID = 64


@dataclass(frozen=True)
class PullLimits:
    """How much one series may be, and how long it may take.

    Parameters
    ----------
    total_bytes
        Of all instances of a series.
    object_bytes
        Of what has come and is not on the disk yet: one instance, or several small ones. It lies in memory.
    instances
        Of a series.
    seconds
        For one search, one series or one object to be stored.
    answers
        Series that a search may find.
    """

    total_bytes: int = 8 << 30
    object_bytes: int = 1 << 30
    instances: int = 20_000
    seconds: float = 900.0
    answers: int = 1000


@dataclass(frozen=True)
class RemoteSeries:
    """A series that an archive holds.

    Parameters
    ----------
    study_uid, series_uid
        As the archive has them.
    modality, date
        As in its headers; empty where it does not say.
    instances
        How many it says that there are; 0 where it does not say.
    """

    study_uid: str
    series_uid: str
    modality: str
    date: str
    instances: int


@dataclass(frozen=True)
class Wanted:
    """What to look for; an empty field is for any. Where a patient is named, nothing of the name is kept."""

    study_uid: str = ""
    series_uid: str = ""
    patient_id: str = ""
    accession: str = ""
    modality: str = ""
    date: str = ""

    def __post_init__(self) -> None:
        for uid in (self.study_uid, self.series_uid):
            if uid:
                checked_uid(uid)
        for text in (self.patient_id, self.accession, self.modality, self.date):
            if not text.isprintable() or len(text) > _LONGEST_UID or set(text) & set("\\?&#"):
                raise UsageError("it cannot be looked for that", "a value has characters that DICOM forbids", "retype")

    @property
    def filters(self) -> dict[str, str]:
        """Keywords of attributes and what they have to match."""
        every = {
            "StudyInstanceUID": self.study_uid,
            "SeriesInstanceUID": self.series_uid,
            "PatientID": self.patient_id,
            "AccessionNumber": self.accession,
            "Modality": self.modality,
            "StudyDate": self.date,
        }
        return {name: value for name, value in every.items() if value}


class Archive(Protocol):
    """An archive that one may search, take from and give to."""

    def find(self, wanted: Wanted) -> tuple[RemoteSeries, ...]:
        """Series that match; at most so many as the limits say."""

    def pull(self, series: RemoteSeries, folder: Path, told: Callable[[int, int], None] | None = None) -> int:
        """Write all instances of a series into a folder, under numbers for names, and return how many."""

    def store(self, dataset: Dataset) -> None:
        """Give it one object, and make sure that it was kept."""

    def close(self) -> None:
        """Let go of the connection."""


class Intake:
    """Takes instances of one series into a folder; refuses what was not asked for, or too much of it.

    Parameters
    ----------
    folder
        Of this pull only.
    series
        What was asked for.
    told
        Called after each instance, with how many of how many there are.
    """

    def __init__(
        self, folder: Path, series: RemoteSeries, limits: PullLimits, told: Callable[[int, int], None] | None = None
    ) -> None:
        self._folder, self._series, self._limits, self._told = folder, series, limits, told
        self.count = self._bytes = 0

    def take(self, dataset: Dataset, data: bytes) -> None:
        """Write one instance.

        Raises
        ------
        DataError
            If it belongs to another series, or the series is larger than allowed.
        StorageError
            If it cannot be written.
        """
        try:
            belongs = (dataset.SeriesInstanceUID, dataset.StudyInstanceUID) == (
                self._series.series_uid, self._series.study_uid,
            )  # fmt: skip
        except BROKEN:
            belongs = False
        if not belongs:
            raise DataError(
                "the archive sent an image that was not asked for",
                "it belongs to another series, or has no UIDs",
                "tell those who run the archive; nothing was imported",
            )
        self.count += 1
        self._bytes += len(data)
        if self._bytes > self._limits.total_bytes or self.count > self._limits.instances:
            raise too_large()
        path = self._folder / f"{self.count:06d}.dcm"
        try:
            path.write_bytes(data)
        except OSError as error:
            raise storage_error(error, path) from error
        if self._told is not None:
            self._told(self.count, max(self._series.instances, self.count))

    def end(self) -> int:
        """How many there are.

        Raises
        ------
        DataError
            If there are fewer than the archive says.
        """
        if self.count < max(self._series.instances, 1):
            raise DataError(
                "the archive sent a part of the series only",
                f"{self.count} of {self._series.instances} images arrived",
                "try again later; nothing was imported",
            )
        return self.count


def checked_uid(uid: str) -> str:
    """The UID, if it is one (PS3.5, 9.1): digits and points, so that it names nothing else in an address or a path."""
    if len(uid) > _LONGEST_UID or not _UID.fullmatch(uid):
        raise UsageError("a UID is wrong", "it has digits and points, at most 64 of them", "copy it from the archive")
    return uid


def remote_series(answer: Dataset) -> RemoteSeries | None:
    """One answer to a search; None if it cannot be used."""
    try:
        with quiet():
            date = str(answer.get("StudyDate") or "")
            modality = str(answer.get("Modality") or "")
            return RemoteSeries(
                study_uid=checked_uid(str(answer.StudyInstanceUID)),
                series_uid=checked_uid(str(answer.SeriesInstanceUID)),
                modality=modality if modality.isalnum() and len(modality) <= 16 else "",
                date=date if date.isdigit() and len(date) == 8 else "",
                instances=max(int(answer.get("NumberOfSeriesRelatedInstances") or 0), 0),
            )
    except (*BROKEN, UsageError):
        return None


def too_large() -> DataError:
    """What a series beyond the limits is refused with."""
    return DataError(
        "the archive sends more than is taken", "the series is larger than any volume", "nothing was imported"
    )


def too_slow() -> ConnectionFailed:
    """What an archive that does not come to an end is given up with."""
    return ConnectionFailed("the archive takes too long", "its answer did not end in time", "try again later")


def not_stored(cause: str) -> DataError:
    """What is said where an archive has not kept an object."""
    return DataError("the archive did not keep the segmentation", cause, "ask those who run the archive")


def read_password(path: Path) -> str:
    """The password of an archive; empty where there is none.

    Raises
    ------
    StorageError
        If others may read it, or it cannot be read.
    """
    try:
        if path.stat().st_mode & 0o077:
            raise StorageError(
                f"{path} can be read by others", "a password must be its owner's only", f"chmod 600 {path}"
            )
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot read {path}", type(error).__name__, "check the file") from None
