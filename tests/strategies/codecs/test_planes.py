"""Byte planes come out as they were put in, close to their entropy, and nothing else can be put in."""

import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wardround.strategies.codecs.planes import PlaneReader, pack


def body(data: bytes) -> bytes:
    return len(data).to_bytes(8, "big") + data


def deflated(data: bytes) -> bytes:
    coder = zlib.compressobj(9, zlib.DEFLATED, -15)
    return coder.compress(data) + coder.flush()


@given(st.lists(st.binary(max_size=300), max_size=4))
def test_what_is_packed_comes_out(planes: list[bytes]) -> None:
    reader = PlaneReader(b"".join(map(pack, planes)))
    for plane in planes:
        assert reader.plane(len(plane)).tobytes() == plane
    reader.end()


def test_a_plane_comes_close_to_its_entropy() -> None:
    steps = np.rint(np.random.default_rng(0).normal(size=20_000) * 25).astype(np.int8)
    counts = np.bincount(steps.view(np.uint8))
    share = counts[counts > 0] / steps.size
    entropy = float(-(share * np.log2(share)).sum()) / 8
    assert entropy < len(pack(steps.tobytes())) / steps.size < entropy + 0.02
    assert len(pack(bytes(20_000))) < 200


def test_noise_is_not_made_longer() -> None:
    noise = np.random.default_rng(0).bytes(5000)
    assert len(pack(noise)) == 8 + 5000


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 7,
        body(b"")[:-1],
        body(b"abc"),
        (2**63).to_bytes(8, "big") + b"abc",
        body(b"abcde"),
        body(deflated(bytes(99))),
        body(deflated(bytes(101))),
        body(deflated(bytes(10**6))),
        body(deflated(bytes(100))[:-1]),
        body(deflated(bytes(100)) + b"x"),
    ],
)
def test_what_is_no_plane_of_that_size_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"it|part"):
        PlaneReader(data).plane(100)


def test_what_is_left_over_is_refused() -> None:
    reader = PlaneReader(pack(b"abc") + b"x")
    reader.plane(3)
    with pytest.raises(ValueError, match="behind its end"):
        reader.end()


def test_a_bomb_takes_no_more_than_it_may_hold() -> None:
    bomb = body(deflated(bytes(10**8)))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="as many"):
            PlaneReader(bomb).plane(200_000)
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()
