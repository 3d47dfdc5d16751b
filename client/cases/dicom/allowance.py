"""How long a conversation with an archive may take, and how much may lie in memory of it; beyond that it is cut off.

The other side decides when it sends and how much. Looking at a clock between two messages is no help against one that
never ends, so its connections are cut from outside, in the middle of whatever they wait for.
"""

import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

from wardround.client.cases.dicom.archives import too_large, too_slow


class Allowance:
    """A context for one conversation. What is raised in it once it is cut off becomes the reason.

    Parameters
    ----------
    bytes
        That may have come without having been handled: the largest object, more or less.
    seconds
        From entering the context.

    Raises
    ------
    DataError
        On leaving, if more came than is allowed.
    ConnectionFailed
        On leaving, if the time was over before the end.
    """

    def __init__(self, bytes: int, seconds: float) -> None:
        self._left = bytes
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._over = ""
        self._timer = threading.Timer(max(seconds, 0.0), self.end, ("slow",))
        self._timer.daemon = True

    def watch(self, connection: socket.socket) -> None:
        """Cut this connection, too, when it is over. It may be encrypted."""
        with self._lock:
            self._sockets.append(connection)
            over = self._over
        if over:
            _cut(connection)

    def got(self, count: int) -> None:
        """So many bytes came, or are about to.

        Raises
        ------
        ConnectionAbortedError
            If that is too much, or the time is over.
        """
        with self._lock:
            self._left -= count
            much = self._left < 0
        if much:
            self.end("large")
        if self._over:
            raise ConnectionAbortedError("cut off")

    def handled(self, count: int) -> None:
        """So many of them lie in memory no longer."""
        with self._lock:
            self._left += count

    def end(self, reason: str = "ended") -> None:
        """Cut all connections now. The first reason counts."""
        with self._lock:
            self._over = self._over or reason
            connections = list(self._sockets)
        for connection in connections:
            _cut(connection)

    def check(self) -> None:
        """Raise the reason, if it was cut off."""
        if self._over == "large":
            raise too_large()
        if self._over == "slow":
            raise too_slow()

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if kind is None or issubclass(kind, Exception):
            try:
                self.check()
            except Exception as reason:
                raise reason from None


def _cut(connection: socket.socket) -> None:
    with suppress(OSError):  # it may have ended by itself
        # Not the method of an encrypted connection, which another thread is reading from.
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
