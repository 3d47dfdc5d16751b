"""What crosses: apps that the agent approves come in, answers that it released go out, and everything is answered.

Flower's own node state and object store, without a network: the coordinator's side is a list of what arrived.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from agent import FakeAgent, fake_agent
from deployment import make_bundle
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import ErrorCode
from flwr.common.serde import run_from_proto
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.run_pb2 import Run as ProtoRun
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, no_object_id_recompute
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run, RunNotRunningException
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.nodestate import NodeStateFactory

from wardround.client import crossing as subject
from wardround.client import open_messages
from wardround.client.asking import Agent
from wardround.client.crossing import Crossing
from wardround.client.error_replies import LOST, SITE_ERROR
from wardround.client.open_messages import OpenMessages
from wardround.errors import StorageError
from wardround.processes import Stamp
from wardround.strategies.contract import digest
from wardround.strategies.parcel import wrap

NODE, RUN = 42, 7
CANARY = "DOE^JOHN 1970-01-01"
BUNDLE = make_bundle()
HASH = hashlib.sha256(BUNDLE).hexdigest()


def update(value: float = 1.0) -> RecordDict:
    arrays = ArrayRecord({"w": Array(np.full((3, 2), value, np.float32))})
    return RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 3})})


@dataclass
class Coordinator:
    """The other end of Flower's connection.

    Parameters
    ----------
    waiting
        Messages to be pulled.
    """

    waiting: list[Message] = field(default_factory=list)
    parts: dict[str, bytes] = field(default_factory=dict)
    bundle: bytes = BUNDLE
    arrived: list[Message] = field(default_factory=list)
    offered: list[str] = field(default_factory=list)
    troubles: list[Exception | None] = field(default_factory=list)
    over: bool = False
    _sent: dict[str, tuple[Message, ObjectTree, dict[str, bytes]]] = field(default_factory=dict)

    def ask(self, kind: str = "train", content: RecordDict | None = None, run: int = RUN) -> Message:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run, 1
        message = Message(content or update(), dst_node_id=NODE, message_type=kind, group_id="1")
        message.metadata.__dict__["_message_id"] = message.object_id
        self.waiting.append(message)
        return message

    def receive(self) -> tuple[Message, ObjectTree] | None:
        self._fail()
        if not self.waiting:
            return None
        message = self.waiting.pop(0)
        with no_object_id_recompute():
            self.parts = {name: part.deflate() for name, part in get_all_nested_objects(message).items()}
            tree = get_object_tree(message)
        return remove_content_from_message(message), tree

    def get_run(self, run_id: int) -> Run:
        return run_from_proto(ProtoRun(run_id=run_id, fab_id="wardround/test", fab_version="1.0.0", fab_hash=HASH))

    def get_fab(self, fab_hash: str, run_id: int) -> Fab:
        return Fab(fab_hash, self.bundle, {})

    def pull_object(self, run_id: int, name: str) -> bytes:
        self._fail()
        return self.parts[name]

    def confirm_message_received(self, run_id: int, name: str) -> None:
        """Nothing to do."""

    def send(self, message: Message, tree: ObjectTree, seconds: float) -> tuple[set[str], str]:
        self._fail()
        if self.over:
            raise RunNotRunningException
        self.offered.append(message.metadata.message_id)
        parts: dict[str, bytes] = {}
        self._sent[message.metadata.message_id] = (message, tree, parts)
        missing = {part.object_id for part in subject.iterate_object_tree(tree)}
        return missing, message.metadata.message_id

    def push_object(self, run_id: int, session: str, name: str, content: bytes) -> None:
        self._fail()
        _, tree, parts = self._sent[session]
        parts[name] = content
        if len(parts) == len({part.object_id for part in subject.iterate_object_tree(tree)}):
            found = inflate_object_from_contents(tree.object_id, dict(parts))
            assert isinstance(found, Message)
            self.arrived.append(found)

    def _fail(self) -> None:
        if self.troubles and (trouble := self.troubles.pop(0)) is not None:
            raise trouble


@dataclass
class Node:
    """Flower's loop, a step at a time."""

    coordinator: Coordinator
    crossing: Crossing
    notes: OpenMessages
    state: Any
    store: Any

    def take(self) -> int | None:
        c = self.coordinator
        return self.crossing.pull_and_store_message(
            state=self.state,
            object_store=self.store,
            node_config={},
            receive=c.receive,
            get_run=c.get_run,
            get_fab=c.get_fab,
            pull_object=c.pull_object,
            confirm_message_received=c.confirm_message_received,
            trusted_entities=None,
        )

    def send(self) -> None:
        c = self.coordinator
        self.crossing.push_messages(state=self.state, object_store=self.store, send=c.send, push_object=c.push_object)

    def app_answers(
        self,
        asked: Message,
        content: RecordDict | Error,
        *,
        change: Callable[[Message], None] = lambda _: None,
        leave_out: int = 0,
    ) -> Message:
        """Do what the process of an app does: hand over a reply, and then its parts."""
        reply = Message(content, reply_to=asked)
        change(reply)
        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
            self.state.store_message(reply)
            self.store.preregister(RUN, get_object_tree(reply))
            parts = list(get_all_nested_objects(reply).items())
            for name, part in parts[: len(parts) - leave_out]:
                self.store.put(name, part.deflate())
        return reply


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[FakeAgent]:
    with fake_agent(tmp_path / "agent.sock") as agent:
        yield agent


