"""Contours of an RT Structure Set become labels: a voxel belongs to a structure if its centre lies inside.

Contours are closed polygons in patient millimetres. Those of one structure on one slice are joined by exclusive or, so
that a contour within another one is a hole, as is the keyhole of a polygon that touches itself (PS3.3, C.8.8.6.3).
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from wardround.client.cases.dicom.headers import BROKEN, quiet
from wardround.client.cases.dicom.segments import (
    Overlaps,
    check_frame_of_reference,
    damaged,
    label_values,
    put,
)
from wardround.client.cases.volume import Volume
from wardround.errors import SeriesRefused

STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
OFF_SLICE = 0.5
"""Steps that a contour may lie off the slice that it is taken for."""
NOT_FLAT = 0.1
"""Steps that the points of one contour may differ in height."""
OUTSIDE = 1.0
"""Voxels that a contour may reach beyond the edge of the image; what is beyond is cut off."""
MOST_POINTS = 20_000_000
MOST_CROSSINGS = 200_000_000
"""Crossings of contours with rows of voxels."""

_CLOSED = frozenset({"CLOSED_PLANAR", "CLOSEDPLANAR_XOR"})
_AT_ONCE = 1 << 20
# A contour through the centres of voxels takes those on its lower edges and leaves those on its upper ones.
_EDGE = 1e-6

Floats = npt.NDArray[np.float64]


def read_rtstruct(
    dataset: Dataset,
    image: Volume,
    *,
    names: Sequence[str] = (),
    structures: Sequence[int] = (),
    overlaps: Overlaps = "refuse",
    frame_of_reference: str = "",
) -> Volume:
    """Labels from the closed contours of a structure set.

    Parameters
    ----------
    image
        Whose grid the labels shall have; contours lie in its slices, planes of constant ``k``.
    names, overlaps, frame_of_reference
        As :func:`~wardround.client.cases.dicom.segments.read_seg`; the number of a structure is its ROI Number.
    structures
        ROI Numbers to read; none for all that have closed contours.

    Returns
    -------
    Volume
        uint8 on the image's grid. Slices without a contour stay empty: nothing is interpolated.

    Raises
    ------
    SeriesRefused
        As :func:`~wardround.client.cases.dicom.segments.read_seg`; also ``no-contours``, ``tilted-contour`` where one
        does not lie in a slice, and ``too-many-points``.
    """
    try:
        with quiet():
            return _read(
                dataset, image, names=names, only=frozenset(structures), overlaps=overlaps, place=frame_of_reference
            )
    except BROKEN:
        raise damaged() from None


def _read(
    dataset: Dataset, image: Volume, *, names: Sequence[str], only: frozenset[int], overlaps: Overlaps, place: str
) -> Volume:
    if dataset.get("SOPClassUID") != STRUCTURE_SET:
        raise SeriesRefused(
            "the label is no structure set", "its kind is another one", "export it as RT Structure Set",
            reason="not-a-segmentation",
        )  # fmt: skip
    found: dict[int, str] = {}
    for item in dataset.StructureSetROISequence:
        number = int(item.ROINumber)
        found[number] = str(item.get("ROIName") or "")
        if not only or number in only:
            check_frame_of_reference(str(item.get("ReferencedFrameOfReferenceUID") or ""), place)
    contours: dict[int, list[Floats]] = defaultdict(list)
    points = 0
    for item in dataset.get("ROIContourSequence") or []:
        number = int(item.ReferencedROINumber)
        if number not in found:
            raise damaged()
        if only and number not in only:
            continue
        for polygon in _polygons(item, image):
            points += len(polygon)
            if points > MOST_POINTS:
                raise _too_many()
            contours[number].append(polygon)
    if not contours or only - contours.keys():
        raise SeriesRefused(
            "the structure set has no closed contours", "its structures are empty, points or open lines",
            "export the structures as closed contours", reason="no-contours",
        )  # fmt: skip
    values = label_values({number: found[number] for number in contours}, names)
    labels = np.zeros(image.shape, np.uint8)
    left = MOST_CROSSINGS
    for number, value in sorted(values.items()):
        slices: dict[int, list[Floats]] = defaultdict(list)
        for polygon in contours[number]:
            slices[_slice_of(polygon, image)].append(polygon[:, :2])
        for k, polygons in sorted(slices.items()):
            inside, used = filled(polygons, image.shape[:2], left)
            left -= used
            i, j = np.nonzero(inside)
            put(labels, (i, j, np.full_like(i, k)), value, overlaps)
    return image.with_array(labels)


def filled(
    polygons: Sequence[Floats], shape: tuple[int, int], most: int = MOST_CROSSINGS
) -> tuple[npt.NDArray[np.bool_], int]:
    """Pixels whose centre lies inside an odd number of polygons, and how many crossings were counted.

    Parameters
    ----------
    polygons
        Points ``(i, j)`` each, shape ``(n, 2)``, closed by themselves; a pixel's centre has whole numbers.
    shape
        Of the image, ``(I, J)``.
    most
        Crossings at most.

    Raises
    ------
    SeriesRefused
        ``too-many-points``.
    """
    toggles = np.zeros((shape[0] + 1, shape[1]), np.uint8)
    used = 0
    for polygon in polygons:
        start = polygon - _EDGE
        end = np.roll(start, -1, axis=0)
        low, high = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
        # Rows j with low <= j < high: an edge's upper end belongs to the next edge.
        first = np.clip(np.ceil(low), 0, shape[1]).astype(np.int64)
        last = np.clip(np.ceil(high), 0, shape[1]).astype(np.int64)
        counts = np.maximum(last - first, 0)
        used += int(counts.sum())
        if used > most:
            raise _too_many()
        for part in _portions(counts):
            edges = np.repeat(part, counts[part])
            within = np.arange(len(edges)) - np.repeat(np.cumsum(counts[part]) - counts[part], counts[part])
            rows = first[edges] + within
            share = (rows - start[edges, 1]) / (end[edges, 1] - start[edges, 1])
            crossing = start[edges, 0] + share * (end[edges, 0] - start[edges, 0])
            columns = np.clip(np.ceil(crossing), 0, shape[0]).astype(np.int64)
            # Sums of bytes may overflow: only whether they are odd matters.
            np.add.at(toggles, (columns, rows), np.uint8(1))
    return (np.bitwise_xor.accumulate(toggles & 1, axis=0)[:-1] == 1), used


def _portions(counts: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
    """Edges that cross rows, in portions of about as many crossings as fit into memory well."""
    edges = np.nonzero(counts)[0]
    if len(edges):
        ends = np.cumsum(counts[edges])
        yield from np.split(edges, np.searchsorted(ends, np.arange(_AT_ONCE, int(ends[-1]), _AT_ONCE)))


def _polygons(item: Dataset, image: Volume) -> Iterator[Floats]:
    """The closed contours of one structure in voxel indices, shape ``(n, 3)`` each."""
    to_index = np.linalg.inv(image.affine)
    for contour in item.get("ContourSequence") or []:
        if contour.get("ContourGeometricType") not in _CLOSED:
            continue
        numbers = np.array([float(one) for one in contour.ContourData], np.float64)
        if len(numbers) % 3 or len(numbers) < 9 or not np.isfinite(numbers).all():
            raise damaged()
        if len(numbers) > 3 * MOST_POINTS:
            raise _too_many()
        points = numbers.reshape(-1, 3) @ to_index[:3, :3].T + to_index[:3, 3]
        if (points[:, :2] < -0.5 - OUTSIDE).any() or (points[:, :2] > np.array(image.shape[:2]) - 0.5 + OUTSIDE).any():
            raise _outside()
        yield points


def _slice_of(polygon: Floats, image: Volume) -> int:
    heights = polygon[:, 2]
    if np.ptp(heights) > NOT_FLAT:
        raise SeriesRefused(
            "a contour does not lie in a slice of the image",
            f"its points are up to {np.ptp(heights) * image.spacing[2]:.3g} mm apart across the slices",
            "export the structures on the slices of this series",
            reason="tilted-contour",
        )
    height = float(heights.mean())
    k = int(np.clip(np.round(height), 0, image.shape[2] - 1))
    if abs(height - k) > OFF_SLICE:
        raise _outside()
    return k


def _outside() -> SeriesRefused:
    return SeriesRefused(
        "the label reaches beyond the image", "it was drawn on a larger image", "give the label of this series",
        reason="outside-image",
    )  # fmt: skip


def _too_many() -> SeriesRefused:
    return SeriesRefused(
        "the contours have too many points", f"at most {MOST_POINTS} are taken", "export fewer structures at once",
        reason="too-many-points",
    )  # fmt: skip
