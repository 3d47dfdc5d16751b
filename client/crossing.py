"""What crosses between a site and its coordinator, seen from the SuperNode: the process that dials out.

The app that a coordinator submits runs in a process of its own and may be anybody's work. This one is the site's. It
lets an app run only if the agent, which holds the site's approvals, says so for these very bytes, and lets an answer
out only if the agent released its content. What leaves is written anew here from what was checked; nothing that the
app's process wrote is passed on, neither the wrapping of its answer nor the text of its error.

Whatever goes wrong on the way becomes an error reply, and the node lives on: a message that nobody answers holds up
every other hospital. For the same reason a message is written down when it is taken and struck out when its answer is
away; what a killed process left open is answered by the next one.

Flower calls these functions in place of its own of the same name; `client/supernode.py` puts them there.
"""

import hashlib
import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import httpx
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store import ObjectStore
from flwr.supercore.run import Run, RunNotRunningException
from flwr.supernode import start_client_internal as internal
from flwr.supernode.nodestate import NodeState

from wardround.client import wire
from wardround.client.gate import codes
from wardround.errors import ConnectionFailed, GateRefused, StorageError, WardroundError, for_log
from wardround.files import write_bytes
from wardround.processes import Stamp
from wardround.strategies.contract import digest
from wardround.strategies.parcel import is_wrapped, unwrap, wrap

log = logging.getLogger(__name__)

SITE_ERROR = 100
"""Code of an error reply that the site gave on purpose."""
LOST = ErrorCode.CLIENT_APP_CRASHED
"""Code of an error reply for work that was lost on the way: whoever asks again gets an answer."""

RESTARTED: Final = "restarted"
NOT_RECEIVED: Final = "not-received"
INCOMPLETE: Final = "incomplete"
UNREADABLE: Final = "undecodable"
UNREACHABLE: Final = "agent-unreachable"
WITHHELD: Final = "not-released"
INTERNAL: Final = "internal"

LOOK_EVERY = 0.2
"""Seconds between two looks for an app's answer."""
STALL = 60.0
"""Seconds after which an answer whose parts stopped coming is given up: the app's process died."""
RESEND_WAITS = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0)
"""Seconds between attempts to send one answer, on top of those that Flower makes by itself. Where the coordinator is
out of reach, the last of them is waited again and again, until nobody waits for the answer any more."""

_ROUND = re.compile(r"[0-9]{1,9}")
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_REASONS = {
    ErrorCode.LOAD_CLIENT_APP_EXCEPTION: "app-raised",
    ErrorCode.CLIENT_APP_RAISED_EXCEPTION: "app-raised",
    ErrorCode.CLIENT_APP_CRASHED: "app-crashed",
}
"""What is told where Flower, or the app, gave a text."""


class _RefusedHere(GateRefused):
    """What the agent was not asked about, and therefore has not written down."""


