"""A small agent for tests: it speaks `client/wire.py` on a real socket and answers as it is told to."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wardround.client import wire
from wardround.errors import ConnectionFailed

Header = dict[str, Any]


class FakeAgent:
    """Answers questions.

    Parameters
    ----------
    path
        Socket to listen on.
    admit
        Says for a bundle's hash why it is refused, or None.
    release
        Says whether an answer of a digest may leave.
    """

    def __init__(
        self,
        path: Path,
        admit: Callable[[str], str | None] = lambda _: None,
        release: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self.admit = admit
        self.release = release
        self.asked: list[Header] = []
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        path.unlink(missing_ok=True)
        self._server.bind(str(path))
        self._server.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def questions(self, operation: str) -> list[Header]:
        return [header for header in self.asked if header["op"] == operation]

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with connection:
            try:
                while True:
                    header, arrays = wire.receive(connection)
                    self.asked.append({**header, "bytes": {name: part.data for name, part in arrays.items()}})
                    wire.send(connection, self._answer(header))
            except ConnectionFailed:
                return

    def _answer(self, header: Header) -> Header:
        if header["op"] == "admit-app" and (code := self.admit(header["sha256"])):
            return {"op": wire.ERROR, "code": code}
        if header["op"] == "released":
            return {"op": "ok", "released": self.release(header["digest"])}
        return {"op": "ok"}


@contextmanager
def fake_agent(path: Path, **answers: Any) -> Iterator[FakeAgent]:
    """An agent that listens as long as the block lasts."""
    agent = FakeAgent(path, **answers)
    try:
        yield agent
    finally:
        agent.close()
