"""A Flower grid without a network: every message is answered by the ClientApp in this very process.

Flower's own simulation starts a Ray cluster and polls; for a laptop that costs more than the training. Here a message
waits until its reply is asked for, and is then answered by one direct call. Strategies, round loop and ClientApp are
the same objects as in a federation and cannot tell the difference.
"""

import hashlib
import itertools
import logging
from collections.abc import Iterable, Mapping
from typing import Literal

from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from wardround.errors import Interrupted, UsageError, for_log

logger = logging.getLogger(__name__)

_RUN_ID = 1


def node_id(name: str) -> int:
    """The node id of a site: a hash of its name, so that it is the same in every run and on every machine.

    Returns
    -------
    int
        Between 2 and 2**32 + 1; 0 and 1 are Flower's own.
    """
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") + SUPERLINK_NODE_ID + 1


class InProcessGrid(Grid):
    """A grid whose nodes are names and whose wire is a function call.

    Parameters
    ----------
    app
        The ClientApp that answers for every node.
    nodes
        The sites' names. Node ``name`` runs with ``context.node_config == {"site": name}``.
    workers
        How many messages are answered at once. Only 1: sums are then the same in every run.

    Attributes
    ----------
    first_failure
        The first exception that the ClientApp raised, or None. The round loop sees only its type's name, as it would
        over a network; the person who runs the simulation may see it whole.

    Raises
    ------
    UsageError
        If there is no node, two nodes share a name, or `workers` is not 1.
    """

    def __init__(self, app: ClientApp, nodes: Iterable[str], *, workers: Literal[1] = 1) -> None:
        names = tuple(nodes)
        if not names or len(set(names)) != len(names):
            raise UsageError("a grid needs sites with different names", f"it was given {list(names)}", "name each once")
        if workers != 1:
            raise UsageError(f"workers={workers} cannot be reproduced", "sites answer one after the other", "use 1")
        self._app = app
        self._names: Mapping[int, str] = {node_id(name): name for name in sorted(names)}
        if len(self._names) != len(names):
            raise UsageError(
                "two sites have the same node id", "the hashes of their names collide", "rename one of them"
            )
        self._contexts = {
            node: Context(run_id=_RUN_ID, node_id=node, node_config={"site": name}, state=RecordDict(), run_config={})
            for node, name in self._names.items()
        }
        self._waiting: dict[str, Message] = {}
        self._numbers = itertools.count(1)
        self._run = Run.create_empty(_RUN_ID)
        self.first_failure: BaseException | None = None
        _identify_process()

    def set_run(self, run: Run) -> None:
        """Name the run that messages belong to."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message to one node (Flower's older spelling of the constructor)."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """All node ids, in ascending order of the sites' names."""
        return list(self._names)

    def get_nodes(self) -> list[NodeInfo]:
        """All nodes with their names."""
        return [NodeInfo(node_id=node, name=name) for node, name in self._names.items()]

    def site_name(self, node: int) -> str:
        """The name of the site behind a node id."""
        return self._names[node]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Take messages; each is answered when its reply is pulled.

        Returns
        -------
        list[str]
            One id for each message, in order.
        """
        ids = []
        for message in messages:
            identity = f"message-{next(self._numbers)}"
            message.metadata.__dict__["_message_id"] = identity
            message.metadata.__dict__["_run_id"] = self._run.run_id
            message.metadata.__dict__["_src_node_id"] = SUPERLINK_NODE_ID
            self._waiting[identity] = message
            ids.append(identity)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Answer the waiting messages among `message_ids`, in the order in which they were pushed.

        Returns
        -------
        list[Message]
            A reply for each; nothing for ids that are unknown or were pulled before.
        """
        wanted = set(message_ids)
        return [self._answer(self._waiting.pop(identity)) for identity in list(self._waiting) if identity in wanted]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Push and pull in one call. `timeout` has no meaning where a call returns with its answer."""
        return self.pull_messages(self.push_messages(messages))

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        if node not in self._contexts:
            reply = Message(Error(ErrorCode.NODE_UNAVAILABLE, "no such node"), reply_to=message)
        else:
            try:
                reply = self._app(_own_copy(message), self._contexts[node])
            except Interrupted:
                raise
            except Exception as error:  # noqa: BLE001 - whatever an app raises is an answer of its site
                logger.error("the ClientApp of site %s failed: %s", self._names[node], for_log(error))
                self.first_failure = self.first_failure or error
                reason = type(error).__name__
                reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
        reply.metadata.__dict__["_message_id"] = f"reply-{next(self._numbers)}"
        return reply


def _own_copy(message: Message) -> Message:
    """The same message with records of its own: what one site does to its copy, no other site sees.

    The arrays themselves are immutable bytes and are shared.
    """
    content = RecordDict()
    for name, record in message.content.items():
        match record:
            case ArrayRecord():
                content[name] = ArrayRecord(dict(record))
            case MetricRecord():
                content[name] = MetricRecord(dict(record))
            case ConfigRecord():
                content[name] = ConfigRecord(dict(record))
    return Message(content, metadata=message.metadata)  # type: ignore[call-overload, no-any-return]


def _identify_process() -> None:
    """Flower's messages ask the process who it is; a run started by Flower has answered that already."""
    for name, value in (("_task_id", 1), ("_run_id", _RUN_ID), ("_node_id", SUPERLINK_NODE_ID)):
        if getattr(TaskIdentity, name) is None:
            setattr(TaskIdentity, name, value)