class OpenMessages:
    """Messages that were taken and not answered yet: in memory, and on the disk for the next process.

    Parameters
    ----------
    folder
        One file a message: its metadata, no content.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, Message] = {}

    def add(self, message: Message) -> None:
        """Write down that `message` was taken."""
        name = message.metadata.message_id
        self._open[name] = message
        try:
            write_bytes(self._path(name), message_to_proto(message).SerializeToString())
        except StorageError as error:
            # It is worked on nevertheless. Only a kill of this process would now leave it without an answer.
            log.error("%s", error)

    def strike(self, name: str) -> None:
        """Its answer is away, or nobody waits for one any more."""
        self._open.pop(name, None)
        self._path(name).unlink(missing_ok=True)

    def find(self, name: str) -> Message | None:
        """The message of that name, if it is open."""
        return self._open.get(name)

    def read(self) -> list[Message]:
        """What a former process left open; from now on it is open here."""
        for path in sorted(self._folder.glob("*.pb")):
            try:
                message = message_from_proto(ProtoMessage.FromString(path.read_bytes()))
            except Exception as error:  # noqa: BLE001
                # Written by us and renamed into place: only a failing disk leads here. Nobody can be answered then.
                log.error("a note of an open message cannot be read; it is dropped: %s", for_log(error))
                path.unlink(missing_ok=True)
            else:
                self._open[message.metadata.message_id] = message
        return list(self._open.values())

    def _path(self, name: str) -> Path:
        # Names come from the coordinator; those of files do not.
        return self._folder / f"{hashlib.sha256(name.encode()).hexdigest()}.pb"


@dataclass
class Agent:
    """What the SuperNode asks the agent.

    Parameters
    ----------
    socket
        Where it listens.
    """

    socket: Path

    def admit_app(self, sha256: str, bundle: bytes | None) -> None:
        """Ask whether an app may run here; `bundle` is None where its bytes were shown before.

        Raises
        ------
        GateRefused
            If it may not.
        """
        arrays = {} if bundle is None else {"fab": wire.raw(bundle)}
        wire.ask(self.socket, {"op": "admit-app", "sha256": sha256}, arrays)

    def released(self, content: str, asked: Message) -> bool:
        """Ask whether an answer of that digest was released for such a message as `asked`, and not sent yet."""
        kind = asked.metadata.message_type.partition(".")[0]
        header: dict[str, Any] = {"op": "released", "digest": content, "kind": kind}
        if kind != "query" and _ROUND.fullmatch(asked.metadata.group_id):
            header["round"] = int(asked.metadata.group_id)
        answer, _ = wire.ask(self.socket, header)
        return answer.get("released") is True

    def note_error(self, code: str) -> None:
        """Tell it that an error leaves in place of an answer."""
        wire.ask(self.socket, {"op": "note-error", "code": code})


@dataclass(frozen=True)
class _Reason:
    """What an error reply says, and whether the agent knows of it already."""

    number: int
    code: str
    is_noted: bool = False


@dataclass
class _Taking:
    """What happened while Flower took one message."""

    message: Message | None = None
    is_over: bool = False


@dataclass
class _Sending:
    """What happened while Flower sent one answer."""

    faults: list[Exception] = field(default_factory=list)
    is_over: bool = False


class Crossing:
    """The two functions that stand in Flower's loop: take a message, send its answer.

    Parameters
    ----------
    agent
        Holds approvals and releases.
    notes
        Messages that are open.
    stamp
        Touched whenever there is progress, or a reason to wait.
    sleep, clock
        Seconds; for tests.
    """

    def __init__(
        self,
        agent: Agent,
        notes: OpenMessages,
        stamp: Stamp,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._agent = agent
        self._notes = notes
        self._stamp = stamp
        self._sleep = sleep
        self._clock = clock
        self._take = internal._pull_and_store_message
        self._send = internal._push_messages
        self._left_open: list[Message] | None = None
        self._ours: dict[str, Error] = {}
        """The errors of the replies that were made here, by their names."""

    def pull_and_store_message(self, **given: Any) -> int | None:
        """Take one message if there is one. Stands for Flower's `_pull_and_store_message`, with its parameters.

        Returns
        -------
        int or None
            The run of the message, which then has an answer coming; None where there is nothing to wait for.
        """
        self._stamp.touch()
        state: NodeState = given["state"]
        store: ObjectStore = given["object_store"]
        if (orphan := self._next_orphan(state)) is not None:
            self._answer_error(orphan, _Reason(LOST, RESTARTED), state, store)
            return orphan.metadata.run_id
        taking = _Taking()
        try:
            run_id = self._take(**self._watched(given, taking))
        except httpx.TransportError as error:
            # An outage of hours is no reason to fill the log with where in Flower it was noticed.
            log.error("the coordinator is out of reach (%s)", error)
            return self._refuse(taking, _reason(error), state, store)
        except Exception as error:  # noqa: BLE001 - it becomes the answer
            log.error("a message could not be taken: %s", for_log(error))
            return self._refuse(taking, _reason(error), state, store)
        if run_id is not None or taking.message is None:
            return run_id
        if not taking.is_over:
            # Flower says no more than None where a message came and its parts did not.
            return self._refuse(taking, _Reason(LOST, NOT_RECEIVED), state, store)
        self._notes.strike(taking.message.metadata.message_id)
        return None

    def push_messages(self, **given: Any) -> None:
        """Wait for answers and send what may leave. Stands for Flower's `_push_messages`, with its parameters."""
        state: NodeState = given["state"]
        store: ObjectStore = given["object_store"]
        while not (replies := state.get_messages_legacy(is_reply=True)):
            self._stamp.touch()
            self._sleep(LOOK_EVERY)
        for reply in replies:
            try:
                answer = self._checked(reply, store)
            except Exception as error:  # noqa: BLE001 - it becomes the answer
                log.error("an answer could not be checked: %s", for_log(error))
                asked = self._notes.find(reply.metadata.reply_to_message_id)
                answer = None if asked is None else self._error(asked, _Reason(SITE_ERROR, INTERNAL))
            # What the app's process wrote goes, before it is written anew.
            state.delete_messages(message_ids=[reply.metadata.message_id])
            store.delete(reply.metadata.message_id)
            if answer is not None:
                self._deliver(answer, given)
                self._notes.strike(answer.metadata.reply_to_message_id)

    def _next_orphan(self, state: NodeState) -> Message | None:
        """A message that a former process took and this node has to answer."""
        if self._left_open is None:
            self._left_open = self._notes.read()
        while self._left_open:
            message = self._left_open.pop()
            is_ours = message.metadata.dst_node_id == state.get_node_id()
            if is_ours and message.metadata.created_at + message.metadata.ttl > time.time():
                return message
            self._notes.strike(message.metadata.message_id)
        return None

    def _watched(self, given: dict[str, Any], taking: _Taking) -> dict[str, Any]:
        """Flower's ways to the coordinator, with an eye on what comes through them."""

        def noting(way: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any) -> Any:
                self._stamp.touch()
                try:
                    return way(*arguments)
                except RunNotRunningException:
                    taking.is_over = True
                    raise

            return call

        def receive() -> tuple[Message, ObjectTree] | None:
            found: tuple[Message, ObjectTree] | None = noting(given["receive"])()
            if found is not None:
                taking.message = found[0]
                self._notes.add(found[0])
                run = given["state"].get_run(found[0].metadata.run_id)
                if run is not None:  # its app was shown before, and may have been revoked since
                    self._agent.admit_app(run.fab_hash, None)
            return found

        def get_run(run_id: int) -> Run:
            run: Run = noting(given["get_run"])(run_id)
            if run.primary_task_type == TaskType.AGENT_APP:
                raise _RefusedHere("a run is refused", "it is none of a federation", "", code="kind-not-allowed")
            # Flower takes the folder that it runs an app from out of these names.
            names = [*run.fab_id.split("/"), run.fab_version]
            if len(names) != 3 or not all(_PLAIN.fullmatch(name) for name in names):
                raise _RefusedHere("an app is refused", "its name leads elsewhere", "", code="bundle-names")
            return run

        def get_fab(fab_hash: str, run_id: int) -> Fab:
            fab: Fab = noting(given["get_fab"])(fab_hash, run_id)
            if hashlib.sha256(fab.content).hexdigest() != fab_hash or fab.hash_str != fab_hash:
                raise _RefusedHere("an app is refused", "it is not the one that was named", "", code="bundle-hash")
            self._agent.admit_app(fab_hash, fab.content)
            return fab

        others = {name: noting(given[name]) for name in ("pull_object", "confirm_message_received")}
        # Signatures of Flower's hub are not what this site trusts.
        ours = {"receive": receive, "get_run": get_run, "get_fab": get_fab, "trusted_entities": None}
        return {**given, **others, **ours}

    def _refuse(self, taking: _Taking, reason: _Reason, state: NodeState, store: ObjectStore) -> int | None:
        if taking.message is None:
            return None
        self._answer_error(taking.message, reason, state, store)
        return taking.message.metadata.run_id

    def _answer_error(self, message: Message, reason: _Reason, state: NodeState, store: ObjectStore) -> None:
        """Put an error reply where the other half of the loop looks for replies."""
        reply = self._error(message, reason)
        internal._insert_message(reply, state, store)
        self._ours[reply.metadata.message_id] = reply.error

    def _checked(self, reply: Message, store: ObjectStore) -> Message | None:
        """What may be sent in place of `reply`: its content if that was released, an error otherwise."""
        asked = self._notes.find(reply.metadata.reply_to_message_id)
        if asked is None:
            log.error("an answer to no open message is dropped")
            return None
        if (error := self._ours.pop(reply.metadata.message_id, None)) is not None:
            return Message(error, reply_to=asked)
        if reply.has_error():
            return self._error(asked, _telling(reply.error))
        return self._judged(asked, reply, store)

    def _judged(self, asked: Message, reply: Message, store: ObjectStore) -> Message:
        """`reply` written anew, if the agent released its content; an error otherwise."""
        try:
            came = self._unpack(reply, store).content
            content = unwrap(came)
            if self._agent.released(digest(content), asked):
                return Message(wrap(content) if is_wrapped(came) else content, reply_to=asked)
        except TimeoutError:
            return self._error(asked, _Reason(LOST, INCOMPLETE))
        except WardroundError as error:
            log.error("%s", error)
            return self._error(asked, _Reason(LOST, UNREACHABLE))
        except Exception as error:  # noqa: BLE001 - it becomes the answer
            log.error("an answer cannot be read: %s", for_log(error))
            return self._error(asked, _Reason(SITE_ERROR, UNREADABLE))
        log.error("an answer is withheld: the agent did not release it")
        return self._error(asked, _Reason(SITE_ERROR, WITHHELD, is_noted=True))

    def _error(self, asked: Message, reason: _Reason) -> Message:
        if not reason.is_noted:
            try:
                self._agent.note_error(reason.code)
            except WardroundError as error:
                # The ledger has one line less; the others still have to know that no answer comes.
                log.error("%s", error)
        return Message(Error(reason.number, reason.code), reply_to=asked)

    def _unpack(self, reply: Message, store: ObjectStore) -> Message:
        """Wait for all parts of `reply`, which its app is still bringing, and put them together.

        Raises
        ------
        TimeoutError
            If they stop coming.
        """
        name = reply.metadata.message_id
        missing = [tree.object_id for tree in iterate_object_tree(store.get_object_tree(name))]
        contents: dict[str, bytes] = {}
        last = self._clock()
        while missing:
            self._stamp.touch()
            still = []
            for part in missing:
                if bytes_of := store.get(part):
                    contents[part] = bytes_of
                else:
                    still.append(part)
            if len(still) < len(missing):
                last = self._clock()
            elif self._clock() - last > STALL:
                raise TimeoutError
            missing = still
            if missing:
                self._sleep(LOOK_EVERY)
        found = inflate_object_from_contents(name, contents)
        if not isinstance(found, Message) or not found.has_content():
            raise TypeError("it is no message")
        return found

    def _deliver(self, answer: Message, given: dict[str, Any]) -> None:
        """Send `answer`, and again where it got lost on the way. It keeps its name, so that it is counted once."""
        waits = iter(RESEND_WAITS)
        only = cast(NodeState, _OneReply(given["state"], answer))
        while True:
            sending = _Sending()
            internal._insert_message(answer, only, given["object_store"])
            self._send(**{**self._counted(given, sending), "state": only})
            if not sending.faults or sending.is_over:
                return
            wait = next(waits, None)
            if wait is None and any(isinstance(fault, httpx.TransportError) for fault in sending.faults):
                # Flower takes a port forwarding before a coordinator that is down for a fault of TLS, and gives up.
                wait = RESEND_WAITS[-1]
            if wait is None or answer.metadata.created_at + answer.metadata.ttl < time.time():
                log.error("an answer could not be sent; it is given up")
                return
            log.warning("an answer got lost (%s); it is sent again", type(sending.faults[-1]).__name__)
            self._stamp.touch()
            self._sleep(wait)

    def _counted(self, given: dict[str, Any], sending: _Sending) -> dict[str, Any]:
        """Flower's ways to the coordinator, with an eye on what fails on them: it keeps that to itself."""

        def counting(way: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any) -> Any:
                self._stamp.touch()
                try:
                    return way(*arguments)
                except RunNotRunningException:
                    sending.is_over = True
                    raise
                except Exception as error:
                    sending.faults.append(error)
                    raise

            return call

        return {**given, **{name: counting(given[name]) for name in ("send", "push_object")}}


