"""A Unix socket that answers questions of trusted users, each connection in a thread of its own."""

import logging
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from flwr.app import Array

from wardround.client import wire
from wardround.errors import ConnectionFailed, UsageError

log = logging.getLogger(__name__)

Answer = tuple[dict[str, Any], Mapping[str, Array]]
Answering = Callable[[dict[str, Any], dict[str, Array]], Answer]

QUIET_S = 600.0
"""Seconds that a connection may be silent, and that each piece of a frame may take."""
PAUSE_S = 0.5
"""Seconds until the next attempt, where a connection could not be accepted."""
CONNECTIONS = 64
"""How many connections are served at once; others wait."""
LAST_WORDS_S = 5.0
"""Seconds that the end waits for answers that are on their way."""


class Listener:
    """Serves one socket from its making to :meth:`close`.

    Parameters
    ----------
    path
        Where to listen, in a folder that only this user may enter. What lies there is replaced.
    answer
        Called for every frame, in many threads at once; it raises nothing.
    limit
        Bytes of the arrays of a frame at most, asked before each.
    trusted
        Users that are answered.

    Raises
    ------
    UsageError
        If a socket cannot be there.
    """

    def __init__(self, path: Path, answer: Answering, limit: Callable[[], int], trusted: frozenset[int]) -> None:
        self._path = path
        self._answer = answer
        self._limit = limit
        self._trusted = trusted
        self._places = threading.BoundedSemaphore(CONNECTIONS)
        self._closed = threading.Event()
        self._state = threading.Condition()
        self._owed = 0
        path.unlink(missing_ok=True)
        self._socket = _bound(str(path))
        threading.Thread(target=self._accept, name="listener", daemon=True).start()

    def close(self) -> None:
        """Accept no one any more. Who has asked gets an answer first, if it takes no more than seconds."""
        self._closed.set()
        with suppress(OSError):  # Wakes the thread that accepts.
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._path.unlink(missing_ok=True)
        with self._state:
            self._state.wait_for(lambda: self._owed == 0, timeout=LAST_WORDS_S)

    def _accept(self) -> None:
        while True:
            self._places.acquire()
            try:
                connection, _ = self._socket.accept()
            except OSError as error:
                if self._closed.is_set():
                    return
                # Too many files are open, say. An agent that hears nobody any more would be up for nothing.
                log.error("a connection was not accepted (%s)", error.strerror)
                self._places.release()
                self._closed.wait(PAUSE_S)
                continue
            threading.Thread(target=self._serve, args=(connection,), name="connection", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                connection.settimeout(QUIET_S)
                self._converse(connection)
        except ConnectionFailed as error:
            log.info("%s", error)
        finally:
            self._places.release()

    def _converse(self, connection: socket.socket) -> None:
        """Questions and answers by turns, until the other side goes away or says something that is no frame."""
        if (user := user_behind(connection)) not in self._trusted:
            log.warning("user %d asked the agent and was refused", user)
            wire.send(connection, {"op": wire.ERROR, "code": wire.WRONG_PEER})
            return
        while True:
            try:
                header, arrays = wire.receive(connection, self._limit())
            except wire.FrameRefused as error:
                log.warning("%s", error)
                wire.send(connection, {"op": wire.ERROR, "code": "malformed"})
                return
            with self._owing():
                wire.send(connection, *self._answer(header, arrays))

    @contextmanager
    def _owing(self) -> Iterator[None]:
        """A question was heard and is not answered yet. The process ends with its main thread, whatever others do."""
        with self._state:
            self._owed += 1
        try:
            yield
        finally:
            with self._state:
                self._owed -= 1
                self._state.notify_all()


def user_behind(connection: socket.socket) -> int:
    """The user that the kernel says is on the other side (Linux, ``SO_PEERCRED``)."""
    layout = struct.Struct("3i")
    _process, user, _group = layout.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, layout.size))
    return int(user)


def _bound(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(path)
        Path(path).chmod(0o600)
    except OSError as error:
        listener.close()
        raise UsageError(
            f"the agent cannot listen on {path}",
            "a socket's path has at most 107 bytes" if len(os.fsencode(path)) > 107 else error.strerror or "",
            "give the site a home with a shorter path, on a local disk",
        ) from error
    listener.listen(CONNECTIONS)
    return listener
