"""What the coordinator's commands say to its SuperLink: the few calls of Flower's Control API that are needed.

The SuperLink is on this machine. A proxy that the environment names is for the way out and is not used here.
"""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import httpx
from flwr.common.serde import fab_to_proto, user_config_from_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListNodesResponse,
    ListRunsRequest,
    ListRunsResponse,
    RegisterNodeRequest,
    RegisterNodeResponse,
    StartRunRequest,
    StartRunResponse,
    StopRunRequest,
    StopRunResponse,
    UnregisterNodeRequest,
    UnregisterNodeResponse,
)
from flwr.proto.run_pb2 import Run
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.fab import Fab
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped, unused-ignore]

from wardround.deploy.coordinator.bundle import RUN_FOLDER, digest
from wardround.errors import AuthRefused, ConnectionFailed, StorageError, WardroundError
from wardround.server.home import CoordinatorHome

_Answer = TypeVar("_Answer", bound=Message)

_LISTED = 100
_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class FlowerRun:
    """A run as the SuperLink sees it.

    Parameters
    ----------
    id
        Its number.
    status
        ``pending``, ``starting``, ``running`` or ``finished``.
    outcome
        Of a finished one: ``completed``, ``failed`` or ``stopped``.
    details
        What Flower says about a failure.
    folder
        The run folder that it was started with.
    bytes_sent, bytes_received
        Between SuperLink and sites.
    """

    id: int
    status: str
    outcome: str
    details: str
    folder: str
    bytes_sent: int = 0
    bytes_received: int = 0

    @property
    def finished(self) -> bool:
        """Whether it is over, well or not."""
        return self.status == "finished"


@dataclass(frozen=True)
class Node:
    """A site as the SuperLink sees it.

    Parameters
    ----------
    id
        Its number.
    name
        The site's.
    status
        ``registered``, ``online``, ``offline`` or ``unregistered``.
    public_key
        PEM.
    online_until
        Seconds since the epoch; 0 where it has never been.
    """

    id: int
    name: str
    status: str
    public_key: bytes
    online_until: float


class Refusal(WardroundError):
    """The SuperLink did not do what it was asked to."""

    def __init__(self, problem: str, cause: str, fix: str, code: int) -> None:
        super().__init__(problem, cause, fix)
        self.code = code


