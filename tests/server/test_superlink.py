"""A real SuperLink with TLS and SuperNode keys on the loop-back interface: who gets in, and as what."""

import sqlite3
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from deployment import (
    SECRET,
    TOKEN,
    Signer,
    ask,
    audit_lines,
    call,
    connections,
    control,
    eventually,
    is_up,
    lead,
    make_bundle,
    make_coordinator,
    make_site,
    node_status,
    raw_request,
    register,
    run_status,
    runtime,
    submit,
    superlink,
    trust,
    watched,
)
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.app.message.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.control_pb2 import ListNodesRequest, ListRunsRequest, RegisterNodeRequest, StopRunRequest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
    RegisterNodeFleetRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import Metadata, ObjectTree, PullObjectRequest, PushObjectRequest, PushObjectResponse
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import AcquireTaskRequest, GetNodesRequest, PullAppMessagesRequest
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)

from wardround.client.home import SiteHome
from wardround.processes import Keeper
from wardround.server import link
from wardround.server.home import CoordinatorHome

ACTIVATE, PULL, PUSH = (f"/v1/fleet/{name}" for name in ("activate-node", "pull-messages", "push-messages"))
POST = b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/protobuf\r\nContent-Length: 0\r\n\r\n"


@dataclass(frozen=True)
class Served:
    """A coordinator whose SuperLink is up, and one registered site."""

    home: CoordinatorHome
    site: SiteHome
    node: int
    keeper: Keeper
    watch: Path

    @property
    def signer(self) -> Signer:
        return Signer.of(self.site)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("superlink")
    home = make_coordinator(folder / "C")
    site = make_site(folder / "a", "a", home)
    with superlink(home, **watched(folder / "watch")) as keeper:
        eventually(lambda: is_up(home), "the SuperLink")
        yield Served(home, site, register(home, site), keeper, folder / "watch")


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


@pytest.mark.parametrize(
    "target",
    [
        b"/",
        b"/docs",
        b"/docs/oauth2-redirect",
        b"/openapi.json",
        b"/health",
        b"/v1/control/list-runs",
        b"/v1/control/start-run",
        b"/v1/runtime/acquire-task",
        b"/v1/runtime/pull-task-input",
        b"//v1/control/list-runs",
        b"/v1/fleet/../control/list-runs",
        b"/v1/fleet/%2e%2e/control/list-runs",
        b"/v1/fleet/..%2fcontrol%2flist-runs",
        b"/v1%2fcontrol%2flist-runs",
        b"/v1/fleet//../control/list-runs",
        b"/v1/fleet/pull-messages/../../control/list-runs",
        b"/v1/fleet/pull-messages/",
        b"/v1/fleet/pull-messages?x=1",
        b"/v1/fleet/pull-messages;x",
        b"/v1/fleet/pull%2dmessages",
        b"http://localhost/v1/control/list-runs",
        b"http://localhost:1/v1/runtime/acquire-task",
    ],
)
def test_the_public_port_knows_the_fleet_api_and_nothing_else(served: Served, target: bytes) -> None:
    for method in (b"POST", b"GET"):
        assert status_of(raw_request(served.home, method + (POST % target).removeprefix(b"POST"))) == 404


def test_the_public_port_is_no_use_to_who_has_token_and_secret(served: Served) -> None:
    token = {"authorization": f"Bearer {TOKEN}"}
    assert call(served.home, "/v1/control/list-runs", ListRunsRequest(), token).status_code == 404
    answers = [call(served.home, path, AcquireTaskRequest()).status_code for path in ("/v1/runtime/acquire-task",)]
    assert answers == [404]


def test_a_confused_framing_of_requests_is_not_taken_for_two(served: Served) -> None:
    """A request inside the body of another: the first is refused, and the connection with it."""
    inner = POST % b"/v1/control/list-runs"
    outer = (
        b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/protobuf\r\n"
        b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + inner
    )
    answer = raw_request(served.home, outer)
    assert b"nodes" not in answer
    assert status_of(answer) in (400, 401, 404)


def test_the_inner_port_has_no_documents(served: Served) -> None:
    base = f"https://{served.home.runtime_address}"
    found = {path: httpx.get(base + path, verify=trust(served.home)).status_code for path in ("/docs", "/openapi.json")}
    assert set(found.values()) == {404}
    assert httpx.get(base + "/health", verify=trust(served.home)).status_code == 200


@pytest.mark.parametrize("token", [None, "x" * 43, TOKEN[:-1], TOKEN + "t"])
def test_the_control_api_wants_the_operators_token(served: Served, token: str | None) -> None:
    requests = (
        ("list-runs", ListRunsRequest()),
        ("list-nodes", ListNodesRequest()),
        ("stop-run", StopRunRequest(run_id=1)),
        ("register-node", RegisterNodeRequest(public_key=b"x")),
    )
    for name, request in requests:
        with pytest.raises(httpx.HTTPStatusError) as caught, control(served.home, token) as client:
            client._unary_unary(
                path=f"/v1/control/{name}", rpc_method=name, request=request, response_type=type(request)
            )
        assert caught.value.response.status_code == 401


