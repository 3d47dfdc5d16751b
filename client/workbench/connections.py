"""Connections that say nothing: how many there may be, and for how long.

The workbench shares its process with the agent, and so the number of files that it may have open. Whoever opens
connections and is silent, or says a letter now and then, must not keep rounds and people from theirs.
"""

import asyncio
import ipaddress
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

MOST = 512
"""Connections in all."""
MOST_OF_AN_ADDRESS = 128
"""Of one address that is not this machine: a proxy here stands for everybody."""
HEADERS_WITHIN_S = 20.0
"""Time for a whole request but its body, from the beginning of the connection or of the request."""


class Connection(H11Protocol):
    """One connection, closed where it is one too many or takes too long to ask for anything.

    By h11, which limits the headers and trailers of a request; the faster httptools keeps as many as are sent.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count it."""
        super().connection_made(transport)
        address = self.client[0] if self.client else ""
        same = sum(1 for other in self.connections if other.client and other.client[0] == address)
        if len(self.connections) > MOST or (same > MOST_OF_AN_ADDRESS and not _is_this_machine(address)):
            transport.abort()
        else:
            self._watch()

    def data_received(self, data: bytes) -> None:
        """Take a part of a request."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._end_watch()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Time runs as long as no request is answered. More of it does not begin the time anew."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._end_watch()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEADERS_WITHIN_S, self._late)

    def _end_watch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _late(self) -> None:
        self._deadline = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()


def _is_this_machine(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
