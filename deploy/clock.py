"""Simulated time: how long a federation would take whose sites are not equally fast.

Every site of a simulation is this very process, so that none can be slow. Under a simulated clock a site answers a
round one second after it was asked, or as many as its factor says, and the clock goes on only where the loop waits.
Evaluation, sending and combining take no time.

The clock is on disk before anything that follows from it, so that a run which is started again finds its sites where
they were, and ends with the same bits.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from flwr.app import Message, MessageType
from flwr.clientapp import ClientApp

from wardround.deploy.grid import InProcessGrid
from wardround.errors import DataError
from wardround.files import write_text
from wardround.server.exchange import Pace

CLOCK = "clock.json"


class SimulatedClock:
    """What time it is in a simulated federation, and when each site will have answered.

    Parameters
    ----------
    path
        Of its file; a clock that stopped goes on.
    slow
        Site → seconds that it takes for a round, where that is not one.

    Raises
    ------
    DataError
        If the file is damaged.
    """

    def __init__(self, path: Path, slow: Mapping[str, float]) -> None:
        self._path, self._slow = path, slow
        self._now = 0.0
        self._ready: dict[str, float] = {}
        if path.exists():
            try:
                stored = json.loads(path.read_text(encoding="utf-8"))
                self._now = float(stored["now"])
                self._ready = {str(work): float(at) for work, at in stored["ready"].items()}
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(
                    f"cannot read {path}", f"it is damaged ({type(error).__name__})", "start a new run"
                ) from error

    def pace(self) -> Pace:
        """How the round loop waits."""
        return Pace(now=self.now, wait=self.wait)

    def now(self) -> float:
        """Seconds since the run began."""
        return self._now

    def wait(self, seconds: float) -> None:
        """Go on to where the next site has answered, or by so many seconds if none is at work."""
        later = [at for at in self._ready.values() if at > self._now]
        self._now = min(later, default=self._now + seconds)
        self._write()

    def begin(self, site: str, round: int) -> None:
        """A site begins to work on a round, if it has not begun before."""
        if self._name(site, round) not in self._ready:
            self._ready[self._name(site, round)] = self._now + self._slow.get(site, 1.0)
            self._write()

    def is_ready(self, site: str, round: int) -> bool:
        """Whether it has answered by now."""
        return self._ready[self._name(site, round)] <= self._now

    def _write(self) -> None:
        write_text(self._path, json.dumps({"now": self._now, "ready": self._ready}))

    @staticmethod
    def _name(site: str, round: int) -> str:
        return f"{site}/{round}"


class ClockedGrid(InProcessGrid):
    """A grid without a network on which a site's update comes when the clock says so.

    Parameters
    ----------
    app, nodes
        As for :class:`wardround.deploy.grid.InProcessGrid`.
    clock
        Knows how slow each site is.
    """

    def __init__(self, app: ClientApp, nodes: Iterable[str], clock: SimulatedClock) -> None:
        super().__init__(app, nodes)
        self._clock = clock
        self._at_work: dict[str, tuple[str, int]] = {}

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Take messages; a site that shall train begins now."""
        taken = list(messages)
        identities = super().push_messages(taken)
        for message, identity in zip(taken, identities, strict=True):
            if message.metadata.message_type == MessageType.TRAIN:
                work = self.site_name(message.metadata.dst_node_id), int(message.metadata.group_id)
                self._at_work[identity] = work
                self._clock.begin(*work)
        return identities

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Answer those of the waiting messages whose time has come."""
        come = [
            identity
            for identity in message_ids
            if identity not in self._at_work or self._clock.is_ready(*self._at_work[identity])
        ]
        return super().pull_messages(come)
