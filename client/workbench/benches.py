"""The benches of a site: built when somebody comes, freed when too many others came since.

What a bench has learnt lies on disk after every case, and what was drawn at every stroke. Whoever comes back to a bench
that was freed finds it as on another day.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from wardround.client.workbench.bench import Bench
from wardround.client.workbench.news import News
from wardround.client.workbench.training import Training
from wardround.errors import UsageError

MOST = 8
"""So many benches are in memory; more only while that many people are at work on them at the same time."""


class _Place:
    """Where the bench of one person stands, or stood."""

    def __init__(self) -> None:
        self.news = News()
        self.bench: Bench | None = None
        self.training: Training | None = None
        self.left_open: str | None = None
        self.people = 0
        self.building = threading.Lock()


class Benches:
    """Every annotator's bench.

    Parameters
    ----------
    build
        Makes the bench of a user, or goes on with what it kept. May take its time: others are not held up.
    most
        How many are kept in memory.
    """

    def __init__(self, build: Callable[[str, News], Bench], most: int = MOST) -> None:
        self._build = build
        self._most = most
        self._lock = threading.Lock()
        self._places: OrderedDict[str, _Place] = OrderedDict()
        self._closed = False

    @contextmanager
    def of(self, user: str) -> Iterator[Bench]:
        """The bench of `user`, which is not freed before the block ends.

        Raises
        ------
        UsageError
            If the workbench is closing.
        """
        with self._lock:
            place = self._place(user)
            place.people += 1
            self._places.move_to_end(user)
        try:
            with place.building:
                bench = place.bench
                if bench is None:
                    bench = self._build(user, place.news)
                    bench.training = place.training
                    with self._lock:
                        place.bench = bench
                        late = self._closed
                    if late:
                        bench.close()
            yield bench
        finally:
            with self._lock:
                place.people -= 1
            self._free()

    def peek(self, user: str) -> Bench | None:
        """The bench of `user`, if it is in memory."""
        with self._lock:
            place = self._places.get(user)
            return None if place is None else place.bench

    def news(self, user: str) -> News:
        """What `user` is told; needs no bench."""
        with self._lock:
            return self._place(user).news

    def training(self, user: str) -> Training | None:
        """The last rehearsal that `user` asked for, None before the first."""
        with self._lock:
            place = self._places.get(user)
            if place is None:
                return None
            return place.training if place.bench is None else place.bench.training

    def left_open(self, user: str) -> str | None:
        """The case that lay on the bench when it was freed, until :meth:`forget_left_open`."""
        with self._lock:
            return self._place(user).left_open

    def forget_left_open(self, user: str) -> None:
        """Another case was laid on the bench, or none shall be."""
        with self._lock:
            self._place(user).left_open = None

    def close(self) -> None:
        """End all of them."""
        with self._lock:
            self._closed = True
            benches = [place.bench for place in self._places.values() if place.bench is not None]
        for bench in benches:
            bench.close()

    def _place(self, user: str) -> _Place:
        if self._closed:
            raise UsageError("the workbench is closing", "the site's agent is being stopped", "come back later")
        return self._places.setdefault(user, _Place())

    def _free(self) -> None:
        """End benches that are too many: of those nobody is at, the ones with an empty desk first, then by last use."""
        freed = []
        with self._lock:
            if self._closed:
                return
            built = [place for place in self._places.values() if place.bench is not None]
            idle = [place for place in built if not place.people and place.bench is not None and place.bench.is_idle]
            idle.sort(key=lambda place: place.bench is not None and place.bench.desk is not None)
            for place in idle[: max(0, len(built) - self._most)]:
                bench = place.bench
                assert bench is not None
                place.bench, place.training = None, bench.training
                place.left_open = None if bench.desk is None else bench.desk.case_id
                freed.append(bench)
        for bench in freed:
            bench.close(wait_s=0)  # Nothing runs but what nobody asked for, and that writes nothing.
