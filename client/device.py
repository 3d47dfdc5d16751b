"""One device, three users: people in front of a viewer, the updates behind their drawing, a round of the federation.

Whoever computes with a model takes a place in one queue. Updates and rounds hold the device for long; between two
batches their holder looks whether anybody waits whose turn is before its own, lets them go first and queues again:

=============  ======================================  =====================================================
who            goes first for                          when it holds the device
=============  ======================================  =====================================================
a person       nobody                                  does one thing, such as a prediction
the updates    people                                  are one block a drawing; step aside between batches
a round        people and updates                      is hours long; steps aside between batches
=============  ======================================  =====================================================

A person waits for one batch at the most. Whoever steps aside goes on after those who waited at that moment: nobody who
comes later overtakes it, so that updates and rounds end, however busy the people are. A round may wait for one whole
block of updates, which is short.

Propagation needs no model: a person who propagates computes *beside* the holder, at once. Whoever holds the device then
ends the batch that it is in and begins no other before that person has the answer. Until then the two share the CPU, of
which a thread that calls :func:`give_way` takes little.
"""

import contextlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

# By how much a thread that computes behind is nicer than one that somebody waits for: it gets a tenth of a core that
# both want, and all of one that nobody else does.
NICER = 10
_this_thread = threading.local()

_Role = Literal["person", "updates", "round"]


@dataclass(eq=False)
class _Place:
    """A place in the queue. Nobody takes a place before one that is `fixed`."""

    role: _Role
    fixed: bool = False


def give_way() -> None:
    """Let the calling thread, and those that it starts, come after all others of the process, for good.

    Where a system knows no priority of a thread nothing changes.
    """
    # On Linux a thread has a priority of its own; elsewhere this would be the process's.
    if hasattr(os, "sched_setaffinity") and not getattr(_this_thread, "gives_way", False):
        _this_thread.gives_way = True
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, 0) + NICER)


class Device:
    """Who may compute. Holds no device itself."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._queue: list[_Place] = []
        self._holder: _Place | None = None
        self._beside: set[object] = set()
        self._one_round = threading.Lock()

    @property
    def waiting(self) -> int:
        """How many wait at this moment."""
        return len(self._queue)

    @contextmanager
    def interactive(self) -> Iterator[None]:
        """Hold the device for one interaction; updates and a round step aside after their batch."""
        yield from self._held(_Place("person"))

    @contextmanager
    def background(self) -> Iterator[None]:
        """Hold the device for the updates behind one drawing. The holder calls :meth:`between` after every batch."""
        yield from self._held(_Place("updates"))

    @contextmanager
    def federated(self) -> Iterator[None]:
        """Hold the device for a round; one after the other. The holder calls :meth:`between` after every batch."""
        with self._one_round:
            # A round that waits for its first batch is overtaken by nobody.
            yield from self._held(_Place("round", fixed=True))

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Compute without the model beside whoever holds the device; no batch begins before the block ends.

        The block must not ask for the device: who holds it may be waiting for the block.
        """
        mark = object()
        with self._changed:
            self._beside.add(mark)
        try:
            yield
        finally:
            with self._changed:
                self._beside.discard(mark)
                self._changed.notify_all()

    def between(self) -> None:
        """Let those who wait go first. Only the one who holds the device may call this."""
        holder = self._holder
        if holder is None or not (self._queue or self._beside):
            return
        with self._changed:
            present = set(self._beside)
            if present:
                self._changed.wait_for(lambda: not present & self._beside)
            people = [place for place in self._queue if place.role == "person"]
            others = [place for place in self._queue if place.role != "person"]
            before = people if holder.role == "updates" else [*people, *others]
            if not before:
                return
            after = [place for place in others if place not in before]
            for place in (*before, holder):
                place.fixed = True
            self._queue = [*before, holder, *after]
            self._holder = None
            self._changed.notify_all()
            self._wait(holder)

    def _held(self, place: _Place) -> Iterator[None]:
        with self._changed:
            position = len(self._queue)
            if place.role == "person":
                while position and self._queue[position - 1].role == "updates" and not self._queue[position - 1].fixed:
                    position -= 1
            self._queue.insert(position, place)
            self._wait(place)
        try:
            yield
        finally:
            with self._changed:
                self._holder = None
                self._changed.notify_all()

    def _wait(self, place: _Place) -> None:
        """Wait for the turn of a place in the queue, and take the device."""
        try:
            self._changed.wait_for(lambda: self._holder is None and self._queue[0] is place)
            self._holder = place
        finally:
            self._queue.remove(place)
            self._changed.notify_all()
