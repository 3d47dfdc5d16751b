"""Let the sites score the global weights after a round."""

import logging
from collections.abc import Collection
from dataclasses import dataclass, field, replace

from flwr.app import RecordDict

from wardround.errors import RoundError
from wardround.server.desk import Desk, plain, reasons
from wardround.server.exchange import TooFew, exchange
from wardround.server.journal import Evaluation, RoundRecord
from wardround.strategies.codecs.record import write_down
from wardround.strategies.contract import ARRAYS, NUM_EXAMPLES, PLAN, Metrics, Weights, metrics_in

logger = logging.getLogger(__name__)

_NO_CASES = "no-cases"
_OFFLINE = "offline"


@dataclass
class _Scores:
    sites: dict[str, Metrics] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)


def evaluate(desk: Desk, record: RoundRecord, weights: Weights, without: Collection[str], final: bool) -> RoundRecord:
    """Let the sites score the weights after a closed round, and note it in the journal.

    Parameters
    ----------
    record
        Of the round. Who was refused in it is not asked.
    weights
        After it.
    without
        Others who are not asked.
    final
        Whether a run cannot do without the scores.

    Returns
    -------
    RoundRecord
        With the evaluation, if there is one.

    Raises
    ------
    RoundError
        If no site could evaluate, and the round is final.
    """
    number = record.round
    left = desk.settings.retries if final else 0
    scores = _Scores()
    while True:
        _ask(desk, record, weights, without, scores)
        if scores.sites and scores.lost and left:
            logger.warning("what %s sent on round %d got lost", ", ".join(sorted(scores.lost)), number)
            left -= 1
            desk.rest(desk.settings.retry_wait_s)
            continue
        if scores.sites or set(scores.missing.values()) == {_NO_CASES}:
            evaluation = Evaluation(
                dict(sorted(scores.sites.items())),
                dict(sorted(scores.refused.items())),
                dict(sorted(scores.missing.items())),
            )
            desk.journal.write_evaluation(number, evaluation)
            return replace(record, evaluation=evaluation)
        why = reasons(scores.refused, scores.missing)
        logger.warning("no site could evaluate round %d: %s", number, why)
        if not left:
            break
        desk.tell("retry", number, metrics={"left": float(left)}, reason="no-evaluation")
        left -= 1
        desk.rest(desk.settings.retry_wait_s)
    if final:
        raise RoundError(
            f"no site could evaluate round {number}",
            why or "none was left to ask",
            "look into the sites' logs; start the run again with the same folder to evaluate only",
        )
    return record


def _ask(desk: Desk, record: RoundRecord, weights: Weights, without: Collection[str], scores: _Scores) -> None:
    """Ask everybody who may score the weights; where some have, those whose answer got lost."""
    number = record.round
    plan = desk.plan(number)
    try:
        roster = desk.roster(0 if scores.sites else 1, {*record.refused, *without})
    except TooFew as error:
        logger.warning("round %d is closed, and nobody is there to evaluate it: %s", number, error)
        roster = {}
    if scores.sites:
        roster = {node: site for node, site in roster.items() if site in scores.lost}
    else:
        # Who sent an update and is not there now was cut off.
        scores.lost = {site for site in record.sites if site not in without} - set(roster.values())
        scores.missing = dict.fromkeys(scores.lost, _OFFLINE)
        scores.refused = {}
    content = RecordDict({ARRAYS: write_down(weights, plan.codec_down), PLAN: plan.to_record()})
    messages = [desk.message(node, number, "evaluate", content) for node in roster]
    answers = exchange(desk.grid, messages, desk.settings.deadline_s, desk.pace, desk.stop)
    del content, messages
    for answer in answers:
        site = roster[answer.node]
        for table in (scores.refused, scores.missing):
            table.pop(site, None)
        scores.lost.discard(site)
        refusal = desk.refusal(answer, site, number, "evaluate", weights)
        if refusal is None and answer.reply is not None:
            metrics = plain(metrics_in(answer.reply.content))
            if metrics[NUM_EXAMPLES]:
                scores.sites[site] = metrics
            else:
                scores.missing[site] = _NO_CASES
            desk.tell("evaluate", number, site, metrics)
        elif refusal is not None:
            (scores.missing if refusal.absent else scores.refused)[site] = refusal.code
            if refusal.lost:
                scores.lost.add(site)
            desk.tell("refused", number, site, reason=refusal.code)
        del answer
