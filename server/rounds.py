"""The round loop: ask the sites, check what they answer, combine it, write it down, and again.

A round is closed or it is not. It is closed when at least a quorum of replies kept the contract, the strategy combined
them into finite weights, and the journal holds the result; until then nothing has changed, and a run that is started
again goes on behind the last closed round with the same numbers as if it had never stopped.
"""

import hashlib
import logging
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from wardround.errors import PlanError, RoundError
from wardround.server.exchange import Pace, RosterGrid, check, exchange, wait_for_sites
from wardround.server.journal import Evaluation, Journal, RoundRecord, SiteReport
from wardround.strategies.catalogue import describe, forget_arrays, load_strategy_state, strategy_state
from wardround.strategies.combine import combine, conform
from wardround.strategies.contract import ARRAYS, METRICS, NUM_EXAMPLES, PLAN, Metrics, Weights, weights_to_record
from wardround.strategies.plan import RoundPlan
from wardround.strategies.validation import Kind, RefusedReply, ReplyLimits, check_reply

logger = logging.getLogger(__name__)

# A message must outlive the wait for its reply, however far apart the clocks are.
_TTL_MARGIN_S = 600.0

_NO_CASES = "no-cases"


@dataclass(frozen=True)
class LoopSettings:
    """How the loop runs.

    Parameters
    ----------
    rounds
        Of the run; every plan must say the same.
    quorum
        So many sites must be online to begin a round, and so many good replies must arrive to close it.
    deadline_s
        Seconds to wait for the quorum, and again for the replies.
    evaluate_every
        Evaluate after every so many rounds; 0 means only after the last, which is always evaluated.
    limits
        How far a reply may go.
    """

    rounds: int
    quorum: int = 1
    deadline_s: float = 3600.0
    evaluate_every: int = 0
    limits: ReplyLimits = field(default_factory=ReplyLimits)

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.quorum < 1 or self.evaluate_every < 0 or not self.deadline_s > 0:
            raise PlanError(
                "the round loop cannot run like this",
                f"rounds={self.rounds}, quorum={self.quorum}, deadline-s={self.deadline_s}",
                "rounds, quorum and deadline must be positive, evaluate-every at least 0",
            )

    def evaluates(self, round: int) -> bool:
        """Whether the sites evaluate the weights after this round."""
        return round == self.rounds or (self.evaluate_every > 0 and round % self.evaluate_every == 0)


@dataclass(frozen=True)
class Event:
    """Something that a person who watches the run may want to see.

    Parameters
    ----------
    kind
        ``round-start``, ``round-end``; ``reply`` for a site's training, ``evaluate`` for its scores; ``refused`` for
        either, also where nothing came.
    round, rounds
        Where the run is.
    site
        Its name; empty for ``round-start`` and ``round-end``.
    metrics
        What the site sent; ``sites`` for ``round-start``; ``sites``, ``refused``, ``missing`` and ``seconds`` for
        ``round-end``.
    reason
        Code of the check that refused a reply, or why none came.
    """

    kind: Literal["round-start", "reply", "refused", "round-end", "evaluate"]
    round: int
    rounds: int
    site: str = ""
    metrics: Metrics = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True, eq=False)
class RunResult:
    """What a finished run leaves.

    Parameters
    ----------
    weights
        The global weights after the last round.
    rounds
        All closed rounds, those before a resume included.
    evaluation
        The scalars of every site on the last weights.
    """

    weights: Weights
    rounds: list[RoundRecord]
    evaluation: Mapping[str, Metrics]