@pytest.fixture
def node(tmp_path: Path, agent: FakeAgent) -> Node:
    return new_node(tmp_path)


def new_node(folder: Path, **options: Any) -> Node:
    """A SuperNode's process that has just begun."""
    (folder / "open").mkdir(exist_ok=True)
    notes = OpenMessages(folder / "open")
    stores = ObjectStoreFactory()
    state = NodeStateFactory(objectstore_factory=stores).state()
    state.set_node_id(NODE)
    options = {"sleep": lambda _: None, **options}
    crossing = Crossing(Agent(folder / "agent.sock"), notes, Stamp(folder / "stamp"), **options)
    return Node(Coordinator(), crossing, notes, state, stores.store())


def the_error(node: Node) -> tuple[int, str | None]:
    """Number and text of the one error that arrived, and nothing else did."""
    (arrived,) = node.coordinator.arrived
    assert arrived.has_error()
    assert CANARY not in str(arrived.__dict__)
    return arrived.error.code, arrived.error.reason


def test_what_was_released_leaves_as_it_is(node: Node, agent: FakeAgent) -> None:
    asked = node.coordinator.ask()
    assert node.take() == RUN
    node.app_answers(asked, update(2.0))
    node.send()
    (arrived,) = node.coordinator.arrived
    assert digest(arrived.content) == digest(update(2.0))
    assert arrived.metadata.reply_to_message_id == asked.metadata.message_id
    (question,) = agent.questions("released")
    assert (question["digest"], question["kind"], question["round"]) == (digest(update(2.0)), "train", 1)
    assert node.notes.find(asked.metadata.message_id) is None


def test_weights_in_pieces_are_looked_into_and_leave_in_pieces(node: Node, agent: FakeAgent) -> None:
    agent.release = lambda d: d == digest(update(2.0))
    for value in (2.0, 3.0):
        asked = node.coordinator.ask()
        node.take()
        node.app_answers(asked, wrap(update(value)))
        node.send()
    left, withheld = node.coordinator.arrived
    assert digest(left.content) == digest(wrap(update(2.0)))
    assert (withheld.error.code, withheld.error.reason) == (SITE_ERROR, "not-released")


def test_a_piece_with_room_for_more_is_not_read(node: Node, agent: FakeAgent) -> None:
    piece = wrap(update())["arrays"]["wardround.parcel.0"]
    data = piece.data + CANARY.encode()
    arrays = ArrayRecord({"wardround.parcel.0": Array(piece.dtype, (len(data),), piece.stype, data)})
    asked = node.coordinator.ask()
    node.take()
    node.app_answers(asked, RecordDict({"arrays": arrays, "metrics": update()["metrics"]}))
    node.send()
    assert the_error(node) == (SITE_ERROR, "undecodable")
    assert agent.questions("released") == []


def test_what_was_not_released_is_replaced_by_an_error(node: Node, agent: FakeAgent) -> None:
    agent.release = lambda d: d == digest(update(2.0))
    asked = node.coordinator.ask()
    node.take()
    node.app_answers(asked, update(3.0))
    node.send()
    assert the_error(node) == (SITE_ERROR, "not-released")


