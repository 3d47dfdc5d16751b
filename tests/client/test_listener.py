"""The socket of the agent: what must not make it deaf."""

import errno
import os
import socket
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from wardround.client import listener as subject
from wardround.client import wire
from wardround.client.listener import Listener


def test_a_connection_that_cannot_be_accepted_does_not_end_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accept, troubles = socket.socket.accept, [OSError(errno.EMFILE, "Too many open files")]

    def full(self: socket.socket) -> Any:
        if troubles:
            raise troubles.pop()
        return accept(self)

    monkeypatch.setattr(subject, "PAUSE_S", 0.01)
    monkeypatch.setattr(socket.socket, "accept", full)
    path = tmp_path / "agent.sock"
    with closing(Listener(path, lambda header, arrays: ({"op": "ok"}, {}), lambda: 0, frozenset({os.getuid()}))):
        assert wire.ask(path, {"op": "info"}) == ({"op": "ok"}, {})
    assert not troubles
    assert not path.exists()
