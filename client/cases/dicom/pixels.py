"""Stored pixels become intensities: decompressed, in their own sign, with the slope and intercept of their own frame.

Value padding (CT scanners fill the corners outside their circle with one number) is kept as it is, unless asked
otherwise: it is part of the image, and the same as other tools read.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import Literal

import gdcm
import jpeg_ls
import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels import iter_pixels
from pydicom.uid import UID, ExplicitVRBigEndian, JPEGLSTransferSyntaxes, RLELossless

from wardround.client.cases.dicom.headers import BROKEN, quiet
from wardround.errors import SeriesRefused

Padding = Literal["keep", "lowest"]

MOST_SIDE = 1 << 14
"""Rows, or columns, of one image."""

# pydicom looks for it by itself: where it is missing, that shall be known now and not at the first such image.
_ = jpeg_ls

# The library of decoders writes to standard error what it dislikes, and quotes it.
for _silence in (gdcm.Trace.SetDebug, gdcm.Trace.SetWarning, gdcm.Trace.SetError):
    _silence(False)

Values = npt.NDArray[np.float32]


def intensities(dataset: Dataset, frames: Sequence[int], padding: Padding = "keep") -> Iterator[Values]:
    """The intensities of some frames of one object, one after the other.

    Parameters
    ----------
    dataset
        With its pixels, of one sample a pixel.
    frames
        From 0, each below its number of frames.
    padding
        ``keep``, or ``lowest``: pixels of Pixel Padding Value become the lowest other value of their frame.

    Yields
    ------
    ndarray
        Shape ``(rows, columns)``, float32. MONOCHROME1, where the lowest value is white, is turned around within its
        range of stored values; not for CT and PET, whose numbers mean something.

    Raises
    ------
    SeriesRefused
        ``damaged-pixels``, ``transfer-syntax``, ``pixel-format`` or ``lookup-table``.
    """
    images = _images(dataset, frames, padding)
    for _ in frames:
        try:
            with quiet():
                image = next(images)
        except (*BROKEN, StopIteration):
            raise SeriesRefused(
                "the pixels of an image cannot be read",
                "the file is damaged or cut short, or the pixels are not what its header says",
                "export the series again",
                reason="damaged-pixels",
            ) from None
        yield image


def _images(dataset: Dataset, frames: Sequence[int], padding: Padding) -> Iterator[Values]:
    for index, stored in zip(frames, stored_values(dataset, frames), strict=True):
        yield _scaled(dataset, index, stored, padding)


def _check_format(dataset: Dataset) -> None:
    if "PixelData" not in dataset:
        raise _format("it has no integer pixels")
    allocated, stored, high = (int(dataset[name].value) for name in ("BitsAllocated", "BitsStored", "HighBit"))
    if allocated not in (8, 16, 32) or not 1 <= stored <= allocated or not stored - 1 <= high < allocated:
        raise _format(f"its bits are {stored} of {allocated}, up to bit {high}")
    if max(int(dataset.Rows), int(dataset.Columns)) > MOST_SIDE:
        raise _format("an image is too large")
    if dataset.get("PhotometricInterpretation") not in ("MONOCHROME1", "MONOCHROME2"):
        raise _format("it is not greyscale")


def stored_values(dataset: Dataset, frames: Sequence[int]) -> Iterator[npt.NDArray[np.int64]]:
    """The numbers of some frames as stored, in their sign, without whatever else is in their words.

    Raises what is in ``headers.BROKEN``, and SeriesRefused as :func:`intensities`.
    """
    _check_format(dataset)
    syntax = UID(dataset.file_meta.TransferSyntaxUID)
    allocated, bits, high = int(dataset.BitsAllocated), int(dataset.BitsStored), int(dataset.HighBit)
    plugin = ""
    if syntax.is_compressed:
        if high != bits - 1:
            raise _format(f"its bits are {bits} of {allocated}, up to bit {high}, and compressed")
        check_streams(dataset, syntax)
        plugin = "pyjpegls" if syntax in JPEGLSTransferSyntaxes else ""
    try:
        if high != bits - 1:
            decoded = _words(dataset, frames, high + 1 - bits)
        else:
            decoded = iter_pixels(dataset, indices=list(frames), raw=True, decoding_plugin=plugin)
        for frame in decoded:
            values = frame.astype(np.int64) & ((1 << bits) - 1)
            if int(dataset.PixelRepresentation) == 1:
                values -= (values >> (bits - 1)) << bits
            yield values
    except NotImplementedError:
        raise SeriesRefused(
            "the images are compressed in a way that cannot be read",
            f"their transfer syntax is {syntax.name if syntax.is_transfer_syntax else 'unknown'}",
            "have the archive send them uncompressed or in JPEG Lossless",
            reason="transfer-syntax",
        ) from None


def _words(dataset: Dataset, frames: Sequence[int], shift: int) -> Iterator[npt.NDArray[np.int64]]:
    """Whole words, moved to the right; pydicom clears their upper bits, which here are the ones that count."""
    size = int(dataset.BitsAllocated) // 8
    order = ">" if dataset.file_meta.TransferSyntaxUID == ExplicitVRBigEndian and size > 1 else "<"
    count = int(dataset.Rows) * int(dataset.Columns)
    for index in frames:
        words = np.frombuffer(dataset.PixelData, f"{order}u{size}", count, index * count * size)
        yield words.reshape(int(dataset.Rows), int(dataset.Columns)).astype(np.int64) >> shift


def _scaled(dataset: Dataset, index: int, stored: npt.NDArray[np.int64], padding: Padding) -> Values:
    slope, intercept = _rescale(dataset, index)
    values = stored * slope + intercept
    if not np.isfinite(values).all() or np.abs(values).max() > np.finfo(np.float32).max:
        raise _format("its slope or intercept is no number")
    if dataset.PhotometricInterpretation == "MONOCHROME1" and dataset.get("Modality") not in ("CT", "PT"):
        bits = int(dataset.BitsStored)
        lowest = -(1 << (bits - 1)) if int(dataset.PixelRepresentation) == 1 else 0
        values = (2 * lowest + (1 << bits) - 1 - stored) * slope + intercept
    if padding == "lowest" and (outside := _padded(dataset, stored)).any() and not outside.all():
        values[outside] = values[~outside].min()
    return values.astype(np.float32)


def _padded(dataset: Dataset, stored: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, np.bool_)
    first, bits = int(value), int(dataset.BitsStored)
    last = int(dataset.get("PixelPaddingRangeLimit", first))
    edges = np.array([first, last], np.int64) & ((1 << bits) - 1)
    if int(dataset.PixelRepresentation) == 1:
        edges -= (edges >> (bits - 1)) << bits
    return np.asarray((stored >= edges.min()) & (stored <= edges.max()))


def _rescale(dataset: Dataset, index: int) -> tuple[float, float]:
    places = [dataset]
    if groups := dataset.get("PerFrameFunctionalGroupsSequence"):
        places = [groups[index], *(dataset.get("SharedFunctionalGroupsSequence") or []), dataset]
    for place in places:
        found = (place.get("PixelValueTransformationSequence") or [place])[0]
        if found.get("ModalityLUTSequence"):
            raise SeriesRefused(
                "the images have a lookup table in place of slope and intercept",
                "such a table is not applied",
                "have the modality or the archive write slope and intercept",
                reason="lookup-table",
            )
        slope, intercept = found.get("RescaleSlope"), found.get("RescaleIntercept")
        if slope is not None or intercept is not None:
            # The standard wants both or none (PS3.3, C.11.1). Where one is missing, other readers change nothing by it.
            return float(1 if slope is None else slope), float(0 if intercept is None else intercept)
    return 1.0, 0.0


def check_streams(dataset: Dataset, syntax: UID) -> None:
    """Make sure that compressed frames are as large as the header says, before anybody makes room for them."""
    if syntax == RLELossless:
        return
    size = (int(dataset.Rows), int(dataset.Columns))
    count = int(dataset.get("NumberOfFrames") or 1)
    for frame in generate_frames(dataset.PixelData, number_of_frames=count):
        if _declared_size(frame) != size:
            raise _format("a compressed image is of another size than its header says, or does not say its own")


def _declared_size(stream: bytes) -> tuple[int, int] | None:
    """Rows and columns in the first frame header of a JPEG, JPEG-LS or JPEG 2000 stream of one component.

    None where there is none: also in a stream with boxes of a JP2 file around it, which DICOM forbids (PS3.5, A.4.4).
    """
    if stream.startswith(b"\xff\x4f\xff\x51") and len(stream) >= 42:
        right, bottom, left, top = struct.unpack_from(">4L", stream, 8)
        return (bottom - top, right - left) if struct.unpack_from(">H", stream, 40)[0] == 1 else None
    at = 2
    while at + 10 <= len(stream) and stream[at] == 0xFF:
        marker = stream[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            rows, columns = struct.unpack_from(">2H", stream, at + 5)
            return (rows, columns) if stream[at + 9] == 1 else None
        at += 2 + int(struct.unpack_from(">H", stream, at + 2)[0])
    return None


def _format(cause: str) -> SeriesRefused:
    return SeriesRefused(
        "the images are of a kind that cannot be read", cause, "export the series in another way", reason="pixel-format"
    )
