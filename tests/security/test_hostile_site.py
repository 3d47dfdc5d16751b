"""A hostile site under a real coordinator: each of its answers is refused with its reason, and the others go on.

Coordinator, SuperLink and ServerApp are processes started by the commands that operators type, with TLS and keys on.
The sites are played: two keep the contract, and the others, who have keys like them, break it in a way of their own.
What every check refuses, `test_replies.py` has in full; here the way is the one that a reply really takes.
"""

import json
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import numpy.typing as npt
import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from deployment import Signer, call, eventually, free_ports
from fastapi.testclient import TestClient
from flwr.app import Array, ArrayRecord, Message
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import GetNodesRequest
from flwr.supercore.constant import TASK_TOKEN_HEADER
from played_site import STEP, Asked, honest, played_site

from wardround import pages
from wardround.client.home import SiteHome
from wardround.deploy.cli import run as command_line
from wardround.deploy.coordinator import runs
from wardround.deploy.coordinator.registry import Registry
from wardround.models.catalogue import build
from wardround.models.weights import weights_of
from wardround.server.home import CoordinatorHome
from wardround.server.journal import RoundRecord, read_weights
from wardround.server.status import create_app
from wardround.strategies.contract import weights_to_record

CANARY = "DOE^JOHN"
PATIENCE_S = 300.0

Attack = Callable[[Asked], Iterable[Message]]


def with_array(change: Callable[[npt.NDArray[np.float32]], Array], name: str = "") -> Attack:
    """The weights as they came, with another largest array, or with an array of a new name."""

    def attack(asked: Asked) -> Iterable[Message]:
        largest = max(asked.weights, key=lambda one: asked.weights[one].size)
        changed = {name or largest: change(asked.weights[largest])}
        arrays = ArrayRecord({**dict(weights_to_record(asked.weights)), **changed})
        return [asked.answer(arrays, {"num-examples": 2.0})]

    return attack


def declared(shape: tuple[int, ...], data: bytes) -> Array:
    return Array("float32", shape, "numpy.ndarray", data)


def owns_the_mean(asked: Asked) -> Iterable[Message]:
    return [asked.answer(weights_to_record(asked.weights), {"num-examples": 1e12})]


def tells_a_name(asked: Asked) -> Iterable[Message]:
    return [asked.error(2, f"ValueError: no such file /data/{CANARY}/ct.nii.gz")]


class Replayer:
    """Answers honestly in the first round, twice at once, and with the same weights ever after."""

    def __init__(self) -> None:
        self.first: ArrayRecord | None = None

    def __call__(self, asked: Asked) -> Iterable[Message]:
        if self.first is not None:
            return [asked.answer(self.first, {"num-examples": 3.0, "loss": 0.4})]
        reply = asked.honest()
        moved = {name: a + a.dtype.type(STEP) if a.dtype.kind == "f" else a for name, a in asked.weights.items()}
        self.first = weights_to_record(moved)
        return [reply, reply]


ATTACKS: dict[str, tuple[Attack, str]] = {
    "nan": (with_array(lambda array: Array(np.full_like(array, np.nan))), "not-finite"),
    "wrong-shape": (with_array(lambda array: Array(array[..., :1])), "shape"),
    "extra-key": (with_array(lambda array: Array(np.zeros(2, np.float32)), CANARY), "names"),
    "huge-num-examples": (owns_the_mean, "num-examples"),
    "pickle": (with_array(lambda array: declared(array.shape, pickle.dumps(CANARY))), "encoding"),
    "10-GB-declared": (with_array(lambda array: declared((2684354560,), CANARY.encode())), "shape"),
    "exception-text": (tells_a_name, "error-reply"),
}
"""What a site of that name does in each round, and with which reason it is refused."""
REPLAYER = "replayer"
HONEST = ("north", "south")
SITES = (*ATTACKS, REPLAYER, *HONEST)
ROUNDS = 2


@dataclass
class Watched:
    """A run that is over, and what was tried beside it."""

    home: CoordinatorHome
    name: str
    tries: dict[str, object] = field(default_factory=dict)

    @property
    def rounds(self) -> list[RoundRecord]:
        return runs.find(self.home, self.name).rounds()


def make(folder: Path) -> tuple[CoordinatorHome, dict[str, SiteHome]]:
    """A coordinator, and sites that it takes in; all by the commands that people type."""
    public, runtime = free_ports(2)
    home = CoordinatorHome(folder / "C")
    ports = ["--host", "127.0.0.1", "--port", str(public), "--runtime-port", str(runtime), "--status-port", "0"]
    typed = ["coordinator", "init", "--name", "localhost", *ports]
    assert command_line([*typed, "--home", str(home.path)]) == 0
    sites = {}
    for name in SITES:
        site, invitation = SiteHome(folder / name), str(folder / f"{name}.json")
        assert command_line(["coordinator", "invite", name, "--out", invitation, "--home", str(home.path)]) == 0
        assert command_line(["site", "init", invitation, "--home", str(site.path)]) == 0
        assert command_line(["coordinator", "enrol", str(site.path / "enrolment.json"), "--home", str(home.path)]) == 0
        sites[name] = site
    return home, sites


def as_stranger(home: CoordinatorHome) -> dict[str, int]:
    """What somebody with a key of his own is answered."""
    stranger = Signer(ec.generate_private_key(ec.SECP384R1()))
    node = Registry(home.sites).get("north").node_id
    assert node is not None
    activate = ActivateNodeRequest(public_key=stranger.public, heartbeat_interval=30)
    pull = PullMessagesRequest(node=Node(node_id=node))
    return {
        "comes in": call(home, "/v1/fleet/activate-node", activate, stranger.headers()).status_code,
        "as another": call(home, "/v1/fleet/pull-messages", pull, stranger.headers()).status_code,
    }


