"""Files that viewers send: images and label maps as NIfTI or NRRD, told apart by their first bytes.

A name is never used: it may hold a patient's, or a path.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wardround.client.annotation.prompts import Labels3D
from wardround.client.cases.nifti import MAX_LABEL, decode_image
from wardround.client.cases.volume import Volume
from wardround.client.workbench.monai_label import nrrd
from wardround.errors import DataError, GeometryError

GZIP = b"\x1f\x8b"
NAME = Path("the file")
# Voxel centres of a cut-out may lie so far from those of the image, in voxels.
ALIGNED = 0.05


@dataclass(frozen=True, eq=False)
class SentLabels:
    """A label map that a viewer sent, on the grid of its image.

    Parameters
    ----------
    values
        ``[I, J, K]``, uint8, numbered as the viewer numbers its segments.
    segments
        Those numbers by the segments' names, where the file itself has them.
    """

    values: Labels3D
    segments: Mapping[str, int]


def read_image(data: bytes) -> Volume:
    """An intensity image: float32, affine in LPS millimetres.

    Raises
    ------
    DataError
        If it is neither NIfTI nor NRRD, is damaged or too large, or holds NaN or infinity.
    GeometryError
        If it is not 3D or has no usable affine.
    """
    volume, _ = _read(data)
    if volume.array.dtype.kind not in "iuf":
        raise DataError("the file holds no real numbers", "it is a colour image", "send a greyscale image")
    with np.errstate(over="ignore"):
        intensities = volume.array.astype(np.float32)
    if not np.isfinite(intensities).all():
        raise DataError(
            "the file holds voxels that are NaN or infinite",
            "a processing step divided by zero, or the values exceed 32-bit floats",
            "repair the image",
        )
    return volume.with_array(intensities)


def read_labels(data: bytes, image: Volume, *, raw: bool = False) -> SentLabels:
    """A label map of `image`.

    Parameters
    ----------
    data
        A NIfTI or NRRD file, on the grid of the image or on a part of it.
    image
        Whose labels these are.
    raw
        Whether the data are bare bytes, one a voxel, x fastest: OHIF's ``.bin``.

    Raises
    ------
    DataError
        If it is no label map.
    GeometryError
        If it does not lie on the grid of the image.
    """
    if raw:
        if len(data) != image.array.size:
            raise GeometryError(
                "a raw label map must have one byte for every voxel of its image",
                f"it has {len(data)} bytes, the image {image.array.size} voxels",
                "send the labels of this image",
            )
        return SentLabels(np.frombuffer(data, np.uint8).reshape(image.shape, order="F"), {})
    volume, segments = _read(data)
    array: npt.NDArray[Any] = volume.array
    whole = array.dtype.kind in "biu" or (np.isfinite(array).all() and (array == np.round(array)).all())
    if not whole or array.min() < 0 or array.max() > MAX_LABEL:
        raise DataError(
            f"a label map must hold whole numbers of 0 … {MAX_LABEL}",
            "it was resampled with interpolation, or an image was sent in its place",
            "send the label map",
        )
    return SentLabels(_on_grid(volume.with_array(array.astype(np.uint8)), image), segments)


def _read(data: bytes) -> tuple[Volume, Mapping[str, int]]:
    if data.startswith(nrrd.MAGIC):
        found = nrrd.decode(data)
        return found.volume, found.segments
    try:
        plain = nrrd.inflate(data) if data.startswith(GZIP) else data
    except zlib.error as error:
        raise DataError("the file cannot be unpacked", "it is damaged or cut short", "send it again") from error
    if plain.startswith(nrrd.MAGIC):
        found = nrrd.decode(plain)
        return found.volume, found.segments
    return decode_image(plain, NAME), {}


def _on_grid(label: Volume, image: Volume) -> Labels3D:
    """The labels on the image's grid; a cut-out, as 3D Slicer saves segmentations, is put where it belongs."""
    if image.same_grid(label):
        return np.asarray(label.array, dtype=np.uint8)
    to_image = np.linalg.inv(image.affine) @ label.affine
    corners = np.array([[0, 0, 0, 1], [*(side - 1 for side in label.shape), 1]], dtype=np.float64)
    first, last = (corners @ to_image.T)[:, :3]
    lower, upper = np.rint(first).astype(int), np.rint(last).astype(int) + 1
    aligned = np.abs(to_image[:3, :3] - np.eye(3)).max() * max(label.shape) <= ALIGNED
    exact = max(np.abs(first - lower).max(), np.abs(last + 1 - upper).max()) <= ALIGNED
    if not (aligned and exact and (lower >= 0).all() and (upper <= image.shape).all()):
        raise GeometryError(
            "the label map does not lie on the grid of its image",
            "it was drawn on another image, or on a resampled one",
            "export the labels with the image as reference geometry",
        )
    placed: npt.NDArray[np.uint8] = np.zeros(image.shape, dtype=np.uint8)
    placed[tuple(slice(low, high) for low, high in zip(lower, upper, strict=True))] = label.array
    return placed
