"""Arrays in one piece come out as they were put in, and nothing else can be put into a piece."""

import json
from typing import Any

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from wardround.strategies import parcel
from wardround.strategies.contract import ARRAYS, METRICS, PLAN, digest, record_digest
from wardround.strategies.parcel import PARCEL, is_wrapped, unwrap, wrap

arrays = st.builds(
    Array,
    st.sampled_from(["float32", "int64", "é"]),
    st.lists(st.integers(0, 2**40), max_size=4).map(tuple),
    st.sampled_from(["numpy.ndarray", ""]),
    st.binary(max_size=40),
)
records = st.dictionaries(st.text(max_size=8), arrays, min_size=1, max_size=6).filter(
    lambda one: f"{PARCEL}.0" not in one
)


def content(found: dict[str, Array]) -> RecordDict:
    others = {PLAN: ConfigRecord({"round": 1}), METRICS: MetricRecord({"loss": 0.5})}
    return RecordDict({PLAN: others[PLAN], ARRAYS: ArrayRecord(found), METRICS: others[METRICS]})


def piece(data: bytes, **other: Any) -> RecordDict:
    fields = {"dtype": "uint8", "shape": (len(data),), "stype": PARCEL} | other
    return RecordDict({ARRAYS: ArrayRecord({f"{PARCEL}.0": Array(data=data, **fields)})})


def written(rows: object, rest: bytes, **how: Any) -> bytes:
    table = json.dumps(rows, **({"separators": (",", ":")} | how)).encode()
    return len(table).to_bytes(8, "big") + table + rest


ROW = ["a", "uint8", [3], "numpy.ndarray", 3]


@given(records)
def test_what_is_put_in_comes_out(found: dict[str, Array]) -> None:
    before = content(found)
    packed = wrap(before)
    assert is_wrapped(packed)
    assert list(packed) == list(before)
    assert len(packed[ARRAYS]) == 1
    after = unwrap(packed)
    assert digest(after) == digest(before)
    assert list(after[ARRAYS]) == list(found)
    assert digest(wrap(after)) == digest(packed)


@given(records, st.data())
def test_no_two_pieces_hold_the_same(found: dict[str, Array], data: st.DataObject) -> None:
    """Whatever byte is changed, what comes out is refused or something else: a digest of the content covers it all."""
    packed = wrap(content(found))
    one = bytearray(packed[ARRAYS][f"{PARCEL}.0"].data)
    place = data.draw(st.integers(0, len(one) - 1))
    one[place] ^= data.draw(st.integers(1, 255))
    try:
        after = unwrap(piece(bytes(one)))
    except ValueError:
        return
    assert record_digest(after[ARRAYS]) != record_digest(ArrayRecord(found))


def test_a_large_network_is_in_several_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parcel, "LARGE", 10)
    found = {f"layer.{n}": Array("uint8", (4,), "numpy.ndarray", bytes([n] * 4)) for n in range(7)}
    packed = wrap(content(found))
    assert [len(piece.data) > 10 for piece in packed[ARRAYS].values()] == [True] * 3
    assert list(packed[ARRAYS]) == [f"{PARCEL}.{n}" for n in range(3)]
    assert digest(unwrap(packed)) == digest(content(found))


def test_one_name_in_two_pieces_is_refused() -> None:
    one = Array("uint8", (len(written([ROW], b"abc")),), PARCEL, written([ROW], b"abc"))
    with pytest.raises(ValueError, match="twice"):
        unwrap(RecordDict({ARRAYS: ArrayRecord({f"{PARCEL}.0": one, f"{PARCEL}.1": one})}))


def test_what_is_not_wrapped_stays_as_it_is() -> None:
    plain = content({"a": Array("uint8", (3,), "numpy.ndarray", b"abc")})
    assert unwrap(plain) is plain
    scalars = RecordDict({METRICS: MetricRecord({"loss": 0.5})})
    assert wrap(scalars) is scalars
    packed = wrap(plain)
    assert wrap(packed) is packed


def test_a_well_written_piece_is_read() -> None:
    assert unwrap(piece(written([ROW], b"abc")))[ARRAYS]["a"].data == b"abc"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"abc",
        (2**63).to_bytes(8, "big") + b"[]",
        written([], b""),
        written([ROW], b"ab"),
        written([ROW], b"abcd"),
        written([ROW, ROW], b"abcabc"),
        written([ROW], b"abc", separators=(", ", ":")),
        written([[*ROW, "more"]], b"abc"),
        written([ROW[:4]], b"abc"),
        written([["a", "uint8", [3], "numpy.ndarray", -3]], b"abc"),
        written([["a", "uint8", [3], "numpy.ndarray", 3.0]], b"abc"),
        written([["a", "uint8", [3], "numpy.ndarray", 10**10]], b"abc"),
        written([["a", "uint8", [3], "numpy.ndarray", True]], b"abc"),
        written([["a", "uint8", "3", "numpy.ndarray", 3]], b"abc"),
        written([["a", "uint8", [-3], "numpy.ndarray", 3]], b"abc"),
        written([[1, "uint8", [3], "numpy.ndarray", 3]], b"abc"),
        written([[f"{PARCEL}.0", "uint8", [3], "numpy.ndarray", 3]], b"abc"),
        written({"a": 1}, b"abc"),
        written(3, b"abc"),
        (5000).to_bytes(8, "big") + b"[" * 5000,
    ],
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        unwrap(piece(data))


@pytest.mark.parametrize("other", [{"dtype": "float32"}, {"shape": (1,)}, {"stype": "numpy.ndarray"}])
def test_a_piece_says_what_it_is(other: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="what it is"):
        unwrap(piece(written([ROW], b"abc"), **other))
