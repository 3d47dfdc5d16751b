"""Notes of messages that were taken: what another process finds of them, and what a failing disk does to them."""

from pathlib import Path

import pytest
from flwr.app import Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from wardround.client import open_messages
from wardround.client.open_messages import OpenMessages
from wardround.errors import StorageError


@pytest.fixture
def message(monkeypatch: pytest.MonkeyPatch) -> Message:
    for name in ("task_id", "run_id", "node_id"):
        monkeypatch.setattr(TaskIdentity, f"_{name}", 1)
    made = Message(RecordDict(), dst_node_id=7, message_type="train")
    made.metadata.__dict__["_message_id"] = "../../name"
    return made


def test_the_next_process_finds_what_is_open(tmp_path: Path, message: Message) -> None:
    OpenMessages(tmp_path).add(message)
    (note,) = tmp_path.iterdir()
    assert note.suffix == ".pb"
    again = OpenMessages(tmp_path)
    (found,) = again.read()
    assert found.metadata.message_id == message.metadata.message_id
    assert again.find("../../name") is found
    again.strike("../../name")
    assert again.find("../../name") is None
    assert OpenMessages(tmp_path).read() == []


def test_a_note_that_is_damaged_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "x.pb").write_bytes(b"\xff\xff")
    assert OpenMessages(tmp_path).read() == []
    assert not list(tmp_path.iterdir())


def test_on_a_full_disk_it_is_known_here_at_least(
    tmp_path: Path, message: Message, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StorageError("cannot write", "the disk is full", "")

    monkeypatch.setattr(open_messages, "write_bytes", full)
    notes = OpenMessages(tmp_path)
    notes.add(message)
    assert notes.find("../../name") is message
