"""A real agent in a process of its own, asked over its socket as a courier asks."""

import json
import os
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from deployment import eventually
from drawn import draw, person
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from living import START, agent_process, answers, arrive, ask, lasting, make_home, plan, same, start_agent

from wardround.client import wire
from wardround.client.app import SITE_ERROR, app
from wardround.client.gate.ledger import Ledger
from wardround.client.home import only_agent
from wardround.client.live import open_live_site
from wardround.errors import GateRefused, UsageError
from wardround.strategies.contract import ARRAYS, METRICS, PLAN, Update, digest, weights_from_record, weights_to_record


def in_process(home: Path, *rounds: int, **fields: object) -> Update:
    """What a site like the agent's answers when it is called directly."""
    twin = make_home(home)
    with open_live_site(twin) as site:
        weights = START
        for number in rounds:
            update = site.train(plan(number, **fields), weights)
            weights = update.weights
        return update


def courier(kind: str, home: Path, name: str = "north") -> Message:
    """What the ClientApp answers in this process, told of an agent as the SuperNode tells it."""
    for identity, value in (("_task_id", 1), ("_run_id", 1), ("_node_id", 1)):
        if getattr(TaskIdentity, identity) is None:
            setattr(TaskIdentity, identity, value)
    content = RecordDict({ARRAYS: weights_to_record(START), PLAN: plan().to_record()})
    message = Message(content, dst_node_id=7, message_type=kind)
    message.metadata.__dict__["_message_id"] = "message"
    config: dict[str, bool | bytes | float | int | str] = {"site": name, "agent": str(home / "run" / "agent.sock")}
    return app(message, Context(run_id=1, node_id=7, node_config=config, state=RecordDict(), run_config={}))


def test_over_the_socket_a_site_answers_the_same_bits(tmp_path: Path) -> None:
    expected = in_process(tmp_path / "twin", 1, 2)
    home = make_home(tmp_path / "home")
    with agent_process(home):
        _, first = ask(home, "train", plan(1))
        metrics, second = ask(home, "train", plan(2), first)
        scores, nothing = ask(home, "evaluate", plan(2), second)
        status = wire.ask(home.socket, {"op": "status"})[0]["metrics"]
    assert same(second, expected.weights)
    assert lasting(metrics) == lasting(expected.metrics)
    assert not nothing
    with open_live_site(home) as site:
        assert scores == site.evaluate(plan(2), second)
        assert status == site.status()
    ledger = Ledger(home.ledger)
    assert ledger.verify().ok
    passed = [(line.direction, line.kind, line.round) for line in ledger.entries() if line.verdict == "allowed"]
    assert passed == [
        (way, kind, number)
        for kind, number in (("train", 1), ("train", 2), ("evaluate", 2), ("query", None))
        for way in ("in", "out")
    ]


def test_the_courier_carries_what_the_agent_released(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home")
    with agent_process(home):
        reply = courier("train", home.path)
        assert not reply.has_error()
        assert set(reply.content) == {ARRAYS, METRICS}
        own = digest(reply.content)
        assert wire.ask(home.socket, {"op": "released", "digest": own})[0]["released"] is True
        assert wire.ask(home.socket, {"op": "released", "digest": own})[0]["released"] is False
    expected = in_process(tmp_path / "twin", 1)
    assert same(weights_from_record(reply.content.array_records[ARRAYS]), expected.weights)


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack(">I", 7) + b"garbage",
        struct.pack(">I", 2**32 - 1),
        b"\x80\x04\x95pickle",
        struct.pack(">I", 30) + b'{"op": "unheard", "arrays": []}'[:30],
    ],
)
def test_garbage_is_refused_and_the_agent_goes_on(garbage: bytes, serving: Path) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(str(serving))
        connection.sendall(garbage)
        connection.shutdown(socket.SHUT_WR)
        header, _ = wire.receive(connection)
        assert header == {"op": "error", "code": "malformed"}
    assert wire.ask(serving, {"op": "info"})[0]["site"] == "north"


def test_ten_gigabytes_that_are_declared_are_refused_at_once(serving: Path) -> None:
    part = {"name": "w", "dtype": "float32", "shape": [1], "stype": "numpy.ndarray", "size": 10 * 2**30}
    text = json.dumps({"op": "train", "plan": {}, "arrays": [part]}).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(str(serving))
        connection.sendall(struct.pack(">I", len(text)) + text)
        assert wire.receive(connection)[0] == {"op": "error", "code": "malformed"}
    assert wire.ask(serving, {"op": "info"})[0]["running"] is None


