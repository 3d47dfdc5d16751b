"""Flower's SuperLink, and what is changed about it.

Flower's own code stays as it is installed. Six things are put between its parts, each where it looks a name up at run
time; `tests/contract/test_flower.py` says so when a version of Flower moves one of them.

* Only the operator's token opens the Control API. Flower's own SuperLink takes orders from whoever reaches it.
* A database that is locked or full answers 503, which every part of Flower tries again; its own 500 makes each give up.
* A SuperNode that was killed may come back. Flower refuses its key for a minute: the dead one still counts as online.
* A site may answer only for itself, and with no more parts than a large network has: what it announces is room that the
  coordinator's disk and the ServerApp have to find before any of it can be checked.
* A site that sends an answer again is told which parts are missing, also where the app has the rest of it already.
* A SuperLink that was away grants those who waited for it another minute: its absence does not count as theirs.
"""

import hmac
import importlib
import logging
from collections.abc import Sequence
from datetime import timedelta
from itertools import islice

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from flwr.common.constant import (
    ACCESS_TOKEN_KEY,
    CONTROL_API_DEFAULT_SERVER_ADDRESS,
    HEARTBEAT_DEFAULT_INTERVAL,
    HEARTBEAT_MAX_INTERVAL,
    HEARTBEAT_MIN_INTERVAL,
    HEARTBEAT_PATIENCE,
    ISOLATION_MODE_PROCESS,
    TRANSPORT_TYPE_GRPC_RERE,
)
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.server.superlink.linkstate import LinkState
from flwr.supercore.auth.typing import AccountAuthCredentials, AccountInfo
from flwr.supercore.constant import OBJECT_PUSH_SESSION_TTL_SECONDS, NodeStatus
from flwr.supercore.date import now
from flwr.supercore.error import ApiErrorCode, FlowerError, http_error_translator
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from flwr.supercore.state.schema.corestate_models import ObjectPushSession, ObjectPushSessionRoot, Task
from flwr.supercore.state.schema.linkstate_models import MessageRes, Node
from flwr.superlink import main as stock
from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
from flwr.superlink.config_loader import SuperLinkLifespanConfig
from flwr.superlink.servicer.fleet import fleet_handlers
from sqlalchemy import select, update
from sqlalchemy.exc import OperationalError
from starlette.middleware.base import RequestResponseEndpoint

from wardround.flower import replace
from wardround.server.database import prepare_database
from wardround.server.entrance import FLEET
from wardround.server.home import CoordinatorHome

log = logging.getLogger(__name__)

Metadata = Sequence[tuple[str, str | bytes]]

SILENCE = 15.0
"""Seconds after which a SuperNode that was not heard of may be replaced by one with its key. Ours beats every five."""

MOST_PARTS = 600
"""Objects of one reply. Flower cuts arrays into parts of 5 MiB: a network of 600 million parameters fits."""

EVERY_CALL = frozenset(PROTOBUF_REQUEST_TYPES) | {("GET", "/health")}
"""What the inner entrance knows."""
FLEET_CALLS = frozenset((method, path) for method, path in PROTOBUF_REQUEST_TYPES if path.startswith(FLEET))
"""What the public entrance knows."""

_activate_node = fleet_handlers.activate_node
_push_messages = fleet_handlers.push_messages


class OperatorToken(NoOpControlAuthnPlugin):
    """Opens the Control API to whoever shows one token.

    Flower's open-source federation belongs to its nameless account; whoever shows the token acts as that account.

    Parameters
    ----------
    token
        Kept at the coordinator, readable by its owner only.
    """

    def __init__(self, token: str) -> None:
        super().__init__()
        self._token = token.encode()

    def validate_tokens_in_metadata(self, metadata: Metadata) -> tuple[bool, AccountInfo | None]:
        """Whether `metadata` holds the token, compared in constant time."""
        shown = dict(metadata).get(ACCESS_TOKEN_KEY, "")
        shown = shown if isinstance(shown, bytes) else shown.encode()
        if not hmac.compare_digest(shown, self._token):
            return False, None
        return super().validate_tokens_in_metadata(metadata)

    def get_auth_tokens(self, device_code: str) -> AccountAuthCredentials | None:
        """Nobody logs in here."""
        return None

    def refresh_tokens(self, metadata: Metadata) -> tuple[Metadata | None, AccountInfo | None]:
        """The token is never renewed over the network."""
        return None, None


