"""Nobody holds on to a listener by being slow, and nobody is cut off for it while it gets on."""

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from deployment import make_coordinator, trust
from uvicorn.server import ServerState

from wardround.server import listener as module
from wardround.server.audit import AuditTrail
from wardround.server.entrance import PUBLIC_LIMITS, Entrance
from wardround.server.listener import MOST_OVERHEAD, ImpatientProtocol, bind, listener

PATH = "/v1/fleet/pull-object"
HEAD = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\n".encode()


class FakeTransport:
    """Takes what is written, and knows whether it was given up."""

    def __init__(self) -> None:
        self.aborted = False

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.aborted

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **keywords: None


async def answering(scope: Any, receive: Any, send: Any) -> None:
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


async def survives(*pieces: bytes) -> bool:
    """Whether a connection is still there when so much has arrived."""
    config = uvicorn.Config(answering, http=ImpatientProtocol, ws="none", lifespan="off", log_config=None)
    config.load()
    protocol, transport = ImpatientProtocol(config, ServerState(), {}), FakeTransport()
    protocol.connection_made(transport)  # type: ignore[arg-type]
    for piece in pieces:
        protocol.data_received(piece)
        await asyncio.sleep(0)
        if transport.aborted:
            return False
    protocol.connection_lost(None)
    return True


@pytest.mark.parametrize("never_ending", [b"x", b"x: y\r\n"])
def test_headers_without_end_are_cut(never_ending: bytes) -> None:
    much = never_ending * (MOST_OVERHEAD // len(never_ending))
    assert asyncio.run(survives(HEAD, much[: MOST_OVERHEAD // 2], b"\r\n\r\n"))
    assert not asyncio.run(survives(HEAD, much, b"x" * 200))
    assert not asyncio.run(survives(b"POST /" + much, b"x" * 200))


def test_neither_is_there_room_beside_a_body() -> None:
    chunk = b"10000\r\n" + b"b" * 0x10000 + b"\r\n"
    head = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    assert asyncio.run(survives(head, *[chunk] * 20, b"0\r\n\r\n"))
    assert not asyncio.run(survives(head, chunk, b"0\r\n", *[b"trailer: " + b"t" * 1000 + b"\r\n"] * 100))


def test_a_large_body_and_many_requests_are_no_overhead() -> None:
    body = HEAD + b"Content-Length: 1000000\r\n\r\n" + b"b" * 1_000_000
    pieces = [body[begin : begin + 200_000] for begin in range(0, len(body), 200_000)]
    assert asyncio.run(survives(*pieces * 5))
    assert asyncio.run(survives(*[HEAD + b"Content-Length: 0\r\n\r\n"] * 3000))


async def read_slowly(folder: Path, size: int, seconds: float) -> int:
    """Bytes of an answer that a peer on a slow line gets."""
    home = make_coordinator(folder / "C")
    body = bytes(size)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        headers = [(b"content-length", str(size).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    trail = AuditTrail(folder / "audit.jsonl")
    server = listener(
        Entrance(app, "public", frozenset({("POST", PATH)}), PUBLIC_LIMITS, trail),
        certificate=str(home.server_certificate),
        key=str(home.server_key),
        headers={},
        lifespan=False,
    )
    taken = bind("127.0.0.1", 0)
    port = taken.getsockname()[1]
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    task = asyncio.create_task(server.serve(sockets=[taken]))
    while not server.started:
        await asyncio.sleep(0.01)
    plain.setblocking(False)
    await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(
        sock=plain, ssl=trust(home), server_hostname="localhost", limit=65536
    )
    writer.write(HEAD + b"Content-Length: 0\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    assert b" 200 " in head
    got = 0
    try:
        while got < size and (piece := await reader.read(size // 64)):
            got += len(piece)
            await asyncio.sleep(seconds * len(piece) / size)
    except ConnectionError:
        pass
    writer.transport.abort()
    server.should_exit = True
    await task
    return got


def test_an_answer_on_a_slow_line_is_not_taken_for_an_idle_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written waits here, and the connection is closed as idle; half a minute later it would be cut."""
    monkeypatch.setattr(module, "KEEP_ALIVE", 0.2)
    monkeypatch.setattr(asyncio.constants, "SSL_SHUTDOWN_TIMEOUT", 0.5)
    size = 16 * 2**20
    assert asyncio.run(read_slowly(tmp_path, size, 4.0)) == size
