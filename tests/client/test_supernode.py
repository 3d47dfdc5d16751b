"""A real SuperNode behind a CONNECT proxy, a real SuperLink with TLS and keys, an app that nobody should trust.

The agent is a small server of the test, which approves and releases what it is told to.
"""

import contextlib
import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from agent import FakeAgent, fake_agent
from deployment import (
    answer_to,
    ask,
    connections,
    eventually,
    is_up,
    lead,
    make_bundle,
    make_coordinator,
    make_site,
    node_status,
    register,
    run_status,
    submit,
    superlink,
    supernode,
    watched,
)
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.superlink.grid.http_grid import HttpGrid
from proxy import Proxy, connect_proxy

from wardround.client.home import SiteHome
from wardround.processes import Keeper
from wardround.server.home import CoordinatorHome, hold
from wardround.strategies.contract import digest

CANARY = "DOE^JOHN"
APP = f"""
import os, time
from flwr.app import Array, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.train()
def train(message, context):
    match message.content["config"]["do"]:
        case "raise":
            raise ValueError("cannot read /data/{CANARY}/ct.nii.gz")
        case "vanish":
            os._exit(1)
        case "wait":
            time.sleep(600)
    metrics = MetricRecord({{"num-examples": 3}})
    return Message(RecordDict({{"arrays": message.content["arrays"], "metrics": metrics}}), reply_to=message)
"""
BUNDLE = make_bundle({"theirs/__init__.py": "", "theirs/app.py": APP}, clientapp="theirs.app:app")
OTHER_BUNDLE = make_bundle({"theirs/__init__.py": "", "theirs/app.py": APP + "#"}, clientapp="theirs.app:app")


def task(do: str = "echo", value: float = 1.0) -> RecordDict:
    arrays = ArrayRecord({"w": Array(np.full((40, 20), value, np.float32))})
    return RecordDict({"arrays": arrays, "config": ConfigRecord({"do": do})})


def echo(value: float = 1.0) -> RecordDict:
    return RecordDict({"arrays": task(value=value)["arrays"], "metrics": MetricRecord({"num-examples": 3})})


@dataclass(frozen=True)
class Federation:
    """A coordinator, a run that the test leads, and a site whose SuperNode is online."""

    home: CoordinatorHome
    site: SiteHome
    node: int
    agent: FakeAgent
    grid: HttpGrid
    coordinator: Keeper
    keeper: Keeper
    proxy: Proxy
    watch: Path

    def is_online(self) -> bool:
        return node_status(self.home, self.node) == "online"

    def process(self) -> psutil.Process:
        return psutil.Process(self.keeper.status.pid)

    def app_processes(self) -> list[psutil.Process]:
        found = []
        for child in self.process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # a zombie has no command line either
                if "flwr-clientapp" in " ".join(child.cmdline()):
                    found.append(child)
        return found

    def working(self, name: str) -> list[psutil.Process]:
        """The app's process for a message, once it has what it needs and no former one is left."""
        note = self.site.run / "open" / f"{hashlib.sha256(name.encode()).hexdigest()}.pb"
        eventually(note.exists, "the message at the node")
        return eventually(
            lambda: [app for app in self.app_processes() if app.create_time() > note.stat().st_mtime - 1], "an app"
        )

    def received(self) -> int:
        """How many messages the node has taken whole."""
        return (self.site.logs / "supernode.log").read_text().count("Received successfully")

    def ask(self, content: RecordDict) -> str:
        return ask(self.grid, self.node, "train", content)

    def answer(self, content: RecordDict, patience: float = 120) -> object:
        """The answer: a number and a code, or a digest."""
        return self.result(self.ask(content), patience)

    def result(self, name: str, patience: float = 120) -> object:
        reply = answer_to(self.grid, name, patience)
        return (reply.error.code, reply.error.reason) if reply.has_error() else digest(reply.content)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    folder = tmp_path_factory.mktemp("supernode")
    home = make_coordinator(folder / "C")
    site = make_site(folder / "a", "a", home)
    watch = watched(folder / "watch")
    with (
        superlink(home, **watch) as coordinator,
        fake_agent(site.socket) as agent,
        connect_proxy() as proxy,
        supernode(site, HTTPS_PROXY=proxy.url, HTTP_PROXY=proxy.url, **watch) as keeper,
    ):
        eventually(lambda: is_up(home), "the SuperLink")
        node = register(home, site)
        run = submit(home, BUNDLE)
        with lead(home) as grid:
            assert grid.run.run_id == run
            eventually(lambda: node_status(home, node) == "online", "the node")
            yield Federation(home, site, node, agent, grid, coordinator, keeper, proxy, folder / "watch")


def test_an_answer_comes_back(federation: Federation) -> None:
    assert federation.answer(task(value=2.0)) == digest(echo(2.0))
    assert federation.agent.questions("released")[-1]["digest"] == digest(echo(2.0))
    shown = federation.agent.questions("admit-app")[0]
    assert shown["bytes"]["fab"] == BUNDLE


@pytest.mark.long
def test_an_answer_that_was_not_released_stays(federation: Federation) -> None:
    federation.agent.release = lambda _: False
    assert federation.answer(task(value=3.0)) == (100, "not-released")
    federation.agent.release = lambda _: True


