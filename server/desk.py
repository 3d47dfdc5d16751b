"""What training and evaluating share: who is there, what a site is sent, and what its answer is worth."""

import logging
import random
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from wardround.errors import PlanError
from wardround.server.exchange import NOT_DELIVERED, Answer, Pace, TooFew, check, wait_for_sites
from wardround.server.journal import Journal, SiteReport
from wardround.server.settings import LoopSettings
from wardround.strategies.codecs.record import PLAIN
from wardround.strategies.contract import Metrics, Weights, arrays_in, digest, metrics_in, record_digest
from wardround.strategies.plan import RoundPlan
from wardround.strategies.validation import Kind, RefusedReply, absence, check_origin, check_reply, is_lost
from wardround.strategies.weighting import BY_EXAMPLES, Weighting

logger = logging.getLogger(__name__)

# A message must outlive the wait for its reply, however far apart the clocks are.
_TTL_MARGIN_S = 600.0
_TYPES = {"train": MessageType.TRAIN, "evaluate": MessageType.EVALUATE}

Result = TypeVar("Result")

EventKind = Literal["round-start", "reply", "late", "refused", "retry", "round-end", "evaluate"]


@dataclass(frozen=True)
class Event:
    """Something that a person who watches the run may want to see.

    Parameters
    ----------
    kind
        ``round-start``, ``round-end``; ``reply`` for a site's training, ``late`` for one that was asked for in an
        earlier round, ``evaluate`` for its scores; ``refused`` for any of them, also where nothing came; ``retry``
        where a round could not be closed and is tried again.
    round, rounds
        Where the run is.
    site
        Its name; empty for ``round-start``, ``round-end`` and ``retry``.
    metrics
        What the site sent; ``sites`` for ``round-start``; ``sites``, ``refused``, ``missing`` and ``seconds`` for
        ``round-end``; ``left`` for ``retry``: attempts that are left.
    reason
        Code of the check that refused a reply, or why none came.
    """

    kind: EventKind
    round: int
    rounds: int
    site: str = ""
    metrics: Metrics = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True)
class Refusal:
    """Why an answer is of no use.

    Parameters
    ----------
    code
        For the journal.
    absent
        The site did not take part, rather than answer wrongly.
    blameless
        It could not help it.
    lost
        It got lost on the way: asked again, the site answers.
    """

    code: str
    absent: bool
    blameless: bool
    lost: bool = False


