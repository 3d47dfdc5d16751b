"""An in-process grid behaves as Flower's own: ids, metadata, errors, isolation."""

import logging
import re

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from wardround.deploy.grid import InProcessGrid, node_id
from wardround.errors import Interrupted, UsageError

NAMES = ("north", "south", "east")


def echo_app(calls: list[str] | None = None) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        site = str(context.node_config["site"])
        if calls is not None:
            calls.append(site)
        context.state["seen"] = MetricRecord(
            {"times": int(context.state["seen"]["times"]) + 1 if "seen" in context.state else 1}
        )
        return Message(
            RecordDict({"who": ConfigRecord({"site": site}), "seen": context.state["seen"]}), reply_to=message
        )

    @app.query("status")
    def status(message: Message, context: Context) -> Message:
        return Message(RecordDict(), reply_to=message)

    return app


def to_all(grid: InProcessGrid, content: RecordDict | None = None, kind: str = "train") -> list[Message]:
    return [Message(content or RecordDict(), node, kind, group_id="7") for node in grid.get_node_ids()]


def test_every_reply_names_its_question_and_its_site() -> None:
    grid = InProcessGrid(echo_app(), NAMES)
    messages = to_all(grid)
    ids = grid.push_messages(messages)
    assert len(set(ids)) == len(NAMES)
    assert ids == [message.metadata.message_id for message in messages]
    replies = {reply.metadata.reply_to_message_id: reply for reply in grid.pull_messages(ids)}
    for identity, message in zip(ids, messages, strict=True):
        reply = replies[identity]
        assert reply.metadata.src_node_id == message.metadata.dst_node_id
        assert reply.metadata.dst_node_id == message.metadata.src_node_id
        assert reply.metadata.group_id == "7"
        assert reply.metadata.message_type == "train"
        assert reply.metadata.message_id not in ("", identity)
        assert reply.content["who"]["site"] == grid.site_name(message.metadata.dst_node_id)


def test_node_ids_depend_on_the_names_alone() -> None:
    one, two = InProcessGrid(echo_app(), NAMES), InProcessGrid(echo_app(), reversed(NAMES))
    assert list(one.get_node_ids()) == list(two.get_node_ids()) == [node_id(name) for name in sorted(NAMES)]
    assert node_id("north") == 3694550651
    assert [node.name for node in one.get_nodes()] == sorted(NAMES)


def test_a_message_is_answered_once_and_only_when_asked_for() -> None:
    calls: list[str] = []
    grid = InProcessGrid(echo_app(calls), NAMES)
    ids = grid.push_messages(to_all(grid))
    assert calls == []
    assert len(list(grid.pull_messages(ids[1:2]))) == 1
    assert calls == [sorted(NAMES)[1]]
    assert len(list(grid.pull_messages(ids))) == 2
    assert list(grid.pull_messages([*ids, "never pushed"])) == []


def test_context_state_of_a_node_lives_as_long_as_the_grid() -> None:
    grid = InProcessGrid(echo_app(), NAMES)
    for expected in (1, 2, 3):
        for reply in grid.send_and_receive(to_all(grid)):
            assert reply.content["seen"]["times"] == expected


def test_an_exception_becomes_an_error_reply_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if context.node_config["site"] == "south":
            raise ValueError("/data/JOHN_DOE.nii.gz")
        return Message(RecordDict(), reply_to=message)

    grid = InProcessGrid(app, NAMES)
    with caplog.at_level(logging.ERROR):
        replies = {reply.metadata.src_node_id: reply for reply in grid.send_and_receive(to_all(grid))}
    failed = replies.pop(node_id("south"))
    assert failed.error.code == 2
    assert failed.error.reason == "ValueError"
    assert all(reply.has_content() for reply in replies.values())
    assert re.search(r"south failed: ValueError in .*train \(test_grid\.py:\d+\)", caplog.text)
    assert "JOHN_DOE" not in caplog.text
    assert isinstance(grid.first_failure, ValueError)


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Interrupted("stopped")])
def test_a_stop_is_no_error_of_a_site(stop: BaseException) -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        raise stop

    grid = InProcessGrid(app, NAMES)
    ids = grid.push_messages(to_all(grid))
    with pytest.raises(type(stop)):
        grid.pull_messages(ids)


def test_a_message_to_nobody_is_answered_as_flower_does() -> None:
    grid = InProcessGrid(echo_app(), NAMES)
    (reply,) = grid.send_and_receive([Message(RecordDict(), 99, "train")])
    assert reply.error.code == 5


def test_an_unknown_kind_of_message_is_an_error_reply() -> None:
    grid = InProcessGrid(echo_app(), NAMES)
    assert all(reply.has_error() for reply in grid.send_and_receive(to_all(grid, kind="evaluate")))


def test_what_one_site_does_to_its_message_no_other_sees() -> None:
    import numpy as np

    left: list[list[str]] = []
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        left.append(sorted(message.content) + sorted(message.content["arrays"]))
        del message.content["arrays"]["weight"]
        del message.content["plan"]
        return Message(RecordDict(), reply_to=message)

    grid = InProcessGrid(app, NAMES)
    shared = RecordDict({"arrays": ArrayRecord({"weight": Array(np.zeros(2))}), "plan": ConfigRecord({"round": 1})})
    grid.send_and_receive(to_all(grid, shared))
    assert left == [["arrays", "plan", "weight"]] * len(NAMES)
    assert sorted(shared) == ["arrays", "plan"]


@pytest.mark.parametrize("names", [(), ("a", "a")])
def test_a_grid_needs_sites_with_different_names(names: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        InProcessGrid(echo_app(), names)


def test_only_one_worker_is_reproducible() -> None:
    with pytest.raises(UsageError):
        InProcessGrid(echo_app(), NAMES, workers=2)  # type: ignore[arg-type]
