"""A coordinator and sites made of real parts on the loop-back interface, for tests.

Nothing here is simulated: keys and certificates come from the provisioning that users run, processes are started as
`wardround` starts them, and requests are signed as a SuperNode signs them. Only a ServerApp is played by the test
itself: it takes the task from the SuperLink, as Flower's own process would, and then speaks as it likes.
"""

import datetime
import hashlib
import json
import os
import socket
import ssl
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message, RecordDict
from flwr.cli.build import build_fab_from_files
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.common.serde import run_from_proto
from flwr.proto.control_pb2 import ListNodesRequest, ListRunsRequest, RegisterNodeRequest, StartRunRequest
from flwr.proto.fab_pb2 import Fab
from flwr.proto.runtime_pb2 import AcquireTaskRequest, PullTaskInputRequest, SendTaskHeartbeatRequest
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid.http_grid import HttpGrid
from google.protobuf.message import Message as Protobuf

from wardround.client.home import SETTINGS_TEMPLATE, SiteHome
from wardround.deploy.provisioning.authority import Authority
from wardround.deploy.provisioning.keys import make_node_key, read_private_key, read_public_key
from wardround.processes import Backoff, Keeper
from wardround.server.home import CoordinatorHome

PATIENCE = 120.0
"""Seconds after which something that should come about is taken not to."""
SWIFT = Backoff(first=0.2, most=2.0)
TOKEN = "t" * 43
SECRET = "s" * 43
PROTOBUF = {"content-type": "application/protobuf", "accept": "application/protobuf"}

Answer = TypeVar("Answer")


def eventually(question: Callable[[], Answer], what: str, patience: float = PATIENCE) -> Answer:
    """Ask until the answer is true, and return it."""
    deadline = time.monotonic() + patience
    while not (answer := question()):
        assert time.monotonic() < deadline, f"{what} did not come about within {patience:g} s"
        time.sleep(0.05)
    return answer


def free_ports(number: int) -> list[int]:
    """Ports that nobody uses now."""
    taken = [socket.socket() for _ in range(number)]
    for one in taken:
        one.bind(("127.0.0.1", 0))
    ports: list[int] = [one.getsockname()[1] for one in taken]
    for one in taken:
        one.close()
    return ports


def environment(**changes: str) -> dict[str, str]:
    """Ours without what tests set for Flower: the launchers must set it themselves."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FLWR_")}
    return {**kept, **changes}


def make_coordinator(path: Path) -> CoordinatorHome:
    """A coordinator's folder, as `wardround coordinator init` leaves it."""
    home = CoordinatorHome(path)
    path.mkdir(parents=True)
    public, runtime, status = free_ports(3)
    home.settings_file.write_text(
        f'[coordinator]\nnames = ["localhost"]\nurl = "https://localhost:{public}"\nhost = "127.0.0.1"\n'
        f"port = {public}\nruntime-port = {runtime}\nstatus-port = {status}\n"
    )
    now = datetime.datetime.now(datetime.UTC)
    Authority.create(home.ca, "test", now).issue_server(home.tls, ["localhost"], now)
    home.operator_token.write_text(TOKEN + "\n")
    home.superexec_secret.write_text(SECRET)
    return home


def make_site(path: Path, name: str, coordinator: CoordinatorHome, url: str | None = None) -> SiteHome:
    """A site's folder, as `wardround site init` leaves it."""
    home = SiteHome(path)
    path.mkdir(parents=True)
    make_node_key(home.keys)
    home.ca.write_bytes(coordinator.ca_certificate.read_bytes())
    home.settings_file.write_text(SETTINGS_TEMPLATE.format(name=name, coordinator=url or coordinator.settings.url))
    home.run.mkdir(mode=0o700)
    return home


WATCH = """
import os, sys
def _note(event, given):
    if event == "socket.connect" and isinstance(given[1], tuple):
        _write(given[1][0])
    elif event == "socket.getaddrinfo":
        _write(given[0])
def _write(name):
    name = name.decode() if isinstance(name, bytes) else name
    if name not in ("127.0.0.1", "localhost", "::1", "", None):
        with open(os.environ["CONNECTIONS"], "a") as stream:
            stream.write(f"{sys.argv[0]} {name}\\n")
sys.addaudithook(_note)
"""


