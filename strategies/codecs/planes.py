"""Bytes of one kind, coded without loss by how often each value occurs.

A plane holds bytes that are alike: the exponents of many floats, or quantised changes. Huffman codes bring those close
to their entropy; a search for repetitions, which other settings of deflate make, finds none and takes most of the time.
Runs are looked for all the same, because what did not change is one long run of zeros.

A plane is written as the number of its coded bytes (8 bytes, big-endian) and these bytes: raw deflate (RFC 1951), or
the plane itself where that is no longer. How many bytes come out is known beforehand to whoever reads.
"""

import zlib

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

_LENGTH = 8
_RAW = -15


def pack(plane: bytes) -> bytes:
    """Write one plane."""
    coder = zlib.compressobj(6, zlib.DEFLATED, _RAW, 9, zlib.Z_RLE)
    coded = coder.compress(plane) + coder.flush()
    body = coded if len(coded) < len(plane) else plane
    return len(body).to_bytes(_LENGTH, "big") + body


class PlaneReader:
    """Reads what was written, one part after the other.

    Parameters
    ----------
    data
        As it arrived.
    """

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._at = 0

    def take(self, size: int) -> bytes:
        """The next `size` bytes as they are.

        Raises
        ------
        ValueError
            If there are not as many.
        """
        if size > len(self._data) - self._at:
            raise ValueError("it ends too early")
        self._at += size
        return bytes(self._data[self._at - size : self._at])

    def plane(self, size: int) -> Bytes:
        """The next plane, which holds `size` bytes. No more than these are allocated, and only as they come out.

        Raises
        ------
        ValueError
            If it holds more or fewer, or is not coded.
        """
        length = int.from_bytes(self.take(_LENGTH), "big")
        if length > size:
            raise ValueError("a part of it is longer coded than plain")
        body = self.take(length)
        if length == size:
            return np.frombuffer(body, np.uint8)
        coder = zlib.decompressobj(_RAW)
        try:
            # One more than there may be, or the end of the code is not looked at.
            plain = coder.decompress(body, size + 1)
        except zlib.error as error:
            raise ValueError("a part of it is not coded as it should be") from error
        if len(plain) != size or not coder.eof or coder.unused_data:
            raise ValueError("a part of it does not hold as many bytes as it should")
        return np.frombuffer(plain, np.uint8)

    def end(self) -> None:
        """Say that all was read.

        Raises
        ------
        ValueError
            If something is left.
        """
        if self._at != len(self._data):
            raise ValueError("it goes on behind its end")
