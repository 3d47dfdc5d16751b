"""The courier's way to an agent: what it carries, how long it waits, and what it answers when nobody comes."""

import socket
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict

from wardround.client import door, wire
from wardround.errors import ConnectionFailed, GateRefused
from wardround.strategies.contract import ARRAYS, METRICS, PLAN
from wardround.strategies.plan import RoundPlan

ROUND = RoundPlan(run="test", round=1, rounds=2, seed=0, model="unet3d-small", labels=3)
WEIGHTS = ArrayRecord({"w": Array(np.arange(6, dtype=np.float32)), "n": Array(np.array(3))})
CONTENT = RecordDict({ARRAYS: WEIGHTS, PLAN: ROUND.to_record()})

Answering = Callable[[socket.socket], None]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent.sock"


def agent(path: Path, *answers: Answering) -> threading.Thread:
    """Answers one connection after the other, and is gone."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        with closing(listener):
            for answer in answers:
                connection, _ = listener.accept()
                with connection:
                    answer(connection)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return thread


def test_arrays_and_plan_go_there_and_back_as_they_are(path: Path) -> None:
    heard: list[wire.Frame] = []

    def answer(connection: socket.socket) -> None:
        heard.append(wire.receive(connection))
        wire.send(connection, {"op": "ok", "metrics": {"num-examples": 2.0, "cases": 1}}, dict(WEIGHTS))

    agent(path, answer)
    reply = door.AgentSite(path).answer("train", CONTENT)
    ((header, arrays),) = heard
    assert header["op"] == "train"
    assert RoundPlan.from_record(header["plan"]) == ROUND
    assert arrays == dict(WEIGHTS)
    assert list(reply) == [ARRAYS, METRICS]
    assert dict(reply.array_records[ARRAYS]) == dict(WEIGHTS)
    assert dict(reply.metric_records[METRICS]) == {"num-examples": 2.0, "cases": 1}


def test_a_status_takes_nothing_there(path: Path) -> None:
    heard: list[wire.Frame] = []

    def answer(connection: socket.socket) -> None:
        heard.append(wire.receive(connection))
        wire.send(connection, {"op": "ok", "metrics": {"cases": 1.0}})

    agent(path, answer)
    reply = door.AgentSite(path).answer("status", CONTENT)
    assert heard == [({"op": "status"}, {})]
    assert reply == RecordDict({METRICS: MetricRecord({"cases": 1.0})})


def test_an_agent_that_goes_away_is_asked_again(path: Path) -> None:
    def killed(connection: socket.socket) -> None:
        wire.receive(connection)

    def answer(connection: socket.socket) -> None:
        wire.receive(connection)
        wire.send(connection, {"op": "ok", "metrics": {"num-examples": 1.0}})

    agent(path, killed, killed, answer)
    reply = door.AgentSite(path).answer("evaluate", CONTENT)
    assert dict(reply.metric_records[METRICS]) == {"num-examples": 1.0}


def test_an_agent_that_stays_away_is_given_up(path: Path) -> None:
    with pytest.raises(ConnectionFailed, match="no agent listens"):
        door.AgentSite(path, patience_s=0.0).answer("train", CONTENT)


def test_what_the_agent_refuses_is_not_asked_again(path: Path) -> None:
    def answer(connection: socket.socket) -> None:
        wire.receive(connection)
        wire.send(connection, {"op": "error", "code": "paused"})

    thread = agent(path, answer)
    with pytest.raises(GateRefused) as refused:
        door.AgentSite(path).answer("train", CONTENT)
    assert refused.value.code == "paused"
    thread.join(30)


def test_an_answer_that_is_no_frame_is_not_asked_for_again(path: Path) -> None:
    def answer(connection: socket.socket) -> None:
        wire.receive(connection)
        connection.sendall(b"\xff\xff\xff\xff")

    thread = agent(path, answer)
    with pytest.raises(wire.FrameRefused):
        door.AgentSite(path).answer("train", CONTENT)
    thread.join(30)


def test_a_plan_that_json_does_not_know_stays_here(path: Path) -> None:
    content = RecordDict({ARRAYS: WEIGHTS, PLAN: ConfigRecord({"run": b"bytes"})})
    thread = agent(path, lambda connection: None)
    with pytest.raises(wire.FrameRefused):
        door.AgentSite(path).answer("train", content)
    thread.join(30)


def test_a_node_that_names_an_agent_finds_it(path: Path) -> None:
    door.detach_all()
    context = Context(run_id=1, node_id=7, node_config={"agent": str(path)}, state=RecordDict(), run_config={})
    assert isinstance(door.open_site(context), door.AgentSite)
