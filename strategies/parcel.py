"""Named arrays in one piece, for their way through Flower.

Flower sends every array as objects of its own, asks its server for each by itself, and the server's database writes
several times for each: a round of a small network is thousands of questions. In one piece it is a handful, whatever the
network. On either end the arrays are taken out again before anything looks at them, byte for byte as they were put in.

A piece is the only array of its record::

    8 bytes    length of the table, big-endian
    table      JSON: [name, dtype, shape, encoding, bytes] of each array, in order, written in one way only
    bytes      of each array, one after the other
"""

import json
from collections.abc import Mapping

from flwr.app import Array, ArrayRecord, RecordDict

from wardround.strategies.contract import ARRAYS

PARCEL = "wardround.parcel"
"""Name of the one array, and its encoding."""

_DTYPE = "uint8"
_LENGTH = 8
_LONGEST_TABLE = 4 * 2**20


def is_wrapped(content: RecordDict) -> bool:
    """Whether the arrays of a message's content are in one piece."""
    arrays = content.get(ARRAYS)
    return isinstance(arrays, ArrayRecord) and arrays.keys() == {PARCEL}


def wrap(content: RecordDict) -> RecordDict:
    """A content whose arrays are in one piece; one without arrays, or wrapped already, is returned as it is.

    The other records are shared, not copied.
    """
    arrays = content.get(ARRAYS)
    if not isinstance(arrays, ArrayRecord) or not arrays or is_wrapped(content):
        return content
    table = _table([[name, a.dtype, list(a.shape), a.stype, len(a.data)] for name, a in arrays.items()])
    data = b"".join([len(table).to_bytes(_LENGTH, "big"), table, *(array.data for array in arrays.values())])
    return _with(content, {PARCEL: Array(_DTYPE, (len(data),), PARCEL, data)})


def unwrap(content: RecordDict) -> RecordDict:
    """A content with its arrays by name, as :func:`wrap` was given it; one that is not wrapped is returned as it is.

    What a piece holds is what its table says, to the byte, and two different pieces never hold the same: what was
    checked after it was taken out may be put in again and sent. No more is allocated than the bytes that arrived.

    Raises
    ------
    ValueError
        If it is not in the form that :func:`wrap` writes.
    """
    if not is_wrapped(content):
        return content
    piece = content[ARRAYS][PARCEL]  # type: ignore[index]
    data = piece.data
    if (piece.dtype, tuple(piece.shape), piece.stype) != (_DTYPE, (len(data),), PARCEL):
        raise ValueError("it does not say what it is")
    start = _LENGTH + int.from_bytes(data[:_LENGTH], "big")
    if not _LENGTH < start <= min(len(data), _LONGEST_TABLE):
        raise ValueError("its table is longer than it")
    try:
        rows = json.loads(data[_LENGTH:start])
        arrays: dict[str, Array] = {}
        for name, dtype, shape, stype, size in rows:
            if not all(type(text) is str for text in (name, dtype, stype)) or name in arrays:
                raise ValueError("a name or a kind is no text, or there twice")
            if type(shape) is not list or not all(type(side) is int and side >= 0 for side in shape):
                raise ValueError("a shape is no list of counts")
            if type(size) is not int or not 0 <= size <= len(data) - start:
                raise ValueError("a size is no count, or beyond the end")
            arrays[name] = Array(dtype, tuple(shape), stype, data[start : start + size])
            start += size
        # Written in another way, the same table would have room for what nobody sees.
        is_ours = _table(rows) == data[_LENGTH : _LENGTH + int.from_bytes(data[:_LENGTH], "big")]
    except (TypeError, RecursionError) as error:
        raise ValueError("its table cannot be read") from error
    if not is_ours or start != len(data) or not arrays or PARCEL in arrays:
        raise ValueError("its table does not account for its bytes")
    return _with(content, arrays)


def _table(rows: object) -> bytes:
    return json.dumps(rows, separators=(",", ":")).encode("ascii")


def _with(content: RecordDict, arrays: Mapping[str, Array]) -> RecordDict:
    """The content, in its order, with other arrays."""
    packed = ArrayRecord(dict(arrays))
    return RecordDict({name: packed if name == ARRAYS else record for name, record in content.items()})
