"""A series becomes a case: its voxels into the store, its headers into the register, and nothing else anywhere."""

import hashlib
from collections import defaultdict
from collections.abc import Callable
from typing import Literal

import numpy as np
from pydicom.dataset import Dataset

from wardround.client.cases.dicom.geometry import check, check_voxels, resampled
from wardround.client.cases.dicom.headers import BROKEN, quiet, read_all
from wardround.client.cases.dicom.pixels import Padding, intensities
from wardround.client.cases.dicom.register import Register, SourceSeries
from wardround.client.cases.dicom.series import FoundVolume, Frame
from wardround.client.cases.store import CaseStore, Role
from wardround.client.cases.volume import Volume
from wardround.errors import SeriesRefused

Handling = Literal["refuse", "resample"]

_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths")


def import_series(
    store: CaseStore,
    register: Register,
    series: FoundVolume,
    role: Role = "stream",
    *,
    uneven: Handling = "refuse",
    tilt: Handling = "refuse",
    padding: Padding = "keep",
    told: Callable[[int, int], None] | None = None,
    then: Callable[[str], object] | None = None,
) -> str:
    """Take one volume into the store and its source into the register; a second time changes nothing.

    Parameters
    ----------
    series
        As :func:`~wardround.client.cases.dicom.series.find_series` found it.
    uneven, tilt
        Whether slices at uneven distances, or moved sideways, are refused or resampled.
    padding
        As in :func:`~wardround.client.cases.dicom.pixels.intensities`.
    told
        Called after every file, with how many of how many were read.
    then
        Called with the id of the case once it is stored, for what belongs to it, such as its label. An import that
        does not come so far has not ended.

    Returns
    -------
    str
        Id of the case.

    Raises
    ------
    SeriesRefused
        If the series cannot become a case as it is, with what was measured and a ``reason``.
    DataError
        If the series, or a case of this id, is there with other content.
    StorageError
        If the disk is full or not writable. What was begun is finished by the next import.

    Notes
    -----
    The order is: enter the series, store the case and what belongs to it, mark the entry as complete. Whatever a crash
    leaves of it, the next import of the same series goes on from there.
    """
    volume, source = read_series(register, series, uneven=uneven, tilt=tilt, padding=padding, told=told)
    content = _digest(volume)
    register.enter(source, content)
    store.add_case(source.case_id, volume, role)
    if then is not None:
        then(source.case_id)
    register.complete(source.case_id, content)
    return source.case_id


def read_volume(series: FoundVolume) -> Volume:
    """The volume of a series that becomes no case: float32, ``[column, row, slice]``. See :func:`import_series`."""
    return _read_series(None, series, uneven="refuse", tilt="refuse", padding="keep", told=None)[0]


def read_series(
    register: Register,
    series: FoundVolume,
    *,
    uneven: Handling = "refuse",
    tilt: Handling = "refuse",
    padding: Padding = "keep",
    told: Callable[[int, int], None] | None = None,
) -> tuple[Volume, SourceSeries]:
    """The volume of a series and where it came from, stored nowhere. See :func:`import_series`."""
    return _read_series(register, series, uneven=uneven, tilt=tilt, padding=padding, told=told)


def _read_series(
    register: Register | None,
    series: FoundVolume,
    *,
    uneven: Handling,
    tilt: Handling,
    padding: Padding,
    told: Callable[[int, int], None] | None,
) -> tuple[Volume, SourceSeries]:
    if series.stack is None:
        assert series.refusal is not None
        raise series.refusal
    again = check(series.stack, uneven=uneven, tilt=tilt)
    rows, columns = series.frames[0].size
    check_voxels(rows * columns * len(series.frames))
    values = np.empty((columns, rows, len(series.frames)), np.float32)
    wanted: dict[int, list[tuple[int, Frame]]] = defaultdict(list)
    for place, frame in enumerate(series.frames):
        wanted[frame.file].append((place, frame))
    instances: list[Dataset] = []
    frames: dict[int, tuple[int, int]] = {}
    for number, (file, members) in enumerate(wanted.items()):
        dataset = _read(series, file, members[0][1])
        indices = [frame.index for _, frame in members]
        for (place, frame), image in zip(members, intensities(dataset, indices, padding), strict=True):
            values[:, :, place] = image.T
            frames[place] = (number, frame.index)
        for name in _PIXELS:
            if name in dataset:
                del dataset[name]
        instances.append(dataset)
        if told is not None:
            told(number + 1, len(wanted))
    volume = resampled(series.stack, values) if again else Volume(values, series.stack.affine())
    source = SourceSeries(
        case_id="" if register is None else register.case_id(series.series_uid, series.part),
        series_uid=series.series_uid,
        study_uid=series.study_uid,
        frame_of_reference_uid=series.frame_of_reference_uid,
        part=series.part,
        modality=series.modality,
        instances=tuple(instances),
        frames=tuple(frames[place] for place in range(len(series.frames))),
        grid=Volume(np.broadcast_to(np.uint8(0), volume.shape), volume.affine),
        resampled=again,
    )
    return volume, source


def _read(series: FoundVolume, file: int, expected: Frame) -> Dataset:
    try:
        with quiet():
            dataset = read_all(series.files[file].read())
            if dataset is not None and "TransferSyntaxUID" not in dataset.file_meta:
                _assume_syntax(dataset)
            if dataset is not None and (dataset.SOPInstanceUID, dataset.Rows, dataset.Columns) == (
                expected.instance_uid,
                *expected.size,
            ):
                return dataset
    except BROKEN:
        pass
    raise SeriesRefused(
        "a file of the series cannot be read",
        "it is damaged or cut short, or changed while it was imported",
        "export the series again",
        reason="damaged-file",
    )


def _assume_syntax(dataset: Dataset) -> None:
    """Name the transfer syntax of a file without meta information: it can only be one of the two plain ones."""
    implicit, _ = dataset.original_encoding
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2" if implicit else "1.2.840.10008.1.2.1"


def _digest(volume: Volume) -> str:
    digest = hashlib.sha256(repr((volume.shape, (volume.affine + 0.0).tolist())).encode())
    digest.update(np.ascontiguousarray(volume.array).tobytes())
    return digest.hexdigest()