class Control:
    """The Control API of the SuperLink that serves a coordinator's home.

    Parameters
    ----------
    home
        Says where the SuperLink listens, what certificate it has and which token it wants.

    Raises
    ------
    StorageError
        If the certificate or the token cannot be read.
    """

    def __init__(self, home: CoordinatorHome) -> None:
        self._address = home.runtime_address
        try:
            token = home.operator_token.read_text(encoding="utf-8").strip()
            context = ssl.create_default_context(cafile=str(home.ca_certificate))
        except OSError as error:
            raise StorageError(
                f"the coordinator in {home.path} cannot be used",
                f"{error.filename or home.ca_certificate}: {error.strerror}",
                "restore the file, or run `wardround coordinator init` as the user who serves",
            ) from error
        self._http = httpx.Client(
            base_url=f"https://{self._address}/v1/control/",
            verify=context,
            trust_env=False,
            timeout=_TIMEOUT_S,
            headers={"authorization": f"Bearer {token}", "content-type": PROTOBUF_MEDIA_TYPE},
        )

    def __enter__(self) -> "Control":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def start_run(self, bundle: bytes, folder: str) -> int:
        """Start the app in `bundle` for the run in `folder`. Returns the run's number."""
        request = StartRunRequest(
            fab=fab_to_proto(Fab(digest(bundle), bundle, {})),
            override_config=user_config_to_proto({RUN_FOLDER: folder}),
        )
        answer = self._ask("start-run", request, StartRunResponse)
        if not answer.HasField("run_id"):
            raise Refusal("the SuperLink did not start the run", "it gave no reason", "look into logs/superlink.log", 0)
        return int(answer.run_id)

    def stop_run(self, run: int) -> None:
        """Stop a run; one that has finished is left as it is."""
        with _ignoring(ApiErrorCode.RUN_ALREADY_FINISHED, ApiErrorCode.RUN_ID_NOT_FOUND):
            self._ask("stop-run", StopRunRequest(run_id=run), StopRunResponse)

    def run(self, run: int) -> FlowerRun | None:
        """One run; None if the SuperLink does not know it."""
        with _ignoring(ApiErrorCode.RUN_ID_NOT_FOUND):
            answer = self._ask("list-runs", ListRunsRequest(run_id=run), ListRunsResponse)
            return next((_run(found) for found in answer.run_dict.values()), None)
        return None

    def runs(self) -> list[FlowerRun]:
        """The latest runs, newest first."""
        answer = self._ask("list-runs", ListRunsRequest(limit=_LISTED), ListRunsResponse)
        return [_run(found) for found in sorted(answer.run_dict.values(), key=_began, reverse=True)]

    def register(self, name: str, public_key: bytes) -> int:
        """Let the holder of a key connect. Returns the node's number.

        Parameters
        ----------
        name
            Of the site.
        public_key
            PEM.

        Raises
        ------
        AuthRefused
            If the key belonged to a node that was unregistered.
        """
        try:
            answer = self._ask(
                "register-node", RegisterNodeRequest(public_key=public_key, name=name), RegisterNodeResponse
            )
        except Refusal as error:
            if error.code != ApiErrorCode.PUBLIC_KEY_ALREADY_IN_USE:
                raise
            # We were killed between telling the SuperLink and writing down what it said.
            for node in self.nodes():
                if node.public_key == public_key and node.status != "unregistered":
                    return node.id
            raise AuthRefused(
                f"site {name} cannot be registered with this key",
                "it is the key of a site that was evicted",
                "let the site move its folder keys/ away and begin again with a new invitation",
            ) from error
        return int(answer.node_id)

    def unregister(self, node: int) -> None:
        """Let a node connect no more; one that is not known is none."""
        with _ignoring(ApiErrorCode.NODE_NOT_FOUND):
            self._ask("unregister-node", UnregisterNodeRequest(node_id=node), UnregisterNodeResponse)

    def nodes(self) -> list[Node]:
        """All nodes that ever were."""
        answer = self._ask("list-nodes", ListNodesRequest(), ListNodesResponse)
        return [
            Node(node.node_id, node.name, node.status, node.public_key, node.online_until) for node in answer.nodes_info
        ]

    def _ask(self, path: str, request: Message, kind: type[_Answer]) -> _Answer:
        try:
            response = self._http.post(path, content=request.SerializeToString(deterministic=True))
        except httpx.TransportError as error:
            raise ConnectionFailed(
                f"the SuperLink at {self._address} cannot be reached",
                f"{type(error).__name__}: {error}",
                "start it with `wardround coordinator serve`, or wait until it has started",
            ) from error
        if response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise AuthRefused(
                f"the SuperLink at {self._address} does not accept the operator's token",
                "it was started with another operator.token",
                "restart `wardround coordinator serve`",
            )
        if response.is_error:
            known = FlowerError.from_json(response.text)
            if known is None and response.is_server_error:
                raise ConnectionFailed(
                    f"the SuperLink at {self._address} failed", f"HTTP {response.status_code}", "look into logs/"
                )
            raise Refusal(
                "the SuperLink did not do what it was asked to",
                known.message if known else f"HTTP {response.status_code}",
                "look into logs/superlink.log",
                known.code if known else 0,
            )
        answer: _Answer = kind()
        try:
            answer.ParseFromString(response.content)
        except DecodeError as error:
            raise ConnectionFailed(
                f"what answers at {self._address} is no SuperLink", "the answer cannot be read", "free the port"
            ) from error
        return answer


@contextmanager
def _ignoring(*codes: int) -> Iterator[None]:
    try:
        yield
    except Refusal as error:
        if error.code not in codes:
            raise


def _run(run: Run) -> FlowerRun:
    folder = user_config_from_proto(run.override_config).get(RUN_FOLDER, "")
    status = run.status
    return FlowerRun(
        run.run_id, status.status, status.sub_status, status.details, str(folder), run.bytes_sent, run.bytes_recv
    )


def _began(run: Run) -> str:
    return str(run.pending_at)
