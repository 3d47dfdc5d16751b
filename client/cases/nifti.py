"""NIfTI in and out: one 3D image a file, in LPS millimetres, with the header's slope and intercept applied.

NIfTI affines lead to RAS millimetres; a :class:`~wardround.client.cases.volume.Volume` lives in LPS. The array is never
flipped or reordered: only the first two rows of the affine change sign.
"""

import gzip
import logging
import struct
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError, HeaderTypeError
from nibabel.wrapstruct import WrapStructError

from wardround import files
from wardround.client.cases.volume import Volume
from wardround.errors import DataError, GeometryError, LabelError

logger = logging.getLogger(__name__)

MAX_LABEL = 254  # 255 marks pixels that nobody labelled

_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_MILLIMETRES = {"meter": 1000.0, "mm": 1.0, "micron": 0.001, "unknown": 1.0}
_GZIP_MAGIC = b"\x1f\x8b"
_NIFTI2_HEADER_BYTES = 540

# Whatever nibabel, gzip and numpy raise on bytes that are no valid image.
_BROKEN_FILE = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
    ImageFileError,
    HeaderDataError,
    HeaderTypeError,
    WrapStructError,
)


def read_image(path: Path) -> Volume:
    """Read an intensity image.

    Parameters
    ----------
    path
        A ``.nii`` or ``.nii.gz`` file (NIfTI-1 or NIfTI-2).

    Returns
    -------
    Volume
        Shape ``(I, J, K)`` in the order of the file, float32, slope and intercept applied, affine in LPS millimetres.

    Raises
    ------
    DataError
        If the file is missing or unreadable, is no NIfTI image of real numbers, or holds NaN or infinity.
    GeometryError
        If the image is not 3D or has no usable affine.
    """
    return decode_image(_read(path), path)


def read_labels(path: Path) -> Volume:
    """Read a label image.

    Returns
    -------
    Volume
        Shape ``(I, J, K)``, uint8, values 0 … :data:`MAX_LABEL`, affine in LPS millimetres.

    Raises
    ------
    DataError
        As :func:`read_image`, and if a value is not an integer of 0 … :data:`MAX_LABEL`.
    GeometryError
        If the image is not 3D or has no usable affine.
    """
    return decode_labels(_read(path), path)


def write_volume(path: Path, volume: Volume) -> None:
    """Write `volume` as a NIfTI-1 file, atomically: the old file or the whole new one, never half of it.

    Parameters
    ----------
    path
        Ends in ``.nii`` or ``.nii.gz``.
    volume
        Integers of up to 32 bits and float32 keep their type; bool becomes uint8, other floats float32, wider integers
        int32.

    Raises
    ------
    DataError
        If the name ends in anything else, or the values fit none of these types.
    StorageError
        If the disk is full or the folder is not writable.
    """
    if not path.name.endswith((".nii", ".nii.gz")):
        raise DataError(
            f"cannot write {path}", "volumes are written as NIfTI", "choose a name that ends in .nii.gz or .nii"
        )
    files.write_bytes(path, encode(volume, compress=path.name.endswith(".gz")))


def check_same_grid(image: Volume, label: Volume, name: str = "the label") -> None:
    """Make sure that a label lies on the grid of its image.

    Parameters
    ----------
    name
        What to call the label in the message, for instance its path.

    Raises
    ------
    GeometryError
        If shape or affine differ.
    """
    if image.same_grid(label):
        return
    if image.shape != label.shape:
        cause = f"its shape is {label.shape}, the image's is {image.shape}"
    else:
        cause = "the shapes agree but the affines (origin, spacing or direction) do not"
    raise GeometryError(
        f"{name} does not lie on the grid of its image", cause, "resample the label onto the image and import it again"
    )


def check_classes(label: Volume, classes: int, name: str = "the label") -> None:
    """Refuse a label with structures that a plan does not know.

    Parameters
    ----------
    label
        Whole numbers, 0 background.
    classes
        Of the plan, background included.
    name
        What to call the label in the error.

    Raises
    ------
    LabelError
        If a value is not below `classes`.
    """
    highest = int(label.array.max())
    if highest >= classes:
        raise LabelError(
            f"{name} goes up to {highest}, and the plan knows 0 to {classes - 1}",
            "the plan is for another task than the label, or counts its structures without the background",
            f"ask the coordinator for a run with `--labels {highest + 1}`, or keep cases of that task at another site",
        )


