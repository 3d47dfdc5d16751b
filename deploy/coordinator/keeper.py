"""Keeps runs going: one after the other, again after a fault, and not a step after the operator said stop.

Flower runs an app once. When the SuperLink is down for long, or the process of the ServerApp is killed, that Flower run
is over; the journal is not. The keeper sees to it that a Flower run works on the oldest run that is wanted, until the
journal is complete or the ServerApp itself says why it cannot go on.

What was started is written down after it was started: in between the keeper may be killed. Before it starts anything
it therefore looks whether a Flower run works on that folder already.
"""

import datetime
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from wardround.deploy.coordinator.control import FlowerRun
from wardround.deploy.coordinator.runs import OVER, Phase, Run, all_runs
from wardround.errors import Interrupted, StorageError
from wardround.server.home import CoordinatorHome

log = logging.getLogger(__name__)

MOST_FRUITLESS = 10
"""So many attempts in a row that close no round end a run as failed."""


PASSING = (Interrupted.__name__, StorageError.__name__)
"""Errors of a ServerApp that need not come back: it was told to stop, and is wanted again; a disk was full."""


class Orders(Protocol):
    """What the keeper needs of the SuperLink; see :class:`wardround.deploy.coordinator.control.Control`."""

    def start_run(self, bundle: bytes, folder: str) -> int:
        """Start an app."""

    def stop_run(self, run: int) -> None:
        """Stop a run."""

    def run(self, run: int) -> FlowerRun | None:
        """One run."""

    def runs(self) -> list[FlowerRun]:
        """The latest runs."""


@dataclass(frozen=True)
class Patience:
    """How long the keeper waits.

    Parameters
    ----------
    first, longest
        Seconds before the second attempt after a fault, and at most between two; doubled in between.
    abandoned
        Seconds that a Flower run may be running with nobody holding its journal, where somebody held it before.
    """

    first: float = 1.0
    longest: float = 60.0
    abandoned: float = 5.0


class RunKeeper:
    """Keeps the runs in a coordinator's home going. Call :meth:`step` again and again.

    Parameters
    ----------
    home
        Where the runs lie.
    control
        The SuperLink.
    bundle
        The app that is started.
    patience
        How long to wait.
    now
        UTC.
    clock
        Seconds that never go back.
    """

    def __init__(
        self,
        home: CoordinatorHome,
        control: Orders,
        bundle: bytes,
        *,
        patience: Patience | None = None,
        now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._home = home
        self._control = control
        self._bundle = bundle
        self._patience = patience or Patience()
        self._now = now
        self._clock = clock
        self._not_before: dict[str, float] = {}
        self._held: dict[int, float] = {}
        self._told: set[str] = set()

    def step(self) -> None:
        """Look at every run once and do what is to be done now.

        Raises
        ------
        ConnectionFailed, AuthRefused
            If the SuperLink cannot be asked; nothing has changed, and the next step tries again.
        StorageError
            If the files of a run that is under way cannot be read or written.
        """
        busy = False
        for run in all_runs(self._home, self._tell):
            # One after the other: a site works on one message at a time, and its own stream of cases has one order.
            # A run that waits for its next attempt keeps its turn.
            busy = self._advance(run, may_start=not busy) in ("queued", "running") or busy

    def _tell(self, error: StorageError) -> None:
        """Of a run that is left out until it is repaired: once, and not every second."""
        if str(error) not in self._told:
            self._told.add(str(error))
            log.error("%s", error)

    def _advance(self, run: Run, *, may_start: bool) -> Phase:
        run = self._heed(run)
        if run.state.phase == "running":
            run = self._watch(run)
        if run.state.phase == "queued" and may_start and self._clock() >= self._not_before.get(run.name, 0.0):
            run = self._start(run)
        return run.state.phase

    def _heed(self, run: Run) -> Run:
        """Take over a wish of the operator that is new."""
        request, state = run.request, run.state
        if request.wish == state.wish:
            return run
        if request.wanted:
            self._not_before.pop(run.name, None)
            # A Flower run that still works on it is taken over again by _start.
            phase = "running" if state.phase == "running" else "queued"
            return run.save_state(self._now(), wish=request.wish, phase=phase, fruitless=0, reason="")
        if state.phase in OVER:
            return run.save_state(self._now(), wish=request.wish)
        if state.flower_run is not None and state.phase == "running":
            self._control.stop_run(state.flower_run)
            found = self._control.run(state.flower_run)
            if (found is not None and not found.finished) or run.at_work:
                return run
        return self._end(run, "stopped", "the operator stopped it", wish=request.wish)

    def _watch(self, run: Run) -> Run:
        """See what has become of the Flower run that works on `run`."""
        if not run.request.wanted:
            return run
        number = run.state.flower_run
        found = self._control.run(number) if number is not None else None
        if found is not None and not found.finished:
            return self._mind(run, found)
        if run.at_work:
            # Flower has given it up, but the process still closes its last round; it will notice.
            return run
        if run.complete:
            return self._end(run, "finished", "")
        if (error := run.own_error()) is not None and error.kind not in PASSING:
            return self._end(run, "failed", error.problem)
        details = "the SuperLink does not know it any more" if found is None else found.details
        return self._try_again(run, details if error is None else error.problem)

    def _mind(self, run: Run, found: FlowerRun) -> Run:
        """A ServerApp that was killed is noticed by Flower after a minute; whoever looks at the journal sees it now."""
        if run.at_work:
            self._held[found.id] = self._clock()
        seen = self._held.get(found.id)
        if seen is not None and self._clock() - seen > self._patience.abandoned and not run.complete:
            if run.own_error() is None:
                log.warning("nobody works on run %s any more: it is taken up again", run.name)
            self._control.stop_run(found.id)
            self._held.pop(found.id)
        return run

    def _start(self, run: Run) -> Run:
        if run.at_work:
            return run
        if run.complete:
            return self._end(run, "finished", "")
        folder = str(run.folder)
        number = next(
            (found.id for found in self._control.runs() if found.folder == folder and not found.finished), None
        )
        if number is None:
            run.forget_error()
            number = self._control.start_run(self._bundle, folder)
        log.info("run %s is Flower run %d", run.name, number)
        return run.save_state(
            self._now(),
            phase="running",
            flower_run=number,
            attempts=run.state.attempts + 1,
            closed=len(run.rounds()),
            reason="",
        )

    def _try_again(self, run: Run, details: str) -> Run:
        fruitless = 0 if len(run.rounds()) > run.state.closed else run.state.fruitless + 1
        if fruitless >= MOST_FRUITLESS:
            return self._end(run, "failed", f"it ended {fruitless} times before it closed a round: {details}".strip())
        wait = min(self._patience.longest, self._patience.first * 2 ** max(0, fruitless - 1))
        self._not_before[run.name] = self._clock() + wait
        log.warning("run %s ended by a fault (%s): again in %.0f s", run.name, details or "no reason given", wait)
        return run.save_state(
            self._now(), phase="queued", flower_run=None, fruitless=fruitless, reason=details or "it ended by a fault"
        )

    def _end(self, run: Run, phase: Phase, reason: str, **changes: int) -> Run:
        log.info("run %s is %s%s", run.name, phase, f": {reason}" if reason else "")
        return run.save_state(self._now(), phase=phase, flower_run=None, reason=reason, **changes)