def test_the_agent_is_asked_once_for_an_answer_that_is_sent_twice(node: Node, agent: FakeAgent) -> None:
    """A release is good for one sending."""
    asked = node.coordinator.ask()
    node.take()
    node.app_answers(asked, update())
    node.coordinator.troubles = [httpx.HTTPError("500"), None, ValueError("lost")]
    node.send()
    assert len(agent.questions("released")) == 1
    assert len(node.coordinator.arrived) == 1
    assert len(set(node.coordinator.offered)) == 1, "one answer must keep its name, or it is counted twice"


def test_text_hidden_in_the_wrapping_of_an_answer_does_not_leave(node: Node, agent: FakeAgent) -> None:
    def hide(reply: Message) -> None:
        reply.metadata.__dict__["_group_id"] = CANARY
        reply.metadata.__dict__["_message_type"] = "train.DOE"

    asked = node.coordinator.ask()
    node.take()
    node.app_answers(asked, update(), change=hide)
    node.send()
    (arrived,) = node.coordinator.arrived
    assert (arrived.metadata.group_id, arrived.metadata.message_type) == ("1", "train")


def test_a_record_beside_the_released_ones_is_another_content(node: Node, agent: FakeAgent) -> None:
    agent.release = lambda d: d == digest(update())
    asked = node.coordinator.ask()
    node.take()
    content = update()
    content["extra"] = ConfigRecord({"name": CANARY})
    node.app_answers(asked, content)
    node.send()
    assert the_error(node) == (SITE_ERROR, "not-released")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, f"<class 'ValueError'>:<'{CANARY}'>"), (2, "app-raised")),
        (Error(ErrorCode.LOAD_CLIENT_APP_EXCEPTION, CANARY), (1, "app-raised")),
        (Error(ErrorCode.CLIENT_APP_CRASHED, "ClientApp stopped responding."), (8, "app-crashed")),
        (Error(SITE_ERROR, "paused"), (100, "paused")),
        (Error(SITE_ERROR, "DataError"), (100, "data-error")),
        (Error(SITE_ERROR, CANARY), (100, "other")),
        (Error(SITE_ERROR, "doe-john"), (100, "other")),
        (Error(SITE_ERROR, None), (100, "other")),
        (Error(424242, CANARY), (100, "other")),
        (Error(0, CANARY), (100, "other")),
    ],
)
def test_of_an_error_only_a_known_code_leaves(
    node: Node, agent: FakeAgent, given: Error, told: tuple[int, str]
) -> None:
    asked = node.coordinator.ask()
    node.take()
    node.app_answers(asked, given)
    node.send()
    assert the_error(node) == told
    assert [question["code"] for question in agent.questions("note-error")] == [told[1]]


def test_an_app_that_is_not_approved_gets_an_error_and_the_node_lives_on(node: Node, agent: FakeAgent) -> None:
    agent.admit = lambda _: "bundle-not-approved"
    node.coordinator.ask()
    assert node.take() == RUN
    node.send()
    assert the_error(node) == (ErrorCode.INVALID_FAB, "bundle-not-approved")
    assert not node.state.get_tasks()
    (shown,) = agent.questions("admit-app")
    assert (shown["sha256"], shown["bytes"]["fab"]) == (HASH, BUNDLE)

    agent.admit = lambda _: None
    node.coordinator.arrived.clear()
    asked = node.coordinator.ask()
    assert node.take() == RUN
    node.app_answers(asked, update())
    node.send()
    assert not node.coordinator.arrived[0].has_error()


