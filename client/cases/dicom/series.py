"""Find the volumes in a folder, an archive or a file, slice by slice; what is no volume is counted with a reason.

Files are grouped by Series Instance UID, and a series by what must not differ within a volume: patient, study, size,
spacing and orientation of its images, frame of reference, kind of object. Where slices then still lie on top of each
other, or at uneven distances, a header may tell volumes apart (:data:`DISCRIMINATORS`): echoes, phases, acquisitions.
Only then is a series split by it, so that a number that a scanner counts up for each slice splits nothing.
"""

import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from wardround.client.cases.dicom.geometry import Stack, measure
from wardround.client.cases.dicom.headers import BROKEN, HEADER_BYTES, is_dicom, quiet, read_header
from wardround.client.cases.dicom.kinds import VOLUME_CLASSES, other_kind
from wardround.client.cases.dicom.sources import Limits, SourceFile, list_files
from wardround.errors import SeriesRefused

ORIENTATION_TOLERANCE = 2e-4
"""Direction cosines of one volume differ by no more: a fifteenth of a pixel at the edge of 512."""
MOST_FRAMES = 100_000
MOST_ORIENTATIONS = 500
"""Of one series; where there are more, as no scanner writes them, each image is one by itself."""
DISCRIMINATORS = ("stack", "echo", "time", "b-value", "type", "acquisition", "trigger")

# With digits between its points: it becomes the name of a file.
_UID = re.compile(r"(?=.{1,64}\Z)[0-9]+(\.[0-9]+)*")

Told = Callable[[int, int], None]
"""Is told how many of how many files were looked at."""


@dataclass(frozen=True)
class Frame:
    """One slice: where its pixels are and where it lies.

    Parameters
    ----------
    file
        Index into the report's files.
    index
        Frame in that file, from 0.
    instance_uid
        SOP Instance UID.
    position
        Of the centre of its first pixel, LPS millimetres.
    orientation
        Along a row and down a column.
    spacing
        Between rows, between columns, in millimetres.
    size
        Rows, columns.
    fixed
        What must be the same for all frames of a volume.
    telling
        Discriminator → value.
    """

    file: int
    index: int
    instance_uid: str
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, float]
    size: tuple[int, int]
    fixed: tuple[str, ...]
    telling: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class FoundVolume:
    """A volume that a source holds.

    Parameters
    ----------
    series_uid, study_uid, frame_of_reference_uid, modality
        As in the headers.
    part
        Which of the volumes of the series; empty where there is one.
    frames
        Two or more, in the order of the stack.
    stack
        Their geometry; None where the orientation is unusable, which `refusal` then says.
    files
        Those of the whole report; frames point into it.
    """

    series_uid: str
    study_uid: str
    frame_of_reference_uid: str
    modality: str
    part: str
    frames: tuple[Frame, ...]
    stack: Stack | None
    refusal: SeriesRefused | None
    files: Sequence[SourceFile]


@dataclass(frozen=True, eq=False)
class SeriesReport:
    """What was found.

    Parameters
    ----------
    volumes
        In the order of their series' UIDs.
    skipped
        Reason → how many files, or frames; a key of :data:`~wardround.client.cases.dicom.kinds.REASONS`.
    files
        How many files were looked at.
    """

    volumes: tuple[FoundVolume, ...]
    skipped: Mapping[str, int]
    files: int


class _Skip(Exception):
    """Not part of a volume, for this reason."""