def encode(volume: Volume, *, compress: bool = True) -> bytes:
    """The bytes of a NIfTI-1 file (gzipped if `compress`); equal volumes give equal bytes. See :func:`write_volume`."""
    affine = _RAS_TO_LPS @ volume.affine
    image = nib.Nifti1Image(_storable(volume.array), affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner", strip_shears=True)
    data: bytes = image.to_bytes()
    # Level 1: noise in float32 hardly compresses further, and a label volume shrinks a hundredfold anyway.
    return gzip.compress(data, compresslevel=1, mtime=0) if compress else data


def decode_image(data: bytes, source: Path) -> Volume:
    """The image in the bytes of a NIfTI file; `source` only names it in errors. See :func:`read_image`."""
    array, affine = _decode(data, source)
    with np.errstate(over="ignore"):
        intensities = array.astype(np.float32)
    if not np.isfinite(intensities).all():
        raise DataError(
            f"{source} holds voxels that are NaN or infinite",
            "a processing step divided by zero, or the values exceed 32-bit floats",
            "repair the image, or leave this case out",
        )
    return Volume(intensities, affine)


def decode_labels(data: bytes, source: Path) -> Volume:
    """The labels in the bytes of a NIfTI file; `source` only names it in errors. See :func:`read_labels`."""
    array, affine = _decode(data, source)
    if not (np.isfinite(array).all() and (array == np.round(array)).all()):
        raise DataError(
            f"{source} holds label values that are not integers",
            "the label was resampled with interpolation, or an image was given in place of a label",
            "resample labels with nearest neighbour, or give the right file",
        )
    if array.min() < 0 or array.max() > MAX_LABEL:
        raise DataError(
            f"{source} holds label values outside 0 … {MAX_LABEL}",
            "an image was given in place of a label, or its structures are numbered otherwise",
            "renumber the structures from 1",
        )
    return Volume(array.astype(np.uint8), affine)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist", "it was moved or never copied", "check the path") from error
    except OSError as error:
        raise DataError(
            f"cannot read {path}", error.strerror or type(error).__name__, "check the file and its permissions"
        ) from error


def _decode(data: bytes, source: Path) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64]]:
    try:
        raw = gzip.decompress(data) if data.startswith(_GZIP_MAGIC) else data
        nifti2 = _NIFTI2_HEADER_BYTES in (int.from_bytes(raw[:4], order) for order in ("little", "big"))
        image = (nib.Nifti2Image if nifti2 else nib.Nifti1Image).from_bytes(raw)
        # A stored slope of 0 or NaN means "none"; nibabel knows, and computes the others in float64.
        array = np.asanyarray(image.dataobj)
        affine = _RAS_TO_LPS @ np.asarray(image.affine, dtype=np.float64)
        affine[:3] *= _MILLIMETRES.get(image.header.get_xyzt_units()[0], 1.0)
        oriented = image.header["qform_code"] > 0 or image.header["sform_code"] > 0
    except _BROKEN_FILE as error:
        raise DataError(
            f"cannot read {source} as a NIfTI image",
            "the file is damaged, cut short or of another format",
            "copy it again, or convert it to .nii.gz",
        ) from error
    if not oriented:
        logger.warning("a NIfTI header names no coordinate system; its axes are taken as right, anterior, superior")
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"{source} holds no real numbers", "it is a colour or complex image", "export a greyscale image"
        )
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 3:
        raise GeometryError(
            f"{source} has {array.ndim} axes, not three",
            "it holds a single slice, a time series or several channels",
            "export one 3D image per case",
        )
    return array, affine


def _storable(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind == "b":
        return array.astype(np.uint8)
    if kind == "f":
        return array.astype(np.float32)
    if kind in "iu" and size <= 4:
        return array
    if kind in "iu" and array.min() >= np.iinfo(np.int32).min and array.max() <= np.iinfo(np.int32).max:
        return array.astype(np.int32)
    raise DataError(
        f"cannot write voxels of type {array.dtype} as NIfTI",
        "the values do not fit 32-bit numbers",
        "convert them to float32 or a narrower integer",
    )