def test_other_bytes_under_an_approved_name_are_refused(node: Node, agent: FakeAgent) -> None:
    node.coordinator.bundle = make_bundle({"evil.py": "x = 1"})
    node.coordinator.ask()
    node.take()
    node.send()
    assert the_error(node) == (ErrorCode.INVALID_FAB, "bundle-hash")
    assert not agent.questions("admit-app")
    assert [question["code"] for question in agent.questions("note-error")] == ["bundle-hash"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"fab_version": f"1.0.0.{HASH[:8]}/../../../../../tmp/x"}, (ErrorCode.INVALID_FAB, "bundle-names")),
        ({"fab_id": "../x"}, (ErrorCode.INVALID_FAB, "bundle-names")),
        ({"fab_id": "wardround"}, (ErrorCode.INVALID_FAB, "bundle-names")),
        ({"fab_id": "wardround/test/x"}, (ErrorCode.INVALID_FAB, "bundle-names")),
        ({"fab_version": ""}, (ErrorCode.INVALID_FAB, "bundle-names")),
        ({"primary_task_type": "flwr-agentapp"}, (SITE_ERROR, "kind-not-allowed")),
    ],
)
def test_an_approved_app_is_run_from_its_own_folder_and_as_what_it_is(
    node: Node, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], told: tuple[int, str]
) -> None:
    """Flower builds the folder from which it loads an app out of names that the coordinator gives."""
    run = dataclasses.replace(node.coordinator.get_run(RUN), **changes)  # type: ignore[arg-type]
    monkeypatch.setattr(node.coordinator, "get_run", lambda _: run)
    node.coordinator.ask()
    assert node.take() == RUN
    node.send()
    assert the_error(node) == told
    assert not node.state.get_tasks()
    assert [question["code"] for question in agent.questions("note-error")] == [told[1]]


def test_a_status_is_released_for_a_query_and_for_no_round(node: Node, agent: FakeAgent) -> None:
    asked = node.coordinator.ask("query.status")
    node.take()
    node.app_answers(asked, RecordDict({"metrics": MetricRecord({"cases": 3.0})}))
    node.send()
    (question,) = agent.questions("released")
    assert question["kind"] == "query"
    assert "round" not in question


def test_an_approval_that_is_taken_back_counts_from_the_next_message(node: Node, agent: FakeAgent) -> None:
    first = node.coordinator.ask()
    node.take()
    node.app_answers(first, update())
    node.send()
    node.coordinator.arrived.clear()
    agent.admit = lambda _: "bundle-revoked"
    node.coordinator.ask(content=update(5.0))
    assert node.take() == RUN
    node.send()
    assert the_error(node) == (ErrorCode.INVALID_FAB, "bundle-revoked")


