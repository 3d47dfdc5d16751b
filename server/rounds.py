"""The round loop: ask the sites, check what they answer, combine it, write it down, and again.

A round is closed or it is not. It is closed when at least a quorum of replies kept the contract, the strategy combined
them into finite weights, and the journal holds the result. Until then the journal holds nothing of it but the updates
that were accepted, each since the moment it was. A run that is started again goes on with the open round, asks only
those whose update it does not have, and ends with the same numbers as if it had never stopped.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from wardround.server.buffered import settings_for, train_buffered
from wardround.server.desk import Desk, Event
from wardround.server.evaluation import evaluate
from wardround.server.exchange import Pace, check
from wardround.server.journal import Journal, RoundRecord
from wardround.server.settings import LoopSettings
from wardround.server.standing import quarantined
from wardround.server.training import Memory, train, weights_digest
from wardround.strategies.buffered import FedBuff
from wardround.strategies.catalogue import describe, load_strategy_state
from wardround.strategies.combine import conform
from wardround.strategies.contract import Metrics, Weights
from wardround.strategies.fit import check_asked
from wardround.strategies.plan import RoundPlan
from wardround.strategies.secure.fit import check_summable
from wardround.strategies.weighting import BY_EXAMPLES, Weighting, check_weighable

__all__ = ["Event", "LoopSettings", "RunResult", "run_rounds"]


# Fields of the plan that are not those of the run.
_MAY_DIFFER = {"round", "deadline_s"}


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
    weighting: Weighting = BY_EXAMPLES,
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
    weighting
        How much each site counts.

    Returns
    -------
    RunResult
        The same bits whether the run was stopped in between or not, if the sites' replies are.

    Raises
    ------
    RoundError
        If too few sites came, or too few replies could be used, at every attempt; the journal then holds the closed
        rounds, and the updates that were accepted in the open one.
    PlanError
        If the run was begun with other settings, or the plans contradict the settings or the strategy. A field that
        plans did not have when the run was begun must have its default; one that is not known here is an error.
    UsageError
        If the strategy does not look at how much a site counts, and a weighting was asked for; or takes no late
        replies, and these are to be used.
    StorageError
        If the journal cannot be written or read.
    Interrupted
        If `stop` said so.
    """
    if isinstance(strategy, FedBuff):
        settings = settings_for(strategy, settings)
    desk = Desk(
        grid,
        strategy,
        plans,
        journal,
        settings,
        site_name,
        on_event or (lambda event: None),
        stop,
        pace or Pace(),
        weighting,
    )
    check_weighable(strategy, weighting, desk.plan(1))
    check_asked(strategy, desk.plan(1), settings.late)
    check_summable(desk.plan(1), strategy, weighting, settings.late)
    journal.begin(
        {
            "plan": desk.plan(1).model_dump(mode="json", exclude=_MAY_DIFFER),
            "strategy": describe(strategy),
            "initial-weights": weights_digest(initial),
            # Not a word of it where nobody asked: runs of earlier versions go on.
            **({} if weighting.plain else {"weighting": weighting.describe()}),
        },
        _as_now,
    )
    memory = Memory()
    records = journal.rounds()
    for record in records:
        memory.learn(record)
    weights = initial
    # A model less in memory, if the caller lets go of it as well.
    del initial
    if records:
        weights = conform(journal.weights(records[-1].round), weights)
        load_strategy_state(strategy, journal.strategy_state(records[-1].round))
        if records[-1].evaluation is None:
            records[-1] = _evaluate(desk, records[-1], weights, memory)
    for number in range(len(records) + 1, settings.rounds + 1):
        check(stop)
        close = train_buffered if isinstance(strategy, FedBuff) else train
        record, weights = close(desk, number, weights, memory)
        records.append(_evaluate(desk, record, weights, memory))
    last = records[-1].evaluation
    return RunResult(weights, records, last.sites if last else {})


def _as_now(stored: Mapping[str, object]) -> dict[str, object]:
    """Settings of a run that an earlier version may have begun: fields that plans have got since have their default."""
    plan = {name.removeprefix("plan."): value for name, value in stored.items() if name.startswith("plan.")}
    read = RoundPlan.model_validate({**plan, "round": 0}).model_dump(mode="json", exclude=_MAY_DIFFER)
    others = {name: value for name, value in stored.items() if not name.startswith("plan.")}
    return others | {f"plan.{name}": value for name, value in read.items()}


def _evaluate(desk: Desk, record: RoundRecord, weights: Weights, memory: Memory) -> RoundRecord:
    """Where the settings ask for it, let those who are not in quarantine or busy score the weights."""
    if not desk.settings.evaluates(record.round):
        return record
    without = quarantined(memory.standing, record.round + 1, desk.settings)
    # What sites work on when buffered rounds end is of no use any more, and their scores are.
    is_over = record.round == desk.settings.rounds and isinstance(desk.strategy, FedBuff)
    if desk.settings.late == "use" and not is_over:
        without |= memory.busy()
    return evaluate(desk, record, weights, without, final=record.round == desk.settings.rounds)
