"""Series of DICOM made of numbers: any orientation, spacing and coding, as scanners write them and as they should not.

A volume's array is ``[i, j, k]`` with an affine to LPS millimetres, as everywhere; its slices are written one a file
(:func:`series`) or all into one (:func:`enhanced`).
"""

import subprocess
import sys
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CT, MR, PET = (f"1.2.840.10008.5.1.4.1.1.{tail}" for tail in ("2", "4", "128"))
ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"

Change = Callable[[FileDataset, int], object]


def uid(*parts: object) -> str:
    """A UID that is the same for the same parts."""
    return str(generate_uid(entropy_srcs=[str(part) for part in parts]))


def affine_of(rotation: npt.NDArray[Any], spacing: Iterable[float], origin: Iterable[float]) -> npt.NDArray[Any]:
    """Unit vectors as columns, spacing along i, j, k, place of the first voxel."""
    affine = np.eye(4)
    affine[:3, :3] = rotation * np.array(list(spacing))
    affine[:3, 3] = list(origin)
    return affine


def series(
    array: npt.NDArray[Any],
    affine: npt.NDArray[Any],
    *,
    kind: str = CT,
    name: str = "series",
    bits: int = 16,
    change: Change | None = None,
) -> list[FileDataset]:
    """One object a slice, in the order of ``k``; `array` holds what is stored, int16 or uint16.

    `change` is called with every object and its ``k`` before it is returned.
    """
    found = []
    for k in range(array.shape[2]):
        dataset = _object(kind, name, k)
        _pixels(dataset, array[:, :, k].T, bits)
        dataset.ImagePositionPatient = _written(affine @ [0, 0, k, 1])[:3]
        dataset.ImageOrientationPatient = _orientation(affine)
        dataset.PixelSpacing = _spacing(affine)
        dataset.SliceThickness = "1"
        dataset.InstanceNumber = k + 1
        if change is not None:
            change(dataset, k)
        found.append(dataset)
    return found


def enhanced(
    array: npt.NDArray[Any], affine: npt.NDArray[Any], *, name: str = "enhanced", bits: int = 16
) -> FileDataset:
    """All slices in one Enhanced MR object, in an order of their own, with a slope and intercept of each frame."""
    dataset = _object(ENHANCED_MR, name, 0)
    order = np.random.default_rng(0).permutation(array.shape[2])
    _pixels(dataset, np.moveaxis(array[:, :, order], 2, 0).swapaxes(1, 2), bits)
    dataset.NumberOfFrames = len(order)
    measures, orientation = Dataset(), Dataset()
    measures.PixelSpacing = _spacing(affine)
    orientation.ImageOrientationPatient = _orientation(affine)
    shared = Dataset()
    shared.PixelMeasuresSequence = Sequence([measures])
    shared.PlaneOrientationSequence = Sequence([orientation])
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for k in order:
        frame, position, values, content = Dataset(), Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = _written(affine @ [0, 0, int(k), 1])[:3]
        values.RescaleSlope, values.RescaleIntercept, values.RescaleType = str(1 + int(k)), str(-int(k)), "US"
        content.StackID, content.InStackPositionNumber = "1", int(k) + 1
        frame.PlanePositionSequence = Sequence([position])
        frame.PixelValueTransformationSequence = Sequence([values])
        frame.FrameContentSequence = Sequence([content])
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = Sequence(frames)
    return dataset


def save(datasets: Iterable[Dataset], folder: Path) -> Path:
    """Write one file an object, under names that sort otherwise than their slices."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, dataset in enumerate(datasets):
        path = folder / f"{(number * 7919) % 10007:05d}-{dataset.SOPInstanceUID[-8:]}"
        path.write_bytes(encoded(dataset))
    return folder


def encoded(dataset: Dataset) -> bytes:
    """The bytes of a file."""
    stream = BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def convert(folder: Path, target: Path, *command: str) -> Path:
    """Run a converter on every file: `command` is called with the names of the old and the new file behind it."""
    target.mkdir(parents=True)
    # A package of Python brings its commands along, also where its environment is not active.
    beside = Path(sys.executable).parent / command[0]
    command = (str(beside) if beside.exists() else command[0], *command[1:])
    for path in sorted(folder.iterdir()):
        subprocess.run([*command, str(path), str(target / path.name)], check=True, capture_output=True, timeout=60)
    return target


def rotation(a: float, b: float, c: float) -> npt.NDArray[Any]:
    """Turned by three angles in radians about x, y, z, one after the other."""
    turns = []
    for axis, angle in enumerate((a, b, c)):
        turn = np.eye(3)
        one, two = (axis + 1) % 3, (axis + 2) % 3
        turn[one, one] = turn[two, two] = np.cos(angle)
        turn[two, one], turn[one, two] = np.sin(angle), -np.sin(angle)
        turns.append(turn)
    return np.asarray(turns[2] @ turns[1] @ turns[0])


def noise(shape: tuple[int, int, int], *, low: int = -1000, high: int = 1000, seed: int = 0) -> npt.NDArray[np.int16]:
    """Numbers that are nowhere alike."""
    return np.random.default_rng(seed).integers(low, high, shape).astype(np.int16)


def _object(kind: str, name: str, number: int) -> FileDataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = kind
    meta.MediaStorageSOPInstanceUID = uid(name, number)
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID, dataset.SOPInstanceUID = kind, uid(name, number)
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = uid("study", name), uid(name)
    dataset.FrameOfReferenceUID = uid("frame", name)
    dataset.Modality = {CT: "CT", PET: "PT"}.get(kind, "MR")
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.PatientName, dataset.PatientID = "", ""
    dataset.StudyDate, dataset.PatientPosition = "20200229", "HFS"
    if kind in (CT, PET):
        dataset.RescaleSlope, dataset.RescaleIntercept = "1", "0"
    return dataset


def _pixels(dataset: Dataset, stored: npt.NDArray[Any], bits: int) -> None:
    dataset.Rows, dataset.Columns = stored.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, bits, bits - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    words = np.ascontiguousarray(stored).view(np.uint16) & np.uint16((1 << bits) - 1)
    dataset.PixelData = words.astype("<u2").tobytes()


def _spacing(affine: npt.NDArray[Any]) -> list[str]:
    i, j = np.linalg.norm(affine[:3, :2], axis=0)
    return _written([j, i])


def _orientation(affine: npt.NDArray[Any]) -> list[str]:
    axes = affine[:3, :2] / np.linalg.norm(affine[:3, :2], axis=0)
    return _written(axes.T.ravel())


def _written(values: Iterable[float]) -> list[str]:
    """As a decimal string of DICOM, which has room for 16 characters."""
    return [f"{value:.16g}" if len(f"{value:.16g}") <= 16 else f"{value:.9f}"[:16] for value in values]
