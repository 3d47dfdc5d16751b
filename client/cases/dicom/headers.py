"""Headers of DICOM files that nobody vouches for: read without pixels, within limits, and without a word about them."""

import logging
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from pydicom import config
from pydicom.errors import BytesLengthException, InvalidDicomError

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
"""Whatever pydicom and the decoders raise on bytes that are no valid image."""

# What pydicom says about a file it quotes from it.
config.settings.reading_validation_mode = config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)


@contextmanager
def quiet() -> Iterator[None]:
    """No warning leaves the block: those of pydicom quote values, which may be a patient's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
