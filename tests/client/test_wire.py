"""Frames between agent and courier: what travels, and what is refused before a byte of it is awaited."""

import json
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array
from hypothesis import given
from hypothesis import strategies as st

from wardround.client import wire
from wardround.errors import ConnectionFailed

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    one, other = socket.socketpair()
    for end in (one, other):
        end.settimeout(30)
    with one, other:
        yield one, other


def framed(header: object, rest: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack(">I", len(text)) + text + rest


def described(**changes: object) -> dict[str, object]:
    part = {"name": "w", "dtype": "float32", "shape": [1], "stype": "numpy.ndarray", "size": 4}
    return {"op": "train", "arrays": [part | changes]}


def test_a_frame_arrives_as_it_was_sent(pair: Pair) -> None:
    arrays = {
        "weights": Array(np.arange(6, dtype=np.float32).reshape(2, 3)),
        "count": Array(np.array(7, dtype=np.int64)),
        "bundle": wire.raw(b"PK\x03\x04"),
        "empty": Array(np.zeros((0, 3))),
    }
    header = {"op": "train", "plan": {"learning-rate": 0.1, "rounds": 3, "run": "städte", "patch": []}}
    wire.send(pair[0], header, arrays)
    found, received = wire.receive(pair[1])
    assert found == header
    assert received == arrays
    assert list(received) == list(arrays)


def test_larger_arrays_than_a_buffer_holds(pair: Pair) -> None:
    sent = Array(np.random.default_rng(0).random(700_000))
    thread = threading.Thread(target=wire.send, args=(pair[0], {"op": "train"}, {"w": sent}))
    thread.start()
    assert wire.receive(pair[1])[1] == {"w": sent}
    thread.join()


@given(st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.booleans()))
def test_numbers_keep_their_bits_and_types(values: dict[str, object]) -> None:
    one, other = socket.socketpair()
    with one, other:
        wire.send(one, {"op": "ok", "metrics": values})
        found = wire.receive(other)[0]["metrics"]
    assert found == values
    assert [type(value) for value in found.values()] == [type(value) for value in values.values()]


@pytest.mark.parametrize(
    ("bytes_", "why"),
    [
        (framed(b"no json"), "no JSON"),
        (framed(b"[" * 100_000), "no JSON"),
        (framed(b"\xff\xfe"), "no JSON"),
        (framed([1, 2]), "no operation"),
        (framed({"op": 7, "arrays": []}), "no operation"),
        (framed({"op": "train"}), "lists no arrays"),
        (framed({"op": "train", "arrays": {}}), "lists no arrays"),
        (framed({"op": "train", "arrays": [7]}), "in other words"),
        (framed(described(extra=1)), "in other words"),
        (framed(described(size=-1)), "in other words"),
        (framed(described(size=True)), "in other words"),
        (framed(described(size="4")), "in other words"),
        (framed(described(shape=[-1])), "in other words"),
        (framed(described(shape=["x"])), "in other words"),
        (framed(described(name=7)), "in other words"),
        (framed({"op": "x", "arrays": described()["arrays"] * 2}), "of one name"),  # type: ignore[operator]
        (struct.pack(">I", 0), "header of 0 bytes"),
        (struct.pack(">I", 2**32 - 1), "allowed"),
        (framed(described(size=10 * 2**30)), "allowed"),
        (b"GET / HTTP/1.1\r\n\r\n", "allowed"),
    ],
)
def test_what_is_no_frame_is_refused(pair: Pair, bytes_: bytes, why: str) -> None:
    threading.Thread(target=pair[0].sendall, args=(bytes_,), daemon=True).start()
    with pytest.raises(wire.FrameRefused, match=why):
        wire.receive(pair[1], limit=2**20)


def test_what_is_declared_too_large_is_not_awaited(pair: Pair) -> None:
    """Not a byte of the array is ever sent, and the refusal comes all the same."""
    pair[0].sendall(framed(described(size=101)))
    with pytest.raises(wire.FrameRefused, match="101 bytes, 100 are allowed"):
        wire.receive(pair[1], limit=100)


def test_a_frame_that_is_cut_short_ends_the_connection(pair: Pair) -> None:
    pair[0].sendall(framed(described())[:-1])
    pair[0].shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionFailed, match="ended"):
        wire.receive(pair[1])


@pytest.mark.parametrize("header", [{"op": "x", "loss": float("nan")}, {"op": "x", "bytes": b""}])
def test_only_json_is_sent(pair: Pair, header: dict[str, object]) -> None:
    with pytest.raises(wire.FrameRefused):
        wire.send(pair[0], header)


def test_a_header_that_is_too_long_is_not_sent(pair: Pair) -> None:
    with pytest.raises(wire.FrameRefused, match="are allowed"):
        wire.send(pair[0], {"op": "x" * wire.HEADER_LIMIT})


def test_where_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(ConnectionFailed, match="no agent listens"):
        wire.ask(tmp_path / "agent.sock", {"op": "info"})