def find_series(source: Path, limits: Limits | None = None, told: Told | None = None) -> SeriesReport:
    """Look through a folder, a zip archive or a file.

    Parameters
    ----------
    told
        Called after every file.

    Raises
    ------
    DataError
        If the source cannot be read or exceeds `limits`. A file in it that cannot be read is skipped.
    """
    listing = list_files(source, limits)
    skipped = Counter(listing.skipped)
    found: dict[str, list[Frame]] = defaultdict(list)
    known: dict[str, int] = {}
    for number, file in enumerate(listing.files):
        try:
            header = _header(file)
            uid = _uid(header, "SOPInstanceUID")
            if (first := known.setdefault(uid, number)) != number:
                same = _digest(listing.files[first]) == _digest(file)
                raise _Skip("repeated" if same else "conflicting")
            series = _uid(header, "SeriesInstanceUID")
            _uid(header, "StudyInstanceUID")
            frames = list(_frames(header, number))
            found[series] += frames
        except _Skip as reason:
            skipped[str(reason)] += 1
        except BROKEN:
            skipped["unreadable"] += 1
        if told is not None:
            told(number + 1, len(listing.files))
    volumes = []
    for series_uid, members in sorted(found.items()):
        parts = _parts(members)
        kept = [(part, frames) for part, frames in parts if len(frames) > 1]
        skipped["single-image"] += sum(len(frames) == 1 for _, frames in parts)
        for part, frames in kept:
            _, study_uid, *_, place, _, kind = frames[0].fixed
            stack, refusal = _measured(frames)
            ordered = tuple(frames if stack is None else (frames[index] for index in stack.order))
            # A scout among the slices of a volume does not make another case of it.
            name = part if len(kept) > 1 else ""
            volumes.append(
                FoundVolume(series_uid, study_uid, place, kind, name, ordered, stack, refusal, listing.files)
            )
    return SeriesReport(tuple(volumes), {name: count for name, count in skipped.items() if count}, len(listing.files))


def _header(file: SourceFile) -> Dataset:
    start = file.read(132)
    if not is_dicom(start):
        raise _Skip("archive" if start.startswith((b"PK\x03\x04", b"\x1f\x8b", b"7z\xbc\xaf")) else "not-dicom")
    header = read_header(file.read(HEADER_BYTES))
    if header is None:
        raise _Skip("unreadable")
    with quiet():
        kind = _text(header, "SOPClassUID") or _text(header.file_meta, "MediaStorageSOPClassUID")
        if kind not in VOLUME_CLASSES:
            if not kind:
                raise _Skip("not-dicom" if start[128:132] != b"DICM" else "no-uid")
            raise _Skip(other_kind(kind))
        if "LOCALIZER" in _types(header) or "SCOUT" in _types(header):
            raise _Skip("localizer")
        if header.get("SamplesPerPixel", 1) != 1:
            raise _Skip("colour")
        if _text(header, "BurnedInAnnotation").upper() == "YES":
            raise _Skip("burned-in-annotation")
        if not (header.get("Rows") and header.get("Columns")):
            raise _Skip("no-pixels")
    return header


