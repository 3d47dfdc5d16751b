"""One array in every format: by hand, to the last bit where that is promised, and whatever somebody might send."""

import math
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
from flwr.app import Array
from hypothesis import given, settings
from hypothesis import strategies as st

from wardround.strategies.codecs.formats import (
    BF16,
    DELTA_BF16,
    DELTA_FP16,
    DELTA_INT8,
    DELTAS,
    EXACT,
    FORMATS,
    FP16,
    SMALL,
    SPARSE,
    is_plain,
    read,
    write,
)
from wardround.strategies.codecs.planes import pack

SHAPE = (16, 32)


def drawn(seed: int = 0, scale: float = 1.0) -> Any:
    return (np.random.default_rng(seed).normal(size=SHAPE) * scale).astype(np.float32)


def same(one: Any, other: Any) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def crafted(stype: str, data: bytes, **changes: Any) -> Array:
    array = Array("float32", SHAPE, stype, data)
    for field, value in changes.items():
        setattr(array, field, value)
    return array


def steps_of(data: bytes, scale: bytes = struct.pack("<f", 0.5)) -> bytes:
    return scale + pack(data)


def sparse_of(gaps: bytes, values: bytes, *, scale: float = 0.5, **counts: int) -> bytes:
    count, length = counts.get("count", len(values)), counts.get("length", len(gaps))
    return struct.pack("<fQQ", scale, count, length) + pack(gaps) + pack(values)


@pytest.mark.parametrize(
    "dtype", ["bool", "int8", "uint16", "int32", "int64", "uint64", "float16", "float32", "float64"]
)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (20, 30)])
@pytest.mark.parametrize("stype", sorted(FORMATS))
def test_integers_and_small_arrays_travel_to_the_last_bit(dtype: str, shape: tuple[int, ...], stype: str) -> None:
    bits = np.random.default_rng(1).integers(0, 256, [*shape, np.dtype(dtype).itemsize], np.uint8)
    array = (bits % 2 if dtype == "bool" else bits).view(dtype).reshape(shape)
    if np.dtype(dtype).kind == "f":
        array = np.nan_to_num(array)
    sent = write(array, stype, np.zeros_like(array))
    assert (sent.dtype, sent.shape) == (dtype, shape)
    if array.size < SMALL or dtype not in ("float32", "float64"):
        assert sent.stype == EXACT
        assert same(read(sent), array)
        assert is_plain(sent)


def test_lossless_keeps_every_bit_in_fewer_bytes() -> None:
    array = drawn(scale=0.05)
    array[0, :4] = [0.0, -0.0, 5e-45, -3.4e38]
    sent = write(array, EXACT)
    assert same(read(sent), array)
    assert len(sent.data) < 0.95 * array.nbytes
    array[0, 0] = np.nan
    assert same(read(write(array, EXACT)), array)


@pytest.mark.parametrize(("stype", "relative"), [(FP16, 2**-11), (BF16, 2**-8)])
def test_half_precision_rounds_to_the_nearest(stype: str, relative: float) -> None:
    array = drawn()
    sent = write(array, stype)
    assert sent.stype == stype
    assert np.all(np.abs(read(sent) - array) <= np.abs(array) * relative + 1e-7)
    assert is_plain(sent)


def test_bf16_by_hand() -> None:
    array = np.ones(SMALL, np.float32)
    # 1 + 2⁻⁸ lies half way between 1 and 1 + 2⁻⁷ and goes to the even one, 1 + 3·2⁻⁸ to 1 + 2⁻⁶.
    array[:4] = [1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -0.0]
    found = read(write(array, BF16))
    assert found[:4].tolist() == [1.0, 1 + 2**-6, 1 + 2**-7, 0.0]
    assert math.copysign(1, found[3]) == -1


def test_int8_by_hand() -> None:
    given = np.full(SMALL, 10.0, np.float32)
    array = given.copy()
    # The largest change is 127 steps, so that a step is 0.5: 0.74 is one step, 0.76 two, and 0.24 none.
    array[:5] += np.array([63.5, 0.74, 0.76, 0.24, -63.5], np.float32)
    sent = write(array, DELTA_INT8, given)
    assert sent.data[:4] == struct.pack("<f", 0.5)
    assert read(sent, given)[:6].tolist() == [73.5, 10.5, 11.0, 10.0, -53.5, 10.0]
    assert is_plain(sent)


