"""One array in fewer bytes, and back.

The formats
-----------
``exact``                        every bit, for integers, small arrays and what no other format can hold
``fp16``, ``bf16``               the values in half precision (IEEE 754 binary16; the upper half of binary32)
``delta-fp16``, ``delta-bf16``   what was added to the given values, in half precision
``delta-int8``                   the same in 255 steps between its largest magnitudes: one scale for the array, of
                                 which the largest change is 127
``sparse``                       the largest of the changes in such steps, and where they are

Byte planes are coded as :mod:`wardround.strategies.codecs.planes` has it. Floats are turned by one bit before they are
parted, so that a plane holds the exponent and nothing else. In ``sparse`` the position of an entry is written as the
number of entries that are left out before it, in bytes of which 255 means "and more".

What is written can be read in one way only, and what is read could have been written in one way only: there is no room
in it for anything but the numbers. Reading needs no more memory than a few times the array that its shape declares;
whoever reads compares that shape with the network's first.
"""

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array

from wardround.strategies.codecs.planes import PlaneReader, pack

Numbers = npt.NDArray[Any]

EXACT = "wardround.exact"
FP16 = "wardround.fp16"
BF16 = "wardround.bf16"
DELTA_FP16 = "wardround.delta-fp16"
DELTA_BF16 = "wardround.delta-bf16"
DELTA_INT8 = "wardround.delta-int8"
SPARSE = "wardround.sparse"

FORMATS = frozenset({EXACT, FP16, BF16, DELTA_FP16, DELTA_BF16, DELTA_INT8, SPARSE})
"""Every encoding of an array that this module writes."""
DELTAS = frozenset({DELTA_FP16, DELTA_BF16, DELTA_INT8, SPARSE})
"""Those that hold a change, and mean nothing without what was changed."""

SMALL = 256
"""Arrays with fewer entries travel exactly: biases and the scales of norms weigh nothing, and steer much."""

