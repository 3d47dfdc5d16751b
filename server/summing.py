"""Close a round from a sum: what training does with updates, where the coordinator sees none of them."""

from typing import TYPE_CHECKING

from wardround.server.desk import Desk
from wardround.server.exchange import TooFew
from wardround.server.journal import RoundRecord
from wardround.server.secure import SecureRound
from wardround.server.spool import OpenRound
from wardround.server.standing import judge, quarantined
from wardround.strategies.catalogue import strategy_state
from wardround.strategies.contract import Weights
from wardround.strategies.plan import RoundPlan
from wardround.strategies.streaming import combine_streaming

if TYPE_CHECKING:
    from wardround.server.training import Memory


def sum_up(
    desk: Desk, plan: RoundPlan, weights: Weights, memory: "Memory", spool: OpenRound
) -> tuple[RoundRecord, Weights]:
    """Close one round under secure aggregation; see :func:`wardround.server.training.train`.

    Raises
    ------
    TooFew
        If too few sites were there, or stayed to the end.
    RoundError
        If what they sent does not add up, or cannot be combined.
    """
    number, began = plan.round, desk.pace.now()
    without = quarantined(memory.standing, number, desk.settings)
    roster = desk.roster(desk.settings.quorum, without)
    spool.begin_attempt(roster.values())
    desk.tell("round-start", number, metrics={"sites": float(len(roster))})
    met = desk.pace.now()
    attempt = SecureRound(desk, plan, weights, spool.folder)
    try:
        found = attempt.run(roster)
    except TooFew:
        spool.give_up_attempt(*attempt.left_out)
        raise
    asked = desk.pace.now()
    combined = combine_streaming(desk.strategy, number, [found], weights)
    record = RoundRecord(
        round=number,
        plan=plan.digest(),
        sites=found.reports,
        refused=found.refused,
        missing=found.missing,
        seconds={"roster": met - began, "sites": asked - met, "aggregate": desk.pace.now() - asked},
        standing=judge(memory.standing, number, found.reports.keys(), found.blamed, desk.settings),
        attempts=spool.failed + 1,
        summed=found.metrics,
    )
    desk.journal.write(record, combined, strategy_state(desk.strategy))
    memory.learn(record)
    counts = {"sites": len(found.reports), "refused": len(record.refused), "missing": len(record.missing)}
    desk.tell("round-end", number, metrics={**counts, "seconds": desk.pace.now() - began})
    return record, combined