def test_sparse_by_hand() -> None:
    given = np.full(1000, 10.0, np.float32)
    array = given.copy()
    array[[3, 4, 300, 999]] += np.array([63.5, -1.0, 2.0, 1.0], np.float32)
    sent = write(array, SPARSE, given, share=0.003)
    # Three entries: the largest two, and of those two that changed by 1 the first.
    found = read(sent, given)
    assert np.flatnonzero(found != given).tolist() == [3, 4, 300]
    assert found[[3, 4, 300]].tolist() == [73.5, 9.0, 12.0]
    # 3 are left out before the first, none before the second, and 295 = 255 + 40 before the third.
    assert sent.data == sparse_of(bytes([3, 0, 255, 40]), np.array([127, -2, 4], np.int8).tobytes())
    assert is_plain(sent)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(sorted(DELTAS)), st.floats(0.001, 1))
def test_a_change_comes_back_within_its_steps(seed: int, stype: str, share: float) -> None:
    given, array = drawn(seed), drawn(seed + 1)
    sent = write(array, stype, given, share)
    found = read(sent, given)
    assert sent.stype == stype
    assert is_plain(sent)
    change = np.abs(array.astype(np.float64) - given)
    step = {DELTA_FP16: 2**-11 * 8, DELTA_BF16: 2**-8 * 8}.get(stype, change.max() / 127)
    if stype == SPARSE:
        sent_away = found != given
        assert np.count_nonzero(sent_away) <= math.ceil(share * array.size)
        assert change[~sent_away].max(initial=0) <= change[sent_away].min(initial=np.inf) + step
        found = np.where(sent_away, found, array)
    assert np.abs(found - array).max() <= step / 2 + 1e-6


@pytest.mark.parametrize("stype", sorted(DELTAS))
def test_no_change_is_a_few_bytes_and_comes_back_as_none(stype: str) -> None:
    array = np.random.default_rng(0).normal(size=10_000).astype(np.float32)
    sent = write(array, stype, array, 0.1)
    assert len(sent.data) < 400
    assert same(read(sent, array), array)


@pytest.mark.parametrize("stype", sorted(FORMATS))
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3.4e38])
def test_what_a_format_cannot_hold_travels_to_the_last_bit(stype: str, value: float) -> None:
    array = drawn()
    array[3, 3] = value
    given = -array if value == 3.4e38 else drawn(1)
    found = read(write(array, stype, given), given)
    if not math.isfinite(value) or stype in (FP16, DELTA_FP16):
        assert same(found, array)
    else:
        assert found[3, 3] == pytest.approx(value, rel=0.01) or found[3, 3] == given[3, 3]


@pytest.mark.parametrize("stype", sorted(DELTAS))
def test_a_change_of_something_else_is_refused(stype: str) -> None:
    given = drawn()
    sent = write(drawn(1), stype, given, 0.1)
    for other in (None, given[:8], given.astype(np.float64)):
        with pytest.raises(ValueError, match="of what is not known"):
            read(sent, other)


@pytest.mark.parametrize("stype", sorted(FORMATS))
@pytest.mark.parametrize("cut", [0, 1, 4, 20, -1])
def test_what_is_cut_or_longer_is_refused(stype: str, cut: int) -> None:
    given = drawn()
    sent = write(drawn(1), stype, given, 0.1)
    for data in (sent.data[:cut], sent.data + b"x", b"\x80\x04N."):
        with pytest.raises(ValueError, match=r"it|part"):
            read(crafted(stype, data), given)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(FORMATS)), st.data())
def test_no_two_messages_say_the_same(stype: str, data: st.DataObject) -> None:
    """Whatever byte is changed: refused, not written in the one way there is, or other numbers."""
    given = drawn()
    sent = write(drawn(1), stype, given, 0.1)
    changed = bytearray(sent.data)
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    array = crafted(stype, bytes(changed))
    try:
        found, is_usual = read(array, given), is_plain(array)
    except ValueError:
        return
    assert not is_usual or not same(found, read(sent, given))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(FORMATS)), st.binary(max_size=200))
def test_any_bytes_are_refused_or_read(stype: str, data: bytes) -> None:
    try:
        found = read(crafted(stype, data), drawn())
    except ValueError:
        return
    assert found.shape == SHAPE


SIZE = math.prod(SHAPE)