def run_rounds(  # noqa: PLR0917
    grid: Grid,
    strategy: Strategy,
    plans: Callable[[int], RoundPlan],
    initial: Weights,
    journal: Journal,
    settings: LoopSettings,
    *,
    site_name: Callable[[int], str] = str,
    on_event: Callable[[Event], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
    pace: Pace | None = None,
) -> RunResult:
    """Run a federation to its last round, or go on with one that the journal has begun.

    Parameters
    ----------
    grid
        Any Flower grid.
    strategy
        Fresh, as :func:`wardround.strategies.catalogue.make_strategy` makes it. Its ``configure_train`` and
        ``aggregate_train`` are used; sites always evaluate all together.
    plans
        The plan of round 1 … ``settings.rounds``. Called again with the same number it must give the same plan.
    initial
        Weights before the first round; they fix names, shapes and dtypes for the whole run.
    journal
        Empty, or that of the run to go on with.
    settings
        See :class:`LoopSettings`.
    site_name
        Name of the site behind a node id. Sites are summed in the order of their names.
    on_event
        Told of everything that happens, in order.
    stop
        Looked at between any two messages; when it says so, the run ends with `Interrupted`.
    pace
        How to wait; for tests.

    Returns
    -------
    RunResult
        The same bits whether the run was stopped in between or not, if the sites' replies are.

    Raises
    ------
    RoundError
        If too few sites came, or too few replies could be used; the journal is then as after the last closed round.
    PlanError
        If the run was begun with other settings, or the plans contradict the settings.
    StorageError
        If the journal cannot be written or read.
    Interrupted
        If `stop` said so.
    """
    first = _plan(plans, 1, settings)
    journal.begin(
        {
            "plan": first.model_dump(mode="json", exclude={"round", "deadline_s"}),
            "strategy": describe(strategy),
            "initial-weights": _digest(initial),
        }
    )
    tell = on_event or (lambda event: None)
    loop = _Loop(grid, strategy, plans, journal, settings, site_name, tell, stop, pace or Pace())
    records = journal.rounds()
    weights = {name: np.array(array) for name, array in initial.items()}
    if records:
        weights = conform(journal.weights(records[-1].round), weights)
        load_strategy_state(strategy, journal.strategy_state(records[-1].round))
        if records[-1].evaluation is None and settings.evaluates(records[-1].round):
            records[-1] = loop.evaluate(records[-1], weights)
    for number in range(len(records) + 1, settings.rounds + 1):
        check(stop)
        record, weights = loop.train(number, weights)
        records.append(loop.evaluate(record, weights) if settings.evaluates(number) else record)
    last = records[-1].evaluation
    return RunResult(weights, records, last.sites if last else {})


@dataclass(frozen=True)
class _Loop:
    grid: Grid
    strategy: Strategy
    plans: Callable[[int], RoundPlan]
    journal: Journal
    settings: LoopSettings
    site_name: Callable[[int], str]
    on_event: Callable[[Event], None]
    stop: Callable[[], bool]
    pace: Pace

    def train(self, number: int, weights: Weights) -> tuple[RoundRecord, Weights]:
        """Close one round, or raise and leave everything as it was."""
        plan = _plan(self.plans, number, self.settings)
        began = self.pace.now()
        roster = self._roster(self.settings.quorum)
        self._tell("round-start", number, metrics={"sites": float(len(roster))})
        asked = self.pace.now()
        record = weights_to_record(weights)
        config = plan.to_record()
        forget_arrays(self.strategy)
        with _seeded(plan):
            view = RosterGrid(self.grid, roster)
            chosen = {
                message.metadata.dst_node_id: message.content
                for message in self.strategy.configure_train(number, record, config, view)
            }
        contents = {node: chosen[node] for node in roster if node in chosen}
        outcome = self._ask(number, contents, roster, weights, "train")
        answered = self.pace.now()
        if len(outcome.replies) < self.settings.quorum:
            raise RoundError(
                f"round {number} was not closed: {len(outcome.replies)} of {len(contents)} replies can be used, "
                f"{self.settings.quorum} are needed",
                ", ".join(f"{site}: {why}" for site, why in {**outcome.refused, **outcome.missing}.items()),
                "look into the logs of these sites; then start the run again with the same folder",
            )
        combined = combine(self.strategy, number, outcome.replies.values(), weights)
        closed = RoundRecord(
            round=number,
            plan=plan.digest(),
            sites=outcome.reports,
            refused=outcome.refused,
            missing=outcome.missing,
            seconds={"roster": asked - began, "sites": answered - asked, "aggregate": self.pace.now() - answered},
        )
        self.journal.write(closed, combined, strategy_state(self.strategy))
        counts = {"sites": len(closed.sites), "refused": len(closed.refused), "missing": len(closed.missing)}
        self._tell("round-end", number, metrics={**counts, "seconds": self.pace.now() - began})
        return closed, combined

    def evaluate(self, record: RoundRecord, weights: Weights) -> RoundRecord:
        """Let the sites score the weights after a closed round; who was refused in it is not asked."""
        number = record.round
        plan = _plan(self.plans, number, self.settings)
        roster = {node: site for node, site in self._roster(1).items() if site not in record.refused}
        content = RecordDict({ARRAYS: weights_to_record(weights), PLAN: plan.to_record()})
        outcome = self._ask(number, dict.fromkeys(roster, content), roster, weights, "evaluate")
        sites = {site: report.metrics for site, report in outcome.reports.items() if report.metrics[NUM_EXAMPLES]}
        missing = {**outcome.missing, **{site: _NO_CASES for site in outcome.reports if site not in sites}}
        if not sites and set(missing.values()) != {_NO_CASES}:
            reasons = ", ".join(f"{site}: {why}" for site, why in {**outcome.refused, **missing}.items())
            if number == self.settings.rounds:
                raise RoundError(
                    f"no site could evaluate round {number}",
                    reasons or "none was left to ask",
                    "look into the sites' logs; start the run again with the same folder to evaluate only",
                )
            logger.warning("no site could evaluate round %d: %s", number, reasons)
            return record
        evaluation = Evaluation(sites, outcome.refused, missing)
        self.journal.write_evaluation(number, evaluation)
        return replace(record, evaluation=evaluation)

    def _roster(self, quorum: int) -> dict[int, str]:
        return wait_for_sites(self.grid, quorum, self.settings.deadline_s, self.site_name, self.pace, self.stop)

    def _ask(
        self, number: int, contents: Mapping[int, RecordDict], roster: Mapping[int, str], weights: Weights, kind: Kind
    ) -> "_Outcome":
        """Send every node its content; sort the replies into those that keep the contract and those that do not."""
        messages = [
            Message(
                content,
                node,
                MessageType.TRAIN if kind == "train" else MessageType.EVALUATE,
                ttl=self.settings.deadline_s + _TTL_MARGIN_S,
                group_id=str(number),
            )
            for node, content in contents.items()
        ]
        outcome = _Outcome()
        for answer in exchange(self.grid, messages, self.settings.deadline_s, self.pace, self.stop):
            site = roster[answer.node]
            try:
                if answer.reply is None:
                    if answer.reason == "undecodable":
                        raise RefusedReply("undecodable", "the reply is no message")
                    outcome.missing[site] = answer.reason
                    logger.warning("round %d: nothing from site %s (%s)", number, site, answer.reason)
                    self._tell("refused", number, site, reason=answer.reason)
                    continue
                check_reply(answer.reply, weights, self.settings.limits, kind)
            except RefusedReply as error:
                outcome.refused[site] = error.code
                logger.warning("round %d: refused the reply of site %s (%s): %s", number, site, error.code, error)
                self._tell("refused", number, site, reason=error.code)
                continue
            metrics = _plain(answer.reply.content.metric_records[METRICS])
            outcome.replies[site] = answer.reply
            outcome.reports[site] = SiteReport(
                metrics, _payload(contents[answer.node]), _payload(answer.reply.content), answer.seconds
            )
            self._tell("reply" if kind == "train" else "evaluate", number, site, metrics)
        return outcome.in_order()

    def _tell(
        self,
        kind: Literal["round-start", "reply", "refused", "round-end", "evaluate"],
        number: int,
        site: str = "",
        metrics: Metrics | None = None,
        reason: str = "",
    ) -> None:
        self.on_event(Event(kind, number, self.settings.rounds, site, metrics or {}, reason))


@dataclass
class _Outcome:
    replies: dict[str, Message] = field(default_factory=dict)
    reports: dict[str, SiteReport] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def in_order(self) -> "_Outcome":
        """The same in the order of the sites' names: floating-point sums depend on the order of their terms."""
        return _Outcome(
            dict(sorted(self.replies.items())),
            dict(sorted(self.reports.items())),
            dict(sorted(self.refused.items())),
            dict(sorted(self.missing.items())),
        )


def _plan(plans: Callable[[int], RoundPlan], number: int, settings: LoopSettings) -> RoundPlan:
    plan = plans(number)
    if (plan.round, plan.rounds) != (number, settings.rounds):
        raise PlanError(
            f"the plan of round {number} of {settings.rounds} says round {plan.round} of {plan.rounds}",
            "plans and loop were set up differently",
            "give both the same number of rounds",
        )
    return plan


def _plain(record: MetricRecord) -> dict[str, float | list[float]]:
    return {
        name: [float(item) for item in value] if isinstance(value, list) else float(value)
        for name, value in record.items()
    }


def _payload(content: RecordDict) -> int:
    """Bytes of a message's content, without what the wire adds."""
    size = 0
    for record in content.values():
        match record:
            case ArrayRecord():
                size += record.count_bytes()
            case ConfigRecord() | MetricRecord():
                size += len(record.deflate())
    return size


def _digest(weights: Weights) -> str:
    digest = hashlib.sha256()
    for name, array in weights.items():
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


@contextmanager
def _seeded(plan: RoundPlan) -> Iterator[None]:
    """Flower samples sites by the global random state: fix it by the plan, and give it back as it was."""
    state = random.getstate()
    random.seed(f"{plan.seed}/{plan.round}")
    try:
        yield
    finally:
        random.setstate(state)