@dataclass(frozen=True)
class Desk:
    """One run, and what its rounds are made with. See :func:`wardround.server.rounds.run_rounds`."""

    grid: Grid
    strategy: Strategy
    plans: Callable[[int], RoundPlan]
    journal: Journal
    settings: LoopSettings
    site_name: Callable[[int], str]
    on_event: Callable[[Event], None]
    stop: Callable[[], bool]
    pace: Pace
    weighting: Weighting = BY_EXAMPLES

    def plan(self, number: int) -> RoundPlan:
        """The plan of a round.

        Raises
        ------
        PlanError
            If it is the plan of another round.
        """
        plan = self.plans(number)
        if (plan.round, plan.rounds) != (number, self.settings.rounds):
            raise PlanError(
                f"the plan of round {number} of {self.settings.rounds} says round {plan.round} of {plan.rounds}",
                "plans and loop were set up differently",
                "give both the same number of rounds",
            )
        return plan

    def roster(self, quorum: int, without: Container[str], answered: Container[str] = ()) -> dict[int, str]:
        """See :func:`wardround.server.exchange.wait_for_sites`."""
        return wait_for_sites(
            self.grid,
            quorum,
            self.settings.deadline_s,
            self.site_name,
            self.pace,
            self.stop,
            without=without,
            answered=answered,
        )

    def message(self, node: int, number: int, kind: Kind, content: RecordDict, action: str = "") -> Message:
        """A message to one site; `action` says which of several of its kind."""
        settings = self.settings
        rounds = 1 + (settings.max_staleness if kind == "train" and settings.late == "use" else 0)
        ttl = rounds * settings.deadline_s + settings.retries * settings.retry_wait_s + _TTL_MARGIN_S
        message_type = f"{_TYPES[kind]}.{action}" if action else _TYPES[kind]
        return Message(content, node, message_type, ttl=ttl, group_id=str(number))

    def refusal(  # noqa: PLR0917
        self,
        answer: Answer,
        site: str,
        number: int,
        kind: Kind,
        weights: Weights,
        formats: frozenset[str] = PLAIN,
    ) -> Refusal | None:
        """Judge an answer; None if it keeps the contract.

        Parameters
        ----------
        answer
            What became of a message.
        site
            To whom it went.
        number
            The round in which it was sent.
        kind
            What was asked for.
        weights
            Names, shapes, dtypes, and where a change is measured from.
        formats
            Encodings that its arrays may have.
        """
        limits = replace(self.settings.limits, formats=formats)
        return self.judged(answer, site, number, _TYPES[kind], lambda reply: check_reply(reply, weights, limits, kind))

    def judged(
        self, answer: Answer, site: str, number: int, message_type: str, checking: Callable[[Message], None]
    ) -> Refusal | None:
        """Judge an answer by a check of its reply, which raises `RefusedReply`; None if it is good."""
        try:
            if answer.reply is None:
                if answer.reason == "undecodable":
                    raise RefusedReply("undecodable", "the reply is no message")
                logger.warning("round %d: nothing from site %s (%s)", number, site, answer.reason)
                return Refusal(answer.reason, absent=True, blameless=True, lost=answer.reason == NOT_DELIVERED)
            reason = absence(answer.reply)
            if reason:
                logger.warning("round %d: site %s does not take part (%s)", number, site, reason)
                return Refusal(reason, absent=True, blameless=True, lost=is_lost(answer.reply))
            check_origin(answer.reply, str(number), message_type)
            checking(answer.reply)
        except RefusedReply as error:
            logger.warning("round %d: refused the reply of site %s (%s): %s", number, site, error.code, error)
            lost = answer.reply is not None and is_lost(answer.reply)
            return Refusal(error.site_code or error.code, absent=False, blameless=error.blameless, lost=lost)
        return None

    def tell(
        self, kind: EventKind, number: int, site: str = "", metrics: Metrics | None = None, reason: str = ""
    ) -> None:
        """Tell whoever watches."""
        self.on_event(Event(kind, number, self.settings.rounds, site, metrics or {}, reason))

    def persist(self, number: int, attempt: Callable[[], Result]) -> Result:
        """Make an attempt at a round, again as often as the settings say where too few sites are there or answer.

        Raises
        ------
        TooFew
            At the last attempt.
        """
        left = self.settings.retries
        while True:
            try:
                return attempt()
            except TooFew as error:
                if not left:
                    raise
                logger.warning("round %d is tried again in %g s: %s", number, self.settings.retry_wait_s, error)
                self.tell("retry", number, metrics={"left": float(left)}, reason="too-few")
                left -= 1
                self.rest(self.settings.retry_wait_s)

    def rest(self, seconds: float) -> None:
        """Let time pass between two attempts."""
        for _ in self.pace.pauses(self.pace.now() + seconds, self.stop):
            check(self.stop)


def report(content: RecordDict, bytes_down: int, seconds: float) -> SiteReport:
    """What the journal says about a checked reply."""
    return SiteReport(
        plain(metrics_in(content)),
        bytes_down,
        payload(content),
        seconds,
        digest(content),
        record_digest(arrays_in(content)),
    )


def plain(record: MetricRecord) -> dict[str, float | list[float]]:
    """Metrics as numbers of one kind."""
    return {
        name: [float(item) for item in value] if isinstance(value, list) else float(value)
        for name, value in record.items()
    }


def payload(content: RecordDict) -> int:
    """Bytes of a message's content, without what the wire adds."""
    size = 0
    for record in content.values():
        match record:
            case ArrayRecord():
                size += record.count_bytes()
            case ConfigRecord() | MetricRecord():
                size += len(record.deflate())
    return size


def reasons(*tables: Mapping[str, str]) -> str:
    """Sites with what was wrong, for a message."""
    return ", ".join(f"{site}: {why}" for table in tables for site, why in table.items())


@contextmanager
def seeded(plan: RoundPlan) -> Iterator[None]:
    """Flower samples sites by the global random state: fix it by the plan, and give it back as it was."""
    state = random.getstate()
    random.seed(f"{plan.seed}/{plan.round}")
    try:
        yield
    finally:
        random.setstate(state)