@pytest.mark.parametrize(
    ("stype", "data"),
    [
        (DELTA_INT8, steps_of(bytes([128]) + bytes(SIZE - 1))),
        (DELTA_INT8, steps_of(bytes(SIZE))),
        (DELTA_INT8, steps_of(bytes([1]) + bytes(SIZE - 1), struct.pack("<f", math.nan))),
        (DELTA_INT8, steps_of(bytes([1]) + bytes(SIZE - 1), struct.pack("<f", -1.0))),
        (DELTA_INT8, steps_of(bytes([1]) + bytes(SIZE - 1), struct.pack("<f", math.inf))),
        (DELTA_INT8, steps_of(bytes([1]) + bytes(SIZE - 1), struct.pack("<f", 0.0))),
        (DELTA_INT8, steps_of(bytes([127]) + bytes(SIZE - 1), struct.pack("<f", 1e-44))),
        (DELTA_INT8, steps_of(bytes(SIZE), struct.pack("<f", -0.0))),
        (DELTA_INT8, steps_of(bytes([126, 256 - 125]) + bytes(SIZE - 2))),
        (SPARSE, sparse_of(b"\3\0", bytes([64, 2]))),
        (DELTA_FP16, pack(b"\1" + bytes(SIZE - 1)) + pack(bytes(SIZE))),
        (DELTA_BF16, pack(b"\1" + bytes(SIZE - 1)) + pack(bytes(SIZE))),
        (SPARSE, sparse_of(b"", b"", scale=0.5)),
        (SPARSE, sparse_of(b"\3", b"\0")),
        (SPARSE, sparse_of(b"\3", b"\x80")),
        (SPARSE, sparse_of(b"\3\3", b"\1")),
        (SPARSE, sparse_of(b"\3\xff", b"\1")),
        (SPARSE, sparse_of(b"\xff\xff\2", b"\1")),
        (SPARSE, sparse_of(b"", b"", scale=0.0, count=2**64 - 1)),
        (SPARSE, sparse_of(b"", b"", scale=0.0, length=2**64 - 1)),
        (SPARSE, sparse_of(b"\0" * SIZE + b"\0", b"\1" * (SIZE + 1))),
        ("numpy.ndarray", bytes(SIZE * 4)),
        ("pickle", b"\x80\x04N."),
    ],
)
def test_what_nobody_writes_is_refused(stype: str, data: bytes) -> None:
    with pytest.raises(ValueError, match=r"it|step|position|scale"):
        read(crafted(stype, data), drawn())


@pytest.mark.parametrize("stype", [DELTA_FP16, DELTA_BF16, DELTA_INT8, SPARSE])
@pytest.mark.parametrize("size", [1e-9, 1e-40, 2e-43, 3e-45])
def test_a_change_that_is_hardly_one_is_written_in_one_way_as_well(stype: str, size: float) -> None:
    given = np.zeros(SHAPE, np.float32)
    sent = write(-np.abs(drawn(1)) * np.float32(size), stype, given, 0.1)
    assert sent.stype == stype
    found = read(sent, given)
    assert np.all(found <= 0)
    # A sum of zeros has no sign: what is read of no change is what was given.
    assert not np.signbit(found[found == 0]).any()
    assert is_plain(sent)


def test_a_last_position_is_within_the_end() -> None:
    given = drawn()
    found = read(crafted(SPARSE, sparse_of(b"\xff\xff\1", b"\x81")), given)
    assert np.flatnonzero(found != given).tolist() == [SIZE - 1]


@pytest.mark.parametrize("shape", [(2**62, 2**62), (-1, 4), (1.5,), (True,)])
@pytest.mark.parametrize("stype", sorted(FORMATS))
def test_a_shape_that_is_none_is_refused(stype: str, shape: Any) -> None:
    with pytest.raises(ValueError, match=r"it|part"):
        read(crafted(stype, bytes(64), shape=shape), drawn())


@pytest.mark.parametrize("dtype", ["object", ">f4", "complex64", "U8", "bfloat16"])
def test_a_dtype_that_holds_no_numbers_is_refused(dtype: str) -> None:
    with pytest.raises(ValueError, match="no format"):
        read(crafted(EXACT, pack(bytes(SIZE)) * 8, dtype=dtype))


def test_something_between_no_and_yes_is_refused() -> None:
    with pytest.raises(ValueError, match="between"):
        read(crafted(EXACT, pack(b"\1\2"), dtype="bool", shape=(2,)))


def test_a_large_shape_takes_no_memory() -> None:
    tracemalloc.start()
    try:
        for stype in sorted(FORMATS):
            with pytest.raises(ValueError, match=r"it|part"):
                read(crafted(stype, bytes(64), shape=(2**20, 2**19)), drawn())
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()
