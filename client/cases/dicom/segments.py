"""A DICOM segmentation from elsewhere becomes labels on the grid of a case, voxel for voxel, or is refused.

Frames may lie in any of the six directions of the grid, and may be cropped; nothing is interpolated. BINARY, FRACTIONAL
(from a threshold on) and LABELMAP are read. Whatever the file says about sizes is checked before room is made for it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.pixels import iter_pixels
from pydicom.uid import UID, JPEGLSTransferSyntaxes

from wardround.client.cases.dicom.headers import BROKEN, quiet
from wardround.client.cases.dicom.pixels import MOST_SIDE, check_streams
from wardround.client.cases.dicom.series import MOST_FRAMES
from wardround.client.cases.nifti import MAX_LABEL
from wardround.client.cases.volume import Volume
from wardround.errors import SeriesRefused

SEGMENTATION_CLASSES = frozenset({"1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"})
"""Segmentation and Label Map Segmentation Storage."""
OFF_GRID = 0.25
"""Voxels that a pixel may lie off the grid: positions are rounded when they are written."""
THRESHOLD = 0.5
"""Share of the largest fractional value from which a pixel belongs to its segment."""

Overlaps = Literal["refuse", "lowest", "highest"]


@dataclass(frozen=True, eq=False)
class _Plane:
    """One frame: which pixels belong to which label, and how its pixels come to lie in the grid."""

    values: npt.NDArray[np.integer[Any]]
    turn: npt.NDArray[np.int64]
    offset: npt.NDArray[np.int64]


def read_seg(
    dataset: Dataset,
    image: Volume,
    *,
    names: Sequence[str] = (),
    segments: Sequence[int] = (),
    overlaps: Overlaps = "refuse",
    frame_of_reference: str = "",
) -> Volume:
    """Labels from a segmentation of SOP class :data:`SEGMENTATION_CLASSES`.

    Parameters
    ----------
    dataset
        With pixels, from anywhere.
    image
        Whose grid the labels shall have.
    names
        Of labels 1, 2, …, as the site calls them. Where every segment has one of these names, it becomes that label;
        else segment ``n`` becomes label ``n``.
    segments
        Numbers of those to read; none for all.
    overlaps
        What becomes of a voxel in two segments: refused, or the one with the lowest or highest label.
    frame_of_reference
        UID of the image's; empty if it has none.

    Returns
    -------
    Volume
        uint8 on the image's grid.

    Raises
    ------
    SeriesRefused
        ``damaged-label``, ``not-a-segmentation``, ``other-frame-of-reference``, ``other-grid``, ``outside-image``,
        ``overlapping-segments``, ``too-many-labels`` or ``unclear-names``.
    """
    try:
        with quiet():
            return _read(
                dataset, image, names=names, only=frozenset(segments), overlaps=overlaps, place=frame_of_reference
            )
    except BROKEN:
        raise damaged() from None


def damaged() -> SeriesRefused:
    """What a label file that contradicts itself is refused with."""
    return SeriesRefused(
        "the label cannot be read",
        "the file is damaged, cut short, or contradicts itself",
        "export the label again",
        reason="damaged-label",
    )


def check_frame_of_reference(found: str, expected: str) -> None:
    """Refuse a label that lies in another frame of reference than its image, where both name theirs."""
    if found and expected and found != expected:
        raise SeriesRefused(
            "the label lies in another frame of reference than the image",
            "it was drawn on another examination",
            "give the label of this series",
            reason="other-frame-of-reference",
        )


def label_values(found: Mapping[int, str], names: Sequence[str]) -> dict[int, int]:
    """Number of a segment → label: by name where every name is known to the site, else by number.

    Raises
    ------
    SeriesRefused
        ``too-many-labels``, or ``unclear-names`` where only some names are known and stand for other numbers.
    """
    known = {name.strip().casefold(): value for value, name in enumerate(names, start=1)}
    named = {number: known.get(name.strip().casefold()) for number, name in found.items()}
    values = {number: value for number, value in named.items() if value is not None}
    if found and len(values) == len(found) == len(set(values.values())):
        return values
    if any(number != value for number, value in values.items()):
        raise SeriesRefused(
            "it is unclear which structure of the file is which label",
            "some of its structures have names that site.toml has for other numbers",
            "name all of them as in site.toml, or none",
            reason="unclear-names",
        )
    if found and not 1 <= min(found) <= max(found) <= MAX_LABEL:  # a structure of RTSTRUCT may have the number 0
        raise SeriesRefused(
            "structures of the label have numbers that no label has", f"labels are 1 to {MAX_LABEL}",
            "name all of them as in site.toml, or leave some out", reason="too-many-labels",
        )  # fmt: skip
    return {number: number for number in found}


def put(
    labels: npt.NDArray[np.uint8], where: tuple[npt.NDArray[np.int64], ...], value: Any, overlaps: Overlaps
) -> None:
    """Write labels into voxels that are given by their indices, minding those that have another label already.

    Raises
    ------
    SeriesRefused
        ``overlapping-segments``, if that is not allowed.
    """
    old = labels[where]
    new = np.broadcast_to(np.asarray(value, np.uint8), old.shape)
    both = (old != 0) & (old != new)
    if overlaps == "refuse" and both.any():
        raise SeriesRefused(
            "structures of the label overlap",
            f"{int(both.sum())} voxels of one plane belong to more than one",
            "export them so that they do not, or one file a structure",
            reason="overlapping-segments",
        )
    chosen = np.minimum(old, new) if overlaps == "lowest" else np.maximum(old, new)
    labels[where] = np.where(both, chosen, new)


def _read(
    dataset: Dataset, image: Volume, *, names: Sequence[str], only: frozenset[int], overlaps: Overlaps, place: str
) -> Volume:
    if dataset.get("SOPClassUID") not in SEGMENTATION_CLASSES:
        raise SeriesRefused(
            "the label is no segmentation", "its kind is another one", "export it as DICOM SEG",
            reason="not-a-segmentation",
        )  # fmt: skip
    check_frame_of_reference(str(dataset.get("FrameOfReferenceUID") or ""), place)
    found = {int(item.SegmentNumber): str(item.get("SegmentLabel") or "") for item in dataset.SegmentSequence}
    kind = str(dataset.SegmentationType)
    if kind == "LABELMAP":
        found.pop(0, None)
    if only - found.keys() or min(found, default=1) < 1:
        raise damaged()
    values = label_values({number: name for number, name in found.items() if not only or number in only}, names)
    table = np.zeros(1 << 16, np.uint8)
    for number, value in values.items():
        table[number] = value
    labels = np.zeros(image.shape, np.uint8)
    for plane in _planes(dataset, image, kind, frozenset(found)):
        wanted = table[plane.values]
        rows, columns = np.nonzero(wanted)
        index = plane.turn @ np.stack([columns, rows]) + plane.offset[:, None]
        if index.size and ((index < 0) | (index >= np.reshape(image.shape, (3, 1)))).any():
            raise SeriesRefused(
                "the label reaches beyond the image", "it was drawn on a larger image", "give the label of this series",
                reason="outside-image",
            )  # fmt: skip
        put(labels, (index[0], index[1], index[2]), wanted[rows, columns], overlaps)
    return image.with_array(labels)


def _planes(dataset: Dataset, image: Volume, kind: str, known: frozenset[int]) -> Iterator[_Plane]:
    """Every frame, with numbers of segments for pixels; 0 is no segment."""
    count, rows, columns = int(dataset.NumberOfFrames), int(dataset.Rows), int(dataset.Columns)
    groups = dataset.PerFrameFunctionalGroupsSequence
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    if not (1 <= count <= MOST_FRAMES and 1 <= rows <= MOST_SIDE and 1 <= columns <= MOST_SIDE) or len(groups) != count:
        raise damaged()
    to_index: npt.NDArray[np.float64] = np.linalg.inv(image.affine).astype(np.float64)
    lowest = _threshold(dataset, kind)
    for group, stored in zip(groups, _stored(dataset, kind, count, rows, columns), strict=True):
        turn, offset = _placed(to_index, group, shared, (rows, columns))
        if kind == "LABELMAP":
            if not set(np.unique(stored).tolist()) - {0} <= known:
                raise damaged()
            yield _Plane(stored, turn, offset)
            continue
        number = int(_macro(group, shared, "SegmentIdentificationSequence").ReferencedSegmentNumber)
        if number not in known:
            raise damaged()
        yield _Plane(np.where(stored >= lowest, number, 0), turn, offset)


def _threshold(dataset: Dataset, kind: str) -> float:
    if kind not in {"BINARY", "FRACTIONAL", "LABELMAP"}:
        raise damaged()
    if kind != "FRACTIONAL":
        return 1
    largest = int(dataset.MaximumFractionalValue)
    if not 1 <= largest <= np.iinfo(np.uint8).max:
        raise damaged()
    return THRESHOLD * largest


def _stored(dataset: Dataset, kind: str, count: int, rows: int, columns: int) -> Iterator[npt.NDArray[np.integer[Any]]]:
    allocated = int(dataset.BitsAllocated)
    if int(dataset.get("SamplesPerPixel", 1)) != 1 or int(dataset.get("PixelRepresentation", 0)) != 0:
        raise damaged()
    syntax = UID(dataset.file_meta.TransferSyntaxUID)
    if allocated == 1 and kind == "BINARY" and not syntax.is_compressed:
        yield from _bits(dataset.PixelData, count, rows, columns)
        return
    if allocated not in ({8, 16} if kind == "LABELMAP" else {8}):
        raise damaged()
    if syntax.is_compressed:
        check_streams(dataset, syntax)
    elif len(dataset.PixelData) < count * rows * columns * allocated // 8:
        raise damaged()
    yield from iter_pixels(
        dataset, raw=True, decoding_plugin="pyjpegls" if syntax in JPEGLSTransferSyntaxes else ""
    )  # fmt: skip


def _bits(data: bytes, count: int, rows: int, columns: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Frames of single bits follow each other without a gap, the lowest bit of a byte first (PS3.5, 8.1.1)."""
    size = rows * columns
    if len(data) * 8 < count * size:
        raise damaged()
    for number in range(count):
        first, last = number * size, (number + 1) * size
        part = np.frombuffer(data[first // 8 : -(-last // 8)], np.uint8)
        yield np.unpackbits(part, bitorder="little")[first % 8 :][:size].reshape(rows, columns)


def _placed(
    to_index: npt.NDArray[np.float64], group: Dataset, shared: Dataset, size: tuple[int, int]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """How column and row become an index of the grid: a signed choice of axes, shape ``(3, 2)``, and an offset."""
    position = _macro(group, shared, "PlanePositionSequence").ImagePositionPatient
    orientation = _macro(group, shared, "PlaneOrientationSequence").ImageOrientationPatient
    spacing = _macro(group, shared, "PixelMeasuresSequence").PixelSpacing
    plane = np.zeros((4, 3))
    plane[:3, 0] = np.array(orientation[:3], np.float64) * float(spacing[1])
    plane[:3, 1] = np.array(orientation[3:], np.float64) * float(spacing[0])
    plane[:, 2] = [*(float(one) for one in position), 1]
    exact = (to_index @ plane)[:3]
    if not (np.isfinite(exact).all() and np.abs(exact).max() < MOST_SIDE * 1e3):
        raise damaged()
    whole = np.round(exact)
    corners = np.array([[0, 0, 1], [size[1] - 1, 0, 1], [0, size[0] - 1, 1], [size[1] - 1, size[0] - 1, 1]]).T
    off = float(np.abs((exact - whole) @ corners).max())
    if (np.abs(whole[:, :2]).sum(axis=0) != 1).any() or (np.abs(whole[:, :2]).sum(axis=1) > 1).any() or off > OFF_GRID:
        raise SeriesRefused(
            "the label lies on another grid than the image",
            "its pixels are of another size, turned, or lie between those of the image; nothing is interpolated",
            "give the label of this very series; a resampled case takes none that was drawn on the original",
            reason="other-grid",
        )
    return whole[:, :2].astype(np.int64), whole[:, 2].astype(np.int64)


def _macro(group: Dataset, shared: Dataset, name: str) -> Dataset:
    found = group.get(name) or shared.get(name)
    if not found:
        raise damaged()
    item: Dataset = found[0]
    return item
