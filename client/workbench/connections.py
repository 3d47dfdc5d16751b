"""Connections that say nothing: how many there may be, and for how long.

The workbench shares its process with the agent, and so the number of files that it may have open. Whoever opens
connections and is silent, or says a letter now and then, must not keep rounds and people from theirs. A connection
counts from the moment that it is accepted: also one whose TLS handshake is never finished.
"""

import asyncio
import ipaddress
import socket
from collections import Counter
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from wardround.client.workbench.patience import network
from wardround.listening import Place, accept

MOST = 512
"""Connections in all."""
MOST_OF_AN_ADDRESS = 128
"""Of one address that is not this machine: a proxy here stands for everybody."""
HANDSHAKE_WITHIN_S = 10.0
"""Time for the handshake of TLS."""
HEADERS_WITHIN_S = 20.0
"""Time for a whole request but its body, from the beginning of the connection or of the request."""
TAKEN_WITHIN_S = 60.0
"""Time in which whoever has not yet taken an answer takes some of it."""
_TAKEN_AT_LEAST = 32 << 10


class Connection(H11Protocol):
    """One connection, closed where it takes too long to ask for anything, or to take the answer.

    By h11, which limits the headers and trailers of a request; the faster httptools keeps as many as are sent.
    """

    def __init__(self, *args: Any, place: Place, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._place = place
        self._deadline: asyncio.TimerHandle | None = None
        self._look: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for what it asks."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take a part of a request."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._place.leave()
        self._end_watch()
        self._end_look()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Send no more for now: the other side does not take what was sent."""
        super().pause_writing()
        self._look_again()

    def resume_writing(self) -> None:
        """Send again."""
        self._end_look()
        super().resume_writing()

    def _look_again(self) -> None:
        self._end_look()
        self._look = self.loop.call_later(TAKEN_WITHIN_S, self._taken, self.transport.get_write_buffer_size())

    def _end_look(self) -> None:
        if self._look is not None:
            self._look.cancel()
            self._look = None

    def _taken(self, before: int) -> None:
        """Whoever takes nothing holds a connection, and the file that is sent."""
        if self.transport.get_write_buffer_size() > before - _TAKEN_AT_LEAST:
            self.transport.abort()
        else:
            self._look_again()

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


class Hall:
    """How many connections there are, and of whom."""

    def __init__(self) -> None:
        self._of: Counter[str] = Counter()

    def admit(self, address: str) -> Place | None:
        """Room for one more connection of an address; None where there is none."""
        who = network(address)
        full = self._of.total() >= MOST
        if full or (self._of[who] >= MOST_OF_AN_ADDRESS and not _is_this_machine(address)):
            return None
        self._of[who] += 1
        return _Taken(self._of, who)


class _Taken:
    def __init__(self, of: Counter[str], who: str) -> None:
        self._of = of
        self._who: str | None = who

    def leave(self) -> None:
        """Give it back."""
        if self._who is not None:
            self._of[self._who] -= 1
            if not self._of[self._who]:
                del self._of[self._who]
            self._who = None


class HallServer(uvicorn.Server):
    """Uvicorn's server, with connections that are let in by a :class:`Hall`."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept."""
        await super().startup(sockets=[])

        def connection(place: Place) -> Connection:
            return Connection(config=self.config, server_state=self.server_state, app_state={}, place=place)

        hall = Hall()
        self._accepting = [
            asyncio.create_task(accept(one, hall.admit, connection, self.config.ssl, lambda: HANDSHAKE_WITHIN_S))
            for one in sockets or ()
        ]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more, and end what is under way."""
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        await super().shutdown(sockets)


def _is_this_machine(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
