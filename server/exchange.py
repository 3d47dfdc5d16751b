"""One exchange with the sites: who is there, what they are sent, and what came back from whom.

Flower's own loop waits for ever for absent sites, forgets late ones without a word and takes the error of one site for
one of the server. Here an exchange ends at a deadline, and every site that was asked is accounted for.
"""

import logging
import threading
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import Message
from flwr.serverapp import Grid
from google.protobuf.message import DecodeError  # type: ignore[import-untyped, unused-ignore]

from wardround.errors import Interrupted, RoundError

logger = logging.getLogger(__name__)

# What Flower raises where the bytes of a reply are no message: nothing else is taken for the fault of a site.
_UNDECODABLE = (DecodeError, ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError, OverflowError)

NOT_DELIVERED = "not-delivered"
STILL_OPEN = "still-open"


class TooFew(RoundError):
    """Too few sites are there, or answered: another attempt may find more."""


@dataclass(frozen=True)
class Pace:
    """How time passes while nothing arrives.

    Parameters
    ----------
    now
        Seconds on a clock that never goes back.
    wait
        Let so many seconds pass.
    first, longest
        Seconds before the second look, and at most between two; the pause doubles in between.
    """

    now: Callable[[], float] = time.monotonic
    wait: Callable[[float], object] = field(default_factory=lambda: threading.Event().wait)
    first: float = 0.02
    longest: float = 2.0

    def pauses(self, deadline: float, stop: Callable[[], bool]) -> Iterator[None]:
        """Yield for every look, pausing in between, until the deadline has passed; there is always one look.

        Raises
        ------
        Interrupted
            As soon as `stop` says so.
        """
        pause = self.first
        while True:
            check(stop)
            yield
            left = deadline - self.now()
            if left <= 0:
                return
            check(stop)
            self.wait(min(pause, left))
            pause = min(2 * pause, self.longest)


@dataclass(frozen=True)
class Answer:
    """What became of a message to one site.

    Parameters
    ----------
    node
        The node it was sent to.
    reply
        What came back, or None.
    reason
        Why nothing came back: ``not-delivered``, ``late`` or ``undecodable``; ``still-open`` where it may yet come.
    identity
        Of the message; empty where it was not delivered.
    """

    node: int
    reply: Message | None
    reason: str
    identity: str = ""


def check(stop: Callable[[], bool]) -> None:
    """Raise where the run should stop.

    Raises
    ------
    Interrupted
        If `stop` says so.
    """
    if stop():
        raise Interrupted(
            "the run was stopped",
            "it was asked to",
            "start it again with the same folder to go on where it was",
        )


def wait_for_sites(  # noqa: PLR0917
    grid: Grid,
    quorum: int,
    deadline_s: float,
    name: Callable[[int], str],
    pace: Pace,
    stop: Callable[[], bool],
    *,
    without: Container[str] = (),
    answered: Container[str] = (),
) -> dict[int, str]:
    """Wait until enough sites are online.

    Parameters
    ----------
    without
        Names of sites that do not take part.
    answered
        Names of sites that do not count for the quorum, since their answer is known already.

    Returns
    -------
    dict
        Node ids to names, in the order of the names: that of the sums, whatever the nodes' ids are this time. Where two
        nodes have one name, the node's id is put behind it.

    Raises
    ------
    TooFew
        If fewer than `quorum` sites are online at the deadline.
    """
    count = 0
    for _ in pace.pauses(pace.now() + deadline_s, stop):
        nodes = sorted(set(grid.get_node_ids()))
        names = [name(node) for node in nodes]
        unique = [n if names.count(n) == 1 else f"{n}-{node}" for n, node in zip(names, nodes, strict=True)]
        roster = {node: site for node, site in zip(nodes, unique, strict=True) if site not in without}
        count = sum(1 for site in roster.values() if site not in answered)
        if count >= quorum:
            return dict(sorted(roster.items(), key=lambda item: (item[1], item[0])))
    raise TooFew(
        f"{count} of {quorum} sites are online",
        f"the others did not connect within {deadline_s:g} s" + (", or are in quarantine" if without else ""),
        "start the missing sites, or lower the quorum; then start the run again with the same folder",
    )


def exchange(
    grid: Grid,
    messages: Sequence[Message],
    deadline_s: float,
    pace: Pace,
    stop: Callable[[], bool],
    *,
    waiting: Mapping[str, int] | None = None,
    earlier: Mapping[str, int] | None = None,
    until: Callable[[], bool] = lambda: False,
) -> Iterator[Answer]:
    """Send messages and yield what becomes of each, as it becomes known.

    Replies are pulled one by one: a reply that cannot be decoded is then known by the message it answers, and is the
    matter of one site only. Only one reply is in memory, if the caller lets go of each before asking for the next.

    Parameters
    ----------
    messages
        At most one for a node.
    deadline_s
        Seconds from now after which replies are not waited for. Each is looked for once at least.
    waiting
        Messages that were sent before and are waited for as well: their identities, with their nodes.
    earlier
        Messages that were sent before and are looked for, but not waited for.
    until
        Asked after every look. When it says so, the exchange is broken off before its deadline.
    """
    start = pace.now()
    nodes = [message.metadata.dst_node_id for message in messages]
    pushed = push(grid, messages)
    del messages
    for node in nodes:
        if node not in pushed.values():
            yield Answer(node, None, NOT_DELIVERED)
    pending = {**(waiting or {}), **pushed}
    asides = dict(earlier or {})
    for _ in pace.pauses(start + deadline_s, stop):
        for identity, node in [*asides.items(), *pending.items()]:
            check(stop)
            answer = _look(grid, identity, node)
            if answer is not None:
                asides.pop(identity, None)
                pending.pop(identity, None)
                yield answer
                del answer
        if not pending or until():
            break
    reason = "late" if pace.now() - start >= deadline_s else STILL_OPEN
    for identity, node in pending.items():
        yield Answer(node, None, reason, identity)


def _look(grid: Grid, identity: str, node: int) -> Answer | None:
    reply, reason = _pull(grid, identity)
    if reply is None and not reason:
        return None
    return Answer(node, reply, reason, identity)


def push(grid: Grid, messages: Sequence[Message]) -> dict[str, int]:
    """Push messages; identities of those that were taken, with their nodes, in order."""
    if not messages:
        return {}
    identities = list(grid.push_messages(list(messages)))
    nodes = [message.metadata.dst_node_id for message in messages]
    if len(identities) != len(messages):
        # Some grids leave out what they could not push, so that positions tell nothing.
        known = {message.metadata.message_id: message.metadata.dst_node_id for message in messages}
        return {identity: known[identity] for identity in identities if identity in known}
    return {identity: node for identity, node in zip(identities, nodes, strict=True) if identity}


def _pull(grid: Grid, identity: str) -> tuple[Message | None, str]:
    try:
        replies = list(grid.pull_messages([identity]))
    except _UNDECODABLE as error:
        logger.warning("a reply could not be decoded: %s", type(error).__name__)
        return None, "undecodable"
    for reply in replies:
        if reply.metadata.reply_to_message_id == identity:
            return reply, ""
    return None, ""
