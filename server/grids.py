"""Grids in front of Flower's: each changes one thing, and hands on the rest."""

from collections.abc import Iterable, Mapping

from flwr.app import Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from wardround.errors import RoundError
from wardround.strategies.parcel import unwrap, wrap

_ROSTER_LOOKS = 5


class _FrontGrid(Grid):
    """A grid that hands everything on to another one.

    Parameters
    ----------
    grid
        Does everything.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def set_run(self, run: Run) -> None:
        """Hand on."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """The run of the grid."""
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Hand on."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Hand on."""
        return self._grid.get_node_ids()

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Hand on."""
        return self._grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Hand on."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Hand on."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Hand on."""
        return self._grid.send_and_receive(messages, timeout=timeout)


class RosterGrid(_FrontGrid):
    """A grid that shows a strategy the sites of this round and no others.

    Flower's strategies sample from whoever is online while they look, and look again for ever if these are too few.

    Parameters
    ----------
    grid
        Does everything else.
    roster
        Node ids to names.
    """

    def __init__(self, grid: Grid, roster: Mapping[int, str]) -> None:
        super().__init__(grid)
        self._roster = roster
        self._looks = 0

    def get_node_ids(self) -> list[int]:
        """The nodes of the roster.

        Raises
        ------
        RoundError
            If the strategy keeps looking for more.
        """
        self._looks += 1
        if self._looks > _ROSTER_LOOKS:
            raise RoundError(
                "the strategy waits for more sites than are online",
                f"{len(self._roster)} take part in this round",
                "lower its min_train_nodes and min_available_nodes",
            )
        return list(self._roster)

    def get_nodes(self) -> list[NodeInfo]:
        """The nodes of the roster, with their names."""
        return [NodeInfo(node_id=node, name=name) for node, name in self._roster.items()]


class ParcelGrid(_FrontGrid):
    """A grid on which weights travel in pieces; see :mod:`wardround.strategies.parcel`.

    Parameters
    ----------
    grid
        Leads to the sites.
    """

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Wrap what is sent, once for all who are sent the same, and hand on."""
        wrapped: dict[int, tuple[RecordDict, RecordDict]] = {}
        messages = list(messages)
        for message in messages:
            content = message.content
            # The content is kept beside its piece, so that no other gets its identity meanwhile.
            if id(content) not in wrapped:
                wrapped[id(content)] = (content, wrap(content))
            message.content = wrapped[id(content)][1]
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Unwrap what came back.

        Raises
        ------
        ValueError
            If a piece cannot be read.
        """
        for message in self._grid.pull_messages(message_ids):
            if message.has_content():
                message.content = unwrap(message.content)
            yield message

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Not for pieces: replies of several sites would be lost where one of them cannot be read."""
        raise NotImplementedError("messages are pushed and pulled one by one here")