def test_the_control_api_opens_to_the_operators_token(served: Served) -> None:
    assert node_status(served.home, served.node) in ("registered", "online", "offline")


@pytest.mark.parametrize("secret", [None, b"x" * 43])
def test_a_task_cannot_be_stolen(served: Served, secret: bytes | None) -> None:
    """Flower's own SuperLink gives a ServerApp's task, and with it the run, to whoever asks first."""
    run = submit(served.home, make_bundle())
    with pytest.raises(httpx.HTTPStatusError) as caught, runtime(served.home, secret) as thief:
        thief.AcquireTask(AcquireTaskRequest(supported_task_types=["flwr-serverapp"]))
    assert caught.value.response.status_code == 401
    assert run_status(served.home, run) == "pending"
    with lead(served.home) as grid:
        assert grid.run.run_id == run
    with control(served.home) as operator:
        operator.StopRun(StopRunRequest(run_id=run))


def test_without_a_task_of_ones_own_the_runtime_api_tells_nothing(served: Served) -> None:
    answer = call(served.home, "/v1/runtime/get-nodes", GetNodesRequest(), inner=True)
    assert answer.status_code == 401


def test_a_body_that_is_too_large_is_cut(served: Served) -> None:
    head = b"POST /v1/fleet/push-object HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/protobuf\r\n"
    declared = head + b"Content-Length: 10737418240\r\n\r\n"
    assert status_of(raw_request(served.home, declared)) == 413
    # One byte too many: with more, the line would be cut while we still write.
    chunk = b"10001\r\n" + b"x" * (2**16 + 1) + b"\r\n"
    assert status_of(raw_request(served.home, head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk)) == 413
    small = PullMessagesRequest(node=Node(node_id=served.node)).SerializeToString() + b"x" * 70_000
    assert httpx.post(f"{served.home.settings.url}{PULL}", content=small, verify=trust(served.home)).status_code == 413


def test_a_chunk_of_a_model_passes_the_limit(served: Served) -> None:
    """There is no such run, so that it is refused, but not for its size."""
    chunk = PushObjectRequest(
        node=Node(node_id=served.node), run_id=1, object_id="0" * 64, object_content=b"x" * (5 * 2**20), session_id="x"
    )
    assert call(served.home, "/v1/fleet/push-object", chunk, served.signer.headers()).status_code in (403, 500)


class TestKeys:
    """Who may call itself a site."""

    def refused(self, served: Served, path: str, message: object, headers: Mapping[str, str]) -> int:
        return call(served.home, path, message, headers).status_code  # type: ignore[arg-type]

    def test_an_unknown_key_is_refused(self, served: Served) -> None:
        stranger = Signer(ec.generate_private_key(ec.SECP384R1()))
        activate = ActivateNodeRequest(public_key=stranger.public, heartbeat_interval=30)
        assert self.refused(served, ACTIVATE, activate, stranger.headers()) == 412
        as_another = PullMessagesRequest(node=Node(node_id=served.node))
        assert self.refused(served, PULL, as_another, stranger.headers()) == 401

    def test_who_is_not_registered_sends_no_chunk_of_a_model(self, served: Served) -> None:
        """It is refused before its body is read: memory is for those who take part."""
        stranger = Signer(ec.generate_private_key(ec.SECP384R1()))
        for headers, status in ((stranger.headers(), b"401"), ({}, b"401"), (served.signer.headers(), b"")):
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode()
            head = b"POST /v1/fleet/push-object HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000000\r\n"
            try:
                answer = raw_request(served.home, head + lines + b"\r\n", patience=3)
            except TimeoutError:
                # The body is waited for.
                answer = b""
            assert answer[9:12] == status

    def test_nobody_registers_itself(self, served: Served) -> None:
        stranger = Signer(ec.generate_private_key(ec.SECP384R1()))
        request = RegisterNodeFleetRequest(public_key=stranger.public)
        assert self.refused(served, "/v1/fleet/register-node", request, stranger.headers()) >= 400

    def test_a_key_without_its_signature_is_refused(self, served: Served) -> None:
        activate = ActivateNodeRequest(public_key=served.signer.public, heartbeat_interval=30)
        assert self.refused(served, ACTIVATE, activate, {}) == 401
        stranger = Signer(ec.generate_private_key(ec.SECP384R1()))
        forged = stranger.headers() | {
            name: value for name, value in served.signer.headers().items() if name == "flwr-public-key"
        }
        assert self.refused(served, ACTIVATE, activate, forged) == 401

    @pytest.mark.parametrize("age", [400.0, -60.0])
    def test_a_signature_that_is_old_or_of_tomorrow_is_refused(self, served: Served, age: float) -> None:
        activate = ActivateNodeRequest(public_key=served.signer.public, heartbeat_interval=30)
        assert self.refused(served, ACTIVATE, activate, served.signer.headers(age)) == 401

    def test_an_unsigned_call_reaches_nothing(self, served: Served) -> None:
        request = PullObjectRequest(node=Node(node_id=served.node), run_id=1, object_id="0" * 64)
        assert self.refused(served, "/v1/fleet/pull-object", request, {}) == 401

    def test_a_probe_with_an_impossible_heartbeat_tells_that_the_key_is_known(self, served: Served) -> None:
        probe = ActivateNodeRequest(public_key=served.signer.public, heartbeat_interval=0)
        before = node_status(served.home, served.node)
        answer = call(served.home, ACTIVATE, probe, served.signer.headers())
        assert answer.status_code == 400
        assert node_status(served.home, served.node) == before
        assert answer.headers["wardround-version"]
        assert answer.headers["flwr-package-version"] == "1.41.0"
        assert answer.headers["date"]


