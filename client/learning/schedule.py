"""How many updates, at which learning rate: the arithmetic of a plan's budget."""

import math

from wardround.strategies.plan import RoundPlan


def learning_rate(plan: RoundPlan) -> float:
    """Cosine from the plan's first to its last learning rate over the rounds of the run."""
    progress = (plan.round - 1) / max(1, plan.rounds - 1)
    half = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return plan.learning_rate_end + (plan.learning_rate - plan.learning_rate_end) * half


def interactive_updates(plan: RoundPlan, step: int) -> int:
    """Updates after annotation round `step` (0-based): later rounds, whose proxy is better, get proportionally more.

    Over all steps they sum to the plan's budget a case less :func:`rehearsal_updates`.
    """
    whole = plan.updates_per_case - rehearsal_updates(plan, 1)
    shares = plan.annotation_rounds * (plan.annotation_rounds + 1) // 2
    before, after = (whole * (n * (n + 1) // 2) // shares for n in (step, step + 1))
    return after - before


def rehearsal_updates(plan: RoundPlan, cases: int) -> int:
    """Updates from memory alone at the end of a round of `cases` new cases; none where nothing is remembered."""
    if not plan.replay_capacity:
        return 0
    return round(plan.updates_per_case * plan.rehearsal) * cases
