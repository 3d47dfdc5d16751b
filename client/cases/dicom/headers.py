"""Headers of DICOM files that nobody vouches for: read without pixels, within limits, and without a word about them."""

import logging
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

from pydicom import config, dcmread, dcmwrite
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

from wardround.errors import DataError, StorageError

HEADER_BYTES = 32 << 20
"""Of a file, so much is looked at for its header; a header of many thousand frames has a few million bytes."""

_BARE = tuple(bytes((group, 0, element, 0)) for group, element in ((2, 0), (8, 0), (8, 5), (8, 8)))

BROKEN = (
    OSError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    MemoryError,
    RecursionError,
    RuntimeError,
    NotImplementedError,
    struct.error,
    zlib.error,
    InvalidDicomError,
    BytesLengthException,
)
"""Whatever pydicom and the decoders raise on bytes that are no valid image. Their texts quote values, which may be a
patient's: what is raised in their place is raised ``from None``."""

# What pydicom says about a file it quotes from it.
config.settings.reading_validation_mode = config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)


@contextmanager
def quiet() -> Iterator[None]:
    """No warning leaves the block: those of pydicom quote values, which may be a patient's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def is_dicom(start: bytes) -> bool:
    """Whether a file that begins so may be DICOM; `start` is its first 132 bytes or more.

    Files without the preamble of PS3.10 are taken if they begin with an element of group 2 or 8, as old ones do.
    """
    if start[128:132] == b"DICM":
        return True
    return start[:4] in _BARE


def read_header(data: bytes) -> Dataset | None:
    """The header of a file from its first bytes, pixels left out; None if it cannot be read.

    A file that is deflated as a whole is not read: it may be of any size when it is unpacked.
    """
    return _read(data, pixels=False)


def read_all(data: bytes) -> Dataset | None:
    """Header and pixels of a whole file; None if it cannot be read."""
    return _read(data, pixels=True)


def _read(data: bytes, *, pixels: bool) -> Dataset | None:
    try:
        with quiet():
            stream = BytesIO(data)
            stream.seek(132 if data[128:132] == b"DICM" else 0)
            meta = read_dataset(stream, False, True, stop_when=lambda tag, *_: tag >> 16 != 2)
            if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
                return None
            return dcmread(BytesIO(data), force=True, stop_before_pixels=not pixels)
    except BROKEN:
        return None


def pack(header: Dataset) -> bytes:
    """The bytes of a header, as a file of its own without pixels, packed.

    Raises
    ------
    DataError
        If it holds elements that cannot be written.
    """
    stream = BytesIO()
    try:
        with quiet():
            dcmwrite(stream, header, enforce_file_format=True)
    except BROKEN:
        raise DataError(
            "the header of an image cannot be kept",
            "it holds elements that cannot be written again",
            "export the series from the archive again",
        ) from None
    return zlib.compress(stream.getvalue(), 1)


def unpack(data: bytes, folder: Path) -> Dataset:
    """The header that :func:`pack` made bytes of; `folder` is where they lay.

    Raises
    ------
    StorageError
        If they are damaged.
    """
    try:
        with quiet():
            return dcmread(BytesIO(zlib.decompress(data)))
    except BROKEN:
        raise StorageError(
            f"cannot read a header in the register {folder}",
            "the file is damaged",
            "restore the register from a backup",
        ) from None