def activate(served: Served) -> int:
    request = ActivateNodeRequest(public_key=served.signer.public, heartbeat_interval=30)
    answer = call(served.home, ACTIVATE, request, served.signer.headers())
    if answer.status_code == 200:
        assert ActivateNodeResponse.FromString(answer.content).node_id == served.node
    return answer.status_code


def beat(served: Served) -> int:
    request = SendNodeHeartbeatRequest(node=Node(node_id=served.node), heartbeat_interval=30)
    return call(served.home, "/v1/fleet/send-node-heartbeat", request, served.signer.headers()).status_code


def let_time_pass(home: CoordinatorHome, seconds: float) -> None:
    """As if the last heartbeats of all nodes and tasks were so much older."""
    with sqlite3.connect(home.database, timeout=30) as database:
        database.execute("UPDATE node SET online_until = online_until - ?", (seconds,))
        database.execute(
            "UPDATE task SET active_until = strftime('%Y-%m-%d %H:%M:%f', active_until, ?) "
            "WHERE active_until IS NOT NULL",
            (f"-{seconds} seconds",),
        )


def test_a_key_that_is_heard_of_is_not_taken_over_and_one_that_fell_silent_is(served: Served) -> None:
    let_time_pass(served.home, 120)
    assert activate(served) == 200
    assert activate(served) == 412, "a second SuperNode with the same key pushed the first one out"
    let_time_pass(served.home, 14)
    assert activate(served) == 412
    let_time_pass(served.home, 5)
    assert activate(served) == 200, "a killed SuperNode has to come back before Flower's minute is over"
    assert node_status(served.home, served.node) == "online"


def test_a_site_cannot_answer_for_another(served: Served) -> None:
    let_time_pass(served.home, 120)
    assert activate(served) == 200
    metadata = Metadata(run_id=1, src_node_id=served.node + 1, dst_node_id=1, reply_to_message_id="x", ttl=10)
    request = PushMessagesRequest(
        node=Node(node_id=served.node),
        messages_list=[ProtoMessage(metadata=metadata)],
        message_object_trees=[ObjectTree(object_id="0" * 64)],
    )
    assert call(served.home, PUSH, request, served.signer.headers()).status_code == 403
    assert "spoke for another" in (served.home.logs / "superlink.log").read_text()


def test_a_reply_of_endless_parts_is_refused_before_there_is_room_for_it(served: Served) -> None:
    let_time_pass(served.home, 120)
    assert activate(served) == 200
    metadata = Metadata(run_id=1, src_node_id=served.node, dst_node_id=1, reply_to_message_id="x", ttl=10)
    parts = [ObjectTree(object_id=f"{n:064x}") for n in range(link.MOST_PARTS)]
    request = PushMessagesRequest(
        node=Node(node_id=served.node),
        messages_list=[ProtoMessage(metadata=metadata)],
        message_object_trees=[ObjectTree(object_id="0" * 64, children=parts)],
    )
    assert call(served.home, PUSH, request, served.signer.headers()).status_code == 403
    assert "more than 600 parts" in (served.home.logs / "superlink.log").read_text()


def push(served: Served, reply: Message) -> PushMessagesResponse:
    """A site's attempt to send an answer, without its parts."""
    with no_object_id_recompute():
        reply.metadata.__dict__["_message_id"] = reply.object_id
        request = PushMessagesRequest(
            node=Node(node_id=served.node),
            messages_list=[message_to_proto(remove_content_from_message(reply))],
            message_object_trees=[get_object_tree(reply)],
        )
    answer = call(served.home, PUSH, request, served.signer.headers())
    assert answer.status_code == 200
    return PushMessagesResponse.FromString(answer.content)


