"""NRRD in and out: the format in which 3D Slicer and OHIF exchange masks.

OHIF takes the bytes after the header for the mask itself, one byte a voxel, x fastest: that is how masks are written.
What is read is bounded: the header, the number of voxels, and what comes out of gzip.
"""

import gzip
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wardround.client.cases.volume import Volume
from wardround.errors import DataError

MAGIC = b"NRRD000"
HEADER_LIMIT = 1 << 20
BYTES_LIMIT = 1 << 31
"""Of an array that is read, unpacked: 2 GiB."""

_TYPES: Mapping[str, str] = {
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    "float": "f4",
    "double": "f8",
}
# From the file's space to LPS: the sign of each axis.
_SPACES: Mapping[str, tuple[int, int, int]] = {
    **dict.fromkeys(("left-posterior-superior", "lps"), (1, 1, 1)),
    **dict.fromkeys(("right-anterior-superior", "ras"), (-1, -1, 1)),
    **dict.fromkeys(("left-anterior-superior", "las"), (1, -1, 1)),
}
_SEGMENT = re.compile(r"segment(\d{1,4})_(name|labelvalue|layer)")


@dataclass(frozen=True, eq=False)
class Nrrd:
    """What a file holds.

    Parameters
    ----------
    volume
        ``[I, J, K]`` in the file's own type, affine in LPS millimetres.
    segments
        Of a ``.seg.nrrd`` of 3D Slicer: label values by the names of its segments; empty for any other file.
    """

    volume: Volume
    segments: Mapping[str, int]


def encode(volume: Volume, *, compress: bool = False) -> bytes:
    """The bytes of a NRRD file.

    Parameters
    ----------
    volume
        uint8, ``[I, J, K]``.
    compress
        Whether the voxels are gzipped.
    """
    assert volume.array.dtype == np.uint8, "masks are bytes"
    directions = " ".join(_vector(volume.affine[:3, axis]) for axis in range(3))
    header = (
        "NRRD0004",
        "# Complete NRRD file format specification at:",
        "# http://teem.sourceforge.net/nrrd/format.html",
        "type: unsigned char",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {' '.join(str(side) for side in volume.shape)}",
        f"space directions: {directions}",
        "kinds: domain domain domain",
        f"encoding: {'gzip' if compress else 'raw'}",
        f"space origin: {_vector(volume.affine[:3, 3])}",
    )
    voxels = volume.array.tobytes(order="F")
    return ("\n".join(header) + "\n\n").encode() + (gzip.compress(voxels, 1, mtime=0) if compress else voxels)


def decode(data: bytes) -> Nrrd:
    """The volume in the bytes of a NRRD file with its voxels in it.

    Raises
    ------
    DataError
        If it is damaged, too large, not 3D, or of a kind that viewers do not send.
    GeometryError
        If it has no usable affine.
    """
    head, separator, body = data[:HEADER_LIMIT].partition(b"\n\n")
    if not data.startswith(MAGIC) or not separator:
        head, separator, body = data[:HEADER_LIMIT].partition(b"\r\n\r\n")
    if not data.startswith(MAGIC) or not separator:
        raise _refused("its header has no end")
    try:
        lines = head.decode("utf-8").splitlines()[1:]
    except UnicodeDecodeError as error:
        raise _refused("its header is no text") from error
    fields: dict[str, str] = {}
    for line in lines:
        if line and not line.startswith("#"):
            name, _, value = line.partition(":")
            fields[name.strip().lower()] = value.removeprefix("=").strip()
    body = data[len(head) + len(separator) :]
    if {"data file", "datafile"} & fields.keys():
        raise _refused("its voxels lie in another file")
    try:
        array = _array(fields, body)
        affine = _affine(fields)
        segments = _segments(fields)
    except (ValueError, KeyError, zlib.error) as error:
        raise _refused("a field of its header is missing or makes no sense, or its voxels are damaged") from error
    return Nrrd(Volume(array, affine), segments)


def inflate(data: bytes, limit: int = BYTES_LIMIT) -> bytes:
    """What gzip packed into `data`, if it is not more than `limit` bytes.

    Raises
    ------
    DataError
        If it is more.
    zlib.error
        If the data are damaged.
    """
    unpacker = zlib.decompressobj(wbits=31)
    unpacked = unpacker.decompress(data, limit)
    if unpacker.unconsumed_tail:
        raise DataError(
            "a compressed file is too large once it is unpacked",
            f"it holds more than {limit >> 20} MiB",
            "send a smaller image",
        )
    if not unpacker.eof:
        raise zlib.error("cut short")
    return unpacked


def _array(fields: Mapping[str, str], body: bytes) -> npt.NDArray[np.generic]:
    if int(fields["dimension"]) != 3:
        raise _refused("it has not three axes; a segmentation with overlapping segments has four")
    shape = [int(side) for side in fields["sizes"].split()]
    if len(shape) != 3 or any(not 1 <= side <= 1 << 16 for side in shape):
        raise ValueError("sizes")
    order = {"big": ">", "little": "<"}[fields.get("endian", "little").lower()]
    dtype = np.dtype(order + _TYPES[fields["type"].lower()])
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if size > BYTES_LIMIT:
        raise _refused(f"it holds more than {BYTES_LIMIT >> 20} MiB")
    encoding = fields["encoding"].lower()
    if encoding in ("gzip", "gz"):
        body = inflate(body, size + 1)
    elif encoding != "raw":
        raise _refused("its voxels are neither raw nor gzipped")
    if len(body) < size:
        raise ValueError("cut short")
    array = np.frombuffer(body, dtype, count=size // dtype.itemsize).reshape(shape, order="F")
    return array.astype(dtype.newbyteorder("="), copy=False)


def _affine(fields: Mapping[str, str]) -> npt.NDArray[np.float64]:
    columns = [_numbers(found) for found in re.findall(r"\(([^()]*)\)", fields["space directions"])]
    origin = _numbers(fields["space origin"].strip("()"))
    affine = np.eye(4)
    affine[:3, :3] = np.array(columns).T
    affine[:3, 3] = origin
    return np.diag([*_SPACES[fields["space"].lower()], 1.0]) @ affine


def _segments(fields: Mapping[str, str]) -> dict[str, int]:
    found: dict[str, dict[str, str]] = {}
    for field, value in fields.items():
        if match := _SEGMENT.fullmatch(field):
            found.setdefault(match[1], {})[match[2]] = value
    return {one["name"]: int(one["labelvalue"]) for one in found.values() if one.keys() >= {"name", "labelvalue"}}


def _vector(numbers: Sequence[float] | npt.NDArray[np.float64]) -> str:
    return f"({','.join(repr(float(number)) for number in numbers)})"


def _numbers(text: str) -> list[float]:
    return [float(number) for number in text.split(",")]


def _refused(cause: str) -> DataError:
    return DataError("a NRRD file cannot be read", cause, "save it again as .nrrd or .nii.gz, with one label a voxel")