def test_without_an_agent_every_message_gets_an_error_that_says_ask_again(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    node.coordinator.ask()
    assert node.take() == RUN
    node.send()
    assert the_error(node) == (LOST, "agent-unreachable")


@pytest.mark.parametrize("trouble", [httpx.HTTPError("500"), KeyError("x"), ValueError("no protobuf")])
def test_trouble_with_the_coordinator_does_not_end_the_loop(node: Node, agent: FakeAgent, trouble: Exception) -> None:
    """Any of these ends the loop of Flower's own SuperNode, whose process then stays up for ever."""
    asked = node.coordinator.ask()
    node.coordinator.troubles = [trouble]
    assert node.take() is None
    assert node.take() == RUN
    node.app_answers(asked, update())
    node.send()
    assert len(node.coordinator.arrived) == 1


def test_a_message_whose_parts_do_not_come_is_answered(node: Node, agent: FakeAgent) -> None:
    node.coordinator.ask()
    node.coordinator.troubles = [None, httpx.HTTPError("404")]
    assert node.take() == RUN
    node.send()
    assert the_error(node) == (LOST, "not-received")


def test_a_run_that_is_over_leaves_nothing_open(node: Node, agent: FakeAgent) -> None:
    asked = node.coordinator.ask()
    node.coordinator.troubles = [None, RunNotRunningException()]
    assert node.take() is None
    assert node.notes.find(asked.metadata.message_id) is None

    asked = node.coordinator.ask()
    node.take()
    node.app_answers(asked, update())
    node.coordinator.over = True
    node.send()
    assert node.coordinator.arrived == []
    assert node.notes.find(asked.metadata.message_id) is None


def test_what_a_killed_process_left_open_is_answered_by_the_next(tmp_path: Path, agent: FakeAgent) -> None:
    first = new_node(tmp_path)
    asked = first.coordinator.ask()
    first.take()
    second = new_node(tmp_path)
    assert second.take() == RUN
    second.send()
    assert the_error(second) == (LOST, "restarted")
    assert second.coordinator.arrived[0].metadata.reply_to_message_id == asked.metadata.message_id
    assert second.take() is None
    assert new_node(tmp_path).take() is None


def test_what_another_node_or_another_day_left_open_is_forgotten(tmp_path: Path, agent: FakeAgent) -> None:
    first = new_node(tmp_path)
    asked = first.coordinator.ask()
    first.take()
    second = new_node(tmp_path)
    second.state.set_node_id(NODE + 1)
    assert second.take() is None
    asked.metadata.__dict__["_created_at"] = 0.0
    first.notes.add(asked)
    assert new_node(tmp_path).take() is None
    assert not list((tmp_path / "open").iterdir())


def test_a_full_disk_keeps_no_message_from_being_answered(
    node: Node, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StorageError("cannot write", "the disk is full", "")

    monkeypatch.setattr(open_messages, "write_bytes", full)
    asked = node.coordinator.ask()
    assert node.take() == RUN
    node.app_answers(asked, update())
    node.send()
    assert not node.coordinator.arrived[0].has_error()


def test_an_app_that_dies_while_it_hands_over_its_answer_is_given_up(tmp_path: Path, agent: FakeAgent) -> None:
    """Flower's own SuperNode waits for the missing parts for ever."""
    moments = iter(range(0, 10_000, 5))
    node = new_node(tmp_path, clock=lambda: float(next(moments)))
    asked = node.coordinator.ask()
    node.take()
    node.app_answers(asked, update(), leave_out=1)
    node.send()
    assert the_error(node) == (LOST, "incomplete")


def test_parts_that_come_late_are_waited_for(tmp_path: Path, agent: FakeAgent) -> None:
    late: list[Callable[[], None]] = []
    node = new_node(tmp_path, sleep=lambda _: late.pop()() if late else None)
    asked = node.coordinator.ask()
    node.take()
    reply = node.app_answers(asked, update(), leave_out=1)
    with no_object_id_recompute():
        name, part = list(get_all_nested_objects(reply).items())[-1]
        content = part.deflate()
    late.append(lambda: node.store.put(name, content))
    node.send()
    assert not node.coordinator.arrived[0].has_error()


def test_an_answer_that_is_no_message_is_an_error(
    node: Node, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = node.coordinator.ask()
    node.take()
    node.app_answers(asked, update())
    monkeypatch.setattr(subject, "inflate_object_from_contents", lambda *_: update())
    node.send()
    assert the_error(node) == (SITE_ERROR, "undecodable")


def test_an_answer_to_no_question_is_dropped(node: Node, agent: FakeAgent) -> None:
    stranger = Coordinator().ask(content=update(9.0))
    node.app_answers(stranger, update())
    node.send()
    assert node.coordinator.arrived == []
    assert not agent.questions("released")


def test_an_answer_that_cannot_be_sent_is_given_up_at_last(node: Node, agent: FakeAgent) -> None:
    asked = node.coordinator.ask()
    node.take()
    node.app_answers(asked, update())
    node.coordinator.troubles = [httpx.HTTPError("500")] * 100
    node.send()
    assert len(node.coordinator.troubles) == 100 - len(subject.RESEND_WAITS) - 1
    assert node.notes.find(asked.metadata.message_id) is None


def test_an_answer_outlasts_a_coordinator_that_cannot_be_reached(node: Node, agent: FakeAgent) -> None:
    asked = node.coordinator.ask()
    node.take()
    node.app_answers(asked, update())
    node.coordinator.troubles = [httpx.ConnectError("[SSL: UNEXPECTED_EOF_WHILE_READING]")] * 100
    node.send()
    assert len(node.coordinator.arrived) == 1
    assert node.coordinator.troubles == []


def test_progress_is_stamped_while_an_app_works(tmp_path: Path, agent: FakeAgent) -> None:
    stamps: list[float] = []
    work: list[Callable[[], object]] = []

    def sleep(_: float) -> None:
        stamps.append((tmp_path / "stamp").stat().st_mtime)
        if len(stamps) == 3:
            work.pop()()

    node = new_node(tmp_path, sleep=sleep)
    asked = node.coordinator.ask()
    node.take()
    work.append(lambda: node.app_answers(asked, update()))
    node.send()
    assert len(stamps) == 3
    assert stamps == sorted(stamps)
