"""A rehearsal that somebody asked for, as it is reported."""

import threading
import time
import uuid

from wardround.client.workbench.views import TrainStatus, TrainView

_LINES = 20


class Training:
    """How far a rehearsal is. May be asked from any thread.

    Parameters
    ----------
    updates
        How many it takes.
    """

    def __init__(self, updates: int) -> None:
        self.id = str(uuid.uuid4())
        self._lock = threading.Lock()
        self._updates = self._left = updates
        self._status: TrainStatus = "SUBMITTED"
        self._started: float | None = None
        self._ended: float | None = None
        self._lines = ["waiting"]

    @property
    def left(self) -> int:
        """Updates that are left."""
        return self._left

    @property
    def running(self) -> bool:
        """Whether it waits or runs."""
        return self._status in ("SUBMITTED", "RUNNING")

    @property
    def view(self) -> TrainView:
        """As it is now."""
        with self._lock:
            return TrainView(self.id, self._status, self._started, self._ended, tuple(self._lines))

    def begin(self, cases: int) -> None:
        """The first update begins; later calls change nothing."""
        with self._lock:
            if self._status == "SUBMITTED":
                self._status, self._started = "RUNNING", time.time()
                self._lines.append(f"rehearsing from {cases} remembered cases, {self._updates} updates")

    def advance(self, updates: int, loss: float) -> None:
        """So many updates are done."""
        with self._lock:
            self._left -= updates
            self._say(f"{self._updates - self._left} of {self._updates} updates, loss {loss:.4f}")

    def stop(self) -> None:
        """Somebody ended it."""
        self.end("STOPPED", "stopped")

    def end(self, status: TrainStatus, line: str) -> None:
        """It is over; where it was over already nothing changes."""
        with self._lock:
            if self.running:
                self._status, self._ended = status, time.time()
                self._say(line)

    def _say(self, line: str) -> None:
        self._lines = [*self._lines, line][-_LINES:]