def watched(folder: Path) -> dict[str, str]:
    """Environment in which every Python process writes down whom it speaks to, if that is not this machine."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(WATCH)
    return {"PYTHONPATH": str(folder), "CONNECTIONS": str(folder / "connections")}


def connections(folder: Path) -> str:
    """What they wrote down."""
    path = folder / "connections"
    return path.read_text() if path.exists() else ""


def superlink(home: CoordinatorHome, **changes: str) -> Keeper:
    """A SuperLink for `home`, not started yet."""
    return Keeper(
        "superlink",
        [sys.executable, "-m", "wardround.server.superlink", "--home", str(home.path)],
        environment=environment(**changes),
        log_file=home.logs / "superlink.log",
        pid_file=home.run / "superlink.pid",
        backoff=SWIFT,
    )


def supernode(home: SiteHome, **changes: str) -> Keeper:
    """A SuperNode for `home`, not started yet."""
    return Keeper(
        "supernode",
        [sys.executable, "-m", "wardround.client.supernode", "--home", str(home.path)],
        environment=environment(**changes),
        log_file=home.logs / "supernode.log",
        pid_file=home.run / "supernode.pid",
        backoff=SWIFT,
    )


def is_up(home: CoordinatorHome) -> bool:
    """Whether the SuperLink answers."""
    try:
        return httpx.get(f"https://{home.runtime_address}/health", verify=trust(home), timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def trust(home: CoordinatorHome) -> ssl.SSLContext:
    """TLS that believes the coordinator's authority and nobody else."""
    return ssl.create_default_context(cafile=str(home.ca_certificate))


class _Headers:
    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = dict(headers)

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        context.request.headers.update(self._headers)
        return call_next(context)


def control(home: CoordinatorHome, token: str | None = TOKEN) -> ControlHttpClient:
    """The Control API, as the operator's commands reach it."""
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    return ControlHttpClient.from_server_address(
        home.runtime_address, False, str(home.ca_certificate), interceptors=[_Headers(headers)]
    )


def register(home: CoordinatorHome, site: SiteHome) -> int:
    """Tell the SuperLink about a site's public key; returns its node id."""
    key = read_public_key(site.node_key.with_suffix(".pub").read_text())
    with control(home) as client:
        node_id: int = client.RegisterNode(
            RegisterNodeRequest(public_key=public_key_to_bytes(key), name=site.settings.name)
        ).node_id
    return node_id


def node_status(home: CoordinatorHome, node_id: int) -> str:
    """What the SuperLink says about a node: registered, online, offline."""
    with control(home) as client:
        found = [node.status for node in client.ListNodes(ListNodesRequest()).nodes_info if node.node_id == node_id]
    return found[0] if found else ""


def run_status(home: CoordinatorHome, run_id: int) -> str:
    """What the SuperLink says about a run."""
    with control(home) as client:
        status = client.ListRuns(ListRunsRequest(run_id=run_id)).run_dict[run_id].status
    return f"{status.status}:{status.sub_status}".rstrip(":")


THIN_APP = {
    "serverapp": "wardround.server.app:app",
    "clientapp": "wardround.client.app:app",
}


def make_bundle(files: Mapping[str, str] | None = None, **components: str) -> bytes:
    """An app bundle: a thin one, or one that brings code of its own."""
    named = {**THIN_APP, **components}
    project = (
        '[project]\nname = "test"\nversion = "1.0.0"\nlicense = "Apache-2.0"\n'
        '[tool.flwr.app]\npublisher = "wardround"\n[tool.flwr.app.components]\n'
        + "".join(f'{name} = "{value}"\n' for name, value in named.items())
        + "[tool.flwr.app.config]\n"
    )
    content: dict[str | Path, bytes | Path] = {"pyproject.toml": project.encode()}
    content.update({name: text.encode() for name, text in (files or {}).items()})
    bundle, _ = build_fab_from_files(content)
    return bundle


def submit(home: CoordinatorHome, bundle: bytes) -> int:
    """Ask the SuperLink for a run; returns its id."""
    fab = Fab(hash_str=hashlib.sha256(bundle).hexdigest(), content=bundle)
    with control(home) as client:
        run_id: int = client.StartRun(StartRunRequest(fab=fab, federation="@none/default")).run_id
    return run_id


