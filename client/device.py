"""One device, two users: a person in front of a viewer, and a round of the federation.

Whoever comes takes a place in one queue. A round holds the device for hours; between two batches it looks whether
anybody waits, lets them go first and takes the last place in the queue itself. A person waits for one batch at the
most, and nobody overtakes a round twice before it has done another batch: it ends, however busy the people are.
"""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class Device:
    """Who may compute. Holds no device itself."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._queue: deque[object] = deque()
        self._held = False
        self._one_round = threading.Lock()

    @property
    def waiting(self) -> int:
        """How many wait at this moment."""
        return len(self._queue)

    @contextmanager
    def interactive(self) -> Iterator[None]:
        """Hold the device for one interaction; a round that runs steps aside after its batch."""
        self._take()
        try:
            yield
        finally:
            self._let_go()

    @contextmanager
    def federated(self) -> Iterator[None]:
        """Hold the device for a round; one after the other. The holder calls :meth:`between` after every batch."""
        with self._one_round, self.interactive():
            yield

    def between(self) -> None:
        """Let those who wait go first. Only the round that holds the device may call this."""
        if self._queue:
            self._let_go()
            self._take()

    def _take(self) -> None:
        place = object()
        with self._changed:
            self._queue.append(place)
            try:
                self._changed.wait_for(lambda: not self._held and self._queue[0] is place)
                self._held = True
            finally:
                self._queue.remove(place)
                self._changed.notify_all()

    def _let_go(self) -> None:
        with self._changed:
            self._held = False
            self._changed.notify_all()