def test_the_text_of_an_exception_stays(federation: Federation) -> None:
    assert federation.answer(task("raise")) == (2, "app-raised")
    told = (federation.site.logs / "supernode.log").read_text()
    assert "error 2: app-raised" in told
    assert CANARY not in told
    there = [path for path in federation.home.path.rglob("*") if path.is_file()]
    assert federation.home.database in there
    assert not [path for path in there if CANARY.encode() in path.read_bytes().replace(BUNDLE, b"")]


def test_an_app_that_is_not_approved_gets_an_error_and_the_node_lives_on(federation: Federation) -> None:
    federation.agent.admit = lambda sha256: None if sha256 == federation.grid.run.fab_hash else "bundle-not-approved"
    submit(federation.home, OTHER_BUNDLE)
    with lead(federation.home) as other:
        reply = answer_to(other, ask(other, federation.node, "train", task()))
    assert (reply.error.code, reply.error.reason) == (7, "bundle-not-approved")
    assert federation.answer(task(value=4.0)) == digest(echo(4.0))


def test_a_killed_node_is_back_soon_and_what_it_left_open_is_answered(federation: Federation) -> None:
    before = federation.received()
    (app,) = federation.working(name := federation.ask(task("wait")))
    eventually(lambda: federation.received() > before, "the whole message at the node")
    began = time.monotonic()
    os.kill(federation.process().pid, signal.SIGKILL)
    assert federation.result(name, patience=90) == (8, "restarted")
    assert time.monotonic() - began < 90
    eventually(lambda: not app.is_running(), "the end of the killed node's app")
    assert federation.answer(task(value=5.0)) == digest(echo(5.0))


def test_it_spoke_to_the_coordinator_through_the_proxy_and_to_nobody_else(federation: Federation) -> None:
    port = federation.home.settings.port
    assert set(federation.proxy.asked) == {f"CONNECT localhost:{port} HTTP/1.1"}
    assert sum(federation.proxy.carried.values()) > 10_000
    assert connections(federation.watch) == ""


def test_the_watch_on_connections_sees_them(tmp_path: Path) -> None:
    """The proof above is worth something only if a connection elsewhere would be seen."""
    code = "import socket\ntry: socket.create_connection(('somewhere.invalid', 443), 1)\nexcept OSError: pass"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, **watched(tmp_path / "watch")})
    assert "somewhere.invalid" in connections(tmp_path / "watch")


def test_no_task_is_given_to_another_process_of_this_machine(federation: Federation) -> None:
    """Flower's own SuperNode gives a message, weights and all, to whoever asks its local port first."""
    from flwr.proto.runtime_pb2 import AcquireTaskRequest
    from flwr.supercore.runtime import RuntimeHttpClient

    (port,) = {c.laddr.port for c in federation.process().net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    with (
        pytest.raises(Exception, match="401"),
        RuntimeHttpClient.from_server_address(f"127.0.0.1:{port}", True, None, interceptors=[]) as thief,
    ):
        thief.AcquireTask(AcquireTaskRequest(supported_task_types=["flwr-clientapp"]))
    assert (federation.site.run / "superexec.secret").stat().st_mode & 0o077 == 0


@pytest.mark.long
def test_an_app_that_vanishes_is_noticed(federation: Federation) -> None:
    assert federation.answer(task("vanish"), patience=120) == (8, "app-crashed")


@pytest.mark.long
def test_a_database_that_is_locked_for_25_seconds_leaves_no_zombie(federation: Federation) -> None:
    pid = federation.process().pid
    lock = sqlite3.connect(federation.home.database, timeout=60, isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    time.sleep(25)  # the fault itself
    lock.execute("ROLLBACK")
    lock.close()
    assert federation.answer(task(value=6.0), patience=90) == digest(echo(6.0))
    assert federation.process().pid == pid
    assert federation.is_online()


@pytest.mark.long
@pytest.mark.parametrize("seconds", [10, 75, 120])
def test_a_killed_superlink_costs_neither_the_run_nor_the_answer(federation: Federation, seconds: int) -> None:
    federation.working(name := federation.ask(task(value=float(seconds))))
    pid = federation.coordinator.status.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    lock = federation.home.run / "superlink.lock"
    with ExitStack() as stack:
        # Its keeper starts it again at once; as long as another holds the lock, it ends at once.
        eventually(lambda: stack.enter_context(hold(lock)), "the lock", patience=10)
        time.sleep(seconds)  # the fault itself
    eventually(lambda: is_up(federation.home), "the SuperLink")
    assert federation.result(name, patience=90) == digest(echo(float(seconds)))
    assert run_status(federation.home, federation.grid.run.run_id) == "running"
    eventually(federation.is_online, "the node")
    assert federation.answer(task(value=seconds + 0.5), patience=90) == digest(echo(seconds + 0.5))


def test_a_process_without_progress_ends_itself(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys, threading\nfrom wardround.client import supernode\n"
        "from wardround.processes import Stamp\n"
        "supernode.STALE = 0.5\nstamp = Stamp(pathlib.Path(sys.argv[1]))\nstamp.touch()\n"
        "threading.Thread(target=supernode._watch, args=(stamp,), daemon=True).start()\nthreading.Event().wait()"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path / "stamp")], check=False, timeout=60)
    assert ended.returncode == 70


@pytest.mark.long
def test_a_second_node_for_the_same_folder_ends_at_once(federation: Federation) -> None:
    with supernode(federation.site) as second:
        eventually(lambda: second.status.exit_code is not None, "its end")
        assert second.status.exit_code == 4