def runtime(home: CoordinatorHome, secret: bytes | None = SECRET.encode()) -> RuntimeHttpClient:
    """The Runtime API, as a SuperExec reaches it."""
    interceptors: list[object] = [RuntimeVersionHttpInterceptor(component_name="SuperExec")]
    if secret is not None:
        protected = frozenset({"/flwr.proto.Runtime/AcquireTask"})
        interceptors.append(SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=protected))
    return RuntimeHttpClient.from_server_address(
        home.runtime_address,
        False,
        home.ca_certificate.read_bytes(),
        interceptors=interceptors,  # type: ignore[arg-type]
    )


@contextmanager
def lead(home: CoordinatorHome) -> Iterator[HttpGrid]:
    """Take the next run's ServerApp task, and have the grid that its ServerApp would have."""
    with runtime(home) as client:
        request = AcquireTaskRequest(supported_task_types=["flwr-serverapp"])
        token = eventually(lambda: client.AcquireTask(request).token, "a task")
    grid = HttpGrid(home.runtime_address, False, home.ca_certificate.read_bytes(), token=token)
    given = grid._runtime_client.PullTaskInput(PullTaskInputRequest())
    grid.set_run(run_from_proto(given.run))
    _TASKS[given.run.run_id] = given.task_id
    # One that gives up: a test may take the SuperLink away before it ends.
    client = RuntimeHttpClient.from_server_address(
        home.runtime_address,
        False,
        home.ca_certificate.read_bytes(),
        interceptors=[RuntimeVersionHttpInterceptor("flwr-serverapp"), RuntimeTokenHttpInterceptor(token)],
    )

    def beat() -> bool:
        try:
            client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
        except httpx.TransportError:
            return False
        except httpx.HTTPStatusError as error:
            return error.response.status_code < 500
        return True

    heart = HeartbeatSender(beat)
    heart.start()
    try:
        yield grid
    finally:
        heart.stop()
        grid.close()


_TASKS: dict[int, int] = {}


def ask(grid: HttpGrid, node_id: int, kind: str, content: RecordDict, *, round: int = 1) -> str:
    """Send one message to a node, as the ServerApp of that grid's run would; returns its id."""
    # A process that Flower starts for an app knows which one it is, and stamps its messages with that. We are several.
    run_id = grid.run.run_id
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = _TASKS[run_id], run_id, grid.node.node_id
    (name,) = grid.push_messages([Message(content, dst_node_id=node_id, message_type=kind, group_id=str(round))])
    return name


def answer_to(grid: HttpGrid, name: str, patience: float = PATIENCE) -> Message:
    """Wait for the answer to a message."""
    (reply,) = eventually(lambda: list(grid.pull_messages([name])), "an answer", patience)
    return reply


@dataclass(frozen=True)
class Signer:
    """Signs requests as a SuperNode does.

    Parameters
    ----------
    key
        Private key of a node.
    """

    key: ec.EllipticCurvePrivateKey

    @classmethod
    def of(cls, site: SiteHome) -> "Signer":
        return cls(read_private_key(site.node_key))

    @property
    def public(self) -> bytes:
        return public_key_to_bytes(self.key.public_key())

    def headers(self, age: float = 0.0) -> dict[str, str]:
        moment = (datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=age)).isoformat()
        return {
            FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(self.public).decode(),
            TIMESTAMP_HEADER: moment,
            FLEET_HTTP_SIGNATURE_HEADER: b64encode(sign_message(self.key, moment.encode())).decode(),
        }


def call(
    home: CoordinatorHome,
    path: str,
    message: Protobuf,
    headers: Mapping[str, str] | None = None,
    *,
    inner: bool = False,
) -> httpx.Response:
    """Post one protobuf message to the public port, or to the inner one."""
    port = home.settings.runtime_port if inner else home.settings.port
    return httpx.post(
        f"https://127.0.0.1:{port}{path}",
        content=message.SerializeToString(),
        headers={**PROTOBUF, **(headers or {})},
        verify=trust(home),
        timeout=30,
    )


def raw_request(home: CoordinatorHome, request: bytes, *, inner: bool = False, patience: float = 30) -> bytes:
    """Send bytes as they are, without a library that would tidy them, and return the start of the answer."""
    port = home.settings.runtime_port if inner else home.settings.port
    with (
        socket.create_connection(("127.0.0.1", port), timeout=patience) as plain,
        trust(home).wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        secured.sendall(request)
        try:
            return secured.recv(65536)
        except ConnectionError:
            return b""


def audit_lines(home: CoordinatorHome) -> Sequence[dict[str, object]]:
    """What was written down at the SuperLink."""
    path = home.logs / "audit.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