def push_part(served: Served, run: int, session: str, name: str, content: bytes) -> None:
    request = PushObjectRequest(
        node=Node(node_id=served.node), run_id=run, object_id=name, object_content=content, session_id=session
    )
    answer = call(served.home, "/v1/fleet/push-object", request, served.signer.headers())
    assert answer.status_code == 200
    assert PushObjectResponse.FromString(answer.content).stored


def test_an_answer_that_was_cut_off_is_completed_although_the_app_has_asked_for_it(served: Served) -> None:
    let_time_pass(served.home, 120)
    assert activate(served) == 200
    run = submit(served.home, make_bundle())
    try:
        with lead(served.home) as grid:
            name = ask(grid, served.node, "train", RecordDict({"plan": ConfigRecord({"round": 1})}))
            pulled = call(
                served.home, PULL, PullMessagesRequest(node=Node(node_id=served.node)), served.signer.headers()
            )
            (asked,) = PullMessagesResponse.FromString(pulled.content).messages_list
            reply = Message(RecordDict({"metrics": MetricRecord({"x": 1.0})}), reply_to=message_from_proto(asked))
            first = push(served, reply)
            parts = {key: part.deflate() for key, part in get_all_nested_objects(reply).items()}
            assert set(first.objects_to_push) == set(parts)
            sent, *missing = parts
            push_part(served, run, first.session_id, sent, parts[sent])
            # The app asks for the answer, and Flower forgets it; then the line is cut.
            taken = grid._runtime_client.PullMessages(PullAppMessagesRequest(message_ids=[name]))
            assert len(taken.messages_list) == 1
            again = push(served, reply)
            assert set(again.objects_to_push) == set(missing)
            for part in missing:
                push_part(served, run, again.session_id, part, parts[part])
            for part, content in parts.items():
                found = grid._runtime_client.PullObject(PullObjectRequest(node=grid.node, run_id=run, object_id=part))
                assert found.object_content == content
            assert not push(served, reply).objects_to_push
    finally:
        with control(served.home) as client:
            client.StopRun(StopRunRequest(run_id=run))


def test_a_locked_database_is_a_reason_to_wait_and_not_to_give_up(served: Served) -> None:
    let_time_pass(served.home, 120)
    assert activate(served) == 200
    lock = sqlite3.connect(served.home.database, timeout=30, isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    try:
        assert beat(served) == 503
    finally:
        lock.execute("ROLLBACK")
        lock.close()
    assert beat(served) == 200


def test_a_wrong_authority_is_not_believed(served: Served, tmp_path: Path) -> None:
    other = make_coordinator(tmp_path / "other")
    with pytest.raises(httpx.ConnectError):
        httpx.post(f"{served.home.settings.url}{PULL}", verify=trust(other))


def test_plain_http_gets_no_answer(served: Served) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.post(f"http://127.0.0.1:{served.home.settings.port}{PULL}", timeout=10)


@pytest.mark.long
def test_headers_that_never_end_are_cut(served: Served) -> None:
    began = time.monotonic()
    assert raw_request(served.home, b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: x\r\nX-Slow: ", patience=60) == b""
    assert 5 < time.monotonic() - began < 50


def test_the_audit_trail_tells_orders_and_refusals_and_no_secret(served: Served) -> None:
    lines = audit_lines(served.home)
    asked = {(line.get("call"), line["status"]) for line in lines}
    assert ("/v1/control/register-node", 200) in asked
    assert ("/v1/control/register-node", 401) in asked
    assert ("/v1/runtime/acquire-task", 401) in asked
    assert (ACTIVATE, 412) in asked
    assert ("/v1/fleet/send-node-heartbeat", 200) not in asked
    for text in ((served.home.logs / name).read_text() for name in ("audit.jsonl", "superlink.log")):
        assert TOKEN not in text
        assert SECRET not in text


def test_a_second_superlink_for_the_same_folder_ends_at_once(served: Served) -> None:
    with superlink(served.home) as second:
        eventually(lambda: second.status.exit_code is not None, "its end")
        assert second.status.exit_code == 4


def test_a_superlink_that_was_away_does_not_call_others_late(served: Served) -> None:
    """Its absence costs neither the sites nor the run that waited for it."""
    let_time_pass(served.home, 120)
    assert activate(served) == 200
    run = submit(served.home, make_bundle())
    with lead(served.home):
        pid = served.keeper.status.pid
        served.keeper.stop()
        let_time_pass(served.home, 600)
        with superlink(served.home) as again:
            eventually(lambda: is_up(served.home), "the SuperLink")
            assert again.status.pid != pid
            assert run_status(served.home, run) == "running"
            assert node_status(served.home, served.node) == "online"


def test_it_spoke_to_nobody_else(served: Served) -> None:
    assert (served.watch / "sitecustomize.py").exists()
    assert connections(served.watch) == ""