def test_an_operation_that_nobody_knows_leaves_the_connection(serving: Path) -> None:
    with pytest.raises(GateRefused) as refused:
        wire.ask(serving, {"op": "approve-everything"})
    assert refused.value.code == "malformed"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_is_not_answered(serving: Path) -> None:
    """The folder keeps other users out; here it is opened to them, and the agent itself must."""
    code = (
        "import os, sys; from wardround.client import wire; from pathlib import Path; os.setuid(65534)\n"
        "try: wire.ask(Path(sys.argv[1]), {'op': 'info'})\n"
        "except Exception as error: sys.exit(type(error).__name__)\n"
    )
    opened = [path for path in serving.parents if path.stat().st_uid == 0 and path.stat().st_mode & 0o001 == 0]
    modes = {path: path.stat().st_mode for path in [*opened, serving]}
    try:
        for path in modes:
            path.chmod(0o777)
        asked = subprocess.run([sys.executable, "-c", code, str(serving)], capture_output=True, text=True, check=False)
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
    assert asked.stderr.strip().endswith("AuthRefused"), asked.stderr
    assert wire.ask(serving, {"op": "info"})[0]["site"] == "north"


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> object:
    """The socket of an agent that several tests ask."""
    home = make_home(tmp_path_factory.mktemp("agent") / "home")
    with agent_process(home):
        yield home.socket


def test_killed_in_the_middle_of_a_round_it_answers_the_same_when_asked_again(tmp_path: Path) -> None:
    """The courier is in the middle of its question when the agent dies, and asks the next one by itself."""
    home = make_home(tmp_path / "home")
    expected = in_process(tmp_path / "twin", 1)
    process = start_agent(home)
    replies: list[Message] = []
    thread = threading.Thread(target=lambda: replies.append(courier("train", home.path)))
    thread.start()
    # The first case is in memory, the second is not: its files are there, no snapshot names them.
    eventually(lambda: list(home.site.glob("runs/test/memory/*.safetensors")), "the first case of the round")
    process.kill()
    process.join()
    assert not list(home.site.glob("runs/test/state/round-*"))
    assert home.socket.exists()
    assert not answers(home)
    arrive(home, 7)  # What comes in between belongs to the next round.
    with agent_process(home):
        thread.join(300)
    (reply,) = replies
    assert same(weights_from_record(reply.content.array_records[ARRAYS]), expected.weights)
    assert lasting(reply.content.metric_records[METRICS]) == lasting(expected.metrics)
    assert Ledger(home.ledger).verify().ok


def test_killed_in_the_middle_of_what_people_drew_it_does_not_see_what_they_drew_since(tmp_path: Path) -> None:
    home, twin = (make_home(tmp_path / name, cases=0) for name in ("home", "twin"))
    for place in (home, twin):
        draw(place, 1, 2)
    with open_live_site(twin) as site:
        expected = site.train(plan(1), START)
    process = start_agent(home)
    replies: list[Message] = []
    thread = threading.Thread(target=lambda: replies.append(courier("train", home.path)))
    thread.start()
    eventually(lambda: list(home.site.glob("runs/test/memory/*.safetensors")), "the first case of the round")
    process.kill()
    process.join()
    # One draws on, another accepts earlier than before, a third begins with a new case.
    draw(home, 1, state="open", steps=())
    draw(home, 2, steps=person(2)[0].steps[:1])
    draw(home, 3, author="bob")
    with agent_process(home):
        thread.join(300)
    (reply,) = replies
    assert same(weights_from_record(reply.content.array_records[ARRAYS]), expected.weights)
    assert lasting(reply.content.metric_records[METRICS]) == lasting(expected.metrics)


def test_a_pause_ends_the_round_and_holds_over_a_restart(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home")
    long = plan(1, updates_per_case=4)
    with agent_process(home):
        codes: list[str] = []

        def train() -> None:
            try:
                ask(home, "train", long)
            except GateRefused as error:
                codes.append(error.code)

        thread = threading.Thread(target=train)
        thread.start()
        eventually(lambda: list(home.site.glob("runs/test/memory/*.safetensors")), "the first case of the round")
        paused = wire.ask(home.socket, {"op": "pause"}, timeout=300)[0]
        assert paused["participation"] == "paused"
        assert paused["settled"] is True
        assert paused["running"] is None
        thread.join(300)
        assert codes == ["paused"]
    with agent_process(home):
        assert wire.ask(home.socket, {"op": "info"})[0]["participation"] == "paused"
        reply = courier("train", home.path)
        assert (reply.error.code, reply.error.reason) == (SITE_ERROR, "paused")
        wire.ask(home.socket, {"op": "resume"})
        _, weights = ask(home, "train", long)
    assert same(weights, in_process(tmp_path / "twin", 1).weights)
    noted = [line.code for line in Ledger(home.ledger).entries() if line.verdict == "refused"]
    assert noted == ["paused", "paused"]


def test_only_one_agent_serves_a_home(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home")
    with agent_process(home):
        with pytest.raises(UsageError, match="is served already"), only_agent(home):
            pass
        assert answers(home)


def test_it_ends_by_itself_when_asked_to(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home")
    with agent_process(home) as process:
        wire.ask(home.socket, {"op": "stop"})
        process.join(120)
        assert process.exitcode == 0
    assert not home.socket.exists()
