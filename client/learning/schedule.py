"""How many updates, at which learning rate: the arithmetic of a plan's budget."""

import math

from wardround.strategies.plan import RoundPlan


def disagreement_factor(adaptivity: float, disagreement_ratio: float) -> float:
    """How much more than usual a case deserves: ``1 + a / (1 + a) · (ratio − 1)``, at most ``1 + a``.

    A case on which model and proxy agree already gets down to ``1 / (1 + a)`` of the usual. Up to its upper bound the
    factor is linear, so that its mean over a stream is 1 where the mean ratio is, and the plan's budget is spent.

    Parameters
    ----------
    adaptivity
        ``a``, at least 0; 0 gives 1 for every case.
    disagreement_ratio
        Disagreement of this case with the model, over the mean of recent cases; at least 0.
    """
    return min(1 + adaptivity, 1 + adaptivity / (1 + adaptivity) * (max(0.0, disagreement_ratio) - 1))


def learning_rate(plan: RoundPlan, disagreement_ratio: float = 1.0) -> float:
    """Cosine from the plan's first to its last learning rate over the rounds of the run.

    It follows a case's disagreement by the square root of :func:`disagreement_factor`; the updates follow it in full.
    """
    progress = (plan.round - 1) / max(1, plan.rounds - 1)
    half = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    usual = plan.learning_rate_end + (plan.learning_rate - plan.learning_rate_end) * half
    return usual * math.sqrt(disagreement_factor(plan.adaptivity, disagreement_ratio))


def interactive_updates(plan: RoundPlan, step: int, disagreement_ratio: float = 1.0) -> int:
    """Updates after annotation round `step` (0-based): later rounds, whose proxy is better, get proportionally more.

    Over all steps they sum to the plan's budget a case less :func:`rehearsal_updates`, times
    :func:`disagreement_factor`.
    """
    usual = plan.updates_per_case - rehearsal_updates(plan, 1)
    whole = round(usual * disagreement_factor(plan.adaptivity, disagreement_ratio))
    shares = plan.annotation_rounds * (plan.annotation_rounds + 1) // 2
    before, after = (whole * (n * (n + 1) // 2) // shares for n in (step, step + 1))
    return after - before


def rehearsal_updates(plan: RoundPlan, cases: int) -> int:
    """Updates from memory alone at the end of a round of `cases` new cases; none where nothing is remembered."""
    if not plan.replay_capacity:
        return 0
    return round(plan.updates_per_case * plan.rehearsal) * cases


def head_steps(updates: int, share: float) -> int:
    """How many of so many updates in a row move what stays at the site alone; the others move the rest alone.

    FedRep (Collins et al. 2021, algorithm 1) learns the head first, then the representation under it. Both get a step
    where there are two.
    """
    return max(0, min(math.ceil(share * updates), updates - 1))
