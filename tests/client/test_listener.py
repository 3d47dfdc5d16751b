"""The socket of the agent: what must not make it deaf."""

import errno
import os
import socket
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from wardround.client import listener as subject
from wardround.client import wire
from wardround.client.listener import Answer, Listener


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


def test_its_end_waits_for_an_answer_that_is_on_its_way(tmp_path: Path) -> None:
    asked, ended, found = threading.Event(), threading.Event(), []

    def answer(header: dict[str, Any], arrays: dict[str, Any]) -> Answer:
        asked.set()
        assert not ended.wait(0.3), "the end did not wait"
        return {"op": "ok"}, {}

    path = tmp_path / "agent.sock"
    listener = Listener(path, answer, lambda: 0, frozenset({os.getuid()}))
    client = threading.Thread(target=lambda: found.append(wire.ask(path, {"op": "stop"})))
    client.start()
    assert asked.wait(30)
    listener.close()
    ended.set()
    client.join(30)
    assert found == [({"op": "ok"}, {})]


def test_its_end_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "LAST_WORDS_S", 0.1)
    asked, over = threading.Event(), threading.Event()

    def answer(header: dict[str, Any], arrays: dict[str, Any]) -> Answer:
        asked.set()
        over.wait(60)
        return {"op": "ok"}, {}

    path = tmp_path / "agent.sock"
    listener = Listener(path, answer, lambda: 0, frozenset({os.getuid()}))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(str(path))
        wire.send(connection, {"op": "info"})
        assert asked.wait(30)
        listener.close()
        assert not over.is_set()
        over.set()