def _frames(header: Dataset, file: int) -> Iterator[Frame]:
    with quiet():
        count = int(header.get("NumberOfFrames") or 1)
        groups = header.get("PerFrameFunctionalGroupsSequence") or []
        shared = (header.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
        if not 1 <= count <= MOST_FRAMES:
            raise _Skip("too-many-frames")
        if not groups:
            if count > 1:
                raise _Skip("no-geometry")
            yield _frame([header], file, 0, header)
            return
        if len(groups) != count:
            raise _Skip("unreadable")
        for index, group in enumerate(groups):
            macros = [sequence[0] for part in (group, shared) for sequence in _sequences(part)]
            if any(_types(macro) & {"LOCALIZER"} for macro in macros):
                raise _Skip("localizer")
            yield _frame(macros, file, index, header)


def _sequences(group: Dataset) -> list[Any]:
    return [element.value for element in group if element.VR == "SQ" and element.value]


def _frame(places: list[Dataset], file: int, index: int, header: Dataset) -> Frame:
    size = (int(header.Rows), int(header.Columns))
    position = _numbers(places, "ImagePositionPatient", 3)
    orientation = _numbers(places, "ImageOrientationPatient", 6)
    spacing = _numbers(places, "PixelSpacing", 2)
    if position is None or orientation is None or spacing is None or min(spacing) <= 0:
        raise _Skip("no-geometry")
    telling = {
        "stack": _first(places, "StackID"),
        "echo": _first(places, "EchoNumbers") + "/" + _first(places, "EchoTime", "EffectiveEchoTime"),
        "time": _first(places, "TemporalPositionIdentifier", "TemporalPositionIndex"),
        "b-value": _first(places, "DiffusionBValue"),
        "type": _first(places, "ImageType", "FrameType"),
        "acquisition": _first(places, "AcquisitionNumber", "FrameAcquisitionNumber"),
        "trigger": _first(places, "TriggerTime", "NominalCardiacTriggerDelayTime"),
    }
    fixed = (
        _text(header, "PatientID"),
        _text(header, "StudyInstanceUID"),
        f"{size[0]}x{size[1]}",
        f"{spacing[0]:.5g}x{spacing[1]:.5g}",
        _text(header, "FrameOfReferenceUID"),
        _text(header, "SOPClassUID"),
        _text(header, "Modality"),
    )
    uid = _text(header, "SOPInstanceUID")
    return Frame(file, index, uid, position, orientation, (spacing[0], spacing[1]), size, fixed, telling)


def _parts(frames: list[Frame]) -> list[tuple[str, list[Frame]]]:
    """The volumes of one series, each with the name that tells it from the others."""
    ordered = sorted(frames, key=lambda frame: (frame.instance_uid, frame.index))
    fixed: dict[str, list[Frame]] = defaultdict(list)
    turned: list[Frame] = []
    for frame in ordered:
        like = next((one for one in turned if _parallel(one, frame)), None)
        if like is None:
            if len(turned) == MOST_ORIENTATIONS:
                return [("", [one]) for one in ordered]
            turned.append(like := frame)
        name = ",".join(f"{value + 0.0:.3f}" for value in like.orientation)
        fixed["|".join((*frame.fixed, name))].append(frame)
    parts: list[tuple[str, list[Frame]]] = []
    for name, group in sorted(fixed.items()):
        for more, part in _told_apart(group, DISCRIMINATORS):
            parts.append((name + more, part))
    return parts


def _parallel(one: Frame, other: Frame) -> bool:
    return all(abs(a - b) <= ORIENTATION_TOLERANCE for a, b in zip(one.orientation, other.orientation, strict=True))


def _told_apart(frames: list[Frame], keys: Sequence[str]) -> list[tuple[str, list[Frame]]]:
    stack, _ = _measured(frames) if len(frames) > 1 else (None, None)
    if stack is None or stack.is_even:
        return [("", frames)]
    for position, key in enumerate(keys):
        groups: dict[str, list[Frame]] = defaultdict(list)
        for frame in frames:
            groups[frame.telling[key]].append(frame)
        if len(groups) > 1 and min(len(group) for group in groups.values()) > 1 and _better(stack, groups.values()):
            return [
                (f"|{key}={value}{more}", part)
                for value, group in sorted(groups.items())
                for more, part in _told_apart(group, keys[position + 1 :])
            ]
    return [("", frames)]


def _better(whole: Stack, groups: Iterable[list[Frame]]) -> bool:
    """Whether slices of the same place are taken apart, or slices at uneven distances become even."""
    stacks = [stack for group in groups if (stack := _measured(group)[0]) is not None]
    duplicates = sum(stack.duplicates for stack in stacks)
    return duplicates < whole.duplicates or (duplicates == 0 and all(stack.is_even for stack in stacks))


def _measured(frames: Sequence[Frame]) -> tuple[Stack | None, SeriesRefused | None]:
    try:
        positions = np.array([frame.position for frame in frames])
        return measure(positions, np.array(frames[0].orientation), frames[0].spacing), None
    except SeriesRefused as refusal:
        return None, refusal


def _uid(header: Dataset, name: str) -> str:
    uid = _text(header, name)
    if not _UID.fullmatch(uid):
        raise _Skip("no-uid")
    return uid


def _text(header: Dataset, name: str) -> str:
    value = header.get(name)
    return "" if value is None else str(value).strip()


def _types(header: Dataset) -> set[str]:
    value = header.get("ImageType") or header.get("FrameType") or []
    return {str(part).upper() for part in ([value] if isinstance(value, str) else value)}


def _first(places: list[Dataset], *names: str) -> str:
    for name in names:
        for place in places:
            if place.get(name) is not None:
                return str(place.get(name))
    return ""


def _numbers(places: list[Dataset], name: str, count: int) -> tuple[float, ...] | None:
    for place in places:
        value = place.get(name)
        if value is not None:
            numbers = tuple(float(part) for part in value)
            return numbers if len(numbers) == count and all(math.isfinite(part) for part in numbers) else None
    return None


def _digest(file: SourceFile) -> bytes:
    return hashlib.sha256(file.read()).digest()
