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
from typing import Any, cast

import httpx
from flwr.app import Error, Message
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store import ObjectStore
from flwr.supercore.run import Run, RunNotRunningException
from flwr.supernode import start_client_internal as internal
from flwr.supernode.nodestate import NodeState

from wardround.client.asking import Agent
from wardround.client.error_replies import (
    INCOMPLETE,
    INTERNAL,
    LOST,
    NOT_RECEIVED,
    RESTARTED,
    SITE_ERROR,
    UNREACHABLE,
    UNREADABLE,
    WITHHELD,
    Reason,
    RefusedHere,
    reason_of,
    telling,
)
from wardround.client.open_messages import OpenMessages
from wardround.errors import WardroundError, for_log
from wardround.processes import Stamp
from wardround.strategies.contract import digest
from wardround.strategies.parcel import is_wrapped, unwrap, wrap

log = logging.getLogger(__name__)

LOOK_EVERY = 0.2
"""Seconds between two looks for an app's answer."""
STALL = 60.0
"""Seconds after which an answer whose parts stopped coming is given up: the app's process died."""
RESEND_WAITS = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0)
"""Seconds between attempts to send one answer, on top of those that Flower makes by itself. Where the coordinator is
out of reach, the last of them is waited again and again, until nobody waits for the answer any more."""

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


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
            self._answer_error(orphan, Reason(LOST, RESTARTED), state, store)
            return orphan.metadata.run_id
        taking = _Taking()
        try:
            run_id = self._take(**self._watched(given, taking))
        except httpx.TransportError as error:
            # An outage of hours is no reason to fill the log with where in Flower it was noticed.
            log.error("the coordinator is out of reach (%s)", error)
            return self._refuse(taking, reason_of(error), state, store)
        except Exception as error:  # noqa: BLE001 - it becomes the answer
            log.error("a message could not be taken: %s", for_log(error))
            return self._refuse(taking, reason_of(error), state, store)
        if run_id is not None or taking.message is None:
            return run_id
        if not taking.is_over:
            # Flower says no more than None where a message came and its parts did not.
            return self._refuse(taking, Reason(LOST, NOT_RECEIVED), state, store)
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
                answer = None if asked is None else self._error(asked, Reason(SITE_ERROR, INTERNAL))
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
                raise RefusedHere("a run is refused", "it is none of a federation", "", code="kind-not-allowed")
            # Flower takes the folder that it runs an app from out of these names.
            names = [*run.fab_id.split("/"), run.fab_version]
            if len(names) != 3 or not all(_PLAIN.fullmatch(name) for name in names):
                raise RefusedHere("an app is refused", "its name leads elsewhere", "", code="bundle-names")
            return run

        def get_fab(fab_hash: str, run_id: int) -> Fab:
            fab: Fab = noting(given["get_fab"])(fab_hash, run_id)
            if hashlib.sha256(fab.content).hexdigest() != fab_hash or fab.hash_str != fab_hash:
                raise RefusedHere("an app is refused", "it is not the one that was named", "", code="bundle-hash")
            self._agent.admit_app(fab_hash, fab.content)
            return fab

        others = {name: noting(given[name]) for name in ("pull_object", "confirm_message_received")}
        # Signatures of Flower's hub are not what this site trusts.
        ours = {"receive": receive, "get_run": get_run, "get_fab": get_fab, "trusted_entities": None}
        return {**given, **others, **ours}

    def _refuse(self, taking: _Taking, reason: Reason, state: NodeState, store: ObjectStore) -> int | None:
        if taking.message is None:
            return None
        self._answer_error(taking.message, reason, state, store)
        return taking.message.metadata.run_id

    def _answer_error(self, message: Message, reason: Reason, state: NodeState, store: ObjectStore) -> None:
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
            return self._error(asked, telling(reply.error))
        return self._judged(asked, reply, store)

    def _judged(self, asked: Message, reply: Message, store: ObjectStore) -> Message:
        """`reply` written anew, if the agent released its content; an error otherwise."""
        try:
            came = self._unpack(reply, store).content
            content = unwrap(came)
            if self._agent.released(digest(content), asked):
                return Message(wrap(content) if is_wrapped(came) else content, reply_to=asked)
        except TimeoutError:
            return self._error(asked, Reason(LOST, INCOMPLETE))
        except WardroundError as error:
            log.error("%s", error)
            return self._error(asked, Reason(LOST, UNREACHABLE))
        except Exception as error:  # noqa: BLE001 - it becomes the answer
            log.error("an answer cannot be read: %s", for_log(error))
            return self._error(asked, Reason(SITE_ERROR, UNREADABLE))
        log.error("an answer is withheld: the agent did not release it")
        return self._error(asked, Reason(SITE_ERROR, WITHHELD, is_noted=True))

    def _error(self, asked: Message, reason: Reason) -> Message:
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