class _OneReply:
    """A node's state in which exactly one answer waits, whatever else does."""

    def __init__(self, state: NodeState, answer: Message) -> None:
        self._state = state
        self._answer = answer

    def get_messages_legacy(self, **_: Any) -> Sequence[Message]:
        return [self._answer]

    def store_message(self, message: Message) -> str:
        return message.metadata.message_id

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state, name)


def _reason(error: Exception) -> _Reason:
    """What may be told of a failure to take a message."""
    if isinstance(error, GateRefused):
        number = ErrorCode.INVALID_FAB if error.code.startswith("bundle-") else SITE_ERROR
        return _Reason(number, codes.safe_code(error.code), is_noted=not isinstance(error, _RefusedHere))
    return _Reason(LOST, UNREACHABLE if isinstance(error, ConnectionFailed) else NOT_RECEIVED)


def _telling(error: Error) -> _Reason:
    """What may be told of an app's error, also in the node's log: its text is the app's, and may name a patient."""
    if error.code == SITE_ERROR:
        found = _Reason(SITE_ERROR, codes.safe_code(error.reason))
    elif error.code in _REASONS:
        found = _Reason(error.code, _REASONS[error.code])
    else:
        found = _Reason(SITE_ERROR, codes.OTHER)
    log.error("the app answered with error %d: %s", error.code, found.code)
    return found