_LARGEST = 2**40
_TINY = float(np.finfo(np.float32).tiny)
"""Below it a float32 is rounded far, and no scale."""
_STEPS = 127
_MORE = 255
_SCALE = struct.Struct("<f")
_COUNTS = struct.Struct("<QQ")
_DTYPES = {
    str(np.dtype(name)): np.dtype(name)
    for name in ("bool", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
}
_LOSSY = ("float32", "float64")


def write(array: Numbers, stype: str, given: Numbers | None = None, share: float = 1.0) -> Array:
    """Write an array in a format; one that is too small for it, holds integers, or does not fit into it, exactly.

    Parameters
    ----------
    array
        Numbers of any shape.
    stype
        One of :data:`FORMATS`.
    given
        What it was changed from, of the same shape and dtype, for a format of :data:`DELTAS`.
    share
        Of the entries that ``sparse`` keeps, rounded up; 0 … 1.
    """
    if stype != EXACT and array.size >= SMALL and str(array.dtype) in _LOSSY:
        data = _DATA[stype](array, given, share)
        if data is not None:
            return Array(str(array.dtype), array.shape, stype, data)
    return Array(str(array.dtype), array.shape, EXACT, _packed(_planes(array)))


def read(array: Array, given: Numbers | None = None) -> Numbers:
    """Read what :func:`write` wrote, into memory of its own.

    Parameters
    ----------
    array
        As it arrived. Its shape was compared with the network's.
    given
        As for :func:`write`.

    Returns
    -------
    array
        Of the declared shape and dtype; that of a change is added to what was given.

    Raises
    ------
    ValueError
        If it could not have been written so, or what a change needs is not at hand.
    """
    content = _parsed(array)
    dtype = _DTYPES[array.dtype]
    if array.stype not in DELTAS:
        return content.values(dtype).reshape(array.shape)
    if given is None or given.shape != tuple(array.shape) or given.dtype != dtype:
        raise ValueError("it holds a change, and of what is not known")
    moved = given.astype(np.float64).ravel()
    content.add_to(moved)
    with np.errstate(over="ignore"):  # What overflows is infinite, and refused as that.
        return moved.astype(dtype).reshape(array.shape)


def is_plain(array: Array) -> bool:
    """Whether its bytes are the only ones that stand for these numbers.

    Raises
    ------
    ValueError
        As :func:`read`.
    """
    return _parsed(array).data() == array.data


@dataclass(frozen=True)
class _Content:
    """What the bytes of an array hold: byte planes behind a few plain bytes, and what they mean."""

    before: bytes
    planes: tuple[npt.NDArray[np.uint8], ...]
    values: Callable[[np.dtype[Any]], Numbers]
    add_to: Callable[[npt.NDArray[np.float64]], None]

    def data(self) -> bytes:
        return self.before + _packed(self.planes)


def _parsed(array: Array) -> _Content:
    dtype = _DTYPES.get(array.dtype)
    if array.stype not in FORMATS or dtype is None or (array.stype != EXACT and array.dtype not in _LOSSY):
        raise ValueError("it is in no format that is known")
    if not all(type(side) is int and side >= 0 for side in array.shape) or math.prod(array.shape) > _LARGEST:
        raise ValueError("its shape is no shape")
    size = math.prod(array.shape)
    reader = PlaneReader(array.data)
    content = {DELTA_INT8: _read_steps, SPARSE: _read_sparse}.get(array.stype, _read_planes)(reader, array, dtype, size)
    reader.end()
    return content


def _read_planes(reader: PlaneReader, array: Array, dtype: np.dtype[Any], size: int) -> _Content:
    width = dtype.itemsize if array.stype == EXACT else 2
    planes = tuple(reader.plane(size) for _ in range(width))
    if dtype == np.bool_ and size and planes[0].max() > 1:
        raise ValueError("it holds something between no and yes")
    # Turned by one bit, minus zero is 1.
    if array.stype in (DELTA_FP16, DELTA_BF16) and np.any((planes[0] == 1) & (planes[1] == 0)):
        raise ValueError("it holds a change by minus zero")

    def values(dtype: np.dtype[Any]) -> Numbers:
        if array.stype == EXACT:
            return _from_planes(planes, dtype)
        halves = _from_planes(planes, np.dtype(np.float16))
        if array.stype in (FP16, DELTA_FP16):
            return halves.astype(dtype)
        return (halves.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(dtype)

    def add_to(moved: npt.NDArray[np.float64]) -> None:
        moved += values(np.dtype(np.float64))

    return _Content(b"", planes, values, add_to)


def _read_steps(reader: PlaneReader, array: Array, dtype: np.dtype[Any], size: int) -> _Content:
    before = reader.take(_SCALE.size)
    plane = reader.plane(size)
    steps = plane.view(np.int8)
    scale = _scale_in(before, is_needed=bool(steps.any()))
    _check_steps(steps)

    def add_to(moved: npt.NDArray[np.float64]) -> None:
        moved += steps * np.float64(scale)

    return _Content(before, (plane,), _no_values, add_to)


def _read_sparse(reader: PlaneReader, array: Array, dtype: np.dtype[Any], size: int) -> _Content:
    before = reader.take(_SCALE.size + _COUNTS.size)
    count, length = _COUNTS.unpack(before[_SCALE.size :])
    if count > size or length > count + size // _MORE:
        raise ValueError("it says to hold more than its shape has")
    gaps, plane = reader.plane(length), reader.plane(count)
    ends = gaps != _MORE
    if np.count_nonzero(ends) != count or (length and not ends[-1]):
        raise ValueError("its positions do not belong to its values")
    places = np.cumsum(gaps, dtype=np.int64)[ends] + np.arange(count)
    if count and places[-1] >= size:
        raise ValueError("a position is beyond its end")
    steps = plane.view(np.int8)
    scale = _scale_in(before, is_needed=count > 0)
    _check_steps(steps)
    if not steps.all():
        raise ValueError("it names a position where nothing changes")

    def add_to(moved: npt.NDArray[np.float64]) -> None:
        moved[places] += steps * np.float64(scale)

    return _Content(before, (gaps, plane), _no_values, add_to)


def _scale_in(before: bytes, *, is_needed: bool) -> float:
    scale = float(_SCALE.unpack(before[: _SCALE.size])[0])
    if not (_TINY <= scale < math.inf if is_needed else before[: _SCALE.size] == _SCALE.pack(0.0)):
        raise ValueError("its scale is none")
    return scale


def _check_steps(steps: npt.NDArray[np.int8]) -> None:
    """Of all scales and steps that stand for the same changes, one pair is written: that whose largest step is 127."""
    lowest, highest = (int(steps.min()), int(steps.max())) if steps.size else (0, 0)
    if lowest < -_STEPS:
        raise ValueError("a step is out of range")
    if (lowest, highest) != (0, 0) and max(-lowest, highest) != _STEPS:
        raise ValueError("its scale is not that of its largest step")


def _no_values(dtype: np.dtype[Any]) -> Numbers:
    raise AssertionError("it holds a change only")


def _write_half(array: Numbers, given: Numbers | None, share: float) -> bytes | None:
    with np.errstate(over="ignore"):
        halves = _change(array, given).astype(np.float16)
    if given is not None:
        halves += np.float16(0)  # No change has no sign.
    return _packed(_planes(halves)) if np.isfinite(halves).all() else None


def _write_brain(array: Numbers, given: Numbers | None, share: float) -> bytes | None:
    with np.errstate(over="ignore"):
        single = _change(array, given).astype(np.float32)
    if not np.isfinite(single).all():
        return None
    bits = single.view(np.uint32)
    # To the nearest, and of two that are as near, to the even one.
    upper = ((bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    if given is not None:
        upper[upper == 0x8000] = 0  # No change has no sign.
    return _packed(_planes(upper.view(np.float16))) if np.all((upper & 0x7F80) != 0x7F80) else None


def _write_steps(array: Numbers, given: Numbers | None, share: float) -> bytes | None:
    found = _steps(_change(array, given))
    if found is None:
        return None
    scale, steps = found
    return _SCALE.pack(scale) + pack(steps.tobytes())


def _write_sparse(array: Numbers, given: Numbers | None, share: float) -> bytes | None:
    change = _change(array, given)
    kept = min(change.size, math.ceil(share * change.size))
    size = np.abs(change)
    if not np.isfinite(size).all():
        return None
    # The largest; of those that are as large as the least of them, the first.
    least = np.partition(size, size.size - kept)[size.size - kept] if kept else np.inf
    places = np.flatnonzero(size > least)
    places = np.sort(np.concatenate([places, np.flatnonzero(size == least)[: kept - places.size]]))
    found = _steps(change[places])
    if found is None:
        return None
    scale, steps = found
    places, steps = places[steps != 0], steps[steps != 0]
    gaps = np.diff(places, prepend=-1) - 1
    more = gaps // _MORE
    coded = np.full(int(more.sum()) + gaps.size, _MORE, np.uint8)
    coded[np.cumsum(more + 1) - 1] = gaps % _MORE
    return _SCALE.pack(scale) + _COUNTS.pack(places.size, coded.size) + pack(coded.tobytes()) + pack(steps.tobytes())


_DATA: dict[str, Callable[[Numbers, Numbers | None, float], bytes | None]] = {
    FP16: lambda array, given, share: _write_half(array, None, share),
    BF16: lambda array, given, share: _write_brain(array, None, share),
    DELTA_FP16: _write_half,
    DELTA_BF16: _write_brain,
    DELTA_INT8: _write_steps,
    SPARSE: _write_sparse,
}


def _change(array: Numbers, given: Numbers | None) -> npt.NDArray[np.float64]:
    with np.errstate(all="ignore"):  # Not finite numbers travel exactly, and are refused as that.
        return (array if given is None else np.subtract(array, given, dtype=np.float64)).ravel()


def _steps(change: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.int8]] | None:
    """Scale and whole numbers from −127 to 127; None where the numbers are not finite."""
    largest = float(np.abs(change).max(initial=0.0))
    with np.errstate(all="ignore"):
        scale = float(np.float32(largest / _STEPS))
    if not math.isfinite(largest) or not math.isfinite(scale):
        return None
    # At the lower end of what a float can hold a scale is rounded far: nothing that small is a change.
    if scale < _TINY:
        return 0.0, np.zeros(change.size, np.int8)
    return scale, np.rint(change / scale).astype(np.int8)


def _planes(array: Numbers) -> list[npt.NDArray[np.uint8]]:
    """The bytes of all entries, from the lowest place to the highest; floats turned left by one bit."""
    width = array.dtype.itemsize
    bits = np.ascontiguousarray(array).reshape(-1).view(f"u{width}")
    if array.dtype.kind == "f":
        bits = (bits << 1) | (bits >> (8 * width - 1))
    split = np.ascontiguousarray(bits, dtype=f"<u{width}").view(np.uint8).reshape(-1, width)
    return [np.ascontiguousarray(split[:, place]) for place in range(width)]


def _from_planes(planes: tuple[npt.NDArray[np.uint8], ...], dtype: np.dtype[Any]) -> Numbers:
    bits = np.ascontiguousarray(np.stack(planes, axis=1)).view(f"<u{dtype.itemsize}").ravel()
    if dtype.kind == "f":
        bits = (bits >> 1) | (bits << (8 * dtype.itemsize - 1))
    return bits.astype(f"u{dtype.itemsize}").view(dtype)


def _packed(planes: "list[npt.NDArray[np.uint8]] | tuple[npt.NDArray[np.uint8], ...]") -> bytes:
    return b"".join(pack(plane.tobytes()) for plane in planes)
