"""Named arrays in few pieces, for their way through Flower.

Flower sends every array as objects of its own, asks its server for each by itself, and the server's database writes
several times for each: a round of a small network is thousands of questions. In pieces it is a handful, whatever the
network. On either end the arrays are taken out again before anything looks at them, byte for byte as they were put in.

A network has a piece for every :data:`LARGE` bytes or so, since Flower holds an array several times while it puts it
together. Pieces are the only arrays of their record, numbered in order, and each holds whole arrays::

    8 bytes    length of the table, big-endian
    table      JSON: [name, dtype, shape, encoding, bytes] of each array, in order, written in one way only
    bytes      of each array, one after the other
"""

import json
from collections.abc import Iterator, Mapping, Sequence

from flwr.app import Array, ArrayRecord, RecordDict

from wardround.strategies.contract import ARRAYS

PARCEL = "wardround.parcel"
"""Name of the pieces, with their number behind it, and their encoding."""
LARGE = 2**25
"""Bytes of a piece to which no further array is added."""

_DTYPE = "uint8"
_LENGTH = 8
_LONGEST_TABLE = 4 * 2**20


def is_wrapped(content: RecordDict) -> bool:
    """Whether the arrays of a message's content are in pieces."""
    arrays = content.get(ARRAYS)
    return isinstance(arrays, ArrayRecord) and len(arrays) > 0 and list(arrays) == _names(len(arrays))


def wrap(content: RecordDict) -> RecordDict:
    """A content whose arrays are in pieces; one without arrays, or wrapped already, is returned as it is.

    The other records are shared, not copied.
    """
    arrays = content.get(ARRAYS)
    if not isinstance(arrays, ArrayRecord) or not arrays or is_wrapped(content):
        return content
    pieces = [_piece(part) for part in _parted(arrays)]
    return _with(content, dict(zip(_names(len(pieces)), pieces, strict=True)))


def unwrap(content: RecordDict) -> RecordDict:
    """A content with its arrays by name, as :func:`wrap` was given it; one that is not wrapped is returned as it is.

    What a piece holds is what its table says, to the byte. No more is allocated than the bytes that arrived.

    Raises
    ------
    ValueError
        If a piece is not in the form that :func:`wrap` writes, or two arrays have one name.
    """
    if not is_wrapped(content):
        return content
    pieces = content[ARRAYS]
    assert isinstance(pieces, ArrayRecord)
    arrays: dict[str, Array] = {}
    for piece in pieces.values():
        held = _arrays(piece)
        if held.keys() & arrays.keys():
            raise ValueError("a name is there twice")
        arrays |= held
    plain = _with(content, arrays)
    if is_wrapped(plain):
        raise ValueError("it holds pieces")
    return plain


def _names(count: int) -> list[str]:
    return [f"{PARCEL}.{number}" for number in range(count)]


def _parted(arrays: ArrayRecord) -> Iterator[list[tuple[str, Array]]]:
    """Arrays that share a piece: as many as come to :data:`LARGE` bytes, the last one whole."""
    part: list[tuple[str, Array]] = []
    size = 0
    for name, array in arrays.items():
        part.append((name, array))
        size += len(array.data)
        if size >= LARGE:
            yield part
            part, size = [], 0
    if part:
        yield part


def _piece(part: Sequence[tuple[str, Array]]) -> Array:
    table = _table([[name, a.dtype, list(a.shape), a.stype, len(a.data)] for name, a in part])
    data = b"".join([len(table).to_bytes(_LENGTH, "big"), table, *(array.data for _, array in part)])
    return Array(_DTYPE, (len(data),), PARCEL, data)


def _arrays(piece: Array) -> dict[str, Array]:
    """What a piece holds, by name."""
    data = piece.data
    if (piece.dtype, tuple(piece.shape), piece.stype) != (_DTYPE, (len(data),), PARCEL):
        raise ValueError("it does not say what it is")
    start = _LENGTH + int.from_bytes(data[:_LENGTH], "big")
    if not _LENGTH < start <= min(len(data), _LONGEST_TABLE):
        raise ValueError("its table is longer than it")
    table = data[_LENGTH:start]
    try:
        rows = json.loads(table)
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
    except (TypeError, RecursionError) as error:
        raise ValueError("its table cannot be read") from error
    # Written in another way, the same table would have room for what nobody sees.
    if _table(rows) != table or start != len(data) or not arrays:
        raise ValueError("its table does not account for its bytes")
    return arrays


def _table(rows: object) -> bytes:
    return json.dumps(rows, separators=(",", ":")).encode("ascii")


def _with(content: RecordDict, arrays: Mapping[str, Array]) -> RecordDict:
    """The content, in its order, with other arrays."""
    record = ArrayRecord(dict(arrays))
    return RecordDict({name: record if name == ARRAYS else other for name, other in content.items()})
