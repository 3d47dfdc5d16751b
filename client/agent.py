"""The agent: the one long-lived process of a site. It owns the device, the cases, the weights, and the gate.

It listens on a Unix socket in the site's home. The courier that Flower starts for every message asks it to train or to
evaluate; the SuperNode asks it which bundles may run and which answers may leave; the administrator's commands pause it
or ask how it is. Only processes of the same user, or of root, are answered.

Whatever comes in passes the gate, and whatever leaves does; both stand in the ledger. No other process writes there,
but for the commands by which an administrator decides on a bundle.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict

from wardround import __version__
from wardround.client import wire
from wardround.client.device import Device, give_way
from wardround.client.expected import catalogue_reference
from wardround.client.gate import codes
from wardround.client.gate.gate import Gate
from wardround.client.gate.policy import Policy
from wardround.client.home import Participation, SiteHome
from wardround.client.listener import Answer, Answering, Listener
from wardround.client.secure_round import SecureRound
from wardround.errors import GateRefused, PlanError, UsageError, WardroundError, for_log
from wardround.strategies.codecs.record import read_down
from wardround.strategies.contract import (
    ARRAYS,
    METRICS,
    NUM_EXAMPLES,
    Update,
    Weights,
    arrays_in,
    metrics_in,
    record_digest,
)
from wardround.strategies.plan import RoundPlan

log = logging.getLogger(__name__)

Kind = Literal["train", "evaluate"]
Between = Callable[[], None]

OK: dict[str, Any] = {"op": "ok"}
_ANYTHING = "internal"
"""The one code for whatever fails in a private round."""
SETTLE_S = 120.0
"""Seconds that a command waits for the running step to end."""
_BUNDLE_BYTES = 2**25
_HEADERS = 2**20


class LiveSite(Protocol):
    """What the agent needs of a site."""

    name: str

    def train(self, plan: RoundPlan, weights: Weights, between: Between) -> Update:
        """Learn for one round."""

    def evaluate(self, plan: RoundPlan, weights: Weights, between: Between) -> dict[str, float | list[float]]:
        """Score weights on held-back cases."""

    def status(self) -> dict[str, float]:
        """Counts that a coordinator may know."""


class Child(Protocol):
    """A process that the agent keeps alive, such as the SuperNode."""

    def start(self) -> None:
        """Start it. Returns at once."""

    def stop(self) -> None:
        """End it."""


@dataclass(frozen=True, eq=False)
class _Done:
    """The last answer of one kind, kept for a courier that lost it on its way."""

    question: str
    content: RecordDict
    cases: int


class Agent:
    """Serves one site's home until it is stopped.

    Parameters
    ----------
    home
        The site's home.
    site
        Its cases and its learning.
    gate
        What may come in and go out.
    uplink
        Makes the process that connects the site to its coordinator; it runs while the site takes part. None for none.
    reference
        Shapes and dtypes by name of the network that a plan names; by default of the catalogue.
    trusted
        Users that are answered; by default the one that runs the agent, and root.

    Attributes
    ----------
    device
        Who may compute; see :meth:`interactive`.
    """

    def __init__(
        self,
        home: SiteHome,
        site: LiveSite,
        gate: Gate,
        *,
        uplink: Callable[[], Child] | None = None,
        reference: Callable[[RoundPlan], Mapping[str, tuple[tuple[int, ...], str]]] | None = None,
        trusted: frozenset[int] | None = None,
    ) -> None:
        self.device = Device()
        self._home = home
        self._site = site
        self._gate = gate
        self._uplink = uplink
        self._child: Child | None = None
        self._reference = reference or catalogue_reference
        self._trusted = frozenset({os.getuid(), 0}) if trusted is None else trusted
        self._participation: Participation = home.participation
        self._stopping = threading.Event()
        self._state = threading.Condition()
        self._running: dict[str, Any] | None = None
        self._done: dict[str, _Done] = {}
        self._secure = SecureRound(site.name, home, gate)
        self._one_question = threading.Lock()
        self._one_decision = threading.Lock()
        self._listener: Listener | None = None
        self._operations: dict[str, Answering] = {
            "train": lambda header, arrays: self._learn("train", header, arrays),
            "evaluate": lambda header, arrays: self._learn("evaluate", header, arrays),
            "secure": self._exchange,
            "status": self._count,
            "admit-app": self._admit_app,
            "released": self._released,
            "note-error": self._note_error,
            "info": lambda header, arrays: ({**OK, **self.info()}, {}),
            "pause": lambda header, arrays: self._participate("paused"),
            "resume": lambda header, arrays: self._participate("active"),
            "leave": lambda header, arrays: self._participate("left"),
            "stop": self._stop,
        }

    def open(self) -> None:
        """Listen, and connect the site to its coordinator. Call only within `only_agent`."""
        self._listener = Listener(self._home.socket, self._answer, self._limit, self._trusted)
        self._connect()
        log.info("the agent of site %s listens", self._site.name)

    def wait(self) -> None:
        """Until somebody stops the agent."""
        while not self._stopping.wait(1.0):  # A signal is looked at between two waits.
            pass

    def stop(self) -> None:
        """Ask the agent to stop; the running step ends first. Returns at once."""
        self._stopping.set()

    def close(self) -> None:
        """End the uplink, wait for the running step, and listen no more."""
        self.stop()
        self._disconnect()
        with self._state:
            self._state.wait_for(lambda: self._running is None, timeout=SETTLE_S)
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    @contextmanager
    def interactive(self) -> Iterator[LiveSite]:
        """Hold the device for one interaction of a person: a round of the federation steps aside after its batch.

        The numbers of that round do not change by it, unless the block changes what the round learns from.
        """
        with self.device.interactive():
            yield self._site

    @property
    def working(self) -> Literal["idle", "train", "evaluate"]:
        """What the site does for the federation at this moment."""
        running = self._running
        return "idle" if running is None else running["kind"]

    def info(self) -> dict[str, Any]:
        """How the agent is, for the people at the site."""
        status = getattr(self._child, "status", None)
        return {
            "version": __version__,
            "pid": os.getpid(),
            "site": self._site.name,
            "participation": self._participation,
            "running": self._running,
            "waiting": self.device.waiting,
            "counts": self._site.status(),
            "uplink": None if self._child is None else {"pid": getattr(status, "pid", None)},
            "restarts": getattr(status, "restarts", 0),
        }

    def _limit(self) -> int:
        try:
            most = self._gate.policy.max_parameters_bytes
        except WardroundError:  # The gate refuses everything and says why, if it gets to see it.
            most = Policy.model_fields["max_parameters_bytes"].default
        return max(most, _BUNDLE_BYTES) + _HEADERS

    def _answer(self, header: dict[str, Any], arrays: dict[str, Array]) -> Answer:
        try:
            operation = self._operations.get(header["op"])
            if operation is None:
                raise GateRefused("nobody knows this question", "it is of another version", "", code="malformed")
            return operation(header, arrays)
        except GateRefused as error:
            log.warning("%s", error)
            return {"op": wire.ERROR, "code": codes.safe_code(error.code)}, {}
        except WardroundError as error:
            log.error("%s", error)
            return {"op": wire.ERROR, "code": codes.safe_code(type(error).__name__)}, {}
        except Exception as error:  # noqa: BLE001 - it is told to both sides
            log.error("the agent failed: %s", for_log(error))
            return {"op": wire.ERROR, "code": codes.safe_code(type(error).__name__)}, {}

    def _learn(self, kind: Kind, header: dict[str, Any], arrays: dict[str, Array]) -> Answer:
        plan = self._read_plan(kind, header)
        record = ArrayRecord(arrays)
        try:
            self._check()
            self._gate.admit(kind, plan, record, reference=self._expected)
            with self._one_question:
                if kind == "train" and plan.secure:
                    self._secure.check(plan)
                given = read_down(record, plan.codec_down)
                done = self._find(kind, plan, record, given)
                self._check()
                content = self._gate.withhold(kind, done.content)
                is_sealed = kind == "train" and plan.secure
                sealed = self._secure.offer(plan, done.question, content, given, done.cases) if is_sealed else None
                self._gate.release(kind, plan, content, given=given, cases=done.cases, sealed=sealed)
        except _Held as error:
            self._gate.note_error(kind, plan, error.code)
            raise
        except GateRefused:
            raise  # The gate wrote it down.
        except Exception as error:
            if plan.privacy == "record":
                # What failed may follow from what a case holds, and nobody was charged for telling.
                self._gate.note_error(kind, plan, _ANYTHING)
                log.error("%s", error if isinstance(error, WardroundError) else for_log(error))
                raise GateRefused(
                    "a private round failed", "the line before this one says why", "mend that", code=_ANYTHING
                ) from None
            self._gate.note_error(kind, plan, type(error).__name__)
            raise
        if sealed is not None:
            return OK, dict(arrays_in(sealed))
        arrays = dict(arrays_in(content)) if kind == "train" else {}
        return {**OK, "metrics": dict(metrics_in(content))}, arrays

    def _exchange(self, header: dict[str, Any], arrays: dict[str, Array]) -> Answer:
        """One of the exchanges that follow learning under secure aggregation."""
        plan = self._read_plan("train", header)
        record = ArrayRecord(arrays)
        try:
            self._check()
            self._gate.admit_message(plan, record)
            with self._one_question:
                content, cases = self._secure.answer(header["exchange"], plan, record)
                self._gate.release_message(plan, content, cases)
        except _Held as error:
            self._gate.note_error("train", plan, error.code)
            raise
        except GateRefused:
            raise  # It is written down.
        except Exception as error:
            self._gate.note_error("train", plan, type(error).__name__)
            raise
        return OK, dict(arrays_in(content))

    def _expected(self, plan: RoundPlan) -> Mapping[str, tuple[tuple[int, ...], str]] | None:
        """What the arrays of this plan's network look like; None for a network that is not known here."""
        try:
            return self._reference(plan)
        except UsageError:
            return None

    def _read_plan(self, kind: Kind, header: dict[str, Any]) -> RoundPlan:
        try:
            return RoundPlan.from_record(header["plan"])
        except (PlanError, KeyError, TypeError, AttributeError) as error:
            self._gate.note_error(kind, None, "plan-invalid")
            raise GateRefused(
                "the plan cannot be read", type(error).__name__, "both ends must be of the same version",
                code="plan-invalid",
            ) from error  # fmt: skip

    def _find(self, kind: Kind, plan: RoundPlan, record: ArrayRecord, given: Weights) -> _Done:
        """The answer to a question: the last one again if it is the same question, else a new one."""
        question = f"{plan.digest()}/{record_digest(record)}"
        done = self._done.get(kind)
        if done is None or done.question != question:
            self._done.pop(kind, None)  # One model less in memory while the next is learnt.
            with self._at_work(kind, plan):
                done = self._done[kind] = self._compute(kind, plan, given, question)
        return done

    def _compute(self, kind: Kind, plan: RoundPlan, given: Weights, question: str) -> _Done:
        if kind == "evaluate":
            scores = self._site.evaluate(plan, given, self._between)
            content = RecordDict({METRICS: MetricRecord(dict(scores))})
            return _Done(question, content, _number(scores[NUM_EXAMPLES]))
        update = self._site.train(plan, given, self._between)
        metrics = MetricRecord(dict(update.metrics))
        content = RecordDict({ARRAYS: update.record(), METRICS: metrics})
        return _Done(question, content, _number(update.metrics[NUM_EXAMPLES]))

    def _count(self, header: dict[str, Any], arrays: dict[str, Array]) -> Answer:
        self._gate.admit("query", None, None)
        content = RecordDict({METRICS: MetricRecord(dict(self._site.status()))})
        self._gate.release("query", None, content)
        return {**OK, "metrics": dict(metrics_in(content))}, {}

    @contextmanager
    def _at_work(self, kind: Kind, plan: RoundPlan) -> Iterator[None]:
        give_way()
        with self.device.federated():
            with self._state:
                self._check()  # It may have waited long for the device; whoever pauses now is told that nothing runs.
                self._running = {"kind": kind, "run": plan.run, "round": plan.round}
            try:
                yield
            finally:
                with self._state:
                    self._running = None
                    self._state.notify_all()

    def _between(self) -> None:
        """After every batch of a round: whoever waits for the device goes first, and a pause ends the round."""
        self._check()
        self.device.between()
        self._check()

    def _check(self) -> None:
        if self._stopping.is_set():
            raise _Held("the agent is stopping", code="stopped")
        if self._participation == "paused":
            raise _Held("the site is paused", code="paused")
        if self._participation == "left":
            raise _Held("the site has left", code="leaving")

    def _admit_app(self, header: dict[str, Any], arrays: dict[str, Array]) -> Answer:
        fab = arrays.get("fab")
        self._gate.admit_app(header["sha256"], None if fab is None else fab.data)
        return OK, {}

    def _released(self, header: dict[str, Any], arrays: dict[str, Array]) -> Answer:
        known = {name: header[name] for name in ("kind", "run", "round") if name in header}
        return {**OK, "released": self._gate.released(header["digest"], **known)}, {}

    def _note_error(self, header: dict[str, Any], arrays: dict[str, Array]) -> Answer:
        self._gate.note_error(header.get("kind"), None, header["code"])
        return OK, {}

    def _participate(self, how: Participation) -> Answer:
        """Write it down first, then act: killed in between, the agent comes back as it was told to be."""
        with self._one_decision:
            self._home.participate(how)
            self._participation = how
            if how == "left":
                self._disconnect()
            else:
                self._connect()
        settled = True
        if how != "active":
            with self._state:
                settled = self._state.wait_for(lambda: self._running is None, timeout=SETTLE_S)
        return {**OK, "settled": settled, **self.info()}, {}

    def _stop(self, header: dict[str, Any], arrays: dict[str, Array]) -> Answer:
        self.stop()
        return OK, {}

    def _connect(self) -> None:
        with self._state:
            if self._uplink is None or self._child is not None or self._participation == "left":
                return
            self._child = self._uplink()
            self._child.start()

    def _disconnect(self) -> None:
        with self._state:
            child, self._child = self._child, None
        if child is not None:
            child.stop()


class _Held(GateRefused):
    """The site does not take part at the moment."""

    def __init__(self, problem: str, *, code: str) -> None:
        super().__init__(problem, "", "", code=code)


def _number(value: float | list[float]) -> int:
    assert not isinstance(value, list)
    return int(value)