def application(home: CoordinatorHome) -> FastAPI:
    """Flower's SuperLink for the coordinator in `home`, with what this module changes about it."""
    settings = home.settings
    token = home.operator_token.read_text(encoding="utf-8").strip()
    secret = home.superexec_secret.read_bytes().strip()
    if len(token) < 32 or len(secret) < 32:
        raise ValueError("operator.token and superexec.secret must hold 32 characters at least")
    config = SuperLinkLifespanConfig(
        control_address=CONTROL_API_DEFAULT_SERVER_ADDRESS,
        health_server_address=None,
        host=settings.host,
        port=settings.port,
        insecure=False,
        certificates=(
            home.ca_certificate.read_bytes(),
            home.server_certificate.read_bytes(),
            home.server_key.read_bytes(),
        ),
        superexec_auth_secret=home.superexec_secret.read_bytes(),
        authn_plugin=OperatorToken(token),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=True,
        fleet_api_type=TRANSPORT_TYPE_GRPC_RERE,
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=str(home.ca_certificate),
        ssl_certfile=str(home.server_certificate),
        ssl_keyfile=str(home.server_key),
        database=str(home.database),
        isolation=ISOLATION_MODE_PROCESS,
        runtime_dependency_install=False,
    )
    prepare_database(home.database)
    replace(fleet_handlers, "activate_node", activate_node)
    replace(fleet_handlers, "push_messages", push_messages)
    replace(stock, "http_error_translator", translate_errors)
    # The package has a function of that name, which hides the module from `import … as`.
    cli = importlib.import_module("flwr.superlink.cli.flower_superlink")
    app = stock.create_app(config, cli.SuperLinkLifespan)
    grant_time(app.state.linkstate_factory.state())
    return app


def activate_node(request: ActivateNodeRequest, state: LinkState) -> ActivateNodeResponse:
    """Let a SuperNode in; if Flower believes it online but it was not heard of lately, it died and may come back.

    Whoever asks has proven that it holds the key. The silence guards against two SuperNodes with one key, such as a
    copy of a machine: as long as one of them lives, the other is refused.
    """
    if not HEARTBEAT_MIN_INTERVAL <= request.heartbeat_interval <= HEARTBEAT_MAX_INTERVAL:
        return _activate_node(request=request, state=state)
    # In one transaction: nobody who asks meanwhile sees the node offline and calls its messages lost.
    with state.session():  # type: ignore[attr-defined]
        node_id = state.get_node_id_by_public_key(request.public_key)
        if node_id is not None and silent_for(state, node_id) > SILENCE and state.deactivate_node(node_id):
            log.info("node %d was silent, and its key was proven anew", node_id)
        return _activate_node(request=request, state=state)


def silent_for(state: LinkState, node_id: int) -> float:
    """Seconds since the last heartbeat of a node that counts as online; infinity where there is none such."""
    for node in state.get_node_info(node_ids=[node_id], statuses=[NodeStatus.ONLINE]):
        heard = node.online_until - HEARTBEAT_PATIENCE * node.heartbeat_interval
        return now().timestamp() - heard
    return float("inf")


def push_messages(request: PushMessagesRequest, state: LinkState) -> PushMessagesResponse:
    """Take a site's replies, if they say that they come from it and are no larger than an answer can be."""
    if any(message.metadata.src_node_id != request.node.node_id for message in request.messages_list):
        raise FlowerError(ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED, f"node {request.node.node_id} spoke for another")
    for tree in request.message_object_trees:
        if next(islice(iterate_object_tree(tree), MOST_PARTS, None), None) is not None:
            raise FlowerError(
                ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED,
                f"node {request.node.node_id} announced a reply of more than {MOST_PARTS} parts",
            )
    # In one transaction: the app must not take the answer while we look.
    with state.session():  # type: ignore[attr-defined]
        response = _push_messages(request=request, state=state)
        for tree in request.message_object_trees:
            if is_half_taken(state, tree.object_id):
                # Flower forgets an answer as soon as the app has asked for it, even if parts of it are still to come; a
                # site that was cut off in between would be told that nothing is missing, and the app wait for minutes.
                response.objects_to_push.extend(state.preregister_object_tree(tree, response.session_id))
    return response


def is_half_taken(state: LinkState, root: str) -> bool:
    """Whether an answer is gone, and some of its parts have never come."""
    with state.session() as session:  # type: ignore[attr-defined]
        is_there = session.scalar(select(MessageRes.message_id).where(MessageRes.message_id == root))
        is_awaited = session.scalar(
            select(ObjectPushSessionRoot.session_id).where(ObjectPushSessionRoot.root_object_id == root)
        )
    return is_there is None and is_awaited is not None


async def translate_errors(request: Request, call_next: RequestResponseEndpoint) -> Response:
    """Answer 503 where the database cannot be used now; leave every other error to Flower."""

    async def guarded(request: Request) -> Response:
        try:
            return await call_next(request)
        except OperationalError as error:
            log.error("%s: the database cannot be used (%s)", request.url.path, error.orig)
            return JSONResponse({"detail": "the database is busy"}, status_code=503, headers={"retry-after": "5"})

    return await http_error_translator(request, guarded)


def grant_time(state: LinkState) -> None:
    """Let nobody be late because we were away: nodes and apps that waited for us get the time of a fresh heartbeat."""
    moment = now()
    patience = timedelta(seconds=HEARTBEAT_PATIENCE * HEARTBEAT_DEFAULT_INTERVAL)
    with state.session() as session:  # type: ignore[attr-defined]
        session.execute(
            update(Node)
            .where(Node.status == NodeStatus.ONLINE)
            .values(online_until=(moment + patience).timestamp(), heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)
        )
        session.execute(
            update(Task)
            .where(Task.token.is_not(None), Task.finished_at.is_(None))
            .values(active_until=moment + patience)
        )
        session.execute(
            update(ObjectPushSession).values(expires_at=moment + timedelta(seconds=OBJECT_PUSH_SESSION_TTL_SECONDS))
        )
