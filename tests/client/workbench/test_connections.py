"""Connections that say nothing, or never come to an end, are closed; those of people are not."""

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from workbench import FakeStudio, Workbench, workbench

from wardround.client.workbench import connections, entrance
from wardround.client.workbench.settings import endpoint


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Workbench]:
    with workbench(tmp_path / "home", studio=FakeStudio) as found:
        yield found


def opened(bench: Workbench) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(bench.url.rpartition(":")[2])), timeout=30)


def ended(line: socket.socket) -> bytes:
    """What comes before the other side closes."""
    parts = []
    try:
        while part := line.recv(65536):
            parts.append(part)
    except ConnectionError:
        pass
    return b"".join(parts)


def test_a_connection_that_asks_for_nothing_is_closed(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADERS_WITHIN_S", 0.05)
    for beginning in (b"", b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n"):
        with opened(bench) as line:
            line.sendall(beginning)
            assert ended(line) == b""
    with opened(bench) as line:  # Also behind a request that was answered.
        line.sendall(b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
        assert line.recv(65536).startswith(b"HTTP/1.1 200")
        line.sendall(b"GET /health HTTP/1.1\r\n")
        assert b"200" not in ended(line)


def test_a_letter_now_and_then_gives_no_more_time(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADERS_WITHIN_S", 0.2)
    closed = False
    with opened(bench) as line:
        line.sendall(b"GET /health HTTP/1.1\r\nx: ")
        line.settimeout(0.02)
        for _ in range(1000):
            try:
                line.sendall(b"a")
                closed = line.recv(1) == b""
            except TimeoutError:
                continue
            except ConnectionError:
                closed = True
            break
    assert closed


def test_headers_without_end_are_not_kept(bench: Workbench) -> None:
    with opened(bench) as line:
        with contextlib.suppress(ConnectionError):
            line.sendall(b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n" + b"x: aaaaaaaaaaaaaaaa\r\n" * 100_000)
        assert b"200" not in ended(line)


def test_there_is_an_end_to_their_number(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MOST_OF_AN_ADDRESS", 2)
    lines = [opened(bench) for _ in range(4)]  # A proxy on this machine may have more than an address has.
    for line in lines:
        line.sendall(b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
        assert line.recv(65536).startswith(b"HTTP/1.1 200")
    monkeypatch.setattr(connections, "_is_this_machine", lambda address: False)
    with opened(bench) as line:
        assert ended(line) == b""
    monkeypatch.setattr(connections, "MOST_OF_AN_ADDRESS", 100)
    monkeypatch.setattr(connections, "MOST", 4)
    with opened(bench) as line:
        assert ended(line) == b""
    for line in lines:
        line.close()


def test_a_stranger_has_a_while_to_send_a_password(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entrance, "STRANGERS_WITHIN_S", 0.05)
    monkeypatch.setattr(connections, "HEADERS_WITHIN_S", 0.05)
    for path, kind in (("/api/v1/login", "application/json"), ("/auth/token", "application/x-www-form-urlencoded")):
        with opened(bench) as line:
            head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: {kind}\r\ncontent-length: 99\r\n"
            line.sendall(f"{head}connection: close\r\n\r\n{{".encode())
            assert ended(line).startswith(b"HTTP/1.1 408")


def test_a_handshake_counts_and_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MOST_OF_AN_ADDRESS", 3)
    monkeypatch.setattr(connections, "_is_this_machine", lambda address: False)
    with workbench(tmp_path / "home", studio=FakeStudio, settings='host = "0.0.0.0"') as bench:
        trust = ssl.create_default_context(cafile=endpoint(bench.home).certificate)

        def answers() -> bool:
            try:
                return bench.client(verify=trust).get("/health").status_code == 200
            except httpx.TransportError:
                return False

        silent = [opened(bench) for _ in range(3)]
        assert not answers(), "three connections are in their handshake, and there is room for three"
        silent.pop().close()
        deadline = time.monotonic() + 60
        while not answers():
            assert time.monotonic() < deadline, "a handshake that was given up keeps its place"
        for line in silent:
            line.close()
        monkeypatch.setattr(connections, "HANDSHAKE_WITHIN_S", 0.05)
        monkeypatch.setattr(connections, "MOST_OF_AN_ADDRESS", 100)
        with opened(bench) as line:
            line.sendall(b"\x16\x03\x01")
            assert ended(line) == b""


def test_addresses_of_one_network_are_counted_together() -> None:
    hall = connections.Hall()
    places = [hall.admit(f"2001:db8::{index:x}") for index in range(connections.MOST_OF_AN_ADDRESS)]
    assert None not in places
    assert hall.admit("2001:db8::ffff") is None
    assert hall.admit("2001:db8:0:1::1") is not None
    assert places[0] is not None
    places[0].leave()
    places[0].leave()
    assert hall.admit("2001:db8::ffff") is not None
    assert hall.admit("2001:db8::ffff") is None


@pytest.mark.parametrize("settings", ["", 'host = "0.0.0.0"'], ids=["http", "https"])
def test_who_does_not_take_what_was_asked_for_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: str
) -> None:
    static = tmp_path / "static"
    static.mkdir()
    (static / "index.html").touch()
    length = 32 << 20
    with (static / "large.bin").open("wb") as large:
        large.truncate(length)
    ended_here = threading.Event()
    lost = connections.Connection.connection_lost

    def is_lost(self: connections.Connection, exc: Exception | None) -> None:
        lost(self, exc)
        ended_here.set()

    monkeypatch.setattr(connections.Connection, "connection_lost", is_lost)
    with workbench(tmp_path / "home", cases=1, studio=FakeStudio, settings=settings, static=static) as bench:
        for patience, is_closed in ((60.0, False), (0.02, True)):
            monkeypatch.setattr(connections, "TAKEN_WITHIN_S", patience)
            with ExitStack() as ends:
                line = ends.enter_context(opened(bench))
                if settings:
                    trust = ssl.create_default_context(cafile=endpoint(bench.home).certificate)
                    line = ends.enter_context(trust.wrap_socket(line, server_hostname="127.0.0.1"))
                line.sendall(b"GET /large.bin HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n")
                assert line.recv(1) == b"H"
                if is_closed:
                    assert ended_here.wait(60), "an answer that nobody takes is held"
                assert (len(ended(line)) >= length) != is_closed
            assert ended_here.wait(60)
            ended_here.clear()