def task_token(home: CoordinatorHome) -> str | None:
    """What Flower hands the ServerApp on its command line, where every user of the machine sees it."""
    for child in psutil.Process(int((home.run / "superexec.pid").read_text())).children(recursive=True):
        try:
            words = child.cmdline()
        except psutil.NoSuchProcess:
            continue
        if "--token" in words:
            return words[words.index("--token") + 1]
    return None


def with_token(home: CoordinatorHome, token: str, *, inner: bool) -> int:
    answer = call(home, "/v1/runtime/get-nodes", GetNodesRequest(), {TASK_TOKEN_HEADER: token}, inner=inner)
    return answer.status_code


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("hostile")
    home, sites = make(folder)
    found = Watched(home, "study")
    settings = ["--rounds", str(ROUNDS), "--quorum", "2", "--deadline", "60", "--setting", "quarantine-after=0"]
    assert command_line(["coordinator", "run", found.name, *settings, "--home", str(home.path)]) == 0

    def look(asked: Asked) -> Iterable[Message]:
        """Keeps the contract, and lets others try their luck while the run is under way."""
        if not found.tries:
            found.tries["stranger"] = as_stranger(home)
            found.tries["token"] = token = task_token(home)
            assert token is not None
            found.tries["token inside"] = with_token(home, token, inner=True)
            found.tries["token outside"] = with_token(home, token, inner=False)
        return honest(asked)

    plays: dict[str, Attack] = {name: attack for name, (attack, _) in ATTACKS.items()}
    plays |= {REPLAYER: Replayer(), "north": look}

    def trained(play: Attack) -> Attack:
        return lambda asked: play(asked) if asked.kind == "train" else honest(asked)

    with ExitStack() as stack:
        log = stack.enter_context((folder / "coordinator.log").open("wb"))
        command = [sys.executable, "-m", "wardround.deploy.cli", "coordinator", "serve", "--home", str(home.path)]
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            known = Registry(home.sites)
            eventually(
                lambda: process.poll() is None and all(known.get(name).state == "registered" for name in SITES),
                "a coordinator that knows its sites",
            )
            with ExitStack() as playing:
                for name in SITES:
                    playing.enter_context(played_site(home, sites[name], trained(plays.get(name, honest))))
                eventually(lambda: runs.find(home, found.name).phase in runs.OVER, "the end of the run", PATIENCE_S)
            found.tries["token afterwards"] = with_token(home, str(found.tries["token"]), inner=True)
            yield found
        finally:
            process.terminate()
            process.wait(60)


def test_each_attack_is_refused_with_its_reason_and_the_others_go_on(watched: Watched) -> None:
    run = runs.find(watched.home, watched.name)
    assert (run.phase, run.state.reason) == ("finished", "")
    hostile = {name: code for name, (_, code) in ATTACKS.items()}
    first, second = watched.rounds
    assert (first.refused, second.refused) == (hostile, {**hostile, REPLAYER: "replayed"})
    # What was sent twice counted once.
    assert (set(first.sites), set(second.sites)) == ({*HONEST, REPLAYER}, set(HONEST))
    assert (first.missing, second.missing) == ({}, {})


def test_nothing_of_an_attack_is_in_the_model(watched: Watched) -> None:
    """Every honest site went the same step in every round, so the model went this step, whoever else there was."""
    expected = weights_of(build("unet3d-small", labels=3, seed=0))
    final = read_weights(watched.home.run_folder(watched.name), ROUNDS)
    for name, array in expected.items():
        step = ROUNDS * STEP if array.dtype.kind == "f" else 0
        np.testing.assert_allclose(final[name], array + step, atol=1e-6)


def test_a_stranger_with_a_key_of_his_own_gets_nothing(watched: Watched) -> None:
    assert watched.tries["stranger"] == {"comes in": 412, "as another": 401}


def test_a_stolen_token_of_a_task_opens_nothing_outside_and_nothing_afterwards(watched: Watched) -> None:
    # On the coordinator's own machine, and as long as the task runs, it is what it says: see SECURITY.md.
    assert watched.tries["token inside"] == httpx.codes.OK
    assert watched.tries["token outside"] == httpx.codes.NOT_FOUND
    assert watched.tries["token afterwards"] in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN)


def test_a_name_that_the_site_planted_is_in_no_journal_log_or_page(watched: Watched) -> None:
    client = TestClient(pages.Guard(create_app(watched.home.path)), base_url="http://localhost")
    places = {path: client.get(path).content for path in ("/", "/metrics")}
    for folder in (watched.home.runs, watched.home.logs, watched.home.sites):
        places |= {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    places["log"] = (watched.home.path.parent / "coordinator.log").read_bytes()
    assert b"wrong-shape" in places["/"]
    # A part of the name within a longer run of letters and digits is a coincidence in somebody's key.
    parts = [rf"(?<![A-Za-z0-9+/]){part}(?![A-Za-z0-9+/])" for part in ("DOE", "JOHN")]
    names = "|".join([re.escape(CANARY), re.escape(json.dumps(CANARY)[1:-1]), *parts]).encode()
    assert re.search(names, b'x "JOHN" y')
    assert not re.search(names, b"MFkwEwYHKoZJOHNjDOEAQYI")
    assert [place for place, content in places.items() if re.search(names, content)] == []
