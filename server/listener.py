"""HTTP listeners that a slow client cannot hold on to, nor a client with much to say fill."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from wardround import listening

HEADER_PATIENCE = 15.0
"""Seconds from the first byte of a request, or from the connection, to the end of its headers."""
KEEP_ALIVE = 30
"""Seconds that a connection stays open between two requests; a SuperNode polls every three."""
MOST_CONNECTIONS = 1000
MOST_OVERHEAD = 64 * 1024
"""Bytes of a request besides its body: its headers, and what frames a body in chunks."""
MOST_UNSENT = 64 * 1024
"""Bytes of an answer that wait here for the peer to take them, until who writes it has to wait."""


class ImpatientProtocol(HttpToolsProtocol):
    """Uvicorn's protocol, and a connection whose headers do not arrive, or do not end, is closed."""

    _deadline: asyncio.TimerHandle | None = None
    _overhead = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for headers."""
        super().connection_made(transport)
        # Uvicorn takes an answer for sent as soon as all of it is written, and soon closes a connection that is idle:
        # what would still wait here then is lost to a slow peer.
        transport.set_write_buffer_limits(high=MOST_UNSENT)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Begin to wait for the headers of one more request, if none is being answered."""
        if self._deadline is None and (self.cycle is None or self.cycle.response_complete):
            self._wait()
        super().data_received(data)
        self._overhead += len(data)
        if self._overhead > MOST_OVERHEAD:
            self._close()

    def on_message_begin(self) -> None:
        """Begin to count."""
        self._overhead = 0
        super().on_message_begin()

    def on_body(self, body: bytes) -> None:
        """Count everything else; a body has limits of its own."""
        self._overhead -= len(body)
        super().on_body(body)

    def on_headers_complete(self) -> None:
        """Wait no longer."""
        self._forget()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._forget()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._deadline = self.loop.call_later(HEADER_PATIENCE, self._close)

    def _forget(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _close(self) -> None:
        self._forget()
        if not self.transport.is_closing():
            self.transport.abort()


class Listener(uvicorn.Server):
    """One port. Signals are its owner's business: several listeners share a process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


def listener(application: Any, *, certificate: str, key: str, headers: dict[str, str], lifespan: bool) -> Listener:
    """A listener for `application`, with TLS 1.2 or later, that asks for no proxy's word about who the peer is."""
    config = uvicorn.Config(
        application,
        http=ImpatientProtocol,
        ws="none",
        lifespan="on" if lifespan else "off",
        ssl_certfile=certificate,
        ssl_keyfile=key,
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,
        headers=list(headers.items()),
        timeout_keep_alive=KEEP_ALIVE,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=5,
    )
    config.load()
    listening.modern(config.ssl)
    return Listener(config)


def bind(host: str, port: int) -> socket.socket:
    """Take a port.

    Raises
    ------
    ConnectionFailed
        If it cannot be had.
    """
    fix = "end what uses the port, or choose another in coordinator.toml"
    return listening.bind(host, port, who="the coordinator", fix=fix)
